"""What channels hand on to layers that weigh it, on a batch: for criteria that look at activations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxdistill.ir.channels import Channels
from fxdistill.ir.graph import path_of
from fxdistill.ir.running import buffers_kept

Look = Callable[[Tensor, Tensor], None]
"""Is given a value, (positions, all the rest), and the class of each position; the last class is of none."""


class _Reader(fx.Interpreter):
    """Runs a graph and looks at what is handed to layers with weights."""

    def __init__(self, channels: Channels, module: fx.GraphModule, look: Look) -> None:
        super().__init__(module)
        self.coupling, self.look = channels.coupling, look
        readers = [node for node in channels.traced.graph.nodes if self.coupling.mixes(node)]
        self.read = {path_of(source) for node in readers for source in node.all_input_nodes if source.op != "get_attr"}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and look at its value."""
        value = super().run_node(n)
        dim = self.coupling.channel_dim(path_of(n)) if n.op != "output" and path_of(n) in self.read else None
        if dim is not None:
            self.look(value.detach().movedim(dim, 0).flatten(1), torch.tensor(self.coupling.classes(path_of(n))))
        return value


def handed_on(channels: Channels, criterion: str, look: Look) -> None:
    """Run the model on the batch, and look at each value that a layer with weights reads.

    Args:
        channels: The model, and the batch.
        criterion: Who asks, for messages.
        look: Is called with each.

    Raises:
        InputError: There is no batch.
    """
    images, _ = channels.examples(criterion)
    with torch.no_grad(), channels.traced.running() as module, buffers_kept(module):
        _Reader(channels, module, look).run(images)

"""Mean magnitude of what a channel hands to layers that weigh it: Σ E |x|, over images and positions.

Hu et al. 2016, https://arxiv.org/abs/1607.03250, count zeros instead of magnitudes.
"""

from typing import Any

import torch
from torch import Tensor, fx

from fxdistill.criteria import Criterion
from fxdistill.ir.channels import Channels
from fxdistill.ir.graph import path_of
from fxdistill.ir.running import buffers_kept


class _Reader(fx.Interpreter):
    """Runs a graph and adds up what is handed to layers with weights."""

    def __init__(self, channels: Channels, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.coupling, self.scores = channels.coupling, channels.zeros()
        readers = [node for node in channels.traced.graph.nodes if self.coupling.mixes(node)]
        self.read = {path_of(source) for node in readers for source in node.all_input_nodes if source.op != "get_attr"}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and look at its value."""
        value = super().run_node(n)
        dim = self.coupling.channel_dim(path_of(n)) if n.op != "output" and path_of(n) in self.read else None
        if dim is not None:
            sizes = value.detach().abs().double().movedim(dim, 0).flatten(1).mean(1).cpu()
            self.scores.index_add_(0, torch.tensor(self.coupling.classes(path_of(n))), sizes)
        return value


def activation(channels: Channels) -> Tensor:
    """On a batch."""
    images, _ = channels.examples("activation")
    with torch.no_grad(), channels.traced.running() as module, buffers_kept(module):
        reader = _Reader(channels, module)
        reader.run(images)
    return reader.scores


CRITERION = Criterion(score=activation, summary="magnitude of what a channel hands on", needs_batch=True)

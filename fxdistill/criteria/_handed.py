"""What channels hand on, to layers that weigh it or out of the network, on a batch: for criteria on activations."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxdistill.errors import CriterionError, first_line
from fxdistill.ir.channels import Channels
from fxdistill.ir.graph import path_of, shape_of
from fxdistill.ir.reach import of_images
from fxdistill.ir.running import buffers_kept

Look = Callable[[str, Tensor, Tensor], None]
"""Is given the path of a value, the value as (positions, observations), and the class of each position."""
_AT_ONCE = 8
"""Images that are run at a time."""


class _Reader(fx.Interpreter):
    """Runs a graph and looks at what is handed to layers with weights, and out of the network."""

    def __init__(self, channels: Channels, module: fx.GraphModule, look: Look, *, images: int) -> None:
        super().__init__(module)
        self.coupling, self.look, self.images = channels.coupling, look, images
        self.shown = of_images(channels.traced.graph)
        readers = [node for node in channels.traced.graph.nodes if self.coupling.mixes(node) or node.op == "output"]
        sources = {source for node in readers for source in node.all_input_nodes if source in self.shown}
        self.read = {path_of(self._telling(source) if images else source) for source in sources}

    def _telling(self, node: fx.Node) -> fx.Node:
        """The last value of the same channels that has as many observations as channels, or else the most."""
        chain = [node]
        while same := [one for one in chain[-1].all_input_nodes if self._shows(one, self._classes(node))]:
            chain.append(same[0])
        enough = (one for one in chain if self._observed(one) >= len(self._classes(node)))
        return next(enough, None) or max(chain, key=self._observed)

    def _shows(self, node: fx.Node, classes: list[int]) -> bool:
        return node in self.shown and self._classes(node) == classes

    def _classes(self, node: fx.Node) -> list[int]:
        return sorted(set(self.coupling.classes(path_of(node))))

    def _observed(self, node: fx.Node) -> float:
        """How often the images show each channel of a value."""
        shape, count = shape_of(node), len(self._classes(node))
        return self.images * math.prod(shape[1:]) / count if shape and count else 0.0

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and look at its value."""
        value = super().run_node(n)
        path = path_of(n) if n.op != "output" else ""
        dim = self.coupling.channel_dim(path) if path in self.read else None
        if dim is not None:
            rows = value.detach().movedim(dim, 0)
            self.look(path, rows.reshape(len(rows), -1), torch.tensor(self.coupling.classes(path)))
        return value


def handed_on(channels: Channels, criterion: str, look: Look, *, apart: bool = False) -> int:
    """Run the model on the batch, a few images at a time, and look at each value that a layer reads, or that goes out.

    Args:
        channels: The model, and the batch.
        criterion: Who asks, for messages.
        look: Is called with each, of each few images.
        apart: Whether channels are to be told apart: where what is handed on was pooled to fewer observations than it
            has channels, it is looked at before.

    Returns:
        How many images there are.

    Raises:
        InputError: There is no batch.
        CriterionError: The model does not run on a few images of it.
    """
    images, _ = channels.examples(criterion)
    with torch.no_grad(), channels.traced.running() as module, buffers_kept(module):
        reader = _Reader(channels, module, look, images=len(images) if apart else 0)
        try:
            for some in images.split(_AT_ONCE):
                reader.run(some)
        except RuntimeError as cause:  # it takes batches of one size alone, say
            raise CriterionError(
                f"the model does not run on {min(_AT_ONCE, len(images))} images: {first_line(cause)}",
                where="criterion", hint="choose one that reads weights alone, e.g. l1",
            ) from cause  # fmt: skip
    return len(images)

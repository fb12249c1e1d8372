"""The layers of a model that take the time: convolutions and linear layers, with the widths that they read and make.

    sum of a model   =  the sum over its layers of time(layer, inputs, outputs)  *  MACs of all / MACs of these layers
    time of a model  =  time of the original  *  its sum / the sum of the original

so that products of two values take as long as what layers multiply, and what multiplies nothing takes its share. How
long a layer takes at some widths is for others to say (:mod:`fxdistill.measure.layer_times` measures it).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import fx

from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced, macs_of, op_name, path_of, shape_of, weights_of


class Layer(NamedTuple):
    """A layer as wide as it is in the model.

    Attributes:
        inputs: Channels that it reads.
        outputs: Channels that it makes.
        groups: Into how many parts these are divided, each for itself; as many as there are inputs in a depthwise one.
        sides: Batch size, and sides of the maps that it reads; of a linear layer the rows alone.
        made: The sides of the maps that it makes.
        kernel: The sides of its kernel; () for a linear layer.
    """

    inputs: int
    outputs: int
    groups: int
    sides: tuple[int, ...]
    made: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()

    def groups_at(self, inputs: int) -> int:
        """The groups where it reads so many channels."""
        return inputs if 1 < self.groups == self.inputs else self.groups

    def macs(self, inputs: int, outputs: int) -> float:
        """Its multiply-accumulates at some widths."""
        points = math.prod(self.made) * self.sides[0] * math.prod(self.kernel)
        return points * outputs * inputs / max(1, self.groups_at(inputs))


Times = Callable[[Layer, int, int], float]
"""How many seconds a layer takes that reads and makes so many channels."""


class Timing(NamedTuple):
    """How long layers take, and the whole model, in seconds."""

    times: Times
    whole: float


class Placed(NamedTuple):
    """A layer, and the classes of the channels that it reads and makes; 0 for what stays."""

    layer: Layer
    reads: tuple[int, ...]
    makes: tuple[int, ...]


def layers_of(traced: Traced, coupling: Coupling) -> Iterator[Placed]:
    """The layers of a model, in order."""
    for node in traced.graph.nodes:
        name = op_name(node, traced.module)
        weights = [traced.module.get_parameter(one) for one in weights_of(node, traced)]
        shapes = [tuple(one.shape) for one in weights if one.dim() > 1]
        read, made = (shape_of(node.all_input_nodes[0]) if node.all_input_nodes else None), shape_of(node)
        if not macs_of(node) or not shapes or read is None or made is None:
            continue
        shape = max(shapes, key=math.prod)
        source = node.all_input_nodes[0]
        if "conv" in name and len(read) == len(made) == len(shape) > 2:
            yield _convolution(node, source, shape, coupling, transposed="transpose" in name)
        elif name in ("linear", "addmm"):
            rows, inputs, outputs = math.prod(made[:-1]), read[-1], made[-1]
            layer = Layer(inputs, outputs, 1, (rows,))
            yield Placed(layer, _classes(source, coupling, inputs), _classes(node, coupling, outputs))


def _convolution(
    node: fx.Node, source: fx.Node, weight: tuple[int, ...], coupling: Coupling, *, transposed: bool
) -> Placed:  # fmt: skip
    read, made = shape_of(source) or (), shape_of(node) or ()
    reads, makes = _classes(source, coupling, read[1]), _classes(node, coupling, made[1])
    if transposed or math.prod(made[2:]) > math.prod(read[2:]):  # multiplies as one in the other direction does
        layer = Layer(made[1], read[1], made[1] // weight[1], (made[0], *made[2:]), read[2:], weight[2:])
        return Placed(layer, makes, reads)
    layer = Layer(read[1], made[1], read[1] // weight[1], (read[0], *read[2:]), made[2:], weight[2:])
    return Placed(layer, reads, makes)


def _classes(node: fx.Node, coupling: Coupling, width: int) -> tuple[int, ...]:
    """The classes of a value's channels; those of which nothing is known stay."""
    found = coupling.classes(path_of(node))
    return found if len(found) == width else (0,) * width

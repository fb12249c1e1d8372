"""How long layers take in ONNX Runtime at any of their widths: measured at a few, and interpolated between them.

Of each side of a layer (what it reads, what it makes) the ends, and the quarters between, are measured where they are
needed: once at multiples of 8 and once beside them, because kernels are made for the first. A width lies between
those of its own kind:

    time(a, b)  =  bilinear between the four measured widths around (a, b), each side among multiples of 8, or not

A time is the shortest of some runs of a file with that layer alone, less that of a file with next to nothing in it.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fxdistill.ir.graph import Shape
from fxdistill.ir.layers import Layer
from fxdistill.measure.latency import call, interleaved

UNIT = 8
"""Widths that are multiples of this have kernels of their own."""
_BESIDE = 3
_QUARTERS = (0.25, 0.5, 0.75, 1.0)
_REPEATS, _WARM_UP = 9, 2
_LEAST = 0.1
"""At least this share of what a file takes is counted for its layer."""
_OPSET, _IR = 18, 8


class Case(NamedTuple):
    """A layer at some widths."""

    layer: Layer
    inputs: int
    outputs: int

    @property
    def alone(self) -> "Case":
        """The same, of a layer that is no wider: one case for all layers that are alike at some widths."""
        groups = self.layer.groups_at(self.inputs)
        return self._replace(layer=self.layer._replace(inputs=self.inputs, outputs=self.outputs, groups=groups))


Measure = Callable[[Case], float]
"""Seconds that a layer takes at some widths."""


@dataclass
class Table:
    """The times of layers; what was measured is kept.

    Attributes:
        measure: Measures.
        known: What was measured.
    """

    measure: Measure
    known: dict[Case, float] = field(default_factory=dict)

    def __call__(self, layer: Layer, inputs: int, outputs: int) -> float:
        """Seconds that a layer takes that reads and makes so many channels."""
        if not inputs or not outputs:
            return 0.0
        reads, makes = _around(inputs, layer.inputs), _around(outputs, layer.outputs)
        if 1 < layer.groups == layer.inputs == layer.outputs:  # one width, and no two
            return sum(share * self._of(layer, width, width) for width, share in makes)
        return sum(one * two * self._of(layer, a, b) for a, one in reads for b, two in makes)

    def _of(self, layer: Layer, inputs: int, outputs: int) -> float:
        case = Case(layer, inputs, outputs).alone
        if case not in self.known:
            self.known[case] = self.measure(case)
        return self.known[case]


def _around(width: int, whole: int) -> tuple[tuple[int, float], ...]:
    """The measured widths around one, and how much each of them counts."""
    grid = _grid(whole, even=width % UNIT == 0)
    if width in grid or width == whole:
        return ((width, 1.0),)
    below, above = [n for n in grid if n < width], [n for n in grid if n > width]
    if not below or not above:
        return (((above or below[::-1])[0], 1.0),)
    share = (width - below[-1]) / (above[0] - below[-1])
    return (below[-1], 1 - share), (above[0], share)


def _grid(whole: int, *, even: bool) -> list[int]:
    """The widths that are measured of a layer's side: multiples of 8, or others."""
    multiples = sorted({UNIT, *(UNIT * max(1, math.ceil(q * whole / UNIT)) for q in _QUARTERS)})
    if even:
        return [n for n in multiples if n <= whole]
    others = {1, *(n - _BESIDE for n in multiples)} | ({whole} if whole % UNIT else set())
    return sorted(n for n in others if 1 <= n <= whole)


@dataclass
class InOnnxRuntime:
    """Measures layers in ONNX Runtime.

    Attributes:
        provider: Its name of the execution provider.
    """

    provider: str = "CPUExecutionProvider"

    def __call__(self, case: Case) -> float:
        """Seconds that a layer takes at some widths."""
        model, shape = _file(case)
        found = self._shortest(model, shape)
        return max(found - self.nothing, _LEAST * found)

    @cached_property
    def nothing(self) -> float:
        """Seconds that a file with next to nothing in it takes.

        Raises:
            InputError: The provider does not come up on this machine.
        """
        return self._shortest(_model([helper.make_node("Relu", ["input"], ["output"])], (1, 1), (1, 1), {}), (1, 1))

    def _shortest(self, model: onnx.ModelProto, shape: tuple[int, ...]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.onnx"
            path.write_bytes(model.SerializeToString())
            once = call(path, shape, provider=self.provider)
            return min(interleaved({"": once}, repeats=_REPEATS, warmup=_WARM_UP)[""])


def _file(case: Case) -> tuple[onnx.ModelProto, Shape]:
    """A file with one layer in it, and the shape of its input."""
    layer, inputs, outputs = case
    if not layer.kernel:
        rows: Shape = (layer.sides[0], inputs)
        nodes = [
            helper.make_node("MatMul", ["input", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["output"]),
        ]
        return _model(nodes, rows, (layer.sides[0], outputs), {"weight": (inputs, outputs), "bias": (outputs,)}), rows
    groups = layer.groups_at(inputs)
    inputs, outputs = (max(groups, n // groups * groups) for n in (inputs, outputs))
    batch, *read = layer.sides
    strides = [max(1, round(a / b)) for a, b in zip(read, layer.made, strict=True)]
    missing = [
        max(0, (made - 1) * stride + kernel - side)
        for made, stride, kernel, side in zip(layer.made, strides, layer.kernel, read, strict=True)
    ]
    pads = [*(n // 2 for n in missing), *(n - n // 2 for n in missing)]
    nodes = [
        helper.make_node(
            "Conv", ["input", "weight", "bias"], ["made"], group=groups, kernel_shape=list(layer.kernel),
            strides=strides, pads=pads,
        ),
        helper.make_node("Relu", ["made"], ["output"]),
    ]  # fmt: skip
    shape = (batch, inputs, *read)
    return _model(nodes, shape, None, {"weight": (outputs, inputs // groups, *layer.kernel), "bias": (outputs,)}), shape


def _model(
    nodes: list[onnx.NodeProto],
    read: tuple[int, ...],
    made: tuple[int, ...] | None,
    weights: dict[str, tuple[int, ...]],
) -> onnx.ModelProto:
    """A file of some nodes from ``input`` to ``output``, with weights of noise."""
    chance = np.random.default_rng(0)
    held = [
        numpy_helper.from_array(chance.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("input", TensorProto.FLOAT, read)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, made)], held,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR
    return model

"""The vocabulary: finding nodes, naming operations."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxdistill.errors import PairingError
from fxdistill.ir.graph import find, module_op_name, op_name, path_of, within, written
from fxdistill.ir.reach import reached
from fxdistill.ir.running import example, in_mode, tensors_in
from fxdistill.passes.trace import Trace
from tests import tiny_models
from tests.tiny_models import SHAPE


def test_a_module_stands_for_the_node_at_which_it_ends() -> None:
    traced = Trace(SHAPE)(tiny_models.residual().eval()).value
    assert path_of(find(traced, "body.stem")) == "body.stem.2"
    assert path_of(find(traced, "body")) == "body.relu_1"
    assert path_of(find(traced, "body.add")) == "body.add"
    with pytest.raises(PairingError, match=r"no node or module has the path 'body\.stm'") as caught:
        find(traced, "body.stm")
    assert "body.stem" in caught.value.hint


def test_the_end_of_a_path_means_the_module_that_it_ends_with() -> None:
    layers = nn.Sequential()
    for name in ("layer1", "layer2"):
        layers.add_module(name, nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())))
    model = nn.Sequential()
    model.add_module("layers", layers)
    traced = Trace(SHAPE)(model.eval()).value
    hints = []
    for wrong in ("layer2", "layers.layr2"):
        with pytest.raises(PairingError, match="no node or module") as caught:
            find(traced, wrong)
        hints.append(caught.value.hint)
    assert hints[0] == "did you mean layers.layer2?"
    assert "layers.layer2" in hints[1].rstrip("?").removeprefix("did you mean ").split(", ")


def test_one_operation_has_one_name() -> None:
    class Additions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.add(x, x) + x
            y = y.add(x).add_(x)
            return torch.ops.aten.add.Tensor(y, x)  # type: ignore[no-any-return]

    traced = fx.symbolic_trace(Additions())
    last = next(n for n in traced.graph.nodes if n.op == "output").args[0]
    with traced.graph.inserting_after(last):
        traced.graph.call_function(operator.iadd, (last, last))  # tracing makes it an add
    calls = [n for n in traced.graph.nodes if n.op not in ("placeholder", "output")]
    assert {op_name(node, traced) for node in calls} == {"add"}
    assert [bool(written(node, traced)) for node in calls] == [False, False, False, True, False, True]


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.ReLU6(), "relu6"), (nn.Conv2d(1, 1, 1), "conv2d"), (nn.BatchNorm1d(1), "batch_norm"), (nn.GELU(), "gelu"),
     (nn.SiLU(), "silu"), (nn.Dropout2d(), "dropout"), (nn.AdaptiveAvgPool2d(1), "adaptive_avg_pool2d"),
     (nn.MaxPool2d(2), "max_pool2d"), (nn.LayerNorm(1), "layer_norm"), (nn.Hardswish(), "hardswish")],
)  # fmt: skip
def test_layers_are_named_as_their_functions(module: nn.Module, name: str) -> None:
    assert module_op_name(module) == name


def test_writes_are_known_however_they_are_called() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Any:
            a = F.relu(x, inplace=True)
            b = F.leaky_relu(a, 0.1, True)
            c = torch.relu_(input=b)
            return torch.neg(c, out=x)

    traced = fx.symbolic_trace(Writes())
    found = [[str(n) for n in written(node, traced)] for node in traced.graph.nodes if node.op == "call_function"]
    assert found == [["x"], ["relu"], ["leaky_relu"], ["x"]]


@pytest.mark.parametrize(("attribute", "ways"), [("mT", 1), ("data", 0), ("shape", 0)])
def test_an_attribute_is_an_operation(attribute: str, ways: int) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Any:
            return x * getattr(self.a(x), attribute)[0]

    traced = fx.symbolic_trace(Asks())
    assert attribute in {op_name(node, traced) for node in traced.graph.nodes}
    assert len(reached(traced, traced.graph, traced.graph.output_node().all_input_nodes)) == ways


def test_modes_come_back() -> None:
    module = tiny_models.residual()
    module.get_submodule("body.stem.1").eval()
    before = [m.training for m in module.modules()]
    with in_mode(module, training=False) as inside:
        assert not any(m.training for m in inside.modules())
    assert [m.training for m in module.modules()] == before


def test_small_things() -> None:
    assert within("a.b", "a")
    assert within("a", "a")
    assert not within("ab", "a")
    one, two = torch.ones(1), torch.ones(2)
    assert tensors_in({"x": [one, (two,)], "y": 3}) == [one, two]
    images = example(nn.Linear(1, 1).double(), (2, 3))
    assert (images.dtype, tuple(images.shape)) == (torch.float64, (2, 3))
    assert torch.equal(images, example(nn.Linear(1, 1).double(), (2, 3)))

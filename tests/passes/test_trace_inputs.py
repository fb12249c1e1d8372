"""Trace: the images are the one input; what else ``forward`` takes has its default, as in a call."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxdistill
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import InvariantError, ModelError
from fxdistill.ir.graph import Traced, path_of
from fxdistill.ir.program import Member, inline
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Rung
from tests.tiny_models import SHAPE

SCALE = torch.tensor([2.0])


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(2 * width, 5)

    def answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.b(F.relu(self.norm(self.a(x))))).mean((2, 3)))
        return logits


class Number(Net):
    def forward(self, x: Tensor, alpha: float = 0.5) -> Tensor:
        return self.answer(x) * alpha


class Keyword(Net):
    def forward(self, x: Tensor, *, alpha: float = 0.5, times: int = 2) -> Tensor:
        for _ in range(times):
            x = x * alpha
        return self.answer(x)


class Optional(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x * mask
        return self.answer(x)


class Switched(Net):
    def forward(self, images: Tensor, pre_logits: bool = False, act: Any = F.relu) -> Tensor:
        logits: Tensor = images.mean((2, 3)) if pre_logits else act(self.answer(images))
        return logits


class OfTensor(Net):
    def forward(self, x: Tensor, scale: Tensor = SCALE) -> Tensor:
        return self.answer(x) * scale


class Starred(Net):
    def forward(self, *inputs: Tensor, **options: float) -> Tensor:
        return self.answer(inputs[0]) * options.get("scale", 1.0) * len(inputs)


class Passing(Net):
    """A part of the model has optional arguments, and is given them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.part = Optional(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.part(x if mask is None else mask, mask=x)
        return logits


def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrapper(self: nn.Module, x: Tensor, scale: float = 3.0) -> Tensor:
        return function(self, x) * scale

    return wrapper


class Decorated(Net):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x)


NETS = [Number, Keyword, Optional, Switched, OfTensor, Starred, Passing, Decorated]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rung", ["symbolic", "export"])
@pytest.mark.parametrize("net", NETS)
def test_a_graph_takes_the_images_alone(net: type[Net], rung: Rung, training: bool) -> None:
    module = net()
    traced = Trace(SHAPE, training=training, rungs=(rung,))(module).value
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    assert placeholders == [traced.input]
    assert traced.rung == rung
    images = torch.randn(3, *SHAPE[1:])
    module.train(training)
    assert torch.equal(traced.module(images.clone()), module(images))


@pytest.mark.parametrize("net", NETS)
def test_both_models_may_have_other_arguments(net: type[Net]) -> None:
    teacher, student = net(16), net(8)
    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=SHAPE))
    assert plan.given("student").rung == "symbolic"
    program = fxdistill.specialize(fxdistill.build(plan, teacher, student), "main")
    program.total(program({"images": torch.randn(SHAPE), "labels": torch.tensor([1, 2])})).backward()
    assert student.get_parameter("part.a.weight" if net is Passing else "a.weight").grad is not None


@pytest.mark.parametrize("net", NETS)
def test_a_model_with_other_arguments_shrinks_with_proof_and_without_noise(
    net: type[Net], capsys: pytest.CaptureFixture[str]
) -> None:
    result = shrink_model(net(16).eval(), input_shape=SHAPE, keep=0.5)
    assert result.rung == "symbolic"
    assert result.after.macs < result.before.macs
    assert capsys.readouterr() == ("", "")


def test_a_graph_with_other_inputs_is_traced_to_one() -> None:
    """A model that is an ``fx.GraphModule`` already."""
    for net in (Number(), Starred()):
        graph = fx.symbolic_trace(net) if isinstance(net, Number) else starred_graph(net)
        with graph.graph.inserting_before(next(iter(graph.graph.nodes))):
            graph.graph.get_attr(next(name for name, _ in graph.named_parameters()))  # constants may stand first
        traced = Trace(SHAPE)(graph).value
        assert traced.rung == "symbolic"
        assert [path_of(n) for n in traced.graph.nodes if n.op == "placeholder"] == [path_of(traced.input)]
        images = torch.randn(SHAPE)
        assert torch.equal(traced.module(images), net(images))


def starred_graph(net: nn.Module) -> fx.GraphModule:
    graph = fx.Graph()
    images, options = graph.placeholder("*inputs"), graph.placeholder("**options")
    first = graph.call_function(operator.getitem, (images, 0))
    graph.call_function(len, (options,))
    graph.output(graph.call_module("net", (first,)))
    return fx.GraphModule(nn.ModuleDict({"net": net}), graph)


def needs_one_more(self: nn.Module, x: Tensor, prior: Tensor) -> None: ...
def needs_a_keyword(self: nn.Module, x: Tensor, scale: float = 1.0, *, prior: Tensor) -> None: ...
def takes_nothing(self: nn.Module) -> None: ...
def takes_keywords_alone(self: nn.Module, *, x: Tensor, **more: Tensor) -> None: ...


@pytest.mark.parametrize(
    ("forward", "message", "hint"),
    [(needs_one_more, "forward needs 'prior' beside the images", "give 'prior' a default"),
     (needs_a_keyword, "forward needs 'prior' beside the images", "give 'prior' a default"),
     (takes_nothing, "does not take the images as its first argument", "forward(self, images)"),
     (takes_keywords_alone, "does not take the images as its first argument", "forward(self, images)")],
)  # fmt: skip
def test_an_argument_that_must_be_given_is_named(forward: Any, message: str, hint: str) -> None:
    module = type("Wanting", (Net,), {"forward": forward})()
    for training in (False, True):
        with pytest.raises(ModelError, match=message) as caught:
            Trace(SHAPE, training=training)(module)
        assert hint in caught.value.hint
        assert caught.value.exit_code == 2


def test_an_input_that_nothing_stands_for_is_not_passed_over() -> None:
    source = fx.symbolic_trace(Number())
    traced = Traced(source, "symbolic", training=False, input_shape=SHAPE)
    graph = fx.Graph()
    with pytest.raises(InvariantError, match="nothing stands for the input 'alpha'"):
        inline(
            graph,
            source.graph,
            {traced.input: graph.placeholder("x")},
            member=Member("student", trained=True, training=False),
        )

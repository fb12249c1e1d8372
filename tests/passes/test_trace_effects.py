"""Trace: what forward does besides computing values, and what a module has besides its class, is in the graph."""

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import fxdistill
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import ModelError
from fxdistill.ir.graph import Traced, shape_of
from fxdistill.measure.gate import reference
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Rung
from tests.user_models import IMAGE, Net, check, pooled


def net(forward: Callable[[Any, Tensor], Any], **more: nn.Module) -> Net:
    parts = {"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 6, 1), "head": nn.Linear(6, 4)}
    return Net(forward, **(parts | more))


def plain(m: Any, x: Tensor) -> Any:
    return m.head(pooled(F.relu(m.b(F.relu(m.a(x))))))


def trained(module: nn.Module, *, rungs: Any = ("symbolic", "leaves", "export")) -> Traced:
    return Trace(IMAGE, training=True, rungs=rungs)(module).value


def gradients(module: Callable[[Tensor], Any], owner: nn.Module) -> dict[str, Tensor | None]:
    owner.zero_grad()
    torch.manual_seed(0)
    module(torch.randn(IMAGE)).pow(2).sum().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in owner.named_parameters()}


def same_gradients(module: nn.Module, traced: Traced) -> bool:
    one, other = gradients(module.train(), module), gradients(traced.module.train(), module)
    assert any(value is not None for value in one.values())
    known = {name: value.tolist() for name, value in one.items() if value is not None}
    return known == {name: value.tolist() for name, value in other.items() if value is not None}


class Rounded(torch.autograd.Function):
    """Rounds, with the gradient of not rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def frozen_block(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        y = F.relu(m.a(x))
    return m.head(pooled(F.relu(m.b(y))))


@torch.no_grad()
def features(m: Any, x: Tensor) -> Any:
    return F.relu(m.a(x)), m.b


def frozen_function(m: Any, x: Tensor) -> Any:
    y, layer = features(m, x)
    return m.head(pooled(layer(y)))


def grown_again(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        y = m.a(x)
        with torch.enable_grad():
            z = m.b(y)
    return m.head(pooled(z))


def straight_through(m: Any, x: Tensor) -> Any:
    return m.head(pooled(m.b(Rounded.apply(m.a(x) * 4))))


FORWARDS = [
    frozen_block, frozen_function, grown_again, straight_through,
    lambda m, x: m.head(pooled(m.b(m.a(x).detach()))),
    lambda m, x: m.head(pooled(m.b(checkpoint(m.a, x, use_reentrant=False)))),
]  # fmt: skip


@pytest.mark.parametrize("forward", FORWARDS)
def test_gradients_of_the_graph_are_those_of_the_module(forward: Any) -> None:
    module = net(forward)
    traced = trained(module)
    assert traced.rung == "symbolic"
    assert same_gradients(module, traced)
    assert not gradients(traced.module, module)["head.weight"] is None  # noqa: E714


def test_a_shrunken_model_lets_no_gradient_through_where_the_model_does_not() -> None:
    result = shrink_model(net(frozen_block).eval(), input_shape=IMAGE, keep=0.5)
    found = gradients(result.module.train(), result.module)
    assert [name for name, gradient in found.items() if gradient is None] == ["a.weight", "a.bias"]


def test_gradients_that_a_rung_loses_are_a_reason_against_it() -> None:
    with pytest.raises(ModelError, match="loses the gradient that a function of the model's own has"):
        trained(net(straight_through), rungs=("export",))


def test_a_checkpoint_that_hides_its_gradients_from_torch_is_what_it_computes() -> None:
    module = net(lambda m, x: m.head(pooled(m.b(checkpoint(m.a, x, use_reentrant=True)))))
    found = gradients(trained(module).module, module)
    assert all(gradient is not None for gradient in found.values())


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


@pytest.mark.parametrize(("wrap", "unwrap"), [
    (lambda y: y, lambda y: y), (lambda y: {"answer": y}, lambda y: y["answer"]), (lambda y: (y, 1), lambda y: y[0]),
])  # fmt: skip
def test_a_dataclass_is_followed_like_a_mapping(wrap: Any, unwrap: Any) -> None:
    module = net(lambda m, x: wrap(Answer(plain(m, x))))
    assert shape_of(Trace(IMAGE)(module).value.output) == (2, 4)
    result = shrink_model(module.eval(), input_shape=IMAGE, keep=0.5)
    assert unwrap(result.module(torch.randn(IMAGE)))["logits"].shape == (2, 4)
    assert result.widths["head"] == (4, 4)


def test_dataclasses_one_an_image_are_those_of_a_detector() -> None:
    with pytest.raises(ModelError, match="as detectors do"):
        Trace(IMAGE)(net(lambda m, x: [Answer(one) for one in plain(m, x).unbind()]))


def test_an_output_without_any_tensor_is_refused() -> None:
    class Answers:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    for forward in (lambda m, x: Answers(plain(m, x)), lambda _m, _x: None, lambda m, x: plain(m, x).tolist()):
        with pytest.raises(ModelError, match="in which there is no tensor") as caught:
            Trace(IMAGE)(net(forward))
        assert "dataclass" in caught.value.hint


def test_a_layer_under_two_names_is_one_in_both_modes() -> None:
    norm = nn.BatchNorm2d(8)
    module = net(lambda m, x: m.head(pooled(m.b(m.other(m.a(x))))), norm=norm, other=norm)
    for rung in ("symbolic", "export"):
        traced = trained(module, rungs=(rung,))
        before = norm.running_mean.clone()  # type: ignore[union-attr]
        traced.module.train()(torch.randn(IMAGE) + 1)
        assert not torch.equal(before, norm.running_mean)  # type: ignore[arg-type]


def test_what_is_hung_on_an_instance_is_followed() -> None:
    """A forward replaced on a layer reads that layer's weights, in a copy as well."""
    for name, layer in (("a", nn.Conv2d(3, 8, 3, padding=1)), ("norm", nn.BatchNorm2d(8))):
        module = net(
            lambda m, x: m.head(pooled(m.b(F.relu(m.norm(m.a(x)))))), **{"norm": nn.BatchNorm2d(8), name: layer}
        )
        before = layer.forward
        layer.forward = lambda x, before=before: before(x) * 2  # type: ignore[method-assign, misc]
        module.eval()
        images = torch.randn(IMAGE)
        expected = module(images)
        result = shrink_model(module, input_shape=IMAGE, keep=0.5)
        assert result.widths["a"] == (8, 4)
        assert all(gradient is not None for gradient in gradients(result.module.train(), result.module).values())
        assert torch.equal(module(images), expected)


@pytest.mark.parametrize("how", ["prune", "spectral", "weight"])
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_layers_whose_weights_are_computed_by_hooks_are_copied_and_left_as_they_were(how: str) -> None:
    module = net(plain)
    layer = module.get_submodule("a")
    if how == "prune":
        prune.l1_unstructured(layer, "weight", 0.5)
    else:
        (nn.utils.spectral_norm if how == "spectral" else nn.utils.weight_norm)(layer)
    module.eval()
    images = torch.randn(IMAGE)
    expected, twin = module(images), {n: id(p) for n, p in module.named_parameters()}
    result = shrink_model(module, input_shape=IMAGE, keep=0.5)
    assert result.widths["b"] == (6, 3)
    assert all(gradient is not None for gradient in gradients(result.module.train(), result.module).values())
    assert torch.equal(module(images), expected)
    assert {n: id(p) for n, p in module.named_parameters()} == twin


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_part_is_one_node_that_trains_and_a_scripted_model_is_refused() -> None:
    part = torch.jit.script(nn.Conv2d(8, 8, 1))
    module = net(lambda m, x: m.head(pooled(m.b(F.relu(m.part(m.a(x)))))), part=part)
    result = shrink_model(module.eval(), input_shape=IMAGE, keep=0.5)
    assert result.widths["a"] == (8, 8)
    assert result.widths["b"] == (6, 3)
    found = gradients(result.module.train(), result.module)
    assert found["part.weight"] is not None
    with pytest.raises(ModelError, match="TorchScript"):
        Trace(IMAGE)(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1))))
    teacher, student = copy.copy(module), net(plain)
    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=IMAGE))
    program = fxdistill.specialize(fxdistill.build(plan, teacher, student), "main")
    program.total(program({"images": torch.randn(IMAGE), "labels": torch.tensor([1, 2])})).backward()
    assert student.get_parameter("a.weight").grad is not None
    images, frozen = torch.randn(IMAGE), reference(module)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert torch.equal(frozen(images), module.eval()(images))


def test_what_a_model_itself_prints_is_not_printed_by_passes(capfd: pytest.CaptureFixture[str]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        print("seen", tuple(x.shape))  # noqa: T201
        sys.stderr.write("here\n")
        return plain(m, x)

    shrink_model(net(forward).eval(), input_shape=IMAGE, keep=0.5)
    fxdistill.compile(net(forward), net(forward), fxdistill.Options(input_shape=IMAGE))
    assert capfd.readouterr() == ("", "")


def test_a_residual_kept_by_name_is_followed() -> None:
    """What forward keeps on the module (the last features) is a value like any other, and no stand-in stays behind."""

    def forward(m: Any, x: Tensor) -> Any:
        m.last = F.relu(m.a(x))
        return m.head(pooled(m.b(m.last)))

    module = net(forward)
    check(module, {"head"})
    assert isinstance(vars(module).get("last", torch.zeros(1)), Tensor)


class Held(Net):
    """Its normalisation stays as it is while the rest is trained."""

    def train(self, mode: bool = True) -> "Held":
        super().train(mode)
        self.get_submodule("norm").eval()
        return self


@pytest.mark.parametrize("rung", ["symbolic", "export"])
def test_what_train_leaves_in_eval_mode_stays_in_it(rung: Rung) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(pooled(m.moved(m.b(m.norm(m.a(x))))))

    parts = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 6, 1), "norm": nn.BatchNorm2d(8), "moved": nn.BatchNorm2d(6)}
    student = Held(forward, **parts, head=nn.Linear(6, 4))
    assert trained(student, rungs=(rung,)).held == ("norm",)
    teacher = net(plain)
    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=IMAGE))
    program = fxdistill.specialize(fxdistill.build(plan, teacher, student), "main")
    batch = {"images": torch.randn(IMAGE) + 1, "labels": torch.tensor([1, 2])}
    before = copy.deepcopy(student.state_dict())
    program.eval()
    program.train()
    program.total(program(batch)).backward()
    assert {n for n, t in student.state_dict().items() if not torch.equal(t, before[n])} == {
        "moved.running_mean", "moved.running_var", "moved.num_batches_tracked"
    }  # fmt: skip
    assert student.get_parameter("norm.weight").grad is not None
    assert program.training


COMPILED: dict[str, Callable[[], nn.Module]] = {
    "whole": lambda: torch.compile(net(plain)),  # type: ignore[dict-item, return-value]
    "a part": lambda: net(plain, a=torch.compile(nn.Conv2d(3, 8, 3, padding=1))),  # type: ignore[arg-type]
    "in place": lambda: in_place(net(plain)),
}


def in_place(module: nn.Module) -> nn.Module:
    module.compile()
    return module


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_models_are_traced_as_they_are_written(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module = COMPILED[name]()
    assert trained(module).training
    result = shrink_model(module.eval(), input_shape=IMAGE, keep=0.5)
    assert sorted(kept for _, kept in result.widths.values()) == [3, 4, 4]
    assert capfd.readouterr() == ("", "")


def test_a_refusal_after_torchs_own_reports_is_all_that_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """``torch.export`` prints the graph that it has so far, ``torch.fx`` tracebacks."""

    def forward(m: Any, x: Tensor) -> Any:
        scores = m.a(x).flatten()
        best = scores[torch.where(scores > 0)[0]].topk(3)[0]
        return best[:1] if best.sum() > 4 else best

    with pytest.raises(ModelError, match="could not be traced") as caught:
        shrink_model(net(forward).eval(), input_shape=IMAGE, keep=0.5)
    assert len(str(caught.value).splitlines()) == 3
    assert capfd.readouterr() == ("", "")


@dataclass
class Output(OrderedDict[str, Any]):
    """As Hugging Face's: a mapping and a dataclass, without what is None."""

    logits: Tensor
    hidden: Any = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


def of_flags(m: Any, x: Tensor) -> Any:
    assert x.shape[-1] == 16
    assert x.dim() == 4
    if not isinstance(x, Tensor) or x.shape[1] != 3:
        raise ValueError("no image")
    return Output(plain(m, x), (m.a(x),) if m.training else None)


WRITTEN: dict[str, Callable[[], nn.Module]] = {
    "flags and assertions": lambda: net(of_flags),
    "parallel": lambda: nn.DataParallel(net(plain)),
    "spare part": lambda: net(plain, spare=nn.Linear(7, 7)),
    "twice": lambda: net(lambda m, x: plain(m, F.interpolate(m.c(m.c(x)), 16)), c=nn.Conv2d(3, 3, 1)),
    "hooked": lambda: hooked(net(plain)),
}


def hooked(module: nn.Module) -> nn.Module:
    module.get_submodule("a").register_forward_hook(lambda _m, _i, output: output * 2)
    module.register_forward_pre_hook(lambda _m, inputs: (inputs[0] + 1,))
    module.register_forward_hook(lambda _m, _i, output: output * 3)
    return module


@pytest.mark.parametrize("name", WRITTEN)
def test_models_as_they_are_written(name: str) -> None:
    module = WRITTEN[name]().eval()
    result = shrink_model(module, input_shape=IMAGE, keep=0.5)
    widths = {path.removeprefix("module."): kept for path, (_, kept) in result.widths.items()}
    assert (widths["a"], widths["b"], widths["head"]) == (4, 3, 4)
    traced, images = trained(module), torch.randn(3, *IMAGE[1:])
    module.train()
    one, other = module(images), traced.module(images)
    assert torch.equal(
        one["logits"] if isinstance(one, dict) else one, other["logits"] if isinstance(one, dict) else other
    )

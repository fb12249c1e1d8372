"""Couple, thin and shrink where the weight of a layer is computed on the way: it is narrowed, or listed with why."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import InputError
from fxdistill.modelfiles import bundle
from fxdistill.modelfiles.load import load
from fxdistill.modelfiles.source import ModelSource
from tests.user_models import IMAGE, Net, check, conv, pooled, randomized


class Layer(nn.Module):
    """A weight of 8 inputs and 6 outputs that a function applies."""

    def __init__(self, apply: Callable[[Any, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.apply_to, self.weight, self.bias = apply, nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(6))
        self.scale = nn.Parameter(torch.ones(6, *(1,) * (len(shape) - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(self, x)


LINEAR: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "scaled": (lambda m, x: F.linear(x, m.weight * 0.3, m.bias * 0.5), (6, 8)),
    "scaled by itself": (lambda m, x: F.linear(x, m.scale * m.weight, m.bias), (6, 8)),
    "transposed": (lambda m, x: x @ m.weight.t() + m.bias, (6, 8)),
    "transposed in place of t": (lambda m, x: F.linear(x, m.weight.t(), m.bias), (8, 6)),
    "expanded": (lambda m, x: torch.bmm(x[:, None], m.weight.unsqueeze(0).expand(x.shape[0], -1, -1))[:, 0], (8, 6)),
    "einsum": (lambda m, x: torch.einsum("bi,oi->bo", x, m.weight / m.weight.norm(dim=1, keepdim=True)), (6, 8)),
    "addmm": (lambda m, x: torch.addmm(m.bias, x, m.weight.t() * 2), (6, 8)),
    "addmm by name": (lambda m, x: torch.addmm(input=m.bias, mat2=m.weight.t(), mat1=x), (6, 8)),
    "addbmm": (lambda m, x: torch.addbmm(m.bias, x[None], m.weight.t()[None]), (6, 8)),
    "of positive numbers": (lambda m, x: F.linear(x, F.softplus(m.weight)), (6, 8)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_computed_weights_of_linear_layers_are_narrowed(name: str) -> None:
    apply, shape = LINEAR[name]
    net = Net(lambda m, x: m.head(F.relu(m.b(pooled(m.a(x))))), a=conv(3, 8), b=Layer(apply, *shape),
              head=nn.Linear(6, 4))  # fmt: skip
    result = shrink_model(randomized(net), input_shape=IMAGE, keep=0.5)
    assert result.widths == {"a.0": (8, 4), "b": (6, 3), "head": (4, 4)}
    assert sorted(result.module.get_parameter("b.weight").shape) == [3, 4]


CONVOLUTIONS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "equalised": (lambda m, x: F.conv2d(x, m.weight * (2 / 72) ** 0.5, m.bias, padding=1), (6, 8, 3, 3)),
    "standardised": (
        lambda m, x: F.conv2d(x, m.weight - m.weight.mean((1, 2, 3), keepdim=True), m.bias, padding=1),
        (6, 8, 3, 3),
    ),
    "transposed": (lambda m, x: F.conv_transpose2d(x, m.weight * 0.5, m.bias, padding=1), (8, 6, 3, 3)),
    "turned": (lambda m, x: F.conv2d(x, m.weight.transpose(0, 1), m.bias, padding=1), (8, 6, 3, 3)),
    "in groups": (lambda m, x: F.conv2d(x, m.weight * m.scale, m.bias, padding=1, groups=2), (6, 4, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_computed_kernels_are_narrowed(name: str) -> None:
    apply, shape = CONVOLUTIONS[name]
    net = Net(lambda m, x: m.head(F.relu(m.b(m.a(x)))), a=conv(3, 8), b=Layer(apply, *shape), head=nn.Conv2d(6, 4, 1))
    result = shrink_model(randomized(net), input_shape=IMAGE, keep=0.5)
    assert result.widths["a.0"] == (8, 4)
    # three in two groups are no equal counts: four stay, or two
    assert result.widths["b"] in (((6, 2), (6, 4)) if name == "in groups" else ((6, 3),))


PARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "pruned by masks": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_and_masked_layers_are_narrowed(name: str) -> None:
    layer = PARAMETRIZED[name](nn.Conv2d(8, 6, 3, padding=1))
    net = Net(lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x))))), a=nn.Conv2d(3, 8, 1), b=layer, head=nn.Conv2d(6, 4, 1))
    result = shrink_model(net.eval(), input_shape=IMAGE, keep=0.5)
    assert result.widths == {"a": (8, 4), "b": (6, 3), "head": (4, 4)}


def test_hooks_that_change_the_input_of_a_layer_are_seen() -> None:
    """A constant that a hook adds reaches the weights of channels that are gone: it is traced, so it is masked."""
    layer = nn.Conv2d(8, 6, 1)
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    net = Net(lambda m, x: m.head(m.b(m.a(x))), a=nn.Conv2d(3, 8, 1), b=layer, head=nn.Conv2d(6, 4, 1)).eval()
    result = shrink_model(net, input_shape=IMAGE, keep=0.5)
    assert (result.rung, result.widths["a"], result.widths["b"]) == ("export", (8, 4), (6, 3))


def test_a_table_read_backwards_narrows_its_columns() -> None:
    """Tied weights: what looks words up also scores them."""

    def forward(m: Any, x: Tensor) -> Any:
        return F.linear(pooled(m.a(x)).relu() + m.table(m.words).mean(0), m.table.weight)

    net = Net(forward, a=nn.Conv2d(3, 8, 1), table=nn.Embedding(10, 8), words=torch.arange(4))
    result = shrink_model(randomized(net), input_shape=IMAGE, keep=0.5)
    assert result.module.get_parameter("table.weight").shape == (10, 4)


def test_a_request_that_changes_nothing_names_each_layer_with_its_reason() -> None:
    net = Net(lambda m, x: m.head(m.rnn(m.a(x).mean(2).transpose(1, 2))[0][:, -1]), a=nn.Conv2d(3, 8, 1),
              rnn=nn.LSTM(8, 6, batch_first=True), head=nn.Linear(6, 4)).eval()  # fmt: skip
    with pytest.raises(InputError) as caught:
        shrink_model(net, input_shape=IMAGE, keep=0.5)
    assert "'a' keeps its 8 outputs: its channel enters 'lstm', which is not followed at 'rnn'" in caught.value.hint
    assert "'head' keeps its 4 outputs: its channel is the network's output" in caught.value.hint
    assert "'rnn' keeps its weights: " in caught.value.hint
    assert "round" not in caught.value.hint.partition(". Lower")[0]


def test_rounding_is_given_as_the_reason_where_it_is() -> None:
    net = Net(lambda m, x: m.head(m.a(x)), a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1)).eval()
    with pytest.raises(InputError) as caught:
        shrink_model(net, input_shape=IMAGE, keep=0.95)
    assert "'a' keeps its 8 outputs: its width is already what was asked for, or rounds to it" in caught.value.hint


def test_what_cannot_be_used_as_a_weight_is_left_to_the_check() -> None:
    """The helper of these tests holds a plain network to all that it promises."""
    net = Net(lambda m, x: m.head(F.relu(m.b(m.a(x)))), a=conv(3, 8), b=Layer(*_plain()), head=nn.Conv2d(6, 4, 1))
    check(net, {"head"}, zero=False)


def _plain() -> Any:
    return (lambda m, x: F.conv2d(x, m.weight * m.scale, m.bias), 6, 8, 1, 1)


class WithSpare(nn.Module):
    """A second head, and a parameter, that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.spare = nn.Sequential(nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5))
        self.loose = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.a(x))
        return y


def test_what_forward_does_not_use_is_kept_as_it_is_and_counted(tmp_path: Path) -> None:
    net = randomized(WithSpare())
    result = shrink_model(net, input_shape=IMAGE, keep=0.5)
    whole = net.state_dict()
    for module in (result.module, copy.deepcopy(result.module)):
        state = module.state_dict()
        assert state.keys() == whole.keys()
        assert all(torch.equal(state[name], whole[name]) for name in state if name.startswith(("spare", "loose")))
    assert result.after.parameters == sum(p.numel() for p in result.module.parameters()) == 4 * 3 + 4 + 4 * 4 + 4 + 64
    said = {d.where: d.why for d in result.diagnostics if "forward does not use" in d.why}
    assert said.keys() == {"spare.0", "spare.1", "loose"}
    assert said["spare.0"].startswith("keeps its 45 parameters")
    twice = shrink_model(result.module, input_shape=IMAGE, keep=0.5)
    assert twice.module.state_dict().keys() == whole.keys()
    bundle.save(result.module, tmp_path / "small.pt", input_shape=IMAGE)
    loaded = load(ModelSource(tmp_path / "small.pt", None)).module
    assert torch.equal(loaded.state_dict()["spare.0.weight"], whole["spare.0.weight"])

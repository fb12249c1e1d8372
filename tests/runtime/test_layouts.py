"""How maps lie in memory: chosen by a rule, tried before training, and kept to by whoever goes on."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.compiler.build import build
from fxdistill.data.dataset import Dataset, Split
from fxdistill.errors import PlanError
from fxdistill.ir.program import Program
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.training import layouts
from tests import runs, tiny_models
from tests.tiny_models import Body, Classifier, awake, conv_norm, planned

pytestmark = pytest.mark.usefixtures("few_digits")

SPLIT = Split(torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 5)
DATA = Dataset(SPLIT, SPLIT, tuple("abcde"), (0.5,) * 3, (0.25,) * 3)


def program(student: nn.Module) -> Program:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 8, 8, 8))
    return build(plan, awake(tiny_models.residual()).eval(), awake(student, 1))


def ending(last: Callable[[Tensor], Tensor]) -> nn.Module:
    """A student that does something to its feature maps."""
    return Classifier(Body({"stem": conv_norm(3, 8)}, lambda m, x: last(m.stem(x))), 8)


def chosen(made: Program, size: int = 512, device: str = "cpu") -> layouts.Layout:
    return layouts.chosen({"distilled": made}, DATA, batch_size=size, device=device)


def test_it_pays_where_much_is_read_and_written_beside_the_weights() -> None:
    made = program(ending(lambda x: x))
    # one trained convolution: 3 maps in and 8 out of 8 x 8 pixels an image, 3 * 8 * 9 weights
    assert chosen(made, 512).why == (
        "channels last: trained convolutions read and write 360,448 elements a batch, beside 216 weights"
    )
    assert [chosen(made, size).last for size in (355, 356, 512)] == [False, True, True]  # 250,000 / 704
    assert not chosen(made, device="cuda").last
    heavy = program(Classifier(Body({"a": conv_norm(3, 512), "b": conv_norm(512, 8)}, lambda m, x: m.b(m.a(x))), 8))
    assert 3 * (3 + 512 + 512 + 8) * 64 > (3 * 512 + 512 * 8) * 9  # only too little to begin with
    assert [chosen(heavy, size).last for size in (3, 4)] == [False, True]


def test_weights_count_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_LEAST", 0)
    heavy = program(Classifier(Body({"a": nn.Conv2d(3, 8, 15, padding=7)}, lambda m, x: m.a(input=x)), 8))
    assert [chosen(heavy, size).last for size in (7, 8)] == [False, True]  # (3 + 8) * 64 elements, 24 * 225 weights


def viewed(x: Tensor) -> Tensor:
    return x.view(len(x), -1).view(x.shape)


def by_strides(x: Tensor) -> Tensor:
    return torch.as_strided(x, x.shape, (512, 64, 8, 1))


class Cut(torch.autograd.Function):
    """A step back that only one order allows."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        (found,) = gradients
        return found.view(len(found), -1).view(found.shape)


class Backwards(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Cut.apply(x)
        return found


def within(layer: nn.Module) -> nn.Module:
    layers = {"stem": conv_norm(3, 8), "layer": layer, "last": conv_norm(8, 8)}
    return Classifier(Body(layers, lambda m, x: m.last(m.layer(m.stem(x)))), 8)


@pytest.mark.parametrize(
    ("student", "why"),
    [(ending(viewed), "view size is not"), (ending(by_strides), "' is "), (within(Backwards()), "view size is not")],
)
def test_what_does_not_stand_it_is_found_and_left_as_it_was(student: nn.Module, why: str) -> None:
    made = program(student)
    before = {name: (value.clone(), value.stride()) for name, value in made.state_dict().items()}
    found = chosen(made)
    assert not found.last
    assert found.why.startswith("channels first: arm 'distilled' does not stand them last: ")
    assert why in found.why
    after = made.state_dict()
    assert all(torch.equal(after[name], value) for name, (value, _) in before.items())
    assert all(after[name].stride() == stride for name, (_, stride) in before.items())
    assert all(parameter.grad is None for parameter in made.parameters())


LAST = Settings(device="cpu", allow=runs.ALLOW, save_seconds=0)


def always(monkeypatch: pytest.MonkeyPatch, least: float = 0) -> None:
    monkeypatch.setattr(layouts, "_LEAST", least)


def test_a_run_goes_on_as_it_was_laid_out_whatever_would_be_chosen_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        always(patch)
        runs.interrupted(runs.plan_file(), tmp_path / "run", LAST, after=7)
        result = runs.execute(runs.plan_file(), tmp_path / "whole", LAST)
        asked = runs.execute(runs.plan_file(), tmp_path / "asked", dataclasses.replace(LAST, channels_last=True))
    assert result["channels_last"] is asked["channels_last"] is True
    assert result["layout"].startswith("channels last: trained convolutions read and write ")
    bits = (tmp_path / "whole" / "student.pt").read_bytes()
    assert bits == (tmp_path / "asked" / "student.pt").read_bytes()
    assert bits != (runs.finished() / "student.pt").read_bytes()
    always(monkeypatch, 1e12)
    again = runs.execute(runs.plan_file(), tmp_path / "run", dataclasses.replace(LAST, resume=True))
    assert again["channels_last"] is True
    assert again["layout"] == "as the run was begun"
    assert (tmp_path / "run" / "student.pt").read_bytes() == bits


def test_a_run_that_began_with_the_channels_first_goes_on_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.interrupted(runs.plan_file(), tmp_path / "run", LAST, after=7)
    always(monkeypatch)
    again = runs.execute(runs.plan_file(), tmp_path / "run", dataclasses.replace(LAST, resume=True))
    assert again["channels_last"] is False
    assert (tmp_path / "run" / "student.pt").read_bytes() == (runs.finished() / "student.pt").read_bytes()
    out = runs.workshop() / "extended-layout"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(runs.finished(), out)
    more = runs.execute(out / "plan.json", out, dataclasses.replace(LAST, more_epochs=1))
    assert more["channels_last"] is False
    assert more["layout"] == "as the run was begun"


def test_asked_for_where_a_model_does_not_stand_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.dropout(F.relu(self.bn2(self.conv2(x))), 0.1, training=self.training)
        found: Tensor = self.fc(self.drop(x.view(-1, 128).view(-1, 8, 16).mean(2)))
        return found

    plan = runs.plan_file()
    monkeypatch.setattr("fxdistill_test_models.Net.forward", forward)
    with pytest.raises(PlanError, match="does not allow") as raised:
        runs.execute(plan, tmp_path / "run", dataclasses.replace(LAST, channels_last=True))
    assert raised.value.hint == "run with --channels-last auto or off"
    always(monkeypatch)
    assert runs.execute(plan, tmp_path / "auto", LAST)["channels_last"] is False

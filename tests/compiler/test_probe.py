"""Difficulty, measured: a linear map of what the student has is easy, what has nothing to do with it is hard."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.options import Options
from fxdistill.compiler.pipeline import compile as compile_plan
from fxdistill.compiler.probe import difficulties
from fxdistill.errors import InputError
from fxdistill.ir.program import Outputs
from fxdistill.models import convnet
from fxdistill.passes.schedule.curriculum import Curriculum


class Fake(nn.Module):
    """Three pairs: the teacher's layer is a linear map of the student's, half of it is, and none of it is."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))

    def outputs(self, batch: dict[str, Tensor]) -> Outputs:
        student, noise = batch["images"][:, :4], batch["images"][:, 4:]
        linear = 3 + torch.einsum("oc,bchw->bohw", self.map, student)
        half = torch.cat([linear, noise], 1)
        pairs = {"easy": linear, "half": half, "hard": noise}
        return Outputs(taps={name: {"student": student, "teacher": found} for name, found in pairs.items()})


def sample(channels: int = 10, size: int = 5) -> list[dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(0)
    return [{"images": torch.randn(64, channels, size, size, generator=chance)} for _ in range(4)]


def test_what_a_linear_map_gives_is_easy() -> None:
    found = difficulties(Fake(), sample())  # type: ignore[arg-type]
    assert found["easy"] == 0.0
    assert found["half"] == pytest.approx(0.5, abs=0.02)
    assert found["hard"] == pytest.approx(1.0, abs=0.02)


def test_layers_without_positions_and_layers_that_say_nothing() -> None:
    class Flat(nn.Module):
        def outputs(self, batch: dict[str, Tensor]) -> Outputs:
            rows = batch["images"].flatten(1)
            pairs = {"same": (rows, rows), "still": (rows, torch.ones(len(rows), 3))}
            return Outputs(taps={name: {"student": one, "teacher": two} for name, (one, two) in pairs.items()})

    assert difficulties(Flat(), sample(4, 1)) == {"same": 0.0, "still": 0.0}  # type: ignore[arg-type]


def test_a_tap_that_is_no_number_is_refused() -> None:
    wrong = sample()
    wrong[1]["images"][3, 5] = torch.nan  # of the noise that is the teacher's
    with pytest.raises(InputError, match="the teacher's tap is not a number") as refusal:
        difficulties(Fake(), wrong)  # type: ignore[arg-type]
    assert "half" in refusal.value.where


def planned(sample: Any, **curriculum: Any) -> Any:
    torch.manual_seed(0)
    teacher, student = convnet(widths=[8, 16]), convnet(widths=[4, 8])
    before = copy.deepcopy([teacher.state_dict(), student.state_dict()])
    options = Options(input_shape=(2, 1, 8, 8), curriculum=Curriculum(**curriculum))
    plan = compile_plan(teacher, student, options, sample=sample)
    for held, found in zip(before, [teacher.state_dict(), student.state_dict()], strict=True):
        assert all(torch.equal(held[name], found[name]) for name in held)
    return plan


def batches() -> list[dict[str, Tensor]]:
    return [{**one, "labels": torch.zeros(64, dtype=torch.long)} for one in sample(1, 8)]


def test_the_plan_says_what_was_measured_and_what_it_decides() -> None:
    plan = planned(batches(), probe="lengths")
    hard = [pair.difficulty for pair in plan.pairs]
    assert all(0 < value < 1 for value in hard)
    assert planned(batches(), probe="lengths").to_json() == plan.to_json()
    *warm, main = plan.arm("distilled").stages
    assert sum(stage.epochs for stage in warm) == 7
    assert (warm[0].epochs < warm[1].epochs) == (hard[0] < hard[1])
    assert main == planned(batches()).arm("distilled").stages[-1]
    assert {pair.difficulty for pair in planned(batches()).pairs} == {None}


def test_without_data_nothing_is_measured() -> None:
    with pytest.raises(InputError, match="measured on data") as refusal:
        planned((), probe="order")
    assert refusal.value.hint == "add --data"

"""Faults planted in training: the checks of training can fail. ``benchmarks/mutants.py`` plants many more."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from fxdistill.data.augmentations import _apply
from fxdistill.data.augmentations._apply import rows
from fxdistill.ir.program import Program
from fxdistill.runtime.run import execute
from fxdistill.runtime.training import loop
from fxdistill.runtime.training.average import Average
from fxdistill.runtime.training.course import Progress
from tests import by_hand, recorded
from tests.by_hand import SEEDS

SEED = SEEDS[0]


def ascent(patch: pytest.MonkeyPatch) -> None:
    backward = Fabric.backward
    patch.setattr(Fabric, "backward", lambda self, total: backward(self, -total))


def no_schedule(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop, "set_rate", lambda *_: None)


def no_mean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Average, "update", lambda _self: None)


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fabric, "clip_gradients", lambda *_args, **_options: None)


def no_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Program, "total", lambda _self, losses, _epoch: torch.stack(list(losses.values())).sum())


def trained_start(patch: pytest.MonkeyPatch) -> None:
    """What the arms start from is the student's own memory, which the first of them trains."""
    patch.setattr(execute, "copy", SimpleNamespace(deepcopy=lambda state: state))


def reached(stage: str, step: int) -> Callable[[Progress], bool]:
    return lambda now: (now.stage.name, now.position.step) == (stage, step)


@pytest.mark.parametrize(
    ("plant", "arm", "until", "message"),
    [
        (None, "distilled", ("warm-up-1", 2), None),
        (ascent, "distilled", ("warm-up-1", 2), "gradient in warm-up-1, step 0"),
        (no_schedule, "distilled", ("warm-up-1", 2), "rate in warm-up-1, step 0"),
        (no_mean, "distilled", ("warm-up-2", 2), "losses in warm-up-2, step 0"),
        (no_clipping, "distilled", ("warm-up-2", 2), "gradient in warm-up-2, step 0"),
        (no_weights, "distilled", ("main", 2), "gradient in main, step 0"),
        (trained_start, "control", ("control", 2), "at the start"),
    ],
)
def test_a_planted_fault_is_noticed(
    plant: Any, arm: str, until: tuple[str, int], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plant is not None:
        plant(monkeypatch)
    record = recorded.run(tmp_path / "run", stop=reached(*until))
    monkeypatch.undo()
    if message is None:
        with pytest.raises(ValueError, match="longer"):  # right as far as it goes
            recorded.compare(record, SEED, arm)
    else:
        with pytest.raises(AssertionError, match=message):
            recorded.compare(record, SEED, arm)


@pytest.mark.parametrize("fault", [False, True])
def test_teacher_and_student_see_one_mixture_and_losses_its_labels(
    fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "AUGMENTATION", ["crop:1", "mixup"])
    with monkeypatch.context() as patch:
        if fault:
            patch.setattr(_apply, "rows", lambda labels, classes: rows(labels.roll(-1), classes))
        record = recorded.run(tmp_path / "run", stop=reached("main", 2))
    with pytest.raises(AssertionError if fault else ValueError) as found:
        recorded.compare(record, SEED, "distilled")
    assert ("losses in main, step 0" if fault else "longer") in str(found.value)

"""What cannot come to anything is said early: a teacher that answers no numbers, a training that diverges."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxdistill.errors import PlanError, TrainingError
from fxdistill.files import file_sha256
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.load import load
from fxdistill.runtime.run.execution import Settings
from tests import runs

CPU = Settings(device="cpu", allow=runs.ALLOW)


def of_no_number(module: nn.Module) -> None:
    """One weight that is none."""
    next(module.parameters()).data.view(-1)[0] = torch.nan


def too_large(module: nn.Module) -> None:
    """Weights that are all finite, and answers that are not."""
    for parameter in module.parameters():
        parameter.data.mul_(1e30)


@pytest.mark.parametrize("spoil", [of_no_number, too_large])
def test_a_teacher_that_answers_no_numbers_is_found_before_anything_is_written(
    tmp_path: Path, spoil: Callable[[nn.Module], None]
) -> None:
    runs.plan_file()
    teacher = copy.deepcopy(load(runs.workshop() / "teacher.pt").module)
    spoil(teacher)
    file = runs.workshop() / f"teacher-{spoil.__name__}.pt"
    save(teacher, file, factory=runs.TEACHER[0], kwargs=runs.TEACHER[1], input_shape=(1, 1, 8, 8))
    plan = runs.edited(
        spoil.__name__, lambda p: p["members"]["teacher"].update(path=file.name, sha256=file_sha256(file))
    )
    with pytest.raises(PlanError, match="is not a number before anything is trained") as caught:
        runs.execute(plan, tmp_path / "run", CPU)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("arm", ["distilled", "control"])
def test_a_training_that_diverges_stops_within_two_epochs(tmp_path: Path, optimizer: str, arm: str) -> None:
    """The losses stay finite: BatchNorm holds what the weights do not."""

    def change(plan: dict[str, Any]) -> None:
        of = plan["control"] if arm == "control" else plan["arms"][0]["stages"][-1]
        momentum = 0.9 if optimizer == "sgd" else 0.0
        of["optimizer"].update(name=optimizer, lr=100.0, momentum=momentum, nesterov=False)

    with pytest.raises(TrainingError) as caught:
        runs.execute(runs.edited(f"{arm}-{optimizer}", change), tmp_path / "run", CPU)
    assert caught.value.exit_code == 1
    assert "the training diverged" in caught.value.what
    epoch = int(caught.value.where.rpartition("epoch ")[2])
    assert epoch <= 2
    assert "learning rate" in caught.value.hint
    names = [line["name"] for line in runs.metrics(tmp_path / "run")]
    assert names.count(arm) == epoch - 1 + (0 if arm == "control" else 2)  # the warm-ups before it
    assert not (tmp_path / "run" / "result.json").exists()

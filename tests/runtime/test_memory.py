"""What a step takes is estimated before one is taken, and a step that no machine could take is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxdistill
from fxdistill.errors import InputError
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.training import memory
from tests import runs

SHAPE = (1, 3, 16, 16)


def program(width: int) -> fxdistill.Program:
    def net(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                             nn.Linear(channels, 10))  # fmt: skip

    teacher, student = net(2 * width), net(width)
    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=SHAPE, method="kd", epochs=1))
    return fxdistill.build(plan, teacher, student)


def test_the_estimate_is_what_a_hand_counts() -> None:
    width, batch = 8, 32
    trained = (3 * 9 * width + width) + (width * 10 + 10)
    frozen = (3 * 9 * 2 * width + 2 * width) + (2 * width * 10 + 10)
    kept = batch * (2 * width * 256 + 2 * width + 10)  # convolution and ReLU, pooled and flat, logits
    largest = batch * 2 * width * 256
    assert memory.needed(program(width), batch) == 4 * (4 * trained + frozen + kept + largest)


def test_more_images_take_more() -> None:
    found = [memory.needed(program(8), batch) for batch in (1, 10, 100)]
    assert found[2] - found[1] == 10 * (found[1] - found[0])


def test_what_no_machine_could_take_is_refused_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda _device: 1 << 10)
    with pytest.raises(InputError, match="GB") as caught:
        runs.execute(runs.plan_file(), tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW))
    assert "--force" in caught.value.hint
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(memory, "needed", lambda *_: pytest.fail("it was forced"))
    monkeypatch.setattr("fxdistill.runtime.run.execute.train", _stop)
    with pytest.raises(KeyboardInterrupt):
        runs.execute(runs.plan_file(), tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW, force=True))


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_machine_says_what_it_has() -> None:
    there = memory.available("cpu")
    assert there is not None
    assert 1 << 28 < there < 1 << 50
    assert torch.empty(1).element_size() == 4

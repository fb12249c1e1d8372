"""What a step does not read is not in memory: counted where a stage trains, and the numbers stay what they are."""

import copy
import errno
import gc
import mmap
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fxdistill.passes.instrument.builder import frozen
from fxdistill.runtime.run import reuse
from fxdistill.runtime.run.execution import Observer
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training import aside
from fxdistill.runtime.training.aside import Aside
from fxdistill.runtime.training.course import Progress
from fxdistill.runtime.training.halves import Halves
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(autouse=True)
def _all_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "WORTH", 1)


def resident(tensor: Tensor) -> int:
    """Bytes of the mapping that a tensor lies in that are in memory; those of the file that are not read are not."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        begin, dash, end = line.split()[0].partition("-")
        if dash and not line.startswith(" ") and int(begin, 16) <= tensor.data_ptr() < int(end, 16):
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    return -1


def test_what_is_put_aside_is_what_it_was_and_shares_memory_with_those_it_did(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(5, 7, bias=False))
    model.to(memory_format=torch.channels_last)
    model.append(nn.Linear(5, 7, bias=False))
    model[3].weight = model[2].weight
    other, before = frozen(model), copy.deepcopy(model.state_dict())
    whole = torch.arange(40.0).double()
    parts = [whole[3:20], whole[::2], torch.tensor(3, dtype=torch.int8), torch.empty(0, 4), torch.ones(2).to_sparse()]
    kept = [part.clone() for part in parts]
    strides = [tensor.stride() for tensor in (*model.parameters(), *parts[:-1])]
    away = Aside(tmp_path)
    away.put([*model.parameters(), *other.parameters(), *parts])
    for _ in range(2):
        assert [tensor.stride() for tensor in (*model.parameters(), *parts[:-1])] == strides
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(one.to_dense(), two.to_dense()) for one, two in zip(kept, parts, strict=True))
        away.let_go()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert one.data_ptr() == two.data_ptr() != 0
    assert parts[0].data_ptr() == parts[1].data_ptr() + 3 * 8
    assert model[2].weight is model[3].weight
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux alone says what is in memory")
def test_it_is_in_memory_while_it_is_read_and_gone_with_the_last_that_holds_it(tmp_path: Path) -> None:
    weight, away = torch.randn(1 << 18), Aside(tmp_path)
    away.put([weight])
    assert resident(weight) < 1 << 14
    total = float(weight.sum())
    assert resident(weight) >= 1 << 20
    away.let_go()
    assert resident(weight) < 1 << 14
    assert float(weight.sum()) == total
    part, place = weight[:9], weight.data_ptr()
    away.put([part])  # it is aside already
    assert part.data_ptr() == place
    del weight, part
    away.let_go()
    assert f"{place:x}-" not in Path("/proc/self/maps").read_text()


def test_what_is_written_to_or_too_little_or_finds_no_room_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, other = torch.randn(64), torch.randn(64)
    places = weight.data_ptr(), other.data_ptr()
    Aside(tmp_path).put([weight[3:], weight, other], written=[weight[:2]])
    assert weight.data_ptr() == places[0]
    assert other.data_ptr() != places[1]
    monkeypatch.setattr(aside, "WORTH", 4 * 64 + 1)
    Aside(tmp_path).put([weight])
    assert weight.data_ptr() == places[0]
    monkeypatch.setattr(aside, "WORTH", 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((mmap, "mmap"), (tempfile, "TemporaryFile")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            Aside(tmp_path).put([weight])
        assert weight.data_ptr() == places[0]


def living() -> Counter[tuple[int, ...]]:
    """How many tensors of each shape there are in memory of their own that is no mapped file."""
    found = [value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter)]
    found += [value.grad for value in found if value.is_leaf and value.grad is not None]
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [range(*(int(one, 16) for one in line.split()[0].split("-"))) for line in lines if "(deleted)" in line]
    places = {
        value.data_ptr(): tuple(value.shape) for value in found
        if value.device.type == "cpu" and not any(value.data_ptr() in places for places in mapped)
    }  # fmt: skip
    return Counter(places.values())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone says what is mapped")
@pytest.mark.parametrize(("cache", "copies"), [("off", 1), ("auto", 0)])
def test_a_step_holds_the_teacher_once_and_of_the_student_weights_and_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Literal["off", "auto"], copies: int
) -> None:
    """Neither what the teacher's folded copy was made of, nor where the student began, nor gradients of the past.

    Where steps read what is kept of the teacher, it is not in memory at all; the warm-ups, of one epoch, keep nothing.
    """
    monkeypatch.setattr(reuse, "_LEAST", 0.0)

    def gains(self: reuse.Reuse, halves: Halves, uses: Counter[int]) -> dict[int, float]:
        halves.tried(next(self.looks.batches(0))["images"])
        return dict.fromkeys(uses, 1.0)

    monkeypatch.setattr(reuse.Reuse, "_gains", gains)
    teacher, student = (16, 8, 3, 3), (8, 4, 3, 3)
    gc.collect()
    gc.freeze()  # what is here now is not looked through
    before, found = living(), dict[tuple[str, int], tuple[int, int]]()

    def look(_trial: Trial, progress: Progress, _metrics: object) -> None:
        if progress.position.step == 2:
            now = living() - before
            found[progress.stage.name, progress.position.epoch] = now[teacher], now[student]

    settings = replace(runs.CPU, channels_last=True, cache=cache, trials=1)
    runs.execute(runs.plan_file(), tmp_path / "run", settings, Observer(on_progress=look))
    assert found == {
        ("warm-up-1", 0): (0, 1), ("warm-up-2", 0): (1, 3), ("main", 0): (copies, 3), ("main", 1): (copies, 3),
    }  # fmt: skip

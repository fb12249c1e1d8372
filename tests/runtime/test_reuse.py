"""What frozen members compute is kept over epochs, seeds and runs, and nothing comes out other than without."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from fxdistill.compiler.build import specialize
from fxdistill.container import read
from fxdistill.ir.program import Program
from fxdistill.modelfiles.factories import build
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load
from fxdistill.runtime.run import reuse
from fxdistill.runtime.run.arms import build_program
from fxdistill.runtime.run.execution import Execution, Observer
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training import halves
from fxdistill.runtime.training.course import Progress
from fxdistill.runtime.training.shelf import Memory
from fxdistill.tasks import TASKS
from tests.by_hand import digits
from tests.runs import ALLOW, CPU, STUDENT, TEACHER, edited, execute, metrics
from tests.runtime import test_cascade

pytestmark = pytest.mark.usefixtures("few_digits")

_GAINS = reuse.Reuse._gains
OFF = dataclasses.replace(CPU, cache="off")
SIZE, TRAIN = 317, 315  # of the images five batches of 63


@pytest.fixture(autouse=True)
def _nothing_is_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the teacher is; and rows lie in several blocks."""

    def gains(_self: reuse.Reuse, found: halves.Halves, uses: Counter[int]) -> Counter[int]:
        found.tried(next(found.looks.batches(0))["images"])
        return uses

    monkeypatch.setattr(reuse, "_LEAST", 0.0)
    monkeypatch.setattr(reuse.Reuse, "_gains", gains)
    monkeypatch.setattr(halves, "_BLOCK", 1 << 16)


def planned(
    name: str = "cached", *, views: int | None = 2, seeds: tuple[int, ...] = (0, 1), augment: str = "crop:1"
) -> Path:
    def change(plan: dict[str, Any]) -> None:
        plan["data"] |= {"augmentation": [augment], "views": views}
        plan["seeds"] = list(seeds)

    return edited(name, change)


def same(one: Path, other: Path) -> bool:
    """Whether all trainings of two runs ended in the same weights, bit for bit, by the same losses."""
    first, second = (
        [read(path, kinds=("checkpoint",))[1]["state"] for path in sorted(out.glob("trained_*.pt"))]
        for out in (one, other)
    )
    assert len(first) == 4
    pairs = list(zip(first, second, strict=True))
    alike = all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
    return alike and metrics(one) == metrics(other)


def reports(result: dict[str, Any]) -> list[dict[str, dict[str, Any]]]:
    return [one["reuse"] for one in result["arms"] if one["name"] == "distilled"]


def counts(found: dict[str, dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {name: (one["computed"], one["read"]) for name, one in found.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    execute(planned(), out, OFF)
    return out


def test_a_run_that_keeps_is_one_that_does_not_bit_for_bit(tmp_path: Path, plain: Path) -> None:
    result = execute(planned(), tmp_path / "run", CPU)
    assert same(tmp_path / "run", plain)
    first, second = reports(result)
    warm = {"warm-up-1": (SIZE, TRAIN), "warm-up-2": (SIZE, TRAIN)}
    assert counts(first) == {**warm, "main": (2 * SIZE, 2 * TRAIN)}
    assert counts(second) == {"warm-up-1": (0, TRAIN), "warm-up-2": (0, TRAIN), "main": (0, 2 * TRAIN)}
    assert all(one["exact"] and one["where"] == "in memory" for one in (*first.values(), *second.values()))
    assert "reuse" not in next(one for one in result["arms"] if one["name"] == "control")


class _Killed(BaseException):
    pass


def killed(out: Path, settings: Any, stage: str, at: int) -> None:
    """A run that dies in a step of a stage under the first seed."""
    counted: Counter[str] = Counter()

    def stop(_trial: object, now: Progress, _metrics: object) -> None:
        counted[now.stage.name] += 1
        if counted[stage] == at:
            raise _Killed

    with pytest.raises(_Killed):
        execute(planned(), out, dataclasses.replace(settings, save_seconds=0.0), Observer(on_progress=stop))


def test_a_run_that_was_killed_goes_on_as_it_would_have(tmp_path: Path, plain: Path) -> None:
    killed(tmp_path / "run", CPU, "warm-up-2", 2)
    result = execute(planned(), tmp_path / "run", dataclasses.replace(CPU, resume=True))
    assert same(tmp_path / "run", plain)
    assert counts(reports(result)[0])["warm-up-1"] == (SIZE, TRAIN)  # said by the process that was killed


def test_a_folder_serves_what_comes_after_and_its_files_may_go_at_any_time(tmp_path: Path, plain: Path) -> None:
    kept = dataclasses.replace(CPU, cache=tmp_path / "kept")
    killed(tmp_path / "one", kept, "main", 3)
    files = sorted((tmp_path / "kept").rglob("*.fxcache"))
    assert len(files) > 8
    for file in files[::3]:
        file.unlink()
    result = execute(planned(), tmp_path / "one", dataclasses.replace(kept, resume=True))
    assert same(tmp_path / "one", plain)
    read = {name: one["read"] for name, one in reports(result)[1].items()}
    assert read == {"warm-up-1": TRAIN, "warm-up-2": TRAIN, "main": 2 * TRAIN}
    again = execute(planned(), tmp_path / "two", kept)
    assert same(tmp_path / "two", plain)
    assert [one["computed"] for stages in reports(again) for one in stages.values()] == [0] * 6


# What is decided


def keeping(plan: Plan, size: int = 1 << 30) -> tuple[reuse.Reuse, Memory]:
    shelf = Memory(size)
    return reuse.Reuse(plan, TASKS.get(plan.task), digits().train, Fabric(accelerator="cpu"), shelf, {}), shelf


def program_of(plan: Plan, trial: Trial) -> Program:
    modules = {"teacher": build(*TEACHER, seed=3), "student": build(*STUDENT, seed=4, allow=ALLOW)}
    return build_program(plan, trial, modules)


def decided(path: Path, size: int = 1 << 30) -> dict[str, halves.Report]:
    """What a run decides about the stages of its first trial."""
    plan, trial = load(path), Trial(0, "distilled")
    found, _ = keeping(plan, size)
    program = program_of(plan, trial)
    for stage in program.stages:
        found.of(trial, stage, specialize(program, stage.name).train())
    return found.reports


def tried(monkeypatch: pytest.MonkeyPatch) -> tuple[reuse.Reuse, halves.Halves, float]:
    """What a run keeps, the halves of its main stage, a batch of which takes 10 ms, and what reading its rows takes."""
    plan, trial = load(planned()), Trial(0, "distilled")
    found, _ = keeping(plan)
    halved = found.of(trial, plan.arm("distilled").stages[-1], specialize(program_of(plan, trial), "main").train())
    assert halved is not None
    monkeypatch.setattr(reuse, "time", _Still())
    monkeypatch.setattr(halves.Halves, "tried", lambda _self, _images: 0.01)
    return found, halved, halved.report.row_bytes * halved.looks.size / 1e9


def test_where_steps_are_recorded_a_frozen_half_takes_what_it_takes_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, halved, reading = tried(monkeypatch)
    again: float | None
    for recorded, again in ((False, 0.01), (True, 0.003), (True, None)):
        monkeypatch.setattr(reuse, "replayed", lambda call, _device, took=again: [call()] and took)
        gain = _GAINS(dataclasses.replace(found, recorded=recorded), halved, Counter({0: 1, 1: 5}))
        f = 0.01 if again is None else again
        assert gain == pytest.approx({view: u * f - 0.01 - reading - u * reading for view, u in ((0, 1), (1, 5))})


def test_on_a_gpu_reading_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found, halved, moved = tried(monkeypatch)
    monkeypatch.setattr(halves.Halves, "reading", lambda _self, _images: 0.002)
    monkeypatch.setattr(reuse, "replayed", lambda _call, _device: 0.003)
    gpu = dataclasses.replace(found, recorded=True)
    images = next(found._batches(0))
    monkeypatch.setattr(reuse.Reuse, "_batches", lambda _self, _view: iter([images]))
    gpu.fabric = Fabric.__new__(Fabric)
    monkeypatch.setattr(Fabric, "device", torch.device("cuda"))
    gain = _GAINS(gpu, halved, Counter({0: 5, 1: 20}))
    assert gain == pytest.approx({view: u * (0.003 - 0.002 - moved) - 0.01 - moved for view, u in ((0, 5), (1, 20))})
    assert gain[0] < 0 < gain[1]


class _Still:
    """A clock that stands still."""

    def perf_counter(self) -> float:
        return 0.0


def test_images_that_are_mixed_are_not_kept() -> None:
    mixed = decided(planned("mixed", augment="mixup"))
    assert {one.why for one in mixed.values()} == {
        "images are mixed with one another, so that nothing of an image alone can be kept"
    }


def test_views_that_never_come_again_are_not_kept() -> None:
    once = decided(planned("once", views=None, seeds=(0,)))
    assert {(one.views, one.why) for one in once.values()} == {(0, "no view of an image comes twice")}
    seeds = decided(planned("seeds", views=None, seeds=(0, 1)))
    assert {name: one.views for name, one in seeds.items()} == {"warm-up-1": 1, "warm-up-2": 1, "main": 2}


def test_without_augmentation_all_epochs_show_the_same() -> None:
    def change(plan: dict[str, Any]) -> None:
        plan["data"] |= {"augmentation": [], "views": None}

    assert {name: one.views for name, one in decided(edited("bare", change)).items()} == {
        "warm-up-1": 0, "warm-up-2": 0, "main": 1
    }  # fmt: skip


def test_only_as_many_views_as_fit_are_kept() -> None:
    logits = TRAIN * (10 * 4 + 8)
    found = decided(planned(), size=logits + 100)
    assert "more than fits" in found["warm-up-1"].why
    assert [reuse._sized(size) for size in (1260, 2e6, 3e9)] == ["1.3 kB", "2.0 MB", "3.0 GB"]
    assert (found["main"].views, found["main"].row_bytes) == (1, 48)


def test_what_is_slower_to_read_than_to_compute_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(reuse, "_LEAST", 0.0)
    monkeypatch.setattr(reuse, "_MEMORY", 1e3)
    assert {(one.views, one.why) for one in decided(planned()).values()} == {
        (0, "reading what the frozen half computes would take as long as computing it")
    }
    monkeypatch.setattr(reuse, "_LEAST", 1e6)
    assert {one.why for one in decided(planned()).values()} == {"the frozen half takes too little time"}


@pytest.mark.parametrize(("first", "left"), [(0, [1, 2, 3, 3, 2, 1]), (1, [1, 1, 1])])
def test_what_no_later_stage_reads_is_let_go_of_also_where_a_run_goes_on(first: int, left: list[int]) -> None:
    """Frozen halves of which rows are there, stage by stage, from the start and from the second of two seeds."""
    plan = load(planned())
    found, shelf = keeping(plan)
    there = []
    for trial in (Trial(seed, "distilled") for seed in (0, 1) if seed >= first):
        program = program_of(plan, trial)
        for stage in program.stages:
            kept = found.of(trial, stage, specialize(program, stage.name).train())
            assert kept is not None
            for view in kept.views:
                kept.begin(view, lambda: None)
            there.append(len({place.key for place in shelf._rows}))
        found.ended()
    assert there == left


def test_what_is_trained_under_every_seed_is_another_member_under_each() -> None:
    plan = load(planned())
    stage = plan.arm("distilled").stages[-1]
    one, other = (reuse.reads(plan, Trial(seed, "distilled"), stage) for seed in (0, 1))
    assert one == other
    terms = [t.changed(student="other", teacher="student" if t.teacher else None) for t in stage.losses]
    arms = [*plan.arms, plan.arms[0].changed(name="second", trains=["other"])]
    members = {**plan.members, "other": plan.members["student"]}
    later = plan.model_copy(update={"arms": arms, "members": members})
    read = [reuse.reads(later, Trial(seed, "second"), stage.changed(losses=terms)) for seed in (0, 1)]
    assert read[0] != read[1]
    assert read[0].terms == read[1].terms


def test_the_rows_of_a_first_teacher_are_read_until_it_is_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four epochs on one view; after the second the student is better than its teacher; in the fourth the run dies."""
    measured, epochs = Execution.measured, list[str]()

    def better(run: Execution, member: str, *, on: str = "test") -> dict[str, float]:
        if on == "val" and member == "student":
            epochs.append(member)
        reached = 0.4 if member != "student" else 0.5 if len(epochs) >= 2 else 0.3
        return {**measured(run, member, on=on), "accuracy": reached}

    def stop(_trial: object, now: Progress, _metrics: object) -> None:
        if now.stage.name == "main" and (now.position.epoch, now.position.step) == (3, 1):
            raise _Killed

    monkeypatch.setattr(Execution, "measured", better)
    plan = test_cascade.planned(assistants=1)
    arms = [arm.changed(stages=[s.changed(epochs=4 if s.successors else 1) for s in arm.stages]) for arm in plan.arms]
    plan = plan.changed(arms=arms, data=plan.data.changed(views=1))
    path = test_cascade.written(plan, "cascade-cached")
    forced = dataclasses.replace(test_cascade.CPU, save_seconds=0.0)
    execute(path, tmp_path / "off", dataclasses.replace(forced, cache="off"))
    epochs.clear()
    with pytest.raises(_Killed):
        execute(path, tmp_path / "run", forced, Observer(on_progress=stop))
    found = execute(path, tmp_path / "run", dataclasses.replace(forced, resume=True))["arms"][-1]["reuse"]
    assert (tmp_path / "run" / "student.pt").read_bytes() == (tmp_path / "off" / "student.pt").read_bytes()
    taught = [set(line["losses"]) for line in metrics(tmp_path / "run") if line["stage"] == "main"]
    assert taught == [{"cross-entropy", "kd"}] * 2 + [{"cross-entropy", "kd#2"}] * 2
    size = plan.data.train_size or 0
    assert counts(found) == {"main": (size, 2 * (size - size % 4))}  # of the images four batches

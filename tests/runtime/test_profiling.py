"""Profiling: what the parts of a step take, and nothing of the training changes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fxdistill.compiler.build import build as build_program
from fxdistill.compiler.build import specialize
from fxdistill.errors import RunDirError
from fxdistill.modelfiles import bundle
from fxdistill.modelfiles.factories import build
from fxdistill.plan.file import load
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Execution, Observer, Settings
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training import profiling
from fxdistill.runtime.training.profiling import PARTS, StageTimes, Stopwatch
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")


def test_a_profiled_run_trains_as_any_other_and_leaves_a_trace_of_each_stage(tmp_path: Path) -> None:
    found: list[StageTimes] = []
    plan, out = runs.plan_file(), tmp_path / "run"
    settings = Settings(device="cpu", allow=runs.ALLOW, profile=True)
    runs.execute(plan, out, settings, Observer(on_times=found.append))
    undisturbed = runs.finished()
    kept = ("seed", "stage", "epoch", "losses", "metrics")
    told = [[{k: row[k] for k in kept} for row in runs.metrics(one)] for one in (out, undisturbed)]
    assert told[0] == told[1]
    states = [bundle.state_of(one / "student.pt") for one in (out, undisturbed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    stages = [(arm.name, stage.name) for arm in load(plan).all_arms for stage in arm.stages]
    assert [(one.arm, one.stage) for one in found] == stages
    assert {path.name for path in (out / "profile").iterdir()} == {f"{arm}_{stage}.json" for arm, stage in stages}
    for one in found:
        parts = set(PARTS) - {"forward"} - ({"teacher"} if one.arm == "control" else set())
        assert set(one.seconds) == parts
        assert all(seconds > 0 for seconds in one.seconds.values())
        assert one.steps == (4 if one.stage.startswith("warm-up") else 5)
        events = json.loads((out / "profile" / f"{one.arm}_{one.stage}.json").read_text())["traceEvents"]
        marks = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        assert marks.count("backward") == marks.count("optimiser") == one.steps
        assert parts <= set(marks)


def test_one_seed_is_enough() -> None:
    run: Any = SimpleNamespace(
        profile=True, plan=load(runs.plan_file()).changed(seeds=[3, 4]), rundir=RunDir(Path("run")),
        fabric=SimpleNamespace(device="cpu"), observer=Observer(),
    )  # fmt: skip
    assert isinstance(Execution.clock(run, Trial(3, "distilled")), Stopwatch)
    assert not isinstance(Execution.clock(run, Trial(4, "distilled")), Stopwatch)
    run.profile = False
    assert not isinstance(Execution.clock(run, Trial(3, "distilled")), Stopwatch)


def test_a_link_in_the_place_of_the_traces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").symlink_to(tmp_path)
    with pytest.raises(RunDirError, match="'profile' in the run directory is a link"):
        runs.execute(runs.plan_file(), tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW, profile=True))


def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Stopwatch, list[StageTimes], list[float]]:
    """A stopwatch whose time stands still unless it is told."""
    now, found = [0.0], list[StageTimes]()
    monkeypatch.setattr(profiling, "time", type("Time", (), {"perf_counter": lambda: now[0]}))
    return Stopwatch("arm", tmp_path, torch.device("cpu"), found.append), found, now


STEP = {"data": 1.0, "forward": 2.0, "backward": 4.0, "optimiser": 8.0, "rest": 16.0}


@pytest.mark.parametrize(("steps", "timed"), [(1, 1), (2, 1), (4, 3), (6, 5), (20, 5)])
def test_a_first_step_is_left_out_where_there_are_more(
    steps: int, timed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, found, now = watch(tmp_path, monkeypatch)
    for stage in ("one", "two"):
        clock.begin(stage, steps)
        for step in range(steps):
            clock.step()
            for part, seconds in STEP.items():
                clock.mark(part)
                now[0] += 1000 if step < min(1, steps - 1) else seconds
            if step % 3 == 2:
                clock.step()  # an epoch ends: there is no batch
        clock.end()
        assert found[-1] == StageTimes("arm", stage, timed, {part: timed * took for part, took in STEP.items()})
    assert len(found) == 2


@pytest.mark.parametrize("stage", ["a/b", "..", "a:b?", "s" * 300])
def test_a_trace_is_written_whatever_the_stage_is_called(stage: str, tmp_path: Path) -> None:
    folder, told = tmp_path / "profile", list[StageTimes]()
    for arm, name in (("one", stage), ("one", f"{stage}2")):
        clock = Stopwatch(arm, folder, torch.device("cpu"), told.append)
        clock.begin(name, 1)
        clock.step()
        clock.mark("data")
        clock.end()
    written = sorted(folder.iterdir())
    assert len(written) == 2
    assert all(json.loads(file.read_text())["traceEvents"] for file in written)
    assert not any(set(file.name) & set('/\\:*?"<>|') for file in written)


def test_a_mark_stands_in_front_of_each_member_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = load(runs.plan_file())
    torch.manual_seed(0)
    teacher, student = build(*runs.TEACHER, seed=3, allow=runs.ALLOW), build(*runs.STUDENT, seed=4, allow=runs.ALLOW)
    program = specialize(build_program(plan, teacher, student), "main")
    batch = {"images": torch.rand(4, 1, 8, 8), "labels": torch.arange(4), "index": torch.arange(4)}
    clock, said = Stopwatch("arm", tmp_path, torch.device("cpu"), lambda _: None), list[str]()
    monkeypatch.setattr(clock, "mark", said.append)
    marked = clock.marked(program)
    torch.manual_seed(1)  # the student drops out
    expected = program(batch)
    torch.manual_seed(1)
    got = marked(batch)
    assert said == ["student", "teacher", "rest"]
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    owners: dict[str, set[Any]] = {}
    part = ""
    for node in marked.graph.nodes:
        part = str(node.target).removeprefix("marks.") if str(node.target).startswith("marks.") else part
        if node.meta.get("role") == "model":
            owners.setdefault(part, set()).add(node.meta["member"])
    assert owners == {"student": {"student"}, "teacher": {"teacher"}}

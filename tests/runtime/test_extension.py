"""More epochs for a complete run: the same bits as its longer plan run from the start, whatever interrupts it."""

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fxdistill.errors import InputError, PlanError, RunDirError
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load
from fxdistill.plan.training import CONTROL
from fxdistill.runtime.run import checkpoint, extension, result
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.run.jobs import seeds_at_once
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Progress
from tests import runs
from tests.runs import execute
from tests.runtime.test_checkpoint import equal

pytestmark = pytest.mark.usefixtures("few_digits")

MORE = Settings(device="cpu", allow=runs.ALLOW, more_epochs=2, save_seconds=0)
AGAIN = dataclasses.replace(MORE, more_epochs=0, resume=True)


def copied(label: str, *run: str, **options: Any) -> Path:
    """A copy of a finished run, beside it, so that it finds its models."""
    out = runs.workshop() / f"extended-{label}"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(runs.finished(*run, **options), out)
    return out


def extend(out: Path, settings: Settings = MORE) -> list[tuple[str, str]]:
    """Extend a run; of each epoch that was trained, the arm and the stage."""
    seen: list[tuple[str, str]] = []

    def progress(trial: Trial, at: Progress, _: dict[str, float]) -> None:
        if at.position.step == 0:
            seen.append((trial.name, at.stage.name))

    execute(out / "plan.json", out, settings, Observer(on_progress=progress))
    return seen


def fresh(out: Path) -> Path:
    """The plan of an extended run, run from the start."""
    again = out.with_name(f"{out.name}-fresh")
    shutil.rmtree(again, ignore_errors=True)
    execute(out / "plan.json", again, Settings(device="cpu", allow=runs.ALLOW))
    return again


def same(out: Path, again: Path) -> None:
    """Same weights, bit for bit, same epochs of each training, same figures."""
    assert (out / "student.pt").read_bytes() == (again / "student.pt").read_bytes()
    lines = [sorted(runs.metrics(run), key=lambda line: (line["seed"], line["name"])) for run in (out, again)]
    assert lines[0] == lines[1]
    results = [json.loads((run / "result.json").read_text()) for run in (out, again)]
    arms = [[{**arm, "seconds": 0} for arm in found["arms"]] for found in results]
    assert arms[0] == arms[1]
    for key in ("plan", "summary", "parity", "members"):
        assert results[0][key] == results[1][key]


def test_whoever_extends_or_resumes_a_run_that_is_being_extended_is_told_so() -> None:
    out = copied("beside")

    def beside(_trial: Trial, _at: Progress, _losses: dict[str, float]) -> None:
        for settings in (MORE, AGAIN):
            with pytest.raises(RunDirError, match="another process is at work in this run directory"):
                execute(out / "plan.json", out, settings)
        with pytest.raises(RunDirError, match="another process is at work"):
            seeds_at_once(out / "plan.json", out, AGAIN, Observer(), jobs=2, words=[], say=print)
        raise StopIteration

    with pytest.raises(StopIteration):
        execute(out / "plan.json", out, MORE, Observer(on_progress=beside))


def test_an_extended_run_has_the_bits_of_its_longer_plan_and_trains_only_what_is_new() -> None:
    out, before = copied("once"), load(runs.plan_file())
    lines = (out / "metrics.jsonl").read_bytes()
    assert extend(out) == [("distilled", "main-more-1")] * 2 + [(CONTROL, "main-more-1")] * 2
    plan = load(out / "plan.json")
    assert [stage.epochs for stage in plan.arm("distilled").stages] == [
        *(stage.epochs for stage in before.arm("distilled").stages), 2,
    ]  # fmt: skip
    assert [stage.epochs for stage in plan.arm(CONTROL).stages] == [before.arm(CONTROL).stages[0].epochs, 2]
    assert [remark.code for remark in extension.remarks(plan)] == ["extended"]
    assert (out / "metrics.jsonl").read_bytes().startswith(lines)
    same(out, fresh(out))
    found = RunDir(out).result()
    assert found is not None
    assert found["plan"] == plan.sha256 != before.sha256
    assert (out / "student.pt").read_bytes() != (runs.finished() / "student.pt").read_bytes()
    assert extend(out, dataclasses.replace(MORE, more_epochs=1)) == [
        ("distilled", "main-more-2"), (CONTROL, "main-more-2"),
    ]  # fmt: skip
    same(out, fresh(out))


def killed(out: Path, at: int | str, settings: Settings = MORE) -> None:
    """An extension that ends in front of a checkpoint of this number, or of what is written or read at a place."""
    count, save = itertools.count(), checkpoint.save

    def dying(*given: Any) -> None:
        if next(count) == at:
            raise KeyboardInterrupt
        save(*given)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    places: dict[int | str, tuple[Any, str]] = {
        "plan": (extension, "write_text"), "origin": (RunDir, "expect"), "result": (result, "write_text"),
        "trained": (RunDir, "bundle_path"),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(at, int):
            patch.setattr(checkpoint, "save", dying)
        else:
            patch.setattr(*places[at], stop)
        with pytest.raises(KeyboardInterrupt):
            extend(out, settings)


@functools.cache
def extended() -> Path:
    out = copied("reference")
    extend(out)
    return out


def test_an_extension_that_is_killed_before_it_trains_has_not_begun() -> None:
    out = copied("begun")
    before = (out / "result.json").read_bytes()
    for at in ("plan", "origin", 0):
        killed(out, at)
        assert (out / "result.json").read_bytes() == before, "what the run had come to is gone"
        assert RunDir(out).result() is not None
    extend(out)
    equal(out, extended())


def test_an_extension_that_is_killed_while_it_trains_loses_nothing() -> None:
    out = copied("killed")
    before = (out / "result.json").read_bytes()
    for at, settings in ((14, MORE), ("trained", AGAIN), ("result", AGAIN)):  # in the middle of an epoch, in the end
        killed(out, at, settings)
        assert (out / "result.json").read_bytes() == before, "what the run had come to is gone"
        assert RunDir(out).result() is None
        with pytest.raises(RunDirError, match="no complete run") as caught:
            extend(out)
        assert "--resume" in caught.value.hint
    extend(out, AGAIN)
    equal(out, extended())


def test_with_several_seeds_from_a_factory() -> None:
    out = copied("seeds", "seeds-fresh", from_file=False, repeats=2, align="project")
    extend(out)
    same(out, fresh(out))


def test_arms_that_are_compared_stay_equally_long() -> None:
    out = runs.workshop() / "extended-arms"
    execute(runs.plan_file(), out, dataclasses.replace(runs.CPU, arms=("supervised", "indistill+kd")))
    extend(out)
    plan = load(out / "plan.json")
    lengths = {arm.name: [stage.epochs for stage in arm.stages] for arm in plan.arms}
    assert {name: (sum(epochs), epochs[-1]) for name, epochs in lengths.items()} == dict.fromkeys(
        ("supervised", "indistill+kd"), (sum(lengths["supervised"]), 2)
    )
    assert [term.loss for term in plan.arm("supervised").stages[-1].losses] == ["cross-entropy"]
    assert [remark.where for remark in extension.remarks(plan)] == ["arm 'indistill+kd', stage 'main-more-1'"]
    same(out, fresh(out))


def refused(out: Path, settings: Settings = MORE, error: type[InputError] = RunDirError) -> str:
    before = runs.snapshot(out) if out.exists() else {}
    with pytest.raises(error) as caught:
        execute(runs.plan_file() if not (out / "plan.json").exists() else out / "plan.json", out, settings)
    assert caught.value.hint
    assert (runs.snapshot(out) if out.exists() else {}) == before
    return str(caught.value)


def test_what_cannot_be_extended_is_left_as_it_is(tmp_path: Path) -> None:
    assert "no complete run" in refused(tmp_path / "nothing")
    out = copied("refused")
    assert "precision bf16-mixed" in refused(out, dataclasses.replace(MORE, precision="bf16-mixed"))
    assert "cache_half True" in refused(out, dataclasses.replace(MORE, cache_half=True))
    (out / "trained_control-seed0.pt").rename(out / "elsewhere")
    assert "trained_control-seed0.pt" in refused(out)
    (out / "trained_control-seed0.pt").write_bytes((out / "elsewhere").read_bytes()[:-1])
    assert "damaged" in refused(out)
    shutil.copy(out / "trained_distilled-seed0.pt", out / "trained_control-seed0.pt")
    assert "after 3 stages, and 'control' has 2" in refused(out)
    (out / "elsewhere").rename(out / "trained_control-seed0.pt")
    (out / "result.json").unlink()
    assert "no complete run" in refused(out)


def test_a_run_whose_cache_is_inexact_is_extended_as_it_was_begun() -> None:
    out, half = runs.workshop() / "extended-half", dataclasses.replace(runs.CPU, cache_half=True)
    execute(runs.plan_file(), out, half)
    assert "cache_half True" in refused(out)
    assert {stage for _, stage in extend(out, dataclasses.replace(MORE, cache_half=True))} == {"main-more-1"}


def test_an_extension_is_a_stage_that_comes_last() -> None:
    def changed(**stage: Any) -> Plan:
        plan = load(runs.plan_file())
        arm = plan.arm("distilled")
        return plan.changed(arms=[arm.changed(stages=[arm.stages[0].changed(**stage), *arm.stages[1:]])])

    with pytest.raises(ValueError, match="come last"):
        changed(extends=True)
    plan = json.loads(runs.plan_file().read_text())
    assert not any(stage["extends"] for stage in plan["arms"][0]["stages"])


def test_an_arm_that_others_read_is_not_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load(runs.plan_file())
    arm = plan.arm("distilled").changed(once=True)
    once = plan.changed(arms=[arm], control=None)
    monkeypatch.setattr(RunDir, "holds", lambda *_, **__: True)
    monkeypatch.setattr(RunDir, "result", lambda _: {"precision": "32-true", "compile": False})
    with pytest.raises(PlanError, match="trained once"):
        extension.extended(RunDir(runs.finished()), once, 1, how={"precision": "32-true", "compile": False})


@pytest.mark.parametrize("arm", ["distilled", CONTROL])
def test_a_warm_up_that_is_longer_than_what_is_added_is_refused(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finished, plan = runs.finished(), load(runs.plan_file())
    stages = plan.arm("distilled").stages
    rising = stages[-1].optimizer.changed(warm_up=1.5)
    if arm == CONTROL:
        assert plan.control is not None
        plan = plan.changed(control=plan.control.changed(optimizer=rising))
    else:
        main = stages[-1].changed(optimizer=rising)
        plan = plan.changed(arms=[plan.arm("distilled").changed(stages=[*stages[:-1], main])])
    monkeypatch.setattr(RunDir, "holds", lambda *_, **__: True)
    monkeypatch.setattr(RunDir, "result", lambda _: {"precision": "32-true"})
    with pytest.raises(PlanError, match="warm_up") as caught:
        extension.extended(RunDir(finished), plan, 1, how={"precision": "32-true"})
    assert caught.value.hint == "add more epochs at once"

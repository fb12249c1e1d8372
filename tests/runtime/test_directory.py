"""A run directory belongs to one run and to one process; whoever loses leaves it as it is."""

import dataclasses
import json
import multiprocessing
import shutil
import threading
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from fxdistill.errors import InputError, RunDirError
from fxdistill.plan.file import load
from fxdistill.report.show import show
from fxdistill.runtime.run import lock
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Settings
from tests import runs
from tests.runs import execute

pytestmark = pytest.mark.usefixtures("few_digits")

CPU = Settings(device="cpu", allow=runs.ALLOW)


def other_plan() -> Path:
    return runs.edited("other-seed", lambda p: p.update(seed=5, seeds=[5]))


@pytest.mark.parametrize("winner_has_begun", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_of_two_that_start_at_once_the_loser_leaves_everything_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool, winner_has_begun: bool
) -> None:
    """The loser looks while the directory is empty, and takes the lock when the winner has it, or has had it."""
    out, take = tmp_path / "run", lock._take
    mine, theirs = (load(path) for path in (runs.plan_file(), runs.plan_file() if same else other_plan()))
    after: dict[str, bytes] = {}

    def take_late(file: Any) -> None:
        monkeypatch.setattr(lock, "_take", take)
        with RunDir.opened(out, mine, origin=runs.plan_file(), resume=False):
            after.update(runs.snapshot(out))
            if not winner_has_begun:
                take(file)  # refused: the winner is at work
        take(file)

    monkeypatch.setattr(lock, "_take", take_late)
    what = "another process" if not winner_has_begun else "already holds this run" if same else "another run"
    with (
        pytest.raises(RunDirError, match=what),
        RunDir.opened(out, theirs, origin=runs.plan_file(), resume=False),
    ):
        pytest.fail("both are at work")
    assert set(after) == {".lock", "plan.json", "origin.json"}
    assert runs.snapshot(out) == after
    assert load(out / "plan.json") == mine


def _hold(out: Path, plan: Path, held: Event, go: Event) -> None:
    with RunDir.opened(out, load(plan), origin=plan, resume=False):
        held.set()
        go.wait(60)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_beside_one_at_work_is_refused_and_changes_nothing(tmp_path: Path, resume: bool) -> None:
    out, forked = tmp_path / "run", multiprocessing.get_context("fork")  # it holds the directory, and trains nothing
    held, go = forked.Event(), forked.Event()
    process = forked.Process(target=_hold, args=(out, runs.plan_file(), held, go))
    process.start()
    try:
        assert held.wait(120)
        before = runs.snapshot(out)
        with pytest.raises(RunDirError) as failure:
            execute(runs.plan_file(), out, Settings(device="cpu", allow=runs.ALLOW, resume=resume))
        assert failure.value.what == "another process is at work in this run directory"
        with pytest.raises(RunDirError, match="another run"):
            execute(other_plan(), out, CPU)
        assert runs.snapshot(out) == before
    finally:
        go.set()
        process.join(60)
    assert process.exitcode == 0


def test_a_name_that_is_no_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    plan = runs.plan_file()
    with (
        pytest.raises(RunDirError, match="not UTF-8"),
        RunDir.opened(tmp_path / "caf\udce9", load(plan), origin=plan, resume=False),
    ):
        pytest.fail("it is begun")
    assert not list(tmp_path.iterdir())


def test_many_that_start_at_once_have_one_winner(tmp_path: Path) -> None:
    out, plans = tmp_path / "run", [load(runs.plan_file()).changed(seeds=[seed]) for seed in range(6)]
    start, end = threading.Barrier(len(plans)), threading.Barrier(len(plans))
    won: list[int] = []

    def work(number: int) -> None:
        start.wait(30)
        try:
            with RunDir.opened(out, plans[number], origin=runs.plan_file(), resume=False):
                won.append(number)
                end.wait(30)
        except InputError:
            end.wait(30)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    assert load(out / "plan.json") == plans[winner]


def test_a_loser_leaves_no_trace_where_the_winner_was_killed_before_its_plan(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "origin.json").write_text('{"plan": "../plan.json"}')
    (out / ".plan.json.1a2b3c4_").write_text("{")
    with RunDir.opened(out, load(runs.plan_file()), origin=runs.plan_file(), resume=False) as run:
        assert load(run.plan_path) == load(runs.plan_file())
        assert {path.name for path in out.iterdir()} == {".lock", "plan.json", "origin.json"}


def test_the_work_of_others_is_left_alone(tmp_path: Path) -> None:
    shutil.copy(runs.plan_file(), tmp_path / "thesis.json")
    with pytest.raises(RunDirError, match="not empty"):
        execute(runs.plan_file(), tmp_path, CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.json"]


DAMAGE: dict[str, Any] = {
    "no JSON": "{",
    "too deep": "[" * 100000,
    "no mapping": "[]",
    "empty": "{}",
    "members that are numbers": {"members": 3},
    "a metric that is text": {"members": {"teacher": {"accuracy": "high"}}},
    "one end of an interval": {
        "differences": {"distilled": {"beside": "control", "mean": 0.1, "low": 0.0, "high": None, "seeds": 2}}
    },
    "a deviation that is text": {
        "summary": {name: {"mean": 0.5, "deviation": "0.1"} for name in ("distilled", "control")}
    },
    "a latency that is text": {"latency": {"student": {"median_ms": "1", "provider": "CPU"}}},
    "a member that the plan has not": {"members": {"stranger": {"accuracy": 0.5}}},
    "no latency of the student": {"latency": {}},
    "an arm that is missing": {"summary": {"distilled": {"mean": 0.5, "deviation": 0.0}}},
    "a parity of another kind": {"parity": {"error": 1}},
    "a parity that says more": {"parity": {"max_abs_error": 0.0, "agreement": 1.0, "images": 1, "seconds": 1}},
    "a remark that is none": {"arms": [{"name": "distilled", "seed": 0, "remarks": [{"code": 5}]}]},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_result_is_refused_wherever_it_is_read(tmp_path: Path, damage: Any) -> None:
    out = tmp_path / "run"
    shutil.copytree(runs.finished(), out)
    path = out / "result.json"
    content = json.loads(path.read_text())
    path.write_text(damage if isinstance(damage, str) else json.dumps({**content, **damage}))
    before = runs.snapshot(out)
    for use in (lambda: show(out), lambda: execute(runs.plan_file(), out, Settings(**{**vars(CPU), "resume": True}))):
        with pytest.raises(RunDirError, match=r"result\.json is damaged"):
            use()
    assert runs.snapshot(out) == before


def begun(tmp_path: Path) -> Path:
    """A run that was interrupted after its second checkpoint."""
    runs.interrupted(runs.plan_file(), tmp_path / "run", dataclasses.replace(CPU, save_seconds=0), after=2)
    return tmp_path / "run"


def test_a_plan_that_was_edited_after_an_interruption_is_told_field_by_field(tmp_path: Path) -> None:
    out = begun(tmp_path)
    again, before = dataclasses.replace(CPU, resume=True), runs.snapshot(out)

    def change(plan: dict[str, Any]) -> None:
        plan["arms"][0]["stages"][-1].update(epochs=3)
        plan["data"]["augmentation"] = ["flip"]
        del plan["control"]

    with pytest.raises(RunDirError) as caught:
        execute(runs.edited("later", change), out, again)
    for part in (
        "arms.0.stages.",
        ".epochs: 2, now 3",
        "data.augmentation: [], now ['flip']",
        "control: one, now None",
    ):
        assert part in caught.value.what
    assert f"fxdistill run {out} --resume" in caught.value.hint
    (out / "plan.json").write_text(runs.edited("later", change).read_text())
    with pytest.raises(RunDirError) as caught:
        execute(out / "plan.json", out, again)
    assert "epochs: 2, now 3" in caught.value.what
    (out / "plan.json").write_bytes(before["plan.json"])
    assert runs.snapshot(out) == before


def test_a_run_is_resumed_and_begun_anew_by_its_own_copy_of_the_plan(tmp_path: Path) -> None:
    out = begun(tmp_path)
    execute(out / "plan.json", out, dataclasses.replace(CPU, resume=True))
    assert runs.metrics(out) == runs.metrics(runs.finished())
    execute(out / "plan.json", tmp_path / "elsewhere" / "again", CPU)
    assert runs.metrics(tmp_path / "elsewhere" / "again") == runs.metrics(out)
    assert RunDir(tmp_path / "elsewhere" / "again").source.resolve() == runs.plan_file().resolve()

"""Seeds that are trained side by side leave what one process leaves, whatever is interrupted."""

import functools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fxdistill import files
from fxdistill.cli.commands import app
from fxdistill.data.load import load as load_data
from fxdistill.errors import InputError, RunDirError, TrainingError
from fxdistill.measure import onnx_file
from fxdistill.runtime.processes import launch
from fxdistill.runtime.run import checkpoint, details, jobs
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Observer, Settings
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")

TIMES = ("seconds", "reuse")


@functools.cache
def two_seeds(export: str = "first") -> Path:
    """A plan of one arm, under two seeds."""

    def change(plan: dict[str, Any]) -> None:
        plan |= {"seeds": [0, 1], "control": None}
        for arm in plan["arms"]:  # the last warm-up and the main stage, an epoch each
            arm["stages"] = [stage | {"epochs": 1} for stage in arm["stages"][-2:]]
        plan["export"]["seed"] = export.partition(" ")[0]
        if export.startswith("best"):  # apart enough
            plan["seeds"] = [1, 0] if export == "best" else [0, 1]
            plan["arms"][0]["stages"][-1]["optimizer"]["lr"] = 0.02
            plan["data"] |= {
                "val": {"share": 0.25, "seed": 0},
                "train_size": round(0.75 * len(load_data("digits").train)),
            }

    return runs.edited(f"two-seeds-{export}", change)


@functools.cache
def in_one_process() -> Path:
    runs.execute(two_seeds(), two_seeds().parent / "run-two-seeds", runs.CPU)
    return two_seeds().parent / "run-two-seeds"


class InHere:
    """A process of a seed that is none: the same work, done here, as soon as anybody asks whether it has ended."""

    seeds: list[str] = []  # noqa: RUF012  # of all of them
    fails: str = ""

    def __init__(self, command: list[str], environment: dict[str, str], say: Callable[[str], object]) -> None:
        self.part, self.trials, self.say = Path(command[4]), int(command[command.index("--trials") + 1]), say
        assert command[5] == "--resume"
        assert environment[launch.CHILD]

    def poll(self) -> int:
        self.seeds.append(self.part.name)
        if self.part.name == self.fails:
            self.say("error: a loss is not a number")
            return 1
        settings = replace(runs.CPU, resume=True, trials=self.trials)
        assert runs.execute(self.part / "plan.json", self.part, settings) == {}
        return 0

    def send_signal(self, _number: int) -> None: ...
    def kill(self) -> None: ...


@pytest.fixture
def in_here(monkeypatch: pytest.MonkeyPatch) -> type[InHere]:
    monkeypatch.setattr(jobs, "_Process", InHere)
    monkeypatch.setattr(jobs, "execute", runs.execute)
    monkeypatch.setattr(jobs, "_OFTEN", 0.0)
    monkeypatch.setattr(InHere, "seeds", [])
    return InHere


def at_once(out: Path, settings: Settings = runs.CPU, plan: Path | None = None, **given: Any) -> dict[str, Any]:
    return jobs.seeds_at_once(plan or two_seeds(), out, settings, Observer(), **{"jobs": 2, **given})


def records(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name not in TIMES} for one in result["arms"]]


def same(out: Path, other: Path) -> None:
    """The runs in two directories trained the same weights and say the same of it."""
    one, two = RunDir(out), RunDir(other)
    assert records(one.result() or {}) == records(two.result() or {})
    assert runs.metrics(out) == runs.metrics(other)
    assert one.state_dict_path("student").read_bytes() == two.state_dict_path("student").read_bytes()
    trained = sorted(path.name for path in other.glob("trained_*.pt"))
    assert len(trained) == len((two.result() or {})["arms"])
    for name in trained:
        states = [checkpoint.load_from(folder / name).state or {} for folder in (out, other)]
        assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
        assert states[0].keys() == states[1].keys()
    told = {"report.html", "details.json"}  # the command line's
    assert {path.name for path in out.iterdir()} - told == {path.name for path in other.iterdir()} - told


_QUICK = """
from fxdistill.measure import onnx_file
from tests import runs
onnx_file._EXPORTERS = ("torchscript",)  # in the other processes, too
few = runs.few_digits()
few.__enter__()
"""


def test_a_process_of_each_seed_leaves_what_one_process_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two is a process indeed: to begin one takes as long as all the rest."""
    before, process = in_one_process(), jobs._Process

    def begun(command: list[str], *more: Any) -> Any:
        return (process if Path(command[4]).name == "seed-1" else InHere)(command, *more)

    monkeypatch.setattr(jobs, "_Process", begun)
    monkeypatch.setattr(InHere, "seeds", [])
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    monkeypatch.setattr(details, "write", lambda *_, **__: None)
    (tmp_path / "sitecustomize.py").write_text(_QUICK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(runs.workshop()), *filter(None, sys.path)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["run", str(two_seeds()), "-o", str(tmp_path / "run"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--jobs", "2", "--cache-size", "1G", "--allow-factory", runs.ALLOW[0]])
    assert done.exit_code == 0, done.output
    same(tmp_path / "run", before)
    assert InHere.seeds == ["seed-0"]
    assert "distilled, seed 1: main  cross-entropy" in done.stderr  # it said what it does, and not what comes before
    assert done.stderr.count("teacher reads") == 1
    assert done.stderr.count("layout") == 1


def test_what_a_seed_has_trained_is_kept_when_another_fails(tmp_path: Path, in_here: type[InHere]) -> None:
    out, said = tmp_path / "run", list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InHere, "fails", "seed-1")
        with pytest.raises(TrainingError, match="the process of a seed has failed, as it says above"):
            at_once(out, jobs=1, say=said.append)
    assert said == ["error: a loss is not a number"]
    assert in_here.seeds == ["seed-0", "seed-1"]
    with pytest.raises(RunDirError, match="processes of their own"):
        runs.execute(out / "plan.json", out, replace(runs.CPU, resume=True))
    with pytest.raises(RunDirError, match="already holds this run"):
        at_once(out)
    with pytest.raises(RunDirError, match="holds another run"):
        at_once(out, replace(runs.CPU, resume=True), runs.plan_file())
    at_once(out, replace(runs.CPU, resume=True), out / "plan.json")
    assert in_here.seeds == ["seed-0", "seed-1", "seed-1"]
    same(out, in_one_process())


@functools.cache
def _trained() -> Path:
    """A run that was killed when all seeds were trained, and nothing was put together yet."""
    out, write = two_seeds().parent / "run-trained-at-once", files.write_bytes

    def killed(path: Path, content: bytes) -> None:
        if path.parent == out:
            raise KeyboardInterrupt
        write(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InHere, "seeds", [])
        patch.setattr(jobs, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            at_once(out)
        assert sorted(InHere.seeds) == ["seed-0", "seed-1"]
    return out


def trained(label: str) -> Path:
    """A copy of it, beside it."""
    shutil.copytree(_trained(), out := _trained().with_name(f"run-at-once-{label.replace('/', '-')}"))
    return out


@pytest.mark.parametrize("after", [1, 4])
def test_killed_while_what_was_trained_is_put_together(
    in_here: type[InHere], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out, write = trained(str(after)), files.write_bytes
    left = [after]

    def killed(path: Path, content: bytes) -> None:
        left[0] -= path.parent == out
        if left[0] == 0:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            at_once(out, replace(runs.CPU, resume=True))
    at_once(out, replace(runs.CPU, resume=True))
    assert in_here.seeds == []
    same(out, in_one_process())


@pytest.mark.parametrize("gone", ["seed-0", "seed-0/plan.json", "seed-0/checkpoint.pt"])
def test_killed_while_the_folders_of_seeds_are_removed(
    in_here: type[InHere], monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    out = trained(gone)

    def killed(path: Path) -> None:
        part = path / gone
        shutil.rmtree(part) if part.is_dir() else part.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "shutil", SimpleNamespace(rmtree=killed))
        with pytest.raises(KeyboardInterrupt):
            at_once(out, replace(runs.CPU, resume=True))
    at_once(out, replace(runs.CPU, resume=True))
    assert in_here.seeds == []
    same(out, in_one_process())


def test_killed_while_the_whole_is_exported(
    tmp_path: Path, in_here: type[InHere], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def killed(plan: Path, out: Path, settings: Settings, observer: Observer) -> dict[str, Any]:
        if in_here.seeds:
            raise KeyboardInterrupt
        return runs.execute(plan, out, settings, observer)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "execute", killed)
        with pytest.raises(KeyboardInterrupt):
            at_once(out)
    at_once(out, replace(runs.CPU, resume=True))  # the command that is said to go on with
    assert sorted(in_here.seeds) == ["seed-0", "seed-1"]
    same(out, in_one_process())


def test_the_seed_that_is_exported_is_the_best_one(tmp_path: Path, in_here: type[InHere]) -> None:
    one, two, name = tmp_path / "one", tmp_path / "two", "best"
    apart = runs.execute(two_seeds(name), one, runs.CPU)
    if apart["exported_seed"] == apart["arms"][0]["seed"]:  # processors differ: the better one is not to be the first
        one, name = tmp_path / "turned", "best turned"
        apart = runs.execute(two_seeds(name), one, runs.CPU)
    assert apart["exported_seed"] == apart["arms"][1]["seed"]
    assert at_once(two, plan=two_seeds(name))["exported_seed"] == apart["exported_seed"]
    assert in_here.seeds
    assert RunDir(one).state_dict_path("student").read_bytes() == RunDir(two).state_dict_path("student").read_bytes()


def test_what_cannot_be_divided_goes_on_in_one_process(tmp_path: Path, in_here: type[InHere]) -> None:
    with pytest.raises(InputError, match="the run has one seed"):
        jobs.seeds_at_once(runs.plan_file(), tmp_path / "one", runs.CPU, Observer(), jobs=2)
    with pytest.raises(InputError, match="would choose by itself"):
        at_once(tmp_path / "one", replace(runs.CPU, compile="auto"))
    assert not (tmp_path / "one").exists()
    begun = tmp_path / "begun"
    runs.interrupted(two_seeds(), begun, runs.CPU, after=2)
    with pytest.raises(InputError, match="was begun in one process"):
        at_once(begun, replace(runs.CPU, resume=True))
    runs.execute(two_seeds(), begun, replace(runs.CPU, resume=True))
    assert at_once(begun, replace(runs.CPU, resume=True)) == RunDir(begun).result()
    assert in_here.seeds == []


@pytest.mark.parametrize("option", ["--devices 2", "--nodes 2", "--profile", "--more-epochs 2"])
def test_options_that_do_not_go_with_it(tmp_path: Path, option: str) -> None:
    command = ["run", str(two_seeds()), "-o", str(tmp_path / "run"), "--jobs", "2"]
    done = CliRunner().invoke(app, [*command, *option.split()])
    assert done.exit_code == 2
    assert f"where: --jobs, {option.split(maxsplit=1)[0]}" in done.stderr
    assert not (tmp_path / "run").exists()


_CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted"))
signal.signal(signal.SIGINT, lambda *_: sys.exit(4))
print(time.monotonic(), file=sys.stderr, flush=True)
time.sleep({seconds})
print(time.monotonic(), file=sys.stderr, flush=True)
sys.exit({code})
"""


def _children(*seconds_and_codes: tuple[float, int]) -> dict[int, list[str]]:
    """Commands by seed, which say when they begin and end; the options that a run gets are lost on them."""
    return {
        seed: [sys.executable, "-c", _CHILD.format(seconds=seconds, code=code)]
        for seed, (seconds, code) in enumerate(seconds_and_codes)
    }


def carried_out(commands: dict[int, list[str]], most: int) -> list[str]:
    said: list[str] = []
    jobs._carry_out(commands, most, Settings(), said.append)
    return said


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_at_once_than_are_wanted(most: int) -> None:
    said = sorted(map(float, carried_out(_children((0.3, 0), (0.3, 0), (0.3, 0)), most)))
    assert len(said) == 6
    assert (said[1] - said[0] < 0.3) == (most > 1)  # the second line is another's beginning, or the first one's end


def test_where_one_fails_the_others_end_without_a_word_of_their_own() -> None:
    began, said = time.monotonic(), list[str]()
    with pytest.raises(InputError, match="has failed, as it says above"):
        jobs._carry_out(_children((30, 0), (1, 2), (0, 0)), 2, Settings(), said.append)
    assert time.monotonic() - began < 20
    assert "interrupted" not in said


def test_one_that_is_killed_is_told_of() -> None:
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    with pytest.raises(TrainingError, match="was ended by signal 9"):
        carried_out({5: command}, 2)


def test_being_asked_to_stop_all_are_asked() -> None:
    asking = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    asking.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        carried_out(_children((30, 0), (30, 0), (0, 0)), 2)
    assert time.monotonic() - began < 20

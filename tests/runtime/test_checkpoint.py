import errno
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fxdistill import files
from fxdistill.compiler.build import build
from fxdistill.compiler.tap_statistics import measure_taps
from fxdistill.data.batches import batches
from fxdistill.data.load import load as load_data
from fxdistill.errors import FxdistillError, PlanError, RunDirError, StorageError
from fxdistill.measure import onnx_file
from fxdistill.modelfiles import bundle, factories
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.terms import argued
from fxdistill.report.show import show
from fxdistill.runtime.run import checkpoint, directory, inspection, lock, log, records, result
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.run.log import Metrics
from fxdistill.runtime.run.trials import Trial, trials_of
from fxdistill.runtime.training.course import Course, Means, Position
from tests import runs
from tests.runs import execute

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.usefixtures("few_digits"),
]

SEEDS: dict[str, Any] = {"from_file": False, "repeats": 2, "align": "project"}
EVERY_STEP = Settings(device="cpu", allow=runs.ALLOW, save_seconds=0)
AGAIN = Settings(device="cpu", allow=runs.ALLOW, resume=True, save_seconds=0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(plan: Path, out: Path, arrange: Callable[[], None], *, again: bool = False) -> None:
    """Run in a child that arranges for its own death by SIGKILL."""

    def work() -> None:
        arrange()
        execute(plan, out, AGAIN if again else EVERY_STEP)

    status = runs.in_child(work)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def at_save(number: int, *, when: str) -> Callable[[], None]:
    """Die at the n-th checkpoint: before it is written, half-way (written, not yet in place) or after."""

    def arrange() -> None:
        count = 0
        replace, save = Path.replace, checkpoint.save

        def counting(run: RunDir, checkpoint: Checkpoint) -> None:
            nonlocal count
            count += 1
            if count == number and when == "before":
                die()
            save(run, checkpoint)
            if count == number and when == "after":
                die()

        def half(self: Path, target: Path) -> Path:
            if count == number and when == "half" and target.name == "checkpoint.pt":
                die()
            return replace(self, target)

        checkpoint.save = counting
        Path.replace = half  # type: ignore[method-assign,assignment]

    return arrange


def equal(run: Path, reference: Path) -> None:
    """Same weights, bit for bit, same metrics, same result."""
    assert (run / "student.pt").read_bytes() == (reference / "student.pt").read_bytes()
    assert runs.metrics(run) == runs.metrics(reference)
    mine, theirs = (RunDir(path).result() for path in (run, reference))
    assert mine is not None
    assert theirs is not None
    assert [(a["name"], a["accuracy"]) for a in mine["arms"]] == [(a["name"], a["accuracy"]) for a in theirs["arms"]]
    assert not [p.name for p in run.iterdir() if p.name.startswith(".") and p.name != ".lock"]
    assert not (run / "checkpoint.pt").exists()


# five steps an epoch: 1 to 5 the first warm-up, 6 to 10 the second, 11 to 20 the main stage, 21 the arm's end,
# 22 to 41 the control, 42 its end
MOMENTS = [(2, "after"), (8, "before"), (15, "half"), (21, "before"), (24, "half"), (42, "after")]


def test_the_moments_are_those_of_the_run(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int, int]] = []
    save = checkpoint.save

    def watch(_: RunDir, at: Checkpoint) -> None:
        seen.append((at.arm, at.position.stage, at.position.epoch, at.position.step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", watch)
        execute(runs.plan_file(), tmp_path / "run", EVERY_STEP)
    assert save is checkpoint.save
    assert len(seen) == 42
    assert seen[1] == (0, 0, 0, 2)
    assert seen[12] == (0, 2, 0, 3)
    assert seen[20] == (1, 0, 0, 0)
    assert seen[23] == (1, 0, 0, 3)
    equal(tmp_path / "run", runs.finished())


def test_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Six kills in one run: in warm-ups, in the middle of epochs and of writes, between arms, in the control."""
    out, before = tmp_path / "run", 0
    for number, when in MOMENTS:
        killed(runs.plan_file(), out, at_save(number - before, when=when), again=bool(before))
        before = number if when == "after" else number - 1
    assert execute(runs.plan_file(), out, AGAIN)["arms"]
    equal(out, runs.finished())


def test_what_a_loss_learns_and_remembers_is_gone_on_with(tmp_path: Path) -> None:
    """Its layers, a memory of all images, a constant of the first batch, and what is drawn for a step."""
    plan = tmp_path / "plan.json"
    made = argued(load_plan(runs.plan_file("crd", method="crd")), ["crd.negatives=32", "crd.dim=8"])
    teacher, student = (made.members[name].changed(path=str(runs.workshop() / f"{name}.pt")) for name in made.members)
    made = made.changed(members={"teacher": teacher, "student": student}, control=None)
    plan.write_text(made.to_json())
    execute(plan, tmp_path / "whole", EVERY_STEP)
    killed(plan, tmp_path / "run", at_save(7, when="after"))
    execute(plan, tmp_path / "run", AGAIN)
    equal(tmp_path / "run", tmp_path / "whole")


def until_it_no_longer_falls(plan: dict[str, Any]) -> None:
    """The first warm-up has three epochs and ends after two, in the second of which its loss does not fall by 99 %."""
    first, second, _ = plan["arms"][0]["stages"]
    first.update(epochs=3, plateau={"share": 0.99, "epochs": 1})
    second.update(epochs=2, plateau={"share": 1e-9, "epochs": 2})  # and this one is never stopped
    second["losses"][0]["compare"] = "running"


def test_a_plateau_gives_its_epochs_to_the_main_stage_and_is_gone_on_with(tmp_path: Path) -> None:
    """Killed between the two epochs of the stage, and in the epoch that it has left."""
    plan, out = runs.edited("plateau", until_it_no_longer_falls), tmp_path / "run"
    whole = execute(plan, tmp_path / "whole", EVERY_STEP)
    before = 0
    for number in (5, 31):
        killed(plan, out, at_save(number - before, when="after"), again=bool(before))
        before = number
    execute(plan, out, AGAIN)
    equal(out, tmp_path / "whole")
    assert json.loads((out / "result.json").read_text())["arms"][0]["epochs"] == whole["arms"][0]["epochs"]

    state, digits = checkpoint.load_from(out / "trained_distilled-seed0.pt").state, load_data("digits")
    models = [factories.build(*made, allow=runs.ALLOW) for made in (runs.TEACHER, runs.STUDENT)]
    models[0].load_state_dict(bundle.state_of(runs.workshop() / "teacher.pt"))
    program = build(load_plan(plan), models[0].eval(), models[1])
    measured = measure_taps(program, batches(digits.train, 100)).trainable_state()  # on all of the training images
    statistics = [name for name in measured if "scale_" in name]
    assert len(statistics) == 2
    for name in statistics:
        assert state is not None
        torch.testing.assert_close(state[name], measured[name])

    distilled, control = whole["arms"]
    assert distilled["epochs"] == {"warm-up-1": 2, "warm-up-2": 2, "main": 3}
    assert "epochs" not in control
    shown = StringIO()
    Console(file=shown, width=200).print(show(out))
    assert "distilled, seed 0, epochs: warm-up-1 2 (planned 3), warm-up-2 2, main 3 (planned 2)" in shown.getvalue()
    lines = runs.metrics(out)
    told = [(line["name"], line["stage"], line["epoch"]) for line in lines]
    assert told == [
        *(("distilled", stage, n + 1) for stage, count in distilled["epochs"].items() for n in range(count)),
        *(("control", "control", n + 1) for n in range(7)),
    ]
    assert [(line["stage"], line["epoch"]) for line in lines if line.get("plateau")] == [("warm-up-1", 2)]

    def by_hand(edited: dict[str, Any]) -> None:
        until_it_no_longer_falls(edited)
        for stage, epochs in zip(edited["arms"][0]["stages"], (2, 2, 3), strict=True):
            stage.update(epochs=epochs, plateau=None)

    execute(runs.edited("as-it-went", by_hand), tmp_path / "hand", EVERY_STEP)  # the same data, rates and schedule
    for name in ("distilled", "control"):
        one, two = (
            checkpoint.load_from(tmp_path / path / f"trained_{name}-seed0.pt").state for path in ("run", "hand")
        )
        assert one is not None
        assert two is not None
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_that_ended_on_a_plateau_is_extended(tmp_path: Path) -> None:
    def alone(plan: dict[str, Any]) -> None:
        until_it_no_longer_falls(plan)
        plan["control"] = None

    execute(runs.edited("plateau-alone", alone), tmp_path / "run", EVERY_STEP)
    longer = execute(tmp_path / "run" / "plan.json", tmp_path / "run", replace(EVERY_STEP, more_epochs=1))
    assert longer["arms"][0]["epochs"] == {"warm-up-1": 2, "warm-up-2": 2, "main": 3, "main-more-1": 1}
    execute(tmp_path / "run" / "plan.json", tmp_path / "anew", EVERY_STEP)
    equal(tmp_path / "run", tmp_path / "anew")


@pytest.mark.parametrize(
    ("position", "taken", "fits"),
    [(Position(1), [2], True), (Position(1), [3], True), (Position(1), [], False), (Position(1), [4], False),
     (Position(1), [0], False), (Position(0), [2], False), (Position(2), [2, 2], True), (Position(2), [2, 3], False),
     (Position(3), [1, 2, 4], True), (Position(3), [1, 2, 2], False), (Position(3), [1, 2, 5], False),
     (Position(2, 3), [1, 2], True), (Position(2, 4), [1, 2], False), (Position(2, 2), [3, 2], False)],
)  # fmt: skip
def test_a_checkpoint_knows_how_long_its_stages_were(position: Position, taken: list[int], fits: bool) -> None:
    plan = load_plan(runs.edited("plateau", until_it_no_longer_falls))
    optimizer: dict[str, Any] | None = {"state": {}} if position.epoch else None
    at = Checkpoint(position=position, course=Course(taken), state={"w": torch.zeros(1)}, optimizer=optimizer)
    with nullcontext() if fits else pytest.raises(RunDirError, match="not one of this plan"):
        inspection.check(at, plan, where="it")


@functools.cache
def _trained() -> Path:
    """A run that was killed behind its last step."""
    out = runs.workshop() / "run-trained"
    killed(runs.plan_file(), out, at_save(42, when="after"))
    return out


@pytest.mark.parametrize("place", ["plan", "draft", "onnx", "result"])
def test_killed_at_the_start_and_in_the_end(tmp_path: Path, place: str) -> None:
    if place != "plan":  # all is trained
        shutil.copytree(_trained(), tmp_path / "run")

    def arrange() -> None:
        def dying(*_: Any, **__: Any) -> None:
            die()

        def exported(*args: Any, **kwargs: Any) -> None:
            export_checked(*args, **kwargs)
            die()

        export_checked = onnx_file.export_checked
        target: tuple[Any, str, Any] = {
            "plan": (directory, "write_text", dying), "draft": (onnx_file, "gate", dying),
            "onnx": (onnx_file, "export_checked", exported), "result": (result, "write_text", dying),
        }[place]  # fmt: skip
        setattr(*target)

    killed(runs.plan_file(), tmp_path / "run", arrange, again=place != "plan")
    if place == "plan":
        with pytest.raises(RunDirError, match="no run to resume"):
            execute(runs.plan_file(), tmp_path / "run", AGAIN)
    execute(runs.plan_file(), tmp_path / "run", EVERY_STEP if place == "plan" else AGAIN)
    equal(tmp_path / "run", runs.finished())


def test_killed_at_random_times_with_several_seeds(tmp_path: Path) -> None:
    plan, out = runs.plan_file("seeds-fresh", **SEEDS), tmp_path / "run"
    reference = runs.finished("seeds-fresh", **SEEDS)
    dice = random.Random(5)
    for attempt in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                execute(plan, out, AGAIN if attempt else EVERY_STEP)
            finally:
                os._exit(0)
        deadline = time.monotonic() + 60
        while not (out / "checkpoint.pt").exists() and attempt == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.uniform(0.3, 1.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    execute(plan, out, AGAIN)
    equal(out, reference)


def test_each_seed_of_a_factory_starts_from_weights_of_its_own() -> None:
    lines = runs.metrics(runs.finished("seeds-fresh", **SEEDS))
    first, second = (
        [line["losses"] for line in lines if line["seed"] == seed and line["name"] == "control"] for seed in (0, 1)
    )
    assert first[0] != second[0]


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    with runs.onnx_files() as made:
        runs.interrupted(runs.plan_file(), tmp_path / "run", EVERY_STEP, after=6)
        execute(runs.plan_file(), tmp_path / "run", AGAIN)
    equal(tmp_path / "run", runs.finished())
    assert made == ["trial", "student", "teacher"]  # what was tried before is not tried again


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    out, fsync, count = tmp_path / "run", os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device") as failure:
            execute(runs.plan_file(), out, EVERY_STEP)
    assert failure.value.exit_code == 1
    assert "--resume" in failure.value.hint
    assert checkpoint.load(RunDir(out)).position == Position(1, 0, 2)  # after plan and origin: seven checkpoints
    assert not [p.name for p in out.iterdir() if p.name.startswith(".checkpoint")]
    execute(runs.plan_file(), out, AGAIN)
    equal(out, runs.finished())


def test_a_disk_that_fills_up_in_the_metrics(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; whatever is being written, the run can be resumed."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
        try:
            execute(runs.plan_file(), tmp_path / "run", EVERY_STEP)
        except FxdistillError as error:
            os._exit(error.exit_code)

    assert os.waitstatus_to_exitcode(runs.in_child(work)) == 1
    execute(runs.plan_file(), tmp_path / "run", AGAIN)
    equal(tmp_path / "run", runs.finished())


RECORD = {
    "seed": 0, "name": "distilled", "stage": "main", "epoch": 1, "losses": {"kd": 1.0}, "metrics": {"accuracy": 0.5},
    "images_per_second": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(("code", "kind"), [(errno.EDQUOT, StorageError), (errno.EIO, StorageError),
                                            (errno.EACCES, PlanError), (errno.EROFS, PlanError)])  # fmt: skip
@pytest.mark.parametrize("part", ["lines", "events", "rebuilt events"])
def test_metrics_tell_a_full_disk_from_a_wrong_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[FxdistillError], part: str
) -> None:
    def refusing(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    metrics = Metrics(RunDir(tmp_path), size=0, plan=load_plan(runs.plan_file()))
    metrics.log({**RECORD, "losses": {"kd": 12.3456789, "pkt": 1.23456789e-7}})
    assert runs.metrics(tmp_path)[0]["losses"] == {"kd": 12.3457, "pkt": 1.23457e-7}
    size = metrics.size
    monkeypatch.setattr(*((Path, "open", refusing) if part == "lines" else (log, "write_event", refusing)))
    with pytest.raises(kind, match=re.escape(os.strerror(code))) as caught:
        Metrics(
            RunDir(tmp_path), size=size, plan=load_plan(runs.plan_file())
        ) if part == "rebuilt events" else metrics.log(RECORD)
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, StorageError), (errno.EACCES, RunDirError)])
def test_a_run_directory_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[FxdistillError]
) -> None:
    def refusing(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    plan = runs.plan_file()
    monkeypatch.setattr(Path, "mkdir", refusing)
    with (
        pytest.raises(kind, match="cannot make the run directory"),
        RunDir.opened(tmp_path / "run", load_plan(plan), origin=plan, resume=False),
    ):
        pytest.fail("there is no directory")


def test_a_checkpoint_survives_a_round_trip(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    saved = Checkpoint(
        arm=2, position=Position(1, 2, 3), state={"w": torch.tensor([0.1, float("inf")])},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        means=Means(3, {"kd": 0.1}), metrics_size=12, seconds=1.5, finished=[{"name": "control", "accuracy": 0.5}],
        course=Course([2], 0.1, 1),
    )  # fmt: skip
    checkpoint.save(run, saved)
    found = checkpoint.load(run)
    assert torch.equal(found.state["w"], saved.state["w"])  # type: ignore[index]
    found.state = saved.state
    assert found == saved


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    checkpoint.save(run, Checkpoint())
    content = run.checkpoint_path.read_bytes()
    run.checkpoint_path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunDirError, match="damaged"):
        checkpoint.load(run)


@pytest.mark.parametrize(
    "wrong",
    [
        {"arm": -1}, {"arm": "first"}, {"position": Position(0, -1, 0)}, {"metrics_size": -5}, {"finished": 3},
        {"seconds": float("nan")}, {"state": {"w": 1.0}}, {"means": Means(-1, {})}, {"how": None},
        {"course": Course([-1])}, {"course": Course([], float("nan"))},
    ],
)  # fmt: skip
def test_a_checkpoint_that_says_what_cannot_be_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    checkpoint.save(run, replace(Checkpoint(), **wrong))
    with pytest.raises(RunDirError, match="damaged"):
        checkpoint.load(run)


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    checkpoint.save(run, Checkpoint(state={"w": torch.ones(64)}))
    content = bytearray(run.checkpoint_path.read_bytes())
    content[-7] ^= 16
    run.checkpoint_path.write_bytes(content)
    with pytest.raises(RunDirError, match="damaged"):
        checkpoint.load(run)


def test_means_carry_on() -> None:
    means = Means()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": value})
    assert means == Means(3, {"a": 3.0})


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    ready, go = os.pipe()

    def holding() -> None:
        with lock.lock(tmp_path):
            os.write(go, b"x")
            time.sleep(60)

    pid = os.fork()
    if pid == 0:
        holding()
    os.read(ready, 1)
    with pytest.raises(RunDirError, match="another process"), lock.lock(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with lock.lock(tmp_path):
        pass


def test_nothing_of_unix_is_needed_to_import() -> None:
    """``fcntl`` is looked up by whoever takes a lock, not at import."""
    assert not hasattr(files, "fcntl")
    assert not hasattr(lock, "fcntl")


@pytest.mark.parametrize(
    "change",
    [{"name": "../elsewhere"}, {"name": "stranger"}, {"seed": "0"}, {"losses": {"kd": "much"}}, {"metrics": None}],
)  # fmt: skip
def test_a_line_that_no_run_has_written_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    line = json.dumps({**RECORD, "time": 1.0, **change}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(line)
    with pytest.raises(RunDirError, match="line 1"):
        Metrics(RunDir(tmp_path), size=len(line), plan=load_plan(runs.plan_file()))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_are_read_of_every_training_of_a_plan_and_of_no_other(tmp_path: Path) -> None:
    """What is trained once is under the plan's own seed, whichever the others are: those of a process of ``--jobs``."""
    plan, path = load_plan(runs.plan_file("auxiliary", align="shrink")).changed(seeds=[3]), tmp_path / "metrics.jsonl"

    def written(*trials: Trial) -> list[str]:
        found = [{**asdict(one), "stage": plan.arm(one.name).stages[0].name} for one in trials]
        path.write_text("".join(json.dumps({**RECORD, "time": 1.0, **one}) + "\n" for one in found))
        return [record["name"] for record in records.read(path, plan, size=None)]

    assert written(*trials_of(plan)) == ["auxiliary", "distilled", "control"]
    for seed, name in ((3, "auxiliary"), (0, "distilled")):
        with pytest.raises(RunDirError, match="of a training that the plan has not"):
            written(Trial(seed, name))

"""Run directories that were damaged, edited or made: one clear error from whoever reads them, and no change."""

import copy
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fxdistill.errors import InputError, RunDirError
from fxdistill.report.show import show
from fxdistill.runtime.run import checkpoint
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.training.course import Means, Position
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")

CPU = Settings(device="cpu", allow=runs.ALLOW)
AGAIN = replace(CPU, resume=True)
Damage = Callable[[Path], object]


@functools.cache
def interrupted() -> Path:
    """A run that was stopped in the middle of an epoch of its last training but one."""
    out = runs.workshop() / "run-interrupted"
    save, count = checkpoint.save, 0

    def counting(run: RunDir, saved: Checkpoint) -> None:
        nonlocal count
        count += 1
        save(run, saved)
        if count == 33:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", counting)
        with pytest.raises(KeyboardInterrupt):
            runs.execute(runs.plan_file(), out, replace(CPU, save_seconds=0))
    return out


def copied(run: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    origin = json.loads((out / "origin.json").read_text())
    (out / "origin.json").write_text(json.dumps({**origin, "plan": str(runs.plan_file())}))
    return out


def refused(out: Path, *, by_show: bool = True) -> str:
    """What is said of a directory, by whoever reads it; nothing in it changes."""
    before, said = runs.snapshot(out), []
    uses: list[Callable[[], object]] = [
        lambda: runs.execute(out / "plan.json", out, AGAIN), lambda: runs.execute(runs.plan_file(), out, AGAIN),
    ]  # fmt: skip
    for use in [*uses, *([lambda: show(out)] if by_show else [])]:
        with pytest.raises(InputError) as caught:
            use()
        assert caught.value.exit_code == 2
        said.append(caught.value.what)
        after = {name: content for name, content in runs.snapshot(out).items() if name != ".lock"}
        assert after == {name: content for name, content in before.items() if name != ".lock"}
    return said[-1]


def lines(change: Callable[[list[Any]], object]) -> Damage:
    def damage(out: Path) -> None:
        path = out / "metrics.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()]
        size = len(path.read_bytes())
        change(found)
        text = "".join(json.dumps(line) + "\n" for line in found)
        path.write_text(text[:-1].ljust(size - 1) + "\n")  # no shorter than the checkpoint says

    return damage


def garbage(text: str | bytes, name: str = "metrics.jsonl") -> Damage:
    return lambda out: (out / name).write_bytes(text if isinstance(text, bytes) else text.encode())


METRICS: dict[str, Damage] = {
    "garbage": garbage(b"\x00\xff garbage\n" * 500),
    "text": garbage("hello\n" * 1000),
    "nothing": garbage(""),
    "gone": lambda out: (out / "metrics.jsonl").unlink(),
    "a list": garbage("[]\n" * 2000),
    "numbers": garbage("5\n" * 3000),
    "deep": garbage("[" * 90000 + "]" * 90000 + "\n"),
    "another arm": lines(lambda found: found[0].update(name="stranger")),
    "an arm that leaves the folder": lines(lambda found: found[0].update(name="../../x")),
    "another stage": lines(lambda found: found[0].update(stage="stranger")),
    "another seed": lines(lambda found: found[0].update(seed=77)),
    "a seed of truth": lines(lambda found: found[0].update(seed=False)),
    "an epoch beyond": lines(lambda found: found[0].update(epoch=99)),
    "no epoch": lines(lambda found: found[0].update(epoch=0)),
    "an epoch in text": lines(lambda found: found[0].update(epoch="1")),
    "text for a loss": lines(lambda found: found[0].update(losses={"kd": "0.5"})),
    "a loss of no number, by the name of a metric": lines(
        lambda found: found[0].update(losses={"kd": {}}, metrics={"kd": 0.5})
    ),
    "a number without end": lines(lambda found: found[0].update(losses={"kd": 10**400})),
    "NaN": lines(lambda found: found[0].update(losses={"kd": float("nan")})),
    "infinity": lines(lambda found: found[0].update(time=float("inf"))),
    "truth for a metric": lines(lambda found: found[0].update(metrics={"accuracy": True})),
    "no losses": lines(lambda found: found[0].pop("losses")),
    "a line behind": lambda out: (out / "metrics.jsonl").write_bytes(
        (out / "metrics.jsonl").read_bytes() + b'{"name": "../x"}\n'
    ),
}


@pytest.mark.parametrize("run", ["interrupted", "finished"])
@pytest.mark.parametrize("damage", METRICS)
def test_damaged_metrics_are_refused(tmp_path: Path, damage: str, run: str) -> None:
    out = copied(interrupted() if run == "interrupted" else runs.finished(), tmp_path)
    METRICS[damage](out)
    if (damage, run) in {("nothing", "finished"), ("gone", "finished")}:
        assert show(out)  # a result needs no metrics
        return
    assert "metrics are damaged" in refused(out)


def test_a_last_line_that_does_not_end_is_what_a_kill_leaves(tmp_path: Path) -> None:
    out = copied(interrupted(), tmp_path)
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"seed": 0, "na')
    assert "not complete" in show(out)
    runs.execute(out / "plan.json", out, AGAIN)
    assert runs.metrics(out) == runs.metrics(runs.finished())


@pytest.mark.parametrize("run", ["interrupted", "finished"])
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", '{"plan": 5}', '{"plan": "a\\u0000b"}', '{"plan": "x", "sha256": 5}', "[" * 99999, None],
)
def test_a_damaged_origin_is_refused(tmp_path: Path, text: str | None, run: str) -> None:
    out = copied(interrupted() if run == "interrupted" else runs.finished(), tmp_path)
    (out / "origin.json").unlink() if text is None else (out / "origin.json").write_text(text)
    assert f"origin.json is {'missing' if text is None else 'damaged'}" in refused(out)


@pytest.mark.parametrize("plan", ["0" * 64, 5, None])
def test_a_result_of_another_plan_is_refused(tmp_path: Path, plan: object) -> None:
    out = copied(runs.finished(), tmp_path)
    content = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps({**content, "plan": plan}))
    assert "result.json is damaged: it is of another plan" in refused(out)


def placed(**change: Any) -> Callable[[Checkpoint], Checkpoint]:
    return lambda found: replace(found, **change)


PLACES: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "an arm beyond": placed(arm=7),
    "the arm before": lambda found: replace(found, arm=found.arm - 1),
    "the arm after": lambda found: replace(found, arm=found.arm + 1),
    "a stage beyond": lambda found: replace(found, position=replace(found.position, stage=99)),
    "an epoch beyond": lambda found: replace(found, position=replace(found.position, epoch=99)),
    "an epoch behind the last stage": placed(position=Position(3, 1, 0)),
    "other steps than losses": lambda found: replace(found, position=replace(found.position, step=0)),
    "a huge step": lambda found: replace(
        found, position=replace(found.position, step=2**62), means=Means(2**62, found.means.values)
    ),
    "losses that are no numbers": lambda found: replace(found, means=Means(found.means.count, {"kd": float("nan")})),
    "no weights": placed(state=None),
    "no optimiser": placed(optimizer=None),
    "nothing finished": placed(finished=[]),
    "another training finished": placed(finished=[{"name": "stranger", "seed": 0, "accuracy": 0.5}]),
    "text for a metric": lambda found: replace(found, finished=[{**one, "accuracy": "1"} for one in found.finished]),
    "a remark that is none": lambda found: replace(found, finished=[{**one, "remarks": [5]} for one in found.finished]),
    "more metrics than there are": placed(metrics_size=10**9),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_checkpoint_at_a_place_that_no_run_comes_to_is_refused(tmp_path: Path, place: str) -> None:
    out = copied(interrupted(), tmp_path)
    found = checkpoint.load(RunDir(out))
    assert (found.arm, found.position.step > 0) == (1, True)
    checkpoint.save(RunDir(out), PLACES[place](found))
    said = refused(out, by_show=place != "a huge step")  # how many steps an epoch has is known from the data
    assert ("not one of this plan" in said) or ("lines are missing" in said)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    out = copied(interrupted(), tmp_path)
    for content in (
        b"",
        b"PK\x03\x04",
        torch.zeros(9).numpy().tobytes(),
        (runs.finished() / "student.pt").read_bytes(),
    ):
        (out / "checkpoint.pt").write_bytes(content)
        assert "checkpoint is damaged" in refused(out)


def edited_optimizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Checkpoint], Checkpoint]:
    def made(found: Checkpoint) -> Checkpoint:
        optimizer = copy.deepcopy(found.optimizer or {})
        change(optimizer)
        return replace(found, optimizer=optimizer)

    return made


OTHERS: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "weights of another shape": lambda found: replace(
        found, state={name: value[..., None] for name, value in (found.state or {}).items()}
    ),
    "weights of other names": lambda found: replace(found, state={f"x{n}": v for n, v in (found.state or {}).items()}),
    "an average of nobody": placed(average={"x": torch.zeros(1)}),
    "an average where there is none": lambda found: replace(found, average=found.state),
    "an optimiser without state": placed(optimizer={}),
    "an optimiser of text": placed(optimizer={"state": "x", "param_groups": "y"}),
    "an optimiser of other settings": edited_optimizer(lambda found: found["param_groups"][0].update(eps="x")),
    "an optimiser that decays more than the plan says": edited_optimizer(
        lambda found: found["param_groups"][0].update(weight_decay=0.5)
    ),
    "an optimiser of which a part is missing": edited_optimizer(lambda found: found["state"][0].pop("step")),
    "an optimiser with a part that is no tensor": edited_optimizer(lambda found: found["state"][0].update(exp_avg={})),
    "an optimiser of another model": lambda found: replace(
        found, optimizer={**(found.optimizer or {}), "state": {0: {"momentum_buffer": torch.zeros(2, 2)}}}
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_other_members_is_refused(tmp_path: Path, other: str) -> None:
    out = copied(interrupted(), tmp_path)
    checkpoint.save(RunDir(out), OTHERS[other](checkpoint.load(RunDir(out))))
    before = runs.snapshot(out)
    with pytest.raises(RunDirError, match="not one of this plan"):
        runs.execute(out / "plan.json", out, AGAIN)
    after = runs.snapshot(out)
    assert {name for name in before if before[name] != after.get(name)} <= {".lock"}


@pytest.mark.parametrize(
    "name",
    [".lock", "metrics.jsonl", "tensorboard", "checkpoint.pt", "plan.json", "student.onnx", ".plan.json.abcdefgh"],
)
def test_a_run_directory_with_links_is_refused(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    for target in (elsewhere / "not-there", elsewhere / "file", elsewhere):
        out = copied(interrupted(), tmp_path)
        elsewhere.mkdir()
        (elsewhere / "file").write_text("precious")
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(InputError, match=r"is a link|holds no run"):
            show(out)
        with pytest.raises(InputError, match="is a link"):
            runs.execute(runs.plan_file(), out, AGAIN)
        assert [entry.name for entry in elsewhere.iterdir()] == ["file"]
        assert (elsewhere / "file").read_text() == "precious"
        shutil.rmtree(out)
        shutil.rmtree(elsewhere)

"""What a run takes, before it is begun: counted by hand, and held against a run."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.compiler.build import specialize
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load
from fxdistill.report.estimate_view import size, span
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.run import estimating
from fxdistill.runtime.run.arms import build_program
from fxdistill.runtime.run.estimating import Estimate, Saved, StageEstimate, bytes_of
from fxdistill.runtime.run.trials import Trial
from tests import runs


def estimate(path: Path) -> tuple[Plan, Estimate]:
    plan = load(path)
    given = {
        name: preflight.load_model(plan.given(name), path.parent, seed=0, allow=runs.ALLOW)
        for name in ("teacher", "student")
    }
    return plan, estimating.estimated(plan, given, path.parent, allow=runs.ALLOW)


def test_what_autograd_saves_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10, bias=False))
    images = torch.randn(5, 1, 8, 8)
    saved = Saved(net)
    with saved:
        total = net(images).sum()
    # the input, for the convolution's weight; what ReLU gives, for its own way back and the dense layer's weight
    assert saved.taken() == 4 * 5 * (64 + 144)
    total.backward()
    assert saved.taken() == 0
    with saved, torch.no_grad():
        net(images)
    assert saved.taken() == 0


def test_memory_that_several_share_counts_once() -> None:
    whole = torch.randn(4, 6, requires_grad=True)
    made = whole * 1.0
    saved = Saved(nn.Identity())
    with saved:
        made[:2].exp().sum() + made[2:].sin().sum() + made.sin().sum()
    assert saved.taken() == 4 * (12 + 24)  # what exp gives, and all of what sin reads


def test_the_numbers_are_those_of_the_programs() -> None:
    plan, found = estimate(runs.plan_file())
    assert [(one.arm, one.stage) for one in found.stages] == [
        (arm.name, stage.name) for arm in plan.all_arms for stage in arm.stages
    ]
    modules = {
        name: preflight.load_model(plan.given(name), runs.plan_file().parent, seed=0, allow=runs.ALLOW)
        for name in ("teacher", "student")
    }
    for one in found.stages:
        program = build_program(plan, Trial(plan.seed, one.arm), modules)
        stage = specialize(program, one.stage)
        learned = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        assert one.weights == bytes_of([*stage.parameters(), *stage.buffers()])
        assert one.gradients == bytes_of(learned)
        assert one.optimizer == 2 * one.gradients + 4 * len(learned)  # two moments, and how many steps
        assert one.epochs == next(s.epochs for a in plan.all_arms for s in a.stages if s.name == one.stage)
        assert (one.steps, one.images, one.measured) == (5, 252, 252)
        assert one.activations > 252 * 64 * 4
    control, main = found.stages[-1], found.stages[-2]
    assert control.weights < main.weights  # there is no teacher
    assert control.activations <= main.activations
    assert main.watching > 0
    assert found.stages[0].watching == 0  # nothing is evaluated while taps alone are trained


def test_few_images_stand_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = estimate(runs.plan_file())
    monkeypatch.setattr(estimating, "_LONG", 0.0)
    _, few = estimate(runs.plan_file())
    for one, other in zip(few.stages, whole.stages, strict=True):
        assert (one.measured, one.images) == (7, 252)  # 1,260 images in steps of 8 at most
        assert one.activations == pytest.approx(other.activations, rel=0.02)
        assert (one.weights, one.optimizer) == (other.weights, other.optimizer)


def test_the_time_is_of_the_order_of_a_run() -> None:
    arms = json.loads((runs.finished() / "result.json").read_text())["arms"]

    def ratios() -> list[float]:
        _, found = estimate(runs.plan_file())
        return [sum(s.seconds for s in found.stages if s.arm == arm["name"]) / arm["seconds"] for arm in arms]

    tries = (ratios() for _ in range(5))  # beside others a run or an estimate is slower, now and then
    assert any(all(1 / 6 < ratio < 6 for ratio in found) for found in tries)


def one_stage(**fields: Any) -> StageEstimate:
    usual = StageEstimate("a", "s", 3, 10, 32, 32, 0.5, 2.0, 100, 10, 20, 1000, 0)
    return replace(usual, **fields)


def test_sums() -> None:
    found = Estimate([one_stage(), one_stage(arm="b", epochs=1)], {"a": 1, "b": 4}, "cpu", None)
    assert found.stages[0].seconds == 3 * (10 * 0.5 + 2)
    assert found.stages[0].memory == 1130
    assert found.seconds == 21 + 4 * 7


def test_bytes_of_tensors_each_once() -> None:
    one, other = torch.zeros(3, 4), torch.zeros(5, dtype=torch.int64)
    assert bytes_of([one, other, one]) == 3 * 4 * 4 + 5 * 8


def test_times_and_sizes_for_people() -> None:
    assert [span(seconds) for seconds in (0.0034, 12.3, 125, 11400)] == ["3.4 ms", "12.3 s", "2 min 5 s", "3 h 10 min"]
    assert [size(count) for count in (12, 1200, 3.5e6, 2e9)] == ["12 B", "1.2 kB", "3.5 MB", "2 GB"]


def dry(*words: str, columns: int = 100) -> str:
    runs.plan_file()
    teacher, student = (str(runs.workshop() / name) for name in ("teacher.pt", "student.pt"))
    given = [teacher, student] if "cascade" not in words else [teacher]
    call = ["plan", *given, "--allow-factory", runs.ALLOW[0], "--batch-size", "256", "--dry", *words]
    done = CliRunner().invoke(app, call, env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.stdout.rstrip().endswith("nothing was written")
    return done.stdout.partition("what a run takes")[2]


@pytest.mark.parametrize(
    "words", [("--align", "shrink"), ("--method", "cascade", "--keep", "0.5"), ("--repeats", "3", "--method", "crd")]
)
def test_every_kind_of_plan_can_be_tried_and_nothing_is_written(
    tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "_LONG", float("inf"))  # however busy the machine is
    before = {path: path.stat().st_mtime_ns for path in runs.workshop().rglob("*")}
    said = dry("--data", "digits", "-o", str(tmp_path / "plan.json"), *words)
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in runs.workshop().rglob("*")} == before
    assert re.search(r"all together about [\d.]+ (s|ms|min)", said)
    assert "as they are trained" in said
    assert ("under 3 seeds" in said) is ("--repeats" in words)
    assert ("auxiliary" in said) is ("--align" in words)


def test_a_narrow_terminal_and_a_plan_without_data(tmp_path: Path) -> None:
    said = dry("--data", "digits", "--method", "kd", "-o", str(tmp_path / "none" / "plan.json"), columns=60)
    assert max(map(len, said.splitlines())) <= 60
    words = ["plan", str(runs.workshop() / "teacher.pt"), str(runs.workshop() / "student.pt"), "--dry"]
    refused = CliRunner().invoke(app, words)
    assert (refused.exit_code, "no images to take a step on" in refused.output) == (2, True)

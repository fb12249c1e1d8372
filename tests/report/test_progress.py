"""What people see while a run trains."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from fxdistill.diagnostics import Diagnostic
from fxdistill.plan.file import load
from fxdistill.report.progress import RunView
from fxdistill.runtime.run.trials import Trial, trials_of
from fxdistill.runtime.training.course import Position, Progress
from tests import runs
from tests.report.drawing import drawn


def watch(console: Console) -> None:
    plan = load(runs.plan_file())
    stage = plan.arm("distilled").stages[0]
    key = f"mse[{stage.losses[0].pair}]"
    with RunView(console) as view:
        view.on_phase("loading")
        view.on_begin(plan, trials_of(plan))
        view.on_diagnostic(Diagnostic(code="some-code", severity="warning", where="teacher", why="because"))
        view.on_progress(Trial(0, "distilled"), Progress(stage, Position(0, 0, 2), 5, {key: 0.5}, 1234.0), {})
        view._live.refresh()
        whole = stage.changed(epochs=2)
        view.on_progress(Trial(0, "distilled"), Progress(whole, Position(0, 1, 0), 5, {key: 0.375}, 1234.0), {})
        view.on_progress(
            Trial(0, "distilled"),
            Progress(stage, Position(0, 1, 0), 5, {key: 0.25}, 1234.0, ended=True, waiting=0.256),
            {"accuracy": 0.5},
        )


def test_a_terminal_shows_stage_epoch_losses_speed_and_time_left() -> None:
    console, text = drawn(terminal=True)
    watch(console)
    pair = load(runs.plan_file()).arm("distilled").stages[0].losses[0].pair
    said = text.getvalue()
    assert f"warm-up-1, epoch 1 of 1  mse[{pair}] 0.5  1,234 images/s" in said
    assert f"mse[{pair}] 0.25  1,234 images/s, 26% waiting for data" in said
    assert "left 0:00:0" in said
    assert "0.5  1,234 images/s, " not in said
    assert "distilled, seed 0" in said


def test_a_line_that_a_terminal_has_no_room_for_goes_on_indented() -> None:
    console, text = drawn(terminal=True, width=40)
    watch(console)
    lines = [line.rpartition("\x1b[2K")[2] for line in text.getvalue().splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith("distilled, seed 0: warm-up-1"))
    assert lines[first + 1].startswith("  ")
    assert "accuracy 50.00%" in " ".join(lines[first : first + 4])
    assert max(map(len, lines[first : first + 2])) <= 40


def test_a_log_file_gets_a_line_for_each_epoch_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    console, text = drawn(terminal=False)
    clock = iter([100.0, 100.0, 100.5, 165.9])
    monkeypatch.setattr("fxdistill.report.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    watch(console)
    pair = load(runs.plan_file()).arm("distilled").stages[0].losses[0].pair
    assert text.getvalue().splitlines() == [
        *(f"{name} reads 8x8; mean 0.3055 std 0.376, gray (the data)" for name in ("teacher", "student")),
        "warning some-code teacher: because",
        f"distilled, seed 0: warm-up-1 1/2  mse[{pair}] 0.375  0:00:00",
        f"distilled, seed 0: warm-up-1  mse[{pair}] 0.25  accuracy 50.00%  0:01:05",
    ]


def test_a_stage_that_ends_on_a_plateau_says_so() -> None:
    console, text = drawn(terminal=False)
    plan = load(runs.plan_file())
    stage = plan.arm("distilled").stages[0].changed(epochs=5)
    with RunView(console) as view:
        view.on_begin(plan, trials_of(plan))
        view.on_progress(
            Trial(0, "distilled"), Progress(stage, Position(0, 3, 0), 5, {"mse": 0.5}, 9.0, ended=True), {}
        )
    assert text.getvalue().splitlines()[-1] == "distilled, seed 0: warm-up-1 3/5, no longer falling  mse 0.5  0:00:00"

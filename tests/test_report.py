import io

from rich.console import Console

from fxdistill import report
from fxdistill.arms import Arm, arms_of
from fxdistill.diagnostics import Diagnostic
from fxdistill.planfile import load
from fxdistill.progress import RunView
from fxdistill.rundir import RunDir
from fxdistill.train import Position, Progress
from tests import runs


def drawn(*, terminal: bool, width: int = 100) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=width, color_system=None), text


def watch(console: Console) -> None:
    plan = load(runs.plan_file())
    stage = plan.stages[0]
    key = f"mse[{stage.losses[0].pair}]"
    with RunView(console) as view:
        view.on_phase("loading")
        view.on_begin(plan, arms_of(plan))
        view.on_diagnostic(Diagnostic(code="some-code", severity="warning", where="teacher", why="because"))
        view.on_progress(Arm(0, "distilled"), Progress(stage, Position(0, 0, 2), 5, {key: 0.5}, 1234.0), None)
        view._live.refresh()
        view.on_progress(Arm(0, "distilled"), Progress(stage, Position(0, 1, 0), 5, {key: 0.25}, 1234.0), 0.5)


def test_a_terminal_shows_stage_epoch_losses_speed_and_time_left() -> None:
    console, text = drawn(terminal=True)
    watch(console)
    pair = load(runs.plan_file()).stages[0].losses[0].pair
    said = text.getvalue()
    assert f"warm-up-1, epoch 1 of 1  mse[{pair}] 0.5  1,234 images/s" in said
    assert "left" in said
    assert "distilled, seed 0" in said


def test_a_log_file_gets_lines_only() -> None:
    console, text = drawn(terminal=False)
    watch(console)
    pair = load(runs.plan_file()).stages[0].losses[0].pair
    assert text.getvalue().splitlines() == [
        "warning some-code teacher: because",
        f"distilled, seed 0: warm-up-1  mse[{pair}] 0.25  accuracy 50.00%",
    ]


def test_a_plan_in_a_narrow_terminal() -> None:
    console, text = drawn(terminal=False, width=60)
    plan = load(runs.plan_file())
    console.print(report.plan_view(plan))
    assert max(map(len, text.getvalue().splitlines())) <= 60
    for pair in plan.pairs:
        assert pair.teacher.path in text.getvalue()
        assert pair.student.path in text.getvalue()


def test_the_result_names_every_arm() -> None:
    console, text = drawn(terminal=False)
    result = RunDir(runs.finished()).result()
    assert result is not None
    console.print(report.result_view(load(runs.plan_file()), result))
    assert [line.split("  ")[0] for line in text.getvalue().splitlines()[1:4]] == [
        "teacher", "student, no distillation", "student, distilled",
    ]  # fmt: skip


def test_numbers_are_short() -> None:
    assert [report.count(n) for n in (12, 1_234, 25_557_032, 4.1e9)] == ["12", "1.23 k", "25.6 M", "4.1 G"]

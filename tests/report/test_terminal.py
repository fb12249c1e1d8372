import io

import pytest
import torch
from pydantic import JsonValue
from rich.console import Console
from rich.text import Text

from fxdistill import models
from fxdistill.compiler import pipeline
from fxdistill.compiler.options import Options
from fxdistill.diagnostics import Diagnostic
from fxdistill.modelfiles.source import parse_source
from fxdistill.plan.file import load
from fxdistill.plan.schema import ModelRef, Shrunken
from fxdistill.report import layout
from fxdistill.report.plan_view import plan_view
from fxdistill.report.progress import RunView
from fxdistill.report.result_view import result_view
from fxdistill.runtime.arms import Trial, trials_of
from fxdistill.runtime.directory import RunDir
from fxdistill.runtime.loop import Position, Progress
from tests import runs


def drawn(*, terminal: bool, width: int = 100) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=width, color_system=None), text


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
        view.on_progress(
            Trial(0, "distilled"), Progress(stage, Position(0, 1, 0), 5, {key: 0.25}, 1234.0), {"accuracy": 0.5}
        )


def test_a_terminal_shows_stage_epoch_losses_speed_and_time_left() -> None:
    console, text = drawn(terminal=True)
    watch(console)
    pair = load(runs.plan_file()).arm("distilled").stages[0].losses[0].pair
    said = text.getvalue()
    assert f"warm-up-1, epoch 1 of 1  mse[{pair}] 0.5  1,234 images/s" in said
    assert "left" in said
    assert "distilled, seed 0" in said


def test_a_log_file_gets_lines_only() -> None:
    console, text = drawn(terminal=False)
    watch(console)
    pair = load(runs.plan_file()).arm("distilled").stages[0].losses[0].pair
    assert text.getvalue().splitlines() == [
        "warning some-code teacher: because",
        f"distilled, seed 0: warm-up-1  mse[{pair}] 0.25  accuracy 50.00%",
    ]


def test_a_plan_in_a_narrow_terminal() -> None:
    console, text = drawn(terminal=False, width=60)
    plan = load(runs.plan_file())
    console.print(plan_view(plan))
    assert max(map(len, text.getvalue().splitlines())) <= 60
    for pair in plan.pairs:
        assert pair.teacher.path in text.getvalue()
        assert pair.student.path in text.getvalue()


@pytest.mark.parametrize("width", [80, 50])
@pytest.mark.parametrize("align", ["slice", "shrink", "project"])
def test_what_wraps_stays_in_its_column(align: str, width: int) -> None:
    console, text = drawn(terminal=False, width=width)
    plan = load(runs.plan_file(f"view-{align}", align=align))
    console.print(plan_view(plan))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []
    heads = ("teacher", "student", "input", "pairs", "auxiliary,", "arms", "note", "warning")
    assert [line for line in lines if line and not line.startswith((" ", *heads))] == []
    cost = plan.arm("distilled").stages[0].cost
    assert f"{cost:.1%} of the cost" in " ".join(text.getvalue().split())


def test_a_factory_is_shown_with_its_arguments() -> None:
    console, text = drawn(terminal=False)
    kwargs: dict[str, JsonValue] = {"widths": [8, 16], "padding": 1, "name": "small"}
    factory = ModelRef(path=None, sha256=None, factory="fxdistill.models:convnet", kwargs=kwargs)
    plan = load(runs.plan_file())
    console.print(plan_view(plan.changed(members={**plan.members, "student": factory})))
    shown = "fxdistill.models:convnet?widths=[8,16]&padding=1&name=small"
    assert f"student  {shown}   0 parameters" in text.getvalue()
    source = parse_source(shown)
    assert (source.factory, source.kwargs) == (factory.factory, kwargs)


def test_an_auxiliary_teacher_is_shown_beside_the_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = models.resnet(widths=[16, 32], blocks=1), models.convnet(widths=[4, 8], hidden=8)
    for keep, kept in ((None, False), (0.5, True)):
        options = Options(input_shape=(1, 1, 8, 8), align="shrink", keep=keep)
        console, text = drawn(terminal=False)
        console.print(plan_view(pipeline.compile(teacher, student, options)))
        said = text.getvalue()
        assert "4 of 16 channels in the auxiliary" in said
        assert "  16x8x8, in the auxiliary 4x8x8\n" in said
        assert "  keeps 4 of 16 channels in stem.0, layers.layer1.0.conv2\n" in said
        assert ("  keeps 8 of 16 channels in layers.layer1.0.conv1\n" in said) == kept
        assert ("not-pruned" in said) == kept
        assert "already what was asked for" not in said


def test_a_plan_without_the_teachers_widths_is_shown_too() -> None:
    plan = load(runs.plan_file("view-shrink", align="shrink"))
    member = plan.members["auxiliary"]
    assert isinstance(member, Shrunken)
    console, text = drawn(terminal=False)
    bare = member.changed(widths={}, taps={})
    console.print(plan_view(plan.changed(members={**plan.members, "auxiliary": bare})))
    assert "4 channels in the auxiliary" in text.getvalue()
    assert "keeps 4 channels in stem.0" in text.getvalue()


def test_a_line_whose_head_is_as_wide_as_the_console_wraps_whole() -> None:
    console, text = drawn(terminal=False, width=20)
    console.print(layout.Line(Text("32 -> 16"), Text("features.denseblock1.conv  ")))
    assert text.getvalue().splitlines() == ["features.densebl", "    ock1.conv  32 ->", "    16"]


def test_the_result_names_every_arm() -> None:
    console, text = drawn(terminal=False)
    result = RunDir(runs.finished()).result()
    assert result is not None
    console.print(result_view(load(runs.plan_file()), result))
    assert [line.split("  ")[0] for line in text.getvalue().splitlines()[1:4]] == [
        "teacher", "student, no distillation", "student, distilled",
    ]  # fmt: skip


def test_a_result_that_is_too_wide_for_a_table_is_cut_nowhere() -> None:
    console, text = drawn(terminal=False, width=50)
    result = RunDir(runs.finished()).result()
    assert result is not None
    console.print(result_view(load(runs.plan_file()), result))
    lines = text.getvalue().splitlines()
    assert "…" not in text.getvalue()
    assert max(map(len, lines)) <= 50
    assert [line for line in lines if line != line.rstrip()] == []
    accuracy = result["summary"]["distilled"]["mean"]
    assert f"student, distilled: accuracy {accuracy:.2%}, parameters " in " ".join(text.getvalue().split())


def test_numbers_are_short() -> None:
    assert [layout.count(n) for n in (12, 1_234, 25_557_032, 4.1e9)] == ["12", "1.23 k", "25.6 M", "4.1 G"]

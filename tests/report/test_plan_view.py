"""A plan as people read it."""

import pytest
import torch
from pydantic import JsonValue

from fxdistill import models
from fxdistill.compiler import pipeline
from fxdistill.compiler.options import Options
from fxdistill.modelfiles.source import parse_source
from fxdistill.plan.file import load
from fxdistill.plan.schema import ModelRef, Shrunken
from fxdistill.report.plan_view import plan_view
from tests import runs
from tests.report.drawing import drawn


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


def test_pairs_that_no_stage_compares_are_said_to_be_none() -> None:
    plan = load(runs.plan_file())
    first = plan.pairs[0].name
    for left_out, said in (((first,), f"; no stage compares {first}"), (plan.pairs, "; no stage compares them")):
        names, others = {getattr(one, "name", one) for one in left_out}, plan.arm("control").stages[0].losses
        arms = [
            arm.changed(stages=[
                stage.changed(losses=[term for term in stage.losses if term.pair not in names] or others)
                for stage in arm.stages
            ])
            for arm in plan.arms
        ]  # fmt: skip
        console, text = drawn(terminal=False)
        console.print(plan_view(plan.model_copy(update={"arms": arms})))
        assert said in text.getvalue()
    console, text = drawn(terminal=False)
    console.print(plan_view(plan))
    assert "no stage compares" not in text.getvalue()


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


def test_arms_say_what_they_train_and_who_teaches() -> None:
    console, text = drawn(terminal=False)
    plan = load(runs.plan_file("view-shrink", align="shrink")).changed(seeds=[0, 1])
    console.print(plan_view(plan))
    arms = [line.strip() for line in text.getvalue().splitlines() if "  trains " in line]
    assert arms == [
        "auxiliary  trains auxiliary from teacher, once", "distilled  trains student from auxiliary, under 2 seeds",
        "control  trains student, without a teacher, under 2 seeds",
    ]  # fmt: skip


def test_the_entry_that_is_the_prediction_is_shown() -> None:
    plan = load(runs.plan_file())
    student = plan.given("student").changed(output="logits")
    console, text = drawn(terminal=False, width=200)
    console.print(plan_view(plan.changed(members={**plan.members, "student": student})))
    (line,) = [line for line in text.getvalue().splitlines() if "predicts with its output" in line]
    assert line.startswith("student  student.pt ")
    assert line.endswith(", predicts with its output 'logits'")

"""An assistant between teacher and student: when one is proposed, and what becomes of one that is given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxdistill.compiler import auxiliary
from fxdistill.compiler.build import build, build_arm
from fxdistill.compiler.options import Options
from fxdistill.compiler.pipeline import compile as compile_plan
from fxdistill.errors import InputError
from fxdistill.models import convnet, resnet
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef, Shrunken
from tests import jobs, runs

SHAPE = (4, 1, 8, 8)
BATCH = {"images": torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)), "labels": torch.arange(4)}


def planned(widths: list[int], model: nn.Module | None = None, **options: Any) -> tuple[Plan, nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher, student = resnet(widths=widths, blocks=1), convnet(widths=[4, 8], hidden=8)
    made = Options(input_shape=SHAPE, epochs=6, **options)
    return compile_plan(teacher, student, made, via=model), teacher, student


def said(plan: Plan) -> str:
    remarks = [remark.why for remark in plan.diagnostics if remark.code == "assistant"]
    assert remarks
    return "; ".join(remarks)


def test_a_large_gap_gets_an_assistant_of_the_widths_between() -> None:
    plan, teacher, student = planned([64, 128], via="auto")
    member = plan.members["auxiliary"]
    assert isinstance(member, Shrunken)
    assert [(p.teacher.member, p.teacher.width, p.student.width, p.align) for p in plan.pairs] == [
        ("auxiliary", 16, 4, "slice"), ("auxiliary", 32, 8, "slice"),
    ]  # fmt: skip
    assert [(kept.width, len(kept.channels)) for kept in plan.kept] == [(16, 4), (32, 8)]
    assert [(arm.name, arm.once, [stage.epochs for stage in arm.stages]) for arm in plan.arms] == [
        ("auxiliary", True, [6]), ("distilled", False, [3, 4, 6]),
    ]  # fmt: skip
    assert "16 times as wide" in said(plan)
    assert "is made of the teacher" in said(plan)
    made = auxiliary.make(member, teacher, input_shape=SHAPE)
    assert set(build_arm(plan, "auxiliary", {"teacher": teacher, "auxiliary": made})(BATCH)) == {"cross-entropy", "kd"}
    assert set(build(plan, made, student)(BATCH)) == {"mse[block1]", "mse[block2]", "cross-entropy", "kd"}
    assert [stage.epochs for stage in planned([64, 128], via="auto", via_epochs=2)[0].arms[0].stages] == [2]


def test_a_small_gap_gets_none_and_says_why() -> None:
    plan, *_ = planned([8, 16], via="auto")
    assert "auxiliary" not in plan.members
    assert "2 times as wide" in said(plan)
    assert "the teacher itself teaches" in said(plan)
    alone = planned([8, 16])[0]
    assert (plan.arms, plan.pairs, plan.kept) == (alone.arms, alone.pairs, alone.kept)
    assert not [remark for remark in alone.diagnostics if remark.code == "assistant"]


def test_the_border_lies_at_four_times_the_width() -> None:
    assert "auxiliary" in planned([16, 32], via="auto")[0].members
    assert "auxiliary" not in planned([15, 30], via="auto")[0].members


def test_where_none_can_be_made_the_teacher_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise InputError("every channel has to stay")

    monkeypatch.setattr(auxiliary, "propose", refusing)
    plan, *_ = planned([64, 128], via="auto")
    assert said(plan).endswith("none can be made of the teacher: every channel has to stay")
    assert {pair.teacher.member for pair in plan.pairs} == {"teacher"}
    assert [len(kept.channels) for kept in plan.kept] == [4, 8]


@pytest.mark.parametrize("align", ["shrink", "project"])
def test_two_ways_of_bringing_widths_together_are_one_too_many(align: Any) -> None:
    with pytest.raises(InputError, match="nothing to slice in two steps"):
        planned([64, 128], via="auto", align=align)


def test_an_assistant_that_is_given_learns_from_the_teacher_and_then_teaches() -> None:
    assistant = convnet(widths=[12, 24], hidden=8)
    plan, teacher, student = planned([64, 128], assistant, via_epochs=4)
    assert isinstance(plan.members["auxiliary"], ModelRef)
    assert list(plan.members) == ["teacher", "auxiliary", "student"]
    assert [(arm.name, arm.once, arm.members) for arm in plan.arms] == [
        ("auxiliary", True, ("auxiliary", "teacher")), ("distilled", False, ("student", "auxiliary")),
    ]  # fmt: skip
    assert plan.arms[0].stages[0].epochs == 4
    assert [pair.teacher.width for pair in plan.pairs] == [12, 24]
    assert "learns from the teacher for 4 epochs" in said(plan)
    models = {"teacher": teacher, "auxiliary": assistant, "student": student}
    for arm in plan.arms:
        program = build_arm(plan, arm.name, models)
        assert {member.name for member in program.members if member.trained} == set(arm.trains)
        assert all(bool(loss.isfinite()) for loss in program(BATCH).values())


def test_one_that_is_trained_teaches_as_it_is() -> None:
    plan, *_ = planned([64, 128], convnet(widths=[12, 24], hidden=8), via_epochs=0)
    assert [(arm.name, arm.members) for arm in plan.arms] == [("distilled", ("student", "auxiliary"))]
    assert "teaches as it is" in said(plan)
    assert "teacher" in plan.members  # measured beside it


@pytest.mark.parametrize(
    ("method", "losses"),
    [("indistill+dkd", ["cross-entropy", "dkd"]), ("indistill+attention", ["cross-entropy", "kd"]),
     ("indistill+supervised", ["cross-entropy", "kd"])],
)  # fmt: skip
def test_it_learns_as_the_main_stage_does_where_that_needs_no_pairs(method: str, losses: list[str]) -> None:
    plan, *_ = planned([64, 128], convnet(widths=[12, 24], hidden=8), method=method)
    assert [term.loss for term in plan.arms[0].stages[0].losses] == losses


@pytest.mark.parametrize(("method", "own", "last"), [
    ("indistill+pkt", "pkt", "pkt"), ("rkd", "rkd", "rkd"), ("indistill+sp", "sp", "sp"),
])  # fmt: skip
def test_embeddings_are_learnt_by_the_assistant_as_by_the_student(method: str, own: str, last: str) -> None:
    assistant = convnet(widths=[12, 24], hidden=8)
    plan, teacher, student = planned([64, 128], assistant, method=method, task="retrieval", via_epochs=4)
    first, distilled = plan.arms
    assert [term.loss for term in first.stages[0].losses] == [own]
    assert (first.members, distilled.members) == (("auxiliary", "teacher"), ("student", "auxiliary"))
    assert [term.loss for term in distilled.stages[-1].losses] == [last]
    models = {"teacher": teacher, "auxiliary": assistant, "student": student}
    assert all(bool(loss.isfinite()) for loss in build_arm(plan, "auxiliary", models)(BATCH).values())


def test_where_predictions_are_not_compared_an_assistant_has_to_be_trained() -> None:
    given = convnet(widths=[12, 24], hidden=8)
    with pytest.raises(InputError, match="the task has no loss for predictions") as caught:
        planned([64, 128], given, method="features", task="features", via_epochs=3)
    assert "--via-epochs 0" in caught.value.hint
    plan, *_ = planned([64, 128], given, method="features", task="features", via_epochs=0)
    assert [arm.name for arm in plan.arms] == ["distilled"]


def test_two_assistants_are_one_too_many() -> None:
    for more in ({"via": "auto"}, {"align": "shrink"}):
        with pytest.raises(InputError, match="others would be made"):
            planned([64, 128], convnet(widths=[12, 24], hidden=8), **more)


def test_from_the_command_line_to_a_student(tmp_path: Path) -> None:
    files = [jobs.model(tmp_path / f"{name}.pt", taught=name == "t", widths=widths)
             for name, widths in (("t", [16, 32]), ("s", [4, 8]))]  # fmt: skip
    new = f"{jobs.MODULE}:net?widths=[8,16]"
    words = ("plan", *files, *jobs.ALLOW, "--data", "digits", "--epochs", 1, "--batch-size", 256, "--via", new)
    told = " ".join(jobs.done(*words, "-o", tmp_path / "plan.json", "--via-epochs", 2, "--no-control").split())
    assert "it learns from the teacher for 2 epochs, and then teaches" in told
    assert "its weights are random, and which of its channels the student learns is chosen before" in told
    projected = jobs.done(*words, "-o", tmp_path / "projected.json", "--via-epochs", 2, "--align", "project")
    assert "before it learns itself" not in " ".join(projected.split())
    result = jobs.ran(tmp_path)
    assert [arm["name"] for arm in result["arms"]] == ["auxiliary", "distilled"]
    assert (tmp_path / "run" / "auxiliary.pt").is_file()
    stages = [(line["name"], line["stage"]) for line in runs.metrics(tmp_path / "run")]
    assert stages[:3] == [("auxiliary", "fine-tune"), ("auxiliary", "fine-tune"), ("distilled", "warm-up-1")]
    assert "auxiliary" in jobs.done("show", tmp_path / "run")
    trained = (*words[:-1], tmp_path / "run" / "auxiliary.pt")
    told = " ".join(jobs.done(*trained, "-o", tmp_path / "again.json").split())
    assert "it is trained, and teaches as it is" in told
    told = " ".join(jobs.done(*trained, "-o", tmp_path / "again.json", "--via-epochs", 1).split())
    assert "it learns from the teacher for 1 epoch, and then teaches" in told
    assert "before it learns itself" not in told


@pytest.mark.parametrize(
    ("options", "what"),
    [(["--via-epochs", 3], "and there is none"), (["--via-arg", "x=1"], "and there is none"),
     (["--via", f"{jobs.MODULE}:net", "--via-epochs", 0], "has random weights, so it has nothing to teach yet"),
     (["--via", "auto", "--align", "project"], "nothing to slice in two steps"),
     (["--via", "nothing.pt"], "nothing.pt"),
     (["--via", f"{jobs.MODULE}:net", "--align", "shrink"], "others would be made")],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: list[Any], what: str) -> None:
    file = jobs.model(tmp_path / "one.pt")
    done = jobs.call("plan", file, file, *jobs.ALLOW, "--input", "1x1x8x8", *options, "-o", tmp_path / "plan.json")
    assert done.exit_code == 2
    assert what in done.stderr
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("via", ["auto", f"{jobs.MODULE}:net"])
def test_a_cascade_has_assistants_of_its_own(tmp_path: Path, via: str) -> None:
    words = ("plan", jobs.model(tmp_path / "one.pt"), *jobs.ALLOW, "--input", "1x1x8x8", "--method", "cascade")
    done = jobs.call(*words, "--keep", 0.5, "--via", via, "-o", tmp_path / "plan.json")
    assert done.exit_code == 2
    assert "a cascade has assistants of its own" in done.stderr

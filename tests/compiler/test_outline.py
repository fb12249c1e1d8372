"""Members in outline."""

from fxdistill.compiler.outline import outline
from fxdistill.modelfiles.factories import build
from fxdistill.plan.file import load
from tests import runs


def test_what_runs_narrowed_folded_or_not_at_all_is_told_stage_by_stage() -> None:
    plan = load(runs.plan_file())
    modules = {"teacher": build(*runs.TEACHER, seed=3), "student": build(*runs.STUDENT, seed=4, allow=runs.ALLOW)}
    found = outline(plan, modules)
    assert found.missing == ""
    assert {name: sum(layer.macs for layer in layers) for name, layers in found.layers.items()} == {
        name: member.macs for name, member in plan.members.items()
    }
    by_stage = {(one.arm, one.stage): one.layers for one in found.runs}
    assert list(by_stage) == [(arm.name, stage.name) for arm in plan.all_arms for stage in arm.stages]
    first, main = by_stage["distilled", "warm-up-1"], by_stage["distilled", "main"]
    tap = plan.pairs[0].teacher.path
    assert first["teacher"][tap] == "narrowed"
    assert first["teacher"]["stem.1"] == "folded"
    assert "classifier" not in first["teacher"]
    assert "fc" not in first["student"]
    assert main["teacher"][tap] == "runs"
    assert main["teacher"]["classifier"] == "runs"
    assert "teacher" not in by_stage["control", "control"]


def test_a_member_that_is_not_there_is_said_and_the_others_are_drawn() -> None:
    plan = load(runs.plan_file())
    found = outline(plan, {"teacher": build(*runs.TEACHER, seed=3)})
    assert list(found.layers) == ["teacher"]
    assert "student" in found.missing
    assert not found.runs

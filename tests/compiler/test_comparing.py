"""Comparing methods: arms of one length, one optimiser, one pair of members."""

from typing import Any

import pytest

from fxdistill.compiler.comparing import compared
from fxdistill.compiler.options import Options
from fxdistill.compiler.pipeline import compile as compile_plan
from fxdistill.errors import FxdistillError, InputError, PlanError
from fxdistill.models import convnet
from fxdistill.passes.schedule.curriculum import Curriculum
from fxdistill.plan.document import Plan
from fxdistill.plan.training import Plateau

METHODS = ("supervised", "kd", "indistill+kd", "indistill+attention")


def planned(**options: Any) -> Plan:
    made = Options(input_shape=(2, 1, 8, 8), **{"epochs": 30, **options})
    return compile_plan(convnet(widths=[16, 32]), convnet(widths=[8, 16]), made)


def with_main(plan: Plan, **change: Any) -> Plan:
    (arm,) = plan.arms
    *warm, main = arm.stages
    return plan.changed(arms=[arm.changed(stages=[*warm, main.changed(**change)])])


def test_every_arm_has_the_epochs_and_the_optimiser_of_the_plan() -> None:
    plan = planned(method="indistill+kd")
    own = plan.arm("distilled")
    plan = with_main(plan, schedule="step", optimizer=own.stages[-1].optimizer.changed(weight_decay=0.01))
    made = compared(plan, METHODS, seeds=4)
    assert made.seeds == [0, 1, 2, 3]
    assert [arm.name for arm in made.all_arms] == list(METHODS)
    assert (made.control, made.export.arm, made.export.member) == (None, METHODS[-1], "student")
    total = sum(stage.epochs for stage in own.stages)
    for arm in made.arms:
        assert arm.trains == ["student"]
        assert sum(stage.epochs for stage in arm.stages) == total
        assert (arm.stages[-1].optimizer.weight_decay, arm.stages[-1].schedule) == (0.01, "step")
    assert made.arm("indistill+kd").stages == plan.arm("distilled").stages
    losses = {arm.name: {term.loss for stage in arm.stages for term in stage.losses} for arm in made.arms}
    assert losses == {
        "supervised": {"cross-entropy"}, "kd": {"cross-entropy", "kd"}, "indistill+kd": {"mse", "cross-entropy", "kd"},
        "indistill+attention": {"mse", "cross-entropy", "attention"},
    }  # fmt: skip
    assert len(made.arm("indistill+attention").stages) == 3
    assert made.pairs == plan.pairs


def test_a_method_without_a_main_stage_has_that_of_the_task() -> None:
    own = planned(task="retrieval", method="rkd")
    made = compared(own, ("rkd", "indistill", "pkt"))
    assert [arm.name for arm in made.arms] == ["rkd", "indistill", "pkt"]
    assert [term.loss for term in made.arm("indistill").stages[-1].losses] == ["pkt"]
    plan = planned(task="retrieval", method="indistill")
    assert compared(plan, ("pkt", "indistill")).arm("indistill").stages == plan.arm("distilled").stages


def test_arguments_that_the_plan_has_are_those_of_all_arms() -> None:
    plan = planned(method="indistill+kd")
    terms = [
        term.changed(args={"temperature": 2.5}) if term.loss == "kd" else term
        for term in plan.arms[0].stages[-1].losses
    ]
    made = compared(with_main(plan, losses=terms), ("kd", "indistill"))
    for arm in made.arms:
        (kd,) = [term for term in arm.stages[-1].losses if term.loss == "kd"]
        assert kd.args == {"temperature": 2.5}


@pytest.mark.parametrize(("own", "other"), [("indistill+kd", "kd"), ("kd", "indistill+kd"), ("indistill", "kd")])
def test_arms_with_the_main_stage_of_the_plan_have_its_losses(own: str, other: str) -> None:
    plan = planned(method=own)
    terms = [term.changed(weight=0.5) for term in plan.arms[0].stages[-1].losses]
    made = compared(with_main(plan, losses=terms), (own, other, "dkd"))
    assert made.arm(other).stages[-1].losses == terms == made.arm(own).stages[-1].losses
    assert [term.weight for term in made.arm("dkd").stages[-1].losses] == [1.0, 1.0]


def test_the_plans_own_method_is_known_by_what_it_means() -> None:
    """``indistill`` is ``indistill+kd``: the stages that the user changed are kept under either name."""
    plan = planned(method="indistill")
    plan = with_main(plan, epochs=40)
    for name in ("indistill", "indistill+kd"):
        assert compared(plan, ("supervised", name)).arm(name).stages == plan.arm("distilled").stages


def test_without_methods_only_the_seeds_change() -> None:
    plan = planned(seed=5)
    assert compared(plan, ()) == plan
    assert compared(plan, (), seeds=3) == plan.changed(seeds=[5, 6, 7])


def test_an_auxiliary_is_trained_as_before_and_teaches_all_arms() -> None:
    plan = planned(method="indistill+kd", align="shrink")
    made = compared(plan, ("kd", "indistill"))
    assert [arm.name for arm in made.arms] == ["auxiliary", "kd", "indistill"]
    assert made.arms[0] == plan.arms[0]
    assert {term.teacher for stage in made.arm("kd").stages for term in stage.losses if term.teacher} == {"auxiliary"}


@pytest.mark.parametrize(
    ("methods", "error", "said"),
    [
        (("kd", "kd"), InputError, "'kd' occurs twice"),
        (("kd", "nonsense"), InputError, "there is no method named 'nonsense'"),
        (("kd", "auxiliary"), InputError, "there is no method named 'auxiliary'"),
        (("kd", ""), InputError, "there is no method named ''"),
        (("supervised", "indistill"), PlanError, "the warm-ups of 'indistill' take 7 epochs, and the plan has 5"),
    ],
)
def test_what_cannot_be_compared(methods: tuple[str, ...], error: type[FxdistillError], said: str) -> None:
    with pytest.raises(error, match=said):
        compared(planned(method="kd", epochs=5), methods)


def test_a_method_that_needs_what_the_plan_has_not_is_named() -> None:
    plan = planned(method="kd", epochs=5).changed(pairs=[], kept=[])
    for name in ("crd", "indistill+kd"):
        with pytest.raises(InputError, match="needs at least one pair") as caught:
            compared(plan, ["kd", name])
        assert caught.value.where == f"--arms {name}"


def test_the_best_seed_needs_validation_images() -> None:
    plan = planned()
    with pytest.raises(ValueError, match="the best seed is to be exported, and there are no validation images"):
        plan.changed(export=plan.export.changed(seed="best"))


def test_arms_that_warm_up_as_the_plan_does_have_its_warm_ups() -> None:
    said = Curriculum(share=0.4, keep_earlier=0.5, plateau=Plateau(share=0.05))
    plan = planned(method="indistill+kd", curriculum=said)
    *own, _ = plan.arm("distilled").stages
    made = compared(plan, ("kd", "indistill+dkd", "indistill+kd-standardized", "indistill"))
    for name in ("indistill+dkd", "indistill+kd-standardized", "indistill"):
        assert made.arm(name).stages[:-1] == own
    assert {sum(stage.epochs for stage in arm.stages) for arm in made.arms} == {50}
    other = compared(plan, ("kd", "indistill-released+kd")).arm("indistill-released+kd")
    assert [stage.epochs for stage in other.stages] == [3, 4, 43]
    assert {stage.plateau for stage in other.stages} == {None}

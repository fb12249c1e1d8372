"""Losses of a plan by their names: every term of one changes and nothing else, what there is not is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from fxdistill.errors import InputError, PlanError
from fxdistill.plan.document import Plan
from fxdistill.plan.terms import argued, weighed
from fxdistill.plan.training import LossTerm
from tests import by_hand


def several() -> Plan:
    """Two terms of one loss in the main stage, one of them in a warm-up too; another arm has the loss as well."""
    plan = by_hand.plan()
    (arm,) = plan.arms
    main = arm.stages[-1]
    late = LossTerm(loss="mse", pair="late", weight=2.0)
    soft = LossTerm(loss="kd", args={"temperature": 1.0})
    stages = [*arm.stages[:-1], main.changed(losses=[*main.losses, late, soft])]
    return plan.changed(arms=[arm.changed(stages=stages), arm.changed(name="other")])


def terms(plan: Plan) -> dict[tuple[str, str, int], LossTerm]:
    """By arm, stage and place."""
    return {
        (arm.name, stage.name, place): term
        for arm in plan.all_arms
        for stage in arm.stages
        for place, term in enumerate(stage.losses)
    }


@pytest.mark.parametrize(
    ("change", "text", "names", "field", "value"),
    [
        (weighed, "kd=0.25", {"kd"}, "weight", 0.25),
        (weighed, "mse = 3", {"mse[early]", "mse[late]"}, "weight", 3.0),
        (weighed, "mse[late]=3", {"mse[late]"}, "weight", 3.0),
        (weighed, "cross-entropy=0", {"cross-entropy"}, "weight", 0.0),
        (argued, "kd.temperature=7", {"kd"}, "args", {"temperature": 7.0}),
        (argued, "cross-entropy.label_smoothing=0.4", {"cross-entropy"}, "args", {"label_smoothing": 0.4}),
    ],
)
def test_every_term_of_the_exported_arm_changes_and_nothing_else(
    change: Callable[..., Plan], text: str, names: set[str], field: str, value: Any
) -> None:
    before, made = several(), change(several(), [text])
    found, was = terms(made), terms(before)
    wanted = {
        place: term.changed(**{field: value}) if place[0] == before.export.arm and term.name in names else term
        for place, term in was.items()
    }
    assert found == wanted
    assert found != was
    assert made.changed(arms=before.arms) == before


def test_the_last_one_holds_and_none_changes_nothing() -> None:
    plan = several()
    assert weighed(plan, ["kd=1", "kd=0.5"]) == weighed(plan, ["kd=0.5"])
    assert weighed(plan, []) is plan
    assert argued(plan, []) is plan


@pytest.mark.parametrize(
    ("change", "text", "message"),
    [
        (weighed, "kdd=1", "did you mean 'kd'? its losses are mse, cross-entropy, kd"),
        (weighed, "pkt=1", "no stage of the arm 'distilled' has the loss 'pkt'"),
        (weighed, "mse[later]=1", "has the loss 'mse[later]'"),
        (weighed, "kd", "write LOSS=NUMBER: kd=0.9"),
        (weighed, "=1", "gives no value"),
        (weighed, "kd=NaN", "NaN is not a JSON number"),
        (argued, "kd.temprature=1", "did you mean 'temperature'?"),
        (argued, "mse.temperature=1", "the loss 'mse' has no argument 'temperature'"),
        (argued, "dkd.temperature=1", "its losses are mse, cross-entropy, kd"),
        (argued, "temperature=1", "'temperature=1' names no argument of a loss"),
        (argued, "num_classes=10", "arguments of factories are given by --teacher-arg"),
        (argued, "kd.temperature", "write LOSS.ARGUMENT=VALUE: kd.temperature=4"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(change: Callable[..., Plan], text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        change(several(), [text])
    assert message in str(caught.value)
    assert caught.value.where.startswith("--weight" if change is weighed else "--arg")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "text", "field"),
    [
        (weighed, "kd=-1", "weight"), (weighed, "kd=1e999", "weight"), (weighed, "kd=much", "weight"),
        (weighed, "kd=true", "weight"), (argued, "kd.temperature=0", "temperature"),
        (argued, "kd.temperature=warm", "temperature"), (argued, "kd.temperature=[1]", "temperature"),
    ],
)  # fmt: skip
def test_a_value_is_validated_as_the_plan_is(change: Callable[..., Plan], text: str, field: str) -> None:
    with pytest.raises(PlanError) as caught:
        change(several(), [text])
    assert field in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_stage_that_would_learn_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="has the weight 0, so that nothing is learnt"):
        weighed(several(), ["mse=0"])

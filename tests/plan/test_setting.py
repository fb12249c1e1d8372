"""Numbers of a plan by their paths: set where they are, refused with what there is, validated as the plan is."""

from typing import Any

import pytest

from fxdistill.errors import InputError, PlanError
from fxdistill.plan.document import Plan
from fxdistill.plan.setting import changed
from tests import by_hand


def read(plan: Plan, *path: Any) -> Any:
    value: Any = plan.model_dump(mode="json")
    for part in path:
        value = value[part]
    return value


MAIN = ("arms", 0, "stages", 2)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("main.optimizer.weight_decay=5e-4", (*MAIN, "optimizer", "weight_decay"), 5e-4),
        ("distilled.main.optimizer.lr=0.5", (*MAIN, "optimizer", "lr"), 0.5),
        ("main.optimizer.clip = 1", (*MAIN, "optimizer", "clip"), 1),
        ("main.optimizer.name=adamw", (*MAIN, "optimizer", "name"), "adamw"),
        ('main.schedule="constant"', (*MAIN, "schedule"), "constant"),
        ("main.epochs=7", (*MAIN, "epochs"), 7),
        ("main.losses.kd.args.temperature=2", (*MAIN, "losses", 1, "args", "temperature"), 2),
        ("main.losses.mse[early].weight=0.25", (*MAIN, "losses", 2, "weight"), 0.25),
        ("warm-up-2.optimizer.nesterov=false", ("arms", 0, "stages", 1, "optimizer", "nesterov"), False),
        ("control.optimizer.lr=1e-2", ("control", "optimizer", "lr"), 1e-2),
        ("control.losses.cross-entropy.args.label_smoothing=0.1", ("control", "losses", 0, "args", "label_smoothing"),
         0.1),
        ("data.batch_size=32", ("data", "batch_size"), 32),
        ('data.augmentation=["flip","crop:2"]', ("data", "augmentation"), ["flip", "crop:2"]),
        ("seeds=[1,2]", ("seeds",), [1, 2]),
        ("precision=bf16-mixed", ("precision",), "bf16-mixed"),
    ],
)  # fmt: skip
def test_a_value_is_set_and_nothing_else(text: str, path: tuple[Any, ...], value: Any) -> None:
    plan = by_hand.plan()
    made = changed(plan, [text])
    assert read(made, *path) == value != read(plan, *path)
    whole, holder = plan.model_dump(mode="json"), made.model_dump(mode="json")
    one, other = whole, holder
    for part in path[:-1]:
        one, other = one[part], other[part]
    other[path[-1]] = one[path[-1]]
    assert whole == holder


def test_losses_of_one_name_are_told_by_their_numbers() -> None:
    """A path that meant one of several would leave the others as they are, without a word."""
    plan = by_hand.plan()
    stage = plan.arms[0].stages[2]
    twice = plan.changed(
        arms=[plan.arms[0].changed(stages=[stage.changed(losses=[*stage.losses, stage.losses[1]])])], control=None
    )
    made = changed(twice, ["main.losses.kd#2.weight=0.25", "main.losses.kd#1.weight=0.5"])
    assert [term.weight for term in made.arms[0].stages[0].losses if term.loss == "kd"] == [0.5, 0.25]
    with pytest.raises(InputError, match="did you mean 'kd#"):
        changed(twice, ["main.losses.kd.weight=0.25"])


def test_several_are_validated_together_and_the_last_one_holds() -> None:
    made = changed(by_hand.plan(), ["main.optimizer.momentum=0.9", "main.optimizer.name=sgd", "main.optimizer.lr=1",
                                    "main.optimizer.lr=0.1"])  # fmt: skip
    found = made.arm("distilled").stages[-1].optimizer
    assert (found.name, found.momentum, found.lr) == ("sgd", 0.9, 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("main.optimizer.weight_deca=1", "did you mean 'weight_decay'?"),
        ("main.optimiser.lr=1", "did you mean 'optimizer'?"),
        ("mian.optimizer.lr=1", "did you mean 'main'?"),
        ("main.losses.kd.args.temprature=1", "did you mean 'temperature'?"),
        ("main.losses.mse.weight=1", "there is cross-entropy, kd, mse[early]"),
        ("main.optimizer=1", "main.optimizer is not one value but holds several"),
        ("main.losses=[]", "main.losses is not one value but holds several"),
        ("main.optimizer.lr.x=1", "main.optimizer.lr is a value and holds no others"),
        ("members.teacher.path=x", "has no 'members' to set"),
        ("version=2", "has no 'version' to set"),
        ("main.optimizer.lr", "gives no value"),
        ("=3", "gives no value"),
        ("main.optimizer.lr=NaN", "not a JSON number"),
        ("main.optimizer.lr=-Infinity", "not a JSON number"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        changed(by_hand.plan(), [text])
    assert message in str(caught.value)
    assert caught.value.where.startswith("--set")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("main.optimizer.lr=-1", "optimizer.lr"),
        ("main.optimizer.lr=1e999", "optimizer.lr"),
        ("main.optimizer.lr=quick", "optimizer.lr"),
        ("main.optimizer.ema=1", "optimizer.ema"),
        ("main.optimizer.warm_up=3", "warm_up has to be shorter than the stage"),
        ("main.optimizer.nesterov=true", "nesterov is about a momentum"),
        ("data.batch_size=0", "data.batch_size"),
        ('data.augmentation=["flap"]', "did you mean 'flip'?"),
        ("data.augmentation=flip", "lists are JSON: "),
        ("main.losses.kd.args.temperature=0", "temperature"),
        ("main.epochs=2.5", "epochs"),
        ("main.losses.kd.teacher=student", "the loss 'kd' compares 'student' with itself"),
        (f"main.epochs={'9' * 5000}", "epochs"),
        ('data.spec="\\ud800"', "half a character"),
        ('data.spec="a\\u001b"', "controls a terminal"),
    ],
)
def test_a_value_is_validated_as_the_plan_is(text: str, field: str) -> None:
    with pytest.raises(PlanError) as caught:
        changed(by_hand.plan(), [text])
    assert field in str(caught.value)

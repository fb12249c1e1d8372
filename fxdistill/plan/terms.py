"""Losses of a plan by their names: ``--weight kd=0.9`` and ``--arg kd.temperature=4`` of ``fxdistill plan``.

A loss is named as it is, then every term of it changes in all stages of the exported arm, and of a cascade in those in
which its levels learn; or with its pair, ``mse[layer1]``. What the stages of other arms have, and a term of one stage
alone, is for ``--set`` (:mod:`fxdistill.plan.setting`).
"""

from collections.abc import Sequence
from typing import Any

from fxdistill.errors import InputError
from fxdistill.plan.document import Plan
from fxdistill.plan.file import parse
from fxdistill.plan.members import Masked
from fxdistill.plan.setting import value_of
from fxdistill.plan.training import Arm
from fxdistill.registry import suggestion

_WEIGHT, _ARGUMENT = "--weight", "--arg"


def main_arms(plan: Plan) -> list[Arm]:
    """The arms in which what is exported learns: of a cascade also that of the levels which it is cut out of."""
    return [
        arm for arm in plan.arms
        if arm.name == plan.export.arm or any(isinstance(plan.members[name], Masked) for name in arm.trains)
    ]  # fmt: skip


def weighed(plan: Plan, texts: Sequence[str]) -> Plan:
    """The plan with other weights, ``LOSS=NUMBER`` each.

    Raises:
        InputError: The exported arm has no such loss; says which it has.
        PlanError: The plan is not valid with a weight.
    """
    data, arms = plan.model_dump(mode="json"), [arm.name for arm in main_arms(plan)]
    for text in texts:
        name, value = _parts(text, _WEIGHT, "LOSS=NUMBER: kd=0.9")
        for term in _terms(data, arms, name, f"{_WEIGHT} {text}"):
            term["weight"] = value
    return parse(data, where=_WEIGHT) if texts else plan


def argued(plan: Plan, texts: Sequence[str]) -> Plan:
    """The plan with other arguments of losses, ``LOSS.ARGUMENT=VALUE`` each.

    Raises:
        InputError: The exported arm has no such loss, or that loss no such argument; says which there are.
        PlanError: The plan is not valid with a value.
    """
    data, form = plan.model_dump(mode="json"), "LOSS.ARGUMENT=VALUE: kd.temperature=4"
    arms = [arm.name for arm in main_arms(plan)]
    for text in texts:
        path, value = _parts(text, _ARGUMENT, form)
        name, dot, argument = path.rpartition(".")
        if not dot:
            hint = (
                f"write {form}; arguments of factories are given by --teacher-arg and --student-arg, or --factory-arg"
            )
            raise InputError(f"'{text}' names no argument of a loss", where=_ARGUMENT, hint=hint)
        for term in _terms(data, arms, name, f"{_ARGUMENT} {text}"):
            if argument not in term["args"]:
                raise InputError(
                    f"the loss '{term['loss']}' has no argument '{argument}'", where=f"{_ARGUMENT} {text}",
                    hint=suggestion(argument, tuple(term["args"]), "its arguments are"),
                )  # fmt: skip
            term["args"][argument] = value
    return parse(data, where=_ARGUMENT) if texts else plan


def _parts(text: str, option: str, form: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"'{text}' gives no value", where=option, hint=f"write {form}")
    return name.strip(), value_of(value.strip(), option)


def _terms(data: dict[str, Any], arms: Sequence[str], name: str, where: str) -> list[dict[str, Any]]:
    """The terms of a loss in the stages of some arms."""
    stages = [stage for arm in data["arms"] if arm["name"] in arms for stage in arm["stages"]]
    terms = [term for stage in stages for term in stage["losses"]]
    found = [term for term in terms if name in (term["loss"], f"{term['loss']}[{term['pair']}]")]
    if not found:
        known = tuple(dict.fromkeys(term["loss"] for term in terms))
        raise InputError(
            f"no stage of the arm '{arms[-1]}' has the loss '{name}'", where=where,
            hint=suggestion(name, known, "its losses are"),
        )  # fmt: skip
    return found

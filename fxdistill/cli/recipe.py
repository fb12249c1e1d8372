"""Options of ``plan`` and ``compress`` that stand for numbers of the plan: of main stage and control arm alike.

A cascade has two main stages, one in which all levels learn and one in which the student learns alone.
"""

import json
from collections.abc import Mapping, Sequence

from fxdistill.cli import values
from fxdistill.errors import InputError
from fxdistill.plan import setting, terms
from fxdistill.plan.document import Plan
from fxdistill.plan.training import CONTROL, Control, Stage

_SMOOTHED = "cross-entropy"


def changed(
    plan: Plan, *, smoothing: float | None, settings: Sequence[str], weights: Sequence[str],
    arguments: Sequence[str], **optimizer: object,
) -> Plan:  # fmt: skip
    """The plan with what the options say; ``--set`` has the last word.

    Args:
        plan: The plan.
        smoothing: Label smoothing, for the loss that takes it; None for as it is.
        settings: ``PATH=VALUE`` each.
        weights: ``LOSS=NUMBER`` each.
        arguments: ``LOSS.ARGUMENT=VALUE`` each.
        optimizer: Fields of the optimiser with their values; None for those that nobody named.

    Raises:
        InputError: They do not fit the plan, or each other.
    """
    for option, texts in (("--weight", weights), ("--arg", arguments), ("--set", settings)):
        values.once(option, ((name.strip(), value.strip()) for name, _, value in (t.partition("=") for t in texts)))
    stages = _main(plan)
    named = {field: value for field, value in optimizer.items() if value is not None}
    said = [
        f"{path}.optimizer.{field}={json.dumps(value)}"
        for path, stage in stages.items()
        for field, value in {**_without_momentum(stage, named), **named}.items()
    ]
    smoothed = [f"{name}.losses.{term}" for name, stage in stages.items() for term in _smoothed(stage)]
    if smoothing is not None and not smoothed:
        raise InputError(
            f"labels are smoothed for the loss '{_SMOOTHED}', and no stage has it", where="--label-smoothing",
            hint="leave it out",
        )  # fmt: skip
    if smoothing is not None:
        said += [f"{place}.args.label_smoothing={smoothing}" for place in smoothed]
    plan = setting.changed(plan, said) if said else plan
    plan = terms.argued(terms.weighed(plan, weights), arguments)
    return setting.changed(plan, settings) if settings else plan


def _without_momentum(stage: Stage | Control, said: Mapping[str, object]) -> dict[str, object]:
    """What of a method's own momentum goes, where the optimiser that is named has none, or none is wanted."""
    takes_one = said.get("name", "sgd") == "sgd"
    if takes_one and said.get("momentum", 1):
        return {}
    gone: dict[str, object] = {"nesterov": False} if takes_one else {"momentum": 0.0, "nesterov": False}
    return {field: value for field, value in gone.items() if getattr(stage.optimizer, field)}


def _main(plan: Plan) -> dict[str, Stage | Control]:
    """The main stages by their paths, and the control arm."""
    stages: dict[str, Stage | Control] = {}
    for arm in terms.main_arms(plan):
        last = arm.stages[-1]
        stages[last.name if arm.name == plan.export.arm else f"{arm.name}.{last.name}"] = last
    if plan.control is not None:
        stages[CONTROL] = plan.control
    return stages


def _smoothed(stage: Stage | Control) -> list[str]:
    """The terms of the loss that smooths labels, by their names in a path."""
    count = sum(term.name == _SMOOTHED for term in stage.losses)
    return [_SMOOTHED] * count if count < 2 else [f"{_SMOOTHED}#{place + 1}" for place in range(count)]

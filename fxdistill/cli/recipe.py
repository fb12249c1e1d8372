"""Options of ``plan`` and ``compress`` that stand for numbers of the plan: of main stage and control arm alike."""

import json
from collections.abc import Sequence

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
    main = plan.arm(plan.export.arm).stages[-1]
    stages: dict[str, Stage | Control] = {main.name: main}
    if plan.control is not None:
        stages[CONTROL] = plan.control
    said = [
        f"{stage}.optimizer.{field}={json.dumps(value)}"
        for stage in stages
        for field, value in optimizer.items()
        if value is not None
    ]
    smoothed = [name for name, stage in stages.items() if any(term.name == _SMOOTHED for term in stage.losses)]
    if smoothing is not None and not smoothed:
        raise InputError(
            f"labels are smoothed for the loss '{_SMOOTHED}', and no stage has it", where="--label-smoothing",
            hint="leave it out",
        )  # fmt: skip
    if smoothing is not None:
        said += [f"{name}.losses.{_SMOOTHED}.args.label_smoothing={smoothing}" for name in smoothed]
    plan = setting.changed(plan, said) if said else plan
    plan = terms.argued(terms.weighed(plan, weights), arguments)
    return setting.changed(plan, settings) if settings else plan

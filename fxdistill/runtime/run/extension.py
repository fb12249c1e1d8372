"""More epochs for a run that is complete.

The exported arm gets one stage more, a copy of its main stage: the same losses, a fresh optimiser, and the schedule
from its beginning, over the epochs that are added. What it is compared with, the control arm or other arms, gets one of
as many epochs. The plan in the run directory is changed accordingly, and stays the whole truth: run from the start, it
gives the same bits.

Every trial goes on from the state that it ended in, which the run directory keeps (``trained_ARM-seedN.pt``). The
result stays where it is until the extension is complete, and the ONNX file until it is exported anew; the model is the
one that was trained for longer as soon as that is.
"""

import shlex
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import PlanError, RunDirError
from fxdistill.files import write_text
from fxdistill.plan.document import Plan
from fxdistill.plan.file import invalid
from fxdistill.plan.training import Stage
from fxdistill.runtime.run import checkpoint, inspection
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.trials import trials_of


def extended(
    rundir: RunDir, plan: Plan, epochs: int, *, how: dict[str, Any]
) -> tuple[Plan, dict[str, Any]]:  # fmt: skip
    """The plan of a complete run with more epochs, and what it is trained with; nothing is written.

    Args:
        rundir: The run directory.
        plan: The plan that it has run.
        epochs: How many epochs more.
        how: What the extension is to be trained with, see :class:`Checkpoint`.

    Raises:
        RunDirError: It holds no complete run of this plan, or one that cannot go on.
        PlanError: The exported arm is read by arms after it.
    """
    where = str(rundir.path)
    there = rundir.plan_path.exists() and rundir.holds(plan, resume=True)
    result = inspection.inspect(rundir).result if there else None
    if result is None:
        raise RunDirError(
            "there is no complete run to extend", where=where,
            hint=f"complete it first: fxdistill run {shlex.quote(str(rundir.path))} --resume",
        )  # fmt: skip
    arm = plan.arm(plan.export.arm)
    if arm.once:
        raise PlanError(
            f"the arm '{arm.name}' is trained once, for arms after it to read", where=f"{where}, --more-epochs",
            hint="change its epochs in a copy of the plan, and run that anew",
        )  # fmt: skip
    longer, how = _longer(plan, epochs), checkpoint.settled(how, result)
    for index, trial in enumerate(trials_of(plan)):
        path = rundir.trained_path(trial.name, trial.seed)
        if not path.is_file():
            raise RunDirError(
                "the run directory lacks the state in which a training ended", where=str(path),
                hint="put that file back, or run a plan of more epochs anew",
            )  # fmt: skip
        ended = replace(checkpoint.load_from(path, how=how), arm=index, finished=result["arms"][:index])
        inspection.check(ended, longer, where=str(path))
    return longer, how


def begin(rundir: RunDir, plan: Plan, *, how: dict[str, Any]) -> None:
    """Make the run directory one of the extended plan; whatever kills this, it is a run, complete or to be resumed.

    Raises:
        PlanError: It cannot be written there.
        StorageError: The disk is full.
    """
    size = rundir.metrics_path.stat().st_size if rundir.metrics_path.exists() else 0
    checkpoint.save(rundir, Checkpoint(metrics_size=size, how=how))  # means nothing as long as the result holds
    rundir.expect(plan)
    write_text(rundir.plan_path, plan.to_json())  # from here on the result is that of another plan


def _longer(plan: Plan, epochs: int) -> Plan:
    exported = plan.arm(plan.export.arm)
    compared = [arm for arm in plan.arms if plan.export.member in arm.trains and not arm.once]
    names = {stage.name for arm in compared for stage in arm.stages}
    mains = {arm.name: [stage for stage in arm.stages if not stage.extends][-1] for arm in compared}
    main = mains[exported.name]
    number = next(n for n in range(1, len(names) + 2) if not names & {f"{one.name}-more-{n}" for one in mains.values()})
    try:
        more = {
            name: one.changed(name=f"{one.name}-more-{number}", epochs=epochs, extends=True)
            for name, one in mains.items()
        }
        arms = [arm.changed(stages=[*arm.stages, more[arm.name]]) if arm.name in more else arm for arm in plan.arms]
        said = _remark(exported.name, main, more[exported.name])
        longer = plan.changed(arms=arms, diagnostics=[*plan.diagnostics, said])
        basis = longer.cost_basis  # of the control arm as well
    except ValidationError as cause:  # a warm-up that is longer than all that is added, say
        raise invalid(cause, where="--more-epochs", hint="add more epochs at once") from cause
    return longer.changed(costed=basis) if plan.costed == plan.cost_basis else longer


def _remark(arm: str, main: Stage, stage: Stage) -> Diagnostic:
    how = "from its beginning" if stage.schedule != "constant" else "as before"
    return Diagnostic(
        code="extended", severity="note", where=f"arm '{arm}', stage '{stage.name}'",
        why=f"added to a complete run: {stage.epochs} epoch{'s' * (stage.epochs > 1)} of the losses of '{main.name}', "
        f"with a fresh optimiser and its {stage.schedule} schedule {how}; arms that it is compared with have as many "
        "more",
    )  # fmt: skip


def remarks(plan: Plan) -> list[Diagnostic]:
    """What there is to say of how the plan was extended."""
    return [remark for remark in plan.diagnostics if remark.code == "extended"]

"""Plan in, program out: the plan's members, traced, become the program of an arm, and that of a stage."""

from collections.abc import Mapping

from torch import nn

from fxdistill import checking
from fxdistill.compiler.compilation import DISTILLED, STUDENT, TEACHER
from fxdistill.compiler.level_taps import fitted
from fxdistill.errors import PlanError
from fxdistill.ir.contract import PassManager
from fxdistill.ir.graph import LADDER, Traced, ladder
from fxdistill.ir.program import Program
from fxdistill.passes.instrument import Instrument, Joint
from fxdistill.passes.specialize import Specialize
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Member
from fxdistill.plan.schema import ModelRef


@checking.checked()
def build(plan: Plan, teacher: nn.Module, student: nn.Module, *, passes: PassManager | None = None) -> Program:
    """Turn a plan and its models into a program: ``program(batch)`` gives the named losses of all stages.

    The student's layers in the program are the module's own: an optimiser over the program trains the module, and both
    share one mode. The teacher is frozen, but for weights that are the student's as well: give a ``copy.deepcopy`` of
    one of them if the teacher is to stay what it is. :func:`specialize` gives what one stage runs. First weights of
    adapters and losses come from torch's global generator: seed it. Where the plan has an auxiliary teacher, give that
    one as the teacher (:func:`fxdistill.compiler.auxiliary.make`, then trained with :func:`build_arm`).

    Raises:
        PlanError: The plan does not fit the models.
    """
    arm = plan.arm(DISTILLED)
    others = [name for name in arm.members if name not in arm.trains]
    if arm.trains != [STUDENT] or len(others) > 1:
        raise PlanError(
            f"the arm '{arm.name}' has the members {', '.join(arm.members)}, not one teacher and one student",
            where="arms", hint="use build_arm, which takes any members",
        )  # fmt: skip
    return build_arm(plan, arm.name, {(others or [TEACHER])[0]: teacher, STUDENT: student}, passes=passes)


@checking.checked()
def build_arm(
    plan: Plan, arm: str, models: Mapping[str, nn.Module], *, passes: PassManager | None = None,
    traced: dict[tuple[str, bool], Traced] | None = None,
) -> Program:  # fmt: skip
    """The program of any arm of a plan.

    Args:
        plan: The plan.
        arm: The arm's name; ``control`` for the control arm.
        models: The plan's members by name; those that have no part in the arm are left aside, but for masked ones that
            a member of the arm is cut out of.
        passes: A manager to run the passes in.
        traced: The members that were traced for other arms of these models, by name and whether the arm trains them;
            those that are new are added.

    Raises:
        PlanError: The plan does not fit the models, or has no such arm.
    """
    passes = passes or PassManager()
    found = plan.arm(arm)
    missing = [name for name in found.members if name not in models]
    if missing:
        raise PlanError(f"the arm '{arm}' needs the member '{missing[0]}'", where="members", hint="give its model")
    for name in found.members:
        _check_size(plan.members[name], models[name], name)
    known = {} if traced is None else traced
    wanted = {name: (name, name in found.trains) for name in found.members}
    for name, how in wanted.items():
        if how not in known:
            known[how] = passes.run(tracing(plan, name, training=how[1]), models[name])
    return passes.run(Instrument(fitted(plan, models), arm), Joint({name: known[how] for name, how in wanted.items()}))


@checking.checked()
def specialize(program: Program, stage: str, *, taught: int = 0, passes: PassManager | None = None) -> Program:
    """The program of one stage: only its losses, and only what they need.

    Args:
        program: An arm's program.
        stage: The stage's name.
        taught: How many of its successors have taken the teacher's place.
        passes: A manager to run the pass in.

    Raises:
        PlanError: There is no such stage.
        InputError: It has not so many successors.
    """
    checking.number(taught, 0, "taught", most=len(program.find_stage(stage).successors))
    return (passes or PassManager()).run(Specialize(stage, taught), program)


def _check_size(planned: Member, module: nn.Module, name: str) -> None:
    """Refuse a model that has another number of parameters than the one that was planned for: it is another one."""
    own = sum(p.numel() for p in module.parameters())
    if isinstance(planned, ModelRef) and planned.parameters not in (0, own):
        raise PlanError(
            f"the {name} has {own:,} parameters, the one of the plan {planned.parameters:,}", where=name,
            hint="give the teacher first, then the student; or plan anew",
        )  # fmt: skip


def tracing(plan: Plan, member: str, *, training: bool, quick: bool = False) -> Trace:
    """How a member is traced: the rung that the plan names, then the others; its training mode may need another one."""
    ref = plan.members[member]
    rung, entry = (ref.rung, ref.output) if isinstance(ref, ModelRef) else (LADDER[0], "")
    return Trace(plan.shape_of(member), training=training, entry=entry, rungs=ladder(rung), quick=quick)

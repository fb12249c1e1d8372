"""A compilation: what is known so far of a teacher, a student, and the plan for them.

A step of the pipeline reads it, runs passes, and returns it with more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from fxdistill.compiler.options import Options
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Shape, Traced
from fxdistill.ir.program import Batch, Program
from fxdistill.methods import Composed
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.schema import Kept, ModelRef, Pair, Shrunken
from fxdistill.plan.training import Arm, LossTerm
from fxdistill.tasks import Task

TEACHER, STUDENT, AUXILIARY, DISTILLED = "teacher", "student", "auxiliary", "distilled"
"""The names of members, and of the arm in which the student learns."""


@dataclass(frozen=True)
class Compilation:
    """What is known so far.

    Attributes:
        options: The user's decisions.
        method: The method, read.
        task: The task.
        models: The given members: the user's modules.
        refs: Where they come from.
        batch: Images as the teacher takes them, and labels, for criteria that read data; None without data.
        sample: Batches to measure the difficulty of pairs on; empty without data.
        traced: Members in eval mode; the shrunken ones too.
        trainable: The members that an arm trains, in training mode.
        coupling: Their coupled channels.
        pairs: The pairs.
        kept: The kept channels.
        made: Members that are made from others.
        arms: The arms.
        plan: The plan, whose stages have their costs after the last step.
        programs: The program of the arm in which the student learns; after the last step those of its stages too.
        remarks: What steps have to say beside the passes.
    """

    options: Options
    method: Composed
    task: Task
    models: Mapping[str, nn.Module]
    refs: Mapping[str, ModelRef]
    batch: tuple[Tensor, Tensor] | None = None
    sample: Sequence[Batch] = ()
    traced: Mapping[str, Traced] = field(default_factory=dict)
    trainable: Mapping[str, Traced] = field(default_factory=dict)
    coupling: Mapping[str, Coupling] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    kept: tuple[Kept, ...] = ()
    made: Mapping[str, Shrunken | Masked | Hardened] = field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    plan: Plan | None = None
    programs: Mapping[str, Program] = field(default_factory=dict)
    remarks: tuple[Diagnostic, ...] = ()

    @property
    def supervised(self) -> LossTerm | None:
        """The task's own term; None for a task that has none, or data without labels."""
        if self.task.supervised is None or not self.options.data.labelled:
            return None
        return LossTerm(loss=self.task.supervised, student=STUDENT)

    @property
    def imitation(self) -> LossTerm | None:
        """The term by which the student's prediction imitates the teacher's; None for a task without such a loss."""
        if self.task.imitation is None:
            return None
        return LossTerm(loss=self.task.imitation, student=STUDENT, teacher=self.teaches)

    def shape_of(self, member: str) -> Shape:
        """Shape of one batch as a given member reads it."""
        found, shape = self.options.preprocessing.get(member), self.options.input_shape
        return shape if found is None else (*shape[:2], *found.size)

    @property
    def teaches(self) -> str:
        """The member that teaches the student."""
        return AUXILIARY if AUXILIARY in {*self.made, *self.models} else TEACHER

    @property
    def learns_first(self) -> int:
        """For how many epochs the auxiliary learns from the teacher; 0 where there is none, or it is trained."""
        said = self.options.via_epochs
        return 0 if self.teaches == TEACHER else self.options.epochs if said is None else said

    def finished(self) -> Plan:
        """The plan.

        Raises:
            InputError: No step has made one.
        """
        if self.plan is None:
            raise InputError(
                f"the passes of the method '{self.method.name}' make no plan", where="method",
                hint="'schedule' has to be among them",
            )  # fmt: skip
        return self.plan

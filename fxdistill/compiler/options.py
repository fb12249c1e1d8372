"""What a user decides about a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fxdistill import checking
from fxdistill.criteria import CRITERIA
from fxdistill.errors import InputError
from fxdistill.ir.graph import Shape
from fxdistill.methods.cascade import Cascade
from fxdistill.passes.schedule.curriculum import Curriculum
from fxdistill.plan.schema import MOST_EPOCHS, MOST_SEEDS, Align, DataPlan, Precision
from fxdistill.plan.training import Recalibration
from fxdistill.preprocessing import Preprocessing

EPOCHS = 60


@dataclass(frozen=True)
class Options:
    """What a user decides about a plan; the defaults are those of the command line.

    Attributes:
        input_shape: Shape of one batch of pixels, the batch size first; MACs are counted for as many images.
        method: A method's name, composed with ``+`` or not: ``indistill``, ``kd``, ``indistill+pkt``.
        task: ``classification``, ``segmentation``, ``retrieval`` …
        align: How teacher widths are brought to the student's.
        pins: Pairs (teacher path, student path) that must be.
        forbid: Pairs that must not be.
        keep: With ``shrink``, the share of channels to keep where no tap decides; None keeps them all.
        criterion: Importance of a channel, by name; None for the method's own.
        via: ``auto`` for an assistant between teacher and student where the gap is large, see
            :mod:`fxdistill.compiler.gap`; None for none, or one that is given.
        via_epochs: For how many epochs an assistant learns from the teacher before it teaches; None for ``epochs``.
        epochs: Epochs of the main stage.
        lr: Learning rate; None for the method's own.
        curriculum: What is said of the method's warm-ups.
        seed: Everything random in a run comes from it.
        repeats: How many seeds to run, from ``seed`` on.
        control: Whether to run the same budget without distillation as well; None for where labels alone can teach.
        preprocessing: What members do to an image before they look at it, by name: their size, their normalisation.
            A member without takes batches of the input's shape as they are.
        data: Data and augmentation; without a spec the plan is structural and cannot be run.
        recalibrate: Whether BatchNorm statistics are estimated anew after training; None for never.
        precision: Lightning Fabric's name of the training precision.
        cascade: The levels of a method whose student is made out of the teacher.

    Raises:
        InputError: One of them is none, or two do not go together.
    """

    input_shape: Shape
    method: str = "indistill"
    task: str = "classification"
    align: Align = "slice"
    pins: tuple[tuple[str, str], ...] = ()
    forbid: tuple[tuple[str, str], ...] = ()
    keep: float | None = None
    criterion: str | None = None
    via: Literal["auto"] | None = None
    via_epochs: int | None = None
    epochs: int = EPOCHS
    lr: float | None = None
    curriculum: Curriculum = field(default_factory=Curriculum)
    seed: int = 0
    repeats: int = 1
    control: bool | None = None
    preprocessing: Mapping[str, Preprocessing] = field(default_factory=dict)
    data: DataPlan = field(default_factory=lambda: DataPlan(spec=None))
    recalibrate: Recalibration | None = field(default_factory=Recalibration)
    precision: Precision = "32-true"
    cascade: Cascade | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.data, DataPlan):
            raise InputError(
                f"'{self.data}' is no part of a plan", where="data", hint="use fxdistill.make_plan, which takes a spec"
            )
        checking.fields(self)
        checking.number(self.repeats, 1, "repeats", most=MOST_SEEDS)
        if self.via_epochs is not None:
            checking.number(self.via_epochs, 0, "via_epochs", most=MOST_EPOCHS)
        if self.keep is not None and self.align != "shrink":
            raise InputError(
                "--keep is about an auxiliary teacher", where="--keep",
                hint="add --align shrink; a cascade has its own: cascade=fxdistill.Cascade(keep=…)",
            )  # fmt: skip
        if self.keep is not None and not 0 < self.keep < 1:
            raise InputError(f"{self.keep} is no share of channels", where="--keep", hint="give one between 0 and 1")
        if self.via is not None and self.align != "slice":
            raise InputError(
                f"--align {self.align} leaves nothing to slice in two steps", where="--via", hint="use --align slice"
            )
        if self.criterion is not None:
            CRITERIA.get(self.criterion, where="--criterion")

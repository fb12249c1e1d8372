"""How a model is taught that was made out of another one, by that other one."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fxdistill import checking
from fxdistill.data import classmap
from fxdistill.errors import InputError
from fxdistill.methods import RATE, composed
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import Precision
from fxdistill.plan.training import Recalibration
from fxdistill.preprocessing import Wishes
from fxdistill.runtime.smaller.shrunken import Reading
from fxdistill.tasks import TASKS

METHOD, EPOCHS = "kd", 30


@dataclass(frozen=True)
class Teaching:
    """How the smaller model is taught; what is not said here is as ``fxdistill plan`` has it.

    Attributes:
        data: A data spec.
        method: A method's name; '' for ``kd``, or what the task has in its place.
        task: What is predicted.
        epochs: Epochs of the main stage.
        lr: Learning rate.
        batch_size: Images a training step at most.
        val: The share of the training images to watch the training by.
        augment: Names of augmentations, with commas; None for those that are usual for the data.
        class_map: A file with the models' classes, for data that has some of them.
        seed: Everything random comes from it.
        repeats: How many seeds to run.
        control: Whether to train the smaller model for as long without the original as well.
        precision: The training precision.
        recalibrate: Whether BatchNorm statistics are estimated anew.
        input_shape: Shape of one batch; None for that of the file or the data.
        wishes: What is to be other than model and data say of the preprocessing.
        entry: Which entry of the output is the prediction; None to find it.
        edit: What is changed of the plan before it is written.
        allow: Modules whose factories may be called.
    """

    data: str
    method: str = ""
    task: str = "classification"
    epochs: int = EPOCHS
    lr: float = RATE
    batch_size: int = 128
    val: float = 0.0
    augment: str | None = None
    class_map: str | Path | None = None
    seed: int = 0
    repeats: int = 1
    control: bool = False
    precision: Precision = "32-true"
    recalibrate: Recalibration | None = field(default_factory=Recalibration)
    input_shape: tuple[int, ...] | None = None
    wishes: Wishes = field(default_factory=Wishes)
    entry: str | None = None
    edit: Callable[[Plan], Plan] = lambda plan: plan
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checking.fields(self)
        if not self.method:
            object.__setattr__(self, "method", TASKS.get(self.task).default_main or METHOD)

    @classmethod
    def on(cls, data: str | None, **said: Any) -> "Teaching":
        """A teaching on some data.

        Raises:
            InputError: There is none.
        """
        if data is None:
            raise InputError("there is no data to train on", where="--data", hint="give --data, e.g. --data digits")
        return cls(data, **said)

    def briefly(self, epochs: int) -> "Teaching":
        """The same for so many epochs between two steps: the main stage of the method alone, and no changes by hand."""
        main = composed(self.method, default_main=TASKS.get(self.task).default_main).parts[-1][0]
        return replace(self, method=main, epochs=epochs, repeats=1, control=False, edit=lambda plan: plan)

    @property
    def reading(self) -> Reading:
        """What a model is looked at with when it is made smaller."""
        return Reading(
            self.data, self.task, self.input_shape, self.wishes, self.allow, self.table, self.entry, val=self.val,
            seed=self.seed,
        )  # fmt: skip

    @property
    def table(self) -> Path | None:
        """The place of the class map; None without one."""
        return None if self.class_map is None else Path(self.class_map)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names in the class map; None without one."""
        return None if self.table is None else classmap.read(self.table)

"""Two models, or ONNX files, found to be compared on the same data."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from fxdistill import checking, files
from fxdistill.data import places
from fxdistill.errors import InputError
from fxdistill.measure.comparison import Comparison, Looking, compared
from fxdistill.plan.schema import DataPlan
from fxdistill.preprocessing import NOTHING, Wishes
from fxdistill.runtime.deployment import finding
from fxdistill.runtime.deployment.finding import Found
from fxdistill.runtime.run.directory import RunDir


@checking.checked()
def compare(
    first: str | Path | nn.Module, second: str | Path | nn.Module, data: str | Path | None = None, *,
    task: str | None = None, input_shape: tuple[int, ...] | None = None, class_map: str | Path | None = None,
    images: int = 10, allow: Sequence[str] = (), trust_code: bool = False,
) -> Comparison:  # fmt: skip
    """Compare two models on test images: metric, agreement, classes, and where they differ most.

    Args:
        first: A run directory (its student), a file, an ONNX file, a factory, or a module of your own.
        second: Another one.
        data: A data spec; None for that of the first run.
        task: The task's name; None for that of the first run, or classification.
        input_shape: Shape of one batch, for models that do not say it themselves.
        class_map: A file with the models' classes, for data that has some of them.
        images: How many images to name on which they differ most.
        allow: Modules whose factories may be called.
        trust_code: Whether files may be unpickled: they can run any code.

    Raises:
        InputError: One cannot be found or loaded, there is no data, or they cannot be compared.
    """
    checking.number(images, 0, "images")
    found = found_together(
        [Side(first), Side(second)], data=None if data is None else str(data), task=task, input_shape=input_shape,
        class_map=None if class_map is None else Path(class_map), allow=allow, trust_code=trust_code,
    )  # fmt: skip
    return comparison(found, [named(first), named(second)], most=images)


def named(model: str | Path | nn.Module) -> str:
    """A model, for messages."""
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


@dataclass(frozen=True)
class Side:
    """A model to compare.

    Attributes:
        model: A run directory, a file or a factory.
        preprocessing: What is to be other than it says of its preprocessing.
        factory: As for :func:`fxdistill.evaluate`, as all that follow.
        args: Arguments of that factory, ``key=value``.
        checkpoint_entry: The entry of a checkpoint that holds the weights.
        entry: Which entry of a structured output is the prediction.
        embedding: What it answers with, in a task about embeddings.
    """

    model: str | Path | nn.Module
    preprocessing: Wishes = NOTHING
    factory: str | None = None
    args: tuple[str, ...] = ()
    checkpoint_entry: str | None = None
    entry: str | None = None
    embedding: str | None = None

    @property
    def is_run(self) -> bool:
        """Whether the model is that of a run."""
        return not isinstance(self.model, nn.Module) and files.is_folder(self.model)


def found_together(
    models: Sequence[str | Side], *, data: str | None = None, task: str | None = None,
    input_shape: tuple[int, ...] | None = None, class_map: Path | None = None, allow: Sequence[str] = (),
    trust_code: bool = False,
) -> list[Found]:  # fmt: skip
    """Models to be measured on the same data: that which is named, or that of the first run among them.

    Args:
        models: Run directories, files and factories, or what more there is to say of them.
        data: A data spec; None for that of the first run, divided as its plan divides it.
        task: What they predict, where no run says it.
        input_shape: Shape of one batch, for those that do not say it.
        class_map: A file with the models' classes, for data that has some of them.
        allow: Modules whose factories may be called.
        trust_code: Whether files may be unpickled.

    Raises:
        InputError: One cannot be found or loaded, there is no data, or they have different tasks.
    """
    sides = [one if isinstance(one, Side) else Side(one) for one in models]
    runs = [str(one.model) for one in sides if one.is_run]
    shared: DataPlan | str | None = data
    first: DataPlan | None = None
    for model in runs:
        held = RunDir.existing(Path(model))
        plan = held.plan()
        own = plan.data.changed(spec=places.resolved_data(plan.data.spec, held.base))
        if first is None:
            first, task = own, task or plan.task
            shared = own if data is None else data
        elif data is None and not places.is_same(own.spec, first.spec):
            raise InputError(
                f"its data is {own.spec}, and that of {runs[0]} is {first.spec}", where=model,
                hint="name the data to compare them on: --data SPEC",
            )  # fmt: skip
        elif data is None and plan.data.test != first.test:
            raise InputError(
                f"its plan sets other images aside to test on than that of {runs[0]} (data.test)", where=model,
                hint="compare runs whose plans were made under one seed, or name data that neither learnt from: --data",
            )  # fmt: skip
    found = []
    for side in sides:
        how = {one.name: getattr(side, one.name) for one in fields(side)}
        if not side.is_run:
            how |= {"data": shared, "task": task, "trust_code": trust_code}
        else:
            how |= {"data": data}
        with finding.told_of(named(side.model)):
            found.append(finding.find(**how, input_shape=input_shape, class_map=class_map, allow=allow))
    for model, one in zip((named(side.model) for side in sides), found, strict=True):
        finding.data_of(one, where=model)
        if one.task is not found[0].task:
            raise InputError(
                f"it is for {one.task.summary}, the first for {found[0].task.summary}", where=model,
                hint="compare models of one task, or say it: --task",
            )  # fmt: skip
    return found


def comparison(found: Sequence[Found], names: Sequence[str], *, most: int = 10) -> Comparison:
    """Compare two models that were found.

    Args:
        found: They, the first one that the other is held against.
        names: What they are called, for messages.
        most: How many of the images to name on which they differ most.

    Raises:
        InputError: They cannot be compared.
    """
    first, second = (
        Looking(one.module, finding.data_of(one, where=name), one.view, one.entry)
        for one, name in zip(found, names, strict=True)
    )
    return compared(first, second, found[0].task, most=most)

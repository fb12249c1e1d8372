"""What the command line's arguments stand for: shapes, pairs, models, data, and how a plan refers to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError

if TYPE_CHECKING:
    from fxdistill.checkpoint import LoadedModel
    from fxdistill.data import Dataset
    from fxdistill.plan import DataPlan, ModelRef

DEFAULT_SHAPE = (1, 3, 224, 224)


def shape(text: str) -> tuple[int, ...] | None:
    """The shape of a batch, from ``1x3x32x32``; None from an empty text.

    Raises:
        InputError: It is no such text.
    """
    if not text:
        return None
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"'{text}' is not a batch shape", where="--input", hint="write it as 1x3x224x224")
    return tuple(int(part) for part in parts)


def first_shape(*shapes: Sequence[int] | None) -> tuple[int, ...]:
    """The first shape that is known, else one image as ImageNet's models read it."""
    return next((tuple(found) for found in shapes if found), DEFAULT_SHAPE)


def pairs(texts: Sequence[str], option: str) -> tuple[tuple[str, str], ...]:
    """Pairs of paths, from ``T=S`` each.

    Raises:
        InputError: One is no such text.
    """
    found = []
    for text in texts:
        teacher, equals, student = text.partition("=")
        if not (teacher and equals and student):
            raise InputError(f"'{text}' is not a pair", where=option, hint=f"write it as {option} layer1=features.3")
        found.append((teacher, student))
    return tuple(found)


def writable(path: Path) -> None:
    """Check that a file may get this name.

    Raises:
        InputError: It is a folder, or lies in none.
    """
    if path.is_dir() or not path.resolve().parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise InputError(f"the output {what}", where=str(path), hint="give the name of a file with -o")


def model(
    text: str, factory: str | None, args: Sequence[str], *, seed: int, allow: Sequence[str], trust_pickle: bool
) -> "LoadedModel":
    """Load a model argument.

    Raises:
        ModelError: Whatever is wrong with it.
    """
    from fxdistill import checkpoint  # noqa: PLC0415  # slow to import

    source = checkpoint.parse_source(text, factory=factory, args=args, trust_pickle=trust_pickle, allow=allow)
    return checkpoint.load(source, seed=seed)


def reference(found: "LoadedModel", plan: Path) -> "ModelRef":
    """How the plan in a file refers to a model."""
    from fxdistill import places  # noqa: PLC0415  # slow to import
    from fxdistill.plan import ModelRef  # noqa: PLC0415

    return ModelRef(
        path=None if found.path is None else places.relative(found.path, plan), sha256=found.sha256,
        factory=found.factory, kwargs=found.kwargs, entry=found.entry, trusted=found.trusted,
    )  # fmt: skip


def data(
    spec: str, *, plan: Path, input_shape: tuple[int, ...] | None, batch_size: int, allow: Sequence[str]
) -> "tuple[DataPlan, Dataset]":
    """The data's part of the plan in a file, and the data.

    Raises:
        DataError: The data is not there, or not of that shape.
    """
    from fxdistill import data as data_module  # noqa: PLC0415  # slow to import
    from fxdistill import places  # noqa: PLC0415

    dataset = data_module.load(spec, input_shape=input_shape, allow=allow)
    if input_shape is not None:
        data_module.check_input(dataset, input_shape)
    made = data_module.defaults(spec, dataset=dataset, batch_size=batch_size)
    return made.model_copy(update={"spec": places.relative_data(spec, plan)}), dataset


def remarks(teacher: "LoadedModel", student: "LoadedModel") -> list[Diagnostic]:
    """What there is to say about how the models were loaded."""
    found = [*teacher.diagnostics, *student.diagnostics]
    if teacher.random_weights:
        found.append(
            Diagnostic(
                code="random-teacher", severity="warning", where="teacher",
                why="the teacher has random weights: this plan can be reviewed, not run",
                hint="give a file that holds a trained teacher",
            )
        )  # fmt: skip
    return found

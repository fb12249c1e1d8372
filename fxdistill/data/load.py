"""Loading data: from a spec, or from the data of a plan, to a checked data set.

NAME, NAME:PLACE       a source of :mod:`fxdistill.data.sources`
my.module:factory      the user's own function, if allowed; what it may return: :mod:`fxdistill.data.own`
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fxdistill import checking, files
from fxdistill.data import augmentations, classmap, own, sources
from fxdistill.data.batches import drawable
from fxdistill.data.dataset import Dataset, checked
from fxdistill.data.division import divided, planned
from fxdistill.data.sources import SOURCES, Request
from fxdistill.errors import DataError, InputError
from fxdistill.modelfiles.factories import resolve
from fxdistill.plan.schema import DataPlan
from fxdistill.preprocessing import MOST_PIXELS, Reading
from fxdistill.registry import suggestion
from fxdistill.tasks import TASKS, Task


@checking.checked()
def load(
    data: DataPlan | str | Path, *, task: Task | str = "classification", reading: Reading | None = None,
    size: int | tuple[int, int] | None = None, allow: Sequence[str] = (), whole: bool = False,
) -> Dataset:  # fmt: skip
    """Load what a spec or a plan names.

        fxdistill.load_data("imagefolder:photos", size=64)
        fxdistill.load_data("imagefolder:photos", reading=model.preprocessing.reading(channels=3))

    Image files have no size of their own, and no model is here to say one, as there is on the command line: read as
    the model reads them, or at its size. Data that has a size (arrays) keeps it.

    Args:
        data: A spec, or the data of a plan, whose classes and number of images are then checked.
        task: What the data is for, or its name.
        reading: How image files are read; None for the usual way: 224 x 224 out of the middle of 256, in colour.
        size: Height and width of image files instead, or one number for both: the shorter side is resized to it.
        allow: Modules whose factories may be called.
        whole: Whether a plan's data is there to measure on, as it is: nothing is set aside, and its size is its own.

    Raises:
        DataError: The spec is unknown, the data is missing or damaged, is not what the plan says, or not what the
            task wants.
        InputError: The task is unknown, the size is none, or a reading says it as well.
    """
    wanted = TASKS.get(task) if isinstance(task, str) else task
    reading = reading if size is None else _sized(size, reading)
    if not isinstance(data, DataPlan):
        return _read(str(data), wanted, reading, allow)
    if data.spec is None:
        raise DataError(
            "the plan names no data, so it cannot be run", where="data.spec", hint="plan again with --data SPEC"
        )
    augmentations.named(data.augmentation)
    found = _read(data.spec, wanted, reading, allow)
    if data.mapped or (data.classes and not found.classes):  # without a label, the data has no classes of its own
        found = classmap.mapped(found, data.classes, task=wanted, where=data.spec)
    drawable(found.train, data.augmentation, moves_targets=wanted.moves_targets)
    if data.classes and tuple(data.classes) != found.classes:
        raise DataError(
            f"the plan has {len(data.classes)} classes, the data {len(found.classes)}, or their names differ",
            where=f"data.classes and {data.spec}", hint="plan again with this data; where it has some of the "
            "plan's classes, say which: --class-map",
        )  # fmt: skip
    if whole:
        return found
    found = _divided(found, data, wanted)
    if data.labelled and not found.has_labels("train"):
        raise DataError(
            "the plan was made for images with labels, the data has none",
            where=f"data.labelled and {data.spec}", hint="plan again with this data",
        )  # fmt: skip
    if data.train_size and data.train_size != len(found.train):
        raise DataError(
            f"the plan was made for {data.train_size} training images, the data has {len(found.train)}",
            where=f"data.train_size and {data.spec}", hint="plan again with this data",
        )  # fmt: skip
    return found


def _sized(size: int | tuple[int, int], reading: Reading | None) -> Reading:
    if reading is not None:
        raise InputError("the reading already says a size", where="size", hint="give one of the two")
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(f"{size!r} is no size", where="size", hint="write it as 224, or (224, 192)")
    if sides[0] * sides[1] > MOST_PIXELS:
        raise InputError(f"{size!r} are more pixels than {MOST_PIXELS:,}", where="size", hint="give a smaller one")
    return Reading(sides, sides)


def _normalised(found: Dataset, mean: Sequence[float], std: Sequence[float], where: str) -> Dataset:
    channels = found.image_shape[0]
    if len(mean) != channels or len(std) != channels:
        raise DataError(
            f"the images have {channels} channels, with {len(mean)} means and {len(std)} deviations",
            where=where, hint="give one mean and one std a channel",
        )  # fmt: skip
    return replace(found, mean=tuple(mean), std=tuple(std))


def defaults(
    spec: str, *, dataset: Dataset | None = None, task: Task | str = "classification", batch_size: int = 128,
    reading: Reading | None = None, allow: Sequence[str] = (), val: float = 0.0, seed: int = 0,
) -> DataPlan:  # fmt: skip
    """The data of a plan, with every default spelled out.

    Args:
        spec: The data spec.
        dataset: What it stands for, where that is loaded already.
        task: As for :func:`load`.
        batch_size: Images a training step at most; see :mod:`fxdistill.data.batches`.
        reading: As for :func:`load`.
        allow: As for :func:`load`.
        val: The share of the training images to watch the training by; 0 for none, or for the data's own.
        seed: What is set aside is drawn under it.

    Raises:
        DataError: As for :func:`load`.
    """
    found = dataset if dataset is not None else load(spec, task=task, reading=reading, allow=allow)
    name, _ = sources.split(spec)
    usual = SOURCES.get(name).augmentation(found.image_shape) if name else ()
    test, watched = planned(found, val=val, seed=seed, where=spec)
    made = DataPlan(
        spec=spec, batch_size=batch_size, augmentation=list(usual), classes=list(found.classes),
        labelled=found.has_labels("train"), test=test, val=watched,
    )  # fmt: skip
    wanted = TASKS.get(task) if isinstance(task, str) else task
    return made.changed(train_size=len(_divided(found, made, wanted).train))


def _divided(whole: Dataset, data: DataPlan, task: Task) -> Dataset:
    """The data as a plan divides it, each part with what the task wants, as the whole of it.

    Raises:
        DataError: As for :func:`fxdistill.data.division.divided`; or too little is left in a part to measure by.
    """
    found = divided(whole, data)
    for name in ("train", "val", "test") if data.test or (data.val and data.val.share) else ():
        labels = found.split(name).labels
        if found.has_labels(name) and (wrong := task.wrong_targets(labels, found.image_shape, len(found.classes))):
            raise DataError(
                f"a part that the plan sets aside, or what it leaves, is not usable: {wrong}",
                where=f"data.{name} and {data.spec}", hint="give another share, or more images",
            )  # fmt: skip
    return found


def check_input(dataset: Dataset, input_shape: Sequence[int]) -> None:
    """Check that the images are what the models read.

    Raises:
        DataError: Channels or size differ.
    """
    expected = tuple(input_shape[1:])
    if expected != dataset.image_shape:
        have, want = ("x".join(map(str, shape)) for shape in (dataset.image_shape, expected))
        raise DataError(
            f"the images are {have} (channels x height x width), the models read {want}",
            where="the data", hint="use data of the models' shape, or models of the data's",
        )  # fmt: skip


def _read(spec: str, task: Task, reading: Reading | None, allow: Sequence[str]) -> Dataset:
    name, colon, place = spec.partition(":")
    if name in SOURCES.names():
        return _from_source(name, place, Request(spec, Path(place), reading, task))
    allowed = any(spec.startswith((f"{module}:", f"{module}.")) for module in allow)
    if allowed or ("." in name and place):
        return _own(spec, allow, task, reading)
    raise DataError(
        f"the data spec '{spec}' is unknown",
        where=spec,
        hint=_known(name + colon, name if place.isidentifier() and name.isidentifier() else "my.module"),
    )


def _known(wrong: str, module: str) -> str:
    own = f"; or your own {module}:factory, with --allow-factory {module}"
    return f"{suggestion(wrong, sources.forms(), 'known specs:')}{own}"


def _from_source(name: str, place: str, request: Request) -> Dataset:
    source = SOURCES.get(name, error=DataError)
    if source.place and not place:
        raise DataError(f"'{name}' needs a place", where=request.spec, hint=f"write {name}:{source.place}")
    if not source.place and place:
        raise DataError(f"'{name}' has no place", where=request.spec, hint=f"write {name}")
    if source.place and not files.is_there(request.place):
        raise DataError(f"there is no '{place}'", where=request.spec, hint="check the path, relative to where you are")
    try:
        found: object = source.read(request)
    except InputError:
        raise
    except Exception as cause:
        raise DataError(
            f"the data cannot be read: {type(cause).__name__}: {cause}", where=request.spec, hint=source.layout
        ) from cause
    if not isinstance(found, Dataset):
        raise DataError(
            f"the data source '{name}' gives a {type(found).__name__}, not a Dataset", where=request.spec,
            hint="tell the authors of the distribution that gives it",
        )  # fmt: skip
    return found


def _own(spec: str, allow: Sequence[str], task: Task, reading: Reading | None) -> Dataset:
    function = resolve(spec, allow=allow, error=DataError)
    try:
        found = function()
    except Exception as cause:
        raise DataError(f"the factory failed: {type(cause).__name__}: {cause}", where=spec, hint=own.FORMS) from cause
    if not isinstance(found, Dataset):
        return own.read(found, where=spec, task=task, reading=reading)
    whole = checked(found.train, found.test, found.classes or None, where=spec, task=task, val=found.val)
    return _normalised(whole, found.mean, found.std, spec)

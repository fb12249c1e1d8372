"""Which preprocessing a model has, and the data as the models read it.

Each part, the geometry and the normalisation, is taken from the first that says it: the options, the model's file, its
library (timm's ``pretrained_cfg``, torchvision's weights), the data. Two rules beside that:

* Data of one size of its own (arrays) keeps it, unless an option or the model's file says another size, or the model
  takes no other: what a library would have its photographs resized to does not blow up small arrays.
* A model whose weights are random has no preprocessing yet. Unless it is said, it takes over that of the other one:
  then both look at the same pixels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from fxdistill.data.dataset import Dataset
from fxdistill.data.load import check_input, load
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, ModelError
from fxdistill.modelfiles.load import LoadedModel
from fxdistill.modelfiles.presets import is_fixed, preset
from fxdistill.plan.schema import DataPlan
from fxdistill.preprocessing import (
    MOST_PIXELS,
    MOST_SIDE,
    NOTHING,
    USUAL_RESIZE,
    USUAL_SIZE,
    Preprocessing,
    Source,
    Wishes,
    names_of,
)
from fxdistill.tasks import Task

Wish = Wishes | Preprocessing
NOBODY = "the usual, for nothing says it"
_PLAIN = Preprocessing(size=list(USUAL_SIZE), resize=list(USUAL_RESIZE), source=Source(geometry=NOBODY))


@dataclass(frozen=True)
class Seen:
    """The data as models read it, and how.

    Attributes:
        shape: Shape of one batch of pixels.
        preprocessing: What each model does to an image, by name.
        dataset: The data, read for the model of the largest images; None without data.
        remarks: What there is to say about that.
    """

    shape: tuple[int, ...]
    preprocessing: dict[str, Preprocessing]
    dataset: Dataset | None
    remarks: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True)
class _Said:
    """What is said of a preprocessing: its two parts, None for what nobody says; whether other sizes will not do."""

    geometry: Preprocessing | None
    normal: Preprocessing | None
    binding: bool


def look(
    models: Mapping[str, LoadedModel], data: DataPlan | str | None, *, task: Task, wishes: Mapping[str, Wish],
    shape: Sequence[int] | None = None, allow: Sequence[str] = (),
) -> Seen:  # fmt: skip
    """Find out how models preprocess, and read the data so.

    Args:
        models: The models by name.
        data: A data spec, or the data of a plan; None for none.
        task: What the data is for.
        wishes: What the user says of each model's preprocessing, or all of it.
        shape: Shape of one batch, where the user says it.
        allow: Modules whose factories may be called.

    Raises:
        DataError: The data is not there, or not what the task wants.
        InputError: What the user says does not go together.
        ModelError: A model's file says that it takes no images.
    """
    for name, loaded in models.items():
        if loaded.input_shape is not None and len(loaded.input_shape) != 4:
            sides = "x".join(map(str, loaded.input_shape))
            raise ModelError(
                f"the {name} takes batches of {sides}, which are no images", where=str(loaded.path or name),
                hint="give a model that takes batches of channels, height and width",
            )  # fmt: skip
    if shape is not None:
        _check_shape(shape)
    channels = shape[1] if shape is not None else _channels(list(models.values()))
    drafts = {name: _made(one, None, channels) for name, one in _known(models, wishes, channels, shape).items()}
    if data is None:
        batch = shape[0] if shape is not None else next((m.input_shape[0] for m in models.values() if m.input_shape), 1)
        return Seen((batch, channels, *_largest(drafts).size), drafts, None)
    reading = _largest(drafts).reading(channels)
    dataset = load(data, task=task, reading=reading, allow=allow)
    own, channels = dataset.preprocessing, dataset.image_shape[0]
    for said in (shape, *(loaded.input_shape for loaded in models.values())):
        if said is not None and said[1] != channels:
            check_input(dataset, said)
    sized = dataset.image_shape[1:] != reading.size
    found = {
        name: _made(one, own, channels, sized=sized and not one.binding)
        for name, one in _known(models, wishes, channels, shape).items()
    }
    return Seen(
        (shape[0] if shape is not None else 1, *dataset.image_shape), found, dataset,
        tuple(_resized(found, dataset.image_shape[1:])) if sized else (),
    )  # fmt: skip


def read_for(seen: Seen, member: str, *, dataset: Dataset, data: DataPlan, task: Task, allow: Sequence[str]) -> Dataset:
    """The data as one model reads image files itself, to measure it on.

    Args:
        seen: What was found out.
        member: The model's name.
        dataset: The data as it is read for training.
        data: What the plan says of it, its spec as it is from here.
        task: What the data is for.
        allow: Modules whose factories may be called.
    """
    channels = dataset.image_shape[0]
    training, own = (one.reading(channels) for one in (_largest(seen.preprocessing), seen.preprocessing[member]))
    if own == training or dataset.image_shape != training.shape:
        return dataset
    return load(data, task=task, reading=own, allow=allow)


def at_size(wishes: Wish, shape: Sequence[int] | None) -> Wish:
    """What the user wishes, with the size of the shape that was asked for where he says no size apart.

    Raises:
        InputError: It is no shape of a batch of images.
    """
    if shape is None or isinstance(wishes, Preprocessing) or wishes.size is not None:
        return wishes
    _check_shape(shape)
    return replace(wishes, size=(shape[2], shape[3]), where="--input")


def _check_shape(shape: Sequence[int]) -> None:
    if len(shape) != 4:
        raise InputError(
            f"{tuple(shape)} is no shape of a batch of images", where="input_shape",
            hint="write it with its batch: (1, 3, 224, 224)",
        )  # fmt: skip


def overridden(found: Preprocessing, wishes: Wish) -> Preprocessing:
    """A preprocessing with what the user says before what it says.

    Raises:
        InputError: What the user says does not go together.
    """
    if isinstance(wishes, Preprocessing):
        return wishes
    said = _wished(_Said(found, found if found.mean else None, binding=True), wishes)
    return _made(said, None, len(found.mean) or len(wishes.mean or ()) or 3)


def _known(
    models: Mapping[str, LoadedModel],
    wishes: Mapping[str, Wish],
    channels: int,
    shape: Sequence[int] | None,
) -> dict[str, _Said]:
    """What is said of the preprocessing of each model."""
    donor = next((name for name, loaded in models.items() if _says(loaded)), next(iter(models)))
    found: dict[str, _Said] = {}
    for name, loaded in models.items():
        base = _base(loaded, channels)
        if name != donor and not _says(loaded):
            taken = _taken_over(_base(models[donor], channels), donor)
            base = replace(base, normal=taken.normal) if base.binding else taken
        wish = at_size(wishes.get(name, NOTHING), shape)
        found[name] = _Said(wish, wish, binding=True) if isinstance(wish, Preprocessing) else _wished(base, wish)
    return found


def _largest(found: Mapping[str, Preprocessing]) -> Preprocessing:
    return max(found.values(), key=lambda one: one.size[0] * one.size[1])


def _base(loaded: LoadedModel, channels: int) -> _Said:
    """What a model's file and library say."""
    stored = loaded.preprocessing
    library = preset(loaded.module, loaded.factory, loaded.kwargs, channels=channels)
    normal = next((one for one in (stored, library) if one is not None and one.mean), None)
    if stored is not None:
        return _Said(stored, normal, binding=True)
    if loaded.input_shape is not None and len(loaded.input_shape) == 4:
        plain = library if library is not None and library.source.geometry else _PLAIN.changed(resize=None)
        return _Said(plain.sized(loaded.input_shape[2:], "the file's input shape"), normal, binding=True)
    if library is None or not library.source.geometry:
        return _Said(None, normal, binding=False)
    return _Said(library, normal, binding=is_fixed(loaded.module))


def _says(loaded: LoadedModel) -> bool:
    """Whether a model has a preprocessing of its own: it was trained, or its file says one."""
    return bool(not loaded.random_weights or loaded.preprocessing or loaded.input_shape)


def _taken_over(known: _Said, donor: str) -> _Said:
    def named(value: Preprocessing | None) -> Preprocessing | None:
        said = Source(geometry=f"as the {donor}", normalisation=f"as the {donor}")
        return None if value is None else value.changed(source=said)

    return replace(known, geometry=named(known.geometry), normal=named(known.normal))


def _wished(known: _Said, wishes: Wishes) -> _Said:
    """What is said, with what the user says before all."""
    normal, binding = known.normal, known.binding or wishes.size is not None
    try:
        geometry = _wished_geometry(known.geometry, wishes)
    except ValueError as cause:
        size = "x".join(map(str, wishes.size or (known.geometry or _PLAIN).size))
        cut = "" if wishes.crop is None else f" as {wishes.crop:g} of what they are resized to"
        raise InputError(
            f"images cannot be read at {size}{cut}", where=wishes.where if wishes.size else "--crop",
            hint=f"give sides of 1 to {MOST_SIDE:,} pixels, {MOST_PIXELS:,} in all",
        ) from cause  # fmt: skip
    if (wishes.mean is None) != (wishes.std is None):
        raise InputError("mean and std go together", where="--mean, --std", hint="give both")
    if wishes.mean is not None and wishes.std is not None:
        try:
            normal = _PLAIN.changed(
                mean=list(wishes.mean), std=list(wishes.std), range=255 if max(wishes.mean) > 2 else 1,
                channels=names_of(len(wishes.mean)), source=Source(normalisation="--mean, --std"),
            )  # fmt: skip
        except ValueError as cause:
            raise InputError(
                f"mean {list(wishes.mean)} and std {list(wishes.std)} are not numbers a channel each",
                where="--mean, --std", hint="write them as --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
            ) from cause  # fmt: skip
    return _Said(geometry, normal, binding)


def _wished_geometry(geometry: Preprocessing | None, wishes: Wishes) -> Preprocessing | None:
    if wishes.size is not None:
        geometry = (geometry or _PLAIN.changed(resize=None)).sized(wishes.size, wishes.where)
    if wishes.crop is None and wishes.interpolation is None:
        return geometry
    geometry = geometry or _PLAIN
    options = [name for name, value in (("--crop", wishes.crop), ("--interpolation", wishes.interpolation)) if value]
    rest = wishes.where if wishes.size is not None and len(options) == 2 else geometry.source.geometry
    said = ", ".join(dict.fromkeys((*options, rest)))
    resize = geometry.resize if wishes.crop is None else [math.floor(side / wishes.crop) for side in geometry.size]
    return geometry.changed(
        resize=resize, interpolation=wishes.interpolation or geometry.interpolation,
        source=geometry.source.changed(geometry=said),
    )  # fmt: skip


def _made(known: _Said, data: Preprocessing | None, channels: int, *, sized: bool = False) -> Preprocessing:
    """The preprocessing of what is said; the data says the rest. ``sized``: the data's own size holds."""
    geometry = known.geometry or _PLAIN
    if data is not None and sized:
        geometry = geometry.changed(size=data.size, resize=None, source=data.source)
    normal = known.normal or data
    said = geometry.source.changed(normalisation=normal.source.normalisation if normal is not None else "")
    if normal is None or not normal.mean:
        return geometry.changed(mean=[], std=[], channels=names_of(channels), source=said)
    if len(normal.mean) != channels:
        raise InputError(
            f"mean and std have {len(normal.mean)} entries, the images have {channels} channels",
            where=said.normalisation, hint="give one mean and one std a channel",
        )  # fmt: skip
    order = normal.channels if normal.channels == "bgr" else names_of(channels)
    return geometry.changed(mean=normal.mean, std=normal.std, range=normal.range, channels=order, source=said)


def _channels(models: Sequence[LoadedModel]) -> int:
    """How many channels the first model reads that says so, its first convolution included; 3 where none does."""
    for loaded in models:
        if loaded.input_shape is not None and len(loaded.input_shape) == 4:
            return loaded.input_shape[1]
        if loaded.preprocessing is not None and loaded.preprocessing.mean:
            return len(loaded.preprocessing.mean)
    for loaded in models:
        convolution = next((m for m in loaded.module.modules() if isinstance(m, nn.Conv2d)), None)
        if convolution is not None and convolution.in_channels in (1, 3):
            return convolution.in_channels
    return 3


def _resized(found: Mapping[str, Preprocessing], size: Sequence[int]) -> Iterator[Diagnostic]:
    """A word where the data has a size of its own and a model reads another one."""
    for name, one in found.items():
        if one.size != list(size):
            own, wanted = ("x".join(map(str, value)) for value in (size, one.size))
            yield Diagnostic(
                code="resized", severity="note", where=name,
                why=f"the data's images are {own}; the {name} reads them resized to {wanted} ({one.source.geometry})",
            )  # fmt: skip

"""A model made smaller as it reads images: what is wanted, the batch that is looked at, the file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from fxdistill.compiler.shrink_model import ShrunkResult, shrink_model, supervised_loss
from fxdistill.criteria import CRITERIA, measures
from fxdistill.data import division
from fxdistill.data.batches import first_batch
from fxdistill.data.dataset import Dataset
from fxdistill.data.load import defaults
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import CriterionError, InputError, ModelError
from fxdistill.ir.budget import Limit, Size, limits_of
from fxdistill.ir.channels import Examples
from fxdistill.ir.contract import PassManager
from fxdistill.ir.coupling import Said
from fxdistill.ir.layers import Timing
from fxdistill.ir.views import seen
from fxdistill.measure.layer_times import UNIT
from fxdistill.modelfiles import bundle, pt2
from fxdistill.modelfiles.load import LoadedModel
from fxdistill.passes.thin.search import Ranking
from fxdistill.passes.trace import Trace
from fxdistill.preprocessing import Preprocessing, View, Wishes
from fxdistill.runtime.deployment.finding import MODEL
from fxdistill.runtime.planning import fitting, preprocess
from fxdistill.runtime.smaller.latency_search import Clock, Wanted, clock_of
from fxdistill.tasks import TASKS

BY_WEIGHTS, BY_IMAGES, BY_LABELS = "l1", "l1+interpolative", "taylor+interpolative"
"""What importance is where nobody says it: of weights alone, of images as well, of their labels as well."""


@dataclass(frozen=True)
class Wish:
    """How much of a model is to stay, and which channels; see :func:`shrink`.

    Attributes:
        keep: Share of the channels to keep.
        limits: What the model may cost instead.
        ranking: What competes.
        floor: The least share of its channels that a layer keeps.
        scopes: Parts with a share of their own.
        by: Importance of a channel, by name; None for what :func:`shrunk` chooses.
        round_to: Widths become multiples of this; None for what :class:`Thin` chooses.
        protect: Paths whose channels stay.
        only: Paths of the modules to prune.
        seed: Seed of criteria that draw, and of the proof.
        before: The widths of layers before earlier steps: floors and shares of parts are of these.
        latency: How long the model may take.
        roughly: Whether the widths nearest below a budget will do: it is a step of several.
    """

    keep: float | None = None
    limits: tuple[Limit, ...] = ()
    ranking: Ranking | None = None
    floor: float | None = None
    scopes: tuple[tuple[str, float], ...] = ()
    by: str | None = None
    round_to: int | None = None
    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seed: int = 0
    before: tuple[tuple[str, int], ...] = ()
    latency: Wanted | None = None
    roughly: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether a budget is left to go towards."""
        return bool(self.limits or self.latency)


def wished(
    *, keep: float | None = None, macs: float | None = None, params: float | None = None,
    latency: float | str | None = None, on: str = "cpu", round_to: int | None = None,
    scopes: Mapping[str, float] = MappingProxyType({}), protect: Sequence[str] = (), only: Sequence[str] = (),
    **others: Any,
) -> Wish:  # fmt: skip
    """A wish, from the arguments of :func:`fxdistill.shrink`.

    Raises:
        InputError: The latency is none, or both it and ``keep`` are given.
    """
    time = None if latency is None else Wanted.of(latency, on)
    if time is not None and keep is not None:
        raise InputError("both --latency and --keep say how much to keep", where="--keep", hint="give one of them")
    return Wish(
        keep=keep, limits=limits_of(macs=macs, parameters=params), latency=time,
        round_to=UNIT if round_to is None and time is not None else round_to, scopes=tuple(scopes.items()),
        protect=tuple(protect), only=tuple(only), **others,
    )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What a model is looked at with.

    Attributes:
        data: A data spec; None for none.
        task: What the data is for.
        input_shape: Shape of one batch; None for that of the file or the data.
        wishes: What is to be other than model and data say of the preprocessing.
        allow: Modules whose factories may be called.
        class_map: A file with the model's classes, for data that has some of them.
        entry: Which entry of the output is the prediction; None to find the one that fits the data.
        batch: Images of a batch; None for as many as ``input_shape`` or the file says.
        val: The share of the training images to watch a training by that follows: criteria read none of these.
        seed: What is set aside of the data to watch and test by is drawn under it; None where nothing is.
    """

    data: str | None = None
    task: str = "classification"
    input_shape: tuple[int, ...] | None = None
    wishes: Wishes = field(default_factory=Wishes)
    allow: tuple[str, ...] = ()
    class_map: Path | None = None
    entry: str | None = None
    batch: int | None = None
    val: float = 0.0
    seed: int | None = None


def shrunk(
    found: LoadedModel, wish: Wish, reading: Reading, *, clock: Clock | None, passes: PassManager | None = None
) -> tuple[ShrunkResult, Preprocessing | None]:
    """A model made smaller, and what it does to an image before it looks at it; nothing is written.

    Where nobody says how important a channel is, layers compete for a budget by what the loss loses with a channel, if
    there are images whose labels fit the model, otherwise by their weights; of a layer the channels stay that say
    different things of the images, without images those with the largest weights.

    Args:
        found: The model.
        wish: What is wanted of it.
        reading: What it is looked at with.
        clock: What says how long it takes, where a latency is wanted: see :func:`timed`.
        passes: A manager to run the passes in.

    Raises:
        InputError: The request changes nothing, or does not go with the model.
        PassError: The smaller model is not the masked one.
    """
    read, shape = _looked(found, reading)
    own = read.preprocessing[MODEL]
    ways = [BY_WEIGHTS] if read.dataset is None else [*([BY_LABELS] if wish.goes_on else []), BY_IMAGES, BY_WEIGHTS]
    ways = [wish.by] if wish.by is not None else ways
    examples = _Examples()
    known: Said = {}
    if read.dataset is not None and any(CRITERIA.get(one).needs_batch for one in measures(ways[0])):
        examples = _examples(found, read.dataset, reading, shape=shape, view=own.view(read.shape[2:]))

    def make(*limits: Limit, timing: Timing | None = None) -> ShrunkResult:
        told = list[Diagnostic]()
        for by, instead in zip(ways, (*ways[1:], None), strict=True):
            try:
                made = made_by(by, *limits, timing=timing)
                break
            except CriterionError as why:
                if instead is None:
                    raise
                told.append(_instead(instead, str(reading.data), why.what))
        return replace(made, diagnostics=(*told, *made.diagnostics))

    def made_by(by: str, *limits: Limit, timing: Timing | None) -> ShrunkResult:
        return shrink_model(
            found.module, input_shape=shape, keep=wish.keep, limits=(*limits, *wish.limits), ranking=wish.ranking,
            floor=wish.floor, scopes=wish.scopes, criterion=by, round_to=wish.round_to, protect=wish.protect,
            only=wish.only, seed=wish.seed, before=wish.before, roughly=wish.roughly, passes=passes,
            timing=timing, batch=examples.batch, loss=examples.loss, known=known, entry=examples.entry,
        )  # fmt: skip

    if wish.latency is None or clock is None:
        made = make()
    else:
        made = clock.search(wish.latency, lambda limit, timing: make(limit, timing=timing))
    made = replace(made, diagnostics=(*examples.remarks, *made.diagnostics))
    if own.source.normalisation in ("", "the data"):  # which the file does not say
        geometry = {"size": own.size, "resize": own.resize, "interpolation": own.interpolation}
        said = reading.wishes.crop is not None or reading.wishes.interpolation is not None
        stored = found.preprocessing or (own.changed(mean=[], std=[], range=1) if said else None)
        return made, stored and stored.changed(**geometry)
    return made, own


def _instead(by: str, data: str, why: str) -> Diagnostic:
    """The remark that importance is less than it is where there are images and labels."""
    what = "channels are chosen" if by == BY_WEIGHTS else "how wide layers become is decided"
    return Diagnostic(
        code="by-weights", severity="note", where=data, why=f"{what} by their weights alone ({BY_WEIGHTS}): {why}"
    )


class _Examples(NamedTuple):
    """What criteria read: images as the model takes them and labels, what these say of which of its outputs."""

    batch: Examples | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    entry: str = ""
    remarks: tuple[Diagnostic, ...] = ()


def _examples(
    found: LoadedModel, dataset: Dataset, reading: Reading, *, shape: tuple[int, ...], view: View
) -> _Examples:  # fmt: skip
    task, spec, one = TASKS.get(reading.task), str(reading.data), (1, *shape[1:])
    dataset = fitting.mapped(
        dataset, reading.class_map, found.module, task, input_shape=one, spec=spec, entry=reading.entry,
        own=found.metadata.get("classes"),
    )  # fmt: skip
    if reading.seed is not None:
        planned = defaults(spec, dataset=dataset, task=task, val=reading.val, seed=reading.seed)
        dataset = division.divided(dataset, planned)
    hint = "give data for this model, or choose --by l1"
    try:
        fit = fitting.fits(found.module, dataset, task, input_shape=one, spec=spec, entry=reading.entry, must=False)
    except ModelError as cause:  # it takes images of another precision, or batches of one size alone
        fit, hint = fitting.Fit(reading.entry or "", wrong=cause.what), cause.hint
    remarks = fitting.undecided(MODEL, fit, "compress --teacher-output")

    def unlike(_prediction: Tensor, _targets: Tensor) -> Tensor:
        raise CriterionError(fit.wrong, where=f"data {spec}", hint=hint)

    first = first_batch(dataset)
    loss = unlike if fit.wrong else supervised_loss(task)
    return _Examples((seen(first["images"], view), first["labels"]), loss, fit.entry, remarks)


@contextmanager
def timed(found: LoadedModel, wish: Wish, reading: Reading, table: Path | None = None) -> Iterator[Clock | None]:
    """What says how long a model takes and what is made of it; None where no latency is wanted.

    Args:
        found: The original.
        wish: What is wanted of it.
        reading: What it is looked at with.
        table: A file with times of layers, or None.

    Raises:
        InputError: As :func:`fxdistill.runtime.smaller.latency_search.clock_of`.
    """
    if wish.latency is None:
        yield None
        return
    with clock_of(found.module, _looked(found, reading)[1], wish.latency.provider, table=table) as held:
        yield held


def since(held: Clock | None, found: LoadedModel, reading: Reading) -> Clock | None:
    """The same for what was made of the original by now."""
    return None if held is None else held.of(found.module, _looked(found, reading)[1])


def size_of(found: LoadedModel, reading: Reading) -> Size:
    """What a model costs as it is read."""
    traced = Trace(_looked(found, reading)[1])(found.module).value
    return Size(sum(one.numel() for one in found.module.parameters()), traced.macs_of_image)


def _looked(found: LoadedModel, reading: Reading) -> tuple[preprocess.Seen, tuple[int, ...]]:
    """The data, and the shape of a batch as the model reads it."""
    read = preprocess.look(
        {MODEL: found}, reading.data, task=TASKS.get(reading.task), wishes={MODEL: reading.wishes},
        shape=reading.input_shape, allow=reading.allow,
    )  # fmt: skip
    batch = reading.batch or (reading.input_shape or found.input_shape or (1,))[0]
    return read, (batch, read.shape[1], *read.preprocessing[MODEL].size)


def write(
    made: ShrunkResult, path: Path, *, of: LoadedModel, preprocessing: Preprocessing | None, metadata: Mapping[str, Any]
) -> None:  # fmt: skip
    """Write a smaller model: a bundle, or, where the file's name ends in .pt2, a program of ``torch.export``.

    A bundle says of its task and classes what the file of the original says.
    """
    if path.suffix == ".pt2":
        pt2.save(made.module, path, input_shape=made.input_shape)
        return
    said = {key: value for key, value in of.metadata.items() if key in ("task", "classes")}
    bundle.save(
        made.module, path, input_shape=made.input_shape, preprocessing=preprocessing, metadata={**said, **metadata}
    )  # fmt: skip

"""A model made smaller by itself: what ``fxdistill shrink`` does, with the same defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from fxdistill.compiler.shrink_model import ShrunkResult, shrink_model, supervised_loss
from fxdistill.criteria import CRITERIA
from fxdistill.data.batches import first_batch
from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.contract import PassManager
from fxdistill.ir.cost import Limit, limits_of
from fxdistill.ir.views import seen
from fxdistill.modelfiles import bundle, pt2
from fxdistill.modelfiles.load import LoadedModel
from fxdistill.passes.thin.search import Ranking
from fxdistill.preprocessing import Preprocessing, Wishes
from fxdistill.runtime import preprocess
from fxdistill.runtime.deploy import MODEL, as_loaded
from fxdistill.tasks import TASKS


@dataclass(frozen=True)
class Wish:
    """How much of a model is to stay, and which channels; see :func:`shrink`.

    Attributes:
        keep: Share of the channels to keep.
        limits: What the model may cost instead.
        ranking: What competes.
        floor: The least share of its channels that a layer keeps.
        scopes: Parts with a share of their own.
        by: Importance of a channel, by name.
        round_to: Widths become multiples of this.
        protect: Paths whose channels stay.
        only: Paths of the modules to prune.
        seed: Seed of criteria that draw, and of the proof.
    """

    keep: float | None = None
    limits: tuple[Limit, ...] = ()
    ranking: Ranking | None = None
    floor: float | None = None
    scopes: tuple[tuple[str, float], ...] = ()
    by: str = "l1"
    round_to: int = 1
    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Reading:
    """What a model is looked at with.

    Attributes:
        data: A data spec; None for none.
        task: What the data is for.
        input_shape: Shape of one batch; None for that of the file or the data.
        wishes: What is to be other than model and data say of the preprocessing.
        allow: Modules whose factories may be called.
    """

    data: str | None = None
    task: str = "classification"
    input_shape: tuple[int, ...] | None = None
    wishes: Wishes = field(default_factory=Wishes)
    allow: tuple[str, ...] = ()


def shrunk(
    found: LoadedModel, wish: Wish, reading: Reading, *, passes: PassManager | None = None
) -> tuple[ShrunkResult, Preprocessing | None]:
    """A model made smaller, and what it does to an image before it looks at it; nothing is written.

    Raises:
        InputError: The request changes nothing, or does not go with the model.
        PassError: The smaller model is not the masked one.
    """
    task = TASKS.get(reading.task)
    read = preprocess.look(
        {MODEL: found}, reading.data, task=task, wishes={MODEL: reading.wishes}, shape=reading.input_shape,
        allow=reading.allow,
    )  # fmt: skip
    own = read.preprocessing[MODEL]
    shape = ((reading.input_shape or found.input_shape or (1,))[0], read.shape[1], *own.size)
    first = first_batch(read.dataset) if read.dataset is not None and CRITERIA.get(wish.by).needs_batch else None
    examples = None if first is None else (seen(first["images"], own.view(read.shape[2:])), first["labels"])
    made = shrink_model(
        found.module, input_shape=shape, keep=wish.keep, limits=wish.limits, ranking=wish.ranking, floor=wish.floor,
        scopes=wish.scopes, criterion=wish.by, round_to=wish.round_to, protect=wish.protect, only=wish.only,
        seed=wish.seed, passes=passes, batch=examples, loss=supervised_loss(task),
    )  # fmt: skip
    return made, own if own.source.normalisation not in ("", "the data") else found.preprocessing


def write(made: ShrunkResult, path: Path, *, preprocessing: Preprocessing | None, metadata: Mapping[str, Any]) -> None:
    """Write a smaller model: a bundle, or, where the file's name ends in .pt2, a program of ``torch.export``."""
    if path.suffix == ".pt2":
        pt2.save(made.module, path, input_shape=made.input_shape)
        return
    bundle.save(
        made.module, path, input_shape=made.input_shape, preprocessing=preprocessing, metadata=dict(metadata)
    )  # fmt: skip


def shrink(
    model: str | Path | nn.Module, path: str | Path | None = None, *, keep: float | None = None,
    macs: float | None = None, params: float | None = None, ranking: Ranking | None = None, floor: float | None = None,
    scopes: Mapping[str, float] = MappingProxyType({}), by: str = "l1", round_to: int = 1,
    protect: Sequence[str] = (), only: Sequence[str] = (), data: str | None = None, task: str = "classification",
    input_shape: tuple[int, ...] | None = None, factory: str | None = None, args: Sequence[str] = (), seed: int = 0,
    allow: Sequence[str] = (), trust_code: bool = False, passes: PassManager | None = None,
    checkpoint_entry: str | None = None,
) -> ShrunkResult:  # fmt: skip
    """Make a model physically smaller, and prove that it is the masked original; the model is not changed.

    Args:
        model: A file, a factory, or a module of your own.
        path: The file to write: a bundle, or, where its name ends in .pt2, a program of ``torch.export``, which needs
            nothing of ours; None to write nothing.
        keep: Share of the channels to keep, in (0, 1).
        macs: Multiply-accumulates that it may have instead; below 1 a share of the model's own. Met within 2 %.
        params: Parameters that it may have, likewise. With both, neither is exceeded.
        ranking: What competes: ``global`` (all channels), ``isomorphic`` (those of layers alike) or ``uniform`` (those
            of one layer); None for ``uniform`` with ``keep`` and ``global`` with a budget.
        floor: The least share of its channels that a layer keeps; None for 0 with ``keep``, 0.1 with a budget.
        scopes: Parts with a share of their own, by module or node path; 1 keeps all of it.
        by: Importance of a channel, by name.
        round_to: Widths become multiples of this.
        protect: Module or node paths whose channels stay.
        only: Paths of the modules to prune; empty for the whole model.
        data: A data spec, for criteria that read data.
        task: What the data is for.
        input_shape: Shape of one batch; None for that of the file or the data.
        factory: As for :func:`fxdistill.evaluate`.
        args: As for :func:`fxdistill.evaluate`.
        seed: Seed of criteria that draw, and of the proof.
        allow: As for :func:`fxdistill.evaluate`.
        trust_code: As for :func:`fxdistill.evaluate`.
        passes: A manager to run the passes in, for its timings and remarks.
        checkpoint_entry: As for :func:`fxdistill.evaluate`.

    Raises:
        InputError: The model cannot be found or loaded, or the request changes nothing.
        PassError: The smaller model is not the masked one; nothing was written.
    """
    found = as_loaded(
        model, factory=factory, args=args, seed=seed, allow=allow, trust_code=trust_code, entry=checkpoint_entry
    )
    wish = Wish(
        keep=keep, limits=limits_of(macs=macs, parameters=params), ranking=ranking, floor=floor,
        scopes=tuple(scopes.items()), by=by, round_to=round_to, protect=tuple(protect), only=tuple(only), seed=seed,
    )  # fmt: skip
    reading = Reading(data=data, task=task, input_shape=input_shape, allow=tuple(allow))
    made, preprocessing = shrunk(found, wish, reading, passes=passes)
    if path is not None:
        metadata = {bundle.RANDOM_WEIGHTS: True} if found.random_weights else {}
        write(made, Path(path), preprocessing=preprocessing, metadata=metadata)
    if not found.random_weights:
        return made
    remark = Diagnostic(
        code="random-weights", severity="warning", where=str(model),
        why="these are random weights: as a teacher the file cannot be run", hint="shrink a file of a trained model",
    )  # fmt: skip
    return replace(made, diagnostics=(*made.diagnostics, remark))

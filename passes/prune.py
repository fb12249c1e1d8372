"""Prune: which teacher channels to keep, written into the plan only; no weight is touched.

The importance of a coupled class is what the criterion says (:mod:`fxdistill.criteria`), one shot. A pair keeps the
``k`` most important channels of its teacher tap, ``k`` being the student's width, in their original order. Ties go to
the lower class. Every tap ranks classes alike, so where two taps share channels, what one keeps of these contains what
the other keeps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from fxdistill.criteria import CRITERIA, importance
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InvariantError, PairingError, PlanError
from fxdistill.ir.channels import Channels, Examples
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced
from fxdistill.plan.schema import Kept, Pair


@dataclass(frozen=True)
class PruneSource:
    """The traced teacher, its coupled channels, and the pairs.

    Attributes:
        teacher: The traced teacher.
        coupling: Its coupled channels.
        pairs: All pairs; the sliced ones are pruned.
        batch: Images and targets, for criteria that read gradients or activations.
        loss: What the targets say about a prediction, for the same.
    """

    teacher: Traced
    coupling: Coupling
    pairs: tuple[Pair, ...]
    batch: Examples | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy


@dataclass(frozen=True)
class Prune(Pass[PruneSource, tuple[Kept, ...]]):
    """Choose the kept channels of every sliced pair.

    Attributes:
        criterion: The name of one of :mod:`fxdistill.criteria`.
        seed: Seed of what is random in it.
    """

    criterion: str = "l1"
    seed: int = 0

    def requires(self, source: PruneSource) -> None:
        """A criterion that exists, whether or not a pair is sliced."""
        del source
        CRITERIA.get(self.criterion, where="criterion", error=PlanError)

    def run(self, source: PruneSource) -> PassResult[tuple[Kept, ...]]:
        """One entry a sliced pair, in the order of the pairs.

        Raises:
            PairingError: The channels of a tap are not known.
            InputError: The criterion is unknown, or cannot say anything.
            InvariantError: The criterion touched a weight.
        """
        sliced = [pair for pair in source.pairs if pair.align == "slice"]
        if not sliced:
            return PassResult((), modified=False)
        asked = frozenset(class_id for pair in sliced for class_id in source.coupling.classes(pair.teacher.path))
        channels = Channels(
            source.teacher, source.coupling, batch=source.batch, seed=self.seed, loss=source.loss, asked=asked
        )
        scores = importance(self.criterion, channels)
        kept = tuple(self._kept(pair, source, scores) for pair in sliced)
        remarks = tuple(_unscored(one, source.coupling, scores) for one in kept)
        return PassResult(kept, modified=True, diagnostics=tuple(r for r in remarks if r is not None))

    def ensures(self, source: PruneSource, value: tuple[Kept, ...]) -> None:
        """One entry a sliced pair, with as many channels as the student has; nested where taps share channels."""
        sliced = [pair for pair in source.pairs if pair.align == "slice"]
        if [one.pair for one in value] != [pair.name for pair in sliced]:
            raise InvariantError(
                f"channels are kept for {_listed([one.pair for one in value])}, but the sliced pairs are "
                f"{_listed([pair.name for pair in sliced])}"
            )
        for pair, one in zip(sliced, value, strict=True):
            _check(pair, one, source.coupling)
        for index, one in enumerate(value):
            for other in value[:index]:
                _check_nested(one, other, source.coupling)

    def _kept(self, pair: Pair, source: PruneSource, scores: Tensor) -> Kept:
        path = pair.teacher.path
        classes = source.coupling.classes(path)
        if len(classes) != pair.teacher.width:
            raise PairingError(
                f"the channels of '{path}' are not known, so they cannot be sliced", where=f"pair {pair.name}",
                hint="pair another node, or use --align project",
            )  # fmt: skip
        values = scores[list(classes)].tolist()
        ranked = sorted(range(len(classes)), key=lambda i: (-values[i], classes[i], i))
        channels = sorted(ranked[: pair.student.width])
        return Kept(
            pair=pair.name, path=path, channels=channels, width=len(classes), criterion=self.criterion,
            coupled=coupled_modules(source.coupling, classes),
        )  # fmt: skip


def _check(pair: Pair, kept: Kept, coupling: Coupling) -> None:
    """One entry against its pair and the tap."""
    where, width = f"pair {pair.name}", len(coupling.classes(pair.teacher.path))
    if (kept.path, kept.width) != (pair.teacher.path, width):
        raise InvariantError(
            f"channels are kept of '{kept.path}' with {kept.width} channels, but the tap is '{pair.teacher.path}' "
            f"with {width}", where=where,
        )  # fmt: skip
    if kept.channels != sorted(set(kept.channels)):
        raise InvariantError(f"the kept channels of '{kept.path}' are not in order, each once", where=where)
    if len(kept.channels) != pair.student.width:
        raise InvariantError(
            f"{len(kept.channels)} channels of '{kept.path}' are kept, but the student has {pair.student.width}",
            where=where,
        )
    if kept.channels and not (kept.channels[0] >= 0 and kept.channels[-1] < width):
        raise InvariantError(f"a kept channel of '{kept.path}' is not one of its {width} channels", where=where)


def _check_nested(one: Kept, other: Kept, coupling: Coupling) -> None:
    """Of the classes that two taps share, one keeps all that the other keeps."""
    classes = coupling.classes(one.path), coupling.classes(other.path)
    shared = set(classes[0]) & set(classes[1])
    first, second = ({ids[i] for i in kept.channels} & shared for kept, ids in zip((one, other), classes, strict=True))
    if not (first <= second or second <= first):
        raise InvariantError(
            f"the kept channels of '{one.pair}' and '{other.pair}' are not nested, though '{one.path}' and "
            f"'{other.path}' share channels", where=f"pair {one.pair}",
        )  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def coupled_modules(coupling: Coupling, classes: tuple[int, ...]) -> list[str]:
    """The modules whose outputs are coupled with these classes, sorted."""
    slices = (one for class_id in classes[:1] for one in coupling.slices(class_id))
    return sorted({one.path for one in slices if one.kind == "out"})


def _unscored(kept: Kept, coupling: Coupling, scores: Tensor) -> Diagnostic | None:
    if len(kept.channels) == kept.width or bool(scores[list(coupling.classes(kept.path))].any()):
        return None
    return Diagnostic(
        code="no-importance", severity="warning", where=kept.path,
        why=f"the criterion '{kept.criterion}' says nothing about these channels: all count alike, the first are kept",
    )  # fmt: skip

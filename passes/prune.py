"""Prune: which teacher channels to keep, written into the plan only; no weight is touched.

The importance of a coupled class is summed over its members, the weights that produce its channels:

    importance(c) = Σ over weights W, over filters f of W in class c of |W[f]|_1

as in InDistill (L1 norm of filters, one shot; :mod:`fxdistill.passes.importance`). A pair keeps the ``k`` most
important channels of its teacher tap, ``k`` being the student's width, in their original order. Taps of different
width in one class rank the same channels alike, so their kept sets are nested.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InvariantError, PairingError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced
from fxdistill.passes.importance import importance
from fxdistill.plan.schema import Kept, Pair


@dataclass(frozen=True)
class PruneSource:
    """The traced teacher, its coupled channels, and the pairs."""

    teacher: Traced
    coupling: Coupling
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Prune(Pass[PruneSource, tuple[Kept, ...]]):
    """Choose the kept channels of every sliced pair.

    Attributes:
        criterion: See :mod:`fxdistill.passes.importance`; ``taylor`` uses the gradients that lie in ``.grad``.
    """

    criterion: str = "l1"

    def run(self, source: PruneSource) -> PassResult[tuple[Kept, ...]]:
        """One entry a sliced pair, in the order of the pairs."""
        scores = importance(source.teacher, source.coupling, criterion=self.criterion)
        kept = tuple(self._kept(pair, source, scores) for pair in source.pairs if pair.align == "slice")
        remarks = tuple(_unscored(one, source.coupling, scores) for one in kept)
        return PassResult(kept, modified=bool(kept), diagnostics=tuple(r for r in remarks if r is not None))

    def ensures(self, source: PruneSource, value: tuple[Kept, ...]) -> None:
        """As many channels as the student has, and nested sets where taps share their channels."""
        for one in value:
            for other in value:
                same = source.coupling.classes(one.path) == source.coupling.classes(other.path)
                if same and len(one.channels) <= len(other.channels) and not set(one.channels) <= set(other.channels):
                    raise InvariantError(f"the kept channels of '{one.pair}' and '{other.pair}' are not nested")

    def _kept(self, pair: Pair, source: PruneSource, scores: Tensor) -> Kept:
        path = pair.teacher.path
        classes = source.coupling.classes(path)
        if len(classes) != pair.teacher.width:
            raise PairingError(
                f"the channels of '{path}' are not known, so they cannot be sliced", where=f"pair {pair.name}",
                hint="pair another node, or use --align project",
            )  # fmt: skip
        ranked = torch.argsort(scores[list(classes)], descending=True, stable=True)
        channels = sorted(ranked[: pair.student.width].tolist())
        return Kept(
            pair=pair.name, path=path, channels=channels, width=len(classes), criterion=self.criterion,
            coupled=coupled_modules(source.coupling, classes),
        )  # fmt: skip


def coupled_modules(coupling: Coupling, classes: tuple[int, ...]) -> list[str]:
    """The modules whose outputs are coupled with these classes, sorted."""
    members = (member for class_id in classes[:1] for member in coupling.members(class_id))
    return sorted({member.path for member in members if member.kind == "out"})


def _unscored(kept: Kept, coupling: Coupling, scores: Tensor) -> Diagnostic | None:
    if len(kept.channels) == kept.width or float(scores[list(coupling.classes(kept.path))].max()) > 0:
        return None
    return Diagnostic(
        code="no-importance", severity="warning", where=kept.path,
        why="no weight produces these channels, so all count alike and the first ones are kept",
    )  # fmt: skip


__all__ = ["Prune", "PruneSource", "coupled_modules", "importance"]

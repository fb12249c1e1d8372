"""Which classes are removed, as output indices of the weights that lose some: a decision that a file holds."""

from collections.abc import Iterable

import torch

from fxdistill.errors import InputError
from fxdistill.ir.coupling import Coupling

KeptIndices = dict[str, list[int]]
"""For each weight that loses outputs the indices that it keeps, along its output dimension."""


def kept_indices(coupling: Coupling, removed: Iterable[int]) -> KeptIndices:
    """The output indices that each weight keeps, for the weights that lose some."""
    gone = torch.zeros(coupling.class_count + 1, dtype=torch.bool)
    gone[sorted(removed)] = True
    kept = {}
    for name, classes in coupling.producers():
        alive = ~gone[classes]
        if not bool(alive.all()):
            kept[name] = [int(i) for i in alive.nonzero().flatten().tolist()]
    return kept


def removed_of(coupling: Coupling, kept: KeptIndices) -> frozenset[int]:
    """The classes that are removed where weights keep these output indices: a decision replayed.

    Raises:
        InputError: The indices are not of this architecture.
    """
    removed: set[int] = set()
    producers = dict(coupling.producers())
    for name, indices in kept.items():
        if name not in producers:
            raise InputError(
                f"the model has no producing weight '{name}'", where=name, hint="give the model it was made for"
            )
        classes = producers[name]
        alive = torch.zeros(len(classes), dtype=torch.bool)
        if not all(0 <= i < len(classes) for i in indices):
            raise InputError(f"an index is out of range for '{name}', which has {len(classes)} outputs", where=name)
        alive[indices] = True
        removed |= set(classes[~alive].tolist())
    return frozenset(removed)

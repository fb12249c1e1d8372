"""How often two models say the same, and how far apart they are, image by image: from batches, or from all at once.

In retrieval an image's answer is how it lies to the others: of a batch alone that would be another number for every
batch size, so that directions are kept until all of them are there.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fxdistill.tasks import Task


class Agreeing:
    """Takes in what two models say of the same images, batch after batch.

    Args:
        task: What their predictions are.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.images = task, 0
        self._agreeing = self._total = 0
        self._distances: list[Tensor] = []
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Take in both predictions for a batch."""
        self.images += len(ours)
        if self.task.relates:
            self._kept.append((self.task.says(ours), self.task.says(theirs)))
        else:
            self._take(ours, theirs)

    def _take(self, ours: Tensor, theirs: Tensor) -> None:
        agreed = self.task.agreement(ours, theirs)
        self._agreeing, self._total = self._agreeing + agreed.agreeing, self._total + agreed.total
        self._distances.append(self.task.distance(ours, theirs))

    def found(self) -> tuple[float | None, Tensor]:
        """The share of what they say that is the same, None where that is numbers; and the distances, (images,)."""
        if self._kept:
            self._take(*map(torch.cat, self._parts()))
            self._kept.clear()
        return self._agreeing / self._total if self._total else None, torch.cat(self._distances)

    def _parts(self) -> Iterator[tuple[Tensor, ...]]:
        yield from zip(*self._kept, strict=True)

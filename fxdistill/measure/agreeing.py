"""How often two models say the same, and how far apart they are, image by image: from batches, or from all at once.

In retrieval an image's answer is how it lies to the others: of a batch alone that would be another number for every
batch size, so that directions are kept until all of them are there.
"""

import numpy as np
import torch
from torch import Tensor

from fxdistill.tasks import Agreement, Task


class Agreeing:
    """Takes in what two models say of the same images, batch after batch.

    Args:
        task: What their predictions are.
        apart: Whether distances are wanted as well.
    """

    def __init__(self, task: Task, *, apart: bool = False) -> None:
        self.task, self.apart, self.images = task, apart, 0
        self._found = Agreement(0, 0)
        self._distances: list[Tensor] = []
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Take in both predictions for a batch; ``ours`` is the reference."""
        self.images += len(ours)
        if self.task.relates:
            self._kept.append((self.task.says(ours), self.task.says(theirs)))
        else:
            self._take(ours, theirs)

    def _take(self, ours: Tensor, theirs: Tensor) -> None:
        so_far, agreed = self._found, self.task.agreement(ours, theirs)
        widest = float(np.maximum(so_far.widest, agreed.widest))  # unlike max, it keeps a NaN
        self._found = Agreement(so_far.agreeing + agreed.agreeing, so_far.total + agreed.total, widest)
        if self.apart:
            self._distances.append(self.task.distance(ours, theirs))

    def found(self) -> Agreement:
        """How far they say the same of all images."""
        if self._kept:
            ours, theirs = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
            self._kept.clear()
            self._take(ours, theirs)
        return self._found

    def distances(self) -> Tensor:
        """How far apart they are, image by image: (images,)."""
        self.found()
        return torch.cat(self._distances)

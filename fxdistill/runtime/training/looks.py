"""How training images look: the views of them that a run shows, one an epoch, and a hash of what each looks like.

A view of an image is a function of the plan's seed, the view and the image (:mod:`fxdistill.data.batches`), whatever
arm, seed and epoch meets it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fxdistill.data.batches import Batch, batches, size_in_training, view_of
from fxdistill.data.dataset import Images

_AT_ONCE = 1 << 21  # pixels that are hashed at once


@dataclass(frozen=True)
class Looks:
    """The training images, as they look.

    Attributes:
        split: The images.
        batch_size: Images a training step at most; see :mod:`fxdistill.data.batches`.
        augment: Names of augmentations.
        views: How many views of an image there are; None for a new one in every epoch.
        seed: What they are drawn under.
        moves_targets: Whether labels are maps that move with the images.
        classes: Number of classes.
        device: Where they are wanted.
    """

    split: Images
    batch_size: int
    augment: tuple[str, ...]
    views: int | None
    seed: int
    moves_targets: bool
    classes: int
    device: torch.device

    @property
    def size(self) -> int:
        """Images of a training batch."""
        return size_in_training(self.split, self.batch_size)

    @property
    def steps(self) -> int:
        """Batches that hold all images."""
        return -(-len(self.split) // self.size)

    def view(self, epoch: int) -> int:
        """Which view an epoch shows."""
        return view_of(epoch, self.views if self.augment else 1)

    def batches(self, view: int, start: int = 0) -> Iterator[Batch]:
        """The batches of all images in order in one view, from one on."""
        return batches(
            self.split, self.size, seed=self.seed, epoch=view, start=start, augment=self.augment,
            moves_targets=self.moves_targets, classes=self.classes, device=self.device,
        )  # fmt: skip


def fingerprints(images: Tensor) -> Tensor:
    """A hash of each image's pixels: (N, ...) float32 to (N,) int64.

    A sum of the numbers' bits, each times an odd number of its place's own, modulo 2^64.
    """
    bits = images.to(torch.float32).contiguous().flatten(1).view(torch.int32)
    places = torch.arange(1, bits.shape[1] + 1, device=images.device, dtype=torch.int64) * -7046029254386353131
    weights = (places ^ (places >> 29)) * -4658895280553007687 | 1
    few = max(1, _AT_ONCE // max(1, bits.shape[1]))
    return torch.cat([(part.to(torch.int64) * weights).sum(1) for part in bits.split(few)])

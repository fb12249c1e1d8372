"""What a chain of augmentations makes of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fxdistill.data.augmentations import AUGMENTATIONS, Named
from fxdistill.data.augmentations._draws import Draws
from fxdistill.errors import DataError, InvariantError


def augmented(
    chain: Sequence[Named], images: Tensor, labels: Tensor, *, seed: int, view: int, index: Tensor,
    fill: float | None = None, classes: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Images and labels after all augmentations, in order.

    Args:
        chain: The augmentations.
        images: (N, C, H, W), uint8 or float in 0 … 1.
        labels: (N, ...).
        seed: Seed of the plan.
        view: Which view of the images.
        index: (N,) the images' positions in the split.
        fill: What says that there is no label, for labels that are maps and move along; None for all others.
        classes: Number of classes, for what mixes labels.

    Raises:
        DataError: An augmentation of another distribution failed, or changed the shape of images.
    """
    for place, one in enumerate(chain):
        with AUGMENTATIONS.called(one.name, error=DataError):
            change = one.draw(images.shape, Draws.of(seed, view, index, what=f"augmentation {place}"))
            changed = change(images)
            if changed.shape != images.shape:
                raise InvariantError(f"it makes images {tuple(changed.shape)} of {tuple(images.shape)}")
        images = changed
        if fill is not None and one.augmentation.moves_pixels:
            labels = change(labels, fill=fill)
        if one.augmentation.mixes:
            labels = change(labels if labels.is_floating_point() else rows(labels, classes))
    return images, labels


def rows(labels: Tensor, classes: int) -> Tensor:
    """Class numbers (N,) as rows (N, classes) of shares, float32; zeros where there is no label."""
    places = torch.arange(classes, device=labels.device)
    return (labels[:, None] == places).to(torch.float32)

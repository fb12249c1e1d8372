"""What tasks over classes share: class numbers one an image, and two models' choices among classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fxdistill.tasks import NO_LABEL, Agreement


def wrong_numbers(targets: Tensor, classes: int) -> str:
    """What is wrong with class numbers (N,), one an image, -100 where it has none; '' where nothing is."""
    if targets.ndim != 1 or targets.is_floating_point():
        return f"labels are {targets.dtype} of shape {tuple(targets.shape)}; give one whole number an image"
    return wrong_range(targets, classes)


def wrong_range(numbers: Tensor, classes: int) -> str:
    """What is wrong with class numbers of any shape, at least one that is no -100; '' where nothing is."""
    known = numbers[numbers != NO_LABEL]
    lowest, highest = int(known.min()), int(known.max())
    if lowest < 0:
        return f"the label {lowest} is negative; number the classes from 0, with {NO_LABEL} or -1 for no label"
    return f"the label {highest} has no name; there are {classes} classes" if classes and highest >= classes else ""


def wrong_logits(output: Tensor, classes: int, size: Sequence[int] = ()) -> str:
    """What is wrong with logits (images, classes, *size); '' where nothing is."""
    if output.ndim != 2 + len(size) or output.shape[2:] != tuple(size):
        wanted = ", ".join(map(str, ("images", "classes", *size)))
        return f"the model answers with a tensor of shape {tuple(output.shape)}, not with logits ({wanted})"
    if classes and output.shape[1] != classes:
        return f"the model answers with {output.shape[1]} classes, the data has {classes} classes"
    return ""


def same_choices(ours: Tensor, theirs: Tensor) -> Agreement:
    """Equal largest entries along dimension 1, the classes; every other position is a choice of its own."""
    own, other = ours.argmax(1), theirs.argmax(1)
    same = own == other
    gaps = ours.amax(1) - ours.gather(1, other.unsqueeze(1)).squeeze(1)
    return Agreement(int(same.sum()), same.numel(), float(torch.where(same, 0, gaps).max()))

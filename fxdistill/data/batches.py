"""Batches of pixels on a device, each a mapping of its fields. What a model makes of pixels is its preprocessing.

Data that fits is a tensor on the device, augmented there; larger image folders are read by a ``DataLoader``.
**The order is a pure function of (seed, epoch), and what an image looks like one of (the plan's seed, view, image)**;
neither comes from the global state. A run that resumes at any step sees bit for bit what an undisturbed run would have
seen, and all arms and seeds see the same of an image in the same epoch.

    view(epoch)               = epoch, modulo how many views there are, if that is limited
    index(seed, epoch, step)  = permutation(seed, epoch)[step]
    images(seed, epoch, step) = augment(all images[index], the plan's seed, view, index)
    labels(seed, epoch, step) = all labels[index], augmented in the same way where they are maps

A training epoch of N images in batches of at most B has K = ceil(N / B) batches **of one size**, floor(N / K). Fewer
than K images are left out of it, others in each epoch, and no small batch is left over: a loss that compares the images
of a batch grows as the batch shrinks (PKT's rows of probabilities sum to 1, so its mean over B x B entries goes with
1 / B), and Adam would remember a last batch of B / 8 for hundreds of steps.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fxdistill import checking
from fxdistill.data import augmentations
from fxdistill.data.augmentations._apply import augmented
from fxdistill.data.augmentations._draws import Draws
from fxdistill.data.dataset import FORM, Dataset, Device, Images, Split, malformed
from fxdistill.errors import DataError, InputError
from fxdistill.tasks import NO_LABEL, labelled

Batch = dict[str, Tensor]
_VALUES = 1 << 23
"""Of pixels that are augmented at once on a GPU."""


def steps_per_epoch(split: Images, batch_size: int) -> int:
    """Batches of a training epoch."""
    count = len(split)
    steps = -(-count // batch_size)
    return steps if count >= 2 * steps else max(1, count // batch_size)  # BatchNorm cannot be trained on one image


def size_in_training(split: Images, batch_size: int) -> int:
    """Images of each batch of a training epoch: as many as a batch may have, or a few less."""
    return min(batch_size, len(split) // steps_per_epoch(split, batch_size))


@checking.checked()
def batches(
    split: Images, batch_size: int, *, seed: int = 0, epoch: int = 0, start: int = 0, shuffle: bool = False,
    augment: Sequence[str] = (), augment_seed: int | None = None, views: int | None = None,
    moves_targets: bool = False, classes: int = 0, device: Device = "cpu", part: Callable[[int], slice] | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of one epoch from a step on; see the module docstring for what they depend on.

    Args:
        split: The images.
        batch_size: Images a batch at most. Shuffled, all are of one size; else the last one may be smaller.
        seed: Seed of the run.
        epoch: Number of the epoch.
        start: The first step to give.
        shuffle: Whether the order is a permutation drawn for the epoch.
        augment: Names of augmentations, applied in order.
        augment_seed: What they are drawn under: the plan's seed; None for ``seed``.
        views: How many views of an image there are; None for a new one in every epoch.
        moves_targets: Whether labels are maps (N, H, W) that move with the images, as the task says. What comes in at
            a border has no label there: -100, or not a number in maps of numbers that are not whole.
        classes: Number of classes, for augmentations that mix labels.
        device: Where the batches are wanted.
        part: Which rows of a batch of so many images are wanted; None for all. No others are read, unless
            augmentations mix them.

    Yields:
        ``images`` (n, C, H, W), float32 in 0 … 1; ``labels`` (n, ...), int64 or float32, rows of
        shares (n, classes) where they are mixed; ``index`` (n,), int64,
        the images' positions in the split.

    Raises:
        DataError: An augmentation is unknown, does not go with images of this size, or would leave maps of labels
            behind.
        InputError: What is given is no split, or there is no such batch size, step, number of views or device.
    """
    if not hasattr(split, "labels"):
        raise InputError(f"a {type(split).__name__} is no split", where="split", hint="give images, e.g. dataset.train")
    if isinstance(split, Split) and (wrong := malformed(split)):
        raise InputError(wrong, where="split", hint=FORM)
    for name, value, least in (("batch_size", batch_size, 1), ("start", start, 0), ("views", views, 1)):
        if value is not None:
            checking.number(value, least, name)
    try:
        device = torch.device(device)
    except RuntimeError as cause:
        raise InputError(f"'{device}' is no device", where="device", hint="give cpu, or cuda") from cause
    chain = drawable(split, augment, moves_targets=moves_targets)
    indices = order(split, batch_size, seed=seed, epoch=epoch, shuffle=shuffle)[start:]
    mixes = any(one.augmentation.mixes for one in chain)
    if part is not None and not mixes:
        indices = [chosen[part(len(chosen))] for chosen in indices]

    count = 1 if mixes else _at_once(split, batch_size, device)
    groups = [indices[first : first + count] for first in range(0, len(indices), count)]

    def produce() -> Iterator[Batch]:
        fill = torch.nan if split.labels.is_floating_point() else float(NO_LABEL)
        places = list(map(torch.cat, groups))
        for chosen, images, group in zip(places, split.read(places), groups, strict=True):
            x = images.to(device, non_blocking=True)
            labels = split.labels[chosen.to(split.labels.device)].to(device, non_blocking=True)
            x, labels = augmented(
                chain, x, labels, seed=seed if augment_seed is None else augment_seed, view=view_of(epoch, views),
                index=chosen, fill=fill if moves_targets else None, classes=classes,
            )  # fmt: skip
            x = x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x.to(torch.float32)
            index = chosen.to(device, non_blocking=True)
            found = {"images": x, "labels": labels, "index": index}
            first = 0
            for size in map(len, group):
                rows = part(size) if part is not None and mixes else slice(first, first + size)
                yield {name: value[rows] for name, value in found.items()}
                first += size

    return produce()


def _at_once(split: Images, batch_size: int, device: torch.device) -> int:
    """How many batches are made together, which changes nothing in them: on a GPU launching kernels is what takes time.

    What is read from files comes batch by batch.
    """
    if device.type == "cpu" or not isinstance(split, Split):
        return 1
    return max(1, _VALUES // (batch_size * math.prod(split.image_shape)))


def order(split: Images, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[Tensor]:
    """The positions in the split of the images of each batch of an epoch, on the CPU."""
    if not shuffle:
        places = torch.arange(len(split))
        return [places[first : first + batch_size] for first in range(0, len(split), batch_size)]
    places, size = torch.randperm(len(split), generator=_generator(seed, epoch)), size_in_training(split, batch_size)
    return [places[step * size : (step + 1) * size] for step in range(steps_per_epoch(split, batch_size))]


def view_of(epoch: int, views: int | None) -> int:
    """Which view of an image an epoch shows."""
    return epoch if views is None else epoch % views


def first_batch(dataset: Dataset, size: int = 128) -> Batch:
    """The fields of a batch of training images, shuffled under seed 0; if some have no label, those that do first."""
    split = dataset.train
    known = labelled(split.labels).cpu()
    if bool(known.all()) or not bool(known.any()):
        return next(batches(split, size, shuffle=True))
    places = order(split, len(split), seed=0, epoch=0)[0]
    return next(batches(split.at(places[(~known[places]).argsort(stable=True)][:size]), size))


def drawable(split: Images, augment: Sequence[str], *, moves_targets: bool) -> tuple[augmentations.Named, ...]:
    """The augmentations of some images, each drawn once on trial: what cannot be drawn is found before training.

    Raises:
        DataError: As for :func:`batches`.
    """
    chain = augmentations.named(augment)
    are_maps = split.labels.shape[1:] == split.image_shape[1:]
    for name, found in zip(augment, chain, strict=True):
        found.draw((1, *split.image_shape), Draws.of(0, 0, torch.zeros(1), what=name))
        moves, warps = found.augmentation.moves_pixels, found.augmentation.warps
        if found.augmentation.mixes and (split.labels.ndim != 1 or split.labels.is_floating_point()):
            raise DataError(
                f"the augmentation '{name}' mixes classes, and the labels are no classes, one an image",
                where="data.augmentation", hint="leave it out",
            )  # fmt: skip
        if are_maps and (warps or (moves and not moves_targets)):
            raise DataError(
                f"the augmentation '{name}' would move the images and leave their maps of labels where they are",
                where="data.augmentation", hint="leave it out, or choose a task whose targets move along",
            )  # fmt: skip
    return chain


def _generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of an epoch's order; hashed, so that neighbours share nothing."""
    digest = hashlib.sha256(f"{seed},{epoch},-1".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

"""Images that a data set gives item by item, whatever each of them is, as a split like any other.

    item      = (image, target), {"image": …, "label": …}, or an image
    image     = a tensor (C, H, W), an array (H, W, C) or (H, W), an image of Pillow's: uint8, or float in 0 … 1
    target    = what the task wants of one image; None for no label

Items are read once when the data is loaded, which gives the labels; images are kept where they take less than 2 GiB,
and else read again by worker processes as they are wanted. All are brought to one size, as image files are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fxdistill.data.arrays import as_tensor
from fxdistill.data.dataset import Device, Images, Split, check_labels, wrong_pixels
from fxdistill.data.decoding import plain
from fxdistill.data.sources._images import COLOURS, IN_MEMORY, fitted, pixels
from fxdistill.data.workers import read_ahead
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import DataError, InputError
from fxdistill.preprocessing import USUAL_RESIZE, USUAL_SIZE, Reading
from fxdistill.tasks import Task

_IMAGES, _TARGETS = ("image", "img", "pixel_values"), ("label", "labels", "target")
_USUAL = Reading(USUAL_SIZE, USUAL_RESIZE)
_FEW, _TRIED, _CHUNK = 256, 8, 64


@dataclass(frozen=True)
class Items:
    """Images that a data set gives one by one.

    Attributes:
        source: The data set.
        where: Spec and split, for messages.
        task: What its targets are.
        reading: How all are brought to one size.
        whole: Whether pixels are uint8.
        target_shape: Shape of a target.
        labels: (N, ...); empty until all were read.
        positions: Which of the items these are.
    """

    source: Any
    where: str
    task: Task
    reading: Reading = _USUAL
    whole: bool = True
    target_shape: tuple[int, ...] = ()
    labels: Tensor = field(default_factory=lambda: torch.zeros(0))
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.reading.shape

    def begun(self, reading: Reading | None, *, like: Reading | None = None) -> "Items":
        """The same, with what the first items say about all."""
        count = len(self.source)
        if not count:
            raise DataError("the data set is empty", where=self.where, hint="check the factory")
        image, _ = self._item(0)
        target = next((found for i in range(min(count, _CHUNK)) if (found := self._item(i)[1]) is not None), None)
        how = like or self._reading(image, reading)
        size = self.target_shape if target is None else tuple(target.shape)
        size = how.size if self.task.moves_targets and len(size) == 2 else size
        return replace(
            self, reading=how, whole=image.dtype == torch.uint8, target_shape=size,
            positions=torch.arange(count),
        )  # fmt: skip

    def _reading(self, image: Tensor, reading: Reading | None) -> Reading:
        """What is asked for; but images that the first ones say are of one size and no larger keep it, as arrays do."""
        channels, height, width = image.shape
        first = range(1, min(len(self.source), _TRIED))
        small = reading is None or height < reading.size[0] or width < reading.size[1]
        if reading is None or (small and all(self._item(i)[0].shape[1:] == image.shape[1:] for i in first)):
            wanted = reading.channels if reading is not None and channels in COLOURS else channels
            return Reading((height, width), (height, width), channels=wanted)
        return reading

    def gathered(self) -> Images:
        """All items read once: in memory if they take less than 2 GiB; else the labels alone."""
        size = 1 if self.whole else 4
        keep = len(self.positions) * int(np.prod(self.image_shape)) * size <= IN_MEMORY
        workers = 0 if len(self.positions) <= _FEW else None
        images, labels = [], []
        for found in read_ahead(_Pairs(self), torch.split(self.positions, _CHUNK), workers=workers):
            images.extend([found[0]] if keep else [])
            labels.append(found[1])
        targets = torch.cat(labels)
        return Split(torch.cat(images), targets) if keep else replace(self, labels=targets)

    def varying(self) -> Iterator[Diagnostic]:
        """A warning where an item changes from one reading to the next."""
        for index in range(min(len(self), _TRIED)):
            if not torch.equal(self[index], self[index]):
                yield Diagnostic(
                    code="random-items", severity="warning", where=self.where,
                    why=f"item {index} is another image each time it is read: in memory it is one of them for good, "
                    "and a run on more data than that cannot be resumed exactly",
                    hint="give images as they are; augmentation is the plan's part",
                )  # fmt: skip
                return

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Tensor:
        """One image (C, H, W)."""
        return self.pair(index)[0]

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of indices, read ahead by worker processes."""
        return read_ahead(self, [self.positions[batch] for batch in batches])

    def to(self, device: Device) -> "Items":  # noqa: ARG002 - the other kind of images moves
        """The items as they are."""
        return self

    def relabelled(self, labels: Tensor) -> "Items":
        """The same images with other targets."""
        return replace(self, labels=labels)

    def at(self, positions: Tensor) -> "Items":
        """Some of the images."""
        return replace(self, labels=self.labels[positions], positions=self.positions[positions])

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """The image and the target of an item, in one shape and type for all."""
        image, target = self._item(index)
        own = tuple(image.shape[1:])
        if target is None:
            target = self.task.typed(torch.tensor(self.task.no_label)).expand(self.target_shape)
        if self.task.moves_targets and target.ndim == 2 and tuple(target.shape) == own != self.target_shape:
            map_ = Image.fromarray(target.numpy().astype(np.int32))
            target = torch.from_numpy(np.array(fitted(map_, self.reading, nearest=True))).to(target.dtype)
        if tuple(target.shape) != self.target_shape:
            shapes = f"{tuple(target.shape)}, those before {self.target_shape}"
            raise self._wrong(index, f"its target has the shape {shapes}", "give all the same")
        return self._brought(index, image), target

    def _brought(self, index: int, image: Tensor) -> Tensor:
        """An image in the shape and the type of all."""
        if tuple(image.shape) != self.image_shape:
            if image.shape[0] not in COLOURS or self.image_shape[0] not in COLOURS:
                shapes = f"{tuple(image.shape)}, and {self.image_shape} is wanted"
                raise self._wrong(index, f"its image has the shape {shapes}", "give 1 or 3 channels, or that shape")
            values = image if image.dtype == torch.uint8 else image.mul(255).round().clamp(0, 255).byte()
            whole = Image.fromarray(values.squeeze(0).numpy() if len(values) == 1 else values.movedim(0, 2).numpy())
            fits = image.shape[1:] == self.image_shape[1:]  # in size, and so does its map: only colours are to change
            image = pixels(whole.convert(COLOURS[self.image_shape[0]]) if fits else fitted(whole, self.reading))
        if self.whole and image.dtype != torch.uint8:
            return image.mul(255).round().clamp(0, 255).byte()
        return image.float().div(255) if not self.whole and image.dtype == torch.uint8 else image

    def _item(self, index: int) -> tuple[Tensor, Tensor | None]:
        """An item as tensors: an image in its own shape, and its target, None for no label."""
        try:
            image, target = _parted(self.source[index])
            found = _target(target, self.task)
            if found is not None:
                check_labels(found.reshape(1, *found.shape), where=f"{self.where}, item {index}", task=self.task)
            return _image(image), found
        except InputError:
            raise
        except _Unfit as cause:
            raise self._wrong(index, *cause.args) from None
        except Exception as cause:  # the user's own code may raise anything
            why = f"it cannot be read: {type(cause).__name__}: {cause}"
            raise self._wrong(index, why, "see what the module of the factory makes of that item") from cause

    def _wrong(self, index: int, why: str, hint: str) -> DataError:
        return DataError(f"item {index}: {why}", where=self.where, hint=hint)


class _Unfit(Exception):  # noqa: N818  # never leaves this file
    """What is wrong with an item, and what to do about it."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why, hint)


@dataclass(frozen=True)
class _Pairs:
    """Items with their targets, for reading them ahead."""

    items: Items

    def __getitem__(self, index: int) -> Any:
        return self.items.pair(index)


def _parted(item: Any) -> tuple[Any, Any]:
    """Image and target of an item."""
    if isinstance(item, Mapping):
        image, target = (next((key for key in known if key in item), None) for known in (_IMAGES, _TARGETS))
        if image is None:
            keys = ", ".join(map(str, item))
            raise _Unfit(f"it is a mapping of {keys}, and none of them is 'image'", "call them image and label")
        return item[image], None if target is None else item[target]
    if not isinstance(item, tuple | list):
        return item, None
    if len(item) not in (1, 2):
        raise _Unfit(f"it holds {len(item)} values", "an item is an image, or (image, target)")
    return (item[0], item[1] if len(item) == 2 else None)


def _image(image: Any) -> Tensor:
    """An image as a tensor (C, H, W), uint8 or float32."""
    if isinstance(image, Image.Image):
        return pixels(plain(image))
    if isinstance(image, np.ndarray):
        if image.dtype.newbyteorder("=") == np.uint16:
            return pixels(plain(Image.fromarray(image.astype(np.uint16))))
        last = image.ndim == 3 and image.shape[-1] in (1, 3, 4)
        image = as_tensor(np.moveaxis(image, -1, 0) if last else image)
        image = image[:3] if last and len(image) == 4 else image
    if not isinstance(image, Tensor):
        raise _Unfit(f"its image is a {type(image).__name__}", "give a tensor, an array, or an image of Pillow's")
    return _of_tensor(image.detach().cpu())


def _of_tensor(image: Tensor) -> Tensor:
    image = image.unsqueeze(0) if image.ndim == 2 else image
    if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise _Unfit(f"its image is {image.dtype} of shape {tuple(image.shape)}", "give uint8 or float, (C, H, W)")
    if image.dtype == torch.uint8:
        return image
    if wrong := wrong_pixels(image):
        raise _Unfit(f"its {wrong}", "give them in 0 … 1, without Normalize: that is the model's preprocessing")
    return image.float()


def _target(target: Any, task: Task) -> Tensor | None:
    """A target as a tensor in its type."""
    if target is None:
        return None
    if isinstance(target, str | bytes | Mapping):
        raise _Unfit(f"its target is a {type(target).__name__}", "give class numbers, or what the task wants")
    if isinstance(target, Image.Image):
        target = np.asarray(ImageOps.exif_transpose(target))
    found = target.detach().cpu() if isinstance(target, Tensor) else as_tensor(np.array(target))
    return task.typed(found)

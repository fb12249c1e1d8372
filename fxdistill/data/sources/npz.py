"""A file of arrays: for train, val and test each ``_labels``, and ``_images`` or ``_blob`` with ``_offsets``.

Of the three, those that are there: train and test, all of them, or one to measure on.

``_images`` is (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float in 0 … 1. Image i of a blob is the encoded file
``blob[offsets[i]:offsets[i + 1]]``. ``_labels`` is what the task wants: (N,) class numbers, maps (N, H, W) of them
with -100 where there is no label, or values (N,) or (N, K). ``classes``, the names, is optional.
"""

import io
import os
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxdistill import files
from fxdistill.data.arrays import as_tensor
from fxdistill.data.dataset import Dataset, Split, check_labels, from_splits
from fxdistill.data.sources import Request, Source
from fxdistill.data.sources._images import decoded
from fxdistill.errors import DataError

_LARGEST_EXPANSION = 100  # times the size of the file: masks that are nearly empty compress well
_LAYOUT = (
    "the file must hold train_images, train_labels, test_images and test_labels, or encoded images as "
    "train_blob, train_offsets, train_labels and the same for test"
)


def read(request: Request) -> Dataset:
    """The arrays of a file; nothing in it is unpickled."""
    with zipfile.ZipFile(request.place) as archive:
        if wrong := files.expansion(archive, most=_LARGEST_EXPANSION):
            raise DataError(
                f"the file is an archive, and {wrong}", where=request.spec, hint="write it with numpy.savez"
            )
    with request.place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        there = [name for name in ("train", "val", "test") if any(key.startswith(f"{name}_") for key in arrays)]
        classes = _classes(arrays["classes"], request.spec) if "classes" in arrays else None
        labels = {part: _labels(arrays, part, request) for part in there or ("train", "test")}
        parts = {part: _split(arrays, part, found, request.spec) for part, found in labels.items()}
    return from_splits(parts, classes, where=request.spec, task=request.task)


def _classes(names: Any, spec: str) -> list[str]:
    if names.ndim != 1 or names.dtype.kind not in "US":
        found = f"'classes' holds {names.dtype} of shape {names.shape}"
        raise DataError(found, where=spec, hint="it must hold the names of the classes, as text")
    return [name.decode("utf-8") if isinstance(name, bytes) else name for name in names.tolist()]


def _labels(arrays: Mapping[str, Any], part: str, request: Request) -> Tensor:
    """A split's labels, which are looked at before its images are."""
    spec = request.spec
    absent = [f"{part}_labels"] if f"{part}_labels" not in arrays else []
    encoded = f"{part}_blob" in arrays and f"{part}_offsets" in arrays
    if f"{part}_images" not in arrays and not encoded:
        absent.insert(0, f"{part}_images (or {part}_blob and {part}_offsets)")
    if absent:
        raise DataError(
            f"the file lacks {' and '.join(absent)}; it has {', '.join(sorted(arrays)) or 'nothing'}",
            where=spec, hint=_LAYOUT,
        )  # fmt: skip
    labels = _numbers(arrays, f"{part}_labels", spec)
    check_labels(labels, where=spec, task=request.task)
    return labels


def _numbers(arrays: Mapping[str, Any], name: str, spec: str) -> Tensor:
    try:
        return as_tensor(np.asarray(arrays[name]))
    except (TypeError, ValueError) as cause:  # text, objects
        hint = "it must hold numbers; labels are numbers of classes, whose names 'classes' may hold"
        raise DataError(f"'{name}' cannot be read: {cause}", where=spec, hint=hint) from cause


def _split(arrays: Mapping[str, Any], part: str, labels: Tensor, spec: str) -> Split:
    if f"{part}_blob" in arrays and f"{part}_offsets" in arrays:
        return Split(_decoded(arrays[f"{part}_blob"], arrays[f"{part}_offsets"], spec), labels)
    images = _numbers(arrays, f"{part}_images", spec)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
    return Split(images, labels)


def _decoded(blob: Any, offsets: Any, spec: str) -> Tensor:
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or blob.ndim != 1 or blob.dtype != np.uint8:
        found = f"the blob is {blob.dtype} of shape {blob.shape}, the offsets {offsets.dtype} of shape {offsets.shape}"
        raise DataError(found, where=spec, hint="they must be bytes, and whole numbers")
    bounds = offsets.tolist()
    if bounds != sorted(bounds) or not bounds or bounds[0] < 0 or bounds[-1] > len(blob):
        raise DataError("the offsets do not lie in order in the blob", where=spec, hint=_LAYOUT)

    def decode(index: int) -> Tensor:
        file = io.BytesIO(blob[bounds[index] : bounds[index + 1]].tobytes())
        return decoded(file, name=f"image {index} cannot be decoded", where=spec, hint="write the file again")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(decode, range(len(bounds) - 1)))
    channels = max((len(image) for image in images), default=1)
    images = [image.expand(channels, *image.shape[1:]) for image in images]
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            sizes = " and ".join("x".join(map(str, found.shape[1:])) for found in (images[0], image))
            raise DataError(
                f"images 0 and {index} have the sizes {sizes}", where=spec,
                hint="write all in one size, or image files in folders, which are resized",
            )  # fmt: skip
    return torch.stack(images)


SOURCE = Source(
    read=read,
    place="FILE",
    layout=_LAYOUT,
    augmentation=lambda shape: ("flip", "crop:4") if shape[1:] == (32, 32) else (),
)

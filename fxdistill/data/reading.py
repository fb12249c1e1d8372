"""Where data comes from: one function per kind of spec, each from its place to a checked :class:`Dataset`.

    digits                 scikit-learn's 1,797 handwritten digits, 1x8x8, bundled with it
    fashion-mnist:ROOT     torchvision's layout: the idx files in ROOT/FashionMNIST/raw
    cifar10:ROOT           torchvision's layout: ROOT/cifar-10-batches-py
    cifar100:ROOT          torchvision's layout: ROOT/cifar-100-python
    imagefolder:DIR        DIR/train/CLASS/*.jpg and DIR/val or DIR/test, resized to the model's input
    npz:FILE               arrays, or encoded images end to end (see :func:`_npz`)
    my.module:factory      the user's own, if allowed

Nothing is downloaded.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxdistill.data.batches import Dataset, Device, Images, Split, measure
from fxdistill.errors import DataError, InputError
from fxdistill.modelfiles.factories import resolve

SPECS = (
    "digits", "fashion-mnist:ROOT", "cifar10:ROOT", "cifar100:ROOT", "imagefolder:DIR", "npz:FILE",
    "my.module:factory (with --allow-factory my.module)",
)  # fmt: skip
IN_MEMORY = 2 << 30
_KNOWN = f"known specs: {', '.join(SPECS)}"


def read(spec: str, *, input_shape: Sequence[int] | None, allow: Sequence[str]) -> Dataset:
    """Read the data of a spec.

    Raises:
        DataError: The spec is unknown, or the data is missing or damaged; says what was looked for.
    """
    kind, _, place = spec.partition(":")
    if spec == "digits":
        return _digits()
    if kind in _PLACES:
        if not place:
            raise DataError(f"'{kind}' needs a place", where=spec, hint=f"write {kind}:PATH; {_KNOWN}")
        if not Path(place).exists():
            raise DataError(f"there is no '{place}'", where=spec, hint="check the path, relative to where you are")
        try:
            return _PLACES[kind](Path(place), spec, input_shape)
        except InputError:
            raise
        except Exception as cause:
            raise DataError(
                f"the data cannot be read: {type(cause).__name__}: {cause}", where=spec, hint=_LAYOUTS[kind]
            ) from cause
    if any(spec.startswith((f"{module}:", f"{module}.")) for module in allow) or ("." in kind and place):
        return _own(spec, allow)
    raise DataError(f"the data spec '{spec}' is unknown", where=spec, hint=_KNOWN)


def _digits() -> Dataset:
    """Of each class, in file order, the images at positions 2, 5 and 8 of every ten are for testing."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import

    found = load_digits()
    images = torch.from_numpy(found.images).to(torch.float32).div(16).unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    testing = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().flatten()
        testing[members[torch.isin(torch.arange(len(members)) % 10, torch.tensor([2, 5, 8]))]] = True
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~testing, testing))
    return checked(train, test, [str(label) for label in range(10)], where="digits")


def _fashion_mnist(root: Path, spec: str, _: Sequence[int] | None) -> Dataset:
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415

    parts = [FashionMNIST(str(root), train=train, download=False) for train in (True, False)]
    train, test = (Split(part.data.unsqueeze(1), part.targets.long()) for part in parts)
    return checked(train, test, parts[0].classes, where=spec)


def _cifar(root: Path, spec: str, _: Sequence[int] | None) -> Dataset:
    from torchvision.datasets import CIFAR10, CIFAR100  # noqa: PLC0415

    kind = CIFAR10 if spec.startswith("cifar10:") else CIFAR100
    parts = [kind(str(root), train=train, download=False) for train in (True, False)]
    train, test = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return checked(train, test, parts[0].classes, where=spec)


def _npz(path: Path, spec: str, _: Sequence[int] | None) -> Dataset:
    """For ``train`` and ``test`` each: ``_labels``, and either ``_images`` or ``_blob`` with ``_offsets``.

    ``_images`` is (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float in 0 … 1. Image i of a blob is the
    encoded file ``blob[offsets[i]:offsets[i + 1]]``. ``classes``, the names, is optional.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        train, test = (_npz_split(arrays, part, spec) for part in ("train", "test"))
        classes = [str(name) for name in arrays["classes"]] if "classes" in arrays else None
    return checked(train, test, classes, where=spec)


def _npz_split(arrays: Mapping[str, Any], part: str, spec: str) -> Split:
    absent = [f"{part}_labels"] if f"{part}_labels" not in arrays else []
    if f"{part}_blob" in arrays and f"{part}_offsets" in arrays and not absent:
        return Split(
            _decoded(arrays[f"{part}_blob"], arrays[f"{part}_offsets"], spec),
            _labels(arrays[f"{part}_labels"]),
        )
    if f"{part}_images" not in arrays:
        absent.insert(0, f"{part}_images (or {part}_blob and {part}_offsets)")
    if absent:
        raise DataError(
            f"the file lacks {' and '.join(absent)}; it has {', '.join(sorted(arrays)) or 'nothing'}",
            where=spec, hint=_LAYOUTS["npz"],
        )  # fmt: skip
    images = torch.from_numpy(arrays[f"{part}_images"])
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.ndim == 4 and images.shape[-1] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
    return Split(images, _labels(arrays[f"{part}_labels"]))


def _labels(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array).astype(np.int64, casting="same_kind"))


def _decoded(blob: Any, offsets: Any, spec: str) -> Tensor:
    from PIL import Image  # noqa: PLC0415

    bounds = offsets.tolist()
    if bounds != sorted(bounds) or not bounds or bounds[0] < 0 or bounds[-1] > len(blob):
        raise DataError("the offsets do not lie in order in the blob", where=spec, hint=_LAYOUTS["npz"])

    def decode(index: int) -> Tensor:
        try:
            image = Image.open(io.BytesIO(blob[bounds[index] : bounds[index + 1]].tobytes()))
            return _pixels(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        except OSError as cause:
            raise DataError(
                f"image {index} cannot be decoded: {cause}", where=spec, hint="write the file again"
            ) from cause

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack(list(pool.map(decode, range(len(bounds) - 1))))


def _pixels(image: Any) -> Tensor:
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Folder:
    """Labelled image files, cut to one shape and resized as they are read; too many to hold.

    Attributes:
        files: The files.
        labels: (N,), int64.
        image_shape: Channels (1 or 3), height and width.
    """

    files: tuple[str, ...]
    labels: Tensor
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """One image (C, H, W), uint8: the largest middle part of the right proportions, resized."""
        from PIL import Image, ImageOps  # noqa: PLC0415

        channels, height, width = self.image_shape
        try:
            with Image.open(self.files[index]) as image:
                converted = image.convert("L" if channels == 1 else "RGB")
                return _pixels(ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR))
        except OSError as cause:
            raise DataError(
                f"the image cannot be read: {cause}", where=self.files[index], hint="remove or replace it"
            ) from cause

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of indices, read ahead by worker processes."""
        # the loader draws from a generator even where it has nothing to draw: not from the global one
        loader: Any = torch.utils.data.DataLoader(
            self,  # type: ignore[arg-type]
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=min(8, (os.cpu_count() or 1) - 1),
            generator=torch.Generator(),
        )
        return iter(loader)

    def to(self, device: Device) -> "Folder":  # noqa: ARG002 - the other kind of images moves
        """The folder as it is."""
        return self

    def in_memory(self) -> Images:
        """All images read, if they take less than 2 GiB; else the folder as it is."""
        if len(self) * int(np.prod(self.image_shape)) > IN_MEMORY:
            return self
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return Split(torch.stack(list(pool.map(self.__getitem__, range(len(self))))), self.labels)


def _imagefolder(root: Path, spec: str, input_shape: Sequence[int] | None) -> Dataset:
    from PIL import Image  # noqa: PLC0415
    from torchvision.datasets import ImageFolder  # noqa: PLC0415

    testing = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if testing is None or not (root / "train").is_dir():
        raise DataError(f"'{root}' has no train, or neither val nor test", where=spec, hint=_LAYOUTS["imagefolder"])
    parts = [ImageFolder(str(folder)) for folder in (root / "train", testing)]
    if parts[0].classes != parts[1].classes:
        odd = sorted(set(parts[0].classes) ^ set(parts[1].classes))
        raise DataError(
            f"train and {testing.name} have different classes: {', '.join(odd[:3])}",
            where=spec, hint="give both the same folders",
        )  # fmt: skip
    if input_shape is not None:
        channels, height, width = input_shape[1:]
    else:
        with Image.open(parts[0].samples[0][0]) as image:
            width, height = image.size
            channels = 1 if image.mode == "L" else 3
    shape = channels, height, width
    if channels not in (1, 3):
        raise DataError(f"images have 1 or 3 channels, not {channels}", where=spec, hint="change --input")
    train, test = (
        Folder(tuple(f for f, _ in part.samples), torch.tensor(part.targets), shape).in_memory() for part in parts
    )
    return checked(train, test, parts[0].classes, where=spec)


def _own(spec: str, allow: Sequence[str]) -> Dataset:
    function = resolve(spec, allow=allow, error=DataError)
    hint = "return a fxdistill.data.Dataset, or ((images, labels), (images, labels)) for train and test"
    try:
        found = function()
    except Exception as cause:
        raise DataError(f"the factory failed: {type(cause).__name__}: {cause}", where=spec, hint=hint) from cause
    if isinstance(found, Dataset):
        return found
    try:
        (train_images, train_labels), (test_images, test_labels) = found
    except (TypeError, ValueError) as cause:
        raise DataError(f"the factory returned {type(found).__name__}", where=spec, hint=hint) from cause
    train = Split(torch.as_tensor(train_images), torch.as_tensor(train_labels))
    test = Split(torch.as_tensor(test_images), torch.as_tensor(test_labels))
    return checked(train, test, None, where=spec)


def checked(train: Images, test: Images, classes: Sequence[str] | None, *, where: str) -> Dataset:
    """A data set of two splits that go together, with its normalisation measured.

    Args:
        train: The training split.
        test: The test split.
        classes: Class names; the labels' numbers where None.
        where: The spec.

    Raises:
        DataError: They do not go together, or one is malformed.
    """
    train, test = (_checked_split(split, name, where) for split, name in ((train, "train"), (test, "test")))
    if train.image_shape != test.image_shape:
        raise DataError(
            f"training images are {train.image_shape}, test images {test.image_shape}",
            where=where, hint="make them the same",
        )  # fmt: skip
    highest = int(max(train.labels.max(), test.labels.max()))
    names = tuple(classes) if classes is not None else tuple(str(label) for label in range(highest + 1))
    if highest >= len(names):
        raise DataError(f"the label {highest} has no name", where=where, hint=f"there are {len(names)} classes")
    mean, std = measure(train)
    return Dataset(train, test, names, mean, std)


def _checked_split(split: Images, name: str, where: str) -> Images:
    def wrong(what: str, hint: str) -> DataError:
        return DataError(f"the {name} split is not usable: {what}", where=where, hint=hint)

    labels = split.labels
    if labels.ndim != 1 or labels.is_floating_point():
        raise wrong(f"labels are {labels.dtype} of shape {tuple(labels.shape)}", "give one whole number an image")
    if isinstance(split, Split):
        images = split.images
        if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise wrong(
                f"images are {images.dtype} of shape {tuple(images.shape)}",
                "give uint8 or float, (N, C, H, W)",
            )
        if len(images) != len(labels):
            raise wrong(f"{len(images)} images, {len(labels)} labels", "give one label an image")
        if images.dtype != torch.uint8 and not bool(torch.isfinite(images).all()):
            raise wrong("pixels are infinite or not a number", "clean the data")
        split = Split(images if images.dtype == torch.uint8 else images.float(), labels.long())
    if not len(split):
        raise wrong("it is empty", "check the data")
    if int(labels.min()) < 0:
        raise wrong(f"the label {int(labels.min())} is negative", "number the classes from 0")
    return split


_Reader = Callable[[Path, str, Sequence[int] | None], Dataset]
_PLACES: dict[str, _Reader] = {
    "fashion-mnist": _fashion_mnist, "cifar10": _cifar, "cifar100": _cifar,
    "imagefolder": _imagefolder, "npz": _npz,
}  # fmt: skip
_LAYOUTS = {
    "fashion-mnist": "ROOT/FashionMNIST/raw must hold the four unpacked idx files of Fashion-MNIST",
    "cifar10": "ROOT/cifar-10-batches-py must hold the files of the Python version of CIFAR-10",
    "cifar100": "ROOT/cifar-100-python must hold the files of the Python version of CIFAR-100",
    "imagefolder": "DIR/train/CLASS/ and DIR/val/CLASS/ (or test) must hold the images of each class",
    "npz": "the file must hold train_images, train_labels, test_images and test_labels, or encoded images as "
    "train_blob, train_offsets, train_labels and the same for test",
}

"""What runs are made with: images and teachers, which are made once, and the training that knows nothing of plans."""

import fcntl
import io
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchvision.datasets import FashionMNIST

import fxdistill
from fxdistill.modelfiles.factories import build
from fxdistill.preprocessing import Preprocessing

TRAIN, TEST, BATCH = 10_000, 2_000, 128
WHOLE = {"cifar50k": "cifar"}
"""Data of which runs take all images, by the name that it has in settings, and where these come from."""
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Work:
    """Where data and teachers are kept, and where runs lie while they run.

    Attributes:
        root: The folder.
        sources: Where the images come from: ``cifar``, JPEG files in an npz; ``fashion``, a folder.
        place: Which of the runs that are made at once this one is.
        device: What plans are run on.
        options: What the command line says, by name.
    """

    root: Path
    sources: Mapping[str, Path]
    place: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """A run's own folder: there and empty when it begins, gone when it has ended."""
        return self.root / f"run-{self.place}"

    def has(self, data: str) -> bool:
        """Whether there are images to make runs with: the file with a part of them, or where that is made of."""
        return WHOLE.get(data, data) in self.sources or (self.root / f"{data}.npz").is_file()

    def whole(self, data: str) -> dict[str, np.ndarray[Any, Any]]:
        """All images (N, C, H, W), uint8, and labels (N,).

        Raises:
            FileNotFoundError: It was not said where they are.
        """
        data = WHOLE.get(data, data)
        if data not in self.sources:
            raise FileNotFoundError(f"all images of {data} are needed: say with --{data} where they are")
        return _cifar(self.sources[data]) if data == "cifar" else _fashion(self.sources[data])

    def part(self, data: str) -> Path:
        """The file with the images that runs take: a random part of the data, or all of it."""

        def make(path: Path) -> None:
            whole, chance = self.whole(data), np.random.default_rng(0)
            counts = {"train": None, "test": None} if data in WHOLE else {"train": TRAIN, "test": TEST}
            picked = {
                name: np.sort(chance.permutation(len(whole[f"{name}_labels"]))[:count])
                for name, count in counts.items()
            }
            arrays: dict[str, Any] = {
                f"{name}_{kind}": whole[f"{name}_{kind}"][which]
                for name, which in picked.items()
                for kind in ("images", "labels")
            }
            np.savez(path, **arrays, classes=np.array([str(n) for n in range(10)]))

        return once(self.root / f"{data}.npz", make)


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file that many runs need: one of them makes it while the others wait, and it is never there in part.

    Args:
        path: The file.
        make: Writes it, under another name of the same ending.
    """
    if not path.is_file():
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # it goes with the process
            if not path.is_file():
                unfinished = path.with_name(f".unfinished-{path.name}")
                make(unfinished)
                unfinished.replace(path)
    return path


def _cifar(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    arrays, found = np.load(path), {}
    for part in ("train", "test"):
        blob, ends = arrays[f"{part}_blob"], arrays[f"{part}_offsets"]
        images = [np.asarray(Image.open(io.BytesIO(blob[a:b]), formats=["JPEG"])) for a, b in zip(ends, ends[1:])]  # noqa: B905, RUF007
        found[f"{part}_images"] = np.stack(images).transpose(0, 3, 1, 2)
        found[f"{part}_labels"] = arrays[f"{part}_labels"].astype(np.int64)
    return found


def _fashion(root: Path) -> dict[str, np.ndarray[Any, Any]]:
    parts = {part: FashionMNIST(str(root), train=part == "train") for part in ("train", "test")}
    images = {f"{part}_images": found.data.unsqueeze(1).numpy() for part, found in parts.items()}
    return {**images, **{f"{part}_labels": found.targets.numpy() for part, found in parts.items()}}


def teacher(
    path: Path, factory: str, kwargs: Mapping[str, Any], arrays: Callable[[], Mapping[str, np.ndarray[Any, Any]]],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer], *, epochs: int, device: str = "cpu",
    precision: Precision = "32-true",
) -> Path:  # fmt: skip
    """Train a teacher on images (N, C, H, W) and save it, unless its file is there.

    Args:
        path: The file.
        factory: One of :mod:`fxdistill.models`, or ``module:name``.
        kwargs: Its arguments.
        arrays: Gives ``train_images`` and ``train_labels``.
        optimizer: Makes the optimiser of a model.
        epochs: How many.
        device: What it is trained on.
        precision: In which precision.
    """
    factory = factory if ":" in factory else f"fxdistill.models:{factory}"

    def make(unfinished: Path) -> None:
        found = arrays()
        images, labels = (torch.from_numpy(found[f"train_{kind}"]) for kind in ("images", "labels"))
        values = images.float().transpose(0, 1).flatten(1) / 255
        mean, std = ([round(float(x), 4) for x in many] for many in (values.mean(1), values.std(1)))
        channels: Any = "rgb" if images.shape[1] == 3 else "gray"
        pixels = Preprocessing(size=list(images.shape[2:]), mean=mean, std=std, channels=channels)
        made = build(factory, dict(kwargs), seed=0)
        print(f"  training the teacher {path.name}", file=sys.stderr, flush=True)
        fit(
            made, images, labels.long(), pixels, optimizer(made), epochs=epochs, device=device, precision=precision
        )  # fmt: skip
        fxdistill.save(
            made, unfinished, factory=factory, kwargs=dict(kwargs),
            input_shape=(1, *images.shape[1:]), preprocessing=pixels,
        )  # fmt: skip

    return once(path, make)


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, pixels: Preprocessing, optimizer: torch.optim.Optimizer, *,
    epochs: int, seed: int = 0, before: Callable[[], object] = lambda: None,
    regularise: Callable[[nn.Module], object] = lambda _model: None, device: str = "cpu",
    precision: Precision = "32-true",
) -> None:  # fmt: skip
    """Train by cross-entropy and half a cosine; random crops and flips.

    Args:
        model: From images (N, C, H, W) to logits; it ends in eval mode, on the CPU.
        images: (N, C, H, W), uint8.
        labels: (N,), int64.
        pixels: How they are normalised.
        optimizer: Of the model's parameters.
        epochs: How many.
        seed: Of order, crops and flips.
        before: Called before every epoch.
        regularise: Called with the model after every backward pass.
        device: What it is trained on; order, crops and flips are the same on all.
        precision: ``bf16-mixed`` for a forward pass in bfloat16 where torch's autocast sees fit.
    """
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
    images, labels, mixed = images.to(device), labels.to(device), precision == "bf16-mixed"
    model.train().to(device).to(memory_format=torch.channels_last)
    schedule = CosineAnnealingLR(optimizer, epochs * math.ceil(len(images) / BATCH))
    chance, (height, width) = torch.Generator().manual_seed(seed), images.shape[2:]
    for _ in range(epochs):
        before()
        for chosen in torch.randperm(len(images), generator=chance).split(BATCH):
            picked = chosen.to(device, non_blocking=True)
            batch = nn.functional.pad((images[picked].float() / 255 - mean) / std, (4, 4, 4, 4))
            top, left = torch.randint(0, 9, (2,), generator=chance).tolist()
            batch = batch[..., top : top + height, left : left + width]
            coins = torch.rand(len(batch), generator=chance).to(device, non_blocking=True)
            batch = torch.where((coins < 0.5).view(-1, 1, 1, 1), batch.flip(3), batch)
            with torch.autocast(device, torch.bfloat16, enabled=mixed):
                loss = nn.functional.cross_entropy(model(batch), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            regularise(model)
            optimizer.step()
            schedule.step()
    model.eval().cpu()

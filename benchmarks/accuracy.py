"""Accuracy as `fxdistill eval` says it beside that of each model's own pipeline: equal to the last image, or a fault.

    python benchmarks/accuracy.py --cifar cifar10_jpeg.npz --lite0 efficientnet-lite0.pth --photos foolbox/data

* a torchvision ResNet-18 and a timm ResNet-26t, trained for a moment on a folder of photographs of mixed sizes that is
  made from a random part of CIFAR-10, with ImageNet's normalisation, read by the transforms of their own libraries;
* EfficientNet-lite0 with a real ImageNet checkpoint (its weights are matched to timm's by their order), on photographs
  that are named ``imagenet_NUMBER_LABEL``.

The models lie in files of weights alone, with a factory: nothing says their preprocessing but their library. Prints for
each how many test images are right by its own pipeline and by ``fxdistill.evaluate``; the exit code is 1 where they
differ. About four and a half minutes of one core.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms._presets import ImageClassification

import fxdistill

Transform = Callable[[Image.Image], Tensor]
SIDE = 64


def main() -> int:
    """Measure every model that there is data for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--cifar", type=Path, help="CIFAR-10 as JPEG files in an npz: _blob, _offsets, _labels, classes"
    )
    parser.add_argument("--lite0", type=Path, help="the state dict of EfficientNet-lite0")
    parser.add_argument("--photos", type=Path, help="a folder with imagenet_NUMBER_LABEL")
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.cifar is not None:
            photographs(options.cifar, folder / "cifar", {"train": options.train, "test": options.test})
            rows += [fine_tuned(kind, folder, epochs=options.epochs) for kind in ("torchvision", "timm")]
        if options.lite0 is not None and options.photos is not None:
            rows.append(lite0(options.lite0, options.photos, folder))
    for name, own, ours, count in rows:
        verdict = "equal" if own == ours else "DIFFERS"
        print(f"{name:<40}  own pipeline {own:>4} of {count}, fxdistill {ours:>4}  {verdict}")
    return int(any(own != ours for _, own, ours, _ in rows))


def photographs(archive: Path, folder: Path, counts: dict[str, int]) -> None:
    """A random part of CIFAR-10 as image files by class, each of a size of its own."""
    generator = np.random.default_rng(0)
    with np.load(archive) as arrays:
        classes = [str(name) for name in arrays["classes"]]
        for part, count in counts.items():
            blob, offsets, labels = (arrays[f"{part}_{name}"] for name in ("blob", "offsets", "labels"))
            for name in classes:
                (folder / part / name).mkdir(parents=True)
            for index in generator.permutation(len(labels))[:count]:
                image = Image.open(io.BytesIO(blob[offsets[index] : offsets[index + 1]].tobytes())).convert("RGB")
                width, height = (int(side) for side in generator.integers(56, 140, 2))
                large = image.resize((width, height), Image.Resampling.BICUBIC)
                large.save(folder / part / classes[labels[index]] / f"{index}.png")


def fine_tuned(kind: str, folder: Path, *, epochs: int) -> tuple[str, int, int, int]:
    """A model of a library, trained for a moment with its transforms at 64 pixels."""
    torch.manual_seed(0)
    if kind == "torchvision":
        factory, module = "torchvision.models:resnet18", models.resnet18(num_classes=10)
        transform: Any = ImageClassification(crop_size=SIDE, resize_size=SIDE * 256 // 224)
    else:
        factory, module = "timm:resnet26t", timm.create_model("resnet26t", num_classes=10)
        transform = of_timm(module, input_size=(3, SIDE, SIDE))
    train, labels = read(folder / "cifar" / "train", transform)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module.train()
    for epoch in range(epochs):
        for part in torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(train[part]), labels[part]).backward()
            optimizer.step()
    path = folder / f"{kind}.pt"
    torch.save(module.state_dict(), path)
    images, wanted = read(folder / "cifar" / "test", transform)
    right = int(answers(module, images).eq(wanted).sum())
    ours = fxdistill.evaluate(
        path, f"imagefolder:{folder / 'cifar'}", factory=factory, args=("num_classes=10",),
        input_shape=(1, 3, SIDE, SIDE),
    )  # fmt: skip
    return f"{factory}, {SIDE} pixels", right, round(ours["accuracy"] * len(wanted)), len(wanted)


def of_timm(module: Any, **changes: Any) -> Transform:
    """The transforms that timm has for a model."""
    config = {**resolve_data_config(pretrained_cfg=module.pretrained_cfg), **changes}  # type: ignore[no-untyped-call]
    transform: Transform = create_transform(**config, is_training=False)
    return transform


def lite0(weights: Path, photos: Path, folder: Path) -> tuple[str, int, int, int]:
    """A real ImageNet checkpoint on real photographs."""
    module = timm.create_model("tf_efficientnet_lite0")
    own = torch.load(weights, weights_only=True)
    state = dict(zip(module.state_dict(), own.values(), strict=True))
    module.load_state_dict(state)
    torch.save(state, folder / "lite0.pt")
    transform = of_timm(module)
    files = sorted(photos.glob("imagenet_*"))
    labels = torch.tensor([int(file.stem.rpartition("_")[2]) for file in files])
    for file, label in zip(files, labels.tolist(), strict=True):
        (folder / "photos" / f"{label:04}").mkdir(parents=True, exist_ok=True)
        (folder / "photos" / f"{label:04}" / file.name).write_bytes(file.read_bytes())
    (folder / "classes.txt").write_text("".join(f"{label:04}\n" for label in range(1000)))
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    right = int(answers(module, images).eq(labels).sum())
    ours = fxdistill.evaluate(
        folder / "lite0.pt", f"imagefolder:{folder / 'photos'}", factory="timm:tf_efficientnet_lite0",
        class_map=folder / "classes.txt",
    )  # fmt: skip
    return "timm:tf_efficientnet_lite0, ImageNet", right, round(ours["accuracy"] * len(files)), len(files)


def read(folder: Path, transform: Transform) -> tuple[Tensor, Tensor]:
    """All images of a folder by class, as a pipeline gives them, and their labels."""
    classes = sorted(entry.name for entry in folder.iterdir())
    files = sorted(folder.rglob("*.png"))
    images = torch.stack([transform(Image.open(file)) for file in files])
    return images, torch.tensor([classes.index(file.parent.name) for file in files])


def answers(module: nn.Module, images: Tensor) -> Tensor:
    """The classes that a model takes images for."""
    with torch.no_grad():
        return torch.cat([module.eval()(part).argmax(1) for part in images.split(64)])


if __name__ == "__main__":
    sys.exit(main())

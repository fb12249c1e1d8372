"""Files as the product, torch, NumPy and Pillow write them: what :mod:`benchmarks.fuzz` makes mutants of.

Everything is tiny, so that a mutant is made and read in milliseconds, and is made once in a folder of its own.
"""

import argparse
import io
import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

import fxdistill
from fxdistill.data import places
from fxdistill.data.load import defaults, load
from fxdistill.files import file_sha256
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.bundle import save, save_trained
from fxdistill.modelfiles.factories import build
from fxdistill.plan.schema import ModelRef
from fxdistill.runtime.run.execution import Observer
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Progress

SHAPE = (1, 3, 8, 8)
CLASSES = 2
FACTORY = "fxdistill.models:convnet"
ARGUMENTS: dict[str, Any] = {"widths": [4], "hidden": 4, "classes": CLASSES, "in_channels": 3}
_FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("jpg", "RGB", {}), ("jpg", "L", {"progressive": True}), ("png", "RGB", {}), ("png", "P", {}), ("png", "I;16", {}),
    ("png", "RGBA", {}), ("gif", "P", {}), ("bmp", "RGB", {}), ("tif", "RGB", {}), ("tif", "F", {}),
    ("tif", "L", {"compression": "tiff_lzw"}), ("tif", "RGB", {"compression": "tiff_adobe_deflate"}),
    ("tif", "RGB", {"compression": "jpeg"}), ("webp", "RGB", {}), ("webp", "RGBA", {"lossless": True}),
    ("avif", "RGB", {}), ("jp2", "RGB", {}), ("ppm", "RGB", {}), ("pgm", "L", {}), ("tga", "RGB", {"rle": True}),
    ("pcx", "P", {}), ("ico", "RGBA", {}), ("eps", "RGB", {}), ("im", "L", {}), ("sgi", "RGB", {}),
)  # fmt: skip


class Recurrent(nn.Module):
    """A layer of several weights, attention, and functions with and without arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(24, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Rows of pixels as a sequence."""
        rows = x.permute(0, 2, 1, 3).flatten(2)
        hidden = self.rnn(rows)[0]
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden)[0])
        answer: Tensor = self.head(nn.functional.gelu(hidden).mean(1) * torch.sigmoid(hidden[:, -1]))
        return answer


class _Unwritable(nn.Module):
    """A model that no graph says: a run keeps its weights alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Goes the way that the answer says."""
        answer: Tensor = self.inner(x)
        return answer if float(answer.sum()) > 0 else -answer


def convolutional() -> nn.Module:
    """Layers with and without weights, and two modes."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def arrays(folder: Path) -> Path:
    """Data: images and labels, and the same as encoded files."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(8) % CLASSES
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, test_images=images[:4],
             test_labels=labels[:4], classes=np.array(["cat", "dog"]))  # fmt: skip
    encoded = []
    for image in images[:4]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        encoded.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, encoded)])
    whole: dict[str, Any] = {}
    for part in ("train", "test"):
        whole |= {f"{part}_blob": np.concatenate(encoded), f"{part}_offsets": offsets, f"{part}_labels": labels[:4]}
    np.savez_compressed(folder / "blob.npz", **whole)
    np.savez(folder / "maps.npz", train_images=images, train_labels=draw.integers(0, 3, (8, 8, 8)),
             test_images=images.transpose(0, 3, 1, 2) / 255, test_labels=np.full((8, 8, 8), -100))  # fmt: skip
    return folder / "data.npz"


def images(folder: Path) -> None:
    """An image in every format that Pillow writes here, of those that are read and some that are not."""
    folder.mkdir()
    Image.init()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (13, 11, 3), dtype=np.uint8))
    for number, (extension, mode, options) in enumerate(_FORMATS):
        if Image.registered_extensions().get(f".{extension}") in Image.SAVE:
            gray = np.asarray(picture.convert("L"))
            made = (
                Image.fromarray((gray / 255).astype(np.float32)) if mode == "F"
                else Image.fromarray(gray.astype(np.uint16) * 256) if mode == "I;16" else picture.convert(mode)
            )  # fmt: skip
            made.save(folder / f"{number:02}.{extension}", **options)


def idx(folder: Path) -> None:
    """Fashion-MNIST's four files, of four images."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(2).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        head = b"".join(n.to_bytes(4, "big") for n in (0x803, 4, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes((0x801).to_bytes(4, "big") + (4).to_bytes(4, "big") + bytes(4))


def models_of_all_kinds(folder: Path) -> None:
    """Bundles, and weights as others write them."""
    torch.manual_seed(0)
    convolution = convolutional().eval()
    save(convolution, folder / "graph.pt", input_shape=SHAPE, metadata={"classes": ["cat", "dog"]})
    save(Recurrent().eval(), folder / "recurrent.pt", input_shape=SHAPE)
    factory = build(FACTORY, ARGUMENTS)
    save(factory, folder / "factory.pt", factory=FACTORY, kwargs=ARGUMENTS, input_shape=SHAPE)
    save_trained(_Unwritable(factory), folder / "weights.pt", factory=None, kwargs={}, input_shape=SHAPE)
    state = factory.state_dict()
    torch.save(state, folder / "state.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(dict(state), folder / "state.safetensors", {"format": "pt"})
    training = {"epoch": 3, "args": argparse.Namespace(lr=0.1, name="run"), "best": np.float64(0.5),
                "state_dict": state,
                "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
                "more": OrderedDict(a=(1, {2}, [3.0, None, "x", b"y"]))}  # fmt: skip
    torch.save(training, folder / "training.pt")
    torch.save(training, folder / "training_old.pt", _use_new_zipfile_serialization=False)


def run(folder: Path) -> None:
    """A plan, its complete run, and the same as it was in the middle: ``plan.json``, ``run``, ``begun``."""
    wide = {**ARGUMENTS, "widths": [6]}
    refs = {}
    for name, kwargs in (("teacher", wide), ("student", ARGUMENTS)):
        save(build(FACTORY, kwargs), folder / f"{name}.pt", factory=FACTORY, kwargs=kwargs, input_shape=SHAPE)
        refs[name] = ModelRef(
            path=f"{name}.pt", factory=FACTORY, kwargs=kwargs, sha256=file_sha256(folder / f"{name}.pt")
        )
    spec = f"npz:{folder / 'data.npz'}"
    data = load(spec)
    planned = defaults(spec, dataset=data, batch_size=4)
    planned = planned.changed(spec=places.relative_data(spec, folder / "plan.json"))
    seen = dict.fromkeys(refs, data.preprocessing)
    made = fxdistill.compile(
        build(FACTORY, wide), build(FACTORY, ARGUMENTS), teacher_ref=refs["teacher"], student_ref=refs["student"],
        options=fxdistill.Options(input_shape=SHAPE, epochs=2, data=planned, preprocessing=seen),
    )  # fmt: skip
    arms = [
        arm.changed(stages=[stage.changed(epochs=min(2, stage.epochs)) for stage in arm.stages]) for arm in made.arms
    ]
    (folder / "plan.json").write_text(made.changed(arms=arms).to_json())

    def watched(trial: Trial, progress: Progress, _reached: dict[str, float]) -> None:
        if trial.name == "control" and progress.position.epoch == 1 and not (folder / "begun").exists():
            shutil.copytree(folder / "run", folder / "begun")

    settings = fxdistill.Settings(device="cpu", save_seconds=0, force=True)  # the teacher is not trained
    onnx_file._EXPORTERS = ("torchscript",)  # noqa: SLF001  # the quicker one
    fxdistill.run(folder / "plan.json", folder / "run", settings, Observer(on_progress=watched))


def class_maps(folder: Path) -> None:
    """A class map of each form."""
    forms: tuple[Any, ...] = ({"cat": 0, "dog": 1}, {"0": ["n01", "cat"], "1": "dog"}, ["cat", "dog"])
    for number, form in enumerate(forms):
        (folder / f"classes{number}.json").write_text(json.dumps(form))
    (folder / "classes.txt").write_text("cat\ndog\n")


def make(folder: Path) -> None:
    """Make all originals in a new folder."""
    folder.mkdir()
    arrays(folder)
    images(folder / "images")
    idx(folder)
    models_of_all_kinds(folder)
    class_maps(folder)
    run(folder)

"""What series of trainings have in common: data and teachers that are made once, and results that only grow.

A finished run is one line of a file, with its seed, versions and machine, so that an interrupted series goes on where
it stopped and several may add to it; its table is written from that file alone.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchvision.datasets import FashionMNIST

import fxdistill
from fxdistill.cli.commands import app
from fxdistill.measure.differences import paired
from fxdistill.modelfiles.factories import build
from fxdistill.preprocessing import Preprocessing

HERE = Path(__file__).parent
TRAIN, TEST, BATCH = 10_000, 2_000, 128
Row = dict[str, Any]
Run = tuple[str, str, int]
"""A setting, an arm, a seed."""
UNEVEN = ", uneven batches"
"""Behind the settings of runs of before the batches of an epoch had one size: a small one was left over at its end."""


def told(settings: Iterable[str]) -> list[str]:
    """The settings in the order of a table."""
    return [name for setting in settings for name in (setting, setting + UNEVEN)]


@dataclass(frozen=True)
class Work:
    """Where data and teachers are kept, and where runs lie while they run.

    Attributes:
        root: The folder.
        sources: Where the images come from: ``cifar``, JPEG files in an npz; ``fashion``, a folder.
    """

    root: Path
    sources: Mapping[str, Path]

    def whole(self, data: str) -> dict[str, np.ndarray[Any, Any]]:
        """All images (N, C, H, W), uint8, and labels (N,)."""
        return _cifar(self.sources[data]) if data == "cifar" else _fashion(self.sources[data])

    def part(self, data: str) -> Path:
        """The file with a random part of the data."""
        path = self.root / f"{data}.npz"
        if not path.is_file():
            whole, chance = self.whole(data), np.random.default_rng(0)
            picked = {
                name: np.sort(chance.permutation(len(whole[f"{name}_labels"]))[:count])
                for name, count in (("train", TRAIN), ("test", TEST))
            }
            arrays: dict[str, Any] = {
                f"{name}_{kind}": whole[f"{name}_{kind}"][which]
                for name, which in picked.items()
                for kind in ("images", "labels")
            }
            np.savez(path, **arrays, classes=np.array([str(n) for n in range(10)]))
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
    path: Path, factory: str, kwargs: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer], *, epochs: int,
) -> Path:  # fmt: skip
    """Train a teacher on images (N, C, H, W) and save it, unless its file is there.

    Args:
        path: The file.
        factory: One of :mod:`fxdistill.models`, or ``module:name``.
        kwargs: Its arguments.
        arrays: ``train_images`` and ``train_labels``.
        optimizer: Makes the optimiser of a model.
        epochs: How many.
    """
    factory = factory if ":" in factory else f"fxdistill.models:{factory}"
    if not path.is_file():
        images, labels = (torch.from_numpy(arrays[f"train_{kind}"]) for kind in ("images", "labels"))
        found = images.float().transpose(0, 1).flatten(1) / 255
        mean, std = ([round(float(x), 4) for x in values] for values in (found.mean(1), found.std(1)))
        channels: Any = "rgb" if images.shape[1] == 3 else "gray"
        pixels = Preprocessing(size=list(images.shape[2:]), mean=mean, std=std, channels=channels)
        made = build(factory, dict(kwargs), seed=0)
        print(f"  training the teacher {path.name}", file=sys.stderr, flush=True)
        fit(made, images, labels.long(), pixels, optimizer(made), epochs=epochs)
        fxdistill.save(
            made, path, factory=factory, kwargs=dict(kwargs),
            input_shape=(1, *images.shape[1:]), preprocessing=pixels,
        )  # fmt: skip
    return path


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, pixels: Preprocessing, optimizer: torch.optim.Optimizer, *,
    epochs: int, seed: int = 0, before: Callable[[], object] = lambda: None,
    regularise: Callable[[nn.Module], object] = lambda _model: None,
) -> None:  # fmt: skip
    """Train by cross-entropy and half a cosine; random crops and flips.

    Args:
        model: From images (N, C, H, W) to logits; it ends in eval mode.
        images: (N, C, H, W), uint8.
        labels: (N,), int64.
        pixels: How they are normalised.
        optimizer: Of the model's parameters.
        epochs: How many.
        seed: Of order, crops and flips.
        before: Called before every epoch.
        regularise: Called with the model after every backward pass.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
    model.train().to(memory_format=torch.channels_last)
    schedule = CosineAnnealingLR(optimizer, epochs * math.ceil(len(images) / BATCH))
    chance, (height, width) = torch.Generator().manual_seed(seed), images.shape[2:]
    for _ in range(epochs):
        before()
        for picked in torch.randperm(len(images), generator=chance).split(BATCH):
            batch = nn.functional.pad((images[picked].float() / 255 - mean) / std, (4, 4, 4, 4))
            top, left = torch.randint(0, 9, (2,), generator=chance).tolist()
            batch = batch[..., top : top + height, left : left + width]
            mirrored = (torch.rand(len(batch), generator=chance) < 0.5).view(-1, 1, 1, 1)
            loss = nn.functional.cross_entropy(model(torch.where(mirrored, batch.flip(3), batch)), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            regularise(model)
            optimizer.step()
            schedule.step()
    model.eval()


def apart(function: Callable[..., object], *arguments: object, patience: float = 1800, gigabytes: float = 4) -> None:
    """Call a function in a child process, with a limit of time and memory.

    Raises:
        RuntimeError: It failed, or took too much of either.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_called, args=(function, arguments, gigabytes, writer), daemon=True)
    child.start()
    writer.close()  # so that the end of the child is the end of what it says
    try:
        said = reader.recv() if reader.poll(patience) else "it took too long"
    except EOFError:
        said = "its process ended"
    child.kill()
    child.join()
    if said:
        raise RuntimeError(f"{function.__name__}: {said}")


def _called(function: Callable[..., object], arguments: Sequence[object], gigabytes: float, writer: Any) -> None:
    """The child's part: say '' or what went wrong."""
    limit = int(gigabytes * (1 << 30))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        function(*arguments)
        writer.send("")
    except Exception as cause:  # noqa: BLE001  # the reason is what is handed over
        writer.send(f"{type(cause).__name__}: {cause}"[:300])


def plan(*words: str) -> None:
    """``fxdistill plan`` with these words, in silence."""
    with contextlib.redirect_stdout(io.StringIO()):
        app(["plan", *words], standalone_mode=False)


def provenance() -> Row:
    """Versions and kind of machine, of every row."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, one thread"
    return {"torch": torch.__version__, "device": kind}


def difference(found: Mapping[int, float], other: Mapping[int, float], *, beside: str) -> str:
    """How far values are from others of the same seeds: mean, half of the 95 % interval; '' for no seed in common."""
    between = paired(found, other, beside=beside)
    if between is None:
        return ""
    return f"{between.mean:+.2f}" + (f" ± {between.high - between.mean:.2f}" if between.high is not None else "")


@dataclass(frozen=True)
class Series:
    """A series of runs.

    Attributes:
        name: Of its files, beside this module: ``NAME.jsonl``, ``NAME.md``.
        about: What the command line says of it.
        settings: Its settings.
        arms: The names of a setting's arms.
        measure: Makes a run and gives its row.
        table: Makes the table of rows.
        seeds: How many, unless the user says so.
        ready: Whether a run has what it needs of runs before it.
    """

    name: str
    about: str
    settings: tuple[str, ...]
    arms: Callable[[str], Iterable[str]]
    measure: Callable[[str, str, int, Work], Row]
    table: Callable[[list[Row]], str]
    seeds: int
    ready: Callable[[Run, Work], bool] = lambda _run, _work: True

    def rows(self) -> list[Row]:
        """The finished runs."""
        path = HERE / f"{self.name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def wanted(self, only: list[str], seeds: int) -> list[Run]:
        """The runs: seed after seed, so that a part of them compares as well."""
        return [
            (setting, arm, seed)
            for seed in range(seeds)
            for setting in self.settings
            for arm in self.arms(setting)
            if not only or setting in only or f"{setting}/{arm}" in only
        ]

    def main(self) -> int:
        """Run what is missing, as far as the time goes, and write the table."""
        parser = argparse.ArgumentParser(description=self.about.splitlines()[0])
        parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG files in an npz: _blob, _offsets, _labels")
        parser.add_argument("--fashion", type=Path, help="a folder with FashionMNIST/raw")
        parser.add_argument("--work", type=Path, default=Path(f"{self.name}-work"))
        parser.add_argument("--only", action="append", default=[], help="a setting, or SETTING/ARM")
        parser.add_argument("--seeds", type=int, default=self.seeds)
        parser.add_argument("--hours", type=float, default=math.inf)
        parser.add_argument("--table", action="store_true", help="write the table of what there is, and run nothing")
        options = parser.parse_args()
        if not options.table:
            options.work.mkdir(parents=True, exist_ok=True)
            sources = {name: getattr(options, name) for name in ("cifar", "fashion") if getattr(options, name)}
            self._run(options, Work(options.work, sources))
        (HERE / f"{self.name}.md").write_text(self.table(self.rows()))
        return 0

    def _run(self, options: argparse.Namespace, work: Work) -> None:
        ends = time.monotonic() + 3600 * options.hours
        done = {(row["setting"], row["arm"], row["seed"]) for row in self.rows()}
        for run in self.wanted(options.only, options.seeds):
            if run in done or run[0].partition("-")[0] not in work.sources or not self.ready(run, work):
                continue
            if time.monotonic() > ends:
                return
            row = self.measure(*run, work)
            with (HERE / f"{self.name}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(*run, f"{row['seconds']} s", flush=True)

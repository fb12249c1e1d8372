"""Half the multiply-accumulates: budget search beside a uniform ratio and Torch-Pruning's pruners.

    python -m benchmarks.deploy --cifar cifar10_jpeg.npz --fashion ROOT --work WORK
    python -m benchmarks.deploy … --only cifar-resnet --only fashion-mobilenet/global --seeds 3 --hours 2
    python -m benchmarks.deploy --table

A setting is data and a network; an arm is a way to a network of half its multiply-accumulates, by the magnitudes of the
weights or, where that is said, by what the loss on 128 training images loses with a channel, to first order (taylor):
``fxdistill shrink --macs 0.5 --round-to 1`` with each ranking, in multiples of 8, and by Torch-Pruning's
measure of a channel instead of the L1 norm of its filters; ``--keep`` with the largest share that costs no more; and
Torch-Pruning's pruner over all layers together and isomorphic, its ratio chosen in the same way and no layer
below a tenth. All arms are then trained alike: 3 epochs on the same 10,000 random images, SGD with Nesterov's momentum,
half a cosine from 0.02, random crops and flips. The figures are those of the last epoch on 2,000 random test images,
and nothing is chosen by them. The network they are cut out of is trained for 12 epochs on the same images; a seed is
that of the images looked at, and of their order, crops and flips. Latency is measured beside that of the whole network,
in ONNX Runtime, one thread. **Again**: the same with other whole networks of the kind.

A finished run is one line of ``deploy.jsonl``, with its seed, versions and machine, so that an interrupted series goes
on where it stopped; ``--table`` writes ``deploy.md``.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxdistill
from benchmarks import materials, series
from benchmarks.materials import Work
from benchmarks.series import Row, Series
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import InputError
from fxdistill.ir.budget import limits_of
from fxdistill.measure.latency import interleaved_latency
from fxdistill.passes.thin.search import Ranking
from fxdistill.passes.trace import Trace
from fxdistill.preprocessing import Preprocessing

SHARE, FLOOR, EPOCHS, WHOLE_EPOCHS, RATE, WHOLE_RATE = 0.5, 0.1, 3, 12, 0.02, 0.05
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("fxdistill.models:resnet", {"widths": [8, 16, 32, 64], "blocks": 2, "in_channels": 3}),
    "mobilenet": ("torchvision.models:mobilenet_v2", {
        "width_mult": 0.5, "num_classes": 10,
        "inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 2, 2], [6, 64, 2, 2]],
    }),
}  # fmt: skip
"""A narrow ResNet-18, and a narrow MobileNetV2 with fewer and later strides: what 32 pixels and a CPU core allow."""
SETTINGS = tuple(f"{data}-{network}" for data in ("cifar", "fashion") for network in NETWORKS)
AGAIN = tuple(f"{setting}-again" for setting in SETTINGS)
"""The same with whole networks that were trained anew, on another machine: run where they are named."""
_LOOKED_AT = 128
Batch = tuple[Tensor, Tensor]
"""Images as a network reads them, and their labels: what a measure of a channel may look at."""
Make = Callable[[Path, tuple[int, ...], Path, Batch], nn.Module]


def budget(ranking: Ranking, round_to: int = 1, by: str = "l1") -> Make:
    """``fxdistill shrink --macs 0.5 --ranking … --by …``."""

    def make(whole: Path, shape: tuple[int, ...], _folder: Path, batch: Batch) -> nn.Module:
        return shrink_model(
            _module(whole),
            input_shape=shape,
            limits=limits_of(macs=SHARE),
            ranking=ranking,
            floor=FLOOR,
            round_to=round_to,
            criterion=by,
            batch=batch,
        ).module

    return make


def ratio(whole: Path, shape: tuple[int, ...], _folder: Path, _batch: Batch) -> nn.Module:
    """``fxdistill shrink --keep``, with the largest share of all layers' channels that costs no more."""
    model = _module(whole)

    def at(keep: float) -> nn.Module | None:
        try:
            return shrink_model(model, input_shape=shape, keep=keep).module
        except InputError:  # nothing is removed
            return None

    return _affordable(at, model, shape)


def torch_pruning(*, isomorphic: bool, by: str = "magnitude") -> Make:
    """Torch-Pruning's pruner over all layers together, in a child process with a limit of time and memory."""

    def make(whole: Path, shape: tuple[int, ...], folder: Path, batch: Batch) -> nn.Module:
        series.apart(_prune, whole, shape, folder / "pruned.pt", (isomorphic, by), batch)
        return _module(folder / "pruned.pt")

    return make


def _prune(whole: Path, shape: tuple[int, ...], path: Path, how: tuple[bool, str], batch: Batch) -> None:
    import torch_pruning as library  # noqa: PLC0415  # prints and warns

    torch.set_num_threads(1)
    isomorphic, by = how
    original, measures = _module(whole), library.importance
    importance = {"magnitude": measures.GroupMagnitudeImportance(p=2), "taylor": measures.GroupTaylorImportance()}[by]

    def at(keep: float) -> nn.Module:
        model = copy.deepcopy(original).eval()
        last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
        pruner = library.pruner.MagnitudePruner(
            model, torch.randn(shape), importance=importance, pruning_ratio=1 - keep, max_pruning_ratio=1 - FLOOR,
            global_pruning=True, isomorphic=isomorphic, ignored_layers=[last],
        )  # fmt: skip
        if by == "taylor":
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        pruner.step()
        return model

    fxdistill.save(_affordable(at, original, shape), path, input_shape=shape)


ARMS: dict[str, Make] = {
    "budget, global": budget("global"),
    "budget, isomorphic": budget("isomorphic"),
    "budget, uniform": budget("uniform"),
    "budget, global, multiples of 8": budget("global", 8),
    "budget, global, by tp.magnitude": budget("global", by="tp.magnitude"),
    "budget, global, by taylor": budget("global", by="taylor"),
    "budget, global, by taylor+interpolative": budget("global", by="taylor+interpolative"),
    "budget, isomorphic, by taylor": budget("isomorphic", by="taylor"),
    "uniform ratio": ratio,
    "torch-pruning, global": torch_pruning(isomorphic=False),
    "torch-pruning, isomorphic": torch_pruning(isomorphic=True),
    "torch-pruning, global, by taylor": torch_pruning(isomorphic=False, by="taylor"),
    "torch-pruning, isomorphic, by taylor": torch_pruning(isomorphic=True, by="taylor"),
}
FIRST = next(iter(ARMS))


def _affordable(make: Callable[[float], nn.Module | None], whole: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """What is made of the largest share that costs no more than the budget, by bisection."""
    low, high, best = 0.02, 1.0, None
    most = SHARE * _macs(whole, shape)
    for _ in range(12):
        share = (low + high) / 2
        made = make(share)
        if made is not None and _macs(made, shape) <= most:
            low, best = share, made
        else:
            high = share
    assert best is not None
    return best


def _whole(work: Work, setting: str) -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """The network of a setting, trained, and the images: three channels of 32 pixels."""
    data, network, *_ = setting.split("-")
    arrays = dict(np.load(work.part(data)))
    for part in ("train_images", "test_images"):
        if arrays[part].shape[1] == 1:
            arrays[part] = np.pad(arrays[part].repeat(3, axis=1), ((0, 0), (0, 0), (2, 2), (2, 2)))
    factory, kwargs = NETWORKS[network]
    path = work.root / f"{setting}-whole.pt"
    return materials.teacher(
        path, factory, kwargs, lambda: arrays, lambda made: _sgd(made, WHOLE_RATE), epochs=WHOLE_EPOCHS
    ), arrays


def _sgd(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=4e-4)


def measure(setting: str, name: str, seed: int, work: Work) -> Row:
    """One run: cut, trained, measured."""
    path, arrays = _whole(work, setting)
    whole, loaded = _module(path), fxdistill.load(fxdistill.parse_source(str(path)))
    assert loaded.preprocessing is not None
    shape = (1, *arrays["test_images"].shape[1:])
    images, labels = (torch.from_numpy(arrays[f"train_{kind}"]) for kind in ("images", "labels"))
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (loaded.preprocessing.mean, loaded.preprocessing.std))
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:_LOOKED_AT]
    batch = (images[chosen].float() / 255 - mean) / std, labels[chosen].long()
    began = time.monotonic()
    made = ARMS[name](path, shape, work.folder, batch)
    cut = time.monotonic() - began
    before = _accuracy(made, arrays, loaded.preprocessing)
    materials.fit(
        made, images, labels.long(), loaded.preprocessing, _sgd(made, RATE), epochs=EPOCHS, seed=seed
    )  # fmt: skip
    return {
        "setting": setting, "arm": name, "seed": seed, "student": _accuracy(made, arrays, loaded.preprocessing),
        "untrained": before, "teacher": _accuracy(whole, arrays, loaded.preprocessing),
        "parameters": sum(p.numel() for p in made.parameters()), "macs": _macs(made, shape),
        "whole": [sum(p.numel() for p in whole.parameters()), _macs(whole, shape)],
        "latency": _latency({"student": made, "whole": whole}, shape, work.folder), "epochs": EPOCHS,
        "cut_seconds": round(cut, 1), "seconds": round(time.monotonic() - began), **series.provenance(),
    }  # fmt: skip


def _accuracy(model: nn.Module, arrays: dict[str, np.ndarray[Any, Any]], pixels: Preprocessing) -> float:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
    right = 0
    with torch.no_grad():
        for start in range(0, len(arrays["test_labels"]), materials.BATCH):
            images = torch.from_numpy(arrays["test_images"][start : start + materials.BATCH]).float() / 255
            labels = torch.from_numpy(arrays["test_labels"][start : start + materials.BATCH])
            found: Tensor = model.eval()((images - mean) / std).argmax(1)
            right += int((found == labels).sum())
    return round(right / len(arrays["test_labels"]), 5)


def _latency(models: dict[str, nn.Module], shape: tuple[int, ...], folder: Path) -> dict[str, float]:
    paths = {name: folder / f"{name}.onnx" for name in models}
    for name, model in models.items():
        fxdistill.export(model.to(memory_format=torch.contiguous_format), paths[name], input_shape=shape)
    found = interleaved_latency(paths, dict.fromkeys(paths, shape), repeats=200)
    return {name: round(one.median_ms, 4) for name, one in found.items()}


def _module(path: Path) -> nn.Module:
    return fxdistill.load(fxdistill.parse_source(str(path))).module


def _macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    return Trace(shape)(module.eval()).value.macs


_COLUMNS = (
    "arm", "accuracy", "before training", "seeds", "parameters", "MACs, share", "latency, share", "seconds to cut",
    f"difference to '{FIRST}'",
)  # fmt: skip


def table(rows: list[Row]) -> str:
    """For each setting its arms: accuracy, what is left of costs and latency, and the difference, paired."""
    about = str(__doc__).partition("A setting is data")[2].partition("A finished run is")[0]
    lines = [f"# Half the multiply-accumulates\n\nMade by `python -m benchmarks.deploy`. A setting is data{about}"]
    for setting in (*SETTINGS, *AGAIN):
        mine = [row for row in rows if row["setting"] == setting]
        if mine:
            (parameters, macs), teacher = mine[0]["whole"], 100 * mine[0]["teacher"]
            lines += [
                f"## {setting}, accuracy in %; the whole: {teacher:.2f}, {parameters:,} parameters, {macs:,} MACs", "",
                f"| {' | '.join(_COLUMNS)} |", "| --- " * len(_COLUMNS) + "|",
                *(_row(name, mine) for name in ARMS if any(row["arm"] == name for row in mine)), "",
            ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _row(name: str, rows: list[Row]) -> str:
    mine = [row for row in rows if row["arm"] == name]
    found = {row["seed"]: 100 * row["student"] for row in mine}
    first = {row["seed"]: 100 * row["student"] for row in rows if row["arm"] == FIRST}

    def mean(of: Callable[[Row], float]) -> float:
        return statistics.fmean(map(of, mine))

    spread = f" ± {statistics.stdev(found.values()):.2f}" if len(found) > 1 else ""
    cells = (
        name, f"{statistics.fmean(found.values()):.2f}{spread}", f"{mean(lambda r: 100 * r['untrained']):.2f}",
        str(len(found)), f"{mean(lambda r: r['parameters']):,.0f}", f"{mean(lambda r: r['macs'] / r['whole'][1]):.1%}",
        f"{mean(lambda r: r['latency']['student'] / r['latency']['whole']):.1%}",
        f"{mean(lambda r: r['cut_seconds']):.1f}",
        "" if name == FIRST else series.difference(found, first, beside=FIRST),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


SERIES = Series("deploy", str(__doc__), SETTINGS, lambda _setting: ARMS, measure, table, seeds=3, asked=AGAIN)

if __name__ == "__main__":
    sys.exit(SERIES.main())

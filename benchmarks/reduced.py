"""INT8 and FP16 against float: what five small networks lose, and how fast they are, in ONNX Runtime.

    python -m benchmarks.reduced --cifar cifar10_jpeg.npz --work WORK
    python -m benchmarks.reduced … --only cifar-resnet --only cifar-convnet/int8 --seeds 3 --hours 2
    python -m benchmarks.reduced --table

A setting is data and a network, an arm what the file is reduced by: the precision and, of INT8, how it is calibrated.
A network is trained on 10,000 random images for 12 epochs, SGD with Nesterov's momentum, half a cosine from 0.05,
random crops and flips; a seed is that of its weights and of the order of images, crops and flips. It is exported, and
reduced as ``fxdistill export --int8 --fp16`` does it, calibrated on 512 training images, without a gate: whether the
usual gate would have let it pass is noted. All is measured on the same 2,000 random test images, the difference with
its paired 95 % interval as ``fxdistill compare`` gives it; latency is that of one image, one thread, run by run.

A finished run is one line of ``reduced.jsonl``, with its seed, versions and machine, so that an interrupted series goes
on where it stopped; ``--table`` writes ``reduced.md``.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fxdistill
from benchmarks import materials, series
from benchmarks.materials import Work
from benchmarks.series import Row, Series
from fxdistill.measure.comparison import Comparison
from fxdistill.measure.onnx_reduced import Calibration, Precision
from fxdistill.modelfiles.factories import build
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.deployment import comparing, deploy, finding, reducing
from fxdistill.runtime.deployment.reducing import Reducing

EPOCHS, RATE = 12, 0.05
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnet": ("fxdistill.models:convnet", {"widths": [16, 32, 64], "in_channels": 3, "image_size": 32}),
    "resnet": ("fxdistill.models:resnet", {"widths": [8, 16, 32, 64], "blocks": 2, "in_channels": 3}),
    "mobilenet": ("torchvision.models:mobilenet_v2", {
        "width_mult": 0.5, "num_classes": 10,
        "inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 2, 2], [6, 64, 2, 2]],
    }),
    "shufflenet": ("torchvision.models:shufflenet_v2_x0_5", {"num_classes": 10}),
    "mobilenet3": ("torchvision.models:mobilenet_v3_small", {"num_classes": 10}),
}  # fmt: skip
"""Plain, residual, depthwise, shuffled, and with hard-swish and squeeze-and-excitation; the last two are torchvision's
own, which halve 32 pixels five times."""
ARMS: dict[str, tuple[Precision, Calibration]] = {
    "int8": ("int8", "minmax"),
    "fp16": ("fp16", "minmax"),
    "int8, entropy": ("int8", "entropy"),
    "int8, percentile": ("int8", "percentile"),
}


SAID = (
    "Made by `python -m benchmarks.reduced --table` of `reduced.jsonl`; what was measured is said in "
    "`benchmarks/reduced.py`. Accuracy in percent on 2,000 test images of the CIFAR copy, means over seeds, the "
    "difference with its least and greatest value; the interval is that of the images (paired, 95 %), of the first "
    "seed. Latency in ms, one image, one thread, medians, and of seeds their median."
)
COLUMNS = (
    "network", "file", "seeds", "float", "reduced", "difference", "of the first seed", "agreement", "gate passed",
    "ms, float", "ms", "kB, float", "kB",
)  # fmt: skip


def measure(setting: str, arm: str, seed: int, work: Work) -> Row:
    """One run: trained if that was not done yet, exported, reduced, compared."""
    data, network = setting.split("-")
    path = _trained(work, data, network, seed)
    began = time.monotonic()
    spec = f"npz:{work.part(data)}"
    found = finding.find(str(path), data=spec)
    float_file = work.folder / f"{path.stem}.onnx"
    deploy.exported(found, float_file)
    precision, calibration = ARMS[arm]
    made = reducing.reduced(
        found, float_file, precision, Reducing(calibration=calibration, tolerance=1e9, disagreement=100)
    )
    files = [str(float_file), str(made.path)]
    together = comparing.comparison(comparing.found_together(files, data=spec), files, most=0)
    return {
        "setting": setting, "arm": arm, "seed": seed, "float": made.of_float, "student": made.value,
        **_apart(together), "agreement": made.agreement,
        "passes": not reducing.loses(made, Reducing(), found.task),
        "ms": round(made.latency[precision].median_ms, 4), "float_ms": round(made.latency["float"].median_ms, 4),
        "bytes": made.bytes[precision], "float_bytes": made.bytes["float"], "images": made.images, "epochs": EPOCHS,
        "seconds": round(time.monotonic() - began), **series.provenance(),
    }  # fmt: skip


def _trained(work: Work, data: str, network: str, seed: int) -> Path:
    """The network's file, trained under a seed unless it is there."""
    factory, kwargs = NETWORKS[network]

    def make(unfinished: Path) -> None:
        arrays = np.load(work.part(data))
        images, labels = (torch.from_numpy(arrays[f"train_{kind}"]) for kind in ("images", "labels"))
        values = images.float().transpose(0, 1).flatten(1) / 255
        mean, std = ([round(float(x), 4) for x in found] for found in (values.mean(1), values.std(1)))
        pixels = Preprocessing(size=list(images.shape[2:]), mean=mean, std=std, channels="rgb")
        made: nn.Module = build(factory, dict(kwargs), seed=seed)
        optimizer = torch.optim.SGD(made.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=4e-4)
        materials.fit(made, images, labels.long(), pixels, optimizer, epochs=EPOCHS, seed=seed)
        fxdistill.save(
            made, unfinished, factory=factory, kwargs=dict(kwargs), input_shape=(1, *images.shape[1:]),
            preprocessing=pixels,
        )  # fmt: skip

    return materials.once(work.root / f"{data}-{network}-{seed}.pt", make)


def _apart(found: Comparison) -> Row:
    """The difference in points, with its interval."""
    difference = found.difference
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    ends = {"difference": difference.value, "low": difference.low, "high": difference.high}
    return {name: round(100 * value, 3) for name, value in ends.items()}


def table(rows: list[Row]) -> str:
    """One line for each network and arm, means over seeds."""
    lines = [
        "# INT8 and FP16 against float",
        "",
        SAID,
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' for _ in COLUMNS)} |",
    ]
    for network in NETWORKS:
        for arm in ARMS:
            mine = [row for row in rows if (row["setting"], row["arm"]) == (f"cifar-{network}", arm)]
            if mine:
                lines.append(f"| {network} | {arm} | {_line(sorted(mine, key=lambda row: int(row['seed'])))} |")
    return "\n".join(lines) + "\n"


def _line(mine: list[Row]) -> str:
    def mean(key: str, scale: float = 1.0) -> float:
        return scale * statistics.fmean(row[key] for row in mine)

    def middle(key: str) -> float:
        return float(statistics.median(row[key] for row in mine))

    first, differences = mine[0], [row["difference"] for row in mine]
    ends = f" ({min(differences):+.2f} to {max(differences):+.2f})" if len(mine) > 1 else ""
    cells = [
        str(len(mine)), f"{mean('float', 100):.2f}", f"{mean('student', 100):.2f}", f"{mean('difference'):+.2f}{ends}",
        f"{first['difference']:+.2f} ({first['low']:+.2f} … {first['high']:+.2f})", f"{mean('agreement', 100):.2f} %",
        f"{sum(row['passes'] for row in mine)} of {len(mine)}", f"{middle('float_ms'):.3f}", f"{middle('ms'):.3f}",
        f"{mean('float_bytes', 1e-3):.0f}", f"{mean('bytes', 1e-3):.0f}",
    ]  # fmt: skip
    return " | ".join(cells)


SERIES = Series(
    "reduced", __doc__ or "", tuple(f"cifar-{network}" for network in NETWORKS), lambda _setting: ARMS, measure, table,
    seeds=3,
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(SERIES.main())

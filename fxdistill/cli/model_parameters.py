"""Arguments and options about a model by itself: exporting, measuring, timing, comparing it, and making it smaller."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fxdistill.cli.help import names
from fxdistill.cli.parameters import EACH_OF, OUTPUT_OF, RUN_OR_MODEL
from fxdistill.cli.values import there

Calibration = Literal["minmax", "entropy", "percentile"]

OnnxOutput = Annotated[Path, typer.Option("--output", "-o", help="The ONNX file.")]
OutputEntry = Annotated[str | None, typer.Option("--output-entry", metavar="NAME", help=OUTPUT_OF.format("model"))]
OutputEntries = Annotated[
    list[str], typer.Option("--output-entry", metavar="NAME", help=f"{OUTPUT_OF.format('model')} {EACH_OF}")
]
OnlyOutput = Annotated[
    list[str], typer.Option("--only-output", metavar="NAME", help="Write this output, not all; repeatable.")
]
At = Annotated[
    list[int], typer.Option("--at", min=1, metavar="K", help="In retrieval: precision among the K nearest; repeatable.")
]
Top = Annotated[list[int], typer.Option(
    "--top", min=1, metavar="K", help="In classification: accuracy among the K first answers; repeatable."
)]  # fmt: skip
PerClass = Annotated[bool, typer.Option("--per-class", help="Also measure each class by itself.")]
_SIDE = f"{RUN_OR_MODEL} Or an ONNX file."
First = Annotated[str, typer.Argument(metavar="A", help=_SIDE, callback=there)]
Second = Annotated[str, typer.Argument(metavar="B", help="Another one, compared with the first.", callback=there)]
Widest = Annotated[
    int, typer.Option("--images", min=0, metavar="N", help="How many images to name on which they differ most.")
]
Embed = Annotated[
    bool, typer.Option("--embed-preprocessing", help="Take uint8 (N, H, W, C); the normalisation is inside the file.")
]
Models = Annotated[
    list[str], typer.Argument(metavar="RUN_DIR|MODEL|ONNX", help=f"{RUN_OR_MODEL} Or an ONNX file.", callback=there)
]
Batches = Annotated[
    list[int], typer.Option("--batch", min=1, max=1 << 20, metavar="N", help="Images per run; repeatable.")
]
TimedRuns = Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=1024, help="Threads within an operator.")]
Provider = Annotated[str, typer.Option("--provider", help="ONNX Runtime's execution provider: CPU, CUDA, ….")]
InTorch = Annotated[bool, typer.Option("--torch", help="Also time models that are not ONNX files in torch.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Optimize = Annotated[
    bool, typer.Option("--optimize", help="Simplify the file's graph, if that passes the gate as well.")
]
Int8 = Annotated[
    bool, typer.Option("--int8", help="Write NAME-int8.onnx as well: quantized, if it passes a gate of its own.")
]
Fp16 = Annotated[
    bool, typer.Option("--fp16", help="Write NAME-fp16.onnx as well: half precision, if it passes the same gate.")
]
Calibrate = Annotated[
    str | None, typer.Option("--calibrate", metavar="SPEC", help="Calibrate INT8 on the training images of other data.")
]
CalibrationWay = Annotated[
    Calibration | None,
    typer.Option("--calibration", help="How the ranges of INT8 follow from the calibration images. Default: minmax."),
]
CalibrationImages = Annotated[
    int | None, typer.Option("--calibration-images", min=1, help="How many calibration images. Default: 512.")
]
ToleranceAccuracy = Annotated[float | None, typer.Option(
    "--tolerance-accuracy", min=0, metavar="POINTS",
    help="How much accuracy less precision may cost on test images. Default: 1."
)]  # fmt: skip
ToleranceAgreement = Annotated[float | None, typer.Option(
    "--tolerance-agreement", min=0, max=100, metavar="POINTS",
    help="How often it may predict otherwise on test images. Default: 5."
)]  # fmt: skip
Opset = Annotated[int, typer.Option("--opset", min=16, help="Version of ONNX's operators.")]
_ERROR = "Largest error of a prediction, as a share of the largest entry of all, or of 0.01 if that is less."
Tolerance = Annotated[float, typer.Option("--tolerance", min=0, help=_ERROR)]
Keep = Annotated[float | None, typer.Option("--keep", help="Share of the channels to keep, between 0 and 1.")]
_BUDGET = "it may have instead, met within 2 %: 0.5 of its own, or {}."
Macs = Annotated[
    str | None,
    typer.Option("--macs", metavar="SHARE|N", help=f"Multiply-accumulates of an image {_BUDGET.format('900M')}"),
]
Params = Annotated[str | None, typer.Option("--params", metavar="SHARE|N", help=f"Parameters {_BUDGET.format('1M')}")]
Latency = Annotated[
    str | None, typer.Option("--latency", metavar="SHARE|TIME", help=f"Time in ONNX Runtime {_BUDGET.format('3ms')}")
]
RunsOn = Literal["cpu", "cuda"]
On = Annotated[RunsOn | None, typer.Option("--on", help="Where latency is measured. Default: cpu.")]
LatencyTable = Annotated[
    Path | None,
    typer.Option("--latency-table", metavar="FILE", help="Times of layers on this machine, to use and to add to."),
]
Ranking = Literal["global", "isomorphic", "uniform"]
HowRanked = Annotated[Ranking | None, typer.Option(
    "--ranking",
    help="Which channels compete: all; those of similar layers; those of one layer. Default: uniform with --keep, "
    "global with a budget."
)]  # fmt: skip
Floor = Annotated[
    float | None,
    typer.Option("--floor", help="Least share of its channels that a layer keeps. Default: 0.1 with a budget."),
]
Scopes = Annotated[
    list[str],
    typer.Option("--scope", metavar="PATH=SHARE", help="Share that one part keeps: layer4=0.3; repeatable."),
]
StepCount = Annotated[
    int, typer.Option("--steps", min=1, help="Steps towards the budget, with training on --data between them.")
]
BetweenSteps = Annotated[
    int | None, typer.Option("--recover", min=1, max=1_000_000, help="Epochs of training between steps. Default: 1.")
]
RecoveringRate = Annotated[float, typer.Option("--lr", min=1e-9, max=100, help="Learning rate of the smaller model.")]
BetweenRate = Annotated[
    float | None, typer.Option("--lr", min=1e-9, max=100, help="Learning rate between steps. Default: 0.003.")
]
CompressOutput = Annotated[
    Path, typer.Option("--output", "-o", help="The folder for everything: a new one, or one to continue in.")
]
SmallerOutput = Annotated[Path, typer.Option("--output", "-o", help="The smaller model: a bundle.")]
By = Annotated[str | None, typer.Option(
    "--by", autocompletion=names("criterion", between="+"),
    help="Importance of a channel: {criteria}; NAME+NAME for layers' widths and for a layer's channels. Default: l1; "
    "with --data l1+interpolative, under a budget, if it has labels, taylor+interpolative.",
)]  # fmt: skip
RoundTo = Annotated[int | None, typer.Option(
    "--round-to", min=1,
    help="Widths become multiples of this. Default: 8 with a budget, or 4, 2, 1 where that is too coarse; else 1."
)]  # fmt: skip
Protect = Annotated[list[str], typer.Option("--protect", help="Module or node whose channels stay; repeatable.")]
Only = Annotated[list[str], typer.Option("--only", help="Module to prune, and no other; repeatable.")]
RandomSeed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="For --by random.")]

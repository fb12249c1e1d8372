"""The cascade: a student pruned out of its teacher, beside the usual ways to a network of that size.

    python -m benchmarks.cascade --cifar cifar10_jpeg.npz --fashion ROOT --work WORK
    python -m benchmarks.cascade … --only cifar-vgg-0.2 --only cifar-vgg-0.4/kd --seeds 3 --hours 2
    python -m benchmarks.cascade --cifar … --only cifar50k-vgg16-0.2 --device cuda --precision bf16-mixed --epochs 12
    python -m benchmarks.cascade --table

A setting is data, a network and the share of channels that a cascade's student keeps; what an arm does stands in
``ARMS``. The cascades go first: the other arms get a student of the multiply-accumulates that the cascade with three
assistants came to under the same seed, cascades under a budget as well, and as many epochs in all as its two phases
have, a warm-up's among them. An epoch of the joint phase costs more than one of the others, which is in the column of
seconds. All arms train on the same 10,000 random images, of which a tenth is set aside to watch by; the figures are
those of the last epoch on 2,000 random test images, and nothing is chosen by them. The teacher is trained on the same
10,000 images. Rows under "again" have another teacher, which the same training gave on another processor; those of 30 +
30 epochs have that one as well. Scores move at 0.001, which was the default when most rows were made, except in the
rows "cascade, N assistants, budget" and "rate of now", which have the default of now, 0.0003. Budgets are filled up,
but in the rows of the VGG at 0.2 and on Fashion-MNIST at 0.2, where channels were kept up to the first that did not
fit: one to two percent less.
Rows under "uneven batches" are of before the batches of an epoch had one size.

The paper's scale is the setting ``cifar50k-vgg16-0.2``, which is run where it is named: VGG16 (15.0 M parameters, 313 M
multiply-accumulates), all 50,000 training and 10,000 test images; 80 epochs of either phase, or as many as ``--epochs``
says, which is then a part of the setting's name. Runs on an accelerator have no latency: they stand beside others.

A finished run is one line of ``cascade.jsonl``, with its seed, versions and machine, so that an interrupted series goes
on where it stopped; ``--table`` writes ``cascade.md``.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import fxdistill
from benchmarks import materials, series
from benchmarks.cascade_ways import (
    FASTER,
    SCRATCH_RATE,
    Run,
    budgeted,
    cascade,
    from_scratch,
    macs_of,
    module_of,
    pixels_of,
    pruned,
    scored,
    sgd,
    shape_of,
    short_warm_up,
    shrunken,
    standing,
    student,
    without_kd,
)  # fmt: skip
from benchmarks.materials import Work
from benchmarks.series import Row, Series

EPOCHS, TEACHER_EPOCHS = 8, 20
PAPER, PAPER_EPOCHS, PAPER_TEACHER_EPOCHS = "cifar50k-vgg16-0.2", 80, 30
"""The setting at the paper's scale, and its own numbers of epochs."""
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg": ("vgg", {"widths": [8, "M", 16, "M", 32, 32, "M", 64, 64], "hidden": 64}),
    "resnet": ("resnet", {"widths": [8, 16, 32], "blocks": 2}),
    "vgg16": ("vgg", {}),
}
"""A narrow VGG of eight layers with weights, and a narrow ResNet-14: what one CPU core can train some dozen times. And
VGG16, as the literature has it on CIFAR-10."""
SETTINGS = tuple(
    f"{data}-{network}-{keep}"
    for keep in (0.2, 0.4, 0.7)
    for data in ("cifar", "fashion")
    for network in ("vgg", "resnet")
)


@dataclass(frozen=True)
class Arm:
    """One way to a small network.

    Attributes:
        train: Runs it, and gives the run's result with the seconds that it took.
        beside: The arm that it is compared with, seed by seed.
        refers: Whether it is given the student of the cascade with three assistants.
    """

    train: Callable[["Run"], dict[str, Any]]
    beside: str = "cascade, 3 assistants"
    refers: bool = True


WHOLE, NOT_FIRST = "budget, first layer whole", ("--no-mask-first",)
"""How a cascade under a budget is told whose first convolution keeps all its channels, and the option for it."""


TOLD = ("3 assistants", "1 assistant", "0 assistants")


def _beside(told: str, rate: str) -> str:
    """What a cascade under a budget is compared with: itself at the default rate, the one with three, magnitude."""
    if rate:
        return f"cascade, {told}, budget"
    return "torch-pruning, magnitude" if told == TOLD[0] else f"cascade, {TOLD[0]}, budget"


def _first_whole(told: str, ways: dict[str, Callable[["Run"], dict[str, Any]]]) -> dict[str, Arm]:
    """Cascades under a budget whose first convolution stays whole, each with one thing of its own."""
    return {f"cascade, {told}, {WHOLE}, {name}": Arm(way, beside=f"cascade, {told}, {WHOLE}")
            for name, way in ways.items()}  # fmt: skip


ARMS: dict[str, Arm] = {
    "cascade, 3 assistants": Arm(cascade("--assistants", "3"), beside="teacher", refers=False),
    "cascade, 3 assistants, rate of now": Arm(cascade("--assistants", "3", rate=None)),
    "cascade, 3 assistants, rate of now, first layer masked": Arm(
        cascade("--assistants", "3", "--mask-first", rate=None)
    ),
    "cascade, 1 assistant": Arm(cascade("--assistants", "1"), refers=False),
    "cascade, 0 assistants": Arm(cascade("--assistants", "0"), refers=False),
    **{
        f"cascade, {told}, budget{rate}": Arm(
            cascade("--assistants", told[0], budget=True, rate=given), beside=_beside(told, rate)
        )
        for rate, given in (("", None), (f", rate {FASTER}", FASTER))
        for told in TOLD
    },
    "cascade, 3 assistants, budget, masks stay": Arm(
        cascade("--assistants", "3", budget=True, edit=standing), beside="cascade, 3 assistants, budget"
    ),
    **{
        f"cascade, {told}, {WHOLE}": Arm(
            cascade("--assistants", told[0], *NOT_FIRST, budget=True), beside=f"cascade, {told}, budget, rate {FASTER}"
        )
        for told in TOLD
    },
    **_first_whole(
        "1 assistant",
        {
            "masks stay": cascade("--assistants", "1", *NOT_FIRST, budget=True, edit=standing),
            "sgd": cascade("--assistants", "1", *NOT_FIRST, budget=True, edit=scored("sgd", 0.03)),
            "threshold a layer": cascade("--assistants", "1", "--threshold", "layer", *NOT_FIRST, budget=True),
            "centred": cascade("--assistants", "1", "--centred", *NOT_FIRST, budget=True),
            "hints alone": cascade("--assistants", "1", "--hints-alone", "0.1", *NOT_FIRST, budget=True),
        },
    ),
    **_first_whole(
        "3 assistants",
        {
            "masks stay": cascade("--assistants", "3", *NOT_FIRST, budget=True, edit=standing),
            "threshold a layer": cascade("--assistants", "3", "--threshold", "layer", *NOT_FIRST, budget=True),
            "centred": cascade("--assistants", "3", "--centred", *NOT_FIRST, budget=True),
            "masks rest": cascade(
                "--assistants", "3", *NOT_FIRST, budget=True, edit=scored("rmsprop", 0.001, until=0.5)
            ),
        },
    ),
    f"indistill+cascade, 1 assistant, {WHOLE}": Arm(
        cascade("--assistants", "1", *NOT_FIRST, method="indistill+cascade", budget=True, edit=short_warm_up),
        beside=f"cascade, 1 assistant, {WHOLE}",
    ),
    "cascade, 3 assistants, no kd": Arm(cascade("--assistants", "3", edit=without_kd), refers=False),
    "cascade, 3 assistants, hints": Arm(cascade("--assistants", "3", "--hints", "0.001"), refers=False),
    "shrink + kd": Arm(student(shrunken, "kd")),
    "shrink to a budget, with data + kd": Arm(student(budgeted, "kd"), beside="torch-pruning, magnitude + kd"),
    "shrink to a budget, with data": Arm(student(budgeted, "supervised"), beside="torch-pruning, magnitude"),
    "torch-pruning, magnitude": Arm(student(pruned("magnitude"), "supervised")),
    "torch-pruning, magnitude + kd": Arm(student(pruned("magnitude"), "kd"), beside="torch-pruning, magnitude"),
    "torch-pruning, group-norm": Arm(student(pruned("group-norm"), "supervised")),
    "same widths from scratch": Arm(student(from_scratch, "supervised", rate=SCRATCH_RATE)),
    "same widths from scratch, kd": Arm(student(from_scratch, "kd", rate=SCRATCH_RATE)),
}
FIRST = "cascade, 3 assistants"
PAPER_ARMS = (
    FIRST, "cascade, 1 assistant", "cascade, 0 assistants", "shrink + kd", "torch-pruning, magnitude",
    "cascade, 1 assistant, budget", "cascade, 0 assistants, budget", "cascade, 3 assistants, budget",
)  # fmt: skip


def _teacher(work: Work, data: str, network: str) -> Path:
    """A teacher's file, trained on the part of the data that all arms train on."""
    name, kwargs = NETWORKS[network]
    arrays = np.load(work.part(data))
    arguments = {**kwargs, "in_channels": arrays["train_images"].shape[1]}
    arguments |= {"image_size": arrays["train_images"].shape[2]} if name == "vgg" else {}
    epochs = _teacher_epochs(data, work)
    told = f"-{epochs}epochs" if epochs != _teacher_epochs(data, replace(work, options={})) else ""
    return materials.teacher(
        work.root / f"{data}-{network}-part{told}.pt", name, arguments, lambda: arrays,
        lambda made: sgd(made, SCRATCH_RATE), epochs=epochs, device=work.device, precision=_precision(work),
    )  # fmt: skip


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, help=f"of either phase; {EPOCHS}, in {PAPER} {PAPER_EPOCHS}")
    parser.add_argument("--teacher-epochs", type=int, help=f"{TEACHER_EPOCHS}, in {PAPER} {PAPER_TEACHER_EPOCHS}")
    parser.add_argument("--cuda-graphs", choices=("auto", "off"), default="auto", help="whether steps are recorded")
    parser.add_argument("--again", action="store_true", help="teachers were trained anew: rows stand apart")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")


def _precision(work: Work) -> materials.Precision:
    found: materials.Precision = work.options.get("precision", "32-true")
    return found


def _teacher_epochs(data: str, work: Work) -> int:
    usual = PAPER_TEACHER_EPOCHS if data in materials.WHOLE else TEACHER_EPOCHS
    return work.options.get("teacher_epochs") or usual


def _epochs(setting: str, work: Work) -> int:
    return work.options.get("epochs") or (PAPER_EPOCHS if setting == PAPER else EPOCHS)


def _named(setting: str, work: Work) -> str:
    """A setting with what the command line makes other than usual in it."""
    epochs, precision = _epochs(setting, work), _precision(work)
    said = [] if epochs == _epochs(setting, replace(work, options={})) else [f"{epochs} + {epochs} epochs"]
    said += [] if precision == "32-true" else [precision]
    said += ["again"] if work.options.get("again") else []
    return ", ".join([setting, *said])


def _student(work: Work, setting: str, seed: int) -> Path:
    """Where the student of the cascade with three assistants is kept, for the other arms."""
    return work.root / f"{_named(setting, work).replace(', ', '-').replace(' ', '')}-seed{seed}.pt"


def measure(setting: str, name: str, seed: int, work: Work) -> Row:
    """One run: planned, trained, measured."""
    data, network, keep = setting.split("-")
    epochs, precision, graphs = _epochs(setting, work), _precision(work), work.options.get("cuda_graphs", "auto")
    folder, teacher, spec = work.folder, _teacher(work, data, network), f"npz:{work.part(data)}"
    reference = _student(work, setting, seed) if ARMS[name].refers else None
    run = Run(folder, teacher, spec, float(keep), seed, epochs, reference, work.device, precision, graphs)
    result = ARMS[name].train(run)
    made, shape = module_of(folder / "run" / "student.pt"), shape_of(teacher)
    if name == FIRST:
        shutil.copy(folder / "run" / "student.pt", folder / "kept.pt")
        (folder / "kept.pt").replace(_student(work, setting, seed))  # never there in part
    whole = module_of(teacher)
    told = fxdistill.evaluate(whole.to(work.device), spec, input_shape=shape, preprocessing=pixels_of(teacher))
    whole.cpu()
    row = {
        "setting": _named(setting, work), "arm": name, "seed": seed,
        "student": round(result["arms"][-1]["accuracy"], 5),
        "teacher": round(told["accuracy"], 5),
        "parameters": sum(p.numel() for p in made.parameters()), "macs": macs_of(made, shape),
        "whole": [sum(p.numel() for p in whole.parameters()), macs_of(whole, shape)],
        "joint": next((round(arm["accuracy"], 5) for arm in result["arms"] if arm["name"] == "joint"), None),
        "epochs": epochs, "teacher_epochs": _teacher_epochs(data, work), "precision": precision,
        "seconds": round(result["took"]), **series.provenance(work.device),
    }  # fmt: skip
    if work.device == "cpu":
        row["latency"] = {one: round(found["median_ms"], 4) for one, found in result["latency"].items()}
    return row


_COLUMNS = (
    "arm", "accuracy", "change", "seeds", "parameters", "MACs", "latency, ms", "seconds", "difference to",
    "paired, 95 %",
)  # fmt: skip


def table(rows: list[Row]) -> str:
    """For each setting its arms: the change against the teacher, sizes, latency; and the difference, paired."""
    lines = [f"# The cascade beside other ways to a network of its size\n\n{_about()}", ""]
    usual = series.told(SETTINGS)
    others = sorted({row["setting"] for row in rows}.difference(usual))
    for setting in (*usual, *others):
        mine = [row for row in rows if row["setting"] == setting]
        if mine:
            teacher = 100 * mine[0]["teacher"]
            parameters, macs = mine[0]["whole"]
            lines += [
                f"## {setting}, accuracy in %; the teacher: {teacher:.2f}, {parameters:,} parameters, {macs:,} MACs",
                "",
                f"| {' | '.join(_COLUMNS)} |",
                "| --- " * len(_COLUMNS) + "|",
                *(_row(name, mine) for name in ARMS if any(row["arm"] == name for row in mine)), "",
            ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _about() -> str:
    about = str(__doc__).partition("A setting is data")[2].partition("A finished run is")[0]
    return f"Made by `python -m benchmarks.cascade`. A setting is data{about}".strip()


def _row(name: str, rows: list[dict[str, Any]]) -> str:
    mine = [row for row in rows if row["arm"] == name]
    found, beside = {row["seed"]: 100 * row["student"] for row in mine}, ARMS[name].beside
    other = {row["seed"]: 100 * (row["teacher"] if beside == "teacher" else row["student"]) for row in rows
             if row["arm"] == (name if beside == "teacher" else beside)}  # fmt: skip
    said = series.difference(found, other, beside=beside)
    spread = f" ± {statistics.stdev(found.values()):.2f}" if len(found) > 1 else ""
    mean, teacher = statistics.fmean(found.values()), 100 * statistics.fmean(row["teacher"] for row in mine)
    sizes = [f"{statistics.fmean(row[key] for row in mine):,.0f}" for key in ("parameters", "macs")]
    times = [row["latency"]["student"] for row in mine if "latency" in row]
    timed = f"{statistics.fmean(times):.3f}" if times else "not measured"
    seconds = f"{statistics.fmean(row['seconds'] for row in mine):,.0f}"
    cells = (
        name,
        f"{mean:.2f}{spread}",
        f"{mean - teacher:+.2f}",
        str(len(found)),
        *sizes,
        timed,
        seconds,
        beside,
        said,
    )
    return f"| {' | '.join(cells)} |"


def _ready(run: series.Run, work: Work) -> bool:
    """Whether the student that others are compared with is there."""
    setting, arm, seed = run
    return not ARMS[arm].refers or _student(work, setting, seed).is_file()


def _needs(run: series.Run) -> series.Run | None:
    """The run whose student another one is given."""
    setting, arm, seed = run
    return (setting, FIRST, seed) if ARMS[arm].refers else None


SERIES = Series(
    "cascade", str(__doc__), SETTINGS, lambda setting: PAPER_ARMS if setting == PAPER else ARMS, measure, table,
    seeds=3, ready=_ready, needs=_needs, devices=("cpu", "cuda"), asked=(PAPER,), options=_options, named=_named,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(SERIES.main())

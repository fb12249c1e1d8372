"""The cascade: a student pruned out of its teacher, beside the usual ways to a network of that size.

    python -m benchmarks.cascade --cifar cifar10_jpeg.npz --fashion ROOT --work WORK
    python -m benchmarks.cascade … --only cifar-vgg-0.2 --only cifar-vgg-0.4/kd --seeds 3 --hours 2
    python -m benchmarks.cascade --table

A setting is data, a network and the share of channels that a cascade's student keeps; what an arm does stands in
``ARMS``. The cascades go first: the other arms get a student of the multiply-accumulates that the cascade with three
assistants came to under the same seed, and as many epochs in all as its two phases have. An epoch of the joint phase
costs more than one of the others, which is in the column of seconds. All arms train on the same 10,000 random images,
of which a tenth is set aside to watch by; the figures are those of the last epoch on 2,000 random test images, and
nothing is chosen by them. The teacher is trained on the same 10,000 images.

A finished run is one line of ``cascade.jsonl``, with its seed, versions and machine, so that an interrupted series goes
on where it stopped; ``--table`` writes ``cascade.md``.
"""

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fxdistill
from benchmarks import series
from benchmarks.series import Row, Series, Work
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load as load_plan
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.execute import Settings, execute

EPOCHS, TEACHER_EPOCHS, RATE, SCRATCH_RATE = 8, 20, 0.008, 0.05
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg": ("vgg", {"widths": [8, "M", 16, "M", 32, 32, "M", 64, 64], "hidden": 64}),
    "resnet": ("resnet", {"widths": [8, 16, 32], "blocks": 2}),
}
"""A narrow VGG of eight layers with weights, and a narrow ResNet-14: what one CPU core can train some dozen times."""
SETTINGS = tuple(
    f"{data}-{network}-{keep}" for keep in (0.2, 0.4, 0.7) for data in ("cifar", "fashion") for network in NETWORKS
)


@dataclass(frozen=True)
class Arm:
    """One way to a small network.

    Attributes:
        train: Runs it, and gives the run's result with the seconds that it took.
        beside: The arm that it is compared with, seed by seed.
    """

    train: Callable[["Run"], dict[str, Any]]
    beside: str = "cascade, 3 assistants"


@dataclass(frozen=True)
class Run:
    """What an arm is given."""

    folder: Path
    teacher: Path
    data: str
    keep: float
    seed: int
    epochs: int
    reference: Path | None
    """The student of the cascade with three assistants under this seed; None for the cascades."""

    @property
    def common(self) -> list[str]:
        """What all plans of a setting are told."""
        return [
            "-o", str(self.folder / "plan.json"), "--data", self.data, "--val", "0.1", "--seed", str(self.seed),
            "--batch-size", str(series.BATCH), "--no-measure", "--augment", "flip,crop:4",
        ]  # fmt: skip


def cascade(*options: str, edit: Callable[[Plan], Plan] = lambda plan: plan) -> Callable[[Run], dict[str, Any]]:
    """A cascade; ``options`` are further ones of ``fxdistill plan``."""

    def train(run: Run) -> dict[str, Any]:
        series.plan(
            str(run.teacher), *run.common, "--method", "cascade", "--keep", str(run.keep), "--epochs", str(run.epochs),
            *options,
        )  # fmt: skip
        return _executed(run, edit)

    return train


def without_kd(plan: Plan) -> Plan:
    """The plan with cross-entropy alone, in both phases."""
    stages = [
        [s.changed(losses=[t for t in s.losses if t.teacher is None], successors=[]) for s in arm.stages]
        for arm in plan.arms
    ]
    return plan.changed(arms=[arm.changed(stages=own) for arm, own in zip(plan.arms, stages, strict=True)], costed="")


def student(make: Callable[[Run], nn.Module], method: str, *, rate: float = RATE) -> Callable[[Run], dict[str, Any]]:
    """A student that is made first, then trained for as many epochs as both phases of a cascade have."""

    def train(run: Run) -> dict[str, Any]:
        began = time.monotonic()
        made, spent = make(run), 0
        if isinstance(made, tuple):
            made, spent = made
        shape = _shape(run.teacher)
        fxdistill.save(made.eval(), run.folder / "student.pt", input_shape=shape)
        series.plan(
            str(run.teacher), str(run.folder / "student.pt"), *run.common, "--method", method, "--no-control",
            "--epochs", str(2 * run.epochs - spent), "--lr", str(rate), "--optimizer", "sgd", "--momentum", "0.9",
            "--weight-decay", "4e-4", "--set", "main.optimizer.nesterov=true",
        )  # fmt: skip
        return _executed(run, seconds=time.monotonic() - began)

    return train


def from_scratch(run: Run) -> nn.Module:
    """The cascade's own student, on random weights."""
    made = fxdistill.load(fxdistill.parse_source(str(run.reference))).module
    torch.manual_seed(run.seed)
    for part in made.modules():
        reset: Any = getattr(part, "reset_parameters", None)
        if reset is not None:
            reset()
    return made


def shrunken(run: Run) -> nn.Module:
    """The teacher shrunken by L1, all layers alike, to the multiply-accumulates of the cascade's student."""
    teacher, shape = _module(run.teacher), _shape(run.teacher)
    wanted = _macs(_module(run.reference), shape)

    def at(keep: float) -> nn.Module:
        return shrink_model(teacher, input_shape=shape, keep=keep).module

    return _nearest(at, lambda made: _macs(made, shape), wanted)


def pruned(kind: str) -> Callable[[Run], Any]:
    """The teacher pruned by Torch-Pruning, over all layers together, to the same multiply-accumulates.

    ``magnitude`` at once; ``group-norm`` after half of the epochs of its sparse training. In a child process, with
    a limit of time and memory.
    """

    def make(run: Run) -> Any:
        series.apart(_prune, kind, run)
        found = _module(run.folder / "pruned.pt")
        return (found, run.epochs) if kind == "group-norm" else found

    return make


def _prune(kind: str, run: Run) -> None:
    """Write ``pruned.pt``."""
    import torch_pruning  # noqa: PLC0415  # prints and warns

    torch.set_num_threads(1)
    teacher, shape = _module(run.teacher), _shape(run.teacher)
    images = torch.randn(shape)
    wanted = _macs(_module(run.reference), shape)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2 if kind == "group-norm" else 1)
    make = getattr(torch_pruning.pruner, "GroupNormPruner" if kind == "group-norm" else "MagnitudePruner")

    def pruner(model: nn.Module, ratio: float) -> Any:
        last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
        return make(
            model, images, importance=importance, pruning_ratio=ratio, global_pruning=True, ignored_layers=[last],
            max_pruning_ratio=0.98,
        )  # fmt: skip

    if kind == "group-norm":
        _sparse(teacher, pruner(teacher, 0.5), run)

    def at(keep: float) -> nn.Module:
        import copy  # noqa: PLC0415

        model = copy.deepcopy(teacher).eval()
        pruner(model, 1 - keep).step()
        return model

    made = _nearest(at, lambda one: _macs(one, shape), wanted)
    fxdistill.save(made.eval(), run.folder / "pruned.pt", input_shape=shape)


def _sparse(model: nn.Module, pruner: Any, run: Run) -> None:
    """Group-norm's sparse training: cross-entropy and the pruner's regulariser, for half of the epochs."""
    arrays = np.load(run.data.partition(":")[2])
    kept = np.random.default_rng(run.seed).permutation(len(arrays["train_labels"]))[
        : len(arrays["train_labels"]) * 9 // 10
    ]
    series.fit(
        model, torch.from_numpy(arrays["train_images"][kept]), torch.from_numpy(arrays["train_labels"][kept]).long(),
        _pixels(run.teacher), _sgd(model, RATE), epochs=run.epochs, seed=run.seed, before=pruner.update_regularizer,
        regularise=pruner.regularize,
    )  # fmt: skip


def _sgd(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=4e-4)


ARMS: dict[str, Arm] = {
    "cascade, 3 assistants": Arm(cascade("--assistants", "3"), beside="teacher"),
    "cascade, 1 assistant": Arm(cascade("--assistants", "1")),
    "cascade, 0 assistants": Arm(cascade("--assistants", "0")),
    "cascade, 3 assistants, no kd": Arm(cascade("--assistants", "3", edit=without_kd)),
    "cascade, 3 assistants, hints": Arm(cascade("--assistants", "3", "--hints", "0.001")),
    "shrink + kd": Arm(student(shrunken, "kd")),
    "torch-pruning, magnitude": Arm(student(pruned("magnitude"), "supervised")),
    "torch-pruning, group-norm": Arm(student(pruned("group-norm"), "supervised")),
    "same widths from scratch": Arm(student(from_scratch, "supervised", rate=SCRATCH_RATE)),
    "same widths from scratch, kd": Arm(student(from_scratch, "kd", rate=SCRATCH_RATE)),
}
FIRST = "cascade, 3 assistants"


def _teacher(work: Work, data: str, network: str) -> Path:
    """A teacher's file, trained on the part of the data that all arms train on."""
    name, kwargs = NETWORKS[network]
    arrays = np.load(work.part(data))
    arguments = {**kwargs, "in_channels": arrays["train_images"].shape[1]}
    arguments |= {"image_size": arrays["train_images"].shape[2]} if name == "vgg" else {}
    return series.teacher(
        work.root / f"{data}-{network}-part.pt", name, arguments, arrays, lambda made: _sgd(made, SCRATCH_RATE),
        epochs=TEACHER_EPOCHS,
    )  # fmt: skip


def _student(work: Work, setting: str, seed: int) -> Path:
    """Where the student of the cascade with three assistants is kept, for the other arms."""
    return work.root / f"{setting}-seed{seed}.pt"


def measure(setting: str, name: str, seed: int, work: Work, *, epochs: int = EPOCHS) -> Row:
    """One run: planned, trained, measured."""
    data, network, keep = setting.split("-")
    folder = work.root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    teacher, spec = _teacher(work, data, network), f"npz:{work.part(data)}"
    reference = None if name.startswith("cascade") else _student(work, setting, seed)
    result = ARMS[name].train(Run(folder, teacher, spec, float(keep), seed, epochs, reference))
    made, shape = _module(folder / "run" / "student.pt"), _shape(teacher)
    if name == FIRST:
        shutil.copy(folder / "run" / "student.pt", _student(work, setting, seed))
    whole = _module(teacher)
    row = {
        "setting": setting, "arm": name, "seed": seed, "student": round(result["arms"][-1]["accuracy"], 5),
        "teacher": round(fxdistill.evaluate(teacher, spec)["accuracy"], 5),
        "parameters": sum(p.numel() for p in made.parameters()), "macs": _macs(made, shape),
        "whole": [sum(p.numel() for p in whole.parameters()), _macs(whole, shape)],
        "latency": {one: round(found["median_ms"], 4) for one, found in result["latency"].items()},
        "joint": next((round(arm["accuracy"], 5) for arm in result["arms"] if arm["name"] == "joint"), None),
        "epochs": epochs, "seconds": round(result["took"]), **series.provenance(),
    }  # fmt: skip
    shutil.rmtree(folder)
    return row


def _executed(run: Run, edit: Callable[[Plan], Plan] = lambda plan: plan, *, seconds: float = 0.0) -> dict[str, Any]:
    path, began = run.folder / "plan.json", time.monotonic()
    path.write_text(edit(load_plan(path)).to_json())
    result = execute(path, run.folder / "run", Settings(evaluate_every=10_000))
    return {**result, "took": seconds + time.monotonic() - began}


def _nearest(make: Callable[[float], nn.Module], cost: Callable[[nn.Module], int], wanted: int) -> nn.Module:
    """What is made of that share whose cost is nearest to the wanted one, by bisection."""
    low, high, best = 0.02, 0.98, None
    for _ in range(10):
        share = (low + high) / 2
        made = make(share)
        if best is None or abs(cost(made) - wanted) < abs(cost(best) - wanted):
            best = made
        low, high = (low, share) if cost(made) > wanted else (share, high)
    assert best is not None
    return best


def _module(path: Path | None) -> nn.Module:
    return fxdistill.load(fxdistill.parse_source(str(path))).module


def _shape(path: Path) -> tuple[int, ...]:
    found = fxdistill.load(fxdistill.parse_source(str(path))).input_shape
    return (1, *(found or (1,))[1:])


def _pixels(path: Path) -> Preprocessing:
    found = fxdistill.load(fxdistill.parse_source(str(path))).preprocessing
    assert found is not None
    return found


def _macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    return Trace(shape)(module.eval()).value.macs


_COLUMNS = (
    "arm", "accuracy", "change", "seeds", "parameters", "MACs", "latency, ms", "seconds", "difference to",
    "paired, 95 %",
)  # fmt: skip


def table(rows: list[Row]) -> str:
    """For each setting its arms: the change against the teacher, sizes, latency; and the difference, paired."""
    lines = [f"# The cascade beside other ways to a network of its size\n\n{_about()}", ""]
    for setting in SETTINGS:
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
    timed = f"{statistics.fmean(row['latency']['student'] for row in mine):.3f}"
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
    return arm.startswith("cascade") or _student(work, setting, seed).is_file()


SERIES = Series("cascade", str(__doc__), SETTINGS, lambda _setting: ARMS, measure, table, seeds=3, ready=_ready)

if __name__ == "__main__":
    sys.exit(SERIES.main())

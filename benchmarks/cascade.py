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

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import platform
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxdistill
from benchmarks.indistill import Work
from fxdistill.cli.commands import app
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.measure.differences import paired
from fxdistill.modelfiles.factories import build
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load as load_plan
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.execute import Settings, execute

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "cascade.jsonl", HERE / "cascade.md"
EPOCHS, TEACHER_EPOCHS, RATE, SCRATCH_RATE, BATCH = 8, 20, 0.008, 0.05, 128
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg": ("vgg", {"widths": [8, "M", 16, "M", 32, 32, "M", 64, 64], "hidden": 64}),
    "resnet": ("resnet", {"widths": [8, 16, 32], "blocks": 2}),
}
"""A narrow VGG of eight layers with weights, and a narrow ResNet-14: what one CPU core can train some dozen times."""
SETTINGS = tuple(
    f"{data}-{network}-{keep}" for keep in (0.2, 0.4, 0.7) for data in ("cifar", "fashion") for network in NETWORKS
)
_GIGABYTE, _PATIENCE = 1 << 30, 1800


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
            "-o", str(self.folder / "plan.json"), "--data", self.data, "--val", "0.1", "--batch-size", str(BATCH),
            "--seed", str(self.seed), "--no-measure", "--augment", "flip,crop:4",
        ]  # fmt: skip


def cascade(*options: str, edit: Callable[[Plan], Plan] = lambda plan: plan) -> Callable[[Run], dict[str, Any]]:
    """A cascade; ``options`` are further ones of ``fxdistill plan``."""

    def train(run: Run) -> dict[str, Any]:
        _plan(
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
        _plan(
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
        reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
        child = multiprocessing.get_context("spawn").Process(target=_prune, args=(kind, run, writer), daemon=True)
        child.start()
        writer.close()  # so that the end of the child is the end of what it says
        try:
            said = reader.recv() if reader.poll(_PATIENCE) else "it took too long"
        except EOFError:
            said = "its process ended"
        child.kill()
        child.join()
        if said:
            raise RuntimeError(f"Torch-Pruning, {kind}: {said}")
        found = _module(run.folder / "pruned.pt")
        return (found, run.epochs) if kind == "group-norm" else found

    return make


def _prune(kind: str, run: Run, writer: Any) -> None:
    """The child's part: write ``pruned.pt``, and say '' or what went wrong."""
    import torch_pruning  # noqa: PLC0415  # prints and warns

    resource.setrlimit(resource.RLIMIT_DATA, (4 * _GIGABYTE, 4 * _GIGABYTE))
    try:
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
        writer.send("")
    except Exception as cause:  # noqa: BLE001  # the reason is what is handed over
        writer.send(f"{type(cause).__name__}: {cause}"[:300])


def _sparse(model: nn.Module, pruner: Any, run: Run) -> None:
    """Group-norm's sparse training: cross-entropy and the pruner's regulariser, for half of the epochs."""
    arrays = np.load(run.data.partition(":")[2])
    kept = np.random.default_rng(run.seed).permutation(len(arrays["train_labels"]))[
        : len(arrays["train_labels"]) * 9 // 10
    ]
    _fit(
        model, torch.from_numpy(arrays["train_images"][kept]), torch.from_numpy(arrays["train_labels"][kept]).long(),
        _pixels(run.teacher), epochs=run.epochs, rate=RATE, seed=run.seed, before=pruner.update_regularizer,
        regularise=pruner.regularize,
    )  # fmt: skip


def _fit(
    model: nn.Module, images: Tensor, labels: Tensor, pixels: Preprocessing, *, epochs: int, rate: float, seed: int,
    before: Callable[[], object] = lambda: None, regularise: Callable[[nn.Module], object] = lambda _model: None,
) -> None:  # fmt: skip
    """Cross-entropy, SGD with Nesterov's momentum, half a cosine; random crops and flips."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pixels.mean, pixels.std))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=4e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * math.ceil(len(images) / BATCH))
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


@dataclass
class Files:
    """Where data, teachers and students are kept."""

    work: Work

    def teacher(self, data: str, network: str) -> Path:
        """A teacher's file, trained on the part of the data that all arms train on."""
        path = self.work.root / f"{data}-{network}-part.pt"
        if not path.is_file():
            name, kwargs = NETWORKS[network]
            arrays = np.load(self.work.part(data))
            images, labels = (torch.from_numpy(arrays[f"train_{kind}"]) for kind in ("images", "labels"))
            arguments = {**kwargs, "in_channels": images.shape[1]}
            arguments |= {"image_size": images.shape[2]} if name == "vgg" else {}
            found = images.float().transpose(0, 1).flatten(1) / 255
            mean, std = ([round(float(x), 4) for x in values] for values in (found.mean(1), found.std(1)))
            channels: Any = "rgb" if images.shape[1] == 3 else "gray"
            pixels = Preprocessing(size=list(images.shape[2:]), mean=mean, std=std, channels=channels)
            made = build(f"fxdistill.models:{name}", arguments, seed=0)
            print(f"  training the teacher {path.name}", file=sys.stderr, flush=True)
            _fit(made, images, labels.long(), pixels, epochs=TEACHER_EPOCHS, rate=SCRATCH_RATE, seed=0)
            fxdistill.save(
                made, path, factory=f"fxdistill.models:{name}", kwargs=arguments, input_shape=(1, *images.shape[1:]),
                preprocessing=pixels,
            )  # fmt: skip
        return path

    def student(self, setting: str, seed: int) -> Path:
        """Where the student of the cascade with three assistants is kept, for the other arms."""
        return self.work.root / f"{setting}-seed{seed}.pt"


def measure(setting: str, name: str, seed: int, files: Files, *, epochs: int = EPOCHS) -> dict[str, Any]:
    """One run: planned, trained, measured."""
    data, network, keep = setting.split("-")
    folder = files.work.root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    teacher, spec = files.teacher(data, network), f"npz:{files.work.part(data)}"
    reference = None if name.startswith("cascade") else files.student(setting, seed)
    result = ARMS[name].train(Run(folder, teacher, spec, float(keep), seed, epochs, reference))
    made, shape = _module(folder / "run" / "student.pt"), _shape(teacher)
    if name == FIRST:
        shutil.copy(folder / "run" / "student.pt", files.student(setting, seed))
    whole = _module(teacher)
    row = {
        "setting": setting, "arm": name, "seed": seed, "student": round(result["arms"][-1]["accuracy"], 5),
        "teacher": round(fxdistill.evaluate(teacher, spec)["accuracy"], 5),
        "parameters": sum(p.numel() for p in made.parameters()), "macs": _macs(made, shape),
        "whole": [sum(p.numel() for p in whole.parameters()), _macs(whole, shape)],
        "latency": {one: round(found["median_ms"], 4) for one, found in result["latency"].items()},
        "joint": next((round(arm["accuracy"], 5) for arm in result["arms"] if arm["name"] == "joint"), None),
        "epochs": epochs, "seconds": round(result["took"]), "torch": torch.__version__, "device": _device(),
    }  # fmt: skip
    shutil.rmtree(folder)
    return row


def _plan(*words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        app(["plan", *words], standalone_mode=False)


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


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, one thread"


def wanted(only: list[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    """The runs: seed after seed, so that a part of them compares as well."""
    for seed in range(seeds):
        for setting in SETTINGS:
            for name in ARMS:
                if not only or setting in only or f"{setting}/{name}" in only:
                    yield setting, name, seed


def results() -> list[dict[str, Any]]:
    """The finished runs."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


_COLUMNS = (
    "arm", "accuracy", "change", "seeds", "parameters", "MACs", "latency, ms", "seconds", "difference to",
    "paired, 95 %",
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
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
    difference = paired(found, other, beside=beside)
    said = f"{difference.mean:+.2f}" if difference is not None else ""
    if difference is not None and difference.high is not None:
        said += f" ± {difference.high - difference.mean:.2f}"
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


def main() -> int:
    """Run what is missing, as far as the time goes; or write the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG files in an npz: _blob, _offsets, _labels")
    parser.add_argument("--fashion", type=Path, help="a folder with FashionMNIST/raw")
    parser.add_argument("--work", type=Path, default=Path("cascade-work"))
    parser.add_argument("--only", action="append", default=[], help="a setting, or SETTING/ARM")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hours", type=float, default=1e9)
    parser.add_argument("--table", action="store_true", help="write the table of what there is, and run nothing")
    options = parser.parse_args()
    if not options.table:
        options.work.mkdir(parents=True, exist_ok=True)
        sources = {name: getattr(options, name) for name in ("cifar", "fashion") if getattr(options, name)}
        files, ends = Files(Work(options.work, sources)), time.monotonic() + 3600 * options.hours
        done = {(row["setting"], row["arm"], row["seed"]) for row in results()}
        for run in wanted(options.only, options.seeds):
            if run in done or run[0].partition("-")[0] not in sources or time.monotonic() > ends:
                continue
            if not run[1].startswith("cascade") and not files.student(run[0], run[2]).is_file():
                continue  # the student that it is compared with is yet to come
            row = measure(*run, files)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(run, row["student"], row["seconds"], flush=True)
    TABLE.write_text(table(results()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

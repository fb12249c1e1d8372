"""Ways to a small network, as arms of :mod:`benchmarks.cascade`: how each is planned, made and trained."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import fxdistill
from benchmarks import materials, series
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.training import ScoreOptimizer, Stage
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Settings

RATE, SCRATCH_RATE = 0.008, 0.05
FASTER = 0.001
"""The rate of scores where an arm names none: the default when most were run. None is the package's own."""


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
    device: Literal["cpu", "cuda"] = "cpu"
    precision: materials.Precision = "32-true"
    cuda_graphs: Literal["auto", "off"] = "auto"

    @property
    def common(self) -> list[str]:
        """What all plans of a setting are told."""
        return [
            "-o", str(self.folder / "plan.json"), "--data", self.data, "--val", "0.1", "--seed", str(self.seed),
            "--batch-size", str(materials.BATCH), "--no-measure", "--augment", "flip,crop:4",
        ]  # fmt: skip


def cascade(
    *options: str, edit: Callable[[Plan], Plan] = lambda plan: plan, method: str = "cascade", budget: bool = False,
    rate: float | None = FASTER,
) -> Callable[[Run], dict[str, Any]]:  # fmt: skip
    """A cascade; ``options`` are further ones of ``fxdistill plan``, a budget is the reference's.

    Args:
        options: Likewise.
        edit: What is changed in the plan.
        method: The method.
        budget: Whether it has one.
        rate: Of scores; None for what the package chooses.
    """
    first = scored("rmsprop", rate) if rate is not None else lambda plan: plan

    def train(run: Run) -> dict[str, Any]:
        kept = ["--keep", str(run.keep)]
        if budget:
            kept = ["--budget", f"macs={macs_of(module_of(run.reference), shape_of(run.teacher))}"]
        series.plan(str(run.teacher), *run.common, "--method", method, *kept, "--epochs", str(run.epochs), *options)
        return _executed(run, lambda plan: edit(first(plan)))

    return train


def _joint(plan: Plan, change: Callable[[list[Stage]], list[Stage]]) -> Plan:
    """The plan with other stages in the first phase."""
    return plan.changed(arms=[plan.arms[0].changed(stages=change(plan.arms[0].stages)), *plan.arms[1:]], costed="")


def scored(name: Literal["sgd", "rmsprop"], lr: float, *, until: float = 1.0) -> Callable[[Plan], Plan]:
    """A plan whose scores move otherwise, in the stages where they move."""
    scores = ScoreOptimizer(name=name, lr=lr, until=until)
    return lambda plan: _joint(plan, lambda stages: [stage.changed(scores=stage.scores and scores) for stage in stages])


def standing(plan: Plan) -> Plan:
    """The plan with the masks that training starts with."""
    return _joint(plan, lambda stages: [stage.changed(scores=None) for stage in stages])


def short_warm_up(plan: Plan) -> Plan:
    """The plan with one epoch for each stage of the warm-up, and so many less for the joint phase."""
    return _joint(plan, lambda stages: [
        *(stage.changed(epochs=1) for stage in stages[:-1]),
        stages[-1].changed(epochs=stages[-1].epochs - len(stages) + 1),
    ])  # fmt: skip


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
        shape = shape_of(run.teacher)
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
    teacher, shape = module_of(run.teacher), shape_of(run.teacher)
    wanted = macs_of(module_of(run.reference), shape)

    def at(keep: float) -> nn.Module:
        return shrink_model(teacher, input_shape=shape, keep=keep).module

    return _nearest(at, lambda made: macs_of(made, shape), wanted)


def budgeted(run: Run) -> nn.Module:
    """The same by ``fxdistill shrink --macs N --data SPEC --round-to 1``."""
    shape = shape_of(run.teacher)
    return fxdistill.shrink(
        run.teacher,
        macs=macs_of(module_of(run.reference), shape),
        data=run.data,
        round_to=1,
        input_shape=shape,
        seed=run.seed,
    ).module


def pruned(kind: str) -> Callable[[Run], Any]:
    """The teacher pruned by Torch-Pruning, over all layers together, to the same multiply-accumulates.

    ``magnitude`` at once; ``group-norm`` after half of the epochs of its sparse training. In a child process, with
    a limit of time and memory.
    """

    def make(run: Run) -> Any:
        series.apart(_prune, kind, run)
        found = module_of(run.folder / "pruned.pt")
        return (found, run.epochs) if kind == "group-norm" else found

    return make


def _prune(kind: str, run: Run) -> None:
    """Write ``pruned.pt``."""
    import torch_pruning  # noqa: PLC0415  # prints and warns

    torch.set_num_threads(1)
    teacher, shape = module_of(run.teacher), shape_of(run.teacher)
    images = torch.randn(shape)
    wanted = macs_of(module_of(run.reference), shape)
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

    made = _nearest(at, lambda one: macs_of(one, shape), wanted)
    fxdistill.save(made.eval(), run.folder / "pruned.pt", input_shape=shape)


def _sparse(model: nn.Module, pruner: Any, run: Run) -> None:
    """Group-norm's sparse training: cross-entropy and the pruner's regulariser, for half of the epochs."""
    arrays = np.load(run.data.partition(":")[2])
    kept = np.random.default_rng(run.seed).permutation(len(arrays["train_labels"]))[
        : len(arrays["train_labels"]) * 9 // 10
    ]
    materials.fit(
        model, torch.from_numpy(arrays["train_images"][kept]), torch.from_numpy(arrays["train_labels"][kept]).long(),
        pixels_of(run.teacher), sgd(model, RATE), epochs=run.epochs, seed=run.seed, before=pruner.update_regularizer,
        regularise=pruner.regularize,
    )  # fmt: skip


def sgd(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=4e-4)


def _executed(run: Run, edit: Callable[[Plan], Plan] = lambda plan: plan, *, seconds: float = 0.0) -> dict[str, Any]:
    path, began = run.folder / "plan.json", time.monotonic()
    path.write_text(edit(load_plan(path)).to_json())
    settings = Settings(
        device=run.device, evaluate_every=10_000, precision=run.precision, cuda_graphs=run.cuda_graphs,
        channels_last=True if run.device == "cuda" else "auto",
    )  # fmt: skip
    result = execute(path, run.folder / "run", settings)
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


def module_of(path: Path | None) -> nn.Module:
    return fxdistill.load(fxdistill.parse_source(str(path))).module


def shape_of(path: Path) -> tuple[int, ...]:
    found = fxdistill.load(fxdistill.parse_source(str(path))).input_shape
    return (1, *(found or (1,))[1:])


def pixels_of(path: Path) -> Preprocessing:
    found = fxdistill.load(fxdistill.parse_source(str(path))).preprocessing
    assert found is not None
    return found


def macs_of(module: nn.Module, shape: tuple[int, ...]) -> int:
    return Trace(shape)(module.eval()).value.macs

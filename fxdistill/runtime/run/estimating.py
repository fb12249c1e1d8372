"""What a run will take, before it is begun: a few steps of each stage's own program are taken, and nothing is written.

    seconds       epochs · (steps of an epoch · median of a step + images watched · seconds an image)        measured
    weights       of all members that the stage reads                                                        counted
    gradients     of what it trains                                                                          counted
    optimiser     what the optimiser keeps after a step                                                      counted
    activations   what autograd saves of a step for the way back, each memory once, weights left out         counted
    cache         bytes of a row · images · views, where a run would keep them                               counted

Where a whole batch would take too long, steps of a few images are measured instead; times and activations are then in
proportion to the images, which is said. Python with its libraries, the images, what operators need for a moment, what
it takes to begin a stage (its program, first steps: much of a stage of seconds), the evaluation in the end, exports and
checkpoints are not in it, nor is the time that the cache saves; a plateau can end a stage earlier.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fxdistill.compiler.build import specialize
from fxdistill.compiler.tap_statistics import measure_taps
from fxdistill.data.batches import Batch, batches, size_in_training, steps_per_epoch
from fxdistill.data.dataset import Dataset
from fxdistill.ir.graph import Traced
from fxdistill.ir.program import Program
from fxdistill.measure.model import evaluating, predictions
from fxdistill.plan.document import Plan
from fxdistill.plan.training import Stage
from fxdistill.preprocessing import PLAIN
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.processes.devices import started
from fxdistill.runtime.run.arms import build_program
from fxdistill.runtime.run.derived import derived
from fxdistill.runtime.run.execute import reusing
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.run.reuse import Reuse
from fxdistill.runtime.run.trials import Trial, trials_of
from fxdistill.runtime.training import memory
from fxdistill.runtime.training.layouts import chosen, laid_out
from fxdistill.runtime.training.loop import step_seeded
from fxdistill.runtime.training.optimizers import make_optimizer
from fxdistill.tasks import TASKS, Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import

_FEW, _STEPS = 8, 3
_LONG = 2.0  # seconds that a whole batch may take, by what a few images take


@dataclass(frozen=True)
class StageEstimate:
    """What a stage of an arm will take under one seed.

    Attributes:
        arm: The arm.
        stage: The stage.
        epochs: How many, at most.
        steps: Of an epoch.
        images: Of a step.
        measured: Images of a step that was measured.
        step: Seconds of a step.
        watching: Seconds of the evaluation after an epoch.
        weights: Bytes of the members' weights.
        gradients: Bytes.
        optimizer: Bytes of the optimiser's state.
        activations: Bytes that a step saves for the way back.
        cache: Bytes of what would be kept of frozen members.
    """

    arm: str
    stage: str
    epochs: int
    steps: int
    images: int
    measured: int
    step: float
    watching: float
    weights: int
    gradients: int
    optimizer: int
    activations: int
    cache: int

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return self.epochs * (self.steps * self.step + self.watching)

    @property
    def memory(self) -> int:
        """Bytes at once, the cache left out."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        stages: Of each arm, in order.
        trials: How often each arm is trained: its seeds.
        device: Where it was measured.
        there: Bytes of memory of that; None where the system does not say.
    """

    stages: list[StageEstimate]
    trials: Mapping[str, int]
    device: str
    there: int | None

    @property
    def seconds(self) -> float:
        """Of all trials."""
        return sum(stage.seconds * self.trials[stage.arm] for stage in self.stages)


def estimated(plan: Plan, given: Mapping[str, nn.Module], base: Path, *, allow: Sequence[str] = ()) -> Estimate:
    """Measure a few steps of each stage of a plan that names data.

    Args:
        plan: The plan.
        given: The members that are files or factories, by name; those that are trained are changed.
        base: The folder of the plan.
        allow: Modules whose factories may be called.

    Raises:
        InputError: The data does not fit, or a stage cannot be trained.
    """
    device = preflight.accelerator("auto", plan.precision)
    fabric, _ = started(device, plan.precision)
    dataset, task = preflight.load_data(plan, base, allow=allow).to(fabric.device), TASKS.get(plan.task)
    modules = {**given, **derived(plan, given)}
    trials = list({trial.name: trial for trial in reversed(trials_of(plan))}.values())[::-1]  # the first of each arm
    traced: dict[tuple[str, bool], Traced] = {}
    programs = {trial: build_program(plan, trial, modules, traced) for trial in trials}
    for program in programs.values():
        measure_taps(program, itertools.islice(batches(dataset.train, 2), 1))
    named = {trial.name: program for trial, program in programs.items()}
    layout = chosen(named, dataset, batch_size=plan.data.batch_size, device=device)
    reuse = reusing(plan, dataset, fabric, Settings(), Observer(), how={"channels_last": layout.last})
    trying = _Trying(plan, task, dataset, fabric, reuse)
    stages = []
    for trial, program in programs.items():
        (laid_out(program) if layout.last else program).to(fabric.device)
        member = plan.arm(trial.name).trains[0]
        watching = trying.watching(member, modules[member])
        stages += [trying.stage(trial, program, stage, watching) for stage in program.stages]
    counts = {trial.name: sum(one.name == trial.name for one in trials_of(plan)) for trial in trials}
    return Estimate(stages, counts, device, memory.available(device))


@dataclass(frozen=True)
class _Trying:
    """Takes steps of stages."""

    plan: Plan
    task: Task
    dataset: Dataset
    fabric: "Fabric"
    reuse: Reuse

    def stage(self, trial: Trial, program: Program, stage: Stage, watching: float) -> StageEstimate:
        """What a stage will take.

        Args:
            trial: The trial.
            program: Its program, of all stages.
            stage: The stage.
            watching: Seconds of an evaluation of what is trained.
        """
        one, data = specialize(program, stage.name).train(), self.plan.data
        halves = self.reuse.of(trial, stage, one)
        optimizer = make_optimizer(stage, one)
        wrapped, optimizer = self.fabric.setup(one, optimizer, _reapply_compile=False)
        images = size_in_training(self.dataset.train, data.batch_size)
        measured = size_in_training(self.dataset.train, min(_FEW, images))
        saved, seconds = self._steps(wrapped, one, optimizer, measured, 2)
        if measured < images and seconds * images / measured < _LONG:
            measured = images
            saved, seconds = self._steps(wrapped, one, optimizer, measured, 1 + _STEPS)
        learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        answers = any(term.pair is None for term in stage.losses)
        return StageEstimate(
            trial.name, stage.name, stage.epochs, steps_per_epoch(self.dataset.train, data.batch_size), images,
            measured, seconds * images / measured, watching if answers else 0.0,
            bytes_of([*one.parameters(), *one.buffers()]), bytes_of(learned), bytes_of(held),
            round(saved * images / measured),
            0 if halves is None else halves.report.row_bytes * len(self.dataset.train) * halves.report.views,
        )  # fmt: skip

    def _steps(
        self, forward: nn.Module, program: Program, optimizer: torch.optim.Optimizer, images: int, count: int
    ) -> tuple[int, float]:
        """Take some steps of so many images; the bytes that the first one saves, the median seconds of the others."""
        found, times, saved = self._batches(images), list[float](), Saved(program)
        for step in range(count):
            start = time.perf_counter()
            batch = next(found)
            with step_seeded(self.plan.seed, 0, step, device=self.fabric.device):
                with contextlib.nullcontext() if step else saved:
                    total = program.total(forward(batch), 0)
                optimizer.zero_grad()
                self.fabric.backward(total)
                optimizer.step()
            if not step:
                taken = saved.taken()
            if self.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return taken, statistics.median(times[1:])

    def _batches(self, images: int) -> Iterator[Batch]:
        """Training batches of so many images without an end."""
        data = self.plan.data
        for epoch in itertools.count():
            yield from batches(
                self.dataset.train, images, seed=self.plan.seed, epoch=epoch, shuffle=True, augment=data.augmentation,
                device=self.fabric.device, views=data.views, moves_targets=self.task.moves_targets,
                classes=len(self.dataset.classes),
            )  # fmt: skip

    def watching(self, member: str, module: nn.Module) -> float:
        """Seconds of an evaluation of a member on what watches its training: by a batch or two of it."""
        split, size = self.dataset.split("val"), self.plan.data.batch_size
        if not self.dataset.has_labels("val"):
            return 0.0
        few = split.at(torch.arange(min(len(split), size)))
        own, entry = self.plan.preprocessing_of(member), self.plan.entry_of(member)
        view = PLAIN if own is None else own.view(few.image_shape[1:])
        module = module.to(self.fabric.device)
        times = []
        with evaluating(module):
            for _ in range(2):
                start = time.perf_counter()
                for output, _ in predictions(module, few, view=view, batch_size=size, entry=entry):
                    output.cpu()
                times.append(time.perf_counter() - start)
        images = len(split) + (len(self.dataset.train) if self.task.ranks_train else 0)
        return times[-1] * images / len(few)


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd saves for the way back: each memory once, those of a module's weights left out.

    Args:
        module: Whose weights are left out.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(self._packed, lambda value: value)
        self._known = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        self._held: dict[int, Tensor] = {}

    def taken(self) -> int:
        """The bytes of what was saved, which is let go of."""
        taken = sum(tensor.untyped_storage().nbytes() for tensor in self._held.values())
        self._held = {}
        return taken

    def _packed(self, value: Tensor) -> Tensor:
        if (place := value.untyped_storage().data_ptr()) not in self._known:
            self._held[place] = value  # held: its place is nobody else's meanwhile
        return value


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of some tensors, each once."""
    return sum(tensor.nbytes for tensor in set(tensors))

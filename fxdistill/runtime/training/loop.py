"""The training loop, in view: forward, loss, backward, step.

Randomness is a function of the place in the run and of nothing else: batches of (seed, epoch, step), augmentation of
(the plan's seed, view, image), see :mod:`fxdistill.data.batches`, and torch's global generators are seeded from a hash
of the first three before every step. A checkpoint therefore needs no generator state, and a run continued from one
takes exactly the steps that an undisturbed run takes.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxdistill.compiler.build import specialize
from fxdistill.data.batches import Batch, batches, order, steps_per_epoch
from fxdistill.data.dataset import Dataset
from fxdistill.ir.program import Program
from fxdistill.ir.running import seeded
from fxdistill.plan.schema import DataPlan
from fxdistill.plan.training import Stage, lengths
from fxdistill.runtime.processes.crew import Crew
from fxdistill.runtime.processes.spread import spread
from fxdistill.runtime.training.aside import collect
from fxdistill.runtime.training.average import Average
from fxdistill.runtime.training.compiling import Choice, compiled, compiler_errors
from fxdistill.runtime.training.course import Course, Means, Moment, Position, Progress
from fxdistill.runtime.training.epoch import Epoch
from fxdistill.runtime.training.optimizers import make_optimizer, set_rate, take_up
from fxdistill.runtime.training.profiling import Clock
from fxdistill.runtime.training.recording import Recorder
from fxdistill.tasks import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import

    from fxdistill.runtime.training.halves import Halves

_ACCELERATOR_CHECKS = 20  # steps


@dataclass
class Loop:
    """Trains one arm: a program, stage by stage, with data, on a device.

    Attributes:
        fabric: Device, precision, backward.
        program: The joint program of all stages.
        dataset: Where batches come from.
        data: Batch size and augmentation.
        task: What the targets are.
        seed: Everything random comes from it, but for the augmentation.
        augment_seed: What that is drawn under: the plan's seed, in all trials.
        compiled: Whether each stage's program goes through ``torch.compile``, or who chooses.
        on_progress: Called after some steps, and at the end of every epoch.
        on_save: Called after every step, epoch and stage: a checkpoint may be taken.
        before: The losses before anything was trained, by stage; what is not known is not compared.
        course: How the arm has gone so far; the loop keeps it up to date.
        on_teacher: Asked after every epoch of a stage that has a successor left, with the stage and how many have
            taught: whether it takes the teacher's place.
        on_made: Called when what a stage runs is made, with what of it steps seldom read: what it was made of is not
            read any more.
        on_read: Called when that was read, and is not for a while.
        halves: The halves of a stage's program, where what its frozen one computes is kept; else None.
        clock: Told of the parts of a step.
        recorder: Records the steps of stages as CUDA graphs, where that pays; None to record none.
        crew: The processes that take each step together.
    """

    fabric: "Fabric"
    program: Program
    dataset: Dataset
    data: DataPlan
    task: Task
    seed: int
    augment_seed: int
    compiled: "bool | Choice"
    on_progress: Callable[[Progress], None]
    on_save: Callable[[Moment], None]
    before: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    course: Course = field(default_factory=Course)
    on_teacher: Callable[[Stage, int], bool] = lambda _stage, _taught: False
    on_made: Callable[[Iterable[Tensor]], None] = lambda _seldom: None
    on_read: Callable[[], None] = lambda: None
    halves: Callable[[Stage, Program], "Halves | None"] = lambda _stage, _program: None
    clock: Clock = field(default_factory=Clock)
    crew: Crew = field(default_factory=Crew)
    recorder: Recorder | None = None

    def run(
        self, position: Position, optimizer_state: dict[str, object] | None = None, means: Means | None = None,
        average: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Train from a place to the end.

        Args:
            position: The place.
            optimizer_state: The optimiser's state there; None at the start of a stage.
            means: The losses of the epoch so far.
            average: The running mean of the weights there; None at the start of a stage, or where there is none.

        Raises:
            TrainingError: A loss is not a number.
        """
        self.course.taken = lengths(self.program.stages, self.course.taken)[: position.stage]
        for index, stage in enumerate(self.program.stages):
            if index < position.stage:
                continue
            self._stage(index, stage, position, optimizer_state, means or Means(), average=average)
            position, optimizer_state, means, average = Position(stage=index + 1), None, None, None
            self.on_save(self._moment(position))

    def _stage(
        self, index: int, stage: Stage, position: Position, state: dict[str, object] | None, means: Means,
        *, average: Mapping[str, Tensor] | None,
    ) -> None:  # fmt: skip
        taught = position.taught
        collect(self.program)
        program = specialize(self.program, stage.name, taught=taught).train()
        scaled = getattr(self.fabric.strategy.precision, "scaler", None) is not None
        optimizer = make_optimizer(stage, program, fused=not scaled)
        if state is not None:
            take_up(optimizer, state, where=f"stage '{stage.name}'")
        halves = self.halves(stage, program) if not taught else None  # what is kept is of the stage's first teacher
        trained = program if halves is None else halves.divided.rest.train()
        self.clock.watch(halves.divided.frozen if halves is not None else None)
        epochs = lengths(self.program.stages, self.course.taken)
        done, stage, ended = sum(epochs[:index]), stage.changed(epochs=epochs[index]), False
        left = (stage.epochs - position.epoch) * steps_per_epoch(self.dataset.train, self.data.batch_size)
        self.clock.begin(stage.name, left - position.step)
        forward = self._forward(trained, stage, halves, steps=left - position.step)
        wrapped, optimizer = self.fabric.setup(forward, optimizer, _reapply_compile=False)
        optimizer.zero_grad()
        self._settled(halves)
        mean = Average(program, stage.optimizer.ema, average)
        for epoch in range(position.epoch, stage.epochs):
            first = epoch == position.epoch
            place = Position(index, epoch, position.step if first else 0, taught)
            running = Epoch(stage, program, means if first else Means(), mean, every=self._every, halves=halves)
            place, ended = self._epoch(running, wrapped, optimizer, place, run_epoch=done + epoch)
            if ended:
                self.course.next(epoch + 1)
                break
            if place.taught != taught:
                taught = place.taught
                program = specialize(self.program, stage.name, taught=taught).train()
                halves = None
                forward = self._forward(program, stage, None, steps=0)
                wrapped = self.fabric.setup_module(forward, _reapply_compile=False)
        self.clock.end()
        mean.settle()

    def _settled(self, halves: "Halves | None") -> None:
        """Let go of what no step reads."""
        frozen = halves.divided.frozen if halves is not None else None
        self.on_made(frozen.parameters() if frozen is not None else ())
        if halves is not None:
            halves.on_read = self.on_read

    def _forward(self, program: Program, stage: Stage, halves: "Halves | None", *, steps: int) -> nn.Module:
        """What is called in a step: the program, compiled, recorded, or with marks for the clock."""
        if self.crew.is_several:
            return spread(program, self.crew)
        made: nn.Module = compiled(program) if self.compiled is True else program

        @functools.cache
        def fields() -> Batch:
            batch = next(self._batches(0))
            return batch | ({} if halves is None else halves.fresh(batch["images"]))

        def step(module: nn.Module) -> None:
            with step_seeded(self.seed, 0, 0, device=self.fabric.device), self.fabric.autocast():
                program.total(module(fields())).backward()

        if isinstance(self.compiled, Choice):
            made = self.compiled.made(stage.name, program, step, steps=steps)
        if made is program and self.recorder is not None:
            made = self.recorder.made(stage.name, program, fields(), step)
        return self.clock.marked(program) if made is program else made

    def _batches(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        return batches(
            self.dataset.train, self.data.batch_size, seed=self.seed, epoch=epoch, start=start, shuffle=True,
            augment=self.data.augmentation, device=self.fabric.device, augment_seed=self.augment_seed,
            views=self.data.views, moves_targets=self.task.moves_targets, classes=len(self.dataset.classes),
            part=self.crew.part if self.crew.is_several else None,
        )  # fmt: skip

    def _moment(self, position: Position, optimizer: torch.optim.Optimizer | None = None, **more: Any) -> Moment:
        return Moment(position, optimizer, course=replace(self.course), **more)

    @property
    def _every(self) -> int:
        """Steps between two looks at the losses; on an accelerator a look waits for it."""
        return 1 if self.fabric.device.type == "cpu" else _ACCELERATOR_CHECKS

    def _epoch(
        self, running: Epoch, forward: Callable[..., dict[str, Tensor]], optimizer: torch.optim.Optimizer,
        position: Position, *, run_epoch: int,
    ) -> tuple[Position, bool]:  # fmt: skip
        """Train an epoch, or the rest of one; the place after it, and whether the stage ends with it."""
        size, stage = self.data.batch_size, running.stage
        if stage.optimizer.restart and position.step == 0:
            optimizer.state.clear()
        steps = steps_per_epoch(self.dataset.train, size)
        found = running.waiting(self._batches(run_epoch, start=position.step), self.clock)
        chosen = order(self.dataset.train, size, seed=self.seed, epoch=run_epoch)[position.step :]
        if running.halves is not None:
            begun = self._moment(position, optimizer, means=running.flush, average=running.average.values)
            found = running.halves.fed(found, chosen, epoch=run_epoch, pulse=lambda: self.on_save(begun))
        for step, (batch, images) in enumerate(zip(found, map(len, chosen), strict=True), start=position.step):
            self.crew.whole = images
            set_rate(optimizer, stage, position.epoch * steps + step, steps)
            with step_seeded(self.seed, run_epoch, step, device=self.fabric.device), compiler_errors():
                losses = forward(batch)
                total = running.program.total(losses, position.epoch)
                self.clock.mark("backward")
                self.fabric.backward(total)
                self.clock.mark("optimiser")
                if (most := stage.optimizer.clip) is not None:  # what is not finite is said of the losses
                    self.fabric.clip_gradients(running.program, optimizer, max_norm=most, error_if_nonfinite=False)
                optimizer.step()
                optimizer.zero_grad()  # at once: the next forward pass has the memory
            running.average.update()
            self.clock.mark("rest")
            place = replace(position, step=step + 1)
            if running.add(losses, place, images):
                self.on_progress(running.progress(place, steps))
            if step + 1 < steps:
                self.on_save(self._moment(place, optimizer, means=running.flush, average=running.average.values))
        running.flush()
        running.check(self.before.get(stage.name, {}), position)
        end = replace(position, epoch=position.epoch + 1, step=0)
        loss = self.crew.first(running.loss)
        ended = self.course.ends(stage.plateau, loss) or end.epoch == stage.epochs
        with running.average.shown():
            rate = float(optimizer.param_groups[0]["lr"])
            self.on_progress(replace(running.progress(end, steps, ended=ended), rate=rate))
        if not ended:
            if end.taught < len(stage.successors) and self.on_teacher(stage, end.taught):
                end = replace(end, taught=end.taught + 1)
                self.course.anew()
            self.on_save(self._moment(end, optimizer, average=running.average.values))
        return end, ended


def step_seeded(seed: int, epoch: int, step: int, *, device: torch.device) -> AbstractContextManager[None]:
    """The global generators of the CPU and of a device as a function of a place in the run; afterwards as before."""
    place = hashlib.sha256(f"step {seed},{epoch},{step}".encode()).digest()
    return seeded(device, int.from_bytes(place[:8], "little") >> 1)

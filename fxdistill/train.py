"""The training loop, in view: forward, loss, backward, step.

Randomness is a function of the place in the run and of nothing else: batches and augmentation of (seed, epoch, step), and
torch's global generators are seeded from the same three before every step. A checkpoint therefore needs no generator
state, and a run continued from one takes exactly the steps that an undisturbed run takes.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fxdistill.data import Dataset, batches, steps_per_epoch
from fxdistill.errors import TrainingError
from fxdistill.plan import DataPlan, Optimizer, Stage
from fxdistill.program import Program

_OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_ACCELERATOR_CHECKS = 20  # steps between two looks at the losses on an accelerator, where a look waits for it


@dataclass(frozen=True)
class Position:
    """A place in an arm of a run: so many stages, epochs of this stage and steps of this epoch are done."""

    stage: int = 0
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Progress:
    """What the loop reports after some steps.

    Attributes:
        stage: The stage in training.
        position: The place reached.
        steps: Steps of an epoch.
        losses: Mean of each loss over the epoch so far, unweighted.
        images_per_second: Since the last report.
    """

    stage: Stage
    position: Position
    steps: int
    losses: dict[str, float]
    images_per_second: float


@dataclass
class Loop:
    """Trains one arm: a program, stage by stage, with data, on a device.

    Attributes:
        fabric: Device, precision, backward.
        program: The joint program of all stages.
        dataset: Where batches come from.
        data: Batch size and augmentation.
        seed: Everything random comes from it.
        compiled: Whether each stage's program goes through ``torch.compile``.
        on_progress: Called after some steps, and at the end of every epoch.
        on_save: Called where a checkpoint may be taken, with the place and the optimiser; the second argument is None
            between stages, the last says whether an epoch has just ended.
    """

    fabric: Fabric
    program: Program
    dataset: Dataset
    data: DataPlan
    seed: int
    compiled: bool
    on_progress: Callable[[Progress], None]
    on_save: Callable[[Position, torch.optim.Optimizer | None, bool], None]

    def run(self, position: Position, optimizer_state: dict[str, object] | None) -> None:
        """Train from a place to the end.

        Raises:
            TrainingError: A loss is not a number.
        """
        for index, stage in enumerate(self.program.stages):
            if index < position.stage:
                continue
            self._stage(index, stage, position, optimizer_state)
            position, optimizer_state = Position(stage=index + 1), None
            self.on_save(position, None, True)  # noqa: FBT003

    def _stage(self, index: int, stage: Stage, position: Position, state: dict[str, object] | None) -> None:
        program = self.program.stage(stage.name)
        program.train()
        optimizer = make_optimizer(stage.optimizer, program)
        if state is not None:
            optimizer.load_state_dict(state)  # type: ignore[arg-type]
        forward = torch.compile(program) if self.compiled else program
        wrapped, optimizer = self.fabric.setup(forward, optimizer, _reapply_compile=False)
        done = sum(one.epochs for one in self.program.stages[:index])
        for epoch in range(position.epoch, stage.epochs):
            place = position if epoch == position.epoch else Position(index, epoch, 0)
            self._epoch(stage, program, wrapped, optimizer, replace(place, stage=index), run_epoch=done + epoch)

    def _epoch(
        self, stage: Stage, program: Program, forward: Callable[..., dict[str, Tensor]],
        optimizer: torch.optim.Optimizer, position: Position, *, run_epoch: int,
    ) -> None:  # fmt: skip
        size = self.data.batch_size
        steps = steps_per_epoch(self.dataset.train, size)
        means = _Means(stage, program, every=1 if self.fabric.device.type == "cpu" else _ACCELERATOR_CHECKS)
        found = batches(
            self.dataset.train, size, mean=self.dataset.mean, std=self.dataset.std, seed=self.seed, epoch=run_epoch,
            start=position.step, shuffle=True, augment=self.data.augmentation, device=self.fabric.device,
        )  # fmt: skip
        for step, (images, labels) in enumerate(found, start=position.step):
            _set_rate(optimizer, stage, (position.epoch * steps + step) / (stage.epochs * steps))
            with seeded(self.seed, run_epoch, step):
                losses = forward(images, labels)
                total = program.total(losses)
                optimizer.zero_grad()
                self.fabric.backward(total)
                optimizer.step()
            place = replace(position, step=step + 1)
            if means.add(losses, place, len(images)):
                self.on_progress(Progress(stage, place, steps, means.values, means.images_per_second))
            if step + 1 < steps:
                self.on_save(place, optimizer, False)  # noqa: FBT003
        means.flush()
        end = replace(position, epoch=position.epoch + 1, step=0)
        self.on_progress(Progress(stage, end, steps, means.values, means.images_per_second))
        if end.epoch < stage.epochs:
            self.on_save(end, optimizer, True)  # noqa: FBT003


class _Means:
    """Running means of the losses, looked at every few steps; a value that is not a number stops the run."""

    def __init__(self, stage: Stage, program: Program, *, every: int) -> None:
        self.stage, self.program, self.every = stage, program, every
        self.values: dict[str, float] = {}
        self.images_per_second = 0.0
        self._pending: list[tuple[Position, Tensor]] = []
        self._count = 0
        self._images = 0
        self._since = time.perf_counter()

    def add(self, losses: dict[str, Tensor], position: Position, images: int) -> bool:
        """Take one step's losses; returns whether the means are up to date."""
        self._pending.append((position, torch.stack([losses[t.key].detach().float() for t in self.program.terms])))
        self._images += images
        if len(self._pending) < self.every:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Fetch what is pending."""
        if not self._pending:
            return
        values = torch.stack([value for _, value in self._pending]).cpu()
        for (position, _), row in zip(self._pending, values.tolist(), strict=True):
            for term, value in zip(self.program.terms, row, strict=True):
                if not math.isfinite(value):
                    raise self._not_finite(term.key, position)
                mean = self.values.get(term.key, 0.0)
                self.values[term.key] = mean + (value - mean) / (self._count + 1)
            self._count += 1
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self.images_per_second = self._images / seconds
        self._pending, self._images, self._since = [], 0, time.perf_counter()

    def _not_finite(self, key: str, position: Position) -> TrainingError:
        term = next(term for term in self.program.terms if term.key == key)
        tap = f"the taps of the pair '{term.loss.pair}'" if term.loss.pair else "the logits"
        return TrainingError(
            f"the loss '{key}' is not a number; it reads {tap}",
            where=f"stage '{self.stage.name}', epoch {position.epoch + 1}, batch {position.step}",
            hint="lower the learning rate of that stage in the plan, or train in --precision 32-true",
        )


def make_optimizer(spec: Optimizer, program: Program) -> torch.optim.Optimizer:
    """A fresh optimiser over the student's and the adapters' parameters that the program uses."""
    parameters = [p for p in program.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError("nothing in this stage can be trained", where=program.stages[0].name)
    arguments: dict[str, float] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.name == "sgd":
        arguments["momentum"] = spec.momentum
    return _OPTIMIZERS[spec.name](parameters, **arguments)  # type: ignore[arg-type]


def _set_rate(optimizer: torch.optim.Optimizer, stage: Stage, progress: float) -> None:
    """The learning rate at a share of the stage: constant, or half a cosine to zero (Loshchilov and Hutter, 2017)."""
    factor = 0.5 * (1 + math.cos(math.pi * progress)) if stage.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = stage.optimizer.lr * factor


@contextmanager
def seeded(seed: int, epoch: int, step: int) -> Iterator[None]:
    """Torch's global generators as a function of a place in the run; afterwards they are as before."""
    with torch.random.fork_rng():
        torch.manual_seed((seed * 1_000_003 + epoch) * 1_000_003 + step)
        yield


def trainable_state(program: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a program: student and adapters, without the frozen teacher."""
    return {name: tensor for name, tensor in program.state_dict().items() if not name.startswith("teacher.")}

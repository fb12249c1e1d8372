"""The arms of a run: what is trained, from which start, and when a checkpoint is taken.

An **arm** is one training of the student from its initial weights: the plan's stages, and, where the plan has a
control, the same budget without distillation, for each of the plan's seeds. A student that comes from a factory alone
starts from fresh weights under each seed; one that comes from a file starts from that file's, and the seeds vary
order, augmentation and dropout. An auxiliary teacher is the first arm: it learns from the teacher, then teaches.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fxdistill.compiler import pipeline
from fxdistill.data import batches
from fxdistill.data.batches import Dataset
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InvariantError, TrainingError
from fxdistill.files import write_bytes
from fxdistill.ir.program import Program
from fxdistill.measure import evaluate
from fxdistill.modelfiles.statedict import state_dict_bytes
from fxdistill.passes.strip import Strip, Trained
from fxdistill.plan.schema import ArmName, Plan
from fxdistill.runtime import checkpoint
from fxdistill.runtime.checkpoint import Checkpoint
from fxdistill.runtime.directory import RunDir
from fxdistill.runtime.log import Metrics
from fxdistill.runtime.loop import Loop, Moment, Progress, trainable_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import

_SHARE_OF_SAVING = 0.05  # of the time, at most


@dataclass(frozen=True)
class Arm:
    """One training of the student, or of the auxiliary teacher."""

    seed: int
    name: ArmName


@dataclass
class Observer:
    """Who watches a run; each callback does nothing unless it is given."""

    on_begin: Callable[[Plan, list[Arm]], None] = lambda _plan, _arms: None
    on_diagnostic: Callable[[Diagnostic], None] = lambda _remark: None
    on_progress: Callable[[Arm, Progress, float | None], None] = lambda _arm, _progress, _accuracy: None
    on_phase: Callable[[str], None] = lambda _phase: None


@dataclass
class Execution:
    """One execution of a plan: what its steps share.

    Attributes:
        plan: The plan.
        rundir: Where everything is written.
        dataset: On the device, as far as it fits.
        teacher: The user's module.
        student: The user's module: the one that is trained.
        auxiliary: The smaller teacher that is trained first and then teaches; None where the teacher itself does.
        fabric: Device and precision.
        initial: The state dict that an arm starts from.
        observer: Who watches.
        compiled: Whether to train through ``torch.compile``.
        save_seconds: Seconds between two checkpoints.
        metrics: Where epochs are logged.
        checkpoint: Where to go on from.
        programs: Programs that were built already.
    """

    plan: Plan
    rundir: RunDir
    dataset: Dataset
    teacher: nn.Module
    student: nn.Module
    auxiliary: nn.Module | None
    fabric: "Fabric"
    initial: Callable[[Arm], dict[str, Tensor]]
    observer: Observer
    compiled: bool
    save_seconds: float
    metrics: Metrics
    checkpoint: Checkpoint
    programs: dict[Arm, Program] = field(default_factory=dict)

    def trainee(self, arm: Arm) -> nn.Module:
        """The module that an arm trains."""
        return self.auxiliary if arm.name == "auxiliary" and self.auxiliary is not None else self.student


def arms_of(plan: Plan) -> list[Arm]:
    """The arms of a plan in order: the auxiliary teacher, then for each seed the distilled student and the control."""
    names: list[ArmName] = ["distilled", "control"] if plan.control else ["distilled"]
    first = [Arm(plan.seeds[0], "auxiliary")] if plan.auxiliary is not None else []
    return [*first, *(Arm(seed, name) for seed in plan.seeds for name in names)]


def build_program(
    plan: Plan, arm: Arm, teacher: nn.Module, student: nn.Module, *, auxiliary: nn.Module | None = None
) -> Program:
    """The program of an arm; what is new in it (a learned encoder) is drawn under the arm's seed.

    Raises:
        PlanError: The plan does not fit the models.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arm.seed)
        if arm.name == "auxiliary" and auxiliary is not None:
            return pipeline.build_auxiliary(plan, teacher, auxiliary)
        if arm.name == "distilled":
            return pipeline.build(plan, auxiliary or teacher, student)
        return pipeline.build_control(plan, student)


def train_arm(run: Execution, index: int, arm: Arm) -> None:
    """Train an arm from where the checkpoint is, write what it is for, and note the arm as finished.

    The first distilled student is written, and the auxiliary teacher, which the arms after it read.

    Raises:
        TrainingError: A loss, or a trained weight, is not a number.
    """
    program = _restored(run, arm)
    at, fabric = run.checkpoint, run.fabric
    watch = _Watch(run, program, index, arm)
    loop = Loop(fabric, program, run.dataset, run.plan.data, arm.seed, run.compiled, watch.progress, watch.save)
    loop.run(at.position, at.optimizer, at.means)
    trained = Strip()(Trained(program, run.trainee(arm))).value
    _check_finite(trained, arm)
    if arm.name == "auxiliary":
        write_bytes(run.rundir.auxiliary_path, state_dict_bytes(trained))
    elif arm == Arm(run.plan.seeds[0], "distilled"):
        write_bytes(run.rundir.student_path, state_dict_bytes(trained))
    seconds = round(watch.seconds, 1)
    record = {**asdict(arm), "accuracy": accuracy(run, run.trainee(arm)), "seconds": seconds}
    run.checkpoint = Checkpoint(arm=index + 1, metrics_size=run.metrics.size, finished=[*at.finished, record])
    checkpoint.save(run.rundir, run.checkpoint)


def _restored(run: Execution, arm: Arm) -> Program:
    """The arm's program on the device, with the weights of the checkpoint, or those of the start."""
    trainee = run.trainee(arm)
    trainee.cpu().load_state_dict(run.initial(arm))
    program = run.programs.pop(arm, None) or build_program(
        run.plan, arm, run.teacher, run.student, auxiliary=run.auxiliary
    )
    program.to(run.fabric.device)
    trainee.to(run.fabric.device)
    share_buffers(trainee, program)
    at = run.checkpoint
    if at.state is not None:
        missing, unexpected = program.load_state_dict(at.state, strict=False)
        lost = [name for name in missing if not name.startswith("teacher.")]
        if lost or unexpected:
            raise InvariantError(f"the checkpoint does not fit the program: '{(lost + unexpected)[0]}'")
    if at.scaler:
        run.fabric.strategy.precision.load_state_dict(at.scaler)
    return program


class _Watch:
    """Follows an arm: logs epochs, evaluates them, and takes a checkpoint now and then.

    A checkpoint is due at the end of every stage, and when the last one is ``save_seconds`` ago; but writing them takes
    at most a twentieth of the time.
    """

    def __init__(self, run: Execution, program: Program, index: int, arm: Arm) -> None:
        self.run, self.program, self.index, self.arm = run, program, index, arm
        self._finished, self._before = run.checkpoint.finished, run.checkpoint.seconds
        self._started = self._last = time.monotonic()
        self._took = 0.0

    @property
    def seconds(self) -> float:
        """Time spent in this arm, that before a resume included."""
        return self._before + time.monotonic() - self._started

    def progress(self, progress: Progress) -> None:
        """Log an epoch that has ended, and tell the observer."""
        reached = self._log(progress) if progress.position.step == 0 else None
        self.run.observer.on_progress(self.arm, progress, reached)

    def _log(self, progress: Progress) -> float | None:
        has_logits = any(term.pair is None for term in progress.stage.losses)
        reached = accuracy(self.run, self.run.trainee(self.arm)) if has_logits else None
        self.run.metrics.log(
            {
                **asdict(self.arm),
                "stage": progress.stage.name,
                "epoch": progress.position.epoch,
                "losses": {key: round(value, 6) for key, value in progress.losses.items()},
                "accuracy": reached,
                "images_per_second": round(progress.images_per_second, 1),
            }
        )
        return reached

    def save(self, moment: Moment) -> None:
        """Take a checkpoint, if one is due."""
        due = max(self.run.save_seconds, self._took * (1 / _SHARE_OF_SAVING - 1) if self.run.save_seconds else 0.0)
        if moment.optimizer is not None and time.monotonic() - self._last < due:
            return
        before = time.monotonic()
        checkpoint.save(
            self.run.rundir,
            Checkpoint(
                arm=self.index, position=moment.position, state=trainable_state(self.program),
                optimizer=moment.optimizer.state_dict() if moment.optimizer is not None else None,
                means=moment.means(), scaler=self.run.fabric.strategy.precision.state_dict(),
                metrics_size=self.run.metrics.size, seconds=self.seconds, finished=self._finished,
            ),
        )  # fmt: skip
        self._last = time.monotonic()
        self._took = self._last - before


def share_buffers(student: nn.Module, program: Program) -> None:
    """Make the program's buffers the module's own again after a move to a device.

    Moving keeps parameters what they are and replaces buffers; a graph of ``torch.export`` holds its own references.
    """
    inside = getattr(program, "student", None)
    if not isinstance(inside, nn.Module):
        return
    own = dict(student.named_buffers(remove_duplicate=False))
    for name, _ in list(inside.named_buffers(remove_duplicate=False)):
        if name in own:
            scope, _, leaf = name.rpartition(".")
            inside.get_submodule(scope)._buffers[leaf] = own[name]  # noqa: SLF001  # register_buffer would do the same


def accuracy(run: Execution, module: nn.Module) -> float:
    """Accuracy of a module on the run's test images, on the run's device."""
    module.to(run.fabric.device)
    plan, test = run.plan, run.dataset
    found = batches.batches(test.test, plan.data.batch_size, mean=test.mean, std=test.std, device=run.fabric.device)
    return evaluate.accuracy(module, found)


def _check_finite(trained: nn.Module, arm: Arm) -> None:
    """The last step's losses say nothing of what that step made of the weights."""
    for name, tensor in trained.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"the trained weight '{name}' is not finite", where=f"arm '{arm.name}', seed {arm.seed}",
                hint="lower the learning rate in the plan",
            )  # fmt: skip

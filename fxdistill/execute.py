"""Execute a plan: load, check, train every arm, evaluate, export, write what came out.

An **arm** is one training of the student from its initial weights: the plan's stages, and, where the plan has a control, the same
budget without distillation, for each of the plan's seeds. What is exported is the distilled student of the first seed, whatever
the others reach.
"""

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn

from fxdistill import checkpoint, data, evaluate, export, pipeline
from fxdistill.data import Dataset
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ModelError, PlanError
from fxdistill.passes.strip import Strip, Trained
from fxdistill.plan import ModelRef, Plan, write_bytes, write_text
from fxdistill.program import Program
from fxdistill.resume import Checkpoint, RunDir, lock
from fxdistill.train import Loop, Position, Progress, trainable_state

ArmName = Literal["distilled", "control"]
_SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Arm:
    """One training of the student."""

    seed: int
    name: ArmName


@dataclass(frozen=True)
class Settings:
    """What a user decides about a run, beside its plan.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Overrides the plan's training precision.
        resume: Whether to take up the run that the directory holds.
        compile: Whether to train through ``torch.compile``.
        allow: Modules whose factories may be called.
        trust_pickle: Whether a model file that the plan says to unpickle may be: it can run any code.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: str | None = None
    resume: bool = False
    compile: bool = False
    allow: tuple[str, ...] = ()
    trust_pickle: bool = False


@dataclass
class Observer:
    """Who watches a run; each callback does nothing unless it is given."""

    on_begin: Callable[[Plan, list[Arm]], None] = lambda _plan, _arms: None
    on_diagnostic: Callable[[Diagnostic], None] = lambda _remark: None
    on_progress: Callable[[Arm, Progress, float | None], None] = lambda _arm, _progress, _accuracy: None
    on_phase: Callable[[str], None] = lambda _phase: None


@dataclass
class _Run:
    """One execution: what its steps share."""

    plan: Plan
    rundir: RunDir
    settings: Settings
    observer: Observer
    dataset: Dataset
    teacher: nn.Module
    student: nn.Module
    fabric: Fabric
    fresh: Callable[[int], dict[str, Any]]
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


def execute(plan_path: Path, out: Path, settings: Settings, observer: Observer | None = None) -> dict[str, Any]:
    """Run a plan and return what came out, as ``result.json`` has it.

    Args:
        plan_path: The plan; its models' paths are relative to it.
        out: The run directory, new or empty, or one to resume.
        settings: The user's decisions.
        observer: Who watches.

    Raises:
        InputError: Plan, models, data or run directory do not fit; nothing was written.
        TrainingError: A loss is not a number; the last checkpoint stays.
        ParityError: The exported student is not the trained one.
    """
    observer = observer or Observer()
    plan = read_plan(plan_path)
    run = _prepare(plan, plan_path, out, settings, observer)
    with lock(run.rundir):
        done = run.rundir.result()
        if done is not None:
            return done
        run.checkpoint = run.rundir.checkpoint()
        arms = arms_of(plan)
        observer.on_begin(plan, arms)
        teacher_accuracy = _accuracy(run, run.teacher)
        _preflight(run, teacher_accuracy)
        for index, arm in enumerate(arms):
            if index >= run.checkpoint.arm:
                _train_arm(run, index, arm)
        return _finish(run, teacher_accuracy)


def read_plan(path: Path) -> Plan:
    """A plan that can be run.

    Raises:
        PlanError: It cannot be read, or it is structural, or it has a teacher without weights.
    """
    from fxdistill.plan import load  # noqa: PLC0415

    plan = load(path)
    if plan.data.spec is None:
        raise PlanError(
            "the plan has no data, so it cannot be run", where=f"{path}, data.spec",
            hint="write it anew with --data, e.g. --data digits",
        )  # fmt: skip
    if plan.teacher.path is None:
        raise PlanError(
            "the plan's teacher has random weights, so there is nothing to learn from it",
            where=f"{path}, teacher.path", hint="plan with a file that holds a trained teacher",
        )  # fmt: skip
    return plan


def arms_of(plan: Plan) -> list[Arm]:
    """The arms of a plan in order: for each seed the distilled student, then the control."""
    names: list[ArmName] = ["distilled", "control"] if plan.control else ["distilled"]
    return [Arm(seed, name) for seed in plan.seeds for name in names]


def load_model(
    ref: ModelRef, base: Path, *, seed: int, allow: tuple[str, ...], trust_pickle: bool = False
) -> nn.Module:
    """Load a plan's model and check that its file is the one that was planned.

    Raises:
        PlanError: The file's hash is not the plan's.
        ModelError: The file cannot be loaded.
    """
    path = None if ref.path is None else (base / ref.path)
    source = checkpoint.ModelSource(
        path=path,
        factory=ref.factory,
        kwargs=dict(ref.kwargs),
        trust_pickle=ref.trusted and trust_pickle,
        allow=allow,
    )
    if path is not None:
        _same_file(path, ref)
    return checkpoint.load(source, seed=seed).module


def _same_file(path: Path, ref: ModelRef) -> None:
    from fxdistill.plan import file_sha256  # noqa: PLC0415

    if not path.is_file():
        raise ModelError(
            "the plan's model file is missing", where=str(path), hint="put it back, or write the plan anew"
        )
    found = file_sha256(path)
    if found != ref.sha256:
        raise PlanError(
            f"the model file is not the one that was planned: its sha256 is {found}, the plan says {ref.sha256}",
            where=str(path), hint="write the plan anew with `fxdistill plan`",
        )  # fmt: skip


def _prepare(plan: Plan, plan_path: Path, out: Path, settings: Settings, observer: Observer) -> _Run:
    base = plan_path.resolve().parent

    def loaded(ref: ModelRef, seed: int) -> nn.Module:
        return load_model(ref, base, seed=seed, allow=settings.allow, trust_pickle=settings.trust_pickle)

    teacher, student = loaded(plan.teacher, plan.seed), loaded(plan.student, plan.seed)
    dataset = data.load(plan.data, input_shape=tuple(plan.input.shape), allow=settings.allow)
    data.check_input(dataset, plan.input.shape)
    _classes_fit(plan, student, dataset)
    fabric = Fabric(
        accelerator=_accelerator(settings.device), devices=1, precision=settings.precision or plan.precision
    )  # type: ignore[arg-type]

    def fresh(seed: int) -> dict[str, Any]:
        module = student if seed == plan.seed else loaded(plan.student, seed)
        return copy.deepcopy({name: tensor.cpu() for name, tensor in module.state_dict().items()})

    initial = fresh(plan.seed)
    rundir = RunDir.open(out, plan, resume=settings.resume)
    return _Run(
        plan, rundir, settings, observer, dataset.to(fabric.device), teacher, student, fabric,
        fresh=lambda seed: initial if seed == plan.seed else fresh(seed),
    )  # fmt: skip


def _classes_fit(plan: Plan, student: nn.Module, dataset: Dataset) -> None:
    with evaluate.evaluating(student):
        logits = evaluate.prediction(student(torch.zeros(tuple(plan.input.shape))))
    if logits.shape[1] != len(dataset.classes):
        raise ModelError(
            f"the models answer with {logits.shape[1]} classes, the data has {len(dataset.classes)}",
            where=f"data {plan.data.spec}", hint="build both with the data's number of classes",
        )  # fmt: skip


def _accelerator(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise PlanError("no CUDA device is available", where="--device cuda", hint="use --device auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _program(run: _Run, arm: Arm) -> Program:
    if arm.name == "distilled":
        return pipeline.build(run.plan, run.teacher, run.student)
    return pipeline.build_control(run.plan, run.student)


def _train_arm(run: _Run, index: int, arm: Arm) -> None:
    run.student.cpu().load_state_dict(run.fresh(arm.seed))
    program = _program(run, arm)
    program.to(run.fabric.device)
    run.student.to(run.fabric.device)
    share_buffers(run.student, program)
    at = run.checkpoint
    if at.state is not None:
        program.load_state_dict(at.state, strict=False)
    saved = _Saver(run, program, index)
    started = time.perf_counter()
    last_epoch = [at.position.stage, at.position.epoch]

    def on_progress(progress: Progress) -> None:
        accuracy = None
        if progress.position.step == 0 and [progress.position.stage, progress.position.epoch] != last_epoch:
            last_epoch[:] = [progress.position.stage, progress.position.epoch]
            accuracy = _log_epoch(run, arm, progress)
        run.observer.on_progress(arm, progress, accuracy)

    loop = Loop(run.fabric, program, run.dataset, run.plan.data, arm.seed, run.settings.compile, on_progress, saved)
    loop.run(at.position, at.optimizer)
    Strip()(Trained(program, run.student))
    if arm == arms_of(run.plan)[0]:
        write_bytes(run.rundir.student_path, checkpoint.state_dict_bytes(run.student))
    record = {
        **asdict(arm),
        "accuracy": _accuracy(run, run.student),
        "seconds": round(time.perf_counter() - started, 1),
    }
    run.checkpoint = Checkpoint(arm=index + 1, metrics_size=run.rundir.metrics_size(), finished=[*at.finished, record])
    run.rundir.save(run.checkpoint)


class _Saver:
    """Takes a checkpoint at the end of every epoch, and within one when the last is some time ago."""

    def __init__(self, run: _Run, program: Program, arm: int) -> None:
        self.run, self.program, self.arm = run, program, arm
        self.finished = run.checkpoint.finished
        self.last = time.monotonic()

    def __call__(self, position: Position, optimizer: torch.optim.Optimizer | None, epoch_end: bool) -> None:  # noqa: FBT001
        if not epoch_end and time.monotonic() - self.last < _SAVE_SECONDS:
            return
        self.run.rundir.save(
            Checkpoint(
                arm=self.arm,
                position=position,
                state=trainable_state(self.program),
                optimizer=optimizer.state_dict() if optimizer is not None else None,
                metrics_size=self.run.rundir.metrics_size(),
                finished=self.finished,
            )  # fmt: skip
        )
        self.last = time.monotonic()


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


def _log_epoch(run: _Run, arm: Arm, progress: Progress) -> float | None:
    has_logits = any(term.pair is None for term in progress.stage.losses)
    accuracy = _accuracy(run, run.student) if has_logits else None
    run.rundir.log(
        {
            **asdict(arm),
            "stage": progress.stage.name,
            "epoch": progress.position.epoch,
            "losses": {key: round(value, 6) for key, value in progress.losses.items()},
            "accuracy": accuracy,
            "images_per_second": round(progress.images_per_second, 1),
        }  # fmt: skip
    )
    return accuracy


def _accuracy(run: _Run, module: nn.Module) -> float:
    module.to(run.fabric.device)
    return evaluate.accuracy(module, test_batches(run.dataset, run.plan, run.fabric.device))


def test_batches(
    dataset: Dataset, plan: Plan, device: data.Device = "cpu"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The test images as the plan normalises them."""
    return data.batches(dataset.test, plan.data.batch_size, mean=dataset.mean, std=dataset.std, device=device)


def _preflight(run: _Run, accuracy: float) -> None:
    chance = 1 / len(run.dataset.classes)
    if accuracy < 2 * chance:
        run.observer.on_diagnostic(
            Diagnostic(
                code="teacher-near-chance",
                severity="warning",
                where="teacher",
                why=f"the teacher's accuracy on this data is {accuracy:.1%}, near chance ({chance:.1%})",
                hint="check label order, normalisation (data.mean, data.std in the plan) and the checkpoint",
            )  # fmt: skip
        )


def _finish(run: _Run, teacher_accuracy: float) -> dict[str, Any]:
    run.observer.on_phase("export")
    student = run.student.cpu()
    student.load_state_dict(torch.load(run.rundir.student_path, map_location="cpu", weights_only=True))
    shape = tuple(run.plan.input.shape)
    written, parity = export.export_checked(
        student, run.rundir.onnx_path, test_batches(run.dataset, run.plan), input_shape=shape,
        opset=run.plan.export.opset, tolerance=run.plan.export.tolerance, metadata=provenance(run.plan),
    )  # fmt: skip
    run.observer.on_phase("latency")
    result = {
        "plan": run.plan.sha256, "teacher": {"accuracy": teacher_accuracy},
        "arms": run.checkpoint.finished, "summary": summary(run.checkpoint.finished),
        "parity": asdict(parity), "exporter": written.exporter, "opset": written.opset,
        "latency": _latencies(run, shape), "device": str(run.fabric.device), "versions": pipeline.versions(),
    }  # fmt: skip
    write_text(run.rundir.result_path, json.dumps(result, indent=2) + "\n")
    run.rundir.checkpoint_path.unlink(missing_ok=True)
    return result


def _latencies(run: _Run, shape: tuple[int, ...]) -> dict[str, Any]:
    """Latency of teacher and student in ONNX Runtime, measured side by side, batch 1."""
    single = (1, *shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher.onnx"
        export.export_onnx(run.teacher.cpu(), teacher, input_shape=single, opset=run.plan.export.opset)
        paths = {"teacher": teacher, "student": run.rundir.onnx_path}
        found = evaluate.interleaved_latency(paths, single)
    return {name: asdict(latency) for name, latency in found.items()}


def summary(arms: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the accuracy of each arm over the seeds (deviation 0 for one seed)."""
    by_name: dict[str, list[float]] = {}
    for arm in arms:
        by_name.setdefault(arm["name"], []).append(arm["accuracy"])
    return {
        name: {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        }
        for name, values in by_name.items()
    }


def provenance(plan: Plan) -> dict[str, str]:
    """What an ONNX file says of where it comes from."""
    return {
        "fxdistill.plan_sha256": plan.sha256,
        "fxdistill.versions": json.dumps(pipeline.versions()),
        "fxdistill.normalization": json.dumps(
            {"mean": plan.data.mean, "std": plan.data.std, "scale": "pixels in 0 to 1"}
        ),
        "fxdistill.classes": json.dumps(plan.data.classes),
    }

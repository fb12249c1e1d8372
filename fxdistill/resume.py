"""A run directory, and checkpoints that continue a run exactly.

    plan.json        the plan that is run; a directory holds one run
    metrics.jsonl    one line an epoch
    checkpoint.pt    the last checkpoint: removed when the run is complete
    student.pt       the distilled student's state dict
    student.onnx     the same, exported
    result.json      what came out; its presence says that the run is complete

Every file is written whole or not at all. A checkpoint holds the place in the run, the trainable tensors, the optimiser and
the length of the metrics at that moment, so that a resumed run writes the same lines again, not twice.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxdistill.errors import PlanError, RunDirError
from fxdistill.plan import Plan, write_bytes, write_text
from fxdistill.plan import load as load_plan
from fxdistill.train import Position

_FORMAT = 1


@dataclass
class Checkpoint:
    """Everything that an exact resume needs.

    Attributes:
        arm: Index into the run's arms.
        position: The place in that arm.
        state: Trainable tensors by name.
        optimizer: The optimiser's state; None between stages.
        metrics_size: Length of metrics.jsonl, bytes.
        finished: Results of the arms before.
    """

    arm: int = 0
    position: Position = field(default_factory=Position)
    state: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    metrics_size: int = 0
    finished: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunDir:
    """A run directory on disk."""

    path: Path

    @classmethod
    def open(cls, path: Path, plan: Plan, *, resume: bool) -> "RunDir":
        """Start a run in a new or empty directory, or take one up again.

        Raises:
            RunDirError: It holds another run, or this one and ``resume`` is not asked for.
        """
        run = cls(path)
        if path.exists() and not path.is_dir():
            raise RunDirError("the run directory is a file", where=str(path), hint="choose another with -o")
        held = run.plan_path.exists()
        if held:
            run._same_plan(plan)
            if not resume:
                raise RunDirError(
                    "the run directory already holds this run", where=str(path),
                    hint="continue it with --resume, or choose another directory with -o",
                )  # fmt: skip
            return run
        if path.exists() and any(path.iterdir()):
            raise RunDirError(
                "the directory is not empty and holds no run", where=str(path), hint="choose another with -o"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise RunDirError(f"cannot make the run directory: {cause.strerror}", where=str(path)) from cause
        write_text(run.plan_path, plan.to_json())
        return run

    @classmethod
    def existing(cls, path: Path) -> "RunDir":
        """A directory that holds a run.

        Raises:
            RunDirError: It does not.
        """
        run = cls(path)
        if not run.plan_path.exists():
            raise RunDirError(
                "this directory holds no run",
                where=str(path),
                hint="start one with `fxdistill run PLAN -o DIR`",
            )
        return run

    @property
    def plan_path(self) -> Path:
        """The plan."""
        return self.path / "plan.json"

    @property
    def student_path(self) -> Path:
        """The distilled student's state dict."""
        return self.path / "student.pt"

    @property
    def onnx_path(self) -> Path:
        """The exported student."""
        return self.path / "student.onnx"

    @property
    def metrics_path(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """The last checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def result_path(self) -> Path:
        """What came out."""
        return self.path / "result.json"

    def plan(self) -> Plan:
        """The plan that this directory runs."""
        return load_plan(self.plan_path)

    def result(self) -> dict[str, Any] | None:
        """What came out, None while the run is not complete."""
        if not self.result_path.exists():
            return None
        result: dict[str, Any] = json.loads(self.result_path.read_text(encoding="utf-8"))
        return result

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint."""
        content = {"format": _FORMAT, **{name: getattr(checkpoint, name) for name in _FIELDS}}
        content["position"] = asdict(checkpoint.position)
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_bytes(self.checkpoint_path, buffer.getvalue())

    def checkpoint(self) -> Checkpoint:
        """The last checkpoint, or a fresh one; metrics written after it are dropped.

        Raises:
            RunDirError: The file is damaged.
        """
        found = Checkpoint()
        if self.checkpoint_path.exists():
            try:
                content = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
                found = Checkpoint(**{name: content[name] for name in _FIELDS})
                found.position = Position(**content["position"])
            except Exception as cause:
                raise RunDirError(
                    "the checkpoint is damaged", where=str(self.checkpoint_path),
                    hint="remove the run directory and start again",
                ) from cause  # fmt: skip
        if self.metrics_path.exists():
            kept = self.metrics_path.read_bytes()[: found.metrics_size]
            write_bytes(self.metrics_path, kept)
        return found

    def metrics_size(self) -> int:
        """Length of the metrics so far, bytes."""
        return self.metrics_path.stat().st_size if self.metrics_path.exists() else 0

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the metrics."""
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as cause:
            raise PlanError(
                f"cannot write: {cause.strerror}", where=str(self.metrics_path), hint="free some space"
            ) from cause

    def _same_plan(self, plan: Plan) -> None:
        theirs = self.plan().sha256
        if theirs != plan.sha256:
            raise RunDirError(
                f"the run directory holds another run: its plan has sha256 {theirs[:12]}…, yours {plan.sha256[:12]}…",
                where=str(self.path), hint="choose another directory with -o",
            )  # fmt: skip


_FIELDS = ("arm", "position", "state", "optimizer", "metrics_size", "finished")


@contextmanager
def lock(run: RunDir) -> Iterator[None]:
    """One process a run directory at a time.

    Raises:
        RunDirError: Another process is at work in it.
    """
    import fcntl  # noqa: PLC0415  # not on Windows

    with (run.path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            raise RunDirError("another process runs in this directory", where=str(run.path)) from cause
        yield

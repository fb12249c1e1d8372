"""Checkpoints that continue a run exactly.

What a step does depends on its place in the run, on the tensors and on the optimiser alone, see
:mod:`fxdistill.runtime.training.loop`. A checkpoint holds just these and, so that a resumed run also *reports* what an
undisturbed one does, the means of the losses over the epoch so far and the length of the metrics, which are cut back
to it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter
from torch import Tensor

from fxdistill import container
from fxdistill.errors import RunDirError
from fxdistill.plan.schema import Count
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.training.course import Course, Means, Position
from fxdistill.runtime.training.halves import Report

_FORMAT = 5
"""Of what a checkpoint holds; one of another format is not continued."""
_KIND = "checkpoint"


@dataclass
class Checkpoint:
    """Everything that an exact resume needs.

    Attributes:
        arm: Index into the run's arms.
        position: The place in that arm.
        state: Trainable tensors by name; None at the start of an arm.
        optimizer: The optimiser's state; None between stages.
        means: The losses of the epoch so far.
        scaler: State of the loss scaling of 16-bit training; empty for other precisions.
        metrics_size: Length of metrics.jsonl, bytes.
        seconds: Time spent in this arm.
        finished: Results of the arms before.
        how: What beside the plan decides about every step: precision, and whether programs are compiled.
        average: The running mean of the weights, as ``state``; None for none.
        course: How the arm has gone so far, where stages may end on a plateau.
        reuse: What was decided about what frozen members compute, by stage of that arm, and what came of it.
        compiled: Of stages, as ``ARM/STAGE``, whether they are compiled, where that was tried.
    """

    __pydantic_config__: ClassVar = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    arm: Count = 0
    position: Position = field(default_factory=Position)
    state: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    means: Means = field(default_factory=Means)
    scaler: dict[str, Any] = field(default_factory=dict)
    metrics_size: Count = 0
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    finished: list[dict[str, Any]] = field(default_factory=list)
    how: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] | None = None
    course: Course = field(default_factory=Course)
    reuse: dict[str, Report] = field(default_factory=dict)
    compiled: dict[str, bool] = field(default_factory=dict)


_CHECKPOINT = TypeAdapter(Checkpoint)
_PLAIN = ("arm", "state", "optimizer", "scaler", "metrics_size", "seconds", "finished", "how", "average", "compiled")


def save(run: RunDir, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the last one.

    Raises:
        PlanError: It cannot be written there; the last one is as it was.
        StorageError: The disk is full; the last one is as it was.
    """
    save_to(run.checkpoint_path, checkpoint)


def save_to(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to a file; raises as :func:`save` does."""
    content = {"format": _FORMAT, **{name: getattr(checkpoint, name) for name in _PLAIN}}
    content |= {name: asdict(getattr(checkpoint, name)) for name in ("position", "means", "course")}
    content |= {"reuse": {stage: asdict(report) for stage, report in checkpoint.reuse.items()}}
    container.write(path, _KIND, content)


def load(run: RunDir, *, how: dict[str, Any] | None = None) -> Checkpoint:
    """The last checkpoint, or a fresh one.

    Args:
        run: The directory.
        how: What the run is to go on with, see :class:`Checkpoint`; what is None in it is as it was. None to look at it
            only.

    Raises:
        RunDirError: The file is damaged, of another format, or the run was begun in another way.
    """
    if not run.checkpoint_path.exists():
        return Checkpoint(how=how or {})
    return load_from(run.checkpoint_path, how=how)


def load_from(path: Path, *, how: dict[str, Any] | None = None) -> Checkpoint:
    """The checkpoint in a file; raises as :func:`load` does."""
    where = str(path)
    try:
        _, content = container.read(path, kinds=(_KIND,))
        written = content.pop("format")
        found = _CHECKPOINT.validate_python(content) if written == _FORMAT else None
    except Exception as cause:
        raise RunDirError(
            "the checkpoint is damaged", where=where, hint="remove the run directory and start again"
        ) from cause
    if found is None:
        raise RunDirError(
            f"the checkpoint has format {written!r}; this fxdistill continues format {_FORMAT}", where=where,
            hint="continue it with the fxdistill that began it, or start again",
        )  # fmt: skip
    how = None if how is None else settled(how, found.how)
    if how is not None and found.how != how:
        raise RunDirError(
            f"the run was begun with {_told(found.how)}, and would go on with {_told(how)}", where=where,
            hint="continue it with the options that it was begun with",
        )  # fmt: skip
    return found


def settled(how: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is to go on with; what nobody says, None, is as it was before."""
    return {name: before.get(name) if value is None else value for name, value in how.items()}


def _told(how: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in how.items())

"""What a run begins with: its plan, its directory, and the place to go on from.

The first process looks and decides for all (:meth:`fxdistill.runtime.processes.crew.Crew.first`); it alone opens
the directory.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fxdistill.compiler.comparing import compared
from fxdistill.data.batches import steps_per_epoch
from fxdistill.data.dataset import Dataset
from fxdistill.errors import InputError, RunDirError
from fxdistill.plan.document import Plan
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.processes.crew import Crew
from fxdistill.runtime.run import checkpoint, extension, inspection, lock
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.directory import RunDir, origin_of
from fxdistill.runtime.run.execution import Settings


@dataclass(frozen=True)
class Begun:
    """What a run begins with.

    Attributes:
        before: The plan that the run directory holds, or will.
        plan: The plan to carry out: the same, or longer.
        origin: The file to whose folder its places are relative.
        how: What beside the plan decides about every step.
        result: What came out, of a run that is complete.
        goes_on: Whether the directory holds it already: what is tried before anything trains was tried then.
    """

    before: Plan
    plan: Plan
    origin: Path
    how: dict[str, Any]
    result: dict[str, Any] | None = None
    goes_on: bool = False


def begun(plan: Plan, plan_path: Path, out: Path, settings: Settings, crew: Crew) -> Begun:
    """Look what there is to carry out of a plan, and whether the run directory is for it; nothing is written.

    Raises:
        InputError: What the user wants does not go with the plan, or with a run that was begun.
        RunDirError: The directory holds another run, or none that goes on, or cannot be read; or another process is at
            work in it.
    """
    held = RunDir(out)
    begins = not settings.more_epochs and held.plan_path.resolve() != plan_path.resolve()
    if (settings.arms or settings.seeds is not None) and not begins:
        raise InputError(
            "other arms and seeds are for a run that is yet to begin", where="--arms, --seeds",
            hint="name the plan's own file and another directory; a run that was begun with them knows them",
        )  # fmt: skip
    plan = compared(plan, settings.arms, seeds=settings.seeds)
    preflight.runnable(plan, plan_path)
    last = None if settings.channels_last == "auto" else settings.channels_last
    how: dict[str, Any] = {"precision": settings.precision or plan.precision, "compile": settings.compile}
    how |= {"channels_last": last}
    how |= {"cache_half": True} if settings.cache_half and settings.cache != "off" else {}
    how |= {"processes": crew.count} if crew.count > 1 else {}
    if settings.more_epochs or settings.resume:
        lock.check_free(out)
    found = Begun(plan, plan, origin_of(plan_path), how)
    if settings.more_epochs:
        longer, how = extension.extended(held, plan, settings.more_epochs, how=how)
        return replace(found, plan=longer, how=how, goes_on=True)
    if held.holds(plan, resume=settings.resume) and settings.resume:
        if held.jobs_path.is_dir():
            raise RunDirError(
                "the seeds of this run are trained in processes of their own", where=str(out),
                hint=f"continue it with fxdistill run {shlex.quote(str(out))} --resume --jobs N",
            )  # fmt: skip
        there = inspection.inspect(held)
        return replace(found, result=there.result, how=checkpoint.settled(how, there.how), goes_on=True)
    return found


@contextmanager
def opened(out: Path, begun: Begun, crew: Crew, *, resume: bool) -> Iterator[RunDir]:
    """The run directory, which the first process opens for all; raises as :meth:`RunDir.opened` does."""
    if not crew.is_first:
        yield RunDir(out)
        return
    with RunDir.opened(out, begun.before, origin=begun.origin, resume=resume) as rundir:
        yield rundir


def taken_up(rundir: RunDir, begun: Begun, dataset: Dataset) -> Checkpoint:
    """Where to go on from, in a directory that is open; of an extended run it becomes that of the longer plan.

    Raises:
        RunDirError: The checkpoint is damaged, of another plan, or of a run that was begun in another way.
    """
    if begun.plan is not begun.before:
        extension.begin(rundir, begun.plan, how=begun.how)
    at = checkpoint.load(rundir, how=begun.how)
    steps = steps_per_epoch(dataset.train, begun.plan.data.batch_size)
    inspection.check(at, begun.plan, where=str(rundir.checkpoint_path), steps=steps)
    return at

"""The seeds of a run side by side, each in a process of its own.

What is trained under one seed hangs on no other. So the trainings of each seed are a run by themselves, in a folder of
the run directory:

    jobs/seed-N/    the plan with the seed N alone, from where the whole run is when its first seed begins

The whole run begins in one process, which finds out all that can be wrong, decides what holds for every training, and
carries out the arms that are trained once. What the seeds leave is then put together as one process leaves it after
its last training, and the run is completed from there. So the weights are those of a run in one process, bit for bit
where both count with as many threads; and whatever is killed at whatever time, the run goes on.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fxdistill.compiler.comparing import compared
from fxdistill.errors import InputError, RunDirError, TrainingError
from fxdistill.files import write_bytes
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load as load_plan
from fxdistill.runtime.processes import stopping
from fxdistill.runtime.processes.launch import CHILD
from fxdistill.runtime.run import checkpoint, lock
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.directory import RunDir, origin_of
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.run.kept import exported_seed
from fxdistill.runtime.run.trials import trials_of
from fxdistill.runtime.training import memory
from fxdistill.tasks import TASKS

_OFTEN = 0.1  # seconds between two looks
_CACHE_SHARE = 4  # of the memory, for all of them together


def seeds_at_once(
    plan_path: Path,
    out: Path,
    settings: Settings,
    observer: Observer,
    *,
    jobs: int,
    words: Sequence[str] = (),
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Run a plan, its seeds in several processes at once.

    Args:
        plan_path: The plan, as :func:`~fxdistill.runtime.run.execute.execute` takes it.
        out: The run directory.
        settings: The user's decisions.
        observer: Who watches what is done in this process.
        jobs: How many processes at once.
        words: The options of ``fxdistill run`` that say the same as the settings, for the other processes; not how
            large the cache may be.
        say: Told each line that one of them has to say.

    Returns:
        What came out, as ``result.json`` has it.

    Raises:
        InputError: As ``execute``; or there is one seed alone, or the run was begun in one process.
        TrainingError: A training failed, or as ``execute``.
        KeyboardInterrupt: Asked to stop; every process took a checkpoint.
    """
    rundir, again = RunDir(out), settings.resume
    plan = compared(load_plan(plan_path), settings.arms, seeds=settings.seeds)
    if again:
        lock.check_free(out)
    if not rundir.jobs_path.is_dir():
        first = sum(arm.once for arm in plan.arms)
        _check(plan, rundir, settings, first)
        if result := execute(plan_path, out, replace(settings, trials=first), observer):
            return result
        rundir.jobs_path.mkdir()
        again = True
    with RunDir.opened(out, plan, origin=origin_of(plan_path), resume=again):
        at = checkpoint.load(rundir)
        if at.arm < len(trials_of(plan)):  # else they are put together, and folders of seeds may be gone
            _train(rundir, plan, at, settings, observer, jobs=jobs, words=words, say=say)
    shutil.rmtree(rundir.jobs_path)
    return execute(rundir.plan_path, out, replace(settings, resume=True, arms=(), seeds=None), observer)


def _train(
    rundir: RunDir, plan: Plan, at: Checkpoint, settings: Settings, observer: Observer, *, jobs: int,
    words: Sequence[str], say: Callable[[str], None],
) -> None:  # fmt: skip
    """Carry out the runs of all seeds, as far as they are not done, and put together what they leave."""
    parts = {seed: RunDir(rundir.jobs_path / f"seed-{seed}") for seed in plan.seeds}
    commands, jobs = dict[int, list[str]](), min(jobs, len(plan.seeds))
    for seed, part in parts.items():
        own = plan.changed(seeds=[seed])
        _prepare(part, own, rundir, at)
        if checkpoint.load(part).arm < (count := len(trials_of(own))):
            command = ["fxdistill", "run", str(part.path), "--resume", *words, "--trials", str(count)]
            commands[seed] = [sys.executable, "-m", *command]
    observer.on_phase(f"training {len(plan.seeds)} seeds, {jobs} at once")
    _carry_out(commands, jobs, settings, say)
    _put_together(rundir, plan, at, parts)


def _check(plan: Plan, rundir: RunDir, settings: Settings, first: int) -> None:
    """Refuse what cannot be divided: a run of one seed, or one that is past its ``first`` trainings, which are shared.

    A run that is past its last one has nothing left to divide, and is completed.

    Raises:
        InputError: It cannot; nothing was written.
    """
    if len(plan.seeds) == 1:
        raise InputError(
            "the run has one seed, and seeds are what is trained side by side", where="--jobs",
            hint="give --seeds 3, say; or leave --jobs out",
        )  # fmt: skip
    if settings.compile == "auto":
        raise InputError("each process would choose by itself", where="--compile auto", hint="use --compile on or off")
    if settings.resume and rundir.checkpoint_path.exists():
        at = checkpoint.load(rundir)
        if first < at.arm < len(trials_of(plan)) or (at.arm == first and at.state is not None):
            raise InputError(
                "the run was begun in one process, and is past the beginning of its first seed",
                where=f"--jobs, {rundir.path}", hint="leave --jobs out to go on as it was begun",
            )  # fmt: skip


def _prepare(part: RunDir, plan: Plan, whole: RunDir, at: Checkpoint) -> None:
    """Begin the run of a seed from where the whole run is; nothing where that is done."""
    with RunDir.opened(part.path, plan, origin=whole.source, resume=part.plan_path.exists()):
        if part.checkpoint_path.exists():
            return
        for record, trial in zip(at.finished, trials_of(plan), strict=False):
            for member in plan.arm(record["name"]).trains:
                _copy(whole.bundle_path(member), part.bundle_path(member))
            _copy(whole.trained_path(trial.name, trial.seed), part.trained_path(trial.name, trial.seed))
        if at.metrics_size:
            write_bytes(part.metrics_path, whole.metrics_path.read_bytes()[: at.metrics_size])
        _copy(whole.checkpoint_path, part.checkpoint_path)


def _copy(source: Path, target: Path) -> None:
    write_bytes(target, source.read_bytes())


def _carry_out(commands: dict[int, list[str]], jobs: int, settings: Settings, say: Callable[[str], None]) -> None:
    """Run commands, so many at once, until all are done; where one fails, the others take a checkpoint and end."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ, CHILD: "1"}
    room = [] if settings.cache == "off" else ["--cache-size", str(_room(settings, jobs))]
    waiting, failed = list(commands), dict[int, int]()
    with stopping.deferred() as request, _ended() as running:

        def told(line: str) -> None:
            if not (request.made or failed):  # what each says of how to go on is not how to go on with all
                say(line)

        while True:
            ends = request.made or bool(failed)
            while waiting and not ends and len(running) < jobs:
                seed = waiting.pop(0)
                running[seed] = _Process([*commands[seed], *room], environment, told)
            if not running:
                break
            time.sleep(_OFTEN)
            codes = {seed: code for seed, one in running.items() if (code := one.poll()) is not None}
            for seed in codes:
                running.pop(seed)
            failed |= {seed: code for seed, code in codes.items() if code and not request.made}
            if (request.made or failed) and not ends:
                for process in running.values():
                    process.send_signal(request.number or signal.SIGTERM)
    for seed, code in failed.items():
        raise (InputError if code == InputError.exit_code else TrainingError)(
            f"the process of a seed {f'was ended by signal {-code}' if code < 0 else 'has failed, as it says above'}",
            where=f"seed {seed}", hint="mend that, then continue with --resume",
        )  # fmt: skip


def _room(settings: Settings, jobs: int) -> int:
    """Bytes that the cache of each process may take; a folder's are those of all."""
    if isinstance(settings.cache, Path):
        return settings.cache_size
    return min(settings.cache_size, (memory.available("cpu") or settings.cache_size) // _CACHE_SHARE) // jobs


class _Process:
    """A process whose lines are passed on; it ends with this one, see :mod:`fxdistill.runtime.processes.launch`."""

    def __init__(self, command: list[str], environment: dict[str, str], say: Callable[[str], object]) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # this very program, without a shell
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace", start_new_session=True,
        )  # fmt: skip
        self._say = say
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.send_signal = self._process.send_signal

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._say(line.rstrip("\n"))

    def poll(self) -> int | None:
        """The exit code, once it has ended and all its lines are passed on."""
        if (code := self._process.poll()) is not None:
            self._reader.join()
            for pipe in filter(None, (self._process.stdin, self._process.stderr)):
                pipe.close()
        return code

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self.poll()


@contextmanager
def _ended() -> Iterator[dict[int, _Process]]:
    """Processes by seed; those that are left at the end are killed."""
    running = dict[int, _Process]()
    try:
        yield running
    finally:
        for process in running.values():
            process.kill()


def _put_together(rundir: RunDir, plan: Plan, at: Checkpoint, parts: dict[int, RunDir]) -> None:
    """Leave in the run directory what one process leaves there after its last training."""
    ended = {seed: checkpoint.load(part) for seed, part in parts.items()}
    for seed, found in ended.items():
        if found.arm != len(trials_of(plan.changed(seeds=[seed]))):
            raise RunDirError(
                "the run of a seed is not as its process left it", where=str(parts[seed].path),
                hint="remove that folder, and continue with --resume",
            )  # fmt: skip
    finished = [*at.finished, *(record for found in ended.values() for record in found.finished[at.arm :])]
    for trial in trials_of(plan)[at.arm :]:
        name = rundir.trained_path(trial.name, trial.seed).name
        _copy(parts[trial.seed].path / name, rundir.path / name)
    if not plan.arm(plan.export.arm).once:
        best = parts[exported_seed(plan, TASKS.get(plan.task), finished)]
        _copy(best.bundle_path(plan.export.member), rundir.bundle_path(plan.export.member))
        _copy(best.state_dict_path(plan.export.member), rundir.state_dict_path(plan.export.member))
    lines = [rundir.metrics_path.read_bytes()[: at.metrics_size]] if at.metrics_size else []
    lines += [part.metrics_path.read_bytes()[at.metrics_size : ended[s].metrics_size] for s, part in parts.items()]
    write_bytes(rundir.metrics_path, b"".join(lines))
    size = sum(map(len, lines))
    whole = replace(at, arm=len(trials_of(plan)), metrics_size=size, finished=finished)
    checkpoint.save(rundir, whole)

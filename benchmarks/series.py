"""What series of trainings have in common: runs side by side, and results that only grow.

A finished run is one line of a file, with its seed, versions and machine, so that an interrupted series goes on where
it stopped and several may add to it; its table is written from that file alone. Each run has a process of its own, on
one thread; ``--jobs`` is how many there are at once.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes
from benchmarks.materials import Work
from fxdistill.cli.commands import app
from fxdistill.measure.differences import paired

HERE = Path(__file__).parent
Row = dict[str, Any]
Run = tuple[str, str, int]
"""A setting, an arm, a seed."""
UNEVEN = ", uneven batches"
"""Behind the settings of runs of before the batches of an epoch had one size: a small one was left over at its end."""


ON_GPU = ", on a GPU"
"""Behind the settings of runs whose figures come from another kind of machine: runs are compared with their like."""


def told(settings: Iterable[str]) -> list[str]:
    """The settings in the order of a table."""
    return [setting + kind for setting in settings for kind in ("", ON_GPU, UNEVEN)]


def plain(setting: str) -> str:
    """A setting of a table as it is asked for."""
    return setting.removesuffix(UNEVEN).removesuffix(ON_GPU)


def apart(function: Callable[..., object], *arguments: object, patience: float = 1800, gigabytes: float = 4) -> None:
    """Call a function in a child process, with a limit of time and memory.

    Raises:
        RuntimeError: It failed, or took too much of either.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_called, args=(function, arguments, gigabytes, writer), daemon=True)
    child.start()
    writer.close()  # so that the end of the child is the end of what it says
    try:
        said = reader.recv() if reader.poll(patience) else "it took too long"
    except EOFError:
        said = "its process ended"
    child.kill()
    child.join()
    if said:
        raise RuntimeError(f"{function.__name__}: {said}")


def _called(function: Callable[..., object], arguments: Sequence[object], gigabytes: float, writer: Any) -> None:
    """The child's part: say '' or what went wrong."""
    processes.end_with_parent()
    limit = int(gigabytes * (1 << 30))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        function(*arguments)
        writer.send("")
    except Exception as cause:  # noqa: BLE001  # the reason is what is handed over
        writer.send(f"{type(cause).__name__}: {cause}"[:300])


def plan(*words: str) -> None:
    """``fxdistill plan`` with these words, in silence."""
    with contextlib.redirect_stdout(io.StringIO()):
        app(["plan", *words], standalone_mode=False)


def provenance(device: str = "cpu") -> Row:
    """Versions, and the kind of machine that a run was trained on, of every row.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    threads = torch.get_num_threads()
    kind = f"{platform.machine()}, {'one thread' if threads == 1 else f'{threads} threads'}"
    kind = torch.cuda.get_device_name() if device == "cuda" else kind
    return {"torch": torch.__version__, "device": kind}


def difference(found: Mapping[int, float], other: Mapping[int, float], *, beside: str) -> str:
    """How far values are from others of the same seeds: mean, half of the 95 % interval; '' for no seed in common."""
    between = paired(found, other, beside=beside)
    if between is None:
        return ""
    mean = round(between.mean, 2) + 0.0  # not -0.00
    return f"{mean:+.2f}" + (f" ± {between.high - between.mean:.2f}" if between.high is not None else "")


@dataclass(frozen=True)
class Series:
    """A series of runs.

    Attributes:
        name: Of its files, beside this module: ``NAME.jsonl``, ``NAME.md``.
        about: What the command line says of it.
        settings: Its settings.
        arms: The names of a setting's arms.
        measure: Makes a run and gives its row.
        table: Makes the table of rows.
        seeds: How many, unless the user says so.
        ready: Whether a run has what it needs of runs before it.
        needs: The run that makes what a run needs; None for none.
        devices: What its runs can be made on.
        asked: Settings that are run only where they are named.
        options: Adds options of its own to the command line.
        named: What a setting is called in rows, where options change what it is.
    """

    name: str
    about: str
    settings: tuple[str, ...]
    arms: Callable[[str], Iterable[str]]
    measure: Callable[[str, str, int, Work], Row]
    table: Callable[[list[Row]], str]
    seeds: int
    ready: Callable[[Run, Work], bool] = lambda _run, _work: True
    needs: Callable[[Run], Run | None] = lambda _run: None
    devices: tuple[str, ...] = ("cpu",)
    asked: tuple[str, ...] = ()
    options: Callable[[argparse.ArgumentParser], object] = lambda _parser: None
    named: Callable[[str, Work], str] = lambda setting, _work: setting

    def rows(self) -> list[Row]:
        """The finished runs."""
        path = HERE / f"{self.name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def wanted(self, only: list[str], seeds: int) -> list[Run]:
        """The runs: seed after seed, so that a part of them compares as well."""
        return [
            (setting, arm, seed)
            for seed in range(seeds)
            for setting in (*self.settings, *self.asked)
            for arm in self.arms(setting)
            if setting in only or f"{setting}/{arm}" in only or not (only or setting in self.asked)
        ]

    def longest_first(self, runs: list[Run]) -> list[Run]:
        """Seed after seed, the runs that others need first, then the longest, by the rows that their arms have."""
        took: dict[tuple[str, str], list[float]] = {}
        for row in self.rows():
            for setting in (row["setting"], ""):
                took.setdefault((setting, row["arm"]), []).append(row["seconds"])
        needed = {self.needs(run) for run in runs}

        def key(run: Run) -> tuple[int, bool, float]:
            setting, arm, seed = run
            seconds = took.get((setting, arm)) or took.get(("", arm)) or [math.inf]
            return seed, run not in needed, -statistics.fmean(seconds)

        return sorted(runs, key=key)

    def main(self) -> int:
        """Run what is missing, as far as the time goes, and write the table.

        Returns:
            The exit code: 1 if a run failed.
        """
        parser = argparse.ArgumentParser(description=self.about.splitlines()[0])
        parser.add_argument(
            "--cifar", type=Path,
            help="CIFAR-10 as JPEG files in an npz: _blob, _offsets, _labels; not needed for what lies in WORK: "
            "cifar.npz, the part of it that runs use, and the files of teachers",
        )  # fmt: skip
        parser.add_argument("--fashion", type=Path, help="a folder with FashionMNIST/raw; or as for --cifar")
        parser.add_argument("--work", type=Path, default=Path(f"{self.name}-work"))
        parser.add_argument("--only", action="append", default=[], help="a setting, or SETTING/ARM")
        parser.add_argument("--seeds", type=int, default=self.seeds)
        parser.add_argument("--jobs", type=int, default=1, help="how many runs at once, one thread each")
        parser.add_argument(
            "--hours", type=float, default=math.inf,
            help="begin no run later than this; those that are running then are finished",
        )  # fmt: skip
        parser.add_argument("--device", choices=self.devices, default="cpu", help="what plans are run on")
        parser.add_argument("--table", action="store_true", help="write the table of what there is, and run nothing")
        self.options(parser)
        options, failed = parser.parse_args(), 0
        if options.jobs < 1:
            parser.error("--jobs: at least one")
        if not options.table:
            options.work.mkdir(parents=True, exist_ok=True)
            sources = {name: getattr(options, name) for name in ("cifar", "fashion") if getattr(options, name)}
            failed = self._run(options, Work(options.work, sources, device=options.device, options=vars(options)))
        (HERE / f"{self.name}.md").write_text(self.table(self.rows()))
        return int(failed > 0)

    def _run(self, options: argparse.Namespace, work: Work) -> int:
        """Make the runs that are missing; how many failed."""
        until, failed = time.monotonic() + 3600 * options.hours, 0
        done = {(row["setting"], row["arm"], row["seed"]) for row in self.rows()}
        wanted = self.wanted(options.only, options.seeds)
        wanted = [run for run in wanted if (self.named(run[0], work), *run[1:]) not in done]
        missing = {data for run in wanted if not work.has(data := _data(run))}
        waiting = [run for run in wanted if _data(run) not in missing]
        if missing:
            _say(f"{len(wanted) - len(waiting)} runs left out, for want of images: {', '.join(sorted(missing))}")
        waiting = self.longest_first(waiting) if options.jobs > 1 else waiting
        unfinished = set(waiting)
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # of the processes that are started from here on
        if work.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        ended = processes.side_by_side(
            waiting, lambda run, place: (_made, self.measure, run, replace(work, place=place)), count=options.jobs,
            until=until, ready=lambda run: self.needs(run) not in unfinished and self.ready(run, work),
            imports=[__name__],
        )  # fmt: skip
        with contextlib.closing(ended):
            for run, (row, why) in ended:
                unfinished.discard(run)
                if why:
                    failed += 1
                    _say(f"failed: {', '.join(map(str, run))}\n{why}")
                    continue
                with (HERE / f"{self.name}.jsonl").open("a") as file:
                    file.write(json.dumps({**row, "jobs": options.jobs}) + "\n")
                print(*run, f"{row['seconds']} s", flush=True)
        if waiting:
            over = time.monotonic() >= until
            _say(f"{len(waiting)} runs not begun: {'the time is over' if over else 'what they need is not there'}")
        return failed


def _made(measure: Callable[[str, str, int, Work], Row], run: Run, work: Work) -> Row:
    """A run, in its own process and folder."""
    alone = work.device != "cpu" and work.options.get("jobs", 1) == 1
    torch.set_num_threads(4 if alone else 1)  # planning and exporting are no accelerator's work
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder.mkdir()
    try:
        return measure(*run, work)
    finally:
        shutil.rmtree(work.folder)


def _data(run: Run) -> str:
    return run[0].partition("-")[0]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)

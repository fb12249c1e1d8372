"""A series without trainings: its runs say in files when they begin and end, and wait for each other's."""

import os
import sys
import time
from pathlib import Path

import torch

from benchmarks import series
from benchmarks.materials import Work
from benchmarks.series import Row, Run, Series

ARMS = ("one", "other", "fails", "dies", "needed", "needing", "long")


def measure(setting: str, arm: str, seed: int, work: Work) -> Row:
    """What an arm's name says; the row has its folder, and what has ended before it began."""
    ended = sorted(path.name.removesuffix(".ended") for path in work.root.glob("*.ended"))
    assert list(work.folder.iterdir()) == []
    (work.folder / "of a run").touch()
    (work.root / f"{arm}.begun").write_text(str(os.getpid()))
    if arm in {"one", "other"}:
        awaited(work.root / f"{'other' if arm == 'one' else 'one'}.begun")
    if arm == "fails":
        raise ValueError("the loss is not finite")
    if arm == "dies":
        os._exit(7)
    if arm == "needed":
        (work.root / "student").touch()
        awaited(work.root / "one.ended")
        time.sleep(0.5)
    if arm == "long":
        awaited(work.root / "go on", seconds=60)
    (work.root / f"{arm}.ended").touch()
    return {
        "setting": setting, "arm": arm, "seed": seed, "seconds": 1, "folder": work.folder.name, "after": ended,
        "threads": torch.get_num_threads(), "cuda": os.environ["CUDA_VISIBLE_DEVICES"], **series.provenance(),
    }  # fmt: skip


def awaited(path: Path, *, seconds: float = 20) -> None:
    """Return as soon as the file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} never came"
        time.sleep(0.02)


def table(rows: list[Row]) -> str:
    return f"{len(rows)} rows\n"


def ready(run: Run, work: Work) -> bool:
    return run[1] != "needing" or (work.root / "student").exists()


def needs(run: Run) -> Run | None:
    return (run[0], "needed", run[2]) if run[1] == "needing" else None


SERIES = Series(
    "fake", "A series without trainings.", ("here-x", "away-x"), lambda _setting: ARMS, measure, table, seeds=1,
    ready=ready, needs=needs,
)  # fmt: skip


def run_in(here: Path, *words: str) -> None:
    """Run the series in a process of its own, its files in this folder."""
    series.HERE, sys.argv = here, ["fake", "--work", str(here), *words]
    SERIES.main()


def told(path: Path, place: int) -> int:
    """Return the place at once, if it is the first one; another one says its process in the file, and stays."""
    if place:
        path.with_suffix(".part").write_text(str(os.getpid()))
        path.with_suffix(".part").rename(path)
        time.sleep(60)
    return place

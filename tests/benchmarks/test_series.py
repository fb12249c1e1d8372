"""Series of trainings side by side: what is kept, what waits for what, and what a failure or a kill takes with it."""

import json
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cascade, materials, processes, series
from benchmarks.materials import Work
from benchmarks.series import Row
from tests.benchmarks import fake_series
from tests.benchmarks.fake_series import SERIES, awaited

Main = Callable[..., tuple[int, dict[str, Row], str]]


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs arms of the series: its exit code, rows by their arms, and what it said on stderr."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # as it was, afterwards
    monkeypatch.setattr(series, "HERE", tmp_path)
    (tmp_path / "here.npz").touch()

    def run(*arms: str, words: tuple[str, ...] = ("--jobs", "2")) -> tuple[int, dict[str, Row], str]:
        only = [word for arm in arms for word in ("--only", f"here-x/{arm}")]
        monkeypatch.setattr(sys, "argv", ["fake", "--work", str(tmp_path), *only, *words])
        code, rows = SERIES.main(), SERIES.rows()
        assert len({row["arm"] for row in rows}) == len(rows)
        assert (tmp_path / "fake.md").read_text() == f"{len(rows)} rows\n"
        return code, {row["arm"]: row for row in rows}, capsys.readouterr().err

    return run


def test_runs_go_side_by_side_each_in_a_folder_of_its_own(main: Main, tmp_path: Path) -> None:
    code, rows, said = main("one", "other")  # each waits until the other has begun
    assert (code, said) == (0, "")
    assert {row["folder"] for row in rows.values()} == {"run-0", "run-1"}
    assert list(tmp_path.glob("run-*")) == []
    assert [(r["jobs"], r["threads"], r["cuda"], r["torch"]) for r in rows.values()] == [
        (2, 1, "", torch.__version__)
    ] * 2


@pytest.mark.parametrize("left", ["nothing", "student"])
def test_a_run_waits_until_the_one_it_needs_has_ended(main: Main, tmp_path: Path, left: str) -> None:
    (tmp_path / "other.begun").touch()
    (tmp_path / left).touch()  # what a killed series has left is not enough
    code, rows, _ = main("needed", "needing", "one")
    assert code == 0
    assert rows["needing"]["after"] == ["needed", "one"]
    assert rows["one"]["after"] == []


def test_what_a_run_needs_may_never_come(main: Main) -> None:
    code, rows, said = main("needing", words=())
    assert (code, rows) == (0, {})
    assert said == "1 runs not begun: what they need is not there\n"


def test_a_failure_is_said_and_takes_no_other_with_it(main: Main, tmp_path: Path) -> None:
    (tmp_path / "other.begun").touch()
    code, rows, said = main("fails", "dies", "one", "needed")
    assert code == 1
    assert set(rows) == {"one", "needed"}
    assert "failed: here-x, fails, 0\n" in said
    assert "ValueError: the loss is not finite" in said
    assert "failed: here-x, dies, 0\nits process ended with exit code 7" in said
    (tmp_path / "fake.md").unlink()
    assert main("one", "needed")[0] == 0  # nothing to do, nothing failed


def test_images_may_come_ready_made(main: Main, tmp_path: Path) -> None:
    (tmp_path / "other.begun").touch()
    code, rows, said = main("one", words=("--only", "away-x/one"))
    assert (code, [row["setting"] for row in rows.values()]) == (0, ["here-x"])
    assert said == "1 runs left out, for want of images: away\n"
    with pytest.raises(FileNotFoundError, match="all images of here are needed: say with --here where they are"):
        Work(tmp_path, {}).whole("here")
    assert Work(tmp_path, {}).part("here") == tmp_path / "here.npz"


def test_no_run_begins_after_the_hours(main: Main) -> None:
    code, rows, said = main("one", "other", words=("--hours", "0"))
    assert (code, rows, said) == (0, {}, "2 runs not begun: the time is over\n")


def test_one_job_at_least(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("one", words=("--jobs", "0"))
    assert "--jobs: at least one" in capsys.readouterr().err


def test_a_kill_loses_what_is_running_and_no_more(main: Main, tmp_path: Path) -> None:
    (tmp_path / "other.begun").touch()
    words = ("--jobs", "2", "--only", "here-x/one", "--only", "here-x/long")
    parent = multiprocessing.get_context("forkserver").Process(target=fake_series.run_in, args=(tmp_path, *words))
    parent.start()
    awaited(tmp_path / "fake.jsonl", seconds=120)
    awaited(tmp_path / "long.begun")
    parent.kill()
    parent.join()
    child, until = int((tmp_path / "long.begun").read_text()), time.monotonic() + 20
    while not _gone(child):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert [json.loads(line)["arm"] for line in (tmp_path / "fake.jsonl").read_text().splitlines()] == ["one"]
    (tmp_path / "go on").touch()
    code, rows, _ = main("one", "long", words=())
    assert (code, set(rows)) == (0, {"one", "long"})
    assert [rows[arm]["jobs"] for arm in ("one", "long")] == [2, 1]  # what was there was not run again


def _gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_calls_end_with_who_made_them(tmp_path: Path) -> None:
    told = [tmp_path / "a", tmp_path / "b"]
    ended = processes.side_by_side(
        [*told], lambda path, place: (fake_series.told, path, place), count=2, until=time.monotonic() + 60
    )
    assert next(ended)[1].value == 0
    awaited(told[1])
    ended.close()
    assert _gone(int(told[1].read_text()))


def test_what_has_begun_when_time_is_over_is_finished() -> None:
    waiting, clock = [1, 2, 3], iter([9.0, 10.0, 11.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.processes.time", SimpleNamespace(monotonic=lambda: next(clock)))
        ended = list(processes.side_by_side(waiting, lambda one, _place: (abs, one), count=2, until=10))
    assert ended == [(1, processes.Ended(1, ""))]
    assert waiting == [2, 3]


def test_the_longest_and_what_others_need_begin_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(series, "HERE", tmp_path)
    took = {("here-x", "one"): 5, ("here-x", "other"): 90, ("away-x", "one"): 70, ("away-x", "long"): 60,
            ("here-x", "needed"): 1, ("here-x", "needing"): 30}  # fmt: skip
    rows = [{"setting": s, "arm": arm, "seed": 0, "seconds": seconds} for (s, arm), seconds in took.items()]
    (tmp_path / "fake.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = SERIES.wanted(["here-x"], 2)
    for seed in (0, 1):
        found = [arm for _, arm, own in SERIES.longest_first(runs)[seed * 7 :][:7] if own == seed]
        assert found == ["needed", "fails", "dies", "other", "long", "needing", "one"]  # what is not known may be long


def test_students_of_the_cascade_are_needed_by_the_other_arms() -> None:
    first = ("cifar-vgg-0.2", cascade.FIRST, 3)
    assert cascade.SERIES.needs(("cifar-vgg-0.2", "shrink + kd", 3)) == first
    assert cascade.SERIES.needs(first) is None


def test_a_row_names_what_it_was_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert series.provenance("cuda")["device"] == "A GPU"
    assert series.provenance()["device"] == f"{platform.machine()}, one thread"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert series.provenance()["device"] == f"{platform.machine()}, 3 threads"


def test_a_file_is_made_once_and_is_never_there_in_part(tmp_path: Path) -> None:
    path, made, gate = tmp_path / "teacher.pt", list[Path](), threading.Barrier(2)

    def make(unfinished: Path) -> None:
        made.append(unfinished)
        unfinished.write_text("half")
        assert not path.exists()
        time.sleep(0.1)
        unfinished.write_text("whole")

    def wanted() -> None:
        gate.wait()
        assert materials.once(path, make).read_text() == "whole"

    both = [threading.Thread(target=wanted) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert path.read_text() == "whole"
    assert len(made) == 1
    assert made[0].suffix == ".pt"


def test_a_file_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    def stops(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materials.once(tmp_path / "a.npz", stops)
    assert not (tmp_path / "a.npz").exists()
    assert materials.once(tmp_path / "a.npz", lambda path: path.write_text("whole")).read_text() == "whole"

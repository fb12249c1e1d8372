"""Asked to stop, by whatever signal, a run finishes its step, takes a checkpoint and goes on from there bit for bit."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from fxdistill.cli.exits import reported
from fxdistill.runtime.processes import stopping
from fxdistill.runtime.run import checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Position, Progress
from tests import runs
from tests.runs import execute
from tests.runtime.test_checkpoint import equal

pytestmark = pytest.mark.usefixtures("few_digits")

SELDOM = Settings(device="cpu", allow=runs.ALLOW, save_seconds=1e6)


def asking(number: int, *, after: int) -> Observer:
    """Somebody who sends the signal in the middle of a step."""
    seen = 0

    def watch(_trial: Trial, progress: Progress, _metrics: dict[str, float]) -> None:
        nonlocal seen
        seen += progress.position.step > 0
        if seen == after:
            seen += 1
            os.kill(os.getpid(), number)

    return Observer(on_progress=watch)


def test_the_step_in_hand_is_finished_and_kept(tmp_path: Path) -> None:
    """Thrice in one run: in a warm-up, in the main stage, in the control arm."""
    before, settings = [signal.getsignal(one) for one in stopping.SIGNALS], SELDOM
    for number, code, position in (
        (signal.SIGTERM, 143, Position(stage=1, epoch=0, step=3)),
        (signal.SIGHUP, 129, Position(stage=2, epoch=1, step=1)),
        (signal.SIGINT, 130, Position(stage=0, epoch=0, step=4)),
    ):
        with pytest.raises(typer.Exit) as ended, reported():
            execute(runs.plan_file(), tmp_path / "run", settings, asking(number, after=8))
        assert ended.value.exit_code == code
        assert checkpoint.load(RunDir(tmp_path / "run")).position == position
        assert [signal.getsignal(one) for one in stopping.SIGNALS] == before
        settings = replace(SELDOM, resume=True)
    execute(runs.plan_file(), tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW, resume=True))
    equal(tmp_path / "run", runs.finished())


def test_who_asks_twice_is_not_kept_waiting() -> None:
    reached: list[bool] = []

    def ask_twice() -> None:
        with stopping.deferred() as request:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                reached.append(request.made)

    with pytest.raises(KeyboardInterrupt):
        ask_twice()
    assert reached == [True]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with reported(), stopping.deferred() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request.made
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_signals_are_left_alone() -> None:
    def inside() -> object:
        with reported(), stopping.deferred():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() is signal.getsignal(signal.SIGTERM)


def test_a_request_that_nobody_saw_is_granted_in_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), stopping.deferred():
        os.kill(os.getpid(), signal.SIGINT)

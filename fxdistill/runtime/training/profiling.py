"""What the steps of a stage spend their time on: measured in a few steps of each stage, and written as traces.

    data → teacher → student → rest → backward → optimiser → rest

A program is one graph, in which every node belongs to a member: in the marked program a call stands wherever the member
changes, and tells the clock. What is computed, and in which order, stays what it is. On an accelerator a mark waits for
the device, so that each part has the time of its own work. Programs that ``torch.compile`` fuses are not marked: their
forward pass is one part.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fxdistill import files
from fxdistill.ir.program import Program

PARTS = ("data", "forward", "teacher", "student", "backward", "optimiser", "rest")
"""The parts; ``forward`` is a forward pass whose members are not told apart, ``rest`` losses, logging, checkpoints."""
_STEPS = 5  # behind a first one, which makes what the others reuse


@dataclass(frozen=True)
class StageTimes:
    """What some steps of a stage took.

    Attributes:
        arm: The arm.
        stage: The stage.
        steps: How many steps.
        seconds: What each part took in all of them.
    """

    arm: str
    stage: str
    steps: int
    seconds: dict[str, float]


class Clock:
    """Tells no time: of a run that is not profiled."""

    def begin(self, stage: str, steps: int) -> None:
        """A stage begins, or goes on; so many steps are left."""

    def marked(self, program: Program) -> Program:
        """A program that tells when its parts begin."""
        return program

    def watch(self, teacher: nn.Module | None) -> None:
        """What runs for frozen members apart from the program."""

    def step(self) -> None:
        """A step begins."""

    def mark(self, part: str) -> None:
        """A part of the step begins, and the one before ends."""

    def end(self) -> None:
        """The stage ends."""


@dataclass
class Stopwatch(Clock):
    """Times the first steps of the stages of an arm, and traces them.

    Attributes:
        arm: The arm's name.
        folder: Where traces are written: ``ARM_STAGE.json``, for chrome://tracing or ui.perfetto.dev.
        device: Where the program runs.
        told: Called with the times of each stage.
    """

    arm: str
    folder: Path
    device: torch.device
    told: Callable[[StageTimes], None]
    _stage: str = ""
    _first: int = 1
    _count: int = 0
    _done: bool = False
    _seconds: dict[str, float] = field(default_factory=dict)
    _forward: str = "forward"
    _part: str = ""
    _since: float = 0.0
    _range: Any = None
    _trace: Any = None

    def begin(self, stage: str, steps: int) -> None:
        """Start anew: the first of several steps is left out."""
        self._stage, self._count, self._first, self._seconds, self._done = stage, 0, min(1, steps - 1), {}, False

    def marked(self, program: Program) -> Program:
        """The same program with a call in front of the first node of every part."""
        self._forward = "rest"
        for part in ("teacher", "student", "rest"):
            program.add_submodule(f"marks.{part}", _Mark(self, part))
        graph, new, last = fx.Graph(), dict[fx.Node, fx.Node](), ""
        for node in program.graph.nodes:
            part = _part_of(node)
            if part and part != last:
                graph.call_module(f"marks.{part}")
                last = part
            new[node] = graph.node_copy(node, new.__getitem__)
        return program.with_graph(graph)

    def watch(self, teacher: nn.Module | None) -> None:
        """Mark when it begins, and that it has ended."""
        if teacher is not None:
            teacher.register_forward_pre_hook(lambda *_: self.mark("teacher"))
            teacher.register_forward_hook(lambda *_: self.mark("forward"))

    def step(self) -> None:
        """Start at the step to start at, stop behind the last one."""
        if self._done:
            return
        if self._trace is None and self._count >= self._first:
            kinds = {torch.profiler.ProfilerActivity.CPU}
            if self.device.type == "cuda":
                kinds.add(torch.profiler.ProfilerActivity.CUDA)
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes into what people see
            self._trace = torch.profiler.profile(activities=kinds)
            self._trace.start()
        elif self._count >= self._first + _STEPS:
            self.end()

    def mark(self, part: str) -> None:
        """End the part before, where one is timed, and begin this one."""
        self._count += part == "backward"  # which every step has once
        part = self._forward if part == "forward" else part
        if self._trace is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._part:
            self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._since
            self._range.__exit__(None, None, None)
        self._part, self._since = part, now
        if part:
            self._range = torch.profiler.record_function(part)
            self._range.__enter__()

    def end(self) -> None:
        """Write the trace and tell the times."""
        if self._trace is None:
            return
        self.mark("")
        self._trace.stop()
        path = self.folder / f"{self.arm}_{files.as_name(self._stage)}.json"
        with files.writing(path):
            self.folder.mkdir(exist_ok=True)
            self._trace.export_chrome_trace(str(path))
        self._trace, self._done = None, True
        self.told(StageTimes(self.arm, self._stage, self._count - self._first, self._seconds))


class _Mark(nn.Module):
    """Tells a clock that a part begins."""

    def __init__(self, clock: Clock, part: str) -> None:
        super().__init__()
        self.clock, self.part = clock, part

    def forward(self) -> None:
        """Tell."""
        self.clock.mark(self.part)


def _part_of(node: fx.Node) -> str:
    """Whose work a node is; '' for what both read."""
    role = node.meta.get("role")
    if role in ("model", "tap"):
        return "teacher" if node.meta.get("frozen") else "student"
    return "rest" if role in ("adapter", "loss") else ""

"""CUDA graphs: on a GPU, the forward and backward pass of a stage's program are recorded once and then replayed.

A step of a small network is hundreds of kernels of a few microseconds each, and Python takes longer to launch one than
the GPU to compute it; replayed, all of them are one launch. The kernels and their order are those of a step that is
not recorded, and so are random numbers: a replay reads the generator as the step finds it. What a step does to running
statistics and to what losses remember is part of the recording.

    recorded where   no operation waits for the device   and   a step, replayed, is quicker

Whether an operation waits (a value read by Python, a choice by data) is found out by torch's own watch over
synchronisation before anything is recorded. Batches have one size (:mod:`fxdistill.data.batches`), as a recording
wants.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fxdistill.errors import line
from fxdistill.figures import figure
from fxdistill.ir.program import Program
from fxdistill.ir.running import attributes_kept, buffers_kept

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import

_STEPS = 5
_LONG = 0.05
"""Seconds of a step behind which launching kernels no longer counts."""


class Recorded(nn.Module):
    """A program that is replayed: from the fields of a batch to its named losses, as the program itself.

    Args:
        program: The program, on a CUDA device.
        batch: A batch of the size that all will have.
        fabric: Precision.
    """

    def __init__(self, program: Program, batch: Mapping[str, Tensor], fabric: "Fabric") -> None:
        super().__init__()
        self.fields = tuple(program.inputs)
        self.keys = tuple(term.key for term in program.terms)
        flat = _Flat(program, self.fields, self.keys).train(program.training)
        precision = fabric.strategy.precision.forward_context()
        with precision, _without_cache():
            sample = tuple(batch[name].clone() for name in self.fields)
            make = cast("Callable[..., nn.Module]", torch.cuda.make_graphed_callables)
            self.flat = make(flat, sample, allow_unused_input=True)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named losses; backward passes through them are replayed as well."""
        found = self.flat(*(batch[name] for name in self.fields))
        return dict(zip(self.keys, found, strict=True))


class _Flat(nn.Module):
    """A program over plain tensors, as a recording has them."""

    def __init__(self, program: Program, fields: tuple[str, ...], keys: tuple[str, ...]) -> None:
        super().__init__()
        self.program, self.fields, self.keys = program, fields, keys

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        losses = self.program(dict(zip(self.fields, values, strict=True)))
        return tuple(losses[key] for key in self.keys)


def _without_cache() -> torch.autocast:
    """Autocast as it is here, but that no cast outlives a recording."""
    enabled = torch.is_autocast_enabled("cuda")
    return torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), enabled=enabled, cache_enabled=False)


@dataclass(frozen=True)
class Recorder:
    """Records the stages of one arm, where that pays.

    Attributes:
        arm: Its name.
        say: Told what was done, where, and why.
        fabric: Device, CUDA, and precision.
    """

    arm: str
    say: Callable[[str, str], None]
    fabric: "Fabric"

    def made(
        self, stage: str, program: Program, batch: Mapping[str, Tensor], step: Callable[[nn.Module], None]
    ) -> nn.Module:
        """What a step is to call: the program, or its recording. Nothing of the trial stays.

        Args:
            stage: The stage's name.
            program: Its program in training, on the device.
            batch: A batch of the size that all will have.
            step: A step with a module in place of the program, up to its gradients.
        """
        with buffers_kept(program), attributes_kept(program):
            made, why = self._tried(program, batch, step)
        for parameter in program.parameters():
            parameter.grad = None
        self.say(f"arm '{self.arm}', stage '{stage}'", f"{'not ' * (made is program)}recorded: {why}")
        return made

    def _tried(
        self, program: Program, batch: Mapping[str, Tensor], step: Callable[[nn.Module], None]
    ) -> tuple[nn.Module, str]:
        plain = self._seconds(lambda: step(program))
        if plain > _LONG:
            return program, f"a step takes {figure(1000 * plain)} ms, beside which launching its kernels is little"
        if why := _waits(lambda: step(program)):
            return program, f"a step waits for the device ({why})"
        try:
            made = Recorded(program, batch, self.fabric)
            quick = self._seconds(lambda: step(made))
        except RuntimeError as cause:  # out of memory among them
            return program, f"torch cannot record it ({_first(cause)})"
        told = f"a step takes {figure(1000 * quick)} ms replayed and {figure(1000 * plain)} as it is"
        return (made if quick < plain else program), told

    def _seconds(self, step: Callable[[], None]) -> float:
        return seconds(step, self.fabric.device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median seconds of a call on a CUDA device, until the device has done what it was given."""
    call()  # the first one makes what the others reuse
    taken = []
    for _ in range(_STEPS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def replayed(call: Callable[[], object], device: torch.device) -> float | None:
    """The median seconds of a call without gradients when it is replayed; None where it cannot be recorded."""
    if _waits(call):
        return None
    try:
        aside, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # what a first call sets up is no part of a recording
            call()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        return None
    return seconds(graph.replay, device)


def _waits(step: Callable[[], object]) -> str:
    """What in a step waits for the device, in words; '' for nothing."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the watch is a prototype
            torch.cuda.set_sync_debug_mode("error")
        step()
    except RuntimeError as cause:
        return _first(cause)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return ""


def _first(cause: Exception) -> str:
    return line(next(iter(str(cause).strip().splitlines()), type(cause).__name__))

"""Widths that meet a latency: searched by the times of single layers, and held against the whole.

What single layers take says how a model's time divides, not what it is: a runtime fuses and reorders across them. So
the widths are searched for a share of that sum, the smaller model is measured as a whole, in turn with
the original, and the share that is searched for is corrected by what that gives:

    share of the next search  =  share of this one  *  wanted / measured

or, once one took less and one more than that, between these two; until the measured one is within 2 % of what is
wanted. Where single layers say that even the least widths take longer, these are measured first. The median share of
runs in turn has a 95 % interval by the order of the runs; they go on until it is narrow, or for as long as is worth it.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from fxdistill.compiler.shrink_model import Confirmed, ShrunkResult
from fxdistill.errors import BudgetError, InputError
from fxdistill.figures import figure
from fxdistill.ir.budget import Limit
from fxdistill.ir.layers import Times, Timing
from fxdistill.measure import latency, onnx_file
from fxdistill.measure.layer_times import InOnnxRuntime, Table
from fxdistill.passes.thin.search import TOLERANCE
from fxdistill.runtime.smaller import latency_table

OPTION = "--latency"
ON = ("cpu", "cuda")
_TRIES = 8
_RUNS, _SECONDS, _NARROW = 40, 12.0, 0.005
"""Runs in turn at a time, for how long they go on, and half of what interval is narrow enough."""
_FURTHEST = 0.5


@dataclass(frozen=True)
class Wanted:
    """How long a model may take.

    Attributes:
        amount: A share of its own time, or milliseconds.
        absolute: Whether it is milliseconds.
        on: ``cpu`` or ``cuda``.
        roughly: Whether the nearest will do: it is a part of the way.
    """

    amount: float
    absolute: bool = False
    on: str = "cpu"
    roughly: bool = False

    @classmethod
    def of(cls, said: float | str, on: str = "cpu") -> "Wanted":
        """From a share below 1, or milliseconds as ``"3ms"``.

        Raises:
            InputError: It is neither, or there is no such thing to run on.
        """
        if on not in ON:
            raise InputError(f"nothing runs on '{on}'", where="--on", hint=f"give {' or '.join(ON)}")
        absolute = isinstance(said, str) and said.endswith("ms")
        try:
            amount = float(str(said).removesuffix("ms"))
        except ValueError:
            amount = math.nan
        if not 0 < amount < (math.inf if absolute else 1):
            raise InputError(
                f"'{said}' is no latency", where=OPTION,
                hint="give a share of the model's own above 0 and below 1, as 0.6, or a time, as 3ms",
            )  # fmt: skip
        return cls(amount, absolute, on)

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of what runs it."""
        return f"{self.on.upper()}ExecutionProvider"

    def off(self, found: Confirmed) -> float:
        """What a model takes over what it may."""
        return (found.ms if self.absolute else found.share) / self.amount

    def share(self, own_ms: float) -> float:
        """It as a share of the original's time."""
        return self.amount / own_ms if self.absolute else self.amount

    def part(self, way: float, own_ms: float) -> "Wanted":
        """What is wanted a part of the way from the original's time; all of it at 1."""
        return self if way == 1 else replace(self, amount=self.share(own_ms) ** way, absolute=False, roughly=True)

    def told(self, found: Confirmed | None = None) -> str:
        """It, or what was measured instead, in the same words."""
        if self.absolute:
            return f"{figure(self.amount)} ms" if found is None else f"{figure(found.ms)} ms"
        return f"{self.amount:.3g} of its own time" if found is None else f"{found.share:.3g} of its own time"


Compare = Callable[[nn.Module, tuple[int, ...]], Confirmed]
"""Measures a smaller model for inputs of a shape in turn with the original."""
Make = Callable[[Limit, Timing], ShrunkResult]
"""Makes the model smaller, to a time by the times of its layers."""


def within(
    wanted: Wanted, make: Make, *, own_ms: float, compare: Compare, times: Times, at: float = 1.0
) -> ShrunkResult:
    """A smaller model that takes as long as it may, within 2 % as it was measured.

    Args:
        wanted: How long it may take.
        make: Makes it.
        own_ms: Milliseconds that the original takes.
        compare: Measures it.
        times: How long layers take.
        at: The share of the original's time that the model takes which is made smaller.

    Raises:
        InputError: It takes no longer as it is, or no widths come near; says what does.
    """
    share = wanted.share(own_ms) / at
    if share >= 1:
        raise InputError(
            f"the model takes {figure(own_ms * at)} ms as it is, and {wanted.told()} are allowed", where=OPTION,
            hint="give less, or leave it out",
        )  # fmt: skip
    tried: list[tuple[float, Confirmed, ShrunkResult]] = []
    aim = share
    timing = Timing(times, own_ms * at / 1000)
    for _ in range(_TRIES):
        try:
            made = make(Limit("latency", aim, OPTION), timing)
        except InputError as error:
            if tried:
                break  # nobody asked for what is aimed at by now
            if not isinstance(error, BudgetError) or not error.least or error.where != OPTION:
                raise
            made = make(Limit("latency", error.least, OPTION), timing)
            aim = error.least / (1e9 * timing.whole)
        found = compare(made.module, made.input_shape)
        if abs(wanted.off(found) - 1) <= TOLERANCE:
            return replace(made, confirmed=found)
        if aim in [before for before, *_ in tried]:
            break
        tried.append((aim, found, made))
        aim = _next([(before, wanted.off(one)) for before, one, _ in tried])
    _, nearest, made = min(tried, key=lambda one: abs(wanted.off(one[1]) - 1))
    if wanted.roughly:
        return replace(made, confirmed=nearest)
    also = f"{nearest.share:.3g} of its own time, " if wanted.absolute else ""
    spread = f"{also}95 % between {nearest.low:.3g} and {nearest.high:.3g}"
    raise InputError(
        f"no widths were found that take {wanted.told()} within {TOLERANCE:.0%}: the nearest take "
        f"{wanted.told(nearest)} ({spread})", where=OPTION,
        hint="give that, or another --round-to or --floor; on a busy machine, measure again when it is idle",
    )  # fmt: skip


def _next(tried: Sequence[tuple[float, float]]) -> float:
    """The share to search for next, from those before with what was measured over what is wanted."""
    below, above = [one for one in tried if one[1] < 1], [one for one in tried if one[1] >= 1]
    if below and above:
        (low, less), (high, more) = max(below, key=lambda one: one[1]), min(above, key=lambda one: one[1])
        return low + (high - low) * (1 - less) / max(more - less, 1e-9)
    at, off = tried[-1]
    return min(1 - 1e-6, at * min(1 + _FURTHEST, max(_FURTHEST, 1 / off)))


@dataclass(frozen=True)
class Clock:
    """What says how long models take, for all searches that are held against one original.

    Attributes:
        compare: The original, to measure smaller models in turn with.
        times: How long layers take; what was measured once is known.
        at: The share of the original's time that the model takes which is made smaller.
    """

    compare: "Measured"
    times: Table
    at: float = 1.0

    def of(self, module: nn.Module, shape: tuple[int, ...]) -> "Clock":
        """The same for a model that was made smaller already, which is measured."""
        return replace(self, at=self.compare(module, shape).share)

    def search(self, wanted: Wanted, make: Make) -> ShrunkResult:
        """A smaller model that takes as long as it may; see :func:`within`."""
        own_ms, compare = self.compare.own_ms, self.compare
        return within(wanted, make, own_ms=own_ms, compare=compare, times=self.times, at=self.at)


@contextlib.contextmanager
def clock_of(module: nn.Module, shape: tuple[int, ...], provider: str, *, table: Path | None = None) -> Iterator[Clock]:
    """What says how long models take beside this original, by what is measured on this machine.

    Args:
        module: The original.
        shape: Shape of a batch.
        provider: ONNX Runtime's name of what runs it.
        table: A file with times of layers, which gets what is measured beside them; None for none.

    Raises:
        InputError: ONNX Runtime does not run there, or the file is damaged or of another machine.
    """
    runtime = InOnnxRuntime(provider)
    times = Table(runtime)
    with latency_table.kept(table, times, provider), tempfile.TemporaryDirectory() as folder:
        _ = runtime.nothing  # a provider that does not come up is told before anything long
        yield Clock(Measured(module, shape, provider, Path(folder)), times)


class Measured:
    """The original as an ONNX file, to measure smaller ones in turn with it.

    Args:
        module: The original.
        shape: Shape of a batch.
        provider: ONNX Runtime's name of what runs it.
        folder: Where its file lies.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], provider: str, folder: Path) -> None:
        self.provider, self.folder = provider, folder
        self.original = self._call(module, shape, "original")
        self.own_ms = 1000 * float(np.median(latency.interleaved({"": self.original}, repeats=_RUNS)[""]))

    def __call__(self, module: nn.Module, shape: tuple[int, ...]) -> Confirmed:
        """Measure a smaller model in turn with the original."""
        calls = {"own": self.original, "smaller": self._call(module, shape, "smaller")}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        end = time.monotonic() + _SECONDS
        while True:
            for name, more in latency.interleaved(calls, repeats=_RUNS).items():
                seconds[name] += more
            share, low, high = interval(np.array(seconds["smaller"]) / np.array(seconds["own"]))
            if (high - low) / 2 <= _NARROW * share or time.monotonic() > end:
                break
        own, ms = (1000 * float(np.median(seconds[name])) for name in ("own", "smaller"))
        return Confirmed(own, ms, share, low, high, self.provider)

    def _call(self, module: nn.Module, shape: tuple[int, ...], name: str) -> Callable[[], object]:
        path = self.folder / f"{name}.onnx"
        onnx_file.export_onnx(module, path, input_shape=shape)
        return latency.call(path, shape, provider=self.provider)


def interval(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> tuple[float, float, float]:
    """The median of some values, and its 95 % interval by their order."""
    ordered = np.sort(values)
    reach = 0.98 * math.sqrt(len(ordered))
    middle = (len(ordered) - 1) / 2
    low, high = max(0, math.floor(middle - reach)), min(len(ordered) - 1, math.ceil(middle + reach))
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])

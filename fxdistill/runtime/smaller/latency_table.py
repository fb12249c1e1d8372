"""Times of layers in a file: what one search has measured, another on the same machine need not measure again.

    {"machine": "…", "provider": "CPUExecutionProvider", "onnxruntime": "1.26.0", "dtype": "float32", "times": [
    {"reads": 64, "makes": 8, "groups": 1, "sides": [1, 56, 56], "made": [56, 56], "kernel": [3, 3], "seconds": 1e-4},
    …

A time is of a layer at the widths that were measured, whatever model it stands in. Those of another machine, of another
provider or of another runtime say nothing here: such a file is refused. It may come from others, so that it is read
against its form.
"""

import json
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import onnxruntime
import torch
from pydantic import Field, TypeAdapter

from fxdistill.errors import InputError
from fxdistill.files import write_text
from fxdistill.ir.layers import Layer
from fxdistill.measure.layer_times import Case, Table
from fxdistill.runtime.run import forms

OPTION = "--latency-table"
_CPU = Path("/proc/cpuinfo")
Count = Annotated[int, Field(gt=0, le=1 << 31)]
Sides = Annotated[tuple[Count, ...], Field(max_length=4)]


@dataclass(frozen=True)
class Time:
    """How many seconds a layer takes that reads and makes so many channels; the rest is as :class:`Layer` has it."""

    reads: Count
    makes: Count
    groups: Count
    sides: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4)]
    made: Sides
    kernel: Sides
    seconds: Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]

    @property
    def case(self) -> Case:
        """What was measured."""
        layer = Layer(self.reads, self.makes, self.groups, self.sides, self.made, self.kernel)
        return Case(layer, self.reads, self.makes)

    @classmethod
    def of(cls, case: Case, seconds: float) -> "Time":
        """A row of what was measured."""
        layer, reads, makes = case
        return cls(reads, makes, layer.groups, layer.sides, layer.made, layer.kernel, seconds)


@dataclass(frozen=True)
class Times:
    """The times of layers, and what they were measured on."""

    machine: str
    provider: str
    onnxruntime: str
    dtype: Literal["float32"] = "float32"
    times: list[Time] = field(default_factory=list)

    @classmethod
    def here(cls, provider: str) -> "Times":
        """None yet, on this machine."""
        return cls(machine(provider), provider, onnxruntime.__version__)


_FORM = TypeAdapter(Times)


def machine(provider: str) -> str:
    """The device that runs it, by its maker's name."""
    if provider.startswith("CUDA") and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    found = re.search(r"^model name\s*:\s*(.+)$", _CPU.read_text(), re.MULTILINE) if _CPU.exists() else None
    return f"{found[1] if found else platform.processor() or 'a processor'} ({platform.machine()})"


def read(path: Path, provider: str) -> dict[Case, float]:
    """The times in a file; none where there is no file yet.

    Raises:
        InputError: It is damaged, was measured on something else, or cannot be written to later.
    """
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise InputError("there can be no file of this name", where=f"{OPTION} {path}", hint="name a file in a folder")
    if not path.exists():
        return {}
    found = forms.read(_FORM, path, hint="remove it, or name another one", odd=_odd, error=InputError)
    here = Times.here(provider)
    for what in ("machine", "provider", "onnxruntime"):
        own, other = getattr(here, what), getattr(found, what)
        if own != other:
            raise InputError(
                f"its times were measured elsewhere: {what} {other[:200]}, here {own}", where=f"{OPTION} {path}",
                hint="name another file: one that is not there is written",
            )  # fmt: skip
    return {one.case: one.seconds for one in found.times}


def _odd(found: Times) -> str:
    cases = [one.case for one in found.times]
    if len(set(cases)) < len(cases):
        return "it has two times of one layer"
    wrong = (one for one in found.times if one.kernel and not len(one.kernel) == len(one.made) == len(one.sides) - 1)
    return "" if (one := next(wrong, None)) is None else f"no layer has sides {list(one.sides)} and such a kernel"


def write(path: Path, provider: str, known: dict[Case, float]) -> None:
    """Write times, with a line for each, beside those that another search has written meanwhile."""
    whole = asdict(Times.here(provider))
    del whole["times"]
    rows = ",\n".join(json.dumps(asdict(Time.of(*one))) for one in sorted({**read(path, provider), **known}.items()))
    write_text(path, f'{json.dumps(whole)[:-1]}, "times": [\n{rows}\n]}}\n')


@contextmanager
def kept(path: Path | None, table: Table, provider: str) -> Iterator[None]:
    """Inside, a table knows what a file says; what it comes to know beside that is written there in the end.

    Raises:
        InputError: As :func:`read`.
    """
    if path is None:
        yield
        return
    table.known.update(read(path, provider))
    before = len(table.known)
    try:
        yield
    finally:
        if len(table.known) > before:
            write(path, provider, table.known)

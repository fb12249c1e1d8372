"""Latency in ONNX Runtime.

Latencies of several files are taken round robin, one run of each in turn: a machine's slow moments then hit all of
them, and their ratio holds where single figures do not.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime

from fxdistill.errors import InputError, ModelError

K = TypeVar("K")
_STDERR = 2
_PROVIDER = "ExecutionProvider"
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""What a file may take beside float32."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds a run: median, 10th and 90th percentile; and the execution provider that ran it."""

    median_ms: float
    p10: float
    p90: float
    provider: str


def open_session(
    path: Path, *, provider: str = "CPUExecutionProvider", threads: int | None = None
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session that runs on this provider (operators that it lacks fall to the CPU's).

    Args:
        path: The ONNX file.
        provider: ONNX Runtime's name of the execution provider.
        threads: Threads within an operator; None for ONNX Runtime's choice.

    Raises:
        ModelError: The file is missing or ONNX Runtime refuses it.
        InputError: The provider does not come up on this machine.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    check_provider(provider)
    try:
        with _heard(provider != "CPUExecutionProvider") as said:
            session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as cause:  # ONNX Runtime's errors share no base class
        raise ModelError(
            f"ONNX Runtime cannot load the model: {_first_line(cause)}", where=str(path), hint="export it anew"
        ) from cause
    if provider not in session.get_providers():  # it was built for it, but the device or a library is missing
        raise _provider_error(provider, session.get_providers(), said)
    return session


@contextmanager
def _heard(wanted: bool) -> Iterator[list[str]]:  # noqa: FBT001
    """The lines that libraries write to stderr meanwhile, in its place; there once it is over, where that is wanted."""
    lines: list[str] = []
    if not wanted:
        yield lines
        return
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDERR)
        try:
            yield lines
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def provider_called(name: str) -> str:
    """ONNX Runtime's name of an execution provider that is called ``CPU``, ``cuda`` or by that name itself."""
    whole = name if name.lower().endswith(_PROVIDER.lower()) else name + _PROVIDER
    return next((one for one in onnxruntime.get_all_providers() if one.lower() == whole.lower()), whole)


def check_provider(provider: str) -> None:
    """Check that ONNX Runtime was built with a provider, which then may still lack its device.

    Raises:
        InputError: It was not.
    """
    if provider not in onnxruntime.get_available_providers():
        raise _provider_error(provider, onnxruntime.get_available_providers())


def _provider_error(provider: str, running: list[str], said: Sequence[str] = ()) -> InputError:
    """That there is none, with what ONNX Runtime says that is missing: it prints that, and raises nothing."""
    why = next((found[1] for line in said if (found := re.search(r"with error: (.+)", line))), "")
    return InputError(
        f"ONNX Runtime has no working {provider} here{f': {why}' if why else ''}",
        where="provider",
        hint=f"choose one of: {', '.join(running)}; or install the driver and libraries that it needs",
    )


def _first_line(cause: Exception) -> str:
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def interleaved_latency(
    paths: Mapping[str, Path], input_shapes: Mapping[str, tuple[int, ...]], *, provider: str = "CPUExecutionProvider",
    repeats: int = 50, warmup: int = 5, threads: int | None = 1,
) -> dict[str, Latency]:  # fmt: skip
    """Latencies of several ONNX files with one input each, of numbers or uint8, measured side by side.

    Args:
        paths: Files by name.
        input_shapes: Shape of each file's input, batch included; filled with fixed noise.
        provider: See :func:`open_session`.
        repeats: Timed runs of each file; the time is that of ``session.run``, copies to the device included.
        warmup: Runs of each file before those.
        threads: Threads within an operator; None for ONNX Runtime's choice.

    Raises:
        ModelError: A file cannot be loaded or does not take this input.
        InputError: The provider does not come up, or there are no repeats.
    """
    if repeats < 1:
        raise InputError("a latency needs at least one timed run", where=f"repeats = {repeats}")
    calls = {name: call(path, input_shapes[name], provider=provider, threads=threads) for name, path in paths.items()}
    return {name: over(times, provider) for name, times in interleaved(calls, repeats=repeats, warmup=warmup).items()}


def call(
    path: Path, input_shape: tuple[int, ...], *, provider: str = "CPUExecutionProvider", threads: int | None = 1
) -> Callable[[], object]:
    """What runs an ONNX file once on fixed noise; see :func:`interleaved_latency`."""
    session = open_session(path, provider=provider, threads=threads)
    image = _noise(session, input_shape)
    return lambda: run(session, image, where=str(path))


def interleaved(calls: Mapping[K, Callable[[], object]], *, repeats: int = 50, warmup: int = 5) -> dict[K, list[float]]:
    """Seconds that each of some calls takes, called in turn.

    Args:
        calls: What to call.
        repeats: Timed calls of each.
        warmup: Calls of each before those.
    """
    seconds: dict[K, list[float]] = {key: [] for key in calls}
    for turn in range(warmup + repeats):
        for key, once in calls.items():
            start = time.perf_counter()
            once()
            if turn >= warmup:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def run(session: onnxruntime.InferenceSession, images: np.ndarray[Any, Any], *, where: str) -> list[Any]:
    """What a file with one input answers to a batch, which it is given in its own type.

    Args:
        session: The file.
        images: The batch.
        where: The file, for messages.

    Raises:
        ModelError: It does not run on it.
    """
    taken = session.get_inputs()[0]
    try:
        return list(session.run(None, {taken.name: images.astype(_TYPES.get(taken.type, images.dtype), copy=False)}))
    except Exception as cause:  # ONNX Runtime's errors share no base class
        sides = zip(taken.shape, images.shape, strict=False)
        is_other = len(taken.shape) != images.ndim or any(isinstance(own, int) and own != side for own, side in sides)
        told = "x".join(map(str, taken.shape))
        hint = f"it takes {told} alone: give it that, or export it anew for others" if is_other else ""
        raise ModelError(
            f"the file does not run on an input of shape {images.shape}: {_first_line(cause)}", where=where, hint=hint
        ) from cause


def _noise(session: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    chance, kind = np.random.default_rng(0), _TYPES.get(session.get_inputs()[0].type, np.float32)
    if kind is np.uint8:
        return chance.integers(256, size=shape, dtype=np.uint8)
    return chance.standard_normal(shape, dtype=np.float32).astype(kind)


def over(seconds: Sequence[float], provider: str) -> Latency:
    """The latency of some times in seconds."""
    p10, median, p90 = (float(value) * 1000 for value in np.percentile(seconds, (10, 50, 90)))
    return Latency(median_ms=median, p10=p10, p90=p90, provider=provider)

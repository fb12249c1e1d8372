"""How long models take, side by side: in ONNX Runtime, and in torch as they are.

    images a second = batch / median time of a run

All runs of a batch size take turns, so that a machine's slow moments hit all of them alike. A model that is no ONNX
file is written as one for the occasion; what it answers is not compared (``export`` does that).
"""

import contextlib
import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fxdistill import checking
from fxdistill.errors import InputError
from fxdistill.files import is_folder
from fxdistill.measure import latency, onnx_file
from fxdistill.measure.latency import Latency
from fxdistill.measure.model import evaluating
from fxdistill.measure.onnx_model import OnnxModel
from fxdistill.runtime.deployment.finding import Found, find, told_of
from fxdistill.runtime.training import memory

TORCH = "torch"
"""What runs a model as it is."""
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Timed:
    """How long a model takes.

    Attributes:
        model: Its name.
        batch: Images a run.
        latency: Of a run; its provider is that of ONNX Runtime, or ``torch``.
        image: Shape of an image, channels first.
    """

    model: str
    batch: int
    latency: Latency
    image: tuple[int, ...]

    @property
    def images_per_second(self) -> float:
        """By the median run."""
        return self.batch * 1000 / self.latency.median_ms


@checking.checked()
def bench(
    models: Sequence[str | Path] | Mapping[str, str | Path | nn.Module], *, batches: Sequence[int] = (1,),
    input_shape: tuple[int, ...] | None = None, repeats: int = 50, threads: int = 1, provider: str = "CPU",
    torch: bool = False, allow: Sequence[str] = (), trust_code: bool = False,
) -> list[Timed]:  # fmt: skip
    """Measure the latency of models side by side, in ONNX Runtime.

    Args:
        models: Run directories (their students), files, ONNX files, factories; or these, and modules of your own, by
            any name.
        batches: Images a run.
        input_shape: Shape of one batch, for models that do not say it themselves.
        repeats: Timed runs of each; five more come before.
        threads: Threads within an operator.
        provider: ONNX Runtime's execution provider: ``CPU``, ``CUDA`` …, or its whole name.
        torch: Whether models that are no ONNX files are timed in torch, on the CPU, as well.
        allow: Modules whose factories may be called.
        trust_code: Whether files may be unpickled: they can run any code.

    Returns:
        For each batch size each model, in their order, in ONNX Runtime and then in torch.

    Raises:
        InputError: A model cannot be found or loaded, or there is nothing to time, or no such provider.
        ModelError: A model does not run, or cannot be written as ONNX.
    """
    named = models if isinstance(models, Mapping) else {str(model): model for model in models}
    found = {
        name: to_time(model, where=name, input_shape=input_shape, allow=allow, trust_code=trust_code)
        for name, model in named.items()
    }
    return timed(found, batches=batches, repeats=repeats, threads=threads, provider=provider, eager=torch)


def to_time(
    model: str | Path | nn.Module, *, where: str, input_shape: tuple[int, ...] | None, allow: Sequence[str],
    trust_code: bool,
) -> Found:  # fmt: skip
    """A model that is to be timed; a run says itself what its models read, and needs no trust."""
    says_itself = not isinstance(model, nn.Module) and is_folder(model)
    with told_of(where):
        return find(
            model, input_shape=None if says_itself else input_shape, allow=allow,
            trust_code=trust_code and not says_itself, option="fxdistill export … --factory",
        )  # fmt: skip


def timed(
    models: Mapping[str, Found], *, batches: Sequence[int] = (1,), repeats: int = 50, threads: int = 1,
    provider: str = "CPU", eager: bool = False,
) -> list[Timed]:  # fmt: skip
    """How long each of some models takes, for each batch size, in the order of both.

    Args:
        models: They, by name.
        batches: Images a run.
        repeats: Timed runs of each; five more come before.
        threads: Threads within an operator.
        provider: As for :func:`bench`.
        eager: Whether models that are no ONNX files are timed in torch, on the CPU, as well.

    Raises:
        InputError: There is nothing to time, no such provider, or a batch does not fit into memory.
        ModelError: A model does not run, or cannot be written as ONNX.
    """
    if not models or not batches or repeats < 1:
        raise InputError("there is nothing to time", where="bench", hint="give a model, a batch size and repeats")
    for count in batches:
        checking.number(count, 1, "batches")
    checking.number(threads, 1, "threads", most=_MOST_THREADS)
    provider = latency.provider_called(provider)
    latency.check_provider(provider)
    made: list[Timed] = []
    with tempfile.TemporaryDirectory() as folder, _threads(threads), contextlib.ExitStack() as modes:
        files = {
            name: _file(found, Path(folder) / f"{place}.onnx") for place, (name, found) in enumerate(models.items())
        }
        modules = {name: found.module for name, found in models.items() if not isinstance(found.module, OnnxModel)}
        for module in modules.values() if eager else ():
            modes.enter_context(evaluating(module))
        for batch in batches:
            calls: dict[tuple[str, str], Callable[[], object]] = {}
            for name, found in models.items():
                shape = _shape(found, batch, where=name)
                calls[name, provider] = latency.call(
                    files[name], _given(found, shape), provider=provider, threads=threads
                )
                if eager and name in modules:
                    calls[name, TORCH] = functools.partial(modules[name], _images(modules[name], shape))
            seconds = latency.interleaved(calls, repeats=repeats)
            made += [
                Timed(name, batch, latency.over(seconds[name, by], by), tuple(models[name].input_shape[1:]))
                for name, by in calls
            ]
    return made


def _file(found: Found, draft: Path) -> Path:
    """The model as an ONNX file."""
    if isinstance(found.module, OnnxModel):
        return found.module.path
    onnx_file.export_onnx(
        found.module, draft, input_shape=found.input_shape, entry=found.entry, prediction_name=found.prediction_name
    )
    return draft


def _shape(found: Found, batch: int, *, where: str) -> tuple[int, ...]:
    """The shape of a batch; refused where its images alone take more memory than there is."""
    shape = (batch, *found.input_shape[1:])
    wanted, there = 4 * math.prod(shape), memory.available("cpu")
    if there is not None and wanted > there:
        raise InputError(
            f"{batch:,} images take {wanted / 1e9:,.0f} GB, and there are {there / 1e9:,.0f} GB of memory",
            where=where, hint="use a smaller --batch or --input",
        )  # fmt: skip
    return shape


def _images(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Noise in the precision of the module's weights."""
    weight = next((one for one in module.parameters() if one.is_floating_point()), torch.empty(0))
    return torch.randn(shape, dtype=weight.dtype)


def _given(found: Found, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what a model's file is given: pixels with their channels last, where it normalises them itself."""
    module = found.module
    batch, channels, *sides = shape
    return (batch, *sides, channels) if isinstance(module, OnnxModel) and module.description.embedded else shape


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch with so many threads within an operator."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

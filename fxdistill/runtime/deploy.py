"""A model by itself: found, evaluated, exported with its gate. What ``fxdistill export`` and ``fxdistill eval`` do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fxdistill.data import batches
from fxdistill.data.batches import Dataset
from fxdistill.errors import ModelError, RunDirError
from fxdistill.files import file_sha256
from fxdistill.measure import evaluate, onnx_file
from fxdistill.measure.gate import Parity
from fxdistill.modelfiles import statedict
from fxdistill.modelfiles.load import load
from fxdistill.modelfiles.source import parse_source
from fxdistill.plan.schema import ModelRef
from fxdistill.runtime import checkpoint
from fxdistill.runtime.directory import RunDir
from fxdistill.runtime.preflight import classes_fit, load_data, load_model
from fxdistill.runtime.result import provenance

_NOISE_BATCHES, _BATCH = 4, 128


@dataclass(frozen=True)
class Found:
    """A model, the data to look at it with, and what its ONNX file shall say.

    Attributes:
        module: The model, on the CPU in eval mode.
        dataset: Test images, normalised as in its plan or, without one, by their own statistics; None without data.
        image_shape: Shape of a batch of one, where known.
        metadata: For the ONNX file.
    """

    module: nn.Module
    dataset: Dataset | None
    image_shape: tuple[int, ...] | None
    metadata: dict[str, str]


def find(
    text: str, *, factory: str | None = None, args: Sequence[str] = (), data: str | None = None,
    allow: Sequence[str] = (), trust_pickle: bool = False,
) -> Found:  # fmt: skip
    """The model that an argument names: the student of a run directory, a file or a factory.

    Raises:
        InputError: It cannot be found or loaded, or does not fit the data.
    """
    if Path(text).is_dir():
        return _of_run(Path(text), data, allow)
    source = parse_source(text, factory=factory, args=args, trust_pickle=trust_pickle, allow=allow, option="--factory")
    loaded = load(source)
    dataset = _dataset(data, loaded.input_shape, allow)
    shape = (1, *dataset.image_shape) if dataset is not None else loaded.input_shape
    if dataset is not None:
        classes_fit(loaded.module, dataset, input_shape=(1, *dataset.image_shape), spec=str(data))
    return Found(loaded.module, dataset, shape, {})


def _dataset(spec: str | None, shape: Sequence[int] | None, allow: Sequence[str]) -> Dataset | None:
    return None if spec is None else batches.load(spec, input_shape=shape, allow=allow)


def _of_run(path: Path, spec: str | None, allow: Sequence[str]) -> Found:
    rundir = RunDir.existing(path)
    plan = rundir.plan()
    if not rundir.student_path.exists():
        raise RunDirError(
            "this run has no student yet", where=str(path), hint="complete it with `fxdistill run … --resume`"
        )
    ref = plan.student
    if ref.factory is None:
        raise RunDirError(
            "this run's student has no factory, so its state dict alone does not make a model", where=str(path),
            hint="load student.pt into your own class and export that",
        )  # fmt: skip
    module = _trained(rundir, ref, seed=plan.seed, allow=allow)
    shape = tuple(plan.input.shape)
    if spec is None:
        dataset = load_data(plan, rundir.base, allow=allow)
    else:
        dataset = batches.load(plan.data.model_copy(update={"spec": spec}), input_shape=shape, allow=allow)
    return Found(module, dataset, shape, provenance(plan))


def _trained(rundir: RunDir, ref: ModelRef, *, seed: int, allow: Sequence[str]) -> nn.Module:
    """The trained student, in the architecture of the planned file where that is there: it may have been shrunken."""
    planned = None if ref.path is None or ref.trusted else rundir.base / ref.path
    if planned is None or not planned.is_file() or file_sha256(planned) != ref.sha256:
        own = ModelRef(
            path="student.pt", sha256=file_sha256(rundir.student_path), factory=ref.factory, kwargs=ref.kwargs
        )
        try:
            return load_model(own, rundir.path, seed=seed, allow=allow)
        except ModelError as cause:
            if planned is None:
                raise
            hint = f"{cause.hint}; if the student was a shrunken model, put back its file, {planned.resolve()}"
            raise ModelError(cause.what, where=cause.where, hint=hint) from cause
    module = load_model(ref, rundir.base, seed=seed, allow=allow)
    state = checkpoint.state_dict(rundir.student_path)
    statedict.fit(module, state, factory=str(ref.factory), where=str(rundir.student_path))
    return module


def accuracy(found: Found) -> float:
    """Share of the test images whose largest logit is that of their label."""
    return evaluate.accuracy(found.module, _batches(found, found.image_shape or ()))


def export_checked(found: Found, path: Path, *, input_shape: tuple[int, ...], opset: int, tolerance: float) -> Parity:
    """Write the ONNX file, and let it pass the parity gate, on test images or else on seeded noise.

    Raises:
        ParityError: The file would not be the model; nothing was written.
    """
    batches = _batches(found, input_shape)
    _, parity = onnx_file.export_checked(
        found.module,
        path,
        batches,
        input_shape=input_shape,
        opset=opset,
        tolerance=tolerance,
        metadata=found.metadata,
    )
    return parity


def _batches(found: Found, input_shape: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    dataset = found.dataset
    if dataset is not None:
        batches.check_input(dataset, input_shape)
        return batches.batches(dataset.test, _BATCH, mean=dataset.mean, std=dataset.std)
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(8, *input_shape[1:], generator=generator) for _ in range(_NOISE_BATCHES))
    return ((images, torch.zeros(len(images), dtype=torch.int64)) for images in noise)

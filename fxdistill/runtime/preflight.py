"""What is checked before a run writes anything: the plan's models, data and device, and whether they go together."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fxdistill.data import batches as data_module
from fxdistill.data.batches import Dataset
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import DataError, InputError, ModelError, PlanError
from fxdistill.files import file_sha256
from fxdistill.losses import old
from fxdistill.measure import evaluate, onnx_file
from fxdistill.modelfiles.load import load
from fxdistill.modelfiles.source import ModelSource
from fxdistill.plan import places
from fxdistill.plan.schema import ModelRef, Plan


def runnable(plan: Plan, where: Path) -> None:
    """Refuse a plan that names no data or no trained teacher, or that could not be exported in the end.

    Raises:
        PlanError: It is such a plan.
    """
    onnx_file.check_opset(plan.export.opset)  # hours before the export itself would say so
    if plan.data.spec is None:
        raise PlanError(
            "the plan has no data, so it cannot be run", where=f"{where}, data.spec",
            hint="write it anew with --data, e.g. --data digits",
        )  # fmt: skip
    for stage in plan.control:
        reads = {old.get(term.loss).reads for term in stage.losses}
        if reads != {"labels"}:
            raise PlanError(
                "the control arm trains without a teacher, and a loss of it needs one",
                where=f"{where}, control, stage '{stage.name}'", hint="leave only cross_entropy there",
            )  # fmt: skip
    if plan.teacher.path is None:
        raise _random_teacher(f"{where}, teacher.path")


def _random_teacher(where: str) -> PlanError:
    return PlanError(
        "the plan's teacher has random weights, so there is nothing to learn from it",
        where=where, hint="plan with a file that holds a trained teacher",
    )  # fmt: skip


def load_model(
    ref: ModelRef, base: Path, *, seed: int, allow: Sequence[str] = (), trust_pickle: bool = False,
    trained: bool = False,
) -> nn.Module:  # fmt: skip
    """Load a plan's model and check that its file is the one that was planned.

    Args:
        ref: The plan's reference.
        base: The folder of the plan.
        seed: Seed of the weights of a factory alone.
        allow: Modules whose factories may be called.
        trust_pickle: Whether a file that the plan says to unpickle may be.
        trained: Whether the weights have to be trained ones.

    Raises:
        PlanError: The file's hash is not the plan's, or it says that its weights are random and may not be.
        ModelError: The file cannot be loaded.
    """
    path = None if ref.path is None else (base / ref.path)
    if path is not None:
        _same_file(path, ref)
    # a bundle says itself what builds it; the plan's copy of that is for its reader
    source = ModelSource(
        path=path, factory=ref.factory, kwargs=dict(ref.kwargs), trust_pickle=ref.trusted and trust_pickle,
        allow=tuple(allow),
    )  # fmt: skip
    loaded = load(source, seed=seed)
    if trained and loaded.random_weights:
        raise _random_teacher(str(path))
    return loaded.module


def _same_file(path: Path, ref: ModelRef) -> None:
    if not path.is_file():
        raise ModelError(
            "the plan's model file is missing", where=str(path), hint="put it back, or write the plan anew"
        )
    found = file_sha256(path)
    if found != ref.sha256:
        raise PlanError(
            f"the model file is not the one that was planned: its sha256 is {found}, the plan says {ref.sha256}",
            where=str(path), hint="write the plan anew with `fxdistill plan`",
        )  # fmt: skip


def load_data(plan: Plan, base: Path, *, allow: Sequence[str] = ()) -> Dataset:
    """Load a plan's data, in the size that its models read.

    Raises:
        DataError: It is missing, damaged or not what the plan says.
    """
    found = plan.data.model_copy(update={"spec": places.resolved_data(plan.data.spec, base)})
    dataset = data_module.load(found, input_shape=tuple(plan.input.shape), allow=tuple(allow))
    data_module.check_input(dataset, plan.input.shape)
    smallest = min(plan.data.batch_size, len(dataset.train))
    if smallest < 2:
        raise DataError(
            "training takes batches of two images or more", where="data.batch_size", hint="use --batch-size 2 or more"
        )
    return dataset


def classes_fit(module: nn.Module, dataset: Dataset, *, input_shape: Sequence[int], spec: str) -> None:
    """Check that a model has as many classes as the data.

    Raises:
        ModelError: It has not, or it cannot take the input.
    """
    try:
        with evaluate.evaluating(module):
            logits = evaluate.prediction(module(torch.zeros(tuple(input_shape))))
    except InputError:
        raise
    except Exception as cause:
        shape = "x".join(map(str, input_shape))
        raise ModelError(
            f"the model cannot take a batch of {shape}: {cause}", where=f"data {spec}",
            hint="use data of the size and channels that the model was made for",
        ) from cause  # fmt: skip
    if logits.ndim != 2 or logits.shape[1] != len(dataset.classes):
        answer = f"{logits.shape[1]} classes" if logits.ndim == 2 else f"a tensor of shape {tuple(logits.shape)}"
        raise ModelError(
            f"the model answers with {answer}, the data has {len(dataset.classes)} classes",
            where=f"data {spec}", hint="build teacher and student with the data's number of classes",
        )  # fmt: skip


def accelerator(device: str, precision: str) -> str:
    """Lightning's name of the device to use.

    Raises:
        InputError: There is no such device here, or it does not train in that precision.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available", where="--device cuda", hint="use --device auto or cpu")
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if chosen == "cpu" and precision == "16-mixed":
        raise InputError(
            "16-mixed precision needs a CUDA device", where="precision", hint="use --precision bf16-mixed or 32-true"
        )
    return chosen


def near_chance(accuracy: float, classes: int) -> list[Diagnostic]:
    """A warning where a teacher knows hardly more than the number of classes."""
    chance = 1 / classes
    if accuracy >= 2 * chance or accuracy > (1 + chance) / 2:
        return []
    return [
        Diagnostic(
            code="teacher-near-chance", severity="warning", where="teacher",
            why=f"the teacher's accuracy on this data is {accuracy:.1%}, near chance ({chance:.1%})",
            hint="check label order, normalisation (data.mean, data.std in the plan) and the checkpoint",
        )
    ]  # fmt: skip

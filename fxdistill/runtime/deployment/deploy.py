"""A model by itself: evaluated, exported with its gate.

What ``fxdistill eval`` and ``fxdistill export`` do, with the same defaults.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fxdistill import checking
from fxdistill.data.batches import batches
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError
from fxdistill.files import check_onnx_name
from fxdistill.ir.views import seen
from fxdistill.measure import onnx_file
from fxdistill.measure.model import metrics
from fxdistill.measure.onnx_file import Exported
from fxdistill.measure.onnx_model import Embedded, OnnxModel, as_pixels
from fxdistill.measure.onnx_optimized import Optimized, optimize_checked
from fxdistill.measure.parity import Parity
from fxdistill.preprocessing import NOTHING, Preprocessing, Wishes
from fxdistill.runtime.deployment.finding import Found, data_of, find
from fxdistill.tasks import labelled

_NOISE_BATCHES, _BATCH = 4, 128


@checking.checked()
def evaluate(
    model: str | Path | nn.Module, data: str | Path | None = None, *, task: str | None = None,
    input_shape: tuple[int, ...] | None = None, preprocessing: Preprocessing | Wishes = NOTHING,
    factory: str | None = None, args: Sequence[str] = (), allow: Sequence[str] = (), trust_code: bool = False,
    entry: str | None = None, class_map: str | Path | None = None, checkpoint_entry: str | None = None,
    embedding: str | None = None, at: Sequence[int] = (), top: Sequence[int] = (),
) -> dict[str, float]:  # fmt: skip
    """Measure a model on the test split of some data: all metrics of its task by name.

    Args:
        model: A run directory (its student), a file, a factory, or a module of your own.
        data: A data spec; None for that of the run.
        task: The task's name; None for that of the run, or classification.
        input_shape: Shape of one batch as the model reads it; None for what it says itself.
        preprocessing: What the model does to an image before it looks at it, or what is to be other than it says.
        factory: The factory of a file that is a state dict.
        args: Arguments of that factory, ``key=value``.
        allow: Modules whose factories may be called.
        trust_code: Whether a file may be unpickled: it can run any code.
        entry: Which entry of a structured output is the prediction; None to find it.
        class_map: A file with the model's classes, for data that has some of them; see :mod:`fxdistill.data.classmap`.
        checkpoint_entry: The entry of a checkpoint that holds the weights; None to look for it.
        embedding: In a task about embeddings what a file's model answers with: its ``penultimate`` layer (the default),
            its ``output``, or what a linear layer of this path reads. Other models are taken as they are.
        at: In retrieval, at which ranks precision is measured beside 100.
        top: In classification, among how many first answers the class may be; () for what is usual.

    Raises:
        InputError: The model cannot be found or loaded, or does not fit the data.
    """
    found = find(
        model, data=data, task=task, input_shape=input_shape, preprocessing=preprocessing, factory=factory, args=args,
        allow=allow, trust_code=trust_code, entry=entry, class_map=class_map,
        checkpoint_entry=checkpoint_entry, embedding=embedding,
    )  # fmt: skip
    where = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    return measured(found, where=where, at=at, top=top)[0]


def measured(
    found: Found, *, where: str, at: Sequence[int] = (), top: Sequence[int] = (),
    also: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[dict[str, float], int]:  # fmt: skip
    """All metrics of a model that was found, and on how many test images that have a label.

    Args:
        found: The model.
        where: It, for messages.
        at: In retrieval, at which ranks precision is measured beside 100.
        top: In classification, among how many first answers the class may be; () for what is usual.
        also: Is told the predictions and targets of each batch of test images as well.

    Raises:
        InputError: There is no data, or the task ranks nothing, or chooses no class.
    """
    dataset = data_of(found, where=where)
    task = found.task.precise_at(at) if at else found.task
    task = task.with_top(top, len(dataset.classes)) if top else task
    reached = metrics(found.module, dataset, task, view=found.view, entry=found.entry, also=also)
    return reached, int(labelled(dataset.test.labels).sum())


@checking.checked()
def export(
    model: str | Path | nn.Module, path: str | Path = "student.onnx", *, data: str | Path | None = None,
    task: str | None = None, input_shape: tuple[int, ...] | None = None,
    preprocessing: Preprocessing | Wishes = NOTHING, opset: int = 18, tolerance: float = 1e-4,
    factory: str | None = None, args: Sequence[str] = (), allow: Sequence[str] = (), trust_code: bool = False,
    entry: str | None = None, only: Sequence[str] = (), class_map: str | Path | None = None, embed: bool = False,
    checkpoint_entry: str | None = None, embedding: str | None = None,
) -> tuple[Exported, Parity]:  # fmt: skip
    """Write a model as ONNX with a dynamic batch, if the file passes the parity gate.

    The gate compares test images, or, without data, seeded noise. All outputs are written and compared; the prediction
    of a run's student is called as its task has it (``logits``, ``embedding`` …), as is the one output of a model,
    others by their places.

    Args:
        model: As for :func:`evaluate`.
        path: The file to write.
        data: A data spec; None for that of the run, or noise.
        task: The task's name; None for that of the run, or classification.
        input_shape: As for :func:`evaluate`.
        preprocessing: As for :func:`evaluate`.
        opset: Version of ONNX's operators.
        tolerance: Largest difference of two entries of a prediction, as a share of the largest of all predictions, or
            of 0.01 where that is less.
        factory: As for :func:`evaluate`.
        args: As for :func:`evaluate`.
        allow: As for :func:`evaluate`.
        trust_code: As for :func:`evaluate`.
        entry: As for :func:`evaluate`.
        class_map: As for :func:`evaluate`.
        checkpoint_entry: As for :func:`evaluate`.
        embedding: As for :func:`evaluate`.
        only: The outputs to write, by name or entry; empty for all.
        embed: Whether the file takes pixels, uint8 (N, H, W, C), and normalises them itself.

    Raises:
        InputError: The model cannot be found, loaded or exported.
        ParityError: The file would not be the model; nothing was written.
    """
    check_onnx_name(Path(path))
    found = find(
        model, data=data, task=task, input_shape=input_shape, preprocessing=preprocessing, factory=factory, args=args,
        allow=allow, trust_code=trust_code, entry=entry, class_map=class_map,
        checkpoint_entry=checkpoint_entry, embedding=embedding,
    )  # fmt: skip
    return exported(found, path, opset=opset, tolerance=tolerance, only=only, embed=embed)


def exported(
    found: Found, path: str | Path, *, opset: int = 18, tolerance: float = 1e-4, only: Sequence[str] = (),
    embed: bool = False,
) -> tuple[Exported, Parity]:  # fmt: skip
    """Write a model that was found as ONNX; see :func:`export`."""
    module, metadata = _deployed(found, embed=embed)
    return onnx_file.export_checked(
        module, Path(path), _images(found, embed=embed), task=found.task, input_shape=found.input_shape, opset=opset,
        tolerance=tolerance, metadata=metadata, entry=found.entry, only=only or found.outputs,
        prediction_name=found.prediction_name,
    )  # fmt: skip


def optimized(found: Found, path: str | Path, *, tolerance: float = 1e-4, embed: bool = False) -> Optimized:
    """Simplify the graph of a file that was exported, if it passes the gate again; see :func:`export`."""
    module, _ = _deployed(found, embed=embed)
    return optimize_checked(
        module, Path(path), _images(found, embed=embed), task=found.task, tolerance=tolerance, entry=found.entry,
        prediction_name=found.prediction_name,
    )  # fmt: skip


def _deployed(found: Found, *, embed: bool) -> tuple[nn.Module, dict[str, str]]:
    """What an ONNX file is made of, and what it shall say."""
    if isinstance(found.module, OnnxModel):
        raise InputError(
            "it is an ONNX file already",
            where=str(found.module.path),
            hint="export the model it is of; it goes with --int8 and --fp16 alone",
        )
    if not embed:
        return found.module, found.metadata
    module = Embedded(found.module, found.preprocessing.view(found.preprocessing.size)).eval()
    return module, {**found.metadata, "fxdistill.embedded": "true"}


def unsaid(found: Found, *, where: str) -> tuple[Diagnostic, ...]:
    """A warning about an exported file where nothing says how its model normalises images."""
    if found.dataset is not None or found.preprocessing.mean:
        return ()
    return (
        Diagnostic(
            code="no-normalisation", severity="warning", where=where,
            why="nothing says how the model normalises images: the file says that pixels are taken as they are",
            hint="give --mean and --std, or --data to take those of the data",
        ),
    )  # fmt: skip


def _images(found: Found, *, embed: bool = False) -> Iterator[Tensor]:
    """Images as the exported file takes them: those of the test split, or noise."""
    if found.dataset is not None:
        view, test = found.view, batches(found.dataset.test, _BATCH)
        return (as_pixels(b["images"], view) if embed else seen(b["images"], view) for b in test)
    generator = torch.Generator().manual_seed(0)
    if embed:
        noise = (torch.rand(8, *found.input_shape[1:], generator=generator) for _ in range(_NOISE_BATCHES))
        return (as_pixels(images) for images in noise)
    return (torch.randn(8, *found.input_shape[1:], generator=generator) for _ in range(_NOISE_BATCHES))

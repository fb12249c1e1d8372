"""A model as an ONNX file; :mod:`fxdistill.measure.gate` says whether the file is the model.

    module → copy (CPU, float32, eval) → exporter → provenance → checker → trial → rename into place

Two exporters are tried in turn, torch's ``dynamo`` one and the older TorchScript one; which of them wrote the
file is returned. What either gives must pass ONNX's checker and a trial at two batch sizes before it gets its
final name: an exporter may freeze the batch size into a shape without saying so.

All tensors that a model returns are outputs of the file, unless only some are asked for.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import torch
from onnx import GraphProto, ModelProto
from torch import Tensor, nn

from fxdistill import files
from fxdistill.errors import ModelError, PlanError
from fxdistill.ir import outputs
from fxdistill.ir.running import quiet
from fxdistill.measure.gate import INPUT, answers, gate, measure, reason
from fxdistill.measure.latency import open_session
from fxdistill.measure.onnx_source import TRIAL_BATCHES, Source, deployable, noise
from fxdistill.measure.parity import Parity, scale
from fxdistill.tasks import Task

Exporter = Literal["dynamo", "torchscript"]

OUTPUT, BATCH = outputs.DEFAULT_NAME, "batch"
_OLDEST_OPSET = 11  # before it, operators lack what current models use
_EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
_LARGEST_FILE = 2**31 - 2**24  # protobuf's limit of 2 GiB, less room for the graph
_DUMP = "_jit_onnx_log"  # of torch: prints a whole graph, past Python's streams, where the second exporter fails
_TRIAL_TOLERANCE = 1e-3  # relative: tells a wrong graph from rounding; precision is the gate's business


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The ONNX file.
        exporter: Which exporter wrote it.
        opset: The version of ONNX's operators that it uses.
        refused: Why the exporter tried before it was of no use; empty where the first one served.
        outputs: The names of the file's outputs.
        left_out: The entries of the model's output that are not in the file.
    """

    path: Path
    exporter: Exporter
    opset: int
    refused: tuple[str, ...] = ()
    outputs: tuple[str, ...] = (OUTPUT,)
    left_out: tuple[str, ...] = ()


def export_onnx(
    module: nn.Module, path: Path, *, input_shape: tuple[int, ...], opset: int = 18,
    metadata: Mapping[str, str] | None = None, entry: str = "", only: Sequence[str] = (),
    prediction_name: str = OUTPUT,
) -> Exported:  # fmt: skip
    """Write a module as ONNX: input ``input`` (batch, ...), an output, for any batch size.

    A copy is exported, in eval mode; the module stays as it is. Of a structured output every tensor becomes an output
    (:func:`fxdistill.ir.outputs.named`), the prediction first. Weights lie inside the file, unless they pass 2 GiB:
    then in ``<file name>.data`` beside it.

    Args:
        module: Takes one float32 tensor.
        path: The file to write, whole or not at all.
        input_shape: Shape of one batch; its first entry is free in the file.
        opset: Version of ONNX's operators.
        metadata: Provenance, for the file's ``metadata_props``.
        entry: Which entry of a structured output is the prediction.
        only: The outputs to write, by name or entry; empty for all.
        prediction_name: What the prediction is called; '' for the name of its place, where it then stays.

    Raises:
        ModelError: The module does not run on this shape, or no exporter gives a file that works.
        PlanError: The place cannot be written to, its name does not end in .onnx, or there is no such opset.
        StorageError: The disk is full.
    """
    with draft_of(path) as draft:
        written = _write(
            module, draft, path, input_shape=input_shape, opset=opset, metadata=metadata or {}, entry=entry, only=only,
            prediction_name=prediction_name, alone=OUTPUT,
        )  # fmt: skip
        _publish(draft, path)
    return written


def export_checked(
    module: nn.Module, path: Path, images: Iterable[Tensor], *, task: Task, input_shape: tuple[int, ...],
    opset: int = 18, tolerance: float = 1e-4, metadata: Mapping[str, str] | None = None, entry: str = "",
    only: Sequence[str] = (), prediction_name: str | None = None,
) -> tuple[Exported, Parity]:  # fmt: skip
    """Write a module as ONNX only if the file passes the gate; an earlier file stays where it does not.

    Args:
        module: See :func:`export_onnx`.
        path: The file to write.
        images: Batches of images to compare on.
        task: What agreement means, see :func:`fxdistill.measure.gate.measure`.
        input_shape: Shape of one batch.
        opset: Version of ONNX's operators.
        tolerance: See :mod:`fxdistill.measure.gate`.
        metadata: Provenance.
        entry: Which entry of a structured output is the prediction.
        only: See :func:`export_onnx`.
        prediction_name: See :func:`export_onnx`; None for the task's name of it.

    Raises:
        ParityError: The file would not be the model; nothing was written.
        ModelError, PlanError, StorageError: As for :func:`export_onnx`.
    """
    with draft_of(path) as draft:
        written = _write(
            module, draft, path, input_shape=input_shape, opset=opset, metadata=metadata or {}, entry=entry, only=only,
            prediction_name=task.output_name if prediction_name is None else prediction_name, alone=task.output_name,
        )  # fmt: skip
        measured = measure(module, draft, images, task=task, entry=entry, prediction_name=prediction_name)
        gate(measured, tolerance)
        _publish(draft, path)
    return written, measured


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A place on the same disk for a file that is not finished yet; what is left there is removed."""
    files.check_onnx_name(path)
    with files.writing(path):
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    with folder:
        yield Path(folder.name) / path.name


def _write(
    module: nn.Module, draft: Path, path: Path, *, input_shape: tuple[int, ...], opset: int,
    metadata: Mapping[str, str], entry: str, only: Sequence[str], prediction_name: str, alone: str,
) -> Exported:  # fmt: skip
    """Write the draft of the file at a path."""
    check_opset(opset)
    source = deployable(module, input_shape, entry, only, prediction_name=prediction_name, alone=alone)
    try:
        with files.writing(path):
            exporter, refused = _draft(source, draft, input_shape, opset, metadata)
    finally:  # the exporter's rewriting rules hold the last graph that they saw, and its weights
        for tensor in (*source.module.parameters(), *source.module.buffers()):
            tensor.data = tensor.new_empty(0)
    return Exported(path, exporter, opset, refused, source.names, source.left_out)


def _publish(draft: Path, path: Path) -> None:
    """Move a finished file, and its weights if they lie beside it, to their place: the weights first."""
    weights = weights_beside(draft)
    with files.writing(path):
        if weights.exists():
            files.put(weights, weights_beside(path))
        files.put(draft, path)


def weights_beside(path: Path) -> Path:
    """Where the weights lie that are too large for the file itself."""
    return path.with_name(f"{path.name}.data")


def check_opset(opset: int) -> None:
    """Refuse an opset that neither exporter writes.

    Raises:
        PlanError: It is one.
    """
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise PlanError(
            f"opset {opset} cannot be written",
            where="opset",
            hint=f"use one from {_OLDEST_OPSET} to {newest}; 18 is usual",
        )


def _draft(
    source: Source, draft: Path, input_shape: tuple[int, ...], opset: int, metadata: Mapping[str, str]
) -> tuple[Exporter, tuple[str, ...]]:
    """Write the first exporter's file that works; also say why those before it did not."""
    refused: list[str] = []
    for exporter in _EXPORTERS:
        try:
            proto = _export(source, noise(2, input_shape, whole=source.whole), opset, exporter)
            weights = sum(t.nbytes for t in (*source.module.parameters(), *source.module.buffers()))
            _save(proto, draft, metadata, external=weights > _LARGEST_FILE)
            _try_out(source, draft, input_shape)
        except ModelError as cause:
            refused.append(f"{exporter}: {cause.what}")
            for file in draft.parent.iterdir():
                file.unlink()
        else:
            return exporter, tuple(refused)
    raise ModelError(
        f"the model cannot be exported to ONNX; {'; '.join(refused)}",
        where=f"input {input_shape}, opset {opset}",
        hint="replace the operation named, or make the shapes inside the model independent of the batch size",
    )


def _export(source: Source, example: Tensor, opset: int, exporter: Exporter) -> ModelProto:
    module, names = (
        source.module,
        dict[str, Any](input_names=[INPUT], output_names=list(source.names), opset_version=opset),
    )
    try:
        with quiet(), _undumped():
            if exporter == "dynamo":
                shapes = ({0: torch.export.Dim(BATCH)},)
                program = torch.onnx.export(module, (example,), dynamic_shapes=shapes, verbose=False, **names)
                proto = cast("torch.onnx.ONNXProgram", program).model_proto
            else:
                file, axes = io.BytesIO(), {name: {0: BATCH} for name in (INPUT, *sorted(source.batched))}
                torch.onnx.export(module, (example,), cast("Any", file), dynamo=False, dynamic_axes=axes, **names)
                proto = onnx.load_model_from_string(file.getvalue())
    except Exception as cause:  # exporters raise whatever the model's code and their own parts raise
        raise ModelError(reason(cause)) from cause
    found = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if found != opset:
        raise ModelError(f"it wrote opset {found} where {opset} was asked for")
    return proto


def _save(proto: ModelProto, draft: Path, metadata: Mapping[str, str], *, external: bool) -> None:
    strip(proto.graph)
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    onnx.save_model(proto, draft, save_as_external_data=external, location=weights_beside(draft).name)


def strip(graph: GraphProto) -> None:
    """Drop what exporters note down about the machine: stack traces with its paths."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                strip(attribute.g)
            for inner in attribute.graphs:
                strip(inner)


def _try_out(source: Source, draft: Path, input_shape: tuple[int, ...]) -> None:
    """Raise ModelError unless the file is valid and follows the module at several batch sizes."""
    try:
        onnx.checker.check_model(draft, full_check=True)
    except Exception as cause:  # the checker and shape inference have errors of their own, without a common base
        raise ModelError(f"its file is not valid ONNX: {reason(cause)}") from cause
    session = open_session(draft)
    for batch in TRIAL_BATCHES:
        image = noise(batch, input_shape, whole=source.whole)
        theirs = answers(session, image, where=str(draft))  # before the module, which may write into its input
        with torch.no_grad():
            ours = source(image)
        for name, value in ours.items():
            _same(name, value, theirs[name], batch)


def _same(name: str, ours: Tensor, theirs: Tensor, batch: int) -> None:
    """Raise ModelError unless an output of the file is that of the module, to rounding."""
    if ours.shape != theirs.shape:
        raise ModelError(
            f"its file gives shape {tuple(theirs.shape)} for '{name}' of {batch} images, not {tuple(ours.shape)}"
        )
    ours, theirs = ours.double(), theirs.double()
    if ours.numel() and (ours - theirs).abs().max() > _TRIAL_TOLERANCE * scale(float(ours.abs().max())):
        raise ModelError(f"its file computes something else for '{name}', seen on a batch of {batch}")


@contextlib.contextmanager
def _undumped() -> Iterator[None]:
    """Without the graph that the exporter prints when it fails: its switch is on, whatever one sets."""
    dump = getattr(torch._C, _DUMP, None)  # noqa: SLF001
    try:
        if dump is not None:
            setattr(torch._C, _DUMP, lambda *_: None)  # noqa: SLF001
        yield
    finally:
        if dump is not None:
            setattr(torch._C, _DUMP, dump)  # noqa: SLF001

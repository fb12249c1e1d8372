"""A model as an ONNX file; :mod:`fxdistill.measure.gate` says whether the file is the model.

    module → copy (CPU, float32, eval) → exporter → provenance → checker → trial → rename into place

Two exporters are tried in turn, torch's ``dynamo`` one and the older TorchScript one; which of them wrote the
file is returned. What either gives must pass ONNX's checker and a trial at two batch sizes before it gets its
final name: an exporter may freeze the batch size into a shape without saying so.

All tensors that a model returns are outputs of the file, unless only some are asked for.
"""

import contextlib
import io
import logging
import tempfile
import warnings
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
from fxdistill.measure.gate import INPUT, answers, gate, measure, reason, reference
from fxdistill.measure.latency import open_session
from fxdistill.measure.onnx_model import Embedded
from fxdistill.measure.parity import Parity
from fxdistill.tasks import Task

Exporter = Literal["dynamo", "torchscript"]

OUTPUT, BATCH = outputs.DEFAULT_NAME, "batch"
_OLDEST_OPSET = 11  # before it, operators lack what current models use
_EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
_LARGEST_FILE = 2**31 - 2**24  # protobuf's limit of 2 GiB, less room for the graph
_TRIAL_BATCHES = (1, 3)
_DUMP = "_jit_onnx_log"  # of torch: prints a whole graph, past Python's streams, where the second exporter fails
Shape = tuple[int, ...]
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


@dataclass(frozen=True)
class _Source:
    """What is exported: a copy of the model that returns tensors in order, and their names.

    Attributes:
        module: The copy; returns a tensor, or a tuple of them.
        names: The names of what it returns.
        batched: Those whose first dimension is that of the images.
        left_out: The entries that it does not return.
        whole: Whether it takes pixels, uint8 (N, H, W, C).
    """

    module: nn.Module
    names: tuple[str, ...]
    batched: frozenset[str]
    left_out: tuple[str, ...] = ()
    whole: bool = False

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        found = self.module(image)
        return dict(zip(self.names, (found,) if isinstance(found, Tensor) else found, strict=True))


def export_onnx(
    module: nn.Module, path: Path, *, input_shape: tuple[int, ...], opset: int = 18,
    metadata: Mapping[str, str] | None = None, entry: str = "", only: Sequence[str] = (),
    prediction_name: str = OUTPUT,
) -> Exported:  # fmt: skip
    """Write a module as ONNX: input ``input`` (batch, ...), output ``logits``, for any batch size.

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
            prediction_name=prediction_name,
        )  # fmt: skip
        _publish(draft, path)
    return written


def export_checked(
    module: nn.Module, path: Path, images: Iterable[Tensor], *, task: Task, input_shape: tuple[int, ...],
    opset: int = 18, tolerance: float = 1e-4, metadata: Mapping[str, str] | None = None, entry: str = "",
    only: Sequence[str] = (), prediction_name: str = OUTPUT,
) -> tuple[Exported, Parity]:  # fmt: skip
    """Write a module as ONNX only if the file passes the gate; an earlier file stays where it does not.

    Args:
        module: See :func:`export_onnx`.
        path: The file to write.
        images: Batches of images to compare on.
        task: What agreement means, see :func:`fxdistill.measure.gate.measure`.
        input_shape: Shape of one batch.
        opset: Version of ONNX's operators.
        tolerance: Largest absolute difference of two entries.
        metadata: Provenance.
        entry: Which entry of a structured output is the prediction.
        only: See :func:`export_onnx`.
        prediction_name: See :func:`export_onnx`.

    Raises:
        ParityError: The file would not be the model; nothing was written.
        ModelError, PlanError, StorageError: As for :func:`export_onnx`.
    """
    with draft_of(path) as draft:
        written = _write(
            module, draft, path, input_shape=input_shape, opset=opset, metadata=metadata or {}, entry=entry, only=only,
            prediction_name=prediction_name,
        )  # fmt: skip
        measured = measure(module, draft, images, task=task, entry=entry, prediction_name=prediction_name)
        gate(measured, tolerance)
        _publish(draft, path)
    return written, measured


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A place on the same disk for a file that is not finished yet; what is left there goes."""
    files.check_onnx_name(path)
    with files.writing(path):
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    with folder:
        yield Path(folder.name) / path.name


def _write(
    module: nn.Module, draft: Path, path: Path, *, input_shape: tuple[int, ...], opset: int,
    metadata: Mapping[str, str], entry: str, only: Sequence[str], prediction_name: str,
) -> Exported:  # fmt: skip
    """Write the draft of the file at a path."""
    check_opset(opset)
    source = _deployable(module, input_shape, entry, only, prediction_name)
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


class _Outputs(nn.Module):
    """A model with a structured output, reduced to some of its entries, in order."""

    def __init__(self, model: nn.Module, places: Sequence[str]) -> None:
        super().__init__()
        self.model, self.places = model, tuple(places)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = dict(outputs.entries(self.model(image)))
        return tuple(found[place] for place in self.places)


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


def _noise(batch: int, input_shape: tuple[int, ...], *, whole: bool = False) -> Tensor:
    """Normal noise, or pixels (N, H, W, C), uint8."""
    generator = torch.Generator().manual_seed(batch)
    if whole:
        channels, height, width = input_shape[1:]
        return torch.randint(256, (batch, height, width, channels), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, *input_shape[1:], generator=generator)


def _deployable(
    module: nn.Module, input_shape: tuple[int, ...], entry: str, only: Sequence[str], prediction_name: str
) -> _Source:
    """What to export: found out on the trial batches."""
    source, found, whole = reference(module), [], isinstance(module, Embedded)
    for batch in _TRIAL_BATCHES:
        try:
            with torch.no_grad():
                output = source(_noise(batch, input_shape, whole=whole))
        except Exception as cause:  # whatever the model's own code raises
            raise ModelError(
                f"the model does not run on an input of shape {(batch, *input_shape[1:])}: {reason(cause)}",
                where=type(module).__name__,
                hint="give the shape that the model was made for; exported models must take any batch size",
            ) from cause
        tensors = outputs.named(output, entry, prediction_name=prediction_name, taken=(INPUT,))
        found.append({name: (value, tuple(value.shape)) for name, value in tensors.items()})
    names = _wanted(output, found[-1], only)
    if list(found[0]) != list(found[-1]):
        raise ModelError(
            f"the model answers with {len(found[0])} values for one image and {len(found[-1])} for three",
            where=type(module).__name__,
            hint="a list with an entry for each image is no output of an ONNX file: return tensors of a fixed number",
        )
    batched = [all(seen[n][1][:1] == (b,) for seen, b in zip(found, _TRIAL_BATCHES, strict=True)) for n in names]
    of_batch = frozenset(name for name, changes in zip(names, batched, strict=True) if changes)
    if isinstance(output, Tensor):
        return _Source(source, names, of_batch, whole=whole)
    ids = [id(found[-1][name][0]) for name in names]
    places = {id(value): place for place, value in reversed(list(outputs.entries(output)))}
    left_out = tuple(place for place, value in outputs.entries(output) if value is not None and id(value) not in ids)
    # the second exporter puts back the mode that it finds at the top, in every layer
    return _Source(_Outputs(source, [places[i] for i in ids]).eval(), names, of_batch, left_out, whole)


def _wanted(output: object, found: Mapping[str, tuple[Tensor, Shape]], only: Sequence[str]) -> tuple[str, ...]:
    """The names of the outputs to write, in order; those asked for are given by name or by entry."""
    names = {id(value): name for name, (value, _) in found.items()}
    by_place = {place: names[id(value)] for place, value in outputs.entries(output) if id(value) in names}
    asked = [one if one in found else by_place.get(one) for one in only]
    if None in asked:
        unknown = only[asked.index(None)]
        raise ModelError(
            f"the model has no output '{unknown}'", where=f"output {unknown}",
            hint=f"its outputs are: {', '.join(found)}",
        )  # fmt: skip
    return tuple(name for name in found if not only or name in asked)


def _draft(
    source: _Source, draft: Path, input_shape: tuple[int, ...], opset: int, metadata: Mapping[str, str]
) -> tuple[Exporter, tuple[str, ...]]:
    """Write the first exporter's file that works; also say why those before it did not."""
    refused: list[str] = []
    for exporter in _EXPORTERS:
        try:
            proto = _export(source, _noise(2, input_shape, whole=source.whole), opset, exporter)
            _save(proto, draft, metadata, external=_bytes(source.module) > _LARGEST_FILE)
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


def _export(source: _Source, example: Tensor, opset: int, exporter: Exporter) -> ModelProto:
    module, names = (
        source.module,
        dict[str, Any](input_names=[INPUT], output_names=list(source.names), opset_version=opset),
    )
    try:
        with _quiet():
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


def _try_out(source: _Source, draft: Path, input_shape: tuple[int, ...]) -> None:
    """Raise ModelError unless the file is valid and follows the module at several batch sizes."""
    try:
        onnx.checker.check_model(draft, full_check=True)
    except Exception as cause:  # the checker and shape inference have errors of their own, without a common base
        raise ModelError(f"its file is not valid ONNX: {reason(cause)}") from cause
    session = open_session(draft)
    for batch in _TRIAL_BATCHES:
        image = _noise(batch, input_shape, whole=source.whole)
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
    if ours.numel() and (ours - theirs).abs().max() > _TRIAL_TOLERANCE * max(1.0, float(ours.abs().max())):
        raise ModelError(f"its file computes something else for '{name}', seen on a batch of {batch}")


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress lines, warnings and logging."""
    before, sink = logging.root.manager.disable, io.StringIO()
    dump = getattr(torch._C, _DUMP, None)  # noqa: SLF001  # its switch is on, whatever one sets
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            if dump is not None:
                setattr(torch._C, _DUMP, lambda *_: None)  # noqa: SLF001
            yield
    finally:
        if dump is not None:
            setattr(torch._C, _DUMP, dump)  # noqa: SLF001
        logging.disable(before)

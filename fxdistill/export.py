"""ONNX, and the gate that says whether the file is the model that was trained.

    module → copy (CPU, float32, eval) → exporter → provenance → checker → trial → rename into place

Two exporters are tried in turn, torch's ``dynamo`` one and the older TorchScript one; which of them wrote the
file is returned. What either gives must pass ONNX's checker and a trial at two batch sizes before it gets its
final name: an exporter may freeze the batch size into a shape without saying so.

The gate then compares real images. With p PyTorch's and o ONNX Runtime's logits it demands

    max |p - o| ≤ tolerance    and    p[argmax p] - p[argmax o] ≤ tolerance for every prediction.

The second says that top-1 agrees, except where PyTorch's own two best logits tie to within the tolerance. It
is the stricter one: errors within the tolerance may flip choices that lie up to twice the tolerance apart.
"""

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from fxdistill.errors import DataError, ModelError, ParityError, PlanError
from fxdistill.evaluate import Batches, evaluating, open_session, prediction

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
    from onnxruntime import InferenceSession

Exporter = Literal["dynamo", "torchscript"]

INPUT, OUTPUT, BATCH = "input", "logits", "batch"
_OLDEST_OPSET = 11  # before it, operators lack what current models use
_EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
_LARGEST_FILE = 2**31 - 2**24  # protobuf's limit of 2 GiB, less room for the graph
_TRIAL_BATCHES = (1, 3)
_TRIAL_TOLERANCE = 1e-3  # relative: tells a wrong graph from rounding; precision is the gate's business


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The ONNX file.
        exporter: Which exporter wrote it.
        opset: The version of ONNX's operators that it uses.
        refused: Why the exporter tried before it was of no use; empty where the first one served.
    """

    path: Path
    exporter: Exporter
    opset: int
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parity:
    """How an ONNX file's logits differ from the module's.

    Attributes:
        max_abs_error: Largest absolute difference of two logits.
        top1_agreement: Share of equal top-1 predictions, 0 to 1.
        images: How many were compared.
        widest_flip: Over the predictions that differ, PyTorch's largest gap between its own choice and ONNX
            Runtime's, in logits; 0 where all agree.
    """

    max_abs_error: float
    top1_agreement: float
    images: int
    widest_flip: float = 0.0


def export_onnx(
    module: nn.Module, path: Path, *, input_shape: tuple[int, ...], opset: int = 18,
    metadata: Mapping[str, str] | None = None,
) -> Exported:  # fmt: skip
    """Write a module as ONNX: input ``input`` (batch, ...), output ``logits``, for any batch size.

    A copy is exported, in eval mode; the module stays as it is. Of a structured output only the prediction is
    kept. Weights lie inside the file, unless they pass 2 GiB: then in ``<file name>.data`` beside it.

    Args:
        module: Takes one float32 tensor.
        path: The file to write, whole or not at all.
        input_shape: Shape of one batch; its first entry is free in the file.
        opset: Version of ONNX's operators.
        metadata: Provenance, for the file's ``metadata_props``.

    Raises:
        ModelError: The module does not run on this shape, or no exporter gives a file that works.
        PlanError: The place cannot be written to, or there is no such opset.
    """
    check_opset(opset)
    source = _deployable(module, input_shape)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            exporter, refused = _draft(source, draft, input_shape, opset, metadata or {})
            _publish(draft, path)
    except OSError as cause:
        raise PlanError(
            f"cannot write: {cause.strerror or cause}",
            where=str(path),
            hint="choose another place, or free some space",
        ) from cause
    return Exported(path, exporter, opset, refused)


def parity(module: nn.Module, path: Path, batches: Batches) -> Parity:
    """Compare an ONNX file with the module that it came from, both in float32 on the CPU.

    A copy of the module is compared, so that an accelerator's reduced precision is not taken for an error of
    the file.

    Args:
        module: The module; its mode and device do not matter and do not change.
        path: The ONNX file.
        batches: Images (N, ...), and labels, which are not read.

    Raises:
        ModelError: The file cannot be loaded or run.
        DataError: There are no images.
    """
    reference, session = _copy(module), open_session(path)
    worst, widest, agreeing, predictions, images = 0.0, 0.0, 0, 0, 0
    with evaluating(reference):
        for image, _ in batches:
            # first ONNX Runtime: a module may write into its input
            theirs = _run(session, image.cpu().float(), where=str(path))
            ours = prediction(reference(image.cpu().float()))
            flips = ours.amax(1) - ours.gather(1, theirs.argmax(1, keepdim=True)).squeeze(1)
            same = ours.argmax(1) == theirs.argmax(1)
            # np.maximum, unlike max, keeps a NaN, which the gate must see
            worst = float(np.maximum(worst, (ours - theirs).abs().max().item()))
            widest = float(np.maximum(widest, flips.masked_fill(same, 0).max().item()))
            agreeing, predictions, images = (
                agreeing + int(same.sum()),
                predictions + same.numel(),
                images + len(image),
            )
    if not images:
        raise DataError("there are no images to compare the exported model on", where=str(path))
    return Parity(worst, agreeing / predictions, images, widest)


def export_checked(
    module: nn.Module, path: Path, batches: Batches, *, input_shape: tuple[int, ...], opset: int = 18,
    tolerance: float = 1e-4, metadata: Mapping[str, str] | None = None,
) -> tuple[Exported, Parity]:  # fmt: skip
    """Write a module as ONNX only if the file passes the gate; an earlier file stays where it does not.

    Args:
        module: See :func:`export_onnx`.
        path: The file to write.
        batches: Images to compare on, see :func:`parity`.
        input_shape: Shape of one batch.
        opset: Version of ONNX's operators.
        tolerance: Largest absolute difference of two logits.
        metadata: Provenance.

    Raises:
        ParityError: The file would not be the model; nothing was written.
        ModelError, PlanError: As for :func:`export_onnx`.
    """
    _check_folder(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        written = export_onnx(module, draft, input_shape=input_shape, opset=opset, metadata=metadata)
        measured = parity(module, draft, batches)
        gate(measured, tolerance)
        _publish(draft, path)
    return replace(written, path=path), measured


def gate(measured: Parity, tolerance: float = 1e-4) -> None:
    """Let a file pass, or not. The conditions are in the module docstring.

    Raises:
        ParityError: The file is not the model.
    """
    if not measured.max_abs_error <= tolerance:  # so written, a NaN fails
        what = f"the logits differ by up to {measured.max_abs_error:.3g}; allowed is {tolerance:.3g}"
    elif not measured.widest_flip <= tolerance:
        what = (
            f"top-1 agrees on {measured.top1_agreement:.4%} only, and not for ties: a prediction flipped "
            f"over a gap of {measured.widest_flip:.3g}; allowed is {tolerance:.3g}"
        )
    else:
        return
    raise ParityError(
        f"the ONNX model is not the trained one: {what}",
        where=f"{measured.images} images compared",
        hint="export the weights that were evaluated; if it was those, the exporter errs: try another opset",
    )


def _publish(draft: Path, path: Path) -> None:
    """Move a finished file, and its weights if they lie beside it, to their place: the weights first."""
    for file in sorted(draft.parent.glob(f"{draft.name}*"), reverse=True):
        file.chmod(0o644)
        file.replace(path.parent / file.name)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        hint = "make it, or give another place"
        raise PlanError("cannot write: the folder does not exist", where=str(path), hint=hint)


class _Prediction(nn.Module):
    """A model with a structured output, reduced to its prediction."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return prediction(self.model(image))


def check_opset(opset: int) -> None:
    """Refuse an opset that neither exporter writes.

    Raises:
        PlanError: It is one.
    """
    import onnx  # noqa: PLC0415 - slow

    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise PlanError(
            f"opset {opset} cannot be written",
            where="opset",
            hint=f"use one from {_OLDEST_OPSET} to {newest}; 18 is usual",
        )


def _copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to("cpu", torch.float32).eval().requires_grad_(requires_grad=False)


def _noise(batch: int, input_shape: tuple[int, ...]) -> Tensor:
    return torch.randn(batch, *input_shape[1:], generator=torch.Generator().manual_seed(batch))


def _deployable(module: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    source = _copy(module)
    for batch in _TRIAL_BATCHES:
        try:
            with torch.no_grad():
                output = source(_noise(batch, input_shape))
        except Exception as cause:  # whatever the model's own code raises
            raise ModelError(
                f"the model does not run on an input of shape {(batch, *input_shape[1:])}: {_reason(cause)}",
                where=type(module).__name__,
                hint="give the shape that the model was made for; exported models must take any batch size",
            ) from cause
    return source if isinstance(output, Tensor) else _Prediction(source)


def _draft(
    source: nn.Module, draft: Path, input_shape: tuple[int, ...], opset: int, metadata: Mapping[str, str]
) -> tuple[Exporter, tuple[str, ...]]:
    """Write the first exporter's file that works; also say why those before it did not."""
    refused: list[str] = []
    for exporter in _EXPORTERS:
        try:
            proto = _export(source, _noise(2, input_shape), opset, exporter)
            _save(proto, draft, metadata, external=_bytes(source) > _LARGEST_FILE)
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


def _export(source: nn.Module, example: Tensor, opset: int, exporter: Exporter) -> "ModelProto":
    import onnx  # noqa: PLC0415 - slow

    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "opset_version": opset}
    try:
        with _quiet():
            if exporter == "dynamo":
                shapes = ({0: torch.export.Dim(BATCH)},)
                program = torch.onnx.export(source, (example,), dynamic_shapes=shapes, verbose=False, **names)
                proto = cast("torch.onnx.ONNXProgram", program).model_proto
            else:
                file, axes = io.BytesIO(), {INPUT: {0: BATCH}, OUTPUT: {0: BATCH}}
                torch.onnx.export(source, (example,), cast("Any", file), dynamo=False, dynamic_axes=axes, **names)
                proto = onnx.load_model_from_string(file.getvalue())
    except Exception as cause:  # exporters raise whatever the model's code and their own parts raise
        raise ModelError(_reason(cause)) from cause
    found = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if found != opset:
        raise ModelError(f"it wrote opset {found} where {opset} was asked for")
    return proto


def _save(proto: "ModelProto", draft: Path, metadata: Mapping[str, str], *, external: bool) -> None:
    import onnx  # noqa: PLC0415 - slow

    _strip(proto.graph)
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    onnx.save_model(proto, draft, save_as_external_data=external, location=f"{draft.name}.data")


def _strip(graph: "GraphProto") -> None:
    """Drop what exporters note down about the machine: stack traces with its paths."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)
            for inner in attribute.graphs:
                _strip(inner)


def _try_out(source: nn.Module, draft: Path, input_shape: tuple[int, ...]) -> None:
    """Raise ModelError unless the file is valid and follows the module at several batch sizes."""
    import onnx  # noqa: PLC0415 - slow

    try:
        onnx.checker.check_model(draft, full_check=True)
    except Exception as cause:  # the checker and shape inference have errors of their own, without a common base
        raise ModelError(f"its file is not valid ONNX: {_reason(cause)}") from cause
    session = open_session(draft)
    for batch in _TRIAL_BATCHES:
        image = _noise(batch, input_shape)
        theirs = _run(session, image, where=str(draft))  # before the module, which may write into its input
        with torch.no_grad():
            ours = source(image)
        if ours.shape != theirs.shape:
            raise ModelError(f"its file gives shape {tuple(theirs.shape)} for {batch} images, not {tuple(ours.shape)}")
        if (ours - theirs).abs().max() > _TRIAL_TOLERANCE * max(1.0, float(ours.abs().max())):
            raise ModelError(f"its file computes something else, seen on a batch of {batch}")


def _run(session: "InferenceSession", image: Tensor, *, where: str) -> Tensor:
    try:
        output = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    except Exception as cause:  # ONNX Runtime's errors share no base class
        raise ModelError(
            f"its file does not run on an input of shape {tuple(image.shape)}: {_reason(cause)}", where=where
        ) from cause
    return torch.from_numpy(np.asarray(output))


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _reason(cause: BaseException) -> str:
    """The innermost cause in one line: exporters wrap it in pages of advice."""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress lines, warnings and logging."""
    before, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

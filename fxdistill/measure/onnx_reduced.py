"""An ONNX file in less precision, made of a float32 one.

    int8    weights w ≈ s_c q, q in -127 … 127, with a scale for each output channel c; what operators hand on
            x ≈ s (q - z), q in 0 … 255, with a scale and a zero point for each tensor, from what it is on calibration
            images; written as QDQ: float operators between pairs that quantize and dequantize
    fp16    all weights and operators in float16, input and outputs in float32

BatchNorm is folded into the convolution before it and constants are computed first. Both are ONNX Runtime's own tools.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

from fxdistill.errors import ModelError
from fxdistill.ir.running import quiet
from fxdistill.measure.gate import reason
from fxdistill.measure.latency import open_session

Precision = Literal["int8", "fp16"]
Calibration = Literal["minmax", "entropy", "percentile"]
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


@dataclass
class _Images(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """Calibration images as ONNX Runtime asks for them: batch after batch, each taken in before the next one.

    Otherwise it would hold what all tensors are on all images, and join batches as if they were of one size.
    """

    name: str
    batches: Iterator[Tensor]
    count: int
    due: int = 0

    def __len__(self) -> int:
        """The number of batches."""
        return self.count

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give so many batches more."""
        self.due = end_index - start_index

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next batch by the name of the input; None after the last one that is due."""
        if not self.due:
            return None
        self.due -= 1
        return {self.name: next(self.batches).numpy()}


def int8(
    path: Path, draft: Path, images: Iterable[Tensor], *, count: int, calibration: Calibration = "minmax"
) -> None:  # fmt: skip
    """Write a file in INT8.

    Args:
        path: The float32 file, with its weights inside.
        draft: The file to write.
        images: Batches of images (N, ...) as the file takes them; nothing is learnt, but the ranges.
        count: The number of batches.
        calibration: How ranges follow from what tensors are on these images: their least and largest values; those that
            lose the least information (entropy); the 99.999th percentile.

    Raises:
        ModelError: The file cannot be quantized.
    """
    with _said(path), tempfile.TemporaryDirectory(dir=draft.parent) as folder:
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(str(path), str(folded), skip_symbolic_shape=True)
        given = _Images(open_session(path).get_inputs()[0].name, iter(images), count)
        quantize_static(
            str(folded), str(draft), given, quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=_METHODS[calibration],
            extra_options={"CalibStridedMinMax": 1},
        )  # fmt: skip
    _noted(path, draft, "int8")


def fp16(path: Path, draft: Path) -> None:
    """Write a file in FP16.

    Args:
        path: The float32 file, with its weights inside.
        draft: The file to write.

    Raises:
        ModelError: The file cannot be converted.
    """
    with _said(path):
        made = convert_float_to_float16(onnx.load_model(path), keep_io_types=True)
        # a value that several operators read in float32, as resizings share their factors, is cast once for each of
        # them, under one name
        nodes: dict[tuple[str, ...], onnx.NodeProto] = {}
        for node in made.graph.node:
            nodes.setdefault(tuple(node.output), node)
        del made.graph.node[:]
        made.graph.node.extend(nodes.values())
        onnx.save_model(made, draft)
    _noted(path, draft, "fp16")


def _noted(path: Path, draft: Path, precision: Precision) -> None:
    """Give a file what the one that it comes from says of itself, and its precision."""
    made, said = onnx.load_model(draft), onnx.load_model(path, load_external_data=False)
    found = {entry.key: entry.value for entry in said.metadata_props}
    onnx.helper.set_model_props(made, dict(sorted({**found, "fxdistill.precision": precision}.items())))
    onnx.save_model(made, draft)


def check_float(path: Path) -> None:
    """Refuse a file in INT8, of which the tools would make a broken one.

    Raises:
        ModelError: It is one.
    """
    if any(node.op_type == "DequantizeLinear" for node in onnx.load_model(path, load_external_data=False).graph.node):
        raise ModelError("the file is in INT8 already", where=str(path), hint="give the float file that it was made of")


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """Quiet tools, whose failures are errors of ours."""
    try:
        with quiet():
            yield
    except Exception as cause:  # the tools raise whatever their parts raise
        raise ModelError(
            f"it cannot be written in less precision: {reason(cause)}", where=str(path), hint="keep the float file"
        ) from cause

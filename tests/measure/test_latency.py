"""Latencies: side by side, and clear about what cannot be measured."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fxdistill.errors import InputError, ModelError
from fxdistill.measure import latency as latency_of


def linear_onnx(path: Path, *, size: int = 8, batch: int | str = "batch", kind: type = np.float32) -> Path:
    """``logits = input @ W`` for any batch."""
    weight = onnx.numpy_helper.from_array(np.eye(size, dtype=kind), "weight")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["input", "weight"], ["logits"])], "linear",
        [onnx.helper.make_tensor_value_info("input", weight.data_type, [batch, size])],
        [onnx.helper.make_tensor_value_info("logits", weight.data_type, [batch, size])], [weight],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(model, path)
    return path


def test_latencies_are_measured_side_by_side(tmp_path: Path) -> None:
    paths = {"small": linear_onnx(tmp_path / "small.onnx"), "large": linear_onnx(tmp_path / "large.onnx")}
    found = latency_of.interleaved_latency(paths, {"small": (2, 8), "large": (3, 8)}, repeats=20, warmup=2)
    assert list(found) == ["small", "large"]
    for latency in found.values():
        assert 0 < latency.p10 <= latency.median_ms <= latency.p90 < 1000
        assert latency.provider == "CPUExecutionProvider"


def test_more_work_takes_longer(tmp_path: Path) -> None:
    paths = {"small": linear_onnx(tmp_path / "s.onnx", size=512), "same": linear_onnx(tmp_path / "t.onnx", size=512)}
    found = latency_of.interleaved_latency({"small": paths["small"]}, {"small": (1, 512)}, repeats=10)
    wide = latency_of.interleaved_latency({"same": paths["same"]}, {"same": (256, 512)}, repeats=10)
    assert wide["same"].median_ms > found["small"].median_ms


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"provider": "NoSuchProvider"}, InputError, "no working NoSuchProvider(.|\n)*CPUExecutionProvider"),
        ({"repeats": 0}, InputError, "at least one timed run"),
        ({"input_shape": (1, 9)}, ModelError, "does not run on an input of shape"),
        ({"path": Path("missing.onnx")}, ModelError, "cannot load the model"),
    ],
)
def test_latency_errors(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    call = {"path": linear_onnx(tmp_path / "x.onnx"), "input_shape": (1, 8), **change}
    path, shape = call.pop("path"), call.pop("input_shape")
    with pytest.raises(error, match=message):
        latency_of.interleaved_latency({"model": path}, {"model": shape}, **call)
    assert capfd.readouterr() == ("", "")


def test_what_a_provider_lacks_is_part_of_the_error_and_nothing_is_printed_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime prints it from C++, and falls back to the CPU."""
    session = onnxruntime.InferenceSession

    def falls_back(path: Path, options: onnxruntime.SessionOptions, providers: list[str]) -> object:
        os.write(2, b"[E:onnxruntime] Failed to load library a.so with error: libx.so: cannot open\n")
        return session(path, options, providers=providers[1:])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(InputError, match=r"no working CUDAExecutionProvider here: libx.so: cannot open\n"):
        latency_of.open_session(linear_onnx(tmp_path / "x.onnx"), provider="CUDAExecutionProvider")
    os.write(2, b"as before")
    assert capfd.readouterr() == ("", "as before")


def test_a_file_gets_a_batch_in_its_own_type(tmp_path: Path) -> None:
    images = np.linspace(0, 1, 16, dtype=np.float32).reshape(2, 8)
    for kind in (np.float16, np.float64):
        path = linear_onnx(tmp_path / "x.onnx", kind=kind)
        (found,) = latency_of.run(latency_of.open_session(path), images, where="x")
        assert found.dtype == kind
        assert np.array_equal(found, images.astype(kind))
        assert latency_of.interleaved_latency({"": path}, {"": (2, 8)}, repeats=1)[""].median_ms > 0


def test_a_file_of_one_shape_says_which(tmp_path: Path) -> None:
    fixed, free = (linear_onnx(tmp_path / f"{batch}.onnx", batch=batch) for batch in (3, "batch"))
    for path, shape, hint in ((fixed, (2, 8), "it takes 3x8 alone"), (free, (2, 7), "it takes batchx8 alone")):
        with pytest.raises(ModelError, match="does not run on an input of shape") as caught:
            latency_of.interleaved_latency({"": path}, {"": shape}, repeats=1)
        assert hint in caught.value.hint


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"<html>")
    with pytest.raises(ModelError, match="cannot load the model"):
        latency_of.open_session(tmp_path / "x.onnx")

"""Measures of models: accuracy, sizes and latencies."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fxdistill.errors import DataError, InputError, ModelError
from fxdistill.measure import evaluate


def linear_onnx(path: Path, *, size: int = 8) -> Path:
    """``logits = input @ W`` for any batch."""
    weight = onnx.numpy_helper.from_array(np.eye(size, dtype=np.float32), "weight")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["input", "weight"], ["logits"])], "linear",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", size])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", size])], [weight],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(model, path)
    return path


class Mode(nn.Module):
    """Right in eval mode, wrong in training mode; a structured output if asked for."""

    def __init__(self, *, structured: bool = False) -> None:
        super().__init__()
        self.norm, self.frozen, self.structured = nn.BatchNorm1d(4), nn.Dropout().eval(), structured

    def forward(self, x: Tensor) -> object:
        assert torch.is_inference_mode_enabled()
        logits = -x if self.training else self.norm(self.frozen(x))
        return {"aux": -x, "out": logits} if self.structured else logits


@pytest.mark.parametrize("structured", [False, True])
def test_accuracy_in_eval_mode_with_modes_restored(structured: bool) -> None:
    module = Mode(structured=structured).train()
    module.frozen.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    batches = [(torch.eye(4), torch.tensor([0, 1, 2, 2])), (torch.eye(4)[:1], torch.tensor([0]))]
    assert evaluate.accuracy(module, batches) == pytest.approx(4 / 5)
    assert (module.training, module.norm.training, module.frozen.training) == (True, True, False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_modes_are_restored_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError, match="shape"):
        evaluate.accuracy(module, [(torch.zeros(1, 3), torch.zeros(1))])
    assert module.training
    assert module[0].training


def test_accuracy_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate.accuracy(nn.Identity(), [])


def test_prediction_of_structured_outputs() -> None:
    tensor = torch.zeros(1)
    for output in (
        tensor,
        (tensor, None),
        [(tensor,)],
        {"out": tensor, "aux": None},
        {"x": 1, "logits": tensor},
        {"y": (tensor,)},
    ):
        assert evaluate.prediction(output) is tensor
    with pytest.raises(ModelError, match="no tensor"):
        evaluate.prediction({})


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 4)
    assert evaluate.parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 16


def test_latencies_are_measured_side_by_side(tmp_path: Path) -> None:
    paths = {"small": linear_onnx(tmp_path / "small.onnx"), "large": linear_onnx(tmp_path / "large.onnx")}
    found = evaluate.interleaved_latency(paths, (2, 8), repeats=20, warmup=2)
    assert list(found) == ["small", "large"]
    for latency in found.values():
        assert 0 < latency.p10 <= latency.median_ms <= latency.p90 < 1000
        assert latency.provider == "CPUExecutionProvider"
    assert evaluate.onnx_latency(paths["small"], (1, 8), repeats=3).median_ms > 0


def test_more_work_takes_longer(tmp_path: Path) -> None:
    paths = {
        "small": linear_onnx(tmp_path / "s.onnx", size=512),
        "same": linear_onnx(tmp_path / "t.onnx", size=512),
    }
    found = evaluate.interleaved_latency({"small": paths["small"]}, (1, 512), repeats=10)
    wide = evaluate.interleaved_latency({"same": paths["same"]}, (256, 512), repeats=10)
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
    tmp_path: Path,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    call = {"path": linear_onnx(tmp_path / "x.onnx"), "input_shape": (1, 8), **change}
    with pytest.raises(error, match=message):
        evaluate.onnx_latency(**call)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"<html>")
    with pytest.raises(ModelError, match="cannot load the model"):
        evaluate.open_session(tmp_path / "x.onnx")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_accuracy_moves_batches_to_the_module() -> None:
    assert evaluate.accuracy(nn.BatchNorm1d(4).cuda(), [(torch.eye(4), torch.arange(4))]) == 1.0

"""A model of several outputs: all of them are written, named, and compared; which of them is the prediction is said."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill.errors import ModelError, ParityError
from fxdistill.measure import gate, onnx_file, onnx_optimized
from fxdistill.measure.latency import open_session
from fxdistill.measure.parity import Parity
from fxdistill.runtime.deployment import finding
from fxdistill.tasks import TASKS

SHAPE = (1, 3, 8, 8)
TASK = TASKS.get("classification")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


class Detector(nn.Module):
    """Boxes of pixels, scores, and what each kind of structure makes of them."""

    def __init__(self, kind: str = "tuple") -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 6, 3)
        self.anchors = nn.Buffer(torch.arange(12.0).reshape(6, 2))

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x).flatten(2)
        boxes, scores = 640 * y[:, :4], y[:, 4:].softmax(1).mean(2)
        if self.kind == "mapping":
            return {"boxes": boxes, "scores": scores, "size": 8, "aux": None}
        if self.kind == "nested":
            return {"out": scores, "logits": boxes, "input": [boxes + 1, {"best": scores.argmax(1)}]}
        if self.kind == "anchors":
            return boxes, scores, self.anchors
        if self.kind == "an image each":
            return [{"boxes": one} for one in boxes]
        return boxes, scores


def detector(kind: str) -> Detector:
    torch.manual_seed(0)
    return Detector(kind)


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, *SHAPE[1:], generator=generator) for n in (2, 5)]


NAMES = {
    "tuple": ["output_0", "output_1"], "mapping": ["boxes", "scores"],
    "nested": ["out", "logits", "input_0", "input_1_best"], "anchors": ["output_0", "output_1", "output_2"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "exporter"), [(kind, "torchscript") for kind in NAMES] + [("nested", "dynamo"), ("anchors", "dynamo")]
)
def test_every_output_is_written_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exporter: str
) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", (exporter,))
    module, path = detector(kind), tmp_path / "x.onnx"
    made, parity = onnx_file.export_checked(module, path, images(), task=TASK, input_shape=SHAPE, prediction_name="")
    session = open_session(path)
    assert [output.name for output in session.get_outputs()] == list(made.outputs) == NAMES[kind]
    assert made.left_out == (("size",) if kind == "mapping" else ())
    found = gate.answers(session, images()[1], where="")
    with torch.no_grad():
        output = module(images()[1])
    values = list(output.values()) if isinstance(output, dict) else list(output)
    assert found[NAMES[kind][0]].numpy() == pytest.approx(values[0].numpy(), abs=1e-3)
    assert found[NAMES[kind][1]].numpy() == pytest.approx(values[1].numpy(), abs=1e-3)
    # only a name tells which output is the prediction: of the others agreement would say nothing
    assert (parity.agreement is None) == (kind != "nested")
    assert set(parity.others) == set(NAMES[kind]) - ({"out"} if kind == "nested" else set())
    assert ("agreement" in str(parity)) == (kind == "nested")


def test_the_prediction_of_a_plan_is_called_logits_and_comes_first(tmp_path: Path) -> None:
    module, path = detector("nested"), tmp_path / "x.onnx"
    made, parity = onnx_file.export_checked(
        module, path, images(), task=TASK, input_shape=SHAPE, entry="input.0", tolerance=0.1
    )
    assert made.outputs == ("logits", "out", "logits_", "input_1_best")
    assert set(parity.others) == {"out", "logits_", "input_1_best"}
    assert [finding.find(path, input_shape=SHAPE, task=task).entry for task in (None, "retrieval")] == ["logits", ""]


def test_the_task_says_what_a_prediction_is_called(tmp_path: Path) -> None:
    module, task = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE[1:]), 4)).eval(), TASKS.get("retrieval")
    for name in (None, ""):  # a run's, and that of a model by itself
        made, _ = onnx_file.export_checked(
            module, tmp_path / "x.onnx", images(), task=task, input_shape=SHAPE, prediction_name=name
        )
        assert made.outputs == ("embedding",)
        assert onnx_optimized.optimize_checked(
            module, tmp_path / "x.onnx", images(), task=task, prediction_name=name
        ).parity


@pytest.mark.parametrize(
    ("only", "outputs", "left_out"),
    [(["scores"], ("scores",), ("boxes", "size")), (["scores", "boxes"], ("boxes", "scores"), ("size",))],
)
def test_only_the_outputs_that_are_asked_for(
    tmp_path: Path, only: list[str], outputs: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    module = detector("mapping")
    made = onnx_file.export_onnx(module, tmp_path / "x.onnx", input_shape=SHAPE, only=only, prediction_name="")
    assert (made.outputs, made.left_out) == (outputs, left_out)


def test_an_entry_names_an_output_as_its_name_does(tmp_path: Path) -> None:
    for asked in ("1", "output_1"):
        made = onnx_file.export_onnx(
            detector("tuple"), tmp_path / "x.onnx", input_shape=SHAPE, only=[asked], prediction_name=""
        )
        assert (made.outputs, made.left_out) == (("output_1",), ("0",))
    with pytest.raises(ModelError, match="has no output 'score'") as caught:
        onnx_file.export_onnx(detector("mapping"), tmp_path / "y.onnx", input_shape=SHAPE, only=["score"])
    assert "scores" in caught.value.hint
    assert not (tmp_path / "y.onnx").exists()


def test_an_output_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="1 values for one image and 3 for three"):
        onnx_file.export_onnx(detector("an image each"), tmp_path / "x.onnx", input_shape=SHAPE)


def test_the_gate_sees_an_error_in_any_output(tmp_path: Path) -> None:
    """Also in one that is not the prediction; in units of the output, for boxes count pixels."""

    class Off(Detector):
        def forward(self, x: Tensor) -> Any:
            boxes, scores = super().forward(x)
            return boxes * 1.01, scores

    module, path = detector("tuple"), tmp_path / "x.onnx"
    _, parity = onnx_file.export_checked(module, path, images(), task=TASK, input_shape=SHAPE, entry="1")
    with torch.no_grad():
        assert module(images()[1])[0].abs().max() > 100
    gate.gate(parity)
    other = Off()
    other.load_state_dict(module.state_dict())
    measured = gate.measure(other, path, images(), task=TASK, entry="1")
    assert measured.max_abs_error < 1e-4
    with pytest.raises(ParityError, match="the output 'output_0' differs by up to 0"):
        gate.gate(measured)


@pytest.mark.parametrize("error", [float("nan"), 1.0])
def test_an_output_that_is_not_a_number_does_not_pass(error: float) -> None:
    with pytest.raises(ParityError, match="'boxes'"):
        gate.gate(Parity(0.0, 1.0, 4, others={"scores": 0.0, "boxes": error}))

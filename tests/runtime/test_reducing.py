"""Files in less precision: what is in them, what they are calibrated on, and what their gate lets pass."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.errors import InputError, ModelError, ParityError
from fxdistill.measure import onnx_file, onnx_reduced
from fxdistill.measure.latency import open_session
from fxdistill.measure.onnx_model import OnnxModel
from fxdistill.measure.onnx_reduced import Calibration, Precision
from fxdistill.runtime.deployment import deploy, finding, reducing
from fxdistill.runtime.deployment.reducing import Reduced, Reducing
from fxdistill.tasks import NO_LABEL, TASKS
from fxdistill.tasks.regression import TASK as REGRESSION
from tests import runs

ANY = Reducing(tolerance=100, disagreement=100)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


def teacher(**options: Any) -> finding.Found:
    runs.plan_file()
    return finding.find(str(runs.workshop() / "teacher.pt"), data="digits", **options)


def made(folder: Path, precision: Precision, how: Reducing | None = None, *, embed: bool = False) -> Reduced:
    found = teacher()
    deploy.exported(found, folder / "t.onnx", embed=embed)
    return reducing.reduced(found, folder / "t.onnx", precision, how or Reducing())


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_int8_quantizes_folded_convolutions_channel_by_channel(tmp_path: Path, calibration: Calibration) -> None:
    found = made(tmp_path, "int8", Reducing(calibration=calibration, images=70))
    assert found.path == tmp_path / "t-int8.onnx"
    file = onnx.load(found.path)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in file.graph.initializer}
    kinds = [node.op_type for node in file.graph.node]
    assert "QuantizeLinear" in kinds
    assert "BatchNormalization" not in kinds
    writers = {out: node for node in file.graph.node for out in node.output}
    convolutions = [node for node in file.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        weight, scale, zero = (constants[name] for name in writers[node.input[1]].input)
        assert weight.dtype == zero.dtype == np.int8
        assert scale.shape == (weight.shape[0],)
        assert not zero.any()
        assert writers[node.input[0]].op_type == "DequantizeLinear"
    said = {entry.key: entry.value for entry in file.metadata_props}
    assert said["fxdistill.precision"] == "int8"
    assert "mean" in said["fxdistill.preprocessing"]


def test_fp16_halves_the_weights_and_keeps_what_goes_in_and_out(tmp_path: Path) -> None:
    found = made(tmp_path, "fp16")
    file = onnx.load(found.path)
    kinds = {one.data_type for one in file.graph.initializer if len(one.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    for value in (*file.graph.input, *file.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert found.bytes["fp16"] < found.bytes["float"]
    assert found.agreement is not None
    assert found.agreement > 0.99


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_what_is_said_is_what_the_files_reach(tmp_path: Path, precision: Precision, embed: bool) -> None:
    found = made(tmp_path, precision, embed=embed)
    for name, value in (("t", found.of_float), (f"t-{precision}", found.value)):
        assert value == deploy.evaluate(tmp_path / f"{name}.onnx", "digits")["accuracy"]
    sessions = [open_session(path) for path in (tmp_path / "t.onnx", found.path)]
    pixels = teacher().dataset
    assert pixels is not None
    shown = pixels.test.at(torch.arange(len(pixels.test)))
    batch = next(iter(reducing._given(teacher(), OnnxModel(tmp_path / "t.onnx"))(shown, 32)))
    ours, theirs = (session.run(None, {"input": batch.numpy()})[0].argmax(1) for session in sessions)
    assert (ours == theirs).mean() > 0.9
    assert found.images == len(shown)
    assert set(found.latency) == set(found.bytes) == {"float", precision}
    assert found.bytes == {
        name: path.stat().st_size for name, path in (("float", tmp_path / "t.onnx"), (precision, found.path))
    }


@pytest.mark.parametrize("task", ["retrieval", "features"])
def test_neighbours_are_sought_among_all_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    found, path = teacher(task=task), tmp_path / "t.onnx"
    deploy.exported(found, path)
    shares = []
    for size in (8, 200):
        monkeypatch.setattr(reducing, "_BATCH", size)
        shares.append(reducing.reduced(found, path, "int8", ANY).agreement)
    assert shares[0] is not None
    assert 0.5 < shares[0] < 1
    assert shares[0] == shares[1]


def test_the_gate_notices_ranges_that_are_not_those_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = onnx_reduced.int8

    def faint(path: Path, draft: Path, images: Iterator[Tensor], **how: Any) -> None:
        genuine(path, draft, (0.02 * batch for batch in images), **how)

    monkeypatch.setattr(onnx_reduced, "int8", faint)
    with pytest.raises(ParityError, match=r"points from the float file's .*--tolerance-accuracy"):
        made(tmp_path, "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.onnx"]
    with pytest.raises(ParityError, match=r"answers as the float file for .*--tolerance-agreement"):
        made(tmp_path, "int8", Reducing(tolerance=100))
    assert made(tmp_path, "int8", ANY).value < 0.9 * made(tmp_path, "fp16").value


@pytest.mark.parametrize(
    ("value", "of_float", "agreement", "task", "said"),
    [
        (0.6, 0.609, 1.0, "classification", ""), (0.7, 0.6, 1.0, "classification", ""),
        (0.6, 0.611, 1.0, "classification", "metric 60.00% is 1.1 points from the float file's 61.10%; allowed are 1"),
        (0.6, 0.6, 0.951, "classification", ""), (0.6, 0.6, 0.949, "classification", "for 94.90% of 100 test images"),
        (0.74, 0.75, 0.95, "classification", ""), (0.6, 0.6, None, "classification", ""),
        (0.5, 0.6, None, "classification", "is 10 points from"), (30.2, 30.0, 1.0, "regression", ""),
        (69_400.0, 68_000.0, 1.0, "regression", "metric 69,400 is 2.06 % from the float file's 68,000; allowed are 1"),
        (float("nan"), 0.6, 1.0, "classification", "nan points"), (0.6, 0.6, float("nan"), "classification", "nan%"),
    ],
)  # fmt: skip
def test_what_a_file_may_lose(value: float, of_float: float, agreement: float | None, task: str, said: str) -> None:
    found = Reduced(Path("m.onnx"), "int8", "metric", value, of_float, agreement, 100, {}, {})
    lost = reducing.loses(found, Reducing(), TASKS.get(task))
    assert said in lost
    assert bool(said) == bool(lost)


def test_it_is_calibrated_on_training_images_evenly_spaced() -> None:
    found = teacher()
    assert found.dataset is not None
    images = reducing.ready(found, Path("t.onnx"), ["int8"], Reducing(images=3))
    assert images is not None
    last = len(found.dataset.train) - 1
    expected = found.dataset.train.at(torch.tensor([0, round(last / 2), last]))
    for one, other in zip(images.read([torch.arange(3)]), expected.read([torch.arange(3)]), strict=True):
        assert torch.equal(one, other)
    assert reducing.ready(found, Path("t.onnx"), ["fp16"], Reducing()) is None


@pytest.mark.parametrize("calibration", ["minmax", "entropy"])
def test_few_images_are_enough_for_a_file_that_takes_any_number(tmp_path: Path, calibration: Calibration) -> None:
    assert made(tmp_path, "int8", replace(ANY, images=3, calibration=calibration)).path.exists()


def test_what_is_missing_is_known_before_anything_is_written(tmp_path: Path) -> None:
    runs.plan_file()
    blank = finding.find(str(runs.workshop() / "teacher.pt"))
    with pytest.raises(InputError, match="there are none"):
        reducing.ready(blank, tmp_path / "t.onnx", ["fp16"], Reducing())
    found = teacher()
    assert found.dataset is not None
    one = replace(found, dataset=replace(found.dataset, test=found.dataset.train))
    with pytest.raises(InputError, match="one split"):
        reducing.ready(one, tmp_path / "t.onnx", ["fp16", "int8"], Reducing())
    nobody = found.dataset.each(lambda split: split.relabelled(torch.full_like(split.labels, NO_LABEL)))
    numbers = replace(found, task=REGRESSION, dataset=nobody)
    with pytest.raises(InputError, match="no test image has one"):
        reducing.ready(numbers, tmp_path / "t.onnx", ["fp16"], Reducing())
    file = runs.workshop() / "teacher.pt"
    result = CliRunner().invoke(app, ["export", str(file), "-o", str(tmp_path / "t.onnx"), "--int8"])
    assert result.exit_code == 2
    assert "give --data" in result.output
    wrong = ["export", str(file), "-o", str(tmp_path / "t.onnx"), "--data", "digits", "--calibrate", "digits"]
    result = CliRunner().invoke(app, wrong)
    assert result.exit_code == 2
    assert "add --int8" in result.output
    given = ["export", str(file), "-o", str(tmp_path / "t.onnx"), "--data", "digits"]
    for words, hint in (
        (["--fp16", "--calibration", "entropy"], "add --int8,"), (["--calibration-images", "8"], "add --int8,"),
        (["--tolerance-accuracy", "3"], "add --int8 or --fp16"), (["--tolerance-agreement", "3"], "add --int8 or"),
        (["--fp16", "--tolerance-agreement", "101"], "less than or equal to 100"),
    ):  # fmt: skip
        result = CliRunner().invoke(app, [*given, *words])
        assert (result.exit_code, hint in result.output) == (2, True), (words, result.output)
    assert not list(tmp_path.glob("*.onnx"))
    (tmp_path / "t-int8.onnx").mkdir()
    result = CliRunner().invoke(app, [*given, "--fp16", "--int8"])
    assert (result.exit_code, "is a folder" in result.output) == (2, True), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["t-int8.onnx"]


def test_several_targets_of_one_call(tmp_path: Path) -> None:
    file, target = runs.workshop() / "teacher.pt", tmp_path / "t.onnx"
    words = ["export", str(file), "-o", str(target), "--data", "digits", "--int8", "--fp16", "--calibrate", "digits"]
    result = CliRunner().invoke(app, [*words, "--calibration-images", "32"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t-fp16.onnx", "t-int8.onnx", "t.onnx"]
    lines = [line for line in result.output.splitlines() if line.startswith("wrote")]
    assert [line.partition(": ")[0] for line in lines] == [
        f"wrote {tmp_path / name}" for name in ("t.onnx", "t-int8.onnx", "t-fp16.onnx")
    ]
    assert all(word in lines[1] for word in ("accuracy", "(float ", "top-1 agreement", " ms ", " MB "))


class Nested(nn.Module):
    """Says twice what another one says, the second time the other way round."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        said = self.inner(images)
        return {"heads": [-said, said]}


def test_a_prediction_that_lies_deeper_is_measured_in_the_files(tmp_path: Path) -> None:
    for place, expected in (("heads.1", True), ("heads.0", False)):
        found = finding.find(Nested(teacher().module), data="digits", entry=place)
        deploy.exported(found, tmp_path / "t.onnx")
        made = reducing.reduced(found, tmp_path / "t.onnx", "fp16", ANY)
        assert (made.of_float > 0.5, made.value > 0.5) == (expected, expected)


def test_a_target_that_fails_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, target = runs.workshop() / "teacher.pt", tmp_path / "t.onnx"
    words = ["export", str(file), "-o", str(target), "--data", "digits", "--int8", "--fp16"]
    genuine = onnx_reduced.int8

    def faint(path: Path, draft: Path, images: Iterator[Tensor], **how: Any) -> None:
        genuine(path, draft, (0.02 * batch for batch in images), **how)

    monkeypatch.setattr(onnx_reduced, "int8", faint)
    (tmp_path / "t-int8.onnx").write_bytes(b"of before")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: in int8 the file loses too much")
    assert result.stderr.rstrip().endswith("the t-int8.onnx that is there is an earlier one")
    assert (tmp_path / "t-int8.onnx").read_bytes() == b"of before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t-fp16.onnx", "t-int8.onnx", "t.onnx"]
    assert f"wrote {tmp_path / 't-fp16.onnx'}: accuracy" in result.stdout

    def broken(path: Path, draft: Path) -> None:
        raise ModelError("it cannot be written in less precision", where=str(path))

    monkeypatch.setattr(onnx_reduced, "fp16", broken)
    monkeypatch.setattr(onnx_reduced, "int8", genuine)
    result = CliRunner().invoke(app, [*words, "--tolerance-agreement", "100", "--tolerance-accuracy", "100"])
    assert (result.exit_code, result.stderr.count("error: ")) == (2, 1)
    assert (tmp_path / "t-int8.onnx").is_file()


def test_a_tool_that_fails_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(b"no file")
    with pytest.raises(ModelError, match="less precision"):
        onnx_reduced.fp16(tmp_path / "t.onnx", tmp_path / "out.onnx")


def test_fp16_casts_what_two_operators_read_in_float32_once(tmp_path: Path) -> None:
    factors = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice")
    nodes = [onnx.helper.make_node("Resize", [a, "", "twice"], [b]) for a, b in (("input", "mid"), ("mid", "out"))]
    told = onnx.helper.make_tensor_value_info("twice", 1, [4])  # torch's exporter writes this
    shapes = {"input": [1, 1, 2, 2], "out": [1, 1, 8, 8]}
    ends = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    graph = onnx.helper.make_graph(nodes, "two", ends[:1], ends[1:], [factors], value_info=[told])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(model, tmp_path / "t.onnx")
    onnx_reduced.fp16(tmp_path / "t.onnx", tmp_path / "out.onnx")
    (found,) = open_session(tmp_path / "out.onnx").run(None, {"input": np.ones((1, 1, 2, 2), np.float32)})
    assert found.tolist() == np.ones((1, 1, 8, 8)).tolist()


class Twins(nn.Module):
    """Two convolutions that read one map, each before a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.one, self.two, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        both = torch.relu(self.one(self.left(x))) + torch.relu(self.two(self.right(x)))
        logits: Tensor = self.head(both.mean((2, 3)))
        return logits


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_folded_convolutions_that_share_their_input_keep_weights_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: str
) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", (exporter,))
    torch.manual_seed(0)
    model = Twins().eval()
    for norm in (model.one, model.two):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    found = finding.find(model, data="digits")
    deploy.exported(found, tmp_path / "t.onnx")
    made = reducing.reduced(found, tmp_path / "t.onnx", "int8", ANY)
    file = onnx.load(made.path)
    weights = [node.input[1] for node in file.graph.node if node.op_type == "Conv"]
    names = [one.name for one in file.graph.initializer]
    assert len(set(weights)) == 2
    assert len(set(names)) == len(names)
    assert made.agreement is not None
    assert made.agreement > 0.9

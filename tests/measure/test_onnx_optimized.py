"""Simpler graphs: what they compute, that folded convolutions keep their weights, that a wrong one is not kept."""

from pathlib import Path

import numpy as np
import onnx
import onnxscript
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.measure import onnx_file, onnx_optimized
from fxdistill.measure.latency import open_session
from fxdistill.measure.onnx_optimized import optimize_checked, rewritten
from fxdistill.runtime.deployment import deploy
from fxdistill.tasks import TASKS
from tests import runs
from tests.runtime.test_reducing import Twins

TASK = TASKS.get("classification")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


def branching(count: int) -> onnx.ModelProto:
    """Convolutions that read one map, each before a BatchNorm of its own, as no exporter has folded them yet."""
    chance = np.random.default_rng(0)
    nodes, constants = [], []

    def constant(name: str, *shape: int) -> str:
        values = chance.uniform(0.5, 1.5, shape).astype(np.float32)
        constants.append(numpy_helper.from_array(values, name))
        return name

    for branch in range(count):
        weight = constant(f"w{branch}", 4, 3, 3, 3)
        nodes.append(helper.make_node("Conv", ["input", weight], [f"c{branch}"], pads=[1] * 4, name=f"conv{branch}"))
        statistics = [constant(f"{part}{branch}", 4) for part in ("scale", "bias", "mean", "var")]
        inputs = [f"c{branch}", *statistics]
        nodes.append(helper.make_node("BatchNormalization", inputs, [f"b{branch}"], name=f"norm{branch}"))
    nodes.append(helper.make_node("Sum", [f"b{branch}" for branch in range(count)], ["logits"], name="sum"))
    shape: list[str | int | None] = ["batch", 3, 8, 8]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 8, 8])], constants,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, {"fxdistill.task": "classification"})
    return made


@pytest.mark.parametrize("count", [2, 3])
def test_convolutions_that_share_an_input_are_folded_under_names_of_their_own(tmp_path: Path, count: int) -> None:
    before = branching(count)
    made = rewritten(before)
    assert [node.op_type for node in made.graph.node].count("Conv") == count
    assert "BatchNormalization" not in {node.op_type for node in made.graph.node}
    convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
    for names in (
        [node.name for node in made.graph.node],
        [one.name for one in made.graph.initializer],
        [name for node in convolutions for name in node.input[1:]],
        [out for node in made.graph.node for out in node.output],
    ):
        assert len(names) == len(set(names)), names
    assert {entry.key: entry.value for entry in made.metadata_props} == {"fxdistill.task": "classification"}
    images = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    answers = []
    for name, model in (("before", before), ("after", made)):
        onnx.save_model(model, tmp_path / f"{name}.onnx")
        answers.append(open_session(tmp_path / f"{name}.onnx").run(None, {"input": images})[0])
    assert np.allclose(answers[0], answers[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_files_that_are_exported_keep_distinct_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: str
) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", (exporter,))
    path, model = tmp_path / "m.onnx", Twins().eval()
    onnx_file.export_onnx(model, path, input_shape=(1, 1, 8, 8), metadata={"a": "b"})
    found = optimize_checked(model, path, [torch.randn(4, 1, 8, 8)], task=TASK)
    assert found.why == ""
    assert found.nodes[1] <= found.nodes[0]
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node].count("Conv") == 2
    for names in ([node.name for node in graph.node], [one.name for one in graph.initializer]):
        assert len(names) == len(set(names)) > 3
    assert len(graph.node) == found.nodes[1]
    assert {entry.key: entry.value for entry in onnx.load(path).metadata_props} == {"a": "b"}
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tmp_path / "m.onnx", Twins().eval()
    onnx_file.export_onnx(model, path, input_shape=(1, 1, 8, 8))
    before, genuine = path.read_bytes(), onnx_optimized.rewritten
    images = [torch.randn(4, 1, 8, 8)]

    def shared(proto: onnx.ModelProto) -> onnx.ModelProto:
        made = genuine(proto)
        convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
        convolutions[1].input[1] = convolutions[0].input[1]  # two convolutions under one name
        return made

    monkeypatch.setattr(onnx_optimized, "rewritten", shared)
    found = optimize_checked(model, path, images, task=TASK)
    assert "the predictions differ by up to" in found.why
    assert (found.nodes[0], found.parity, path.read_bytes()) == (found.nodes[1], None, before)

    def broken(_model: onnx.ModelProto) -> onnx.ModelProto:
        raise RuntimeError("no such rule\nand more")

    monkeypatch.setattr(onnx_optimized, "rewritten", genuine)
    monkeypatch.setattr(onnxscript.optimizer, "optimize", broken)
    assert optimize_checked(model, path, images, task=TASK).why.startswith(
        "the optimiser fails: RuntimeError: no such rule"
    )
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]


def test_the_command_optimises_before_it_reduces(tmp_path: Path) -> None:
    runs.plan_file()
    file, target = str(runs.workshop() / "teacher.pt"), tmp_path / "t.onnx"
    for embed in ([], ["--embed-preprocessing"]):
        words = ["export", file, "-o", str(target), "--data", "digits", "--optimize", "--fp16", *embed]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert f"{target} optimised: " in done.stdout
        assert deploy.evaluate(target, "digits") == deploy.evaluate(file, "digits")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["t-fp16.onnx", "t.onnx"]
    deploy.export(file, tmp_path / "as-it-is.onnx", data="digits", embed=True)
    plain, simple = (len(onnx.load(tmp_path / name).graph.node) for name in ("as-it-is.onnx", "t.onnx"))
    assert simple < plain


def test_weights_that_lie_beside_a_file_stay_where_they_are(tmp_path: Path) -> None:
    path, model = tmp_path / "m.onnx", Twins().eval()
    onnx_file.export_onnx(model, path, input_shape=(1, 1, 8, 8))
    (tmp_path / "m.onnx.data").touch()
    assert "lie beside it" in optimize_checked(model, path, [], task=TASK).why

"""ONNX files may have weights beside them, operators of ONNX and functions of their own; attacks: tests/security."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from fxdistill.errors import ModelError
from fxdistill.measure import onnx_refers
from fxdistill.measure.onnx_file import export_onnx
from fxdistill.measure.onnx_model import OnnxModel
from tests.security.onnx_files import SAME, model


def test_weights_beside_a_file_are_read(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1440, 3)).eval()
    export_onnx(network, tmp_path / "a.onnx", input_shape=(1, 1, 8, 8))
    onnx.save_model(
        onnx.load_model(tmp_path / "a.onnx"), tmp_path / "b.onnx", save_as_external_data=True, location="b.onnx.data"
    )
    assert (tmp_path / "b.onnx.data").is_file()
    images = torch.rand(2, 1, 8, 8)
    answers = [OnnxModel(tmp_path / name)(images) for name in ("a.onnx", "b.onnx")]
    np.testing.assert_array_equal(*answers)


def test_operators_that_a_file_defines_itself_are_its_own(tmp_path: Path) -> None:
    made = model(helper.make_node("Same", ["m"], ["y"], domain="evil"))
    body = helper.make_node("Identity", ["x"], ["y"])
    opset = [helper.make_opsetid("", 17)]
    made.functions.append(helper.make_function("evil", "Same", ["x"], ["y"], [body], opset))
    onnx.save_model(made, tmp_path / "a.onnx")
    onnx_refers.check(tmp_path / "a.onnx")
    made.functions[0].node[0].domain = "other"
    onnx.save_model(made, tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=r"the operator 'other\.Identity'"):
        onnx_refers.check(tmp_path / "a.onnx")


def test_branches_in_branches_have_an_end(tmp_path: Path) -> None:
    branch = helper.make_graph([SAME], "b", [], [])
    for _ in range(20):
        branch = helper.make_graph([helper.make_node("If", ["t"], ["y"], then_branch=branch)], "b", [], [])
    onnx.save_model(model(helper.make_node("If", ["t"], ["y"], then_branch=branch)), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="no ONNX model"):
        onnx_refers.check(tmp_path / "a.onnx")

"""Hugging Face's image classifiers and backbones as registered models: built from numbers, fetched from nowhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import ModelError
from fxdistill.ir import outputs
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.load import load

pytest.importorskip("transformers")

RESNET = "transformers:ResNetForImageClassification"
SMALL: dict[str, Any] = {
    "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    "num_labels": 10,
}  # fmt: skip
VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "num_labels": 10,
}  # fmt: skip


def logits(module: nn.Module, images: Tensor) -> Tensor:
    return outputs.prediction(module(images), "logits")


@pytest.mark.parametrize(
    ("factory", "kwargs", "shape"),
    [(RESNET, SMALL, (2, 1, 32, 32)), ("transformers:ViTForImageClassification", VIT, (2, 3, 32, 32))],
)
def test_a_classifier_is_built_saved_read_and_shrunk(
    factory: str, kwargs: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = build(factory, kwargs, seed=0).eval()
    images = torch.randn(shape)
    save(model, tmp_path / "a.pt", factory=factory, kwargs=kwargs)
    assert torch.equal(logits(load(tmp_path / "a.pt").module, images), logits(model, images))
    result = shrink_model(model, input_shape=shape, keep=0.5)
    assert result.after.parameters < 0.8 * result.before.parameters
    assert logits(result.module, images).shape == (2, 10)


def test_a_student_of_the_hub_learns_from_a_teacher_of_the_hub(tmp_path: Path) -> None:
    wide = {**SMALL, "embedding_size": 16, "hidden_sizes": [16, 32]}
    save(build(RESNET, wide, seed=0), tmp_path / "teacher.pt", factory=RESNET, kwargs=wide)
    save(build(RESNET, SMALL, seed=1), tmp_path / "student.pt", factory=RESNET, kwargs=SMALL)
    done = CliRunner().invoke(app, [
        "plan", str(tmp_path / "teacher.pt"), str(tmp_path / "student.pt"), "--input", "2x1x32x32",
        "-o", str(tmp_path / "plan.json"),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "pairs (" in done.output


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("AutoModelForImageClassification", {}, "registers no model"),
        ("pipeline", {}, "registers no model"),
        ("TimmWrapperForImageClassification", {}, "registers no model"),
        ("ResNetForImageClassification", {"_name_or_path": "somebody/model"}, "downloads nothing"),
        ("ResNetForImageClassification", {"use_pretrained_backbone": True}, "downloads nothing"),
        ("ResNetForImageClassification", {"layer_type": "a/b"}, "could name a file"),
    ],
)
def test_nothing_else_of_the_library_is_called(name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build(f"transformers:{name}", kwargs)

"""Whether a model fits the data is tried where the model lies."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxdistill
from fxdistill.data.load import load
from fxdistill.runtime.planning import fitting
from fxdistill.tasks import TASKS


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))


class Told(nn.Module):
    """Its weights lie on another device than the CPU; it notes on which one its images lie."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device="meta"))
        self.devices: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        self.devices.append(images.device.type)
        return torch.zeros(len(images), 10)


def test_a_model_is_tried_on_its_own_device(tmp_path: Path) -> None:
    model, data, task = Told(), load("digits"), TASKS.get("classification")
    names = tmp_path / "classes.json"
    names.write_text(json.dumps([str(n) for n in range(10)]))
    fitting.mapped(data, names, model, task, input_shape=(1, 1, 8, 8), spec="digits")
    fitting.fits(model, data, task, input_shape=(1, 1, 8, 8), spec="digits")
    assert model.devices == ["meta", "meta"]


def test_a_model_in_another_precision_than_images_is_told_so() -> None:
    with pytest.raises(fxdistill.InputError, match="float32 and weights of it bfloat16: write it anew"):
        fxdistill.evaluate(net().bfloat16(), "digits", input_shape=(1, 1, 8, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_module_on_cuda_is_evaluated_there() -> None:
    torch.manual_seed(0)
    module = net()
    here = fxdistill.evaluate(module, "digits", input_shape=(1, 1, 8, 8))
    there = fxdistill.evaluate(module.cuda(), "digits", input_shape=(1, 1, 8, 8))
    assert there["accuracy"] == pytest.approx(here["accuracy"], abs=0.005)
    assert {p.device.type for p in module.parameters()} == {"cuda"}

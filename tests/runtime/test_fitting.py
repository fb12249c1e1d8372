"""Whether a model fits the data is tried where the model lies."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxdistill
from fxdistill.data.load import load
from fxdistill.modelfiles import bundle
from fxdistill.runtime.planning import fitting
from fxdistill.tasks import NO_LABEL, TASKS
from tests.measure.test_model import dataset


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


def test_labels_get_the_numbers_that_the_models_file_has_for_its_classes(tmp_path: Path) -> None:
    """One network under two orders of its classes, each written down, measures alike, is taught by and made smaller."""
    torch.manual_seed(0)
    layer, last, order = nn.Conv2d(1, 4, 3), nn.Linear(144, 10), torch.randperm(10)
    for name, numbers in (("plain", torch.arange(10)), ("mixed", order)):
        head = nn.Linear(144, 10)
        head.load_state_dict({key: value[numbers] for key, value in last.state_dict().items()})
        classes = [str(number) for number in numbers.tolist()]
        module = nn.Sequential(layer, nn.Flatten(), head)
        bundle.save(module, tmp_path / f"{name}.pt", input_shape=(1, 1, 8, 8), metadata={"classes": classes})
    one, other = (fxdistill.evaluate(tmp_path / f"{name}.pt", "digits") for name in ("plain", "mixed"))
    assert one == other
    plan = fxdistill.make_plan(
        tmp_path / "mixed.pt", tmp_path / "plain.pt", tmp_path / "plan.json", data="digits", measure=False, method="kd"
    )
    assert (plan.data.classes, plan.data.mapped) == ([str(number) for number in order.tolist()], True)
    assert [one.code for one in plan.diagnostics if one.code == "class-order"] == ["class-order"]
    fxdistill.shrink(tmp_path / "mixed.pt", tmp_path / "small.pt", keep=0.5)
    assert bundle.read(tmp_path / "small.pt").metadata["classes"] == plan.data.classes


@pytest.mark.parametrize("own", [list("abcd"), list("abce"), list("abc"), None, [4, 3, 2, 1], "dcba", list("aabb")])
def test_names_that_tell_of_no_order_change_nothing(own: object) -> None:
    images = dataset(0, 1, 2, NO_LABEL)
    task = TASKS.get("classification")
    found = fitting.mapped(images, None, nn.Identity(), task, input_shape=(1, 1, 1, 1), spec="d", own=own)
    assert found is images


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_module_on_cuda_is_evaluated_there() -> None:
    torch.manual_seed(0)
    module = net()
    here = fxdistill.evaluate(module, "digits", input_shape=(1, 1, 8, 8))
    there = fxdistill.evaluate(module.cuda(), "digits", input_shape=(1, 1, 8, 8))
    assert there["accuracy"] == pytest.approx(here["accuracy"], abs=0.005)
    assert {p.device.type for p in module.parameters()} == {"cuda"}

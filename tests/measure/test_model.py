"""What a model is measured by: the metrics of its task in eval mode, and its size."""

import pytest
import torch
from torch import Tensor, nn

from fxdistill.data.dataset import Dataset, Split
from fxdistill.errors import ModelError
from fxdistill.measure.model import evaluating, metrics, parameters
from fxdistill.tasks import TASKS

TASK = TASKS.get("classification")


def dataset(*labels: int) -> Dataset:
    """Images (1, 2, 2) with a single white pixel, the one of their number."""
    images = torch.zeros(len(labels), 1, 2, 2)
    images.view(len(labels), 4)[torch.arange(len(labels)), torch.arange(len(labels)) % 4] = 1.0
    split = Split(images, torch.tensor(labels))
    return Dataset(split, split, ("a", "b", "c", "d"), mean=(0.0,), std=(1.0,))


class Mode(nn.Module):
    """Right in eval mode, wrong in training mode; a structured output if asked for."""

    def __init__(self, *, structured: bool = False) -> None:
        super().__init__()
        self.norm, self.frozen, self.structured = nn.BatchNorm1d(4), nn.Dropout().eval(), structured

    def forward(self, x: Tensor) -> object:
        assert torch.is_inference_mode_enabled()
        x = x.flatten(1)
        logits = -x if self.training else self.norm(self.frozen(x))
        return {"out": -x, "classes": (logits,)} if self.structured else logits


@pytest.mark.parametrize("structured", [False, True])
def test_accuracy_in_eval_mode_with_modes_restored(structured: bool) -> None:
    module = Mode(structured=structured).train()
    module.frozen.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    entry = "classes.0" if structured else ""
    found = metrics(module, dataset(0, 1, 2, 2, 0), TASK, batch_size=4, entry=entry)
    assert found == {"accuracy": pytest.approx(4 / 5)}
    assert (module.training, module.norm.training, module.frozen.training) == (True, True, False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_the_split_is_the_one_that_is_asked_for() -> None:
    right, wrong, other = (dataset(*labels).test for labels in ((0, 1, 2, 3), (1, 2, 3, 0), (0, 1, 3, 2)))
    three = Dataset(wrong, other, ("a", "b", "c", "d"), (0.0,), (1.0,), val=right)
    found = [metrics(Mode(), three, TASK, on=name)["accuracy"] for name in ("val", "test")]
    assert found == [1.0, 0.5]


def test_the_entry_is_the_one_that_is_named() -> None:
    module, images = Mode(structured=True), dataset(0, 1, 2, 3)
    assert metrics(module, images, TASK, entry="classes") == {"accuracy": 1.0}
    assert metrics(module, images, TASK, entry="out")["accuracy"] < 1.0
    with pytest.raises(ModelError, match="has no entry 'logits'") as caught:
        metrics(module, images, TASK, entry="logits")
    assert caught.value.hint == "its entries are: out, classes.0"


def test_modes_are_restored_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError, match="shape"), evaluating(module):
        module(torch.zeros(1, 3))
    assert module.training
    assert module[0].training


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 4)
    assert parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_accuracy_moves_batches_to_the_module() -> None:
    assert metrics(Mode().cuda(), dataset(0, 1, 2, 3), TASK) == {"accuracy": 1.0}

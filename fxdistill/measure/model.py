"""What a model is measured by on data: the metrics of its task, in eval mode; and its size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from fxdistill.data.batches import batches, order
from fxdistill.data.dataset import Dataset
from fxdistill.errors import DataError
from fxdistill.ir.outputs import prediction
from fxdistill.ir.running import in_mode
from fxdistill.ir.views import seen
from fxdistill.preprocessing import PLAIN, View
from fxdistill.tasks import Said, Task


class Parts(Protocol):
    """Several processes that divide batches: each computes a part, and all have all of it."""

    whole: int

    def part(self, whole: int) -> slice:
        """Which rows of a batch of so many images this one takes."""

    def gathered(self, value: Tensor) -> Tensor:
        """All rows, of the part of a batch of ``whole`` images."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Eval and inference mode; afterwards every submodule is back in the mode that it had."""
    with in_mode(module, training=False), torch.inference_mode():
        yield module


def metrics(
    module: nn.Module, dataset: Dataset, task: Task, *, view: View = PLAIN, batch_size: int = 128, entry: str = "",
    on: str = "test", parts: Parts | None = None,
) -> dict[str, float]:  # fmt: skip
    """All metrics of a model by name; the model's modes are restored.

    Args:
        module: Takes images, gives a prediction.
        dataset: Its images are moved to the module's device.
        task: What is measured.
        view: How the model looks at the images.
        batch_size: Images at once.
        entry: Which entry of a structured output is the prediction.
        on: The split that it is measured on: ``test``, or ``val`` to watch a training by.
        parts: The processes that do this together; None for this one alone.

    Raises:
        DataError: There are no images or no labels to measure by, or the task compares two splits and there is one.
    """
    device = device_of(module)
    if task.ranks_train and dataset.is_one:
        raise DataError(
            "the metrics compare the test images with training images, and the data is one split",
            where="the test split", hint="give data with two: train and test",
        )  # fmt: skip

    def predict(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        images = dataset.split(on if split == "test" else split)
        sizes = [len(chosen) for chosen in order(images, batch_size, seed=0, epoch=0, shuffle=False)]
        found = batches(images, batch_size, device=device, part=None if parts is None else parts.part)
        for whole, batch in zip(sizes, found, strict=True):
            output, labels = prediction(module(seen(batch["images"], view)), entry), batch["labels"]
            if parts is not None:
                parts.whole = whole
                output, labels = parts.gathered(output), parts.gathered(labels)
            yield output, labels

    with evaluating(module):
        return task.evaluate(predict, len(dataset.classes), device)


def same_for_all(
    module: nn.Module, dataset: Dataset, task: Task, *, view: View = PLAIN, batch_size: int = 128, entry: str = ""
) -> str:
    """What a model says of every test image, where that is the same; '' where its answers differ.

    Args:
        module: Takes images, gives a prediction; its modes are restored.
        dataset: Its test images are read, until two of them get different answers.
        task: When two answers are the same.
        view: How the model looks at the images.
        batch_size: Images at once.
        entry: Which entry of a structured output is the prediction.
    """
    said = Said(task)
    with evaluating(module):
        for batch in batches(dataset.test, batch_size, device=device_of(module)):
            said.add(prediction(module(seen(batch["images"], view)), entry))
            if said.images > 1 and not said.collapsed():
                return ""
    return said.collapsed()


def device_of(module: nn.Module) -> torch.device:
    """Where the module's tensors are; the CPU where it has none."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def parameters(module: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())

"""What a model is measured by on data: the metrics of its task, in eval mode; and its size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from fxdistill.data.batches import batches, order
from fxdistill.data.dataset import Dataset, Images
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
    on: str = "test", parts: Parts | None = None, also: Callable[[Tensor, Tensor], None] | None = None,
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
        also: Is told the predictions and targets of each batch of that split as well.

    Raises:
        DataError: There are no images or no labels to measure by, or the task compares two splits and there is one.
    """
    check_splits(dataset, task)

    def predict(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        images = dataset.split(on if split == "test" else split)
        for output, labels in predictions(module, images, view=view, batch_size=batch_size, entry=entry, parts=parts):
            if also is not None and split == "test":
                also(output, labels)
            yield output, labels

    with evaluating(module):
        return task.evaluate(predict, len(dataset.classes), device_of(module))


def check_splits(dataset: Dataset, task: Task) -> None:
    """Check that the data has the splits that a task's metrics read.

    Raises:
        DataError: The task compares two, and there is one.
    """
    if task.ranks_train and dataset.is_one:
        raise DataError(
            "the metrics compare the test images with training images, and the data is one split",
            where="the test split", hint="give data with two: train and test",
        )  # fmt: skip


def predictions(
    module: nn.Module, images: Images, *, view: View = PLAIN, batch_size: int = 128, entry: str = "",
    parts: Parts | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """What a model says of each batch of a split, unaugmented and in order, with its targets.

    Args:
        module: Takes images, gives a prediction; in the mode that it is in.
        images: The split; they are moved to the module's device.
        view: How the model looks at the images.
        batch_size: Images at once.
        entry: Which entry of a structured output is the prediction.
        parts: The processes that do this together; None for this one alone.
    """
    sizes = [len(chosen) for chosen in order(images, batch_size, seed=0, epoch=0, shuffle=False)]
    found = batches(images, batch_size, device=device_of(module), part=None if parts is None else parts.part)
    for whole, batch in zip(sizes, found, strict=True):
        output, labels = prediction(module(seen(batch["images"], view)), entry), batch["labels"]
        if parts is not None:
            parts.whole = whole
            output, labels = parts.gathered(output), parts.gathered(labels)
        yield output, labels


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


def other_precisions(module: nn.Module) -> str:
    """The precisions of a model's weights other than float32, in words; '' for none."""
    found = {one.dtype for one in module.parameters() if one.is_floating_point()} - {torch.float32}
    return " and ".join(sorted(str(one).removeprefix("torch.") for one in found))


def parameters(module: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())

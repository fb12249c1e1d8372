"""Whether a teacher knows clearly more under another normalisation than the one that was taken for it.

Where neither an option nor the teacher's own file says how it normalises images, a plan has what its library says, or
the data. That need not be what it was trained with, and nothing else would show it: the teacher is merely a worse one.
So the usual ones are tried, on a few training images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from fxdistill.data.dataset import Dataset, Images
from fxdistill.diagnostics import Diagnostic
from fxdistill.measure.model import metrics
from fxdistill.preprocessing import Preprocessing, View
from fxdistill.tasks import Task

_TRIED = 128
"""Images that each is tried on."""
_MORE = 0.08
"""What counts as clearly more of a share: with 128 images four times what chance makes of the usual differences."""
_SAID = ("--mean, --std", "the file")
"""Who knows."""
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Numbers = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Better:
    """A normalisation under which a teacher knows more.

    Attributes:
        remark: That, for people.
        options: How it is asked for.
    """

    remark: Diagnostic
    options: str


def better(
    member: str, module: nn.Module, dataset: Dataset, task: Task, *, taken: Preprocessing, entry: str
) -> Better | None:  # fmt: skip
    """The usual normalisation that is clearly better than the one that was taken; None where there is none.

    Args:
        member: The teacher's name.
        module: It.
        dataset: The data, as it reads it.
        task: What is measured.
        taken: The preprocessing that was taken for it.
        entry: Which entry of its output is the prediction.
    """
    source = taken.source.normalisation
    if source in _SAID or not task.is_share or task.ranks_train:
        return None
    few = _few(dataset.train)
    tried = replace(dataset, train=few, test=few, val=None)
    if not tried.has_labels("train"):
        return None

    def reached(view: View) -> float:
        all_of_it = metrics(module, tried, task, view=view, entry=entry)
        nothing = task.near_chance(all_of_it, len(dataset.classes), few.labels)  # the best of several is above chance
        return 0.0 if nothing and view != own else all_of_it[task.primary]

    own = taken.view(dataset.image_shape[1:])
    before = reached(own)
    if before > 1 - _MORE:
        return None
    found = {
        name: (reached(replace(own, mean=mean, std=std, range=1.0)), (mean, std))
        for name, (mean, std) in _usual(dataset) if (mean, std) != (own.mean, own.std)
    }  # fmt: skip
    best = max(found, key=lambda name: found[name][0])
    value, numbers = found[best]
    if value < before + _MORE:
        return None
    options = "--mean {} --std {}".format(*(",".join(f"{one:.4g}" for one in part) for part in numbers))
    images = f"{len(few)} {'' if dataset.is_one else 'training '}images"
    remark = Diagnostic(
        code="other-normalisation", severity="warning", where=member,
        why=f"nothing but {source or 'the usual'} says how it normalises images, and with that it reaches "
        f"{task.primary} {task.shown(before)} on {images}, where {best} it would reach {task.shown(value)}",
        hint=f"give {options}, or save the model with its preprocessing",
    )  # fmt: skip
    return Better(remark, options)


def _few(split: Images) -> Images:
    count = min(len(split), _TRIED)
    return split.at(torch.linspace(0, len(split) - 1, count).round().long())


def _usual(dataset: Dataset) -> Iterator[tuple[str, Numbers]]:
    """By name those that models are usually trained with, mean and std a channel."""
    channels = dataset.image_shape[0]
    yield "with pixels as they are", ((0.0,) * channels, (1.0,) * channels)
    yield "with 0.5 and 0.5", ((0.5,) * channels, (0.5,) * channels)
    yield "with the data's mean and std", (dataset.mean, dataset.std)
    if channels == len(_IMAGENET[0]):
        yield "with ImageNet's mean and std", _IMAGENET

"""Data of the user's own: what a factory may return, and how it becomes a data set.

factory() = a data set of ours
| split                                       one split, to measure on or to be divided
| (split, split)                              train and test
| {"train": split, "val": split, "test": split}, or some of them
split     = (images, labels)                            arrays, (N, C, H, W); None where there are no labels
| a map-style data set of torch, or a list    what an item may be: :mod:`fxdistill.data.items`
| a loader                                    its data set is read, its order and batches are not
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset, SubsetRandomSampler

from fxdistill.data.arrays import as_tensor
from fxdistill.data.dataset import SPLITS, Dataset, Images, Split, from_splits
from fxdistill.data.items import Items
from fxdistill.data.sources._images import COLOURS
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import DataError
from fxdistill.preprocessing import Reading
from fxdistill.tasks import Task

FORMS = (
    "return (train, test), each a torch Dataset of (image, target) or (images, labels); or a mapping of train, val and "
    "test; or a fxdistill.data.dataset.Dataset"
)
_ARRAYS = (Tensor, np.ndarray)
_FOLLOWED = (SequentialSampler, RandomSampler)


def read(found: Any, *, where: str, task: Task, reading: Reading | None) -> Dataset:
    """What a factory returned, as a data set; see the module docstring.

    Args:
        found: What it returned, no data set of ours.
        where: The spec.
        task: What the data is for.
        reading: How items are read, as image files are; those of one size that is no larger keep it.

    Raises:
        DataError: It is nothing of that, or an item cannot be read or is not like the others.
    """
    parts: dict[str, Images] = {}
    first: Reading | None = None
    classes: dict[str, tuple[str, ...]] = {}
    remarks: list[Diagnostic] = []
    for name, value in _named(found, where).items():
        source, said = _source(value, where=f"{where}, {name}")
        remarks.extend(said)
        if _is_arrays(source):
            parts[name] = _arrays(source, where=f"{where}, {name}", task=task)
        else:
            items = Items(source, f"{where}, {name}", task).begun(reading, like=first)
            first = items.reading
            remarks.extend(items.varying())
            parts[name] = items.gathered()
        if names := _classes(source):
            classes[name] = names
    if len(set(classes.values())) > 1:
        raise DataError("the splits name different classes", where=where, hint="give all the same `classes`")
    return from_splits(parts, next(iter(classes.values()), None), where=where, task=task, remarks=remarks)


def _named(found: Any, where: str) -> dict[str, Any]:
    """The splits by name."""
    if isinstance(found, Mapping):
        named = {SPLITS.get(str(name), ""): value for name, value in found.items()}
        if "" in named or len(named) < len(found) or not named:
            keys = ", ".join(map(str, found)) or "none"
            raise DataError(f"the factory returned a mapping of {keys}", where=where, hint="name train, val and test")
        return named
    if isinstance(found, tuple | list) and len(found) == 2 and not _is_arrays(found) and all(map(_is_split, found)):
        return {"train": found[0], "test": found[1]}
    if _is_split(found):
        return {"test": found}
    raise DataError(f"the factory returned {type(found).__name__}", where=where, hint=FORMS)


def _is_arrays(value: Any) -> bool:
    if not (isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], _ARRAYS)):
        return False
    return value[1] is None or np.ndim(value[1]) > 0


def _is_split(value: Any) -> bool:
    """Whether it could be a split: to be said of it, or to be refused for a reason of its own."""
    if _is_arrays(value) or isinstance(value, DataLoader | IterableDataset):
        return True
    if isinstance(value, tuple):
        return False
    like_a_list = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return (like_a_list or hasattr(value, "dataset")) and not isinstance(value, (*_ARRAYS, Mapping, str, bytes))


def _source(value: Any, *, where: str) -> tuple[Any, list[Diagnostic]]:
    """The arrays or the data set behind a split, and what there is to say about that."""
    if not isinstance(value, DataLoader) and (hasattr(value, "__getitem__") or not hasattr(value, "dataset")):
        inner, said = value, []
    else:
        inner, sampler = value.dataset, getattr(value, "sampler", None)
        if isinstance(sampler, SubsetRandomSampler):
            inner = Subset(inner, list(sampler.indices))
        elif not (sampler is None or isinstance(sampler, _FOLLOWED) or isinstance(inner, IterableDataset)):
            raise DataError(
                f"the loader chooses its images by a {type(sampler).__name__}, which is not followed", where=where,
                hint="return its data set, or a Subset of it",
            )  # fmt: skip
        said = [
            Diagnostic(
                code="data-loader", severity="note", where=where,
                why="the data set of the loader is read; its order, batches and collating are not: they are the plan's",
            )
        ]  # fmt: skip
    if isinstance(inner, IterableDataset) or not (hasattr(inner, "__getitem__") and hasattr(inner, "__len__")):
        raise DataError(
            "the data set can be read in its own order only", where=where,
            hint="give a map-style one, with __getitem__ and __len__",
        )  # fmt: skip
    return inner, said


def _arrays(value: Any, *, where: str, task: Task) -> Split:
    try:
        images = _tensor(value[0])
        labels = torch.tensor(task.no_label).expand(len(images)) if value[1] is None else _tensor(value[1])
    except (TypeError, ValueError, RuntimeError) as cause:
        raise DataError(f"the arrays cannot be read: {cause}", where=where, hint=FORMS) from cause
    if images.ndim == 4 and images.shape[-1] in COLOURS and images.shape[1] not in COLOURS:
        images = images.permute(0, 3, 1, 2).contiguous()
    return Split(images, labels)


def _tensor(value: Any) -> Tensor:
    return as_tensor(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)


def _classes(source: Any) -> tuple[str, ...]:
    """The names of classes that a data set has, as torchvision's do; () for none."""
    while isinstance(source, Subset):
        source = source.dataset
    names = getattr(source, "classes", None)
    return tuple(names) if isinstance(names, list | tuple) else ()

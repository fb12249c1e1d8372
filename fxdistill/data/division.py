"""Splits that are set aside from another: a share of it, drawn under a seed, spread evenly over the classes.

    order    the images class by class, shuffled within each
    aside    the images of the order at which floor(i · share + 1/2) rises: N · share in all, within one of its share
             in every class

Targets that are not one class an image have no classes to spread over: the order is shuffled.
"""

import torch
from torch import Tensor

from fxdistill.data.dataset import Dataset, Images
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import DataError
from fxdistill.plan.schema import DataPlan, Division

TEST_SHARE = 0.2
"""What is set aside to test on where the data is one split."""


def planned(dataset: Dataset, *, val: float, seed: int, where: str) -> tuple[Division | None, Division | None]:
    """What a plan sets aside to test on, where the data is one split, and to watch the training by.

    Args:
        dataset: The data as it was read.
        val: The share of the training images to watch the training by; 0 for none, or for the data's own.
        seed: What is drawn under.
        where: The spec.

    Raises:
        DataError: A share is asked for, and the data has a validation split of its own.
    """
    if val and dataset.val is not None:
        raise DataError("the data has a validation split of its own", where=where, hint="leave out --val")
    test = Division(share=TEST_SHARE, seed=seed) if dataset.is_one else None
    return test, Division(share=val, seed=seed) if val or dataset.val is not None else None


def divided(dataset: Dataset, data: DataPlan) -> Dataset:
    """The data as a plan divides it: with a test split, and a validation split where the plan says so.

    Raises:
        DataError: The data is not what the plan divides, or too little of it would be left.
    """
    where = f"data.test and {data.spec}"
    if dataset.is_one and data.test is None:
        why = "the data is one split, and the plan sets nothing of it aside to test on"
        raise DataError(why, where=where, hint="plan again with this data")
    if not dataset.is_one and data.test is not None:
        why = "the plan sets a part of the data aside to test on, and the data has a test split of its own"
        raise DataError(why, where=where, hint="plan again with this data")
    train, test, val = dataset.train, dataset.test, None
    if data.test is not None:
        train, test = _apart(train, data.test, where)
    if data.val is not None:
        where = f"data.val and {data.spec}"
        if (dataset.val is None) == (not data.val.share):
            why = "no validation split of its own" if dataset.val is None else "a validation split of its own"
            raise DataError(f"the data has {why}", where=where, hint="plan again with this data")
        train, val = _apart(train, data.val, where) if dataset.val is None else (train, dataset.val)
    return Dataset(train, test, dataset.classes, dataset.mean, dataset.std, val, dataset.remarks)


def remarks(dataset: Dataset, data: DataPlan) -> list[Diagnostic]:
    """What there is to say about the data, and about what a plan sets aside of it that nobody asked for."""
    said = [
        one.model_copy(update={"hint": ""} if one.code == "val-is-test" and data.val else {}) for one in dataset.remarks
    ]
    if data.test is None:
        return said
    return [
        *said,
        Diagnostic(
            code="held-out", severity="note", where=f"data {data.spec}",
            why=f"the data is one split: {data.test.share:.0%} of it, drawn under seed {data.test.seed}, is set aside "
            "to test on", hint="another share can be written into the plan (data.test.share)",
        )
    ]  # fmt: skip


def _apart(images: Images, division: Division, where: str) -> tuple[Images, Images]:
    """What is left, and what is set aside."""
    chosen = aside(images.labels, division.share, division.seed)
    if not bool(chosen.any()) or int((~chosen).sum()) < 2:
        count = int(chosen.sum())
        raise DataError(
            f"a share of {division.share:g} of {len(images)} images is {count}, which leaves {len(images) - count}",
            where=where, hint="give another share, or more images",
        )  # fmt: skip
    return images.at((~chosen).nonzero().flatten()), images.at(chosen.nonzero().flatten())


def aside(labels: Tensor, share: float, seed: int) -> Tensor:
    """Which images are set aside: (N,), bool. See the module docstring.

    Args:
        labels: The targets (N, ...).
        share: The share, 0 to 1.
        seed: What is drawn under.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if labels.ndim == 1 and not labels.is_floating_point():
        order = order[labels.cpu()[order].argsort(stable=True)]
    counts = (torch.arange(len(labels) + 1, dtype=torch.float64) * share + 0.5).floor()
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[counts.diff() > 0]] = True
    return chosen

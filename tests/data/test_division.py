"""Splits that are set aside: how many, of which classes, the same ones under the same seed, and no image twice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxdistill.data.dataset import Dataset, Split
from fxdistill.data.division import aside, divided, planned
from fxdistill.errors import DataError
from fxdistill.plan.schema import DataPlan, Division


def split(count: int, *, first: int = 0) -> Split:
    """Every image is one pixel that says which one it is."""
    images = torch.arange(first, first + count, dtype=torch.float32).div(1000).reshape(-1, 1, 1, 1)
    return Split(images, torch.arange(count) % 4)


def which(images: object) -> list[int]:
    assert isinstance(images, Split)
    return [round(value * 1000) for value in images.images.flatten().tolist()]


def dataset(train: Split, test: Split | None = None, val: Split | None = None) -> Dataset:
    return Dataset(train, test or train, tuple("abcd"), (0.0,), (1.0,), val)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 3), min_size=2, max_size=120), share=st.floats(0.05, 0.9), seed=st.integers(0, 9)
)
def test_every_class_gives_its_share(labels: list[int], share: float, seed: int) -> None:
    targets = torch.tensor(labels)
    chosen = aside(targets, share, seed)
    assert torch.equal(chosen, aside(targets, share, seed))
    assert abs(int(chosen.sum()) - share * len(labels)) <= 0.5 + 1e-9
    for each in set(labels):
        count = labels.count(each)
        assert abs(int(chosen[targets == each].sum()) - share * count) <= 1 + 1e-9


def test_another_seed_sets_others_aside() -> None:
    labels = torch.arange(100) % 4
    assert not torch.equal(aside(labels, 0.2, 0), aside(labels, 0.2, 1))
    shuffled = aside(torch.zeros(100, 2, 2).long(), 0.2, 0)
    assert shuffled.sum() == 20
    assert shuffled[:20].sum() < 15


def test_what_is_set_aside_is_no_longer_there_to_train_on() -> None:
    whole = dataset(split(40), split(8, first=100))
    found = divided(whole, DataPlan(spec="x", val=Division(share=0.25, seed=3)))
    assert found.val is not None
    assert sorted(which(found.train) + which(found.val)) == list(range(40))
    assert len(found.val) == 10
    assert which(found.test) == list(range(100, 108))
    assert found.split("val") is found.val
    for images in (found.train, found.val):  # a label stays with its image
        assert [number % 4 for number in which(images)] == images.labels.tolist()


def test_data_that_is_one_split() -> None:
    one = dataset(split(40))
    test, val = planned(one, val=0.1, seed=5, where="x")
    assert (test, val) == (Division(share=0.2, seed=5), Division(share=0.1, seed=5))
    found = divided(one, DataPlan(spec="x", test=test, val=val))
    assert found.val is not None
    parts = [which(found.train), which(found.val), which(found.test)]
    assert [len(part) for part in parts] == [29, 3, 8]
    assert sorted(number for part in parts for number in part) == list(range(40))
    assert not found.is_one


def test_the_datas_own_validation_split() -> None:
    own = dataset(split(20), split(8, first=100), split(4, first=200))
    assert planned(own, val=0, seed=0, where="x") == (None, Division(share=0))
    found = divided(own, DataPlan(spec="x", val=Division(share=0)))
    assert (which(found.train), which(found.split("val"))) == (list(range(20)), [200, 201, 202, 203])
    without = divided(own, DataPlan(spec="x"))
    assert without.val is None
    assert without.split("val") is without.test
    with pytest.raises(DataError, match="a validation split of its own"):
        planned(own, val=0.1, seed=0, where="x")


@pytest.mark.parametrize(
    ("data", "plan", "message"),
    [
        (dataset(split(20)), {}, "is one split, and the plan sets nothing of it aside to test on"),
        (dataset(split(20), split(4)), {"test": 0.2}, "the data has a test split of its own"),
        (dataset(split(20), split(4)), {"val": 0.0}, "the data has no validation split of its own"),
        (dataset(split(20), split(4), split(4)), {"val": 0.1}, "the data has a validation split of its own"),
        (dataset(split(20), split(4)), {"val": 0.01}, "a share of 0.01 of 20 images is 0, which leaves 20"),
        (dataset(split(4), split(4)), {"val": 0.9}, "a share of 0.9 of 4 images is 4, which leaves 0"),
    ],
)
def test_divisions_that_do_not_go(data: Dataset, plan: dict[str, float], message: str) -> None:
    made = DataPlan(spec="x", **{name: Division(share=share) for name, share in plan.items()})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        divided(data, made)
    assert caught.value.hint

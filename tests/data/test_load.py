"""Loading: every spec finds its source, and says what is wrong with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxdistill.data.dataset import Dataset, Split
from fxdistill.data.load import check_input, defaults, load
from fxdistill.errors import DataError, InputError
from fxdistill.plan.schema import DataPlan, Division


def split(count: int = 23, *, channels: int = 1, size: int = 6) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 5)


def test_defaults_spell_everything_out_and_are_stable() -> None:
    first, again = defaults("digits"), defaults("digits", dataset=load("digits"))
    assert first == again
    assert (first.batch_size, first.augmentation) == (128, [])
    assert len(first.classes) == 10
    found = Dataset(split(size=32, channels=3), split(), ("a",), (0.0,), (1.0,))
    assert defaults("cifar10:x", dataset=found).augmentation == ["flip", "crop:4"]
    assert defaults("npz:x", dataset=found).augmentation == ["flip", "crop:4"]
    assert defaults("fashion-mnist:x", dataset=found).augmentation == ["flip"]


def test_a_plans_classes_and_size_are_checked() -> None:
    plan = defaults("digits")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"classes": ["cat"]}, "1 classes, the data 10"),
        ({"train_size": 7}, "made for 7 training images"),
        ({"augmentation": ["blur"]}, "no augmentation named 'blur'"),
        ({"augmentation": ["crop:8"]}, "out of sight"),
        ({"spec": None}, "names no data"),
    ]
    for change, message in wrong:
        with pytest.raises(DataError, match=message):
            load(plan.model_copy(update=change))
    assert load(DataPlan(spec="digits")).mean == load("digits").mean


def test_the_input_must_be_what_the_models_read() -> None:
    found = load("digits")
    check_input(found, (4, 1, 8, 8))
    for shape in ((1, 3, 8, 8), (1, 1, 32, 32), (1, 64)):
        with pytest.raises(DataError, match="1x8x8"):
            check_input(found, shape)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'? known specs: cifar10:ROOT, "),
        (
            "",
            "known specs: cifar10:ROOT, cifar100:ROOT, digits, fashion-mnist:ROOT, imagefolder:DIR, images:DIR, masks",
        ),
        ("imagenet:/data", "the data spec 'imagenet:/data' is unknown"),
        ("cifar11:root", "did you mean 'cifar10:ROOT'?"),
        ("fashion_mnist:root", "did you mean 'fashion-mnist:ROOT'?"),
        ("digits:root", "'digits' has no place"),
        ("npz", "needs a place"),
        ("npz:/nowhere/x.npz", "no '/nowhere/x.npz'"),
        ("cifar10:/nowhere", "no '/nowhere'"),
        ("my.module:factory", "--allow-factory my.module"),
        ("os.path:join", "--allow-factory os.path"),
        ("mymodule:pairs", "or your own mymodule:factory, with --allow-factory mymodule"),
    ],
)
def test_specs_that_name_nothing(spec: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load(spec)
    assert message in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_an_unknown_task() -> None:
    with pytest.raises(InputError, match="did you mean 'regression'"):
        load("digits", task="regresion")


@pytest.mark.parametrize("name", ["regression", "retrieval", "classification"])
def test_the_task_says_what_labels_are(name: str) -> None:
    found = load("digits", task=name)
    assert found.train.labels.dtype == (torch.float32 if name == "regression" else torch.int64)
    assert len(found.classes) == (0 if name == "regression" else 10)


def test_data_that_the_task_does_not_want() -> None:
    with pytest.raises(DataError, match="one whole number a pixel") as caught:
        load("digits", task="segmentation")
    assert "one class a pixel" in caught.value.hint


# The user's own


OWN = """
import torch
from fxdistill.data.dataset import Dataset, Split
x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
def pairs(): return (x, y), (x, y)
def whole(): return Dataset(Split(x, y), Split(x, y), ("a", "b", "c"), (0.0,), (1.0,))
def wrong(): return Dataset(Split(x, y), Split(x, y), ("a", "b"), (0.0,), (1.0,))
def two_means(): return Dataset(Split(x, y), Split(x, y), ("a", "b", "c"), (0.0, 1.0), (1.0,))
def numbers(): return (x, y / 2), (x, y / 2)
def one(): return 1
def fails(): raise OSError("on fire")
def images(): return (x[0], y), (x, y)
"""


def test_the_users_own_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_data_for_test.py").write_text(OWN)
    allow = ["own_data_for_test"]
    assert load("own_data_for_test:pairs", allow=allow).classes == ("0", "1", "2")
    assert load("own_data_for_test:whole", allow=allow).classes == ("a", "b", "c")
    assert load("own_data_for_test:numbers", allow=allow, task="regression").train.labels.tolist() == [0, 0.5, 1, 0]
    wrong = {
        "wrong": "label 2 has no name",
        "two_means": "1 channels, with 2 means and 1 deviations",
        "numbers": "labels are torch.float32",
        "one": "returned int",
        "fails": "OSError: on fire",
        "images": "images are",
        "absent": "no function",
    }
    for name, message in wrong.items():
        with pytest.raises(DataError, match=message):
            load(f"own_data_for_test:{name}", allow=allow)


@pytest.mark.parametrize(
    ("task", "labels", "wrong"),
    [
        ("regression", np.linspace(0, 1, 10, dtype="float32"), "there is one image; give two at least"),
        ("multilabel", (np.arange(20).reshape(10, 2) % 5 == 0).astype("int64"), "no image has any class"),
    ],
)
def test_a_part_that_is_set_aside_has_what_the_task_measures(
    tmp_path: Path, task: str, labels: "np.ndarray[Any, Any]", wrong: str
) -> None:
    images = np.zeros((10, 1, 4, 4), dtype="float32")
    spec = f"npz:{tmp_path / 'a.npz'}"
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    plan = defaults(spec, task=task, val=0.4)
    assert len(load(plan, task=task).split("val")) == 4
    with pytest.raises(DataError, match=wrong) as caught:
        defaults(spec, task=task, val=0.1)
    assert caught.value.where == f"data.val and {spec}"
    with pytest.raises(DataError, match=wrong):
        load(plan.changed(val=Division(share=0.1, seed=0), train_size=9), task=task)

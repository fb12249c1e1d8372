"""Class maps: each form is read alike, labels get the model's numbers, and what has none is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fxdistill.data import classmap
from fxdistill.data.dataset import Dataset, Split, checked
from fxdistill.errors import DataError
from fxdistill.tasks import TASKS


def dataset(labels: Any, classes: tuple[str, ...] | None, task: str = "classification") -> Dataset:
    targets = torch.tensor(labels)
    pixels = (
        torch.zeros(len(targets), 1, 2, 2) if targets.ndim < 3 else torch.zeros(len(targets), 1, *targets.shape[1:])
    )
    split = Split(pixels, targets)
    return checked(split, Split(pixels, targets), classes, where="here", task=TASKS.get(task))


def mapped(data: Dataset, names: tuple[str, ...], task: str = "classification") -> Dataset:
    return classmap.mapped(data, names, task=TASKS.get(task), where="here")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "cat\ndog\neel\n\n", ("cat", "dog", "eel")),
        ("a.txt", "\ufeffcat\r\n dog \r\n", ("cat", "dog")),
        ("a.json", json.dumps({"dog": 1, "cat": 0}), ("cat", "dog")),
        ("a.json", json.dumps({"eel": 3, "cat": 0}), ("cat", "class 1", "class 2", "eel")),
        ("a.JSON", json.dumps({"0": "cat", "1": "dog"}), ("cat", "dog")),
        ("a.json", json.dumps({"1": ["n01", "dog"], "0": ["n00", "cat"]}), ("n00", "n01")),
        ("a.json", json.dumps(["cat", "dog"]), ("cat", "dog")),
    ],
)
def test_every_form_of_a_map(tmp_path: Path, name: str, text: str, expected: tuple[str, ...]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert classmap.read(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "an empty line where a name should be"),
        ("a.txt", b"cat\n\ndog\n", "an empty line where a name should be"),
        ("a.txt", b"\xff\xfe\x00", "it is not a text file"),
        ("a.json", b"cat\ndog", "the class map is not valid JSON"),
        ("a.json", b"{}", "it holds no names"),
        ("a.json", b"3", "it holds no names"),
        ("a.json", b'{"cat": -1}', "the number of 'cat' is -1"),
        ("a.json", b'{"cat": 1.5}', "the number of 'cat' is 1.5"),
        ("a.json", b'{"cat": true}', "the number of 'cat' is True"),
        ("a.json", b'{"cat": 1e9}', "the number of 'cat' is"),
        ("a.json", b'{"cat": 0, "dog": 0}', "the number 0 occurs twice"),
        ("a.json", b'{"cat": 0, "dog": 1, "cat": 2}', "'cat' occurs twice"),
        ("a.json", b'["cat", "cat"]', "the name 'cat' occurs twice"),
        ("a.json", b'{"0": []}', "a class is called []"),
        ("none.txt", None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_map(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        classmap.read(tmp_path / name)
    assert message in str(caught.value)
    assert name in caught.value.where
    assert caught.value.hint


def test_labels_get_the_models_numbers() -> None:
    found = mapped(dataset([0, 1, 1, -1, 2], ("cat", "dog", "eel")), ("ant", "eel", "cat", "fox", "dog"))
    assert found.test.labels.tolist() == [2, 4, 4, -100, 1]
    assert torch.equal(found.train.labels, found.test.labels)
    assert found.classes == ("ant", "eel", "cat", "fox", "dog")
    maps = mapped(dataset([[[0, 1], [-100, 0]]], ("cat", "dog"), "segmentation"), ("dog", "cat"), "segmentation")
    assert maps.test.labels.tolist() == [[[1, 0], [-100, 1]]]
    rows = mapped(dataset([[1.0, 0.0]], ("cat", "dog"), "multilabel"), ("dog", "ant", "cat"), "multilabel")
    assert rows.test.labels[0, [0, 2]].tolist() == [0, 1]
    assert rows.test.labels[0, 1].isnan()


def test_numbers_are_the_models_already() -> None:
    found = mapped(dataset([0, 2, 1], None), ("ant", "cat", "dog", "eel"))
    assert found.test.labels.tolist() == [0, 2, 1]
    assert found.classes == ("ant", "cat", "dog", "eel")
    assert mapped(dataset([0, 2, 1], None), ("2", "1", "0")).test.labels.tolist() == [2, 0, 1]
    with pytest.raises(DataError, match="the data has labels up to 2, the class map 2 classes"):
        mapped(dataset([0, 2, 1], None), ("ant", "cat"))


def test_images_without_labels_get_names_alone() -> None:
    assert mapped(dataset([-1, -1], None), ("ant", "cat")).classes == ("ant", "cat")


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (("cat", "bird"), "the class 'dog' of the data is not in the class map", "each once"),
        (("cat", "dogs"), "the class 'dog' of the data is not in the class map", "did you mean 'dogs'?"),
        (("cat", "dog", "dog"), "the class 'dog' of the data stands 2 times in the class map", "each once"),
    ],
)
def test_classes_outside_of_the_map_are_named(names: tuple[str, ...], message: str, hint: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        mapped(dataset([0, 1], ("cat", "dog")), names)
    assert hint in caught.value.hint


def test_a_task_without_classes() -> None:
    with pytest.raises(DataError, match="the task has no classes to map"):
        mapped(dataset([0.5, 1.5], None, "regression"), ("cat",), "regression")

"""Names of classes are text, and distinct, wherever they come from."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxdistill import classnames
from fxdistill.data import classmap, own
from fxdistill.data.load import load
from fxdistill.errors import DataError
from fxdistill.plan.schema import DataPlan
from fxdistill.tasks import TASKS

ODD: dict[str, tuple[list[Any], str]] = {
    "twice": (["cat", "dog", "cat"], "the classes 0 and 2 are both called 'cat'"),
    "empty": (["cat", " "], "class 1 is ' ', which is no text"),
    "escape": (["cat", "\x1b[2Jdog"], "cannot be shown"),
    "line": (["cat", "dog\ncat"], "cannot be shown"),
    "half a character": (["cat", "\ud800"], "cannot be shown"),
    "number": (["cat", 5], "class 1 is 5, which is no text"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_are_told(odd: str) -> None:
    names, said = ODD[odd]
    assert said in classnames.wrong(names)
    assert classnames.wrong(["cat", "dog", "chien à longs poils", "犬"]) == ""
    assert "is the most" in classnames.wrong(range(classnames.MOST + 1))


@pytest.mark.parametrize("odd", ODD)
def test_a_plan_and_data_of_ones_own_are_refused_with_them(odd: str) -> None:
    names, said = ODD[odd]
    with pytest.raises(ValueError, match=r"class|string"):
        DataPlan(spec="digits", classes=names)

    class Named(list[Any]):
        classes = names

    items = Named((torch.zeros(1, 4, 4), number) for number in range(len(names)))
    with pytest.raises(DataError) as caught:
        own.read(items, where="here", task=TASKS.get("classification"), reading=None)
    assert said in caught.value.what


@pytest.mark.parametrize("odd", ["twice", "empty", "escape", "line"])
def test_an_npz_is_refused_with_them(odd: str, tmp_path: Path) -> None:
    names, said = ODD[odd]
    images, labels = np.zeros((3, 4, 4), np.uint8), np.arange(3)
    np.savez(tmp_path / "a.npz", test_images=images, test_labels=labels, classes=np.array(names))
    with pytest.raises(DataError) as caught:
        load(f"npz:{tmp_path / 'a.npz'}")
    assert said in caught.value.what


@pytest.mark.parametrize("names", [np.arange(3), np.array([["a", "b", "c"]]), np.array([0.5])])
def test_names_in_an_npz_that_are_no_list_of_text(names: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", test_images=np.zeros((3, 4, 4), np.uint8), test_labels=np.arange(3), classes=names)
    with pytest.raises(DataError, match="'classes' holds"):
        load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("odd", ["twice", "escape"])
def test_a_class_map_is_refused_with_them(odd: str, tmp_path: Path) -> None:
    names, said = ODD[odd]
    (tmp_path / "a.txt").write_text("\n".join(names))
    with pytest.raises(DataError) as caught:
        classmap.read(tmp_path / "a.txt")
    assert said in caught.value.what
    (tmp_path / "a.json").write_text(json.dumps(names))
    with pytest.raises(DataError, match="class map"):
        classmap.read(tmp_path / "a.json")


def test_folders_are_refused_with_them(tmp_path: Path) -> None:
    for name in (b"cat", b"d\xffg"):
        folder = tmp_path / "data" / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / "a.pgm").write_bytes(b"P5 4 4 255\n" + bytes(16))
    with pytest.raises(DataError, match="cannot be shown"):
        load(f"imagefolder:{tmp_path / 'data'}")

"""A source and an augmentation of another distribution cost one file each, and nothing here."""

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxdistill import registry
from fxdistill.data import augmentations, places
from fxdistill.data.augmentations import Augmentation
from fxdistill.data.batches import batches
from fxdistill.data.load import defaults, load
from fxdistill.data.sources import Source
from fxdistill.errors import DataError

_MODULE = """
from typing import Annotated
import numpy as np
import torch
from pydantic import Field
from fxdistill.arguments import Arguments
from fxdistill.data.augmentations import Augmentation
from fxdistill.data.dataset import Split, checked
from fxdistill.data.sources import Source

def read(request):
    maps = torch.from_numpy(np.load(request.place))
    split = Split(torch.full((len(maps), 1, *maps.shape[1:]), 0.5), maps)
    return checked(split, split, None, where=request.spec, task=request.task)

SOURCE = Source(read, place="FILE", layout="one array of maps", augmentation=lambda shape: ("crop:1", "brighter:0.25"))

class BrighterArguments(Arguments):
    by: Annotated[float, Field(gt=0, le=1)]

def draw(shape, draws, arguments):
    signs = draws.below(2, 1).reshape(-1, 1, 1, 1) * 2 - 1
    return lambda values, fill=0: values + signs * arguments.by

AUGMENTATION = Augmentation(draw, arguments=BrighterArguments)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with a source ``maps`` and an augmentation ``brighter``; the folder of its data."""
    (tmp_path / "data_plugin_for_test.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = {
        "fxdistill.data.sources": ("maps", "SOURCE"),
        "fxdistill.data.augmentations": ("brighter", "AUGMENTATION"),
    }

    def found(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
        if group not in points:
            return {}
        name, attribute = points[group]
        return {name: (metadata.EntryPoint(name, f"data_plugin_for_test:{attribute}", group),)}

    monkeypatch.setattr(registry, "_entry_points", found)
    np.save(tmp_path / "maps.npy", np.random.default_rng(0).integers(3, size=(8, 4, 4)))
    return tmp_path


def test_both_are_named_like_ours(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(installed)
    plan = defaults("maps:maps.npy", task="segmentation")
    assert plan.augmentation == ["crop:1", "brighter:0.25"]
    assert places.relative_data("maps:maps.npy", installed / "plans" / "plan.json") == "maps:../maps.npy"
    assert places.resolved_data("maps:../maps.npy", installed / "plans") == f"maps:{installed.resolve()}/maps.npy"
    found = load(plan, task="segmentation")
    options: dict[str, Any] = {"augment": plan.augmentation, "moves_targets": True}
    (batch,) = batches(found.train, 8, **options)
    # black and grey, both made darker or brighter; labels are moved by the crop, and not made brighter
    assert set(batch["images"].unique().tolist()) == {-0.25, 0.25, 0.75}
    assert set(batch["labels"].unique().tolist()) == {-100, 0, 1, 2}


def test_an_augmentation_that_fails_or_changes_the_shape_is_named(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = load(f"maps:{installed / 'maps.npy'}", task="segmentation").train
    changes: list[tuple[Any, str]] = [
        (lambda values, fill=0: values[..., 1:], r"failed: it makes images \(8, 1, 4, 3\) of \(8, 1, 4, 4\)"),
        (lambda values, fill=0: values + torch.ones(5), "failed: RuntimeError: The size of tensor a"),
    ]
    module = importlib.import_module("data_plugin_for_test")
    for change, told in changes:
        monkeypatch.setattr(module, "AUGMENTATION", Augmentation(lambda *_, change=change: change))
        with pytest.raises(DataError, match=f"the augmentation 'brighter' {told}") as caught:
            next(batches(split, 8, augment=["brighter"], moves_targets=True))
        assert caught.value.where == "entry point data_plugin_for_test:AUGMENTATION"


def test_a_source_that_gives_something_else_is_named(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = lambda request: [request]  # noqa: E731  # what its type forbids
    monkeypatch.setattr(importlib.import_module("data_plugin_for_test"), "SOURCE", Source(wrong, place="FILE"))
    with pytest.raises(DataError, match="the data source 'maps' gives a list, not a Dataset"):
        load(f"maps:{installed / 'maps.npy'}", task="segmentation")


def test_what_is_wrong_with_them_is_said_in_their_words(installed: Path) -> None:
    with pytest.raises(DataError, match="by: Input should be less than or equal to 1") as caught:
        augmentations.named(["brighter:2"])
    assert caught.value.hint == "write brighter:BY"
    (installed / "maps.npy").write_bytes(b"")
    with pytest.raises(DataError, match="the data cannot be read") as caught:
        load(f"maps:{installed / 'maps.npy'}", task="segmentation")
    assert caught.value.hint == "one array of maps"
    with pytest.raises(DataError) as caught:
        load("map:x")
    assert caught.value.hint.startswith("did you mean 'maps:FILE'?")

"""``fxdistill eval``: classes one by one, first answers, and one object for machines; also of an ONNX file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.data.load import load
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.bundle import save
from fxdistill.runtime.deployment import deploy
from tests import runs

KEYS = ["model", "task", "reads", "images", "metric", "metrics", "of_class", "classes"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


def teacher() -> str:
    runs.plan_file()
    return str(runs.workshop() / "teacher.pt")


def told(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["eval", *words, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert list(found) == KEYS
    return found


def test_classes_first_answers_and_the_same_of_the_onnx_file(tmp_path: Path) -> None:
    deploy.export(teacher(), tmp_path / "t.onnx", data="digits")
    words = ("--data", "digits", "--per-class", "--top", "2", "--top", "3")
    ours, theirs = (told(model, *words) for model in (teacher(), str(tmp_path / "t.onnx")))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["classes"] == theirs["classes"]
    assert list(ours["metrics"]) == ["accuracy", "top-2", "top-3"]
    assert (ours["task"], ours["metric"], ours["of_class"], ours["images"]) == (
        "classification", "accuracy", "accuracy", 537,
    )  # fmt: skip
    labels = load("digits").test.labels
    assert [(one["class"], one["count"]) for one in ours["classes"]] == [
        (str(number), count) for number, count in enumerate(labels.bincount().tolist())
    ]
    right = sum(one["count"] * one["value"] for one in ours["classes"])
    assert right / 537 == pytest.approx(ours["metrics"]["accuracy"])
    assert len({one["value"] for one in ours["classes"]}) > 3


def test_people_get_a_table_that_fits() -> None:
    done = CliRunner().invoke(app, ["eval", teacher(), "--data", "digits", "--per-class"], env={"COLUMNS": "60"})
    assert done.exit_code == 0, done.output
    head, *rows = done.output.partition("\n\n")[2].splitlines()
    assert head.split() == ["class", "images", "accuracy"]
    assert [row.split()[0] for row in rows] == [str(number) for number in range(10)]
    assert all(row.endswith("%") for row in rows)
    assert "accuracy" in done.output.partition("\n\n")[0]


class Pixels(nn.Module):
    """A class a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        found: torch.Tensor = self.layer(x)
        return found


def saved(folder: Path, name: str, task: str) -> tuple[str, ...]:
    """A model and data of a task, as words."""
    chance = np.random.default_rng(0)
    images = chance.integers(256, size=(12, 3, 8, 8), dtype=np.uint8)
    head = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Pixels() if task == "segmentation" else head
    labels: Any = {
        "segmentation": chance.integers(3, size=(12, 8, 8)), "multilabel": chance.integers(2, size=(12, 3)),
        "regression": chance.random((12, 3), dtype=np.float32),
    }.get(task, np.arange(12) % 3)  # fmt: skip
    np.savez(
        folder / "data.npz", train_images=images, train_labels=labels, test_images=images[:6], test_labels=labels[:6]
    )
    torch.manual_seed(0)
    save(model, folder / name, input_shape=(1, 3, 8, 8))
    return str(folder / name), "--data", f"npz:{folder / 'data.npz'}", "--task", task


@pytest.mark.parametrize(
    ("task", "of_class", "counted"),
    [
        ("segmentation", "IoU", 6 * 64),
        ("multilabel", "AP", None),
        ("retrieval", "mAP", 6),
        ("classification", "accuracy", 6),
    ],
)
def test_each_task_says_what_a_class_reaches(tmp_path: Path, task: str, of_class: str, counted: int | None) -> None:
    more = ("--embedding", "output") if task == "retrieval" else ()
    found = told(*saved(tmp_path, "m.pt", task), *more, "--per-class")
    assert found["of_class"] == of_class
    assert [one["class"] for one in found["classes"]] == ["0", "1", "2"]
    if counted is not None:
        assert sum(one["count"] for one in found["classes"]) == counted
    mean = sum(one["value"] for one in found["classes"]) / 3
    assert found["metrics"][found["metric"]] == pytest.approx(
        mean, rel=1e-5
    )  # the classes are of one size, or the mean's


def test_what_has_no_classes_is_refused_with_a_reason(tmp_path: Path) -> None:
    words = saved(tmp_path, "m.pt", "regression")
    done = CliRunner().invoke(app, ["eval", *words, "--per-class"])
    assert (done.exit_code, "has no classes to measure one by one" in done.output) == (2, True), done.output
    found = told(*words)
    assert (found["of_class"], found["classes"]) == (None, None)
    for wrong, what in (("--top", "chooses no class"), ("--at", "ranks no images")):
        done = CliRunner().invoke(app, ["eval", *words, wrong, "2"])
        assert (done.exit_code, what in done.output) == (2, True), done.output


def test_nothing_but_the_object_is_on_the_output(tmp_path: Path) -> None:
    words = saved(tmp_path, "m.pt", "classification")
    labels = np.where(np.arange(12) % 2, -1, np.arange(12) % 3)
    images = np.zeros((12, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    done = CliRunner().invoke(app, ["eval", *words, "--json", "--per-class"])
    assert done.exit_code == 0, done.output
    assert "no-labels" in done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 6
    assert sum(one["count"] for one in found["classes"]) == 6

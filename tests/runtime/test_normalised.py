"""A teacher under a normalisation that is not its own is noticed, where nobody says its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fxdistill
from fxdistill.cli.commands import app
from fxdistill.data.dataset import Dataset, Split, from_splits
from fxdistill.data.load import load
from fxdistill.errors import ChanceError
from fxdistill.models import convnet
from fxdistill.preprocessing import Preprocessing, View
from fxdistill.runtime.planning import normalised, preflight
from fxdistill.tasks import TASKS

CLASSES, SIDE = 10, 8
STUDENT = f"fxdistill.models:convnet?widths=[4,8]&classes={CLASSES}&in_channels=3&image_size={SIDE}"


class Brightness(nn.Module):
    """Knows a class by how bright its images are, as they come."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.first.weight, 1 / 3)
        self.register_buffer("centres", (torch.linspace(0.05, 0.5, CLASSES) - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        centres: Tensor = self.get_buffer("centres")
        logits: Tensor = -1e3 * (self.first(x).mean((1, 2, 3))[:, None] - centres).square()
        return logits


@pytest.fixture
def data(tmp_path: Path) -> str:
    labels = np.arange(300) % CLASSES
    images = np.broadcast_to((255 * np.linspace(0.05, 0.5, CLASSES)[labels])[:, None, None, None], (300, 3, SIDE, SIDE))
    images = images.round().astype("uint8")
    np.savez(
        tmp_path / "data.npz", train_images=images, train_labels=labels, test_images=images[:50],
        test_labels=labels[:50],
    )  # fmt: skip
    return f"npz:{tmp_path / 'data.npz'}"


def found(data: str, module: nn.Module, change: Callable[[Dataset], Preprocessing]) -> normalised.Better | None:
    dataset, task = load(data), TASKS.get("classification")
    return normalised.better("teacher", module, dataset, task, taken=change(dataset), entry="")


@pytest.mark.parametrize(("own", "options", "told"), [
    ((0.0, 1.0), "--mean 0,0,0 --std 1,1,1", "with pixels as they are"),
    ((0.5, 0.5), "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5", "with 0.5 and 0.5"),
])  # fmt: skip
def test_the_usual_one_that_is_clearly_better_is_named(
    data: str, own: tuple[float, float], options: str, told: str
) -> None:
    better = found(data, Brightness(*own), lambda dataset: dataset.preprocessing)
    assert better is not None
    assert better.options == options
    assert f"on 128 training images, where {told} it would reach 100.00%" in better.remark.why
    assert better.remark.why.startswith("nothing but the data says")
    assert options in (better.remark.hint or "")


def test_nothing_is_said_where_it_is_known_or_right(data: str) -> None:
    def said(dataset: Dataset) -> Preprocessing:
        return dataset.preprocessing.changed(source=Preprocessing(size=[8, 8]).source.changed(normalisation="the file"))

    assert found(data, Brightness(), said) is None
    dataset = load(data)
    assert found(data, Brightness(dataset.mean[0], dataset.std[0]), lambda one: one.preprocessing) is None


@pytest.mark.parametrize("classes", [2, 10])
def test_one_that_knows_nothing_knows_nothing_under_any(classes: int) -> None:
    made = torch.Generator().manual_seed(0)
    split = Split(torch.rand(256, 3, SIDE, SIDE, generator=made), torch.randint(classes, (256,), generator=made))
    dataset = from_splits({"train": split}, None, where="noise", task=TASKS.get("classification"))
    for seed in range(20):
        torch.manual_seed(seed)
        module = convnet(widths=[4, 8], classes=classes, in_channels=3, image_size=SIDE)
        assert normalised.better(
            "teacher", module, dataset, TASKS.get("classification"), taken=dataset.preprocessing, entry=""
        ) is None  # fmt: skip


def test_a_plan_says_so(data: str, tmp_path: Path) -> None:
    def planned() -> set[str]:
        made = fxdistill.make_plan(
            tmp_path / "teacher.pt", STUDENT, tmp_path / "plan.json", data=data, method="kd", epochs=1,
            allow=(__name__,),
        )  # fmt: skip
        return {remark.code for remark in made.diagnostics}

    fxdistill.save(Brightness(), tmp_path / "teacher.pt", input_shape=(1, 3, SIDE, SIDE))
    assert "other-normalisation" in planned()
    known = Preprocessing(size=[SIDE, SIDE], mean=[0.0] * 3, std=[1.0] * 3)
    fxdistill.save(Brightness(), tmp_path / "teacher.pt", input_shape=(1, 3, SIDE, SIDE), preprocessing=known)
    assert "other-normalisation" not in planned()


def test_a_refusal_names_what_makes_it_know_more(data: str) -> None:
    dataset = load(data)
    with pytest.raises(ChanceError) as refused:
        preflight.taught(
            "teacher", Brightness(), dataset, TASKS.get("classification"),
            view=View(None, mean=(9.0,) * 3, std=(1.0,) * 3), entry="", otherwise="--mean 0,0,0 --std 1,1,1",
        )  # fmt: skip
    assert refused.value.hint == "give --mean 0,0,0 --std 1,1,1, with which it knows more"


def test_what_a_file_reaches_by_itself_is_told_with_it(data: str, tmp_path: Path) -> None:
    fxdistill.save(Brightness(), tmp_path / "teacher.pt", input_shape=(1, 3, SIDE, SIDE))
    words = ["eval", str(tmp_path / "teacher.pt"), "--data", data, "--allow-factory", __name__]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "warning other-normalisation" in done.stderr) == (0, True)
    done = CliRunner().invoke(app, [*words, "--mean", "0,0,0", "--std", "1,1,1"])
    assert done.stdout.count("accuracy 100.00% on 50 test images") == 1
    assert "other-normalisation" not in done.stderr

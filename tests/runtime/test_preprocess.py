"""Which preprocessing a model has: options, its file, its library, the data, in this order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fxdistill import container, models
from fxdistill.errors import DataError, InputError, ModelError
from fxdistill.modelfiles.bundle import KIND, save
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.plan.file import load as load_plan
from fxdistill.preprocessing import Preprocessing, Wishes, in_words
from fxdistill.runtime.deployment import deploy
from fxdistill.runtime.planning import preprocess
from fxdistill.runtime.smaller import shrinking
from fxdistill.tasks import TASKS
from tests import jobs

TASK = TASKS.get("classification")
RESNET = "torchvision.models:resnet18"
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OWN = Preprocessing(size=[20, 20], resize=[25, 25], mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], interpolation="bicubic")


def given(factory: str | None = None, **changes: Any) -> LoadedModel:
    """A trained model of three channels."""
    module = changes.pop("module", nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return replace(LoadedModel(module, Path("x.pt"), "0", factory), **changes)


def found(*loaded: LoadedModel, data: str | None = None, wishes: Any = None, shape: Any = None) -> preprocess.Seen:
    named = dict(zip(("teacher", "student"), loaded, strict=False))
    return preprocess.look(named, data, task=TASK, wishes=wishes or {}, shape=shape)


def colours(folder: Path, size: int = 8) -> str:
    """Arrays of a size of their own, four classes."""
    generator = np.random.default_rng(0)
    parts: dict[str, Any] = {
        f"{part}_{kind}": value
        for part in ("train", "test")
        for kind, value in (("images", generator.integers(0, 255, (8, size, size, 3), dtype=np.uint8)),
                            ("labels", np.arange(8) % 4))
    }  # fmt: skip
    np.savez(folder / "a.npz", **parts)
    return f"npz:{folder / 'a.npz'}"


def photographs(folder: Path) -> str:
    for part in ("train", "test"):
        for label in range(4):
            (folder / part / f"c{label}").mkdir(parents=True)
            for index, size in enumerate([(60, 40), (33, 80)]):
                noise = np.random.default_rng(index + 10 * label).integers(0, 255, (*size, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / part / f"c{label}" / f"{index}.png")
    return f"imagefolder:{folder}"


def test_each_part_is_taken_from_the_first_that_says_it(tmp_path: Path) -> None:
    spec = photographs(tmp_path)
    nobody = found(given(), data=spec).preprocessing["teacher"]
    assert (nobody.size, nobody.resize) == ([224, 224], [256, 256])
    assert (nobody.source.geometry, nobody.source.normalisation) == (preprocess.NOBODY, "the data")
    library = found(given(RESNET), data=spec).preprocessing["teacher"]
    assert (library.mean, library.std) == IMAGENET
    assert library.source.normalisation == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    sized = found(given(RESNET, input_shape=(1, 3, 64, 64)), data=spec).preprocessing["teacher"]
    assert (sized.size, sized.resize, sized.mean) == ([64, 64], [73, 73], IMAGENET[0])
    assert sized.source.geometry == f"the file's input shape, {library.source.geometry}"  # which says the share
    stored = found(given(RESNET, preprocessing=OWN, input_shape=(1, 3, 64, 64)), data=spec)
    assert stored.preprocessing["teacher"] == OWN
    assert stored.shape == (1, 3, 20, 20)
    wish = Wishes(size=(30, 40), crop=0.5, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    said = found(given(RESNET, preprocessing=OWN), data=spec, wishes={"teacher": wish}).preprocessing["teacher"]
    assert (said.size, said.resize, said.interpolation, said.mean) == ([30, 40], [60, 80], "bicubic", [0.5] * 3)
    assert (said.source.geometry, said.source.normalisation) == ("--crop, --size", "--mean, --std")
    wish = Wishes(size=(30, 40), crop=0.5, interpolation="nearest")
    said = found(given(RESNET), data=spec, wishes={"teacher": wish}).preprocessing["teacher"]
    assert said.source.geometry == "--crop, --interpolation, --size"
    assert found(given(RESNET), data=spec, shape=(1, 3, 96, 96)).shape == (1, 3, 96, 96)


def test_arrays_keep_their_size_unless_the_model_says_another(tmp_path: Path) -> None:
    spec = colours(tmp_path)
    plain = found(given(RESNET), data=spec)
    assert plain.preprocessing["teacher"].size == [8, 8]
    assert plain.preprocessing["teacher"].mean == IMAGENET[0]
    assert plain.remarks == ()
    for other in (given(preprocessing=OWN), given(input_shape=(1, 3, 20, 20))):
        read = found(other, data=spec)
        assert (read.shape, read.preprocessing["teacher"].size) == ((1, 3, 8, 8), [20, 20])
        (remark,) = read.remarks
        assert (remark.code, "are 8x8; the teacher reads them resized to 20x20" in remark.why) == ("resized", True)
    with pytest.raises(DataError, match="the images are 3x8x8"):
        found(given(input_shape=(1, 1, 8, 8)), data=spec)
    for shape in ((1,), (1, 4), (1, 3, 8, 8, 8)):
        with pytest.raises(ModelError, match=r"the teacher takes batches of .*, which are no images"):
            found(given(input_shape=shape), data=spec)
    with pytest.raises(InputError, match="mean and std have 1 entries, the images have 3 channels"):
        found(given(), data=spec, wishes={"teacher": Wishes(mean=(0.5,), std=(0.5,))})


def test_random_weights_take_over_the_preprocessing_of_the_other_model(tmp_path: Path) -> None:
    spec = photographs(tmp_path)
    read = found(given(preprocessing=OWN), given(RESNET, random_weights=True, path=None), data=spec).preprocessing
    assert read["student"].changed(source=read["teacher"].source) == read["teacher"]
    assert read["student"].source.geometry == "as the teacher"
    read = found(given(preprocessing=OWN), given(RESNET, random_weights=True), data=spec,
                 wishes={"student": Wishes(size=(16, 16))}).preprocessing  # fmt: skip
    assert (read["student"].size, read["teacher"].size) == ([16, 16], [20, 20])
    read = found(given(preprocessing=OWN), given(RESNET), data=spec).preprocessing
    assert read["student"].mean == IMAGENET[0]  # trained: its own


def test_caffes_numbers_are_of_pixels_to_255(tmp_path: Path) -> None:
    wish = Wishes(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    said = found(given(), data=colours(tmp_path), wishes={"teacher": wish}).preprocessing["teacher"]
    assert said.range == 255
    assert "pixels to 255" in in_words(said)


def test_what_is_made_smaller_at_another_size_reads_images_of_that_one(tmp_path: Path) -> None:
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    for own in (OWN, Preprocessing(size=[20, 20])):
        save(nn.Sequential(*layers).eval(), tmp_path / "a.pt", input_shape=(1, 3, 20, 20), preprocessing=own)
        shrinking.shrink(tmp_path / "a.pt", tmp_path / "small.pt", keep=0.5, input_shape=(1, 3, 24, 16))
        small = load(tmp_path / "small.pt")
        assert small.input_shape == (1, 3, 24, 16)
        assert small.preprocessing is not None
        assert (small.preprocessing.size, small.preprocessing.mean) == ([24, 16], own.mean)


def test_a_bundle_holds_it(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"widths": [4, 8], "classes": 4, "in_channels": 3, "image_size": 20}
    save(models.convnet(**kwargs), tmp_path / "a.pt", factory="fxdistill.models:convnet", kwargs=kwargs,
         preprocessing=OWN)  # fmt: skip
    loaded = load(tmp_path / "a.pt")
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.changed(source=OWN.source) == OWN
    shrinking.shrink(tmp_path / "a.pt", tmp_path / "small.pt", keep=0.5)
    small = load(tmp_path / "small.pt").preprocessing
    assert small is not None
    assert small.changed(source=OWN.source) == OWN
    _, content = container.read(tmp_path / "a.pt", kinds=(KIND,))
    content["preprocessing"]["std"] = [0.0, 1.0, 1.0]
    container.write(tmp_path / "b.pt", KIND, content)
    with pytest.raises(ModelError, match="preprocessing is not valid") as caught:
        load(tmp_path / "b.pt")
    assert "preprocessing.std.0" in str(caught.value.where)


class Sized(nn.Module):
    """Takes images of one size only."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(1, width, 3, 2, 1), nn.Linear(width * (size // 2) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.a(x)).flatten(1))
        return logits


def sized(width: int = 4, size: int = 8) -> nn.Module:
    return Sized(width, size)


def test_members_of_two_sizes_are_planned_and_trained(tmp_path: Path) -> None:
    """The teacher reads 16x16 images, the student 8x8, which is what the data has."""
    files = []
    for name, width, size in (("teacher", 16, 16), ("student", 4, 8)):
        torch.manual_seed(0)
        kwargs = {"width": width, "size": size}
        save(sized(**kwargs), tmp_path / f"{name}.pt", factory="tests.runtime.test_preprocess:sized", kwargs=kwargs,
             input_shape=(1, 1, size, size))  # fmt: skip
        files.append(tmp_path / f"{name}.pt")
    allow = ("--allow-factory", "tests.runtime.test_preprocess")
    said = jobs.done("plan", *files, *allow, "--data", "digits", "--method", "kd", "--epochs", 4, "--lr", "0.03",
                     "--force", "-o", tmp_path / "plan.json")  # fmt: skip
    assert "resized to 16x16" in " ".join(said.split())
    plan = load_plan(tmp_path / "plan.json")
    assert (plan.shape_of("teacher"), plan.shape_of("student")) == ((1, 1, 16, 16), (1, 1, 8, 8))
    jobs.done("run", tmp_path / "plan.json", "-o", tmp_path / "run", *allow, "--device", "cpu", "--force")
    evaluated = deploy.evaluate(tmp_path / "run", allow=allow[1:])["accuracy"]
    assert evaluated > 0.3
    jobs.done("plan", *files, *allow, "--data", "digits", "--no-measure", "-o", tmp_path / "pairs.json")
    (pair,) = load_plan(tmp_path / "pairs.json").pairs
    assert (pair.teacher.shape[2:], pair.student.shape[2:]) == ([8, 8], [4, 4])
    by_option = jobs.done("plan", *files, *allow, "--data", "digits", "--method", "kd", "--size", "teacher=16",
                          "--mean", "0.5", "--std", "student=0.1", "--std", "teacher=0.2", "--no-measure",
                          "-o", tmp_path / "b.json")  # fmt: skip
    assert "(--mean, --std)" in " ".join(by_option.split())
    other = load_plan(tmp_path / "b.json")
    stds = [other.given(name).preprocessing for name in ("teacher", "student")]
    assert [one.std for one in stds if one is not None] == [[0.2], [0.1]]


@pytest.mark.parametrize("shape", [(1, 8, 8), (8,), (1, 1, 1, 8, 8)])
def test_a_shape_without_a_batch_is_said_to_be_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="no shape of a batch of images"):
        deploy.evaluate(sized(), "digits", input_shape=shape)
    with pytest.raises(InputError, match="no shape of a batch of images"):
        shrinking.shrink(sized(), keep=0.5, input_shape=shape)


def test_from_python_a_tuple_is_as_good_as_a_list() -> None:
    tuples = Preprocessing.model_validate({"size": (20, 20), "mean": (0.5,), "std": (0.25,), "channels": "gray"})
    assert tuples == Preprocessing(size=[20, 20], mean=[0.5], std=[0.25], channels="gray")
    with pytest.raises(ValueError, match="greater than 0"):
        Preprocessing.model_validate({"size": (0, 20)})

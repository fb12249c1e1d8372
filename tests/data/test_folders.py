"""Folders of image files as people have them: which files count, which splits there are, which label an image gets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fxdistill.data.dataset import Dataset, Split
from fxdistill.data.load import load
from fxdistill.data.sources import _images
from fxdistill.errors import DataError
from fxdistill.preprocessing import Fit, Reading

SHAPE = Reading((4, 4), (4, 4))


def write(path: Path, value: int = 0, *, size: tuple[int, int] = (6, 5), **options: Any) -> None:
    """An image whose every pixel has one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path, **options)


def values(found: Dataset, name: str) -> list[int]:
    split = found.split(name)
    (images,) = split.read([torch.arange(len(split))])
    return [int(image.float().mean().round()) for image in images]


def codes(found: Dataset) -> set[str]:
    return {remark.code for remark in found.remarks}


def test_a_class_is_the_first_folder_below_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train" / "dog" / "a.png", 10)
    write(tmp_path / "train" / "dog" / "deep" / "deeper" / "b.PNG", 20)
    write(tmp_path / "train" / "cat" / "c.gif", 30)
    write(tmp_path / "test" / "dog" / "d.Jpeg", 40, format="JPEG")
    found = load(f"imagefolder:{tmp_path}", reading=SHAPE)
    assert found.classes == ("cat", "dog")
    assert (values(found, "train"), found.train.labels.tolist()) == ([30, 10, 20], [0, 1, 1])
    assert (values(found, "test"), found.test.labels.tolist()) == ([40], [1])
    assert [(remark.code, remark.severity, remark.why) for remark in found.remarks] == [
        ("empty-class", "note", "there are no images of the class cat")
    ]


def test_what_is_hidden_or_no_image_is_nobodys_data(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "a.png", 10)
    write(tmp_path / "test" / "cat" / "a.png", 20)
    (tmp_path / "train" / "cat" / "._a.png").write_bytes(b"a resource fork")
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".cache" / "train").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "again").symlink_to(tmp_path / "train")
    found = load(f"imagefolder:{tmp_path}", reading=SHAPE)
    assert found.classes == ("cat",)
    assert values(found, "train") == [10]


def test_an_empty_class_keeps_its_number_and_is_said(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write(tmp_path / part / "a" / "x.png")
        write(tmp_path / part / "c" / "x.png")
    (tmp_path / "train" / "b").mkdir()
    found = load(f"imagefolder:{tmp_path}", reading=SHAPE)
    assert found.classes == ("a", "b", "c")
    assert found.test.labels.tolist() == [0, 2]
    said = next(remark for remark in found.remarks if remark.where.endswith("train"))
    assert (said.severity, said.why) == ("warning", "there are no images of the class b")


@pytest.mark.parametrize(
    ("parts", "train", "val", "test", "said"),
    [
        (("train", "val", "test"), 0, 1, 2, False),
        (("train", "valid", "test"), 0, 1, 2, False),
        (("train", "val"), 0, None, 1, True),
        (("train", "test"), 0, None, 1, False),
        (("val",), 0, None, 0, False),
        (("train",), 0, None, 0, False),
        (("val", "test"), 1, None, 1, False),
        ((), 0, None, 0, False),
    ],
)
@pytest.mark.parametrize("kind", ["imagefolder", "images", "masks"])
def test_which_split_is_which(
    tmp_path: Path, parts: tuple[str, ...], train: int, val: int | None, test: int, said: bool, kind: str
) -> None:
    for value, part in enumerate(parts or (".",)):
        write(tmp_path / part / ("images" if kind == "masks" else "cat") / "x.png", value)
        if kind == "masks":
            (tmp_path / part / "masks").mkdir()
            Image.fromarray(np.full((5, 6), 1, np.uint8)).save(tmp_path / part / "masks" / "x.png")
    task = "segmentation" if kind == "masks" else "classification"
    found = load(f"{kind}:{tmp_path}", reading=SHAPE, task=task)
    assert values(found, "train") == [train]
    assert values(found, "test") == [test]
    assert (None if found.val is None else values(found, "val")) == (None if val is None else [val])
    assert found.is_one is (train == test)
    assert ("val-is-test" in codes(found)) is said
    assert ("val-unread" in codes(found)) is (parts == ("val", "test"))


@pytest.mark.parametrize("kind", ["imagefolder", "images"])
def test_folders_that_are_wrong(tmp_path: Path, kind: str) -> None:
    def refused(message: str) -> str:
        with pytest.raises(DataError, match=message) as caught:
            load(f"{kind}:{tmp_path}", reading=SHAPE)
        assert caught.value.hint
        assert caught.value.exit_code == 2
        return caught.value.where

    refused("there are no images")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    refused("there are no images")
    write(tmp_path / "train" / "cat" / "x.png")
    write(tmp_path / "val" / "cat" / "x.png")
    write(tmp_path / "valid" / "cat" / "x.png")
    refused("val and valid are both the val split")
    write(tmp_path / "valid" / "cat" / "x.png")
    (tmp_path / "val").rename(tmp_path / "test")
    (tmp_path / "test" / "cat" / "x.png").write_bytes(b"broken")
    assert refused("the image cannot be read").endswith("x.png")


def test_splits_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write(tmp_path / part / "x.png")
    with pytest.raises(DataError, match=r"train and val in .* have no classes in them") as caught:
        load(f"imagefolder:{tmp_path}", reading=SHAPE)
    assert "images:DIR" in caught.value.hint
    assert len(load(f"images:{tmp_path}", reading=SHAPE).train) == 1


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        write(tmp_path / name / "x.png")
    assert load(f"imagefolder:{tmp_path}", reading=SHAPE).classes == ("bus", "car", "train")


@pytest.mark.parametrize("task", ["classification", "segmentation", "regression", "multilabel", "retrieval"])
def test_images_without_labels_for_every_task(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        write(tmp_path.joinpath(*["deep"] * index) / f"{index}.jpg", quality=95)
    for _ in range(2):
        found = load(f"images:{tmp_path}", reading=SHAPE, task=task)
        assert (len(found.train), found.is_one, found.classes) == (3, True, ())
        assert not found.has_labels("train")
        assert found.train.labels.shape == ((3, 4, 4) if task == "segmentation" else (3,))
        assert codes(found) == {"no-labels"}
        monkeypatch.setattr(_images, "IN_MEMORY", 0)


def masked(root: Path, mask: Any, *, size: tuple[int, int] = (8, 6), mode: str | None = None) -> str:
    (root / "masks").mkdir(parents=True, exist_ok=True)
    write(root / "images" / "x.png", size=size)
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    (image if mode is None else image.convert(mode)).save(root / "masks" / "x.png")
    return f"masks:{root}"


NUMBERS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5


def palette(numbers: Any) -> Image.Image:
    image = Image.fromarray(numbers)
    image.putpalette([value for index in range(256) for value in (255 - index, 0, 7)])
    return image


@pytest.mark.parametrize("kind", ["gray", "palette", "deep"])
def test_masks_hold_class_numbers(tmp_path: Path, kind: str) -> None:
    numbers = NUMBERS.copy()
    numbers[0, 0] = 255
    image = {"gray": Image.fromarray(numbers), "palette": palette(numbers)}.get(
        kind, Image.fromarray(numbers.astype(np.uint16))
    )
    assert image.mode == {"gray": "L", "palette": "P"}.get(kind, "I;16")
    found = load(masked(tmp_path, image), reading=Reading((6, 8), (6, 8)), task="segmentation")
    expected = torch.from_numpy(numbers.astype(np.int64))
    expected[0, 0] = -100
    assert torch.equal(found.test.labels[0], expected)
    assert found.classes == tuple("01234")


def test_masks_are_cut_as_their_images_are(tmp_path: Path) -> None:
    """The image tells its mask: gray = 50 * class, in blocks that no resizing mixes."""
    blocks = np.kron(np.arange(24).reshape(4, 6) % 5, np.ones((8, 8))).astype(np.uint8)
    spec = masked(tmp_path, blocks)
    Image.fromarray(blocks * 50).save(tmp_path / "images" / "x.png")
    found = load(spec, reading=Reading((16, 16), (16, 16), channels=1), task="segmentation")
    assert isinstance(found.test, Split)
    inside = found.test.images[0, 0].float().div(50)
    middle = (inside - inside.round()).abs() < 0.02  # beside a border, pixels are mixed
    assert middle.float().mean() > 0.2
    assert torch.equal(inside.round().long()[middle], found.test.labels[0][middle])


def test_a_mask_is_turned_as_its_exif_data_says(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 3  # by half a turn
    spec = masked(tmp_path, NUMBERS)
    for name, values in (("images", NUMBERS * 50), ("masks", NUMBERS)):
        Image.fromarray(values).save(tmp_path / name / "x.png", exif=turned)
    found = load(spec, reading=Reading((6, 8), (6, 8), channels=1), task="segmentation")
    (images,) = found.test.read([torch.tensor([0])])
    assert torch.equal(images[0, 0].long(), found.test.labels[0] * 50)
    assert found.test.labels[0].tolist() == NUMBERS[::-1, ::-1].tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((6, 8, 3), np.uint8), "the mask has the mode RGB, which holds colours"),
        (np.zeros((8, 6), np.uint8), "image and mask have the sizes 8x6 and 6x8"),
        (np.where(NUMBERS > 2, 255, 0).astype(np.uint8), "hold 0 and 255 alone"),
    ],
)
def test_masks_that_are_wrong(tmp_path: Path, mask: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(masked(tmp_path, mask), reading=SHAPE, task="segmentation")
    assert caught.value.hint


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_what_pads_a_map_is_not_taken_for_white(tmp_path: Path, fit: Fit) -> None:
    """One class all over, padded from 6x8 to 8x8: where nothing is, nothing has a label."""
    found = load(
        masked(tmp_path, np.zeros((6, 8), np.uint8)), reading=Reading((8, 8), (6, 8), fit), task="segmentation"
    )
    assert found.test.labels[0, :, 0].tolist() == [-100, *[0] * 6, -100]


def test_images_and_masks_that_are_alone(tmp_path: Path) -> None:
    spec = masked(tmp_path, NUMBERS)
    write(tmp_path / "images" / "y.png")
    with pytest.raises(DataError, match="the image has no mask, as 1 of 2") as caught:
        load(spec, reading=SHAPE, task="segmentation")
    assert caught.value.where.endswith("y.png")
    (tmp_path / "images" / "y.png").unlink()
    Image.fromarray(NUMBERS).save(tmp_path / "masks" / "z.png")
    with pytest.raises(DataError, match="the mask has no image, as 1 of 2"):
        load(spec, reading=SHAPE, task="segmentation")
    (tmp_path / "masks" / "z.png").unlink()
    (tmp_path / "masks" / "x.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="image or mask cannot be read"):
        load(spec, reading=SHAPE, task="segmentation")

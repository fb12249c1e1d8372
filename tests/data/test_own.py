"""What a factory of the user's own may return: each form gives the images and labels that it holds, or says why not."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data import Dataset as TorchDataset

from fxdistill.data import items, own
from fxdistill.data.dataset import Dataset, Split
from fxdistill.data.items import Items
from fxdistill.errors import DataError
from fxdistill.preprocessing import Reading
from fxdistill.tasks import TASKS

COUNT = 20
PIXELS = torch.randint(256, (COUNT, 1, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 3


class Mapped(TorchDataset[Any]):
    """A map-style data set of what a function makes of each position."""

    def __init__(self, item: Callable[[int], Any], count: int = COUNT) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def read(found: Any, task: str = "classification", shape: tuple[int, int, int] | None = None) -> Dataset:
    how = None if shape is None else Reading(shape[1:], shape[1:], channels=shape[0])
    return own.read(found, where="my.module:data", task=TASKS.get(task), reading=how)


def images(found: Dataset, name: str = "test") -> Tensor:
    split = found.split(name)
    return torch.cat(list(split.read(torch.split(torch.arange(len(split)), 7))))


def array(index: int) -> Any:
    return PIXELS[index, 0].numpy()


def picture(index: int, mode: str = "L") -> Image.Image:
    return Image.fromarray(array(index)).convert(mode)


TENSORS = TensorDataset(PIXELS, LABELS)


@pytest.mark.parametrize(
    "items",
    [
        TENSORS,
        ConcatDataset([Subset(TENSORS, range(12)), Subset(TENSORS, range(12, COUNT))]),
        [(PIXELS[i], i % 3) for i in range(COUNT)],
        Mapped(lambda i: (PIXELS[i, 0], torch.tensor(i % 3))),
        Mapped(lambda i: (picture(i), i % 3)),
        Mapped(lambda i: [picture(i, "LA"), np.int64(i % 3)]),
        Mapped(lambda i: (array(i), i % 3)),
        Mapped(lambda i: (array(i)[..., None], i % 3)),
        Mapped(lambda i: (array(i).astype(np.uint16) * 257, i % 3)),
        Mapped(lambda i: (array(i).astype(">u2") * 257, i % 3)),
        Mapped(lambda i: ((array(i) / 255).astype(">f4"), np.array(i % 3, ">i4"))),
        Mapped(lambda i: (PIXELS[i] / 255, i % 3)),
        Mapped(lambda i: (PIXELS[i].double() / 255, i % 3)),
        Mapped(lambda i: {"image": picture(i), "label": i % 3}),
        Mapped(lambda i: {"img": PIXELS[i], "target": i % 3, "name": "x"}),
        (PIXELS, LABELS),
        (PIXELS.numpy(), LABELS.numpy()),
        ((PIXELS.numpy() / 255).astype(">f8"), LABELS.numpy().astype(">i2")),
        (PIXELS.numpy()[..., ::-1].copy()[..., ::-1], LABELS.numpy()[::-1].copy()[::-1]),
        DataLoader(TENSORS, batch_size=3, shuffle=True),
    ],
)
def test_every_form_of_items(items: Any) -> None:
    found = read({"train": TENSORS, "test": items})
    pixels = images(found)
    assert torch.equal(pixels if pixels.dtype == torch.uint8 else pixels.mul(255).round().byte(), PIXELS)
    assert found.test.labels.dtype == torch.int64
    assert torch.equal(found.test.labels, LABELS)
    assert found.classes == ("0", "1", "2")


def test_colours_stay_colours() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    wanted = torch.from_numpy(colours).permute(0, 3, 1, 2)
    alpha = np.concatenate([colours, colours[..., :1]], 3)
    forms: list[Callable[[int], Any]] = [
        lambda i: colours[i], lambda i: wanted[i], lambda i: Image.fromarray(colours[i]), lambda i: alpha[i]
    ]  # fmt: skip
    for form in forms:
        assert torch.equal(images(read(Mapped(form, 4))), wanted)
    assert torch.equal(images(read((colours, None))), wanted)
    assert images(read(Mapped(forms[0], 4), shape=(1, 5, 6))).shape == (4, 1, 5, 6)


@pytest.mark.parametrize(
    ("found", "train", "val", "test"),
    [
        (TENSORS, 20, None, 20),
        ((PIXELS, LABELS), 20, None, 20),
        ((TENSORS, Subset(TENSORS, range(5))), 20, None, 5),
        ([TENSORS, Subset(TENSORS, range(5))], 20, None, 5),
        (((PIXELS, LABELS), (PIXELS[:4], LABELS[:4])), 20, None, 4),
        ((TENSORS, (PIXELS[:4], LABELS[:4])), 20, None, 4),
        ({"train": TENSORS, "val": Subset(TENSORS, range(6)), "test": Subset(TENSORS, range(5))}, 20, 6, 5),
        ({"train": TENSORS, "validation": Subset(TENSORS, range(6))}, 20, None, 6),
        ((DataLoader(TENSORS), DataLoader(TENSORS, sampler=SubsetRandomSampler([3, 1, 4]))), 20, None, 3),
    ],
)
def test_which_split_is_which(found: Any, train: int, val: int | None, test: int) -> None:
    made = read(found)
    assert (len(made.train), None if made.val is None else len(made.val), len(made.test)) == (train, val, test)
    assert made.is_one is (train == test)


def test_a_loader_is_said_and_its_choice_is_followed() -> None:
    made = read(DataLoader(TENSORS, sampler=SubsetRandomSampler([3, 1, 4])))
    assert made.test.labels.tolist() == [0, 1, 1]
    assert [remark.code for remark in made.remarks] == ["data-loader"]
    with pytest.raises(DataError, match="chooses its images by a WeightedRandomSampler, which is not followed"):
        read(DataLoader(TENSORS, sampler=WeightedRandomSampler([1.0] * COUNT, 5)))


def test_other_sizes_are_brought_to_one() -> None:
    def mixed(index: int) -> Any:
        picture = Image.new("RGB", (4 + index, 6), (10 * index, 0, 0))
        return (picture if index % 2 else torch.from_numpy(np.array(picture)).permute(2, 0, 1)), 0

    made = read(Mapped(mixed, 5), shape=(3, 4, 4))
    assert images(made).shape == (5, 3, 4, 4)
    assert images(made)[:, 0].float().mean((1, 2)).tolist() == [0, 10, 20, 30, 40]
    assert images(read(Mapped(mixed, 5))).shape == (5, 3, 6, 4)  # those of the first one
    floats = read([(torch.full((1, 8, 8), 0.5), 0), (torch.full((1, 3, 3), 0.25), 0)])
    assert images(floats).mean((1, 2, 3)).tolist() == pytest.approx([0.5, 0.25], abs=1 / 255)


def test_labels_that_nobody_gave() -> None:
    alone = read(Mapped(lambda i: PIXELS[i]))
    assert alone.classes == ()
    assert not alone.has_labels("test")
    some = read(Mapped(lambda i: (PIXELS[i], None if i % 2 else i % 3)))
    assert some.test.labels.tolist() == [-100 if i % 2 else i % 3 for i in range(COUNT)]
    assert [remark.why.split(" images")[0] for remark in some.remarks] == ["10 of 20"]
    first = read(Mapped(lambda i: (PIXELS[i], None if i < 5 else [1, 0, 1])), "multilabel")
    assert first.test.labels.shape == (COUNT, 3)
    assert first.test.labels[:5].isnan().all()
    assert not read(TensorDataset(PIXELS)).has_labels("test")
    mixed = read({"train": ((PIXELS, None)), "test": (PIXELS, LABELS)})
    assert (mixed.has_labels("train"), mixed.has_labels("test")) == (False, True)


def test_targets_of_other_tasks() -> None:
    numbers = read(Mapped(lambda i: (PIXELS[i], i / 2)), "regression")
    assert numbers.test.labels.tolist() == [i / 2 for i in range(COUNT)]
    rows = read(Mapped(lambda i: (PIXELS[i], np.array([1, 0, i % 2]))), "multilabel")
    assert rows.test.labels[:2].tolist() == [[1, 0, 0], [1, 0, 1]]
    assert rows.classes == ("0", "1", "2")


@pytest.mark.parametrize("kind", ["tensor", "picture", "turned"])
def test_maps_are_brought_to_the_size_of_their_images(kind: str) -> None:
    """Blocks of 4x4 pixels of one class become single pixels, and a class is 40 times darker than its pixel."""
    blocks = np.kron(np.arange(20).reshape(4, 5) % 6, np.ones((4, 4))).astype(np.uint8)

    def item(_: int) -> Any:
        if kind != "tensor":
            pair = Image.fromarray(blocks * 40), Image.fromarray(blocks)
            for image in pair if kind == "turned" else ():
                image.getexif()[0x0112] = 3  # by half a turn
            return pair
        return torch.from_numpy(blocks * 40)[None], torch.from_numpy(blocks.astype(np.int64))

    made = read(Mapped(item, 3), "segmentation", (1, 4, 5))
    expected = torch.from_numpy(blocks[::4, ::4].astype(np.int64))
    assert torch.equal(made.test.labels[0], expected.flip(0, 1) if kind == "turned" else expected)
    assert made.test.labels.shape == (3, 4, 5)
    same = read(Mapped(item, 3), "segmentation")
    assert torch.equal(same.test.labels[0] * 40, images(same)[0, 0].long())


@pytest.mark.parametrize("wanted", [1, 3])
def test_colours_alone_leave_an_image_where_its_map_is(wanted: int) -> None:
    """An image of the size that is read is not resized and cut because it is gray, or not: its map is not either."""
    spot = torch.zeros(8, 8, dtype=torch.int64)
    spot[1:4, 2:5] = 1
    image = (spot * 255).to(torch.uint8).expand(4 - wanted, 8, 8)
    items = [(image, spot)] * 3
    reading = Reading((8, 8), (10, 10), channels=wanted)
    made = own.read(items, where="my.module:data", task=TASKS.get("segmentation"), reading=reading)
    assert made.image_shape == (wanted, 8, 8)
    assert torch.equal(images(made) // 255, made.test.labels[:, None].expand(3, wanted, 8, 8))


class Named(Mapped):
    classes: tuple[str, ...] = ("cat", "dog", "eel")


def test_names_of_classes_are_those_of_the_data_set() -> None:
    named = Named(lambda i: (PIXELS[i], i % 2))
    assert read((Subset(named, range(9)), TENSORS)).classes == Named.classes
    other = Named(lambda i: (PIXELS[i], i % 2))
    other.classes = ("dog", "cat", "eel")
    with pytest.raises(DataError, match="the splits name different classes"):
        read((named, other))
    other.classes = ("dog",)
    with pytest.raises(DataError, match="the label 1 has no name"):
        read(other)


def test_what_does_not_fit_is_read_by_workers_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = Mapped(lambda i: (Image.new("L", (6 + i % 3, 5), i), i % 3 if i % 4 else None))
    held = read({"train": photos, "test": photos}, shape=(1, 4, 4))
    monkeypatch.setattr(items, "IN_MEMORY", 0)
    monkeypatch.setattr(items, "_FEW", 0)
    lazy = read({"train": photos, "test": photos}, shape=(1, 4, 4))
    assert isinstance(held.test, Split)
    assert isinstance(lazy.test, Items)
    assert torch.equal(images(lazy), images(held))
    assert torch.equal(lazy.test.labels, held.test.labels)
    assert lazy.mean == held.mean
    chosen = torch.tensor([7, 2, 11])
    part = lazy.test.at(chosen).at(torch.tensor([2, 0]))
    assert torch.cat(list(part.read([torch.tensor([0, 1])])))[:, 0, 0, 0].tolist() == [11, 7]
    assert part.labels.tolist() == held.test.labels[[11, 7]].tolist()


def test_items_that_are_never_the_same_are_said() -> None:
    assert [one.code for one in read(Mapped(lambda _: torch.rand(1, 4, 4))).remarks] == ["random-items", "no-labels"]
    assert not read(TENSORS).remarks


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(PIXELS[0], 0)])


def raising(index: int) -> Any:
    if index == 13:
        raise OSError("on fire")
    return PIXELS[index], 0


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (1, "the factory returned int"),
        (None, "the factory returned NoneType"),
        ((TENSORS, TENSORS, TENSORS), "the factory returned tuple"),
        ({"training": TENSORS}, "the factory returned a mapping of training"),
        ({"val": TENSORS, "valid": TENSORS}, "the factory returned a mapping of val, valid"),
        ({}, "a mapping of none"),
        (PIXELS, "the factory returned Tensor"),
        (Stream(), "can be read in its own order only"),
        (DataLoader(Stream()), "can be read in its own order only"),
        ((TENSORS, Stream()), "can be read in its own order only"),
        (Mapped(raising, 0), "the data set is empty"),
        (Mapped(raising), "item 13: it cannot be read: OSError: on fire"),
        (Mapped(lambda i: (PIXELS[i], 0, 1)), "item 0: it holds 3 values"),
        (Mapped(lambda i: (PIXELS[i], "cat")), "item 0: its target is a str"),
        (Mapped(lambda i: (PIXELS[i], {"boxes": 1})), "its target is a dict"),
        (Mapped(lambda i: {"pixels": PIXELS[i]}), "it is a mapping of pixels, and none of them is 'image'"),
        (Mapped(lambda i: ("x.png", 0)), "its image is a str"),
        (Mapped(lambda i: (PIXELS[i].long(), 0)), "its image is torch.int64 of shape (1, 5, 6)"),
        (Mapped(lambda i: (PIXELS[i, 0, 0], 0)), "its image is torch.uint8 of shape (6,)"),
        (Mapped(lambda i: (PIXELS[i].float() / 64 - 2, 0)), "without Normalize: that is the model's preprocessing"),
        (Mapped(lambda i: (PIXELS[i].float(), 0)), "give them in 0 … 1"),
        (Mapped(lambda i: (PIXELS[i] * float("nan"), 0)), "its pixels are infinite or not a number"),
        (Mapped(lambda i: (PIXELS[i], [0] * (1 + i // 9))), "item 9: its target has the shape (2,), those before (1,)"),
        (Mapped(lambda i: (torch.zeros(2, 3, 3 + i), 0)), "its image has the shape (2, 3, 4), and (2, 3, 3) is wanted"),
        ((PIXELS, LABELS[:3]), "20 images, 3 labels"),
        ((PIXELS, list("abc")), "the arrays cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_data(found: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(found)
    assert message in str(caught.value)
    assert caught.value.where.startswith("my.module:data")
    assert caught.value.hint


def test_an_error_from_a_worker_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_FEW", 0)
    with pytest.raises(DataError, match="item 13: it cannot be read: OSError: on fire"):
        read(Mapped(functools.partial(raising)))

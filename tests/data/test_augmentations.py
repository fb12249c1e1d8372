"""Augmentations: drawn for each image, applied to images and maps alike, refused before they are drawn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from fxdistill.data import augmentations
from fxdistill.data.augmentations import AUGMENTATIONS, Change
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Split
from fxdistill.errors import DataError


def images(count: int = 64, channels: int = 3, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def drawn(name: str, values: Tensor, seed: int = 0) -> Change:
    (found,) = augmentations.named([name])
    return found.draw(values.shape, torch.Generator().manual_seed(seed))


def test_the_names() -> None:
    assert AUGMENTATIONS.names() == ("crop", "flip")
    assert AUGMENTATIONS.get("crop").moves_pixels
    assert AUGMENTATIONS.get("flip").moves_pixels


def test_flip_mirrors_about_half_of_the_images() -> None:
    whole = images()
    flipped = drawn("flip", whole)(whole)
    mirrored = [torch.equal(a, TF.horizontal_flip(b)) for a, b in zip(flipped, whole, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, whole, strict=True)]
    assert [a is not b for a, b in zip(mirrored, kept, strict=True)] == [True] * 64
    assert 16 < sum(mirrored) < 48


def test_crop_has_a_place_of_its_own_for_each_image() -> None:
    whole = images()
    cropped = drawn("crop:2", whole)(whole)
    padded = TF.pad(whole, [2, 2, 2, 2])
    places = set()
    for index, image in enumerate(cropped):
        options = [(y, x) for y in range(5) for x in range(5) if torch.equal(TF.crop(padded[index], y, x, 6, 6), image)]
        assert options, "not a crop of the padded image"
        places.add(options[0])
    assert len(places) > 15
    assert cropped.dtype == torch.uint8


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["flip", "crop:1", "crop:3"]),
    inner=st.lists(st.integers(1, 3), max_size=2),
    fill=st.sampled_from([0, -100, 7]),
    seed=st.integers(0, 2**40),
)
def test_one_draw_moves_values_of_any_rank_alike(name: str, inner: list[int], fill: int, seed: int) -> None:
    """Applied to the pixels' numbers it says where each came from; all other values have to come from there."""
    change = drawn(name, torch.empty(5, 3, 4, 6), seed)
    numbers = torch.arange(24).reshape(4, 6).expand(5, 4, 6)
    places = change(numbers, fill=-1)
    values = torch.randint(1000, (5, *inner, 4, 6), generator=torch.Generator().manual_seed(seed))
    taken = values.flatten(-2).gather(
        -1, places.clamp(min=0).flatten(1).reshape(5, *[1] * len(inner), 24).expand(5, *inner, 24)
    )
    expected = torch.where(places.reshape(5, *[1] * len(inner), 4, 6) < 0, fill, taken.reshape(values.shape))
    found = change(values, fill=fill)
    assert found.dtype == values.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flap", "did you mean 'flip'"),
        ("", "known are crop, flip"),
        ("crop", "padding: Field required"),
        ("crop:", "padding: Input should be a valid integer"),
        ("crop:0", "greater than 0"),
        ("crop:-1", "greater than 0"),
        ("crop:x", "valid integer"),
        ("crop:2:2", "valid integer"),
        ("crop:100000", "less than 65536"),
        ("flip:1", "takes no argument"),
        ("flip:", "takes no argument"),
    ],
)
def test_what_a_plan_may_not_name(name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        augmentations.check(["flip", name])
    assert message in str(caught.value)
    assert caught.value.where == "data.augmentation"
    assert caught.value.hint
    with pytest.raises(DataError):
        batches(Split(images(), torch.zeros(64).long()), 4, augment=[name])


@pytest.mark.parametrize(("padding", "size", "fits"), [(5, 6, True), (6, 6, False), (60000, 6, False), (1, 1, False)])
def test_a_crop_is_bounded_by_the_images(padding: int, size: int, fits: bool) -> None:
    whole = Split(images(size=size), torch.zeros(64).long())
    if fits:
        next(batches(whole, 4, augment=[f"crop:{padding}"]))
        return
    with pytest.raises(
        DataError, match=f"crop:{padding} can shift images of {size}x{size} pixels out of sight"
    ) as caught:
        batches(whole, 4, augment=[f"crop:{padding}"])
    assert caught.value.hint == ("use crop:1 to crop:5, or leave it out" if size > 1 else "leave it out")

"""Augmentations: drawn for each image, applied to images and maps alike, refused before they are drawn."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from fxdistill.data import augmentations
from fxdistill.data.augmentations import AUGMENTATIONS, Change
from fxdistill.data.augmentations._draws import Draws
from fxdistill.data.augmentations.resized_crop import boxes
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Split
from fxdistill.errors import DataError


def images(count: int = 64, channels: int = 3, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def drawn(name: str, values: Tensor, seed: int = 0) -> Change:
    (found,) = augmentations.named([name])
    return found.draw(values.shape, Draws.of(seed, 0, torch.arange(len(values)), what="augmentation 0"))


def test_the_names() -> None:
    assert AUGMENTATIONS.names() == (
        "color-jitter", "crop", "cutmix", "erase", "flip", "mixup", "rand-augment", "resized-crop", "trivial-augment"
    )  # fmt: skip
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
        ("", "known are color-jitter, crop"),
        ("crop", "padding: Field required"),
        ("crop:", "padding: Input should be a valid integer"),
        ("crop:0", "greater than 0"),
        ("crop:-1", "greater than 0"),
        ("crop:x", "valid integer"),
        ("crop:2:2", "takes 1 argument"),
        ("rand-augment:2:31", "magnitude: Input should be less than or equal to 30"),
        ("resized-crop:0", "scale: Input should be greater than 0"),
        ("erase:nan", "share: Input should be"),
        ("trivial-augment:3", "takes no argument"),
        ("crop:100000", "less than 65536"),
        ("flip:1", "takes no argument"),
        ("flip:", "takes no argument"),
    ],
)
def test_what_a_plan_may_not_name(name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        augmentations.named(["flip", name])
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


EVERY = [
    "flip", "crop:2", "resized-crop:0.3", "color-jitter:0.4:0.4:0.4:0.1", "erase:0.5", "rand-augment:2:9",
    "trivial-augment",
]  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", EVERY)
def test_what_an_image_looks_like_depends_on_seed_epoch_and_image_alone(
    name: str, kind: torch.dtype, channels: int
) -> None:
    """Not on the batch, its neighbours or the order, nor on what was drawn before; and nothing global moves."""
    whole = images(24, channels)
    split = Split(whole if kind == torch.uint8 else whole / 255, torch.arange(24))

    def looks(size: int, **place: Any) -> Tensor:
        found: dict[int, Tensor] = {}
        for batch in batches(split, size, shuffle=True, augment=[name], **place):
            found |= dict(zip(batch["index"].tolist(), batch["images"], strict=True))
        return torch.stack([found[index] for index in range(24)])

    before = torch.random.get_rng_state()
    wanted = looks(24)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(looks(4), wanted)
    assert not torch.equal(looks(24, seed=1), wanted)
    assert not torch.equal(looks(24, epoch=1), wanted)
    assert not torch.equal(wanted, split.images.float() / (255 if kind == torch.uint8 else 1))
    assert wanted.min() >= 0
    assert wanted.max() <= 1


@pytest.mark.parametrize("name", EVERY)
def test_images_that_are_the_same_do_not_all_look_the_same(name: str) -> None:
    same = Split(images(1, 3, 16).expand(32, -1, -1, -1), torch.arange(32))
    (batch,) = batches(same, 32, augment=[name])
    assert len({tuple(image.flatten().tolist()) for image in batch["images"]}) > (1 if name == "flip" else 10)


def test_an_augmentation_that_is_named_twice_is_drawn_twice() -> None:
    split = Split(images(), torch.arange(64))
    twice = next(batches(split, 64, augment=["flip", "flip"]))["images"]
    assert not torch.equal(twice, split.images / 255)


def test_the_numbers_are_those_of_splitmix64() -> None:
    """Its published first values under the seed 1234567; and they are uniform."""
    found = Draws(torch.tensor([1234567]))._next(3)[0]
    assert [value % 2**64 for value in found.tolist()] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip
    many = Draws.of(0, 0, torch.arange(4000), what="").uniform(4)
    assert 0 <= many.min() < 0.001
    assert 0.999 < many.max() < 1
    assert many.mean(0).sub(0.5).abs().max() < 0.02
    assert torch.corrcoef(many.T).fill_diagonal_(0).abs().max() < 0.05


def test_a_resized_crop_is_torchvisions_of_the_same_box() -> None:
    whole, shape = images(40, 3, 9), (7, 12)
    values = TF.resize(whole, list(shape)).float() / 255
    change = drawn("resized-crop:0.1", values)
    box = boxes(Draws.of(0, 0, torch.arange(40), what="augmentation 0"), *shape, 0.1)
    found, sizes = change(values), set()
    for image, (top, left), (height, width), was in zip(found, *(part.int().tolist() for part in box), values,
                                                        strict=True):  # fmt: skip
        assert 0 <= top <= 7 - height
        assert 0 <= left <= 12 - width
        sizes.add((height, width))
        wanted = TF.resized_crop(was, top, left, height, width, list(shape), antialias=False)
        torch.testing.assert_close(image, wanted, rtol=0, atol=2e-5)
    assert len(sizes) > 10
    assert 0.1 < sum(height * width for height, width in sizes) / len(sizes) / 84 < 0.9


def test_maps_move_with_a_resized_crop_and_stay_under_colours() -> None:
    """Nearest values: where the image is the label, far from an edge, it tells what it moved to."""
    labels = (torch.arange(16)[:, None] // 8 * 2 + torch.arange(16) // 8).expand(20, 16, 16)
    split = Split((labels[:, None] / 4).contiguous(), labels)
    moved = next(batches(split, 20, augment=["resized-crop:0.2"], moves_targets=True))
    assert not torch.equal(moved["labels"], labels)
    assert moved["labels"].dtype == torch.int64
    told = (moved["images"][:, 0] * 4).round().long()
    assert (told == moved["labels"]).float().mean() > 0.9
    for name in ("color-jitter", "erase:1"):
        assert torch.equal(next(batches(split, 20, augment=[name], moves_targets=True))["labels"], labels)
    for name in ("rand-augment", "trivial-augment"):
        with pytest.raises(DataError, match="leave their maps of labels where they are"):
            batches(split, 20, augment=[name], moves_targets=True)


def test_what_is_erased_is_a_rectangle_of_as_many_images_as_was_said() -> None:
    values = torch.ones(400, 1, 16, 16)
    found = drawn("erase:0.5", values)(values)[:, 0]
    erased = found.eq(0)
    assert 0.4 < erased.any((1, 2)).float().mean() < 0.6
    for hidden in erased[erased.any((1, 2))]:
        rows, columns = hidden.any(1), hidden.any(0)
        assert torch.equal(hidden, rows[:, None] & columns)
        assert 0.01 < hidden.float().mean() < 0.4


@pytest.mark.parametrize("name", ["color-jitter", "rand-augment", "trivial-augment"])
def test_colours_are_for_gray_and_rgb_images(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} changes colours, and the images have 4 channels"):
        batches(Split(images(8, 4), torch.zeros(8).long()), 4, augment=[name])


@pytest.mark.parametrize("name", ["mixup", "mixup:0.2", "cutmix"])
def test_labels_are_mixed_as_the_images_are(name: str) -> None:
    """Every image is its class's number, so that what is left of it says its share."""
    count = 32
    values = torch.eye(count)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()  # a channel an image
    split = Split(values, torch.where(torch.arange(count) == 5, -100, torch.arange(count)))
    (batch,) = batches(split, count, shuffle=True, augment=[name], classes=count)
    found, labels = batch["images"].mean((2, 3)), batch["labels"]
    unlabelled = found.clone()
    unlabelled[:, 5] = 0  # a share of an image without a label is none
    torch.testing.assert_close(labels, unlabelled, rtol=0, atol=1e-5)
    partner = batch["index"].roll(1)
    share = found[torch.arange(count), batch["index"]]
    torch.testing.assert_close(found[torch.arange(count), partner], 1 - share, rtol=0, atol=1e-5)
    assert len(set(share.tolist())) > count // 2
    assert torch.equal(found == 0, ~((torch.eye(count)[batch["index"]] + torch.eye(count)[partner]) > 0) | (found == 0))
    assert set(batch["images"].unique().tolist()) == {0.0, 1.0} or name != "cutmix"
    torch.testing.assert_close(found.sum(1), torch.ones(count), rtol=0, atol=1e-5)


def test_mixing_is_for_classes() -> None:
    with pytest.raises(DataError, match="'mixup' mixes classes"):
        batches(Split(images(8), torch.zeros(8)), 4, augment=["mixup"])


def looks(epoch: int, *, seed: int, augment: list[str], views: int | None = None) -> list[Tensor]:
    """Every image as it looks in an epoch of a run of the plan with the seed 5, in the order of the split."""
    split = Split(images(40, 3, 16), torch.arange(40))
    found = batches(split, 8, seed=seed, epoch=epoch, shuffle=True, augment=augment, augment_seed=5, views=views)
    return [
        image for _, image in sorted((int(i), x) for b in found for i, x in zip(b["index"], b["images"], strict=True))
    ]


@pytest.mark.parametrize("name", EVERY)
def test_all_trials_of_a_plan_see_the_same_of_an_image_in_an_epoch(name: str) -> None:
    for one, other in zip(looks(3, seed=0, augment=[name]), looks(3, seed=9, augment=[name]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("views", [1, 3])
def test_views_come_again_in_the_same_order(views: int) -> None:
    drawn = [torch.stack(looks(epoch, seed=epoch, augment=["crop:4", "flip"], views=views)) for epoch in range(7)]
    unlimited = [torch.stack(looks(epoch, seed=0, augment=["crop:4", "flip"])) for epoch in range(7)]
    for epoch, found in enumerate(drawn):
        assert torch.equal(found, unlimited[epoch % views])
    assert len({found.sum().item() for found in unlimited}) == 7


def test_views_keep_the_shares_of_what_is_drawn() -> None:
    """Over the views of an image as over images: half are mirrored, and every place of a crop comes up alike."""
    views, count = 40, 500
    index = torch.arange(count)
    heads, places = torch.zeros(count), torch.zeros(views, count, 2)
    for view in range(views):
        heads += (Draws.of(5, view, index, what="augmentation 0").uniform(1) < 0.5)[:, 0]
        places[view] = Draws.of(5, view, index, what="augmentation 1").below(9, 2)
    assert abs(heads.mean() / views - 0.5) < 4 * 0.5 / (views * count) ** 0.5
    assert 0.7 < heads.var() / (views * 0.25) < 1.3  # one view says nothing of another one of the same image
    shares = torch.stack([(places == place).float().mean((0, 1)) for place in range(9)])
    assert (shares - 1 / 9).abs().max() < 4 * (1 / 9 * 8 / 9 / (views * count)) ** 0.5

"""Batches: mappings, a pure function of their place in the run."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxdistill.data.batches import Batch, batches, first_batch, order, size_in_training, steps_per_epoch
from fxdistill.data.dataset import Images, Split
from fxdistill.data.load import load
from fxdistill.errors import DataError
from fxdistill.ir.views import seen
from fxdistill.preprocessing import View
from fxdistill.tasks import NO_LABEL


def split(count: int = 23, *, channels: int = 1, size: int = 6) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 5)


def epoch(images: Images, **options: Any) -> list[Batch]:
    return list(batches(images, 4, **{"shuffle": True, "augment": ["flip", "crop:2"], **options}))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        p.keys() == q.keys() and all(torch.equal(p[name], q[name]) for name in p) for p, q in zip(a, b, strict=True)
    )


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 7), seed=st.integers(0, 2**40), number=st.integers(0, 1000))
def test_resuming_at_a_step_gives_the_same_batches(start: int, seed: int, number: int) -> None:
    whole = epoch(split(), seed=seed, epoch=number)
    torch.rand(start)  # the global state must not matter
    assert equal(epoch(split(), seed=seed, epoch=number, start=start), whole[start:])


def test_batches_leave_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    epoch(split())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_epochs_and_seeds_differ_in_order_and_augmentation() -> None:
    first = epoch(split())
    for other in (epoch(split(), epoch=1), epoch(split(), seed=1)):
        assert not equal(first, other)
    fixed = epoch(split(), shuffle=False)
    assert not torch.equal(fixed[0]["images"], epoch(split(), shuffle=False, epoch=1)[0]["images"])
    assert torch.equal(fixed[0]["labels"], split().labels[:4])


def test_an_epoch_holds_every_image_once_as_pixels() -> None:
    images = split(24)
    whole = list(batches(images, 4, shuffle=True))
    x = torch.cat([batch["images"] for batch in whole])
    assert x.dtype == torch.float32
    expected = images.images.float() / 255
    found = sorted(map(tuple, x.flatten(1).tolist()))
    assert found == sorted(map(tuple, expected.flatten(1).tolist()))
    floats = Split(images.images / 255, images.labels)
    assert equal(list(batches(floats, 4, shuffle=True)), whole)


@pytest.mark.parametrize(
    ("count", "shuffle", "sizes"),
    [
        (8, True, [4, 4]), (9, True, [3, 3, 3]), (9, False, [4, 4, 1]), (10, True, [3, 3, 3]), (10, False, [4, 4, 2]),
        (5, True, [2, 2]), (3, True, [3]), (1, True, [1]),
    ],
)  # fmt: skip
def test_the_batches_of_a_training_epoch_have_one_size(count: int, shuffle: bool, sizes: list[int]) -> None:
    assert [len(batch["labels"]) for batch in epoch(split(count), shuffle=shuffle)] == sizes


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 23, 100])
def test_fewer_images_than_batches_are_left_out_of_an_epoch(size: int) -> None:
    for count in range(1, 60):
        chosen = order(split(count), size, seed=1, epoch=2)
        (found,) = {len(one) for one in chosen}
        assert min(2, count, size) <= found == size_in_training(split(count), size) <= size
        assert len(chosen) == steps_per_epoch(split(count), size)
        seen = torch.cat(chosen).tolist()
        assert len(set(seen)) == len(seen) > count - max(2, len(chosen))
    everything = torch.cat([torch.cat(order(split(59), size, seed=1, epoch=number)) for number in range(20)])
    assert set(everything.tolist()) == set(range(59))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.uint8, "38882305d28eb6c416f1713e60aaf6621a85f648c312ca71773e204b2c194d51"),
        (torch.float32, "09901d3af2e5c694aad1ff1e520931ee94c88d08afbbb0e95f095e653086bea4"),
    ],
)
def test_order_and_augmentation_are_pinned(dtype: torch.dtype, expected: str) -> None:
    """So that a run that was stopped resumes bit for bit, whatever version goes on with it."""
    generator = torch.Generator().manual_seed(0)
    made = {
        kind: torch.randint(256, (23, 3, 7, 6), generator=generator, dtype=torch.uint8)
        for kind in (torch.uint8, torch.float32)
    }
    images = made[dtype] if dtype == torch.uint8 else made[dtype] / 255
    digest, view = hashlib.sha256(), View(None, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    for batch in batches(
        Split(images, torch.arange(23)), 4, seed=7, epoch=3, start=1,
        shuffle=True, augment=["flip", "crop:2", "flip"],
    ):  # fmt: skip
        digest.update(seen(batch["images"], view).contiguous().numpy().tobytes() + batch["labels"].numpy().tobytes())
    assert digest.hexdigest() == expected


def test_the_index_is_the_place_in_the_split() -> None:
    images = split(24)
    for shuffle in (True, False):
        found = list(batches(images, 4, shuffle=shuffle))
        assert found[0].keys() == {"images", "labels", "index"}
        index = torch.cat([batch["index"] for batch in found])
        assert index.dtype == torch.int64
        assert sorted(index.tolist()) == list(range(24))
        assert (index.tolist() == list(range(24))) is not shuffle
        for batch in found:
            assert torch.equal(batch["labels"], images.labels[batch["index"]])
            assert torch.equal(batch["images"], images.images[batch["index"]].float() / 255)


def test_the_first_batch_has_the_same_fields() -> None:
    digits = load("digits")
    batch = first_batch(digits, 16)
    assert batch["images"].shape == (size_in_training(digits.train, 16), 1, 8, 8)
    assert torch.equal(batch["labels"], digits.train.labels[batch["index"]])


def test_the_first_batch_has_the_images_with_labels_first() -> None:
    digits = load("digits")
    labels = digits.train.labels.clone()
    labels[20:] = NO_LABEL
    batch = first_batch(replace(digits, train=digits.train.relabelled(labels)), 50)
    assert batch["images"].shape[0] == 50
    assert sorted(batch["labels"][:20].tolist()) == sorted(labels[:20].tolist())
    assert set(batch["labels"][20:].tolist()) == {NO_LABEL}
    none = first_batch(replace(digits, train=digits.train.relabelled(torch.full_like(labels, NO_LABEL))), 50)
    assert torch.equal(none["images"], first_batch(digits, 50)["images"])


# Targets that move with the images


def maps(count: int = 16, size: int = 6, dtype: torch.dtype = torch.int64) -> Split:
    """Every pixel differs from all others of its batch, and is its own label: label = 1 + value, one channel."""
    values = torch.arange(count * size * size).reshape(count, 1, size, size)
    return Split((values + 1) / 1024, (values[:, 0] + 1).to(dtype))


def pixels(batch: Batch) -> torch.Tensor:
    """The label that each pixel had to begin with; 0 where it is black."""
    return (batch["images"][:, 0] * 1024).round().long()


@pytest.mark.parametrize("augment", [["flip"], ["crop:2"], ["crop:3", "flip", "crop:1"]])
def test_maps_of_labels_move_exactly_with_the_images(augment: list[str]) -> None:
    options: dict[str, Any] = {"augment": augment, "moves_targets": True, "shuffle": True}
    whole = maps()
    moved = 0
    for batch in batches(whole, 8, **options):
        found, labels = pixels(batch), batch["labels"]
        assert labels.dtype == torch.int64
        assert torch.equal(labels, torch.where(found == 0, -100, found))
        moved += int((labels != whole.labels[batch["index"]]).sum())
    assert moved > 100


def test_maps_of_numbers_have_none_where_nothing_was() -> None:
    options: dict[str, Any] = {"augment": ["crop:3"], "moves_targets": True}
    for batch in batches(maps(dtype=torch.float32), 8, **options):
        found = pixels(batch)
        assert bool((found == 0).any())
        assert torch.equal(batch["labels"].isnan(), found == 0)
        assert torch.equal(batch["labels"].nan_to_num(), found.float())


@pytest.mark.parametrize("augment", [["flip"], ["crop:1"]])
def test_maps_of_labels_are_not_left_behind(augment: list[str]) -> None:
    with pytest.raises(DataError, match="leave their maps of labels where they are"):
        batches(maps(), 4, augment=augment)
    assert len(list(batches(maps(), 4))) == 4


@pytest.mark.parametrize("at_once", [2, 5, 100])
@pytest.mark.parametrize("options", [{}, {"start": 3}, {"shuffle": False}, {"augment": ["flip", "mixup:1"]}])
def test_batches_that_are_made_together_are_those_that_are_made_alone(
    at_once: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = epoch(split(), classes=5, **options)
    monkeypatch.setattr("fxdistill.data.batches._at_once", lambda *_: at_once)
    assert equal(epoch(split(), classes=5, **options), alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_the_device_equal_those_on_the_cpu() -> None:
    on_device = epoch(split().to("cuda"), device="cuda")
    assert all(value.is_cuda for batch in on_device for value in batch.values())
    for found, expected in zip(on_device, epoch(split()), strict=True):
        assert torch.equal(found["labels"].cpu(), expected["labels"])
        assert torch.equal(found["index"].cpu(), expected["index"])
        torch.testing.assert_close(found["images"].cpu(), expected["images"], rtol=0, atol=1e-6)

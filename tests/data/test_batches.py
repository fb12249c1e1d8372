"""Data: every spec read, batches a pure function of their place in the run, and clear about what is wrong."""

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from fxdistill.data import batches as data
from fxdistill.data import reading as sources
from fxdistill.data.batches import Dataset, Split, batches, check_input, defaults, load
from fxdistill.errors import DataError
from fxdistill.plan.schema import DataPlan

NORM: dict[str, Any] = {"mean": [0.4], "std": [0.2]}


def split(count: int = 23, *, channels: int = 1, size: int = 6) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 5)


def epoch(images: data.Images, **options: Any) -> list[tuple[Tensor, Tensor]]:
    return list(batches(images, 4, **{**NORM, "shuffle": True, "augment": ["flip", "crop:2"], **options}))


def equal(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


# Batches


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
    assert not torch.equal(fixed[0][0], epoch(split(), shuffle=False, epoch=1)[0][0])
    assert torch.equal(fixed[0][1], split().labels[:4])


def test_an_epoch_holds_every_image_once_and_normalised() -> None:
    images = split()
    whole = list(batches(images, 4, **NORM, shuffle=True))
    x = torch.cat([x for x, _ in whole])
    assert x.dtype == torch.float32
    expected = (images.images.float() / 255 - 0.4) / 0.2
    found = sorted(map(tuple, x.flatten(1).tolist()))
    assert found == sorted(map(tuple, expected.flatten(1).tolist()))
    floats = Split(images.images / 255, images.labels)
    assert equal(list(batches(floats, 4, **NORM, shuffle=True)), whole)


@pytest.mark.parametrize(
    ("count", "shuffle", "sizes"),
    [(8, True, [4, 4]), (9, True, [4, 4]), (9, False, [4, 4, 1]), (10, True, [4, 4, 2]), (1, True, [1])],
)
def test_one_image_left_over_is_dropped_in_training_alone(count: int, shuffle: bool, sizes: list[int]) -> None:
    assert [len(y) for _, y in epoch(split(count), shuffle=shuffle)] == sizes
    assert data.steps_per_epoch(split(count), 4, shuffle=shuffle) == len(sizes)


def test_flip_and_crop_are_drawn_for_each_image() -> None:
    images = split(64, channels=3).images
    flipped = data.augmentations(["flip"])[0](images, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(a, TF.horizontal_flip(b)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a or b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48
    cropped = data.augmentations(["crop:2"])[0](images, torch.Generator().manual_seed(0))
    padded = TF.pad(images, [2, 2, 2, 2])
    places = set()
    for index, image in enumerate(cropped):
        options = [(y, x) for y in range(5) for x in range(5) if torch.equal(TF.crop(padded[index], y, x, 6, 6), image)]
        assert options, "not a crop of the padded image"
        places.add(options[0])
    assert len(places) > 15
    assert cropped.dtype == torch.uint8


@pytest.mark.parametrize("name", ["flap", "crop", "crop:", "crop:0", "crop:-1", "crop:x", "flip:1", ""])
def test_unknown_augmentations(name: str) -> None:
    with pytest.raises(DataError, match="unknown"):
        batches(split(), 4, **NORM, augment=[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_the_device_equal_those_on_the_cpu() -> None:
    on_device = epoch(split().to("cuda"), device="cuda")
    assert all(x.is_cuda and y.is_cuda for x, y in on_device)
    for (x, y), (a, b) in zip(on_device, epoch(split()), strict=True):
        assert torch.equal(y.cpu(), b)
        torch.testing.assert_close(x.cpu(), a, rtol=0, atol=1e-6)


# Specs


def test_digits_are_split_by_a_fixed_rule() -> None:
    found = load("digits")
    assert (len(found.train), len(found.test), found.image_shape) == (1260, 537, (1, 8, 8))
    assert found.classes == tuple("0123456789")
    counts = found.test.labels.bincount().tolist()
    assert min(counts) >= 52
    assert max(counts) <= 55
    x = torch.cat([x for x, _ in batches(found.train, 128, mean=found.mean, std=found.std)])
    assert abs(float(x.mean())) < 1e-4
    assert abs(float(x.std()) - 1) < 1e-3
    assert isinstance(found.train, Split)
    assert isinstance(found.test, Split)
    digest = hashlib.sha256(found.test.images.numpy().tobytes() + found.test.labels.numpy().tobytes())
    assert digest.hexdigest() == hashlib.sha256(_digits_by_hand()).hexdigest()


def _digits_by_hand() -> bytes:
    from sklearn.datasets import load_digits  # noqa: PLC0415

    found, seen = load_digits(), dict.fromkeys(range(10), 0)
    chosen = []
    for index, label in enumerate(found.target.tolist()):
        if seen[label] % 10 in (2, 5, 8):
            chosen.append(index)
        seen[label] += 1
    images, labels = found.images[chosen] / 16, found.target[chosen]
    return bytes(images.astype(np.float32).tobytes() + labels.astype(np.int64).tobytes())


def test_defaults_spell_everything_out_and_are_stable() -> None:
    first, again = defaults("digits"), defaults("digits", dataset=load("digits"))
    assert first == again
    assert (first.batch_size, first.augmentation) == (128, [])
    assert len(first.classes) == 10
    assert len(first.mean) == len(first.std) == 1
    found = Dataset(split(size=32, channels=3), split(), ("a",), (0.0,), (1.0,))
    assert defaults("cifar10:x", dataset=found).augmentation == ["flip", "crop:4"]
    assert defaults("npz:x", dataset=found).augmentation == ["flip", "crop:4"]
    assert defaults("fashion-mnist:x", dataset=found).augmentation == ["flip"]


def test_a_plans_normalisation_is_taken_and_its_classes_are_checked() -> None:
    plan = defaults("digits")
    assert load(plan.model_copy(update={"mean": [0.5], "std": [2.0]})).mean == (0.5,)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"classes": ["cat"]}, "1 classes, the data 10"),
        ({"mean": [0.1, 0.2]}, "normalises 2 and 1 channels"),
        ({"augmentation": ["blur"]}, "unknown"),
        ({"spec": None}, "names no data"),
    ]
    for change, message in wrong:
        with pytest.raises(DataError, match=message):
            load(plan.model_copy(update=change))
    assert load(DataPlan(spec="digits")).mean == load("digits").mean


def test_the_input_must_be_what_the_models_read() -> None:
    found = load("digits")
    check_input(found, (4, 1, 8, 8))
    for shape in ((1, 3, 8, 8), (1, 1, 32, 32), (1, 64)):
        with pytest.raises(DataError, match="1x8x8"):
            check_input(found, shape)


def test_a_constant_channel_is_left_in_place() -> None:
    assert data.measure(Split(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(3).long())) == (
        (0.2,),
        (1.0,),
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "unknown"),
        ("", "unknown"),
        ("imagenet:/data", "unknown"),
        ("cifar11:root", "unknown"),
        ("npz", "needs a place"),
        ("npz:/nowhere/x.npz", "no '/nowhere/x.npz'"),
        ("cifar10:/nowhere", "no '/nowhere'"),
        ("my.module:factory", "--allow-factory my.module"),
        ("os.path:join", "--allow-factory os.path"),
    ],
)
def test_specs_that_name_nothing(spec: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load(spec)
    assert message in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("spec", ["fashion-mnist", "cifar10", "cifar100", "imagefolder"])
def test_empty_places_say_what_was_looked_for(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError, match="must hold") as caught:
        load(f"{spec}:{tmp_path}")
    assert str(tmp_path) in caught.value.where


def test_fashion_mnist_is_read_in_torchvisions_layout(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + bytes(range(count)))
    found = load(f"fashion-mnist:{tmp_path}")
    assert (len(found.train), len(found.test), found.image_shape) == (6, 4, (1, 28, 28))
    assert found.classes[0] == "T-shirt/top"
    assert found.train.labels.tolist() == list(range(6))
    (raw / "t10k-images-idx3-ubyte").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="cannot be read"):
        load(f"fashion-mnist:{tmp_path}")


def test_cifar_is_read_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10  # noqa: PLC0415

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [1, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    with pytest.raises(DataError, match="corrupted"):  # the files are checked before they are unpickled
        load(f"cifar10:{tmp_path}")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    found = load(f"cifar10:{tmp_path}")
    assert CIFAR10.__name__ == "CIFAR10"
    assert (len(found.train), len(found.test), found.image_shape) == (10, 2, (3, 32, 32))
    assert found.classes == ("cat", "dog")
    assert isinstance(found.test, Split)
    assert torch.equal(found.test.images[1].flatten(), torch.from_numpy(pixels[1]))


def encoded(images: Tensor) -> tuple[Any, Any]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        TF.to_pil_image(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0] + [len(f) for f in files])
    return np.frombuffer(b"".join(files), dtype=np.uint8), offsets


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["blob", "nchw", "nhwc", "nhw", "float"])
def test_npz_files_of_every_layout(tmp_path: Path, channels: int, layout: str) -> None:
    if layout == "nhw" and channels == 3:
        pytest.skip("images without a channel dimension are gray")
    expected = split(channels=channels)
    arrays: dict[str, Any] = {"classes": np.array(list("abcde"))}
    for part in ("train", "test"):
        arrays[f"{part}_labels"] = expected.labels.numpy().astype(np.uint8)
        if layout == "blob":
            arrays[f"{part}_blob"], arrays[f"{part}_offsets"] = encoded(expected.images)
        else:
            plain = expected.images.numpy()
            shaped = {"nhwc": plain.transpose(0, 2, 3, 1), "nhw": plain[:, 0], "float": plain / 255}
            arrays[f"{part}_images"] = shaped.get(layout, plain)
    np.savez(tmp_path / "data.npz", **arrays)
    found = load(f"npz:{tmp_path / 'data.npz'}")
    assert isinstance(found.train, Split)
    images = found.train.images
    assert torch.equal(images if images.dtype == torch.uint8 else images.mul(255).round().byte(), expected.images)
    assert torch.equal(found.train.labels, expected.labels)
    assert found.classes == tuple("abcde")


GOOD = {
    "train_images": np.zeros((4, 2, 2), np.uint8), "train_labels": np.arange(4),
    "test_images": np.zeros((2, 2, 2), np.uint8), "test_labels": np.arange(2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "lacks train_images"),
        ({"test_labels": None}, "lacks test_labels"),
        ({"train_labels": np.arange(3)}, "4 images, 3 labels"),
        ({"train_labels": np.array([0, 1, 2, -1])}, "-1 is negative"),
        ({"train_labels": np.zeros(4)}, "cannot be read"),
        ({"train_labels": np.zeros((4, 10), int)}, "labels are"),
        ({"train_labels": np.array([0, 1, 2, 9]), "classes": np.array(["a"])}, "label 9 has no name"),
        ({"train_images": np.zeros((4, 2, 2), np.int32)}, "images are torch.int32"),
        ({"train_images": np.zeros((4, 2), np.uint8)}, "images are"),
        ({"train_images": np.full((4, 2, 2), np.nan)}, "not a number"),
        ({"train_images": np.zeros((4, 3, 3), np.uint8)}, "training images are"),
        ({"train_images": np.zeros((0, 2, 2), np.uint8), "train_labels": np.arange(0)}, "empty"),
        ({"train_labels": np.array([None] * 4, dtype=object)}, "cannot be read"),
        (
            {"train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.array([0, 4, 2])},
            "offsets",
        ),
        (
            {"train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.array([0, 90])},
            "offsets",
        ),
        (
            {"train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.array([0, 9])},
            "decoded",
        ),
    ],
)
def test_npz_files_that_are_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError) as caught:
        load(f"npz:{tmp_path / 'data.npz'}")
    assert message in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04xx", pickle.dumps([1])])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load(f"npz:{tmp_path / 'data.npz'}")


# Image folders


def folder(root: Path, *, test: str = "val", size: tuple[int, int] = (12, 10)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for part in ("train", test):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(3):
                Image.fromarray(np.roll(pixels, index, axis=0)).save(root / part / name / f"{index}.png")
    return root


@pytest.mark.parametrize("test", ["val", "test"])
def test_image_folders_are_resized_to_the_input(tmp_path: Path, test: str) -> None:
    spec = f"imagefolder:{folder(tmp_path, test=test)}"
    found = load(spec, input_shape=(1, 3, 8, 8))
    assert (len(found.train), len(found.test), found.image_shape) == (6, 6, (3, 8, 8))
    assert found.classes == ("cat", "dog")
    assert load(spec, input_shape=(1, 1, 5, 4)).image_shape == (1, 5, 4)
    assert load(spec).image_shape == (3, 10, 12)
    assert defaults(spec).augmentation == ["flip"]


def test_large_folders_stay_on_disk_and_give_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"imagefolder:{folder(tmp_path)}"
    held = load(spec, input_shape=(1, 3, 8, 8))
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    lazy = load(spec, input_shape=(1, 3, 8, 8)).to("cpu")
    assert isinstance(held.train, Split)
    assert isinstance(lazy.train, sources.Folder)
    assert lazy.mean == held.mean
    options: dict[str, Any] = {"mean": held.mean, "std": held.std}
    before = torch.random.get_rng_state()
    for start in (0, 1):
        assert equal(epoch(lazy.train, **options, start=start), epoch(held.train, **options, start=start))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_image_folders_that_are_wrong(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "train" / "cat" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="image cannot be read") as caught:
        load(f"imagefolder:{root}", input_shape=(1, 3, 8, 8))
    assert "0.png" in caught.value.where
    with pytest.raises(DataError, match="1 or 3 channels"):
        load(f"imagefolder:{root}", input_shape=(1, 4, 8, 8))
    (root / "val" / "dog").rename(root / "val" / "wolf")
    with pytest.raises(DataError, match="different classes: dog, wolf"):
        load(f"imagefolder:{root}")
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(DataError, match="neither val nor test"):
        load(f"imagefolder:{root}")


# The user's own


OWN = """
import torch
from fxdistill.data import batches as data
from fxdistill.data.batches import Dataset, Split
x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
def pairs(): return (x, y), (x, y)
def whole(): return Dataset(Split(x, y), Split(x, y), ("a", "b", "c"), (0.0,), (1.0,))
def one(): return 1
def fails(): raise OSError("on fire")
def images(): return (x[0], y), (x, y)
"""


def test_the_users_own_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_data_for_test.py").write_text(OWN)
    allow = ["own_data_for_test"]
    assert load("own_data_for_test:pairs", allow=allow).classes == ("0", "1", "2")
    assert load("own_data_for_test:whole", allow=allow).classes == ("a", "b", "c")
    wrong = {
        "one": "returned int",
        "fails": "OSError: on fire",
        "images": "images are",
        "absent": "no function",
    }
    for name, message in wrong.items():
        with pytest.raises(DataError, match=message):
            load(f"own_data_for_test:{name}", allow=allow)

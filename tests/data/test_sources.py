"""Sources: what lies in files is read, and what is wrong with it is said."""

import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2 import functional as TF

from fxdistill import registry
from fxdistill.data.batches import batches, first_batch
from fxdistill.data.dataset import Split
from fxdistill.data.load import defaults, load
from fxdistill.data.sources import SOURCES, _images, forms
from fxdistill.errors import DataError, InputError
from fxdistill.preprocessing import Reading
from fxdistill.tasks.segmentation import Segmentation


def split(count: int = 23, *, channels: int = 1, size: int = 6) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 5)


def test_the_names_and_what_a_spec_looks_like() -> None:
    names = ("cifar10", "cifar100", "digits", "fashion-mnist", "imagefolder", "images", "masks", "npz")
    assert SOURCES.names() == names
    forms_of_folders = ("imagefolder:DIR", "images:DIR", "masks:DIR", "npz:FILE")
    assert forms() == ("cifar10:ROOT", "cifar100:ROOT", "digits", "fashion-mnist:ROOT", *forms_of_folders)


def test_naming_sources_imports_none_of_them() -> None:
    code = (
        "import sys; from fxdistill.data.sources import SOURCES, split; from fxdistill.data import places;"
        "SOURCES.names(); places.resolved_data('a.b:c', None); split('imagenet:x');"
        "print([m for m in ('torch', 'sklearn', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_source_that_cannot_be_imported_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = metadata.EntryPoint("broken", "no_such_module:SOURCE", SOURCES.package)
    monkeypatch.setattr(registry, "_entry_points", lambda _: {"broken": (broken,)})
    assert forms()[-2:] == ("npz:FILE", "broken")
    with pytest.raises(DataError, match="the data source 'broken' cannot be imported"):
        load("broken:x")


def test_digits_are_split_by_a_fixed_rule() -> None:
    found = load("digits")
    assert (len(found.train), len(found.test), found.image_shape) == (1260, 537, (1, 8, 8))
    assert found.classes == tuple("0123456789")
    counts = found.test.labels.bincount().tolist()
    assert min(counts) >= 52
    assert max(counts) <= 55
    x = torch.cat([b["images"] for b in batches(found.train, 128)])
    assert found.mean == (round(float(x.mean()), 6),)
    assert found.std == pytest.approx([float(x.std())], abs=1e-5)
    assert isinstance(found.train, Split)
    assert isinstance(found.test, Split)
    digest = hashlib.sha256(found.test.images.numpy().tobytes() + found.test.labels.numpy().tobytes())
    assert digest.hexdigest() == hashlib.sha256(_digits_by_hand()).hexdigest()


def _digits_by_hand() -> bytes:
    found, seen = load_digits(), dict.fromkeys(range(10), 0)
    chosen = []
    for index, label in enumerate(found.target.tolist()):
        if seen[label] % 10 in (2, 5, 8):
            chosen.append(index)
        seen[label] += 1
    images, labels = found.images[chosen] / 16, found.target[chosen]
    return bytes(images.astype(np.float32).tobytes() + labels.astype(np.int64).tobytes())


@pytest.mark.parametrize("spec", ["fashion-mnist", "cifar10", "cifar100", "imagefolder", "images", "masks"])
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
        ({"train_labels": np.array([0, 1, 2, -2])}, "-2 is negative"),
        ({"train_labels": np.zeros(4)}, "labels are torch.float32 of shape (4,)"),
        ({"train_labels": np.array([0, 1, 2, 2**62])}, "more than 1,048,576 classes"),
        ({"train_labels": np.array([0, 1, 2, 2**63], dtype=np.uint64)}, "is negative"),
        ({"train_labels": np.array(list("abcd"))}, "'train_labels' cannot be read"),
        ({"train_labels": np.int64(3)}, "labels are torch.int64 of shape ()"),
        ({"test_labels": np.zeros(2, complex)}, "labels are torch.complex128"),
        ({"train_labels": np.zeros((4, 10), int)}, "labels are"),
        ({"train_labels": np.array([0, 1, 2, 9]), "classes": np.array(["a"])}, "label 9 has no name"),
        ({"train_images": np.zeros((4, 2, 2), np.int32)}, "images are torch.int32"),
        ({"train_images": np.zeros((4, 2), np.uint8)}, "images are"),
        ({"train_images": np.full((4, 2, 2), np.nan)}, "not a number"),
        ({"train_images": np.zeros((4, 3, 3), np.uint8)}, "training images are"),
        ({"train_images": np.zeros((0, 2, 2), np.uint8), "train_labels": np.arange(0)}, "empty"),
        ({"train_labels": np.array([None] * 4, dtype=object)}, "'train_labels' cannot be read"),
        ({"train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.array([0, 4, 2])}, "offsets"),
        ({"train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.array([0, 90])}, "offsets"),
        ({"train_images": None, "train_blob": np.zeros(9, np.uint8), "train_offsets": np.array([0, 9])}, "decoded"),
    ],
)
def test_npz_files_that_are_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError) as caught:
        load(f"npz:{tmp_path / 'data.npz'}")
    assert message in str(caught.value)
    assert caught.value.hint


def blob(*images: Tensor) -> dict[str, Any]:
    files = [encoded(image[None]) for image in images]
    offsets = np.cumsum([0, *(len(file) for file, _ in files)])
    return {"blob": np.concatenate([file for file, _ in files]), "offsets": offsets, "labels": np.arange(len(images))}


def test_arrays_in_the_other_byte_order(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((4, 2, 2)).astype(">f4")
    arrays: dict[str, Any] = {**GOOD, "train_images": images, "train_labels": np.arange(4, dtype=">i4")}
    np.savez(tmp_path / "a.npz", **arrays)
    found = load(f"npz:{tmp_path / 'a.npz'}").train
    assert isinstance(found, Split)
    assert np.array_equal(found.images[:, 0].numpy(), images)
    assert found.labels.tolist() == [0, 1, 2, 3]


def test_classes_without_images_are_said_of_files_as_of_folders(tmp_path: Path) -> None:
    images = np.zeros((3, 3, 4, 4), np.uint8)
    arrays: dict[str, Any] = {
        "train_images": images,
        "train_labels": [0, 2, 4],
        "test_images": images,
        "test_labels": [2, -1, 2],
    }
    np.savez(tmp_path / "a.npz", **arrays)
    found = load(f"npz:{tmp_path / 'a.npz'}")
    assert [(one.code, one.severity, one.why) for one in found.remarks] == [
        ("empty-class", "warning", "there are no images of the classes 1, 3"),
        ("no-labels", "note", "1 of 3 images have no label: no metric and no loss that reads labels takes them in"),
        ("empty-class", "note", "there are no images of the classes 0, 1, 3 and 1 more"),
    ]


def test_encoded_images_of_other_kinds(tmp_path: Path) -> None:
    gray, colours = split(3).images, split(3, channels=3, size=6).images
    parts = {f"test_{key}": value for key, value in blob(gray[0], colours[1], gray[2]).items()}
    np.savez(tmp_path / "a.npz", **parts)
    found = load(f"npz:{tmp_path / 'a.npz'}")
    assert found.is_one
    assert isinstance(found.test, Split)
    assert torch.equal(found.test.images, torch.stack([gray[0].expand(3, 6, 6), colours[1], gray[2].expand(3, 6, 6)]))
    np.savez(tmp_path / "a.npz", **{f"test_{key}": value for key, value in blob(gray[0], gray[1, :, 1:]).items()})
    with pytest.raises(DataError, match="images 0 and 1 have the sizes 6x6 and 5x6"):
        load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize(
    ("parts", "val", "test"),
    [(("train", "val", "test"), 2, 3), (("train", "val"), None, 2), (("train", "test"), None, 3), (("test",), None, 3)],
)
def test_splits_of_a_file(tmp_path: Path, parts: tuple[str, ...], val: int | None, test: int) -> None:
    arrays: dict[str, Any] = {}
    for name, count in (("train", 4), ("val", 2), ("test", 3)):
        if name in parts:
            arrays |= {f"{name}_images": np.zeros((count, 2, 2), np.uint8), f"{name}_labels": np.arange(count)}
    np.savez(tmp_path / "a.npz", **arrays)
    found = load(f"npz:{tmp_path / 'a.npz'}")
    assert (len(found.test), None if found.val is None else len(found.val)) == (test, val)
    assert found.is_one is (len(parts) == 1)


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


SMALL = Reading((8, 8), (8, 8))


@pytest.mark.parametrize("test", ["val", "test"])
def test_image_folders_are_read_as_asked(tmp_path: Path, test: str) -> None:
    spec = f"imagefolder:{folder(tmp_path, test=test)}"
    found = load(spec, reading=SMALL)
    assert (len(found.train), len(found.test), found.image_shape) == (6, 6, (3, 8, 8))
    assert found.classes == ("cat", "dog")
    assert load(spec, reading=Reading((5, 4), (5, 4), channels=1)).image_shape == (1, 5, 4)
    assert load(spec).image_shape == (3, 224, 224)  # not that of its first file
    assert torch.equal(first_batch(load(spec, size=8))["images"], first_batch(found)["images"])
    assert load(spec, size=(5, 4)).image_shape == (3, 5, 4)
    assert load("digits", size=5).image_shape == (1, 8, 8)  # it has one
    for wrong in ({"size": 0}, {"size": (5, 4, 3)}, {"size": 1 << 20}, {"size": 8, "reading": SMALL}):
        with pytest.raises(InputError, match=r"no size|more pixels|already says a size"):
            load(spec, **wrong)
    assert defaults(spec).augmentation == ["flip"]


def test_large_folders_stay_on_disk_and_give_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"imagefolder:{folder(tmp_path)}"
    held = load(spec, reading=SMALL)
    monkeypatch.setattr(_images, "IN_MEMORY", 0)
    lazy = load(spec, reading=SMALL).to("cpu")
    assert isinstance(held.train, Split)
    assert isinstance(lazy.train, _images.Folder)
    assert lazy.mean == held.mean
    before = torch.random.get_rng_state()
    for start in (0, 1):
        pairs = zip(*(batches(part.train, 4, shuffle=True, start=start) for part in (lazy, held)), strict=True)
        assert all(torch.equal(one[name], other[name]) for one, other in pairs for name in one)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_image_folders_that_are_wrong(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "train" / "cat" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="image cannot be read") as caught:
        load(f"imagefolder:{root}", reading=SMALL)
    assert "0.png" in caught.value.where
    with pytest.raises(DataError, match="1 or 3 channels"):
        load(f"imagefolder:{root}", reading=Reading((8, 8), (8, 8), channels=4))
    (root / "val" / "dog").rename(root / "val" / "wolf")
    with pytest.raises(DataError, match="train and val have different classes: dog, wolf"):
        load(f"imagefolder:{root}")
    (root / "train").rename(root / "test")
    with pytest.raises(DataError, match="test and val have different classes"):
        load(f"imagefolder:{root}")
    (root / "test").rename(root / "train")
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(DataError, match="neither val nor test"):
        load(f"imagefolder:{root}")


# Targets that are not one class an image


def segmented(path: Path, count: int = 12, size: int = 32) -> str:
    """Images whose every pixel tells its label: class = pixel // 64, 250 and above have none."""
    pixels = np.random.default_rng(0).integers(1, 256, (count, size, size), dtype=np.uint8)
    labels = np.where(pixels >= 250, -100, pixels.astype(np.int16) // 64)
    np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels[:4], test_labels=labels[:4])
    return f"npz:{path}"


def test_maps_of_labels_in_a_file_move_exactly_with_the_images(tmp_path: Path) -> None:
    spec = segmented(tmp_path / "maps.npz")
    found = load(spec, task="segmentation")
    assert found.classes == tuple("0123")
    plan = defaults(spec, dataset=found)
    assert plan.augmentation == ["flip", "crop:4"]
    assert load(plan, task="segmentation").classes == found.classes
    outside = 0
    for batch in batches(found.train, 4, augment=plan.augmentation, moves_targets=True, shuffle=True):
        pixels = (batch["images"][:, 0] * 255).round().long()
        expected = pixels.div(64, rounding_mode="floor").masked_fill((pixels == 0) | (pixels >= 250), -100)
        assert torch.equal(batch["labels"], expected)
        outside += int((pixels == 0).sum())
    assert outside


def test_a_plan_whose_task_would_leave_the_maps_behind(tmp_path: Path) -> None:
    class Still(Segmentation):
        moves_targets = False

    spec = segmented(tmp_path / "maps.npz")
    plan = defaults(spec, task="segmentation")
    with pytest.raises(DataError, match="leave their maps of labels where they are"):
        load(plan, task=Still())


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 3)])
def test_numbers_in_a_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images, labels = np.zeros((8, 4, 4), np.uint8), np.random.default_rng(0).normal(size=shape)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    found = load(f"npz:{tmp_path / 'a.npz'}", task="regression")
    (batch,) = batches(found.test, 8)
    assert batch["labels"].dtype == torch.float32
    np.testing.assert_allclose(batch["labels"].numpy(), labels, rtol=1e-6)
    assert defaults("npz:x", dataset=found).classes == []


def test_an_archive_of_zeros_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    many = np.zeros((20000, 64, 64), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", train_images=many, train_labels=np.zeros(20000), test_images=many[:2],
                        test_labels=np.zeros(2))  # fmt: skip
    assert (tmp_path / "a.npz").stat().st_size < many.nbytes / 500
    with pytest.raises(DataError, match="would expand to"):
        load(f"npz:{tmp_path / 'a.npz'}")

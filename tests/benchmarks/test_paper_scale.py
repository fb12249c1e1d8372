"""The cascade's benchmark at the paper's scale: run where it is named, on all images, in the epochs asked for."""

import argparse
import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import cascade, materials
from benchmarks.materials import Work
from fxdistill.models import convnet, vgg
from fxdistill.passes.trace import Trace
from fxdistill.preprocessing import Preprocessing

PIXELS = Preprocessing(size=[8, 8], mean=[0.5], std=[0.25], channels="gray")


def work(root: Path, *words: str) -> Work:
    parser = argparse.ArgumentParser()
    cascade.SERIES.options(parser)
    return Work(root, {"cifar": root / "cifar.npz"}, options=vars(parser.parse_args(words)))


def test_the_papers_scale_is_run_where_it_is_named_and_there_alone() -> None:
    assert cascade.PAPER not in {setting for setting, _, _ in cascade.SERIES.wanted([], 1)}
    assert cascade.SERIES.wanted([cascade.PAPER], 1) == [(cascade.PAPER, arm, 0) for arm in cascade.PAPER_ARMS]
    assert cascade.SERIES.wanted([f"{cascade.PAPER}/shrink + kd"], 2) == [
        (cascade.PAPER, "shrink + kd", seed) for seed in (0, 1)
    ]
    assert set(cascade.PAPER_ARMS) <= set(cascade.ARMS)


def test_its_network_is_the_papers() -> None:
    name, kwargs = cascade.NETWORKS["vgg16"]
    made = vgg(**kwargs).eval()
    norms = sum(p.numel() for part in made.modules() if isinstance(part, nn.BatchNorm2d) for p in part.parameters())
    assert name == "vgg"
    assert sum(p.numel() for p in made.parameters()) - norms == 14_982_474
    assert Trace((1, 3, 32, 32))(made).value.macs == 313_463_808


@pytest.mark.parametrize(
    ("setting", "words", "name", "student"),
    [
        (cascade.PAPER, (), cascade.PAPER, f"{cascade.PAPER}-seed0.pt"),
        (cascade.PAPER, ("--epochs", "80"), cascade.PAPER, f"{cascade.PAPER}-seed0.pt"),
        (
            cascade.PAPER, ("--epochs", "12", "--precision", "bf16-mixed"),
            f"{cascade.PAPER}, 12 + 12 epochs, bf16-mixed", f"{cascade.PAPER}-12+12epochs-bf16-mixed-seed0.pt",
        ),
        ("cifar-vgg-0.2", (), "cifar-vgg-0.2", "cifar-vgg-0.2-seed0.pt"),
        ("cifar-vgg-0.2", ("--epochs", "80"), "cifar-vgg-0.2, 80 + 80 epochs", "cifar-vgg-0.2-80+80epochs-seed0.pt"),
    ],
)  # fmt: skip
def test_rows_of_other_epochs_or_precision_are_others(
    setting: str, words: tuple[str, ...], name: str, student: str, tmp_path: Path
) -> None:
    assert cascade.SERIES.named(setting, work(tmp_path, *words)) == name
    assert cascade._student(work(tmp_path, *words), setting, 0) == tmp_path / student
    common: dict[str, Any] = {"teacher": 0.9, "whole": [100, 1000], "parameters": 10, "macs": 99, "seconds": 3}
    rows = [{**common, "setting": name, "arm": cascade.FIRST, "seed": 0, "student": 0.5}]
    if setting == cascade.PAPER:
        assert f"## {name}, accuracy in %; the teacher: 90.00" in cascade.table(rows)
        assert "| 10 | 99 | not measured | 3 |" in cascade.table(rows)


def test_a_teacher_of_other_epochs_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "cifar50k.npz", train_images=np.zeros((4, 3, 32, 32), np.uint8))
    made: list[tuple[str, int, str]] = []
    monkeypatch.setattr(
        materials, "teacher",
        lambda path, *_, epochs, device, precision: made.append((path.name, epochs, f"{device} {precision}")),
    )  # fmt: skip
    for words in ((), ("--teacher-epochs", "30"), ("--teacher-epochs", "10", "--precision", "bf16-mixed")):
        cascade._teacher(replace(work(tmp_path, *words), device="cuda"), "cifar50k", "vgg16")
    assert made == [
        ("cifar50k-vgg16-part.pt", 30, "cuda 32-true"), ("cifar50k-vgg16-part.pt", 30, "cuda 32-true"),
        ("cifar50k-vgg16-part-10epochs.pt", 10, "cuda bf16-mixed"),
    ]  # fmt: skip


def test_it_takes_all_images(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for part, count in (("train", 12), ("test", 7)):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (200, 10, 10)).save(file, "JPEG")
        arrays[f"{part}_blob"] = np.frombuffer(file.getvalue() * count, np.uint8)
        arrays[f"{part}_offsets"] = np.arange(count + 1) * len(file.getvalue())
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)
    np.savez(tmp_path / "cifar.npz", **arrays)
    whole = Work(tmp_path / "work", {"cifar": tmp_path / "cifar.npz"})
    whole.root.mkdir()
    assert whole.has("cifar50k")
    assert not Work(whole.root, {}).has("cifar50k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(materials, "TRAIN", 5)
        all_of_it, some = np.load(whole.part("cifar50k")), np.load(whole.part("cifar"))
    assert all_of_it["train_images"].shape == (12, 3, 32, 32)
    assert all_of_it["test_labels"].tolist() == list(range(7))
    assert some["train_images"].shape == (5, 3, 32, 32)
    assert Work(whole.root, {}).has("cifar50k")  # it is there now


def fitted(**options: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network after some epochs on images whose brightness is their class."""
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(320) % 2
    noise = torch.randint(0, 30, (320, 1, 8, 8), generator=chance)
    images = (labels.view(-1, 1, 1, 1) * 180 + noise).to(torch.uint8)
    torch.manual_seed(0)
    model = convnet(widths=(4,), hidden=8, classes=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    materials.fit(model, images, labels, PIXELS, optimizer, epochs=options.pop("epochs", 6), **options)
    return model, (images.float() / 255 - 0.5) / 0.25, labels


def test_a_teacher_is_trained_in_either_precision() -> None:
    full, images, labels = fitted()
    mixed, _, _ = fitted(precision="bf16-mixed")
    for model in (full, mixed):
        assert not model.training
        assert {p.device.type for p in model.parameters()} == {"cpu"}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert float((model(images).argmax(1) == labels).float().mean()) > 0.95
    weights = [copy.deepcopy(model.state_dict()["block1.conv.weight"]) for model in (full, mixed)]
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0, atol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_teacher_is_trained_on_cuda_as_on_a_cpu() -> None:
    here, _, _ = fitted(epochs=1)
    there, _, _ = fitted(epochs=1, device="cuda")
    assert {p.device.type for p in there.parameters()} == {"cpu"}
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.01)

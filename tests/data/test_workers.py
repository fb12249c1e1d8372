"""Reading ahead in processes: what was read is what is asked for, and errors arrive whole."""

import os
import signal
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from torch import Tensor

from fxdistill.cli.exits import reported
from fxdistill.data.batches import batches
from fxdistill.data.sources._images import Folder
from fxdistill.data.workers import read_ahead
from fxdistill.errors import DataError, FxdistillError, ModelError
from fxdistill.preprocessing import Reading


class Numbers:
    """Image i is i; image 3 raises what it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __getitem__(self, index: int) -> Tensor:
        if index == 3 and self.error is not None:
            raise self.error
        return torch.full((1, 2, 2), float(index))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_images_come_batch_by_batch_in_order(workers: int) -> None:
    wanted = [torch.tensor([4, 1]), torch.tensor([3, 0, 2]), torch.tensor([9])]
    found = list(read_ahead(Numbers(), wanted, workers=workers))
    assert [part[:, 0, 0, 0].long().tolist() for part in found] == [part.tolist() for part in wanted]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [DataError, ModelError, FxdistillError])
def test_errors_of_ours_arrive_whole(workers: int, kind: type[FxdistillError]) -> None:
    reading = read_ahead(
        Numbers(kind("it is broken", where="3.png", hint="mend it")),
        [torch.tensor([1]), torch.tensor([2, 3])], workers=workers,
    )  # fmt: skip
    assert next(reading).shape == (1, 1, 2, 2)
    with pytest.raises(FxdistillError) as caught:
        next(reading)
    assert type(caught.value) is kind
    assert str(caught.value) == "it is broken\n  where: 3.png\n  to do: mend it"


def test_errors_that_are_not_ours_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="in __getitem__"):
        list(read_ahead(Numbers(ZeroDivisionError("oh")), [torch.tensor([3])], workers=1))


@pytest.mark.parametrize("cores", [1, 2])
def test_a_broken_image_is_named_whoever_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    """With one core it is read here, with two by a worker."""
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    files = tuple(str(tmp_path / f"{index}.png") for index in range(4))
    for file in files:
        Image.new("RGB", (4, 4)).save(file)
    Path(files[2]).write_bytes(b"broken")
    images = Folder(files, torch.zeros(4).long(), Reading((4, 4), (4, 4)))
    with pytest.raises(DataError) as caught:
        list(batches(images, 2))
    assert caught.value.what.startswith("the image cannot be read: cannot identify image file")
    assert "Traceback" not in str(caught.value)
    assert caught.value.where == files[2]
    assert caught.value.hint == "remove or replace it"


@pytest.mark.parametrize("damage", ["truncated", "too large", "checksum", "folder"])
def test_images_that_pillow_refuses_in_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    file = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(file)
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "checksum":
        file.write_bytes(content[:20] + b"\xff" + content[21:])
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # an error from twice as many on
    images = Folder((str(file),), torch.zeros(1).long(), Reading((4, 4), (4, 4), channels=1))
    with pytest.raises(DataError, match="the image cannot be read") as caught:
        list(read_ahead(images, [torch.tensor([0])], workers=1))
    assert caught.value.where == str(file)


class Groups:
    """Image i is the group of the process that reads it; image 1 ends that."""

    def __getitem__(self, index: int) -> Tensor:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([[[os.getpgrp()]]])


def test_a_worker_is_not_asked_to_end_with_the_group() -> None:
    (found,) = read_ahead(Groups(), [torch.tensor([0])], workers=1)
    assert int(found) != os.getpgrp()


def test_a_worker_that_was_ended_is_told_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, reported():
        list(read_ahead(Groups(), [torch.tensor([1])], workers=1))
    assert ended.value.exit_code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: a process that reads images has ended: DataLoader worker")
    assert "--resume" in said

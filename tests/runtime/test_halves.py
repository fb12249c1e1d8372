"""Rows that were kept are the ones of these images, or they are not used."""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, fx

from fxdistill import container
from fxdistill.compiler.build import specialize
from fxdistill.data.batches import batches, order
from fxdistill.data.dataset import Split
from fxdistill.passes.divide import Divide, Divided
from fxdistill.runtime.run.reuse import key_of
from fxdistill.runtime.training import halves
from fxdistill.runtime.training.halves import PIXELS, Halves
from fxdistill.runtime.training.looks import Looks, fingerprints
from fxdistill.runtime.training.shelf import Folder, Memory, Place, Shelf
from tests import tiny_models
from tests.passes.test_divide import BATCH, program_of

COUNT, SIZE = 45, 8  # six batches of seven in training, and three images that are computed beside them
SPLIT = Split(torch.randint(256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
              torch.arange(COUNT) % 5)  # fmt: skip


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "_BLOCK", 1 << 9)


def divided(stage: str = "main") -> Divided:
    return Divide(BATCH)(specialize(program_of(tiny_models.residual()), stage).train()).value


def halves_over(shelf: Shelf, *, views: int = 2, split: Split = SPLIT, **changes: Any) -> Halves:
    looks = Looks(split, SIZE, ("crop:1",), 2, 7, moves_targets=False, classes=5, device=torch.device("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1)
    found = Halves(divided(), looks, shelf, "key", frozenset(range(views)), fabric, **changes)
    found.report.where = shelf.where
    found.tried(next(looks.batches(0))["images"])
    return found


def epoch(found: Halves, number: int = 0, seed: int = 0, split: Split = SPLIT) -> list[bool]:
    """Whether the batches of an epoch get what the frozen half computes of them, exactly."""
    looks = found.looks
    given = batches(split, SIZE, augment=looks.augment, augment_seed=7, views=2, shuffle=True, seed=seed, epoch=number)
    fed = found.fed(given, order(split, SIZE, seed=seed, epoch=number), epoch=number, pulse=lambda: None)
    return [all(torch.equal(batch[n], v) for n, v in found.fresh(batch["images"]).items()) for batch in fed]


def test_rows_are_computed_once_for_each_view_and_read_in_every_epoch() -> None:
    found = halves_over(Memory(1 << 20))
    for number in range(5):
        assert epoch(found, number, seed=number) == [True] * 6
    assert (found.report.computed, found.report.read) == (2 * COUNT, 5 * 42)
    assert found.report.exact
    assert halves.described(found.report).startswith("cache in memory: 210 read, 90 computed, ")


def test_rows_lie_in_memory_as_computed_ones_do() -> None:
    """A mean over them adds in that order: in another one training went other ways with a cache than without."""
    found = halves_over(Memory(1 << 20))
    found.divided = divided("warm-up-1")
    assert found.divided.frozen is not None
    found.divided.frozen.to(memory_format=torch.channels_last)
    batch, (name,) = next(found.looks.batches(0)), found.divided.fields
    found.tried(batch["images"])
    found.begin(0, lambda: None)
    given, wanted = found.complete(batch, torch.arange(len(batch["images"])))[name], found.fresh(batch["images"])[name]
    assert found.report.read
    assert not wanted.is_contiguous()
    assert given.stride() == wanted.stride()
    assert torch.equal(given, wanted)


def test_the_frozen_half_is_timed_on_a_few_images_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    found, counts, fresh = halves_over(Memory(1 << 20)), list[int](), Halves.fresh
    before = (found.report.row_bytes, found._form)

    def counted(self: Halves, images: Tensor) -> dict[str, Tensor]:
        counts.append(len(images))
        return fresh(self, images)

    monkeypatch.setattr(Halves, "fresh", counted)
    monkeypatch.setattr("fxdistill.runtime.training.halves.time.perf_counter", map(float, itertools.count()).__next__)
    images = torch.rand(96, 3, 8, 8)
    assert found.tried(images) == 3.0  # a second for 32 of them
    assert counts == [32, 32]
    assert found._cost == 3.0 / 96
    assert found.tried(images[:8]) == 1.0
    assert (found.report.row_bytes, found._form) == before


def test_computing_is_the_same_wherever_it_was_stopped() -> None:
    whole, stopped = Memory(1 << 20), Memory(1 << 20)
    epoch(halves_over(whole))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halves_over(stopped).begin(0, stop)
    epoch(halves_over(stopped))
    for place, rows in whole._rows.items():
        assert all(torch.equal(value, stopped._rows[place][name]) for name, value in rows.items())


def test_rows_that_lie_on_the_gpu_are_those_that_come_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = halves_over(Memory(1 << 20))
    found.begin(0, lambda: None)
    assert found._blocks is not None
    chosen = torch.tensor([44, 0, 17, 3])
    wanted = found._gathered(found._blocks, chosen)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100, 100))
    assert not found._brought(found._blocks)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1 << 20, 1 << 20))
    found._near = found._brought(found._blocks)
    assert all(len(rows) == COUNT for rows in found._near.values())
    monkeypatch.setattr(found, "_blocks", [])
    assert all(torch.equal(rows, wanted[name]) for name, rows in found._gathered([], chosen).items())


def test_reading_is_timed_where_rows_will_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    found, read = halves_over(Memory(1 << 20)), list[dict[str, Tensor]]()

    def seconds(call: Callable[[], dict[str, Tensor]], _device: torch.device) -> float:
        read.append(call())
        return 0.25

    monkeypatch.setattr(halves, "seconds", seconds)
    images = next(found.looks.batches(0))["images"]
    wanted = found.fresh(images)
    for free in (100, 1 << 20):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, free=free: (free, free))
        assert found.reading(images) == 0.25
    assert all(torch.equal(rows[name], value) for rows in read for name, value in wanted.items())
    assert not found._near


def test_what_an_arm_has_read_it_may_write_to() -> None:
    found = halves_over(Memory(1 << 20))
    found.begin(0, lambda: None)
    batch = next(found.looks.batches(0))
    chosen = torch.arange(len(batch["images"]))
    before = found.complete(batch, chosen)[found.divided.fields[0]].clone()
    found.complete(batch, chosen)[found.divided.fields[0]].zero_()
    assert torch.equal(found.complete(batch, chosen)[found.divided.fields[0]], before)
    assert found.report.read == 3 * len(chosen)


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Sealed files with other rows in them, as a stale or a foreign entry is."""
    for file in folder.rglob("*.fxcache"):
        _, content = container.read(file, kinds=("cache",))
        container.write(file, "cache", {"rows": change(content["rows"])})


def _values(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda rows: {name: value if name == PIXELS else change(value) for name, value in rows.items()}


WRONG: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "the rows of the neighbour": lambda rows: {name: value.roll(1, 0) for name, value in rows.items()},
    "other pixels": lambda rows: {**rows, PIXELS: rows[PIXELS] + 1},
    "another teacher's rows": _values(lambda value: value + 0.1 * value.abs().max()),
    "nothing but NaN": _values(lambda value: value * torch.nan),
}
FOREIGN: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "no hashes": lambda rows: {name: value for name, value in rows.items() if name != PIXELS},
    "one field more": lambda rows: {**rows, "cached.more": rows[PIXELS]},
    "another type": _values(Tensor.double),
    "another shape": _values(lambda value: value[:, :1]),
    "fewer rows": lambda rows: {name: value[:-1] for name, value in rows.items()},
}


@pytest.mark.parametrize("what", [*WRONG, *FOREIGN])
def test_stale_and_foreign_rows_are_never_used(tmp_path: Path, what: str) -> None:
    epoch(halves_over(Folder(tmp_path, 1 << 20)))
    rewritten(tmp_path, {**WRONG, **FOREIGN}[what])
    said: list[str] = []
    found = halves_over(Folder(tmp_path, 1 << 20), say=said.append)
    assert epoch(found) == [True] * 6
    assert found.report.computed == COUNT
    assert [("computed again" in line) for line in said] == [True] * (what in WRONG)
    assert (found.report.exact, found.report.error) == (True, 0.0)
    assert epoch(halves_over(Folder(tmp_path, 1 << 20))) == [True] * 6


def _flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


HARMED: dict[str, Callable[[Path], object]] = {
    "a bit": _flipped,
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "no cache": lambda file: file.write_bytes(b"none"),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
    "another kind": lambda file: container.write(file, "bundle", {"rows": {}}),
    "other content": lambda file: container.write(file, "cache", {"rows": [1], "more": None}),
    "a folder": _folder,
}


@pytest.mark.parametrize("what", HARMED)
def test_files_that_cannot_be_read_are_written_anew(tmp_path: Path, what: str) -> None:
    epoch(halves_over(Folder(tmp_path, 1 << 20)))
    files = sorted(tmp_path.rglob("*.fxcache"))
    assert len(files) > 2
    HARMED[what](files[1])
    found = halves_over(Folder(tmp_path, 1 << 20))
    assert epoch(found) == [True] * 6
    assert 0 < found.report.computed < COUNT or what == "a folder"
    assert bool(found.report.why) is (what == "a folder")


def test_images_that_are_no_function_of_their_place_are_not_kept() -> None:
    class Random(Split):
        def read(self, indices: Any) -> Any:
            return (torch.randint(256, (len(one), 3, 8, 8), dtype=torch.uint8) for one in indices)

    said: list[str] = []
    split = Random(SPLIT.images, SPLIT.labels)
    found = halves_over(Memory(1 << 20), split=split, say=said.append)
    found.report.views = 2
    assert epoch(found, split=split) == [True] * 6
    assert (found.report.read, found.report.views) == (0, 0)  # a run that goes on does not try again
    assert [line.rpartition("; ")[2] for line in said] == [
        "they are computed again", "nothing more is kept of this stage's frozen half"
    ]  # fmt: skip


def test_what_is_computed_again_is_compared_at_once_also_where_hashes_are_looked_at_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on an accelerator."""
    wrong, made = Halves._wrong, itertools.count()

    def seldom(found: Halves, images: Tensor, rows: dict[str, Tensor], *, compare: bool, always: bool) -> str:
        del always
        return wrong(found, images, rows, compare=compare, always=False)

    class Changing(Split):
        def read(self, indices: Any) -> Any:
            number = next(made)
            return (images + number for images in Split.read(self, indices))

    monkeypatch.setattr(Halves, "_wrong", seldom)
    split = Changing(SPLIT.images, SPLIT.labels)
    assert epoch(halves_over(Memory(1 << 20), split=split), split=split) == [True] * 6


def test_rows_of_another_view_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Halves.begin
    monkeypatch.setattr(Halves, "begin", lambda self, view, pulse: begin(self, 1 - view, pulse))
    said: list[str] = []
    assert epoch(halves_over(Memory(1 << 20), say=said.append)) == [True] * 6
    assert "not of the images of this batch" in said[0]


def test_a_frozen_half_that_changed_is_found_out() -> None:
    shelf, said = Memory(1 << 20), list[str]()
    epoch(halves_over(shelf))
    found = halves_over(shelf, say=said.append)
    frozen = found.divided.frozen
    assert isinstance(frozen, fx.GraphModule)
    for parameter in frozen.parameters():
        parameter.data *= 1.1
    assert epoch(found) == [True] * 6
    assert "differ from what the frozen half computes" in said[0]


def test_whole_numbers_that_differ_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, said = Memory(1 << 20), list[str]()
    found = halves_over(shelf, say=said.append)
    fresh = found.fresh

    def whole(images: Tensor) -> dict[str, Tensor]:
        return {name: value.argmax(-1) + found.report.read for name, value in fresh(images).items()}

    monkeypatch.setattr(found, "fresh", whole)
    found.tried(next(found.looks.batches(0))["images"])
    epoch(found)
    found.report.read = 1
    monkeypatch.setattr(halves, "_EVERY", 1)
    epoch(found)
    assert "differ from what the frozen half computes" in said[0]


def test_a_full_folder_is_no_failure(tmp_path: Path) -> None:
    said: list[str] = []
    found = halves_over(Folder(tmp_path, 1000), say=said.append)
    assert epoch(found) == [True] * 6
    assert "no room" in found.report.why
    assert len(said) == 1
    (tmp_path / "file").touch()
    found = halves_over(Folder(tmp_path / "file" / "below", 1 << 20), say=said.append)
    assert epoch(found) == [True] * 6
    assert found.report.why.startswith(f"nothing can be written in {tmp_path / 'file' / 'below'}: ")


def test_room_is_told_while_another_run_removes_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, scan = Folder(tmp_path, 1 << 20), os.scandir
    for key in ("one", "other"):
        assert not shelf.put(Place(key, 0, 0), {"rows": torch.zeros(100)})
    size = (tmp_path / "one" / "0-0.fxcache").stat().st_size

    def late(path: Any) -> Any:
        if str(path).endswith("other"):
            shutil.rmtree(tmp_path / "other", ignore_errors=True)
        return scan(path)

    monkeypatch.setattr(os, "scandir", late)
    assert shelf.room == (1 << 20) - size


def test_half_precision_is_close_and_is_said() -> None:
    found = halves_over(Memory(1 << 20), half=True)
    assert epoch(found) == [False] * 6
    assert not found.report.exact
    assert 0 < found.report.error < 1e-3
    assert found.report.row_bytes == 5 * 2 + 8
    assert "the same to" in halves.described(found.report)


def test_a_hash_tells_images_apart() -> None:
    one = torch.rand(50, 3, 5, 5)
    found = fingerprints(one)
    assert len(set(found.tolist())) == 50
    assert torch.equal(fingerprints(one[7:9]), found[7:9])
    swapped = one.clone()
    swapped[:, :, 0, 0], swapped[:, :, 4, 4] = one[:, :, 4, 4], one[:, :, 0, 0]
    for other in (one.flip(-1), one.roll(1, 1), swapped, one + 1e-6, 1 - one):
        assert not (fingerprints(other) == found).any()


def test_what_a_key_depends_on() -> None:
    how = {"precision": "32-true"}
    frozen = divided().frozen
    assert isinstance(frozen, fx.GraphModule)
    key, early = key_of(frozen, "data", how), divided("warm-up-1").frozen
    assert isinstance(early, fx.GraphModule)
    assert key == key_of(frozen, "data", dict(how))
    keys = {key, key_of(frozen, "others", how), key_of(frozen, "data", {"precision": "bf16-mixed"})}
    keys |= {key_of(early, "data", how)}
    next(frozen.parameters()).data[0] += 1e-6
    assert len(keys | {key_of(frozen, "data", how)}) == 5


def test_a_report_is_plain_data() -> None:
    found = halves_over(Memory(1 << 20))
    epoch(found)
    assert halves.Report(**dataclasses.asdict(found.report)) == found.report

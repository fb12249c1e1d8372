"""Checkpoints of training scripts: read as data, whatever lies beside the weights, and nothing in them is run."""

import argparse
import builtins
import collections
import enum
import io
import os
import pathlib
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxdistill import models
from fxdistill.errors import ModelError
from fxdistill.modelfiles import inert
from fxdistill.modelfiles.inert import Inert
from fxdistill.modelfiles.load import load

FACTORY = "fxdistill.models:convnet"
KWARGS: dict[str, Any] = {"widths": [4, 6], "hidden": 5, "classes": 3}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return models.convnet(**KWARGS).eval()


class Settings(dict[str, Any]):
    """A mapping of a training script, as Lightning's AttributeDict."""


class Phase(enum.Enum):
    FIRST = 1


class Config:
    """A configuration that restores itself, as OmegaConf's."""

    def __init__(self) -> None:
        self.content = {"lr": 0.1, "parent": self}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("a __setstate__ of the file was run")


def metadata() -> dict[str, Any]:
    history = collections.defaultdict(list, {"loss": [0.5, 0.25]})
    return {
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(model="resnet18")),
        "metric": np.float64(0.75), "array": np.arange(3), "path": pathlib.PurePosixPath("/a/b"), "phase": Phase.FIRST,
        "hyper_parameters": Settings(lr=0.1), "config": Config(), "meter": collections.deque([1, 2], maxlen=3),
        "history": history, "set": {1, 2}, "frozen": frozenset({1}), "slice": slice(1, 2), "big": 1 << 90,
        "complex": 1j, "bytes": b"abc", "rng": np.random.default_rng(0), "device": torch.device("cpu"),
    }  # fmt: skip


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_beside_anything_load_without_trust(tmp_path: Path, new_format: bool, protocol: int) -> None:
    path = tmp_path / "model.pt"
    content = {"epoch": 3, "state_dict": network().state_dict(), **metadata()}
    torch.save(content, path, _use_new_zipfile_serialization=new_format, pickle_protocol=protocol)
    loaded = load(path, factory=FACTORY, kwargs=KWARGS)
    assert (loaded.entry, loaded.trusted) == ("state_dict", False)
    for name, value in network().state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value), name


def test_plain_values_come_back_and_the_rest_is_named(tmp_path: Path) -> None:
    torch.save(metadata(), tmp_path / "model.pt")
    found = inert.read(tmp_path / "model.pt")
    assert found["hyper_parameters"] == {"lr": 0.1}
    assert found["history"] == {"loss": [0.5, 0.25]}
    assert found["meter"] == [1, 2]
    assert found["big"] == 1 << 90
    assert isinstance(found["args"], Inert)
    assert found["args"].title == "argparse.Namespace"
    assert found["args"].state["lr"] == 0.1
    assert found["config"].state["content"]["parent"] is found["config"]


def same(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_are_those_that_torch_reads(tmp_path: Path, new_format: bool) -> None:
    whole = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    tensors = {
        str(dtype): torch.tensor([0, 1, 2]).to(dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.int16)
    } | {
        "view": whole[1:3, ::2], "transposed": whole.T, "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2)), "expanded": torch.ones(1).expand(5),
    }  # fmt: skip
    if new_format:
        tensors["bytes"] = torch.tensor([1, 2], dtype=torch.uint16)
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    found, expected = inert.read(tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert same(found[name], value), name
    assert found["view"].untyped_storage().data_ptr() == found["transposed"].untyped_storage().data_ptr()


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Restored:
    """Pickled as an object of this test's module, whose ``__setstate__`` leaves a mark."""

    def __reduce__(self) -> Any:
        return Restored, (), {"mark": os.environ["MARK"]}

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["mark"]).mkdir()


def attacks(mark: Path) -> dict[str, Any]:
    code = f"import os; os.mkdir({str(mark)!r})"
    return {
        "os": Calls(os.mkdir, str(mark)), "exec": Calls(builtins.exec, code), "eval": Calls(eval, "1"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "mkdir"), "state": Restored(),
        "called": {"a": Calls(Calls, os.mkdir, str(mark))},
        "torch": Calls(torch.load, str(mark)),
    }  # fmt: skip


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_of_a_malicious_file_is_run(tmp_path: Path, new_format: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv("MARK", str(mark))
    content = {"model": network().state_dict(), **attacks(mark)}
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
    assert not mark.exists()
    loaded = load(tmp_path / "m.pt", factory=FACTORY, kwargs=KWARGS)
    assert loaded.module.state_dict().keys() == network().state_dict().keys()
    assert not mark.exists()
    for entry, attack in attacks(mark).items():  # where the weights should be
        torch.save(attack, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
        with pytest.raises(ModelError) as caught:
            load(tmp_path / "m.pt", factory=FACTORY, kwargs=KWARGS)
        assert caught.value.hint, entry
        assert not mark.exists(), entry


def test_no_module_is_imported_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil_module.py").write_text("from pathlib import Path\nPath('mark').mkdir()\nclass Thing: pass\n")
    pickled = b"\x80\x02cevil_module\nThing\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    torch.save({"state_dict": network().state_dict(), "thing": 1}, "model.pt")
    found = inert._Unpickler(__import__("io").BytesIO(pickled), {}).load()
    assert found.title == "evil_module.Thing"
    assert found.state == {"a": 1}
    assert "evil_module" not in sys.modules
    assert not Path("mark").exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (9,), (1,)), (5, (4,), (1,)), (0, (2, 2), (7, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))],
)  # fmt: skip
def test_a_tensor_stays_inside_its_storage(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    kind = type("Named", (Inert,), {"name": "torch.FloatStorage"})
    storage = inert._Storage(kind, "0", 8)
    storage.fill(io.BytesIO(bytes(32)), 32)
    assert inert._tensor(storage, 0, (8,), (1,)).shape == (8,)
    with pytest.raises(pickle.UnpicklingError):
        inert._tensor(storage, offset, size, stride)


@pytest.mark.parametrize(
    "made",
    [
        b"\x80\x02]r" + struct.pack("<I", 2**31) + b".", b"\x80\x02]p2147483648\n.",  # a memo of 34 GB
        b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b".", b"\x80\x04\x8e" + struct.pack("<Q", 2**34) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**34) + b"].", b"(" + b"]" * 5_000 + b"l.",
    ],
    ids=["memo", "memo in text", "bytes to change", "bytes", "frame", "many"],
)  # fmt: skip
def test_a_pickle_takes_no_memory_for_what_it_only_announces(
    tmp_path: Path, made: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inert, "_MOST", 4000)
    for archived in (True, False):
        if archived:
            with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
                archive.writestr("m/data.pkl", made)
        else:
            (tmp_path / "m.pt").write_bytes(made)
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            inert.read(tmp_path / "m.pt")


def test_tuples_of_tuples_are_gone_through_once(tmp_path: Path) -> None:
    laugh: tuple[Any, ...] = ()
    for _ in range(60):
        laugh = (laugh, laugh)
    torch.save({"model": network().state_dict(), "laugh": laugh}, tmp_path / "m.pt")
    found = inert.read(tmp_path / "m.pt")["laugh"]
    assert found[0] is found[1]


def test_a_storage_is_as_large_as_its_part_of_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for size in (0, 11, 13):
        with zipfile.ZipFile(tmp_path / "made.pt", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, bytes(size) if name.endswith("data/0") else content)
        with pytest.raises(EOFError, match="instead of 12"):
            inert.read(tmp_path / "made.pt")


def test_a_pickled_module_beside_weights_gives_way_to_them(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"model": network(), "args": argparse.Namespace()}, path)
    with pytest.raises(ModelError, match=r"pickled objects \(torch.nn.modules.container.Sequential\)"):
        load(path)
    loaded = load(path, trust_code=True)
    assert (loaded.entry, loaded.trusted) == ("model", True)
    torch.save({"model": network(), "ema": network().state_dict(), "args": argparse.Namespace()}, path)
    loaded = load(path, factory=FACTORY, kwargs=KWARGS)
    assert (loaded.entry, loaded.trusted) == ("ema", False)
    loaded = load(path, trust_code=True, entry="model")
    assert (loaded.entry, loaded.trusted) == ("model", True)


def checkpoint(path: Path) -> None:
    """One with raw and averaged weights, and a Lightning module with a loss of its own."""
    state = network().state_dict()
    torch.save(
        {
            "state_dict": state, "state_dict_ema": {name: value * 2 for name, value in state.items()},
            "swag.mean": {name: value * 3 for name, value in state.items()},
            "lightning": {**{f"net.{name}": value * 4 for name, value in state.items()}, "loss.weight": torch.ones(3)},
            "args": argparse.Namespace(),
        }, path,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "factor"), [(None, 1), ("state_dict", 1), ("state_dict_ema", 2), ("swag.mean", 3), ("lightning.net", 4)]
)
def test_the_entry_that_is_named_is_taken(tmp_path: Path, entry: str | None, factor: int) -> None:
    checkpoint(tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt", factory=FACTORY, kwargs=KWARGS, entry=entry)
    assert loaded.entry == (entry or "state_dict")
    found = loaded.module.state_dict()["classifier.weight"]
    assert torch.equal(found, network().state_dict()["classifier.weight"] * factor)
    if entry is None:
        assert "--entry state_dict_ema" in loaded.diagnostics[0].hint


def test_an_entry_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m.pt")
    for entry, hint in (("state_dict_emma", "state_dict_ema"), ("lightning.body", "swag.mean")):
        with pytest.raises(ModelError, match="no entry") as caught:
            load(tmp_path / "m.pt", factory=FACTORY, kwargs=KWARGS, entry=entry)
        assert hint in caught.value.hint
    torch.save({"mine": network().state_dict(), "epoch": 1}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="usual name") as caught:
        load(tmp_path / "m.pt", factory=FACTORY, kwargs=KWARGS)
    assert caught.value.hint.endswith("--entry mine")
    assert load(tmp_path / "m.pt", factory=FACTORY, kwargs=KWARGS, entry="mine").entry == "mine"
    with pytest.raises(ModelError, match="no file with an entry"):
        load(FACTORY, kwargs=KWARGS, entry="mine")

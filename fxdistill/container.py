r"""Containers: the one format that is written here. Tensors and plain values, sealed; nothing in it can run.

A container is a safetensors file, so that any reader of those finds its tensors. All the rest is one JSON text in the
file's metadata, at a fixed place, in which ``{"tensor": NAME}`` stands for a tensor:

    length │ {"__metadata__":{"fxdistill":"{\"seal\":\"SHA-256\",\"kind\":…,\"version\":…,\"content\":…}"},…} │ tensors

The **seal** is the hash of the whole file with 64 zeros in its place: one flipped bit anywhere is found when the file
is read, before anything is made of it. It tells damage, not who wrote the file. Reading calls no ``pickle``, no
``torch.load`` and no ``torch.export.load``; it takes the file's size in memory twice, writing the largest tensor's.

    None, bool, int, float, str, list, {str: …}     as in JSON
    tuple, {other keys: …}, inf and nan             {"tuple": […]}, {"items": [[key, value], …]}, {"float": "inf"}
    tensor                                          {"tensor": NAME}: one tensor, however often it occurs
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fxdistill import files
from fxdistill.errors import ModelError

VERSION = 1
_KEY = "fxdistill"
_OPENING = b'{"__metadata__":{"' + _KEY.encode() + b'":"{\\"seal\\":\\"'
_LENGTH = 8  # bytes in front of the header that say how long it is
_SEAL = slice(_LENGTH + len(_OPENING), _LENGTH + len(_OPENING) + 64)
_ZEROS = b"0" * 64
_MARKS = frozenset(("tensor", "tuple", "items", "float"))
_DEEPEST = 200
_PART = 1 << 20  # bytes that are hashed at a time
_MOST = 1 << 24
"""Bytes of the header: what is no tensor. Read, it takes up to 25 times as much."""


def is_container(start: bytes | bytearray) -> bool:
    """Whether a file that starts like this (64 bytes or more) is a container."""
    return start[_LENGTH : _SEAL.start] == _OPENING


def write(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write a container, whole or not at all: the same content gives the same bytes.

    Args:
        path: The file.
        kind: What it holds, for who reads it.
        content: Plain values and tensors, as in the module docstring.

    Raises:
        ModelError: A value is none of these.
        PlanError: The file cannot be written there.
        StorageError: The disk is full.
    """
    files.write_parts(path, _sealed(kind, content, where=str(path)))


def to_bytes(kind: str, content: Mapping[str, Any], *, where: str) -> bytes:
    """The bytes of :func:`write`."""
    return b"".join(_sealed(kind, content, where=where))


def _sealed(kind: str, content: Mapping[str, Any], *, where: str) -> Iterator[bytes | memoryview]:
    """The parts of a file one after the other: all that is not tensors, and each tensor, which is made twice."""
    packed = _Packed(where)
    told = {"seal": _ZEROS.decode(), "kind": kind, "version": VERSION, "content": packed.plain(content)}
    start = _start(packed.tensors, json.dumps(told, separators=(",", ":"), allow_nan=False))
    if len(start) - _LENGTH > _MOST:
        raise ModelError(
            f"what is to be saved beside tensors takes more than {_MOST:,} bytes", where=where, hint="leave some out"
        )
    digest = hashlib.sha256(start)
    for tensor in packed.tensors.values():
        digest.update(_bytes(tensor))
    yield start[: _SEAL.start] + digest.hexdigest().encode() + start[_SEAL.stop :]
    yield from map(_bytes, packed.tensors.values())


def _start(tensors: dict[str, Tensor], text: str) -> bytes:
    """What stands in front of tensors, which are put in their order: those of wide types first, so that all align."""
    tensors |= {name: tensors.pop(name) for name in sorted(tensors, key=lambda name: -tensors[name].element_size())}
    header, end = dict[str, Any]({"__metadata__": {_KEY: text}}), 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _named(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [begin, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % _LENGTH)
    return len(told).to_bytes(_LENGTH, "little") + told


@functools.cache
def _named(dtype: torch.dtype) -> str | None:
    """What safetensors calls a type; None for one that it has no name for."""
    try:
        whole = safetensors.torch.save({"a": torch.empty(0, dtype=dtype)})
    except KeyError:
        return None
    return str(json.loads(whole[_LENGTH:])["a"]["dtype"])


def _bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor, in its order of dimensions."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8).numpy().data


def read(path: Path, *, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The kind and the content of a container.

    Args:
        path: The file.
        kinds: What it may be.

    Raises:
        ModelError: It is damaged, no container, of another kind, or of a version that is not known here.
    """
    try:
        whole = path.read_bytes()
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    return from_bytes(whole, where=str(path), kinds=kinds)


def mapped(path: Path, *, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The content of a container, its tensors mapped into memory instead of read; raises as :func:`read` does."""
    try:
        with path.open("rb") as file:
            start = file.read(_SEAL.stop)
            digest = hashlib.sha256(start[: _SEAL.start] + _ZEROS)
            while part := file.read(_PART):
                digest.update(part)
            if not is_container(start) or digest.hexdigest().encode() != start[_SEAL]:
                raise _damaged(str(path))
            file.seek(0)
            length = min(int.from_bytes(start[:_LENGTH], "little"), _MOST + 1)  # what a file says of itself may be made
            content = _told(file.read(_LENGTH + length), str(path), kinds)[1]
        with safetensors.safe_open(path, framework="pt") as opened:
            found = _unpacked(content, {name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as cause:
        raise _malformed(str(path)) from cause
    if not isinstance(found, dict):
        raise _malformed(str(path))
    return found


def from_bytes(whole: bytes, *, where: str, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The kind and the content of a container's bytes; raises as :func:`read` does."""
    if not is_container(whole):
        raise ModelError("the file is no container of fxdistill", where=where, hint="give a file that fxdistill wrote")
    _check_seal(whole, where)
    end = _LENGTH + int.from_bytes(whole[:_LENGTH], "little")
    kind, content = _told(whole[:end], where, kinds)
    try:
        tensors = safetensors.torch.load(whole)
        found = _unpacked(content, tensors)
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as cause:
        raise _malformed(where) from cause
    if not isinstance(found, dict):
        raise _malformed(where)
    return kind, found


def _told(start: bytes, where: str, kinds: tuple[str, ...]) -> tuple[str, Any]:
    """The kind of a container and its content, which stand in front of its tensors."""
    try:
        told = _parsed(_parsed(start[_LENGTH:])["__metadata__"][_KEY])
        kind, version, content = told["kind"], told["version"], told["content"]
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise _malformed(where) from cause
    if version != VERSION:
        raise ModelError(
            f"the file has version {version!r}; this fxdistill reads version {VERSION}", where=where,
            hint="read it with the fxdistill that wrote it, or write it again",
        )  # fmt: skip
    if kind not in kinds:
        raise ModelError(
            f"the file holds a {kind!r}, not a {' or a '.join(kinds)}", where=where, hint="give another file"
        )
    return kind, content


def _parsed(text: bytes | str) -> Any:
    """JSON that has one meaning: no name twice, no number that is none."""
    if len(text) > _MOST:
        raise ValueError("it is larger than any that is written")

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    def distinct(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(entries)
        if len(found) < len(entries):
            raise ValueError("a name occurs twice")
        return found

    return json.loads(text, parse_constant=refuse, object_pairs_hook=distinct)


def _check_seal(whole: bytes, where: str) -> None:
    digest = hashlib.sha256(whole[: _SEAL.start])
    digest.update(_ZEROS)
    digest.update(memoryview(whole)[_SEAL.stop :])
    if digest.hexdigest().encode() != whole[_SEAL]:
        raise _damaged(where)


def _damaged(where: str) -> ModelError:
    return ModelError(
        "the file is damaged: its bytes are not those that were written", where=where,
        hint="copy it again, or write it again",
    )  # fmt: skip


def _unreadable(path: Path, cause: OSError) -> ModelError:
    return ModelError(f"the file cannot be read: {cause.strerror}", where=str(path), hint="check the path")


def _malformed(where: str) -> ModelError:
    return ModelError("the file is not made as fxdistill makes them", where=where, hint="write it again")


class _Packed:
    """Content on its way into a file."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.tensors: dict[str, Tensor] = {}  # held: an address says nothing about a tensor that is gone
        self._names: dict[tuple[Any, ...], str] = {}

    def plain(self, value: Any, depth: int = 0) -> Any:
        """The value as JSON has it."""
        if depth > _DEEPEST:
            raise self._refused("values that lie too deep in one another")
        if isinstance(value, Tensor):
            return {"tensor": self._name(value)}
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, tuple | list):
            inner = [self.plain(item, depth + 1) for item in value]
            return {"tuple": inner} if isinstance(value, tuple) else inner
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        raise self._refused(f"a {type(value).__name__}")

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        if any(isinstance(key, Tensor) for key in value):
            raise self._refused("a tensor as a key")
        if all(type(key) is str for key in value) and not _MARKS & value.keys():
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        return {"items": [[self.plain(key, depth + 1), self.plain(item, depth + 1)] for key, item in value.items()]}

    def _name(self, tensor: Tensor) -> str:
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise self._refused(f"a {tensor.layout} or quantised tensor")
        if _named(tensor.dtype) is None:
            raise self._refused(f"a tensor of {tensor.dtype}")
        place = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        key: tuple[Any, ...] = place if tensor.numel() else (id(tensor),)
        if key not in self._names:
            self._names[key] = str(len(self.tensors))
            self.tensors[self._names[key]] = tensor
        return self._names[key]

    def _refused(self, what: str) -> ModelError:
        return ModelError(
            f"what is to be saved holds {what}, which is no tensor and no plain value", where=self.where,
            hint="leave it out, or turn it into numbers and words",
        )  # fmt: skip


def _unpacked(value: Any, tensors: Mapping[str, Tensor], depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError("values that lie too deep in one another")
    if isinstance(value, list):
        return [_unpacked(item, tensors, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not _MARKS & value.keys():
        return {key: _unpacked(item, tensors, depth + 1) for key, item in value.items()}
    ((mark, inner),) = value.items()
    if mark == "tensor":
        return tensors[inner]
    if mark == "float":
        return float(inner)
    if mark == "tuple":
        return tuple(_unpacked(item, tensors, depth + 1) for item in inner)
    # a key is plain: no tensor is equal to the one that it is read as again
    return {_unpacked(key, {}, depth + 1): _unpacked(item, tensors, depth + 1) for key, item in inner}

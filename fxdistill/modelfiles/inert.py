"""Checkpoints read as data: nothing that a pickle names is imported, and nothing of it is called.

A training script's checkpoint holds more than tensors: an ``argparse.Namespace``, a configuration, numpy's numbers.
Here every name in the pickle, torch's own included, becomes a class made on the spot that only notes what the file says
of an object: its arguments, its state, its entries. From such notes tensors are then made by the code below, mappings
and lists become plain ones, and whatever else there is stays a note (:class:`Inert`).

    zip archive      NAME/data.pkl is the pickle, NAME/data/KEY the bytes of a storage
    before 1.6       four pickles (mark, version, system, content), the keys, then of each storage its size and bytes

``torch.load`` is not asked, whatever the file holds: there is one reader, so that what was checked is what is read. A
pickle is gone through once before, because Python's own reader takes memory for what a few bytes only announce.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import torch
from torch import Tensor

_MARK, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_MOST = 1 << 22  # opcodes of a pickle: each may make an object of 70 bytes out of one
_CHUNK = 1 << 20
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
_PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"  # (function, class, its arguments, state)


class Inert:
    """What a file says of an object: its class, and what it is made with; it cannot do anything.

    Attributes:
        name: The class or function that the file names.
        args: The arguments that it would be called with.
        state: What its ``__setstate__`` would be given.
        entries: What would be put in it under keys.
        elements: What would be appended to it.
    """

    name: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]
    elements: list[Any]

    def __new__(cls, *args: Any, **_: Any) -> Self:
        """Note what the object would be made with."""
        found = super().__new__(cls)
        found.args, found.state, found.entries, found.elements = args, None, {}, []
        return found

    def __call__(self, *args: Any) -> "Inert":
        """Note what would come of calling it."""
        called: type[Inert] = type("Called", (Inert,), {"name": self.name})
        return called(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Note what would be appended."""
        self.elements.append(value)

    def add(self, value: Any) -> None:
        """Note what would be added to a set."""
        self.elements.append(value)

    def __repr__(self) -> str:
        return self.title

    @property
    def title(self) -> str:
        """The class of the object, for a reader."""
        inner = self.args[0] if self.name == "copyreg._reconstructor" and self.args else None
        return str(inner.name) if isinstance(inner, type) and issubclass(inner, Inert) else self.name


class _Storage:
    """A storage that the pickle refers to; its bytes are elsewhere in the file."""

    def __init__(self, kind: Any, key: str, count: int) -> None:
        name = kind.name if isinstance(kind, type) and issubclass(kind, Inert) else ""
        self.dtype = _DTYPES.get(name.rpartition(".")[2]) if name.startswith("torch.") else None
        if self.dtype is None:
            raise pickle.UnpicklingError(f"a storage of the type '{name}'")
        self.key, self.count = key, count
        self.memory: torch.UntypedStorage | None = None

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.count * (self.dtype or torch.uint8).itemsize

    def fill(self, file: IO[bytes], there: int) -> None:
        """Take its bytes, once in memory, from a file that has so many left."""
        if there < self.size:
            raise EOFError(f"the storage {self.key} has {there} bytes instead of {self.size}")
        content, at = bytearray(max(1, self.size)), 0
        while at < self.size:
            part = file.read(min(_CHUNK, self.size - at))
            if not part:
                raise EOFError(f"the storage {self.key} has {at} bytes instead of {self.size}")
            content[at : at + len(part)] = part
            at += len(part)
        self.memory = torch.frombuffer(content, dtype=torch.uint8).untyped_storage()


class ForeignPickleError(pickle.UnpicklingError):
    """A pickle that is not of torch's form; says what it holds."""


class _Unpickler(pickle.Unpickler):
    """Reads the next pickle of a file; every class in it is an :class:`Inert` one."""

    def __init__(self, file: IO[bytes], storages: dict[str, _Storage]) -> None:
        super().__init__(io.BytesIO(_next(file)), encoding="utf-8")
        self._storages = storages
        self._classes: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> type[Inert]:
        """A class of that name which does nothing."""
        full = f"{module}.{name}"
        return self._classes.setdefault(full, type("Named", (Inert,), {"name": full}))

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ``("storage", type, key, place, count, …)``."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("a reference that is none to a storage")
        key, count = str(pid[2]), _whole(pid[4])
        return self._storages.setdefault(key, _Storage(pid[1], key, count))


def _next(file: IO[bytes]) -> bytes:
    """The next pickle of a file, all of whose parts are there and whose memo is no larger than it.

    Raises:
        UnpicklingError: It announces what it does not have, or more than anybody writes.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file), 1):
        if count > _MOST or (opcode.name.endswith("PUT") and not 0 <= int(argument or 0) <= count):
            raise pickle.UnpicklingError("a pickle of more objects than anybody writes")
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def read(path: Path) -> Any:
    """What ``torch.save`` wrote, with an :class:`Inert` for whatever is no tensor, mapping, list or plain value.

    Raises:
        Exception: The file is damaged, or not of one of the two forms; whatever it is, nothing of the file was run.
    """
    storages: dict[str, _Storage] = {}
    if zipfile.is_zipfile(path):
        content = _read_archive(path, storages)
    else:
        with path.open("rb") as file:
            content = _read_old(file, storages)
    return _Tree().plain(content)


def _read_archive(path: Path, storages: dict[str, _Storage]) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are written in another order of bytes")
        content = _Unpickler(io.BytesIO(archive.read(pickled)), storages).load()
        for key, storage in storages.items():
            part = archive.getinfo(f"{folder}data/{key}")
            if part.file_size != storage.size:
                raise EOFError(f"the storage {key} has {part.file_size} bytes instead of {storage.size}")
            with archive.open(part) as file:
                storage.fill(file, part.file_size)
    return content


def _read_old(file: IO[bytes], storages: dict[str, _Storage]) -> Any:
    mark = _Unpickler(file, storages).load()
    if mark != _MARK:
        raise ForeignPickleError(mark.title if isinstance(mark, Inert) else "")
    version, system, content = (_Unpickler(file, storages).load() for _ in range(3))
    if version != _VERSION or not isinstance(system, dict) or not system.get("little_endian"):
        raise pickle.UnpicklingError("no file that torch.save wrote on such a machine")
    keys, start = _Unpickler(file, storages).load(), file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    for key in keys:
        storage = storages[str(key)]
        if int.from_bytes(file.read(8), "little") != storage.count:
            raise EOFError(f"the storage {key} has another size")
        storage.fill(file, size - file.tell())
    return content


class _Tree:
    """Makes plain values of what was read; what is there twice is there twice again."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def plain(self, value: Any) -> Any:
        """A value with tensors, mappings and lists for the notes that say such."""
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, dict):
            return self._mapping(value, value)
        if isinstance(value, list):
            return self._list(value, value)
        if isinstance(value, tuple):
            made = self._made[id(value)] = tuple(self.plain(item) for item in value)
            return made
        return self._object(value) if isinstance(value, Inert) else value

    def _mapping(self, value: object, entries: Mapping[Any, Any]) -> dict[Any, Any]:
        made = self._made[id(value)] = {}
        made.update((key, self.plain(item)) for key, item in entries.items())
        return made

    def _list(self, value: object, elements: Sequence[Any]) -> list[Any]:
        made = self._made[id(value)] = []
        made.extend(self.plain(item) for item in elements)
        return made

    def _object(self, value: Inert) -> Any:
        if value.name == "collections.OrderedDict" and not value.args:
            return self._mapping(value, value.entries)
        if value.entries or value.elements:  # a mapping or a list of somebody's own
            return self._mapping(value, value.entries) if value.entries else self._list(value, value.elements)
        made: Any = value
        if value.name in _PARAMETERS:
            made = self.plain(value.args[0]) if value.args else value
        elif value.name == _SUBCLASS and len(value.args) > 2:
            function, args = getattr(value.args[0], "name", ""), value.args[2]
            made = _REBUILD[function](*args) if function in _REBUILD else value
        elif value.name in _REBUILD:
            made = _REBUILD[value.name](*value.args)
        self._made[id(value)] = made
        return made


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    return _view(storage, storage.dtype, offset, size, stride)


def _tensor_of_bytes(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    name = dtype.name if isinstance(dtype, type) and issubclass(dtype, Inert) else ""
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise pickle.UnpicklingError(f"numbers of the type '{name}'")
    return _view(storage, found, offset, size, stride)


_REBUILD: dict[str, Callable[..., Tensor]] = {
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
}  # fmt: skip


def _view(storage: Any, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
    """A tensor on a storage, inside its bounds."""
    if not isinstance(storage, _Storage) or storage.memory is None:
        raise pickle.UnpicklingError("a tensor without a storage")
    start, shape, steps = _whole(offset), list(_sizes(size)), list(_sizes(stride))
    last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if math.prod(shape) and (last + 1) * dtype.itemsize > storage.size:
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return torch.empty(0, dtype=dtype).set_(storage.memory, start, shape, steps)


def _sizes(value: Any) -> Iterator[int]:
    inner = value.args[0] if isinstance(value, Inert) and value.name == "torch.Size" else value
    return (_whole(item) for item in inner)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise pickle.UnpicklingError(f"{value!r} where a size is to stand")
    return value

"""What kind of file a model file is, and reading it without running what it contains.

The kind is found out from the bytes, never from the name alone, so that a web page saved as ``model.pt`` or a
truncated download is called what it is. Only a file that the user trusts is unpickled.
"""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from fxdistill import container, files
from fxdistill.errors import ModelError, first_line
from fxdistill.modelfiles import inert
from fxdistill.modelfiles.factories import working_directory_importable
from fxdistill.modelfiles.source import missing

Kind = Literal["bundle", "torch", "export", "safetensors"]
_LARGEST_EXPANSION = 2  # times the size of the file: what torch writes is not compressed
_TEXT = bytes([*b"\t\n\r\f", *range(32, 127)])


def name_factory(option: str) -> str:
    """The advice to name a model's factory, by the option that does it where there is one."""
    return f"name its factory{f': {option}' if option else ', such as'} torchvision.models:resnet18"


def read(path: Path, kind: Kind, *, trust_code: bool, option: str = "") -> tuple[Any, bool]:
    """What a file holds, on the CPU, and whether it had to be unpickled.

    What is no tensor and no plain value is an :class:`~fxdistill.modelfiles.inert.Inert`, unless it was unpickled.

    Args:
        path: The file.
        kind: What it is.
        trust_code: Whether it may be unpickled, where it can be read in no other way.
        option: The option that names the model's factory, for the hint.

    Raises:
        ModelError: The file is damaged, or can only be unpickled and is not trusted.
    """
    if kind == "safetensors":
        return _read_safetensors(path)
    return _read_torch(path, trust_code=trust_code, option=option)


def to_bytes(content: object) -> bytes:
    """What ``torch.save`` would write."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def kind_of(path: Path, *, option: str = "") -> Kind:
    """What a file is, by its first bytes and, for an archive, its members.

    Args:
        path: The file.
        option: The option that names the model's factory, for the hint.

    Raises:
        ModelError: It is missing, damaged or nothing that holds a model; says what it is.
    """
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        return _archive_kind(path, option)
    if container.is_container(head):
        return "bundle"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return "safetensors"
    if head.startswith(b"\x80"):
        return "torch"  # the layout of torch before 1.6, or any other pickle
    what, hint = ("the file is not one that PyTorch wrote", "save the model with torch.save(model.state_dict(), PATH)")
    if not head:
        what, hint = "the file is empty", "copy or download it again"
    elif head.lstrip().startswith(b"<"):
        what, hint = ("the file is a web page (HTML or XML), not a model", "download it again, and look at the address")
    elif head.startswith(b"version https://git-lfs"):
        what, hint = "the file is a Git LFS pointer, not the model itself", "run `git lfs pull`"
    elif path.suffix == ".onnx":
        what, hint = "the file is an ONNX model, which cannot be trained", "give the PyTorch model"
    elif not head.translate(None, _TEXT):
        what = "the file is text, not a model"
    raise ModelError(what, where=str(path), hint=hint)


def _head(path: Path) -> bytes:
    where = str(path)
    try:
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError as cause:
        raise missing(where) from cause
    except IsADirectoryError as cause:
        raise ModelError("this is a folder, not a model", where=where, hint="name the file in it") from cause
    except OSError as cause:
        raise ModelError(
            f"the file cannot be read: {cause.strerror}", where=where, hint="check its permissions"
        ) from cause


def _archive_kind(path: Path, option: str) -> Kind:
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            _check_archive(archive, path)
    except ModelError:
        raise
    except Exception as cause:  # zipfile's own, and what it meets in names and numbers that are none
        raise ModelError(
            "the file is truncated or damaged: the archive's table of contents, at its end, cannot be read",
            where=where, hint="copy or download it again",
        ) from cause  # fmt: skip
    names = {member.partition("/")[2] for member in members}
    if "archive_format" in names or "serialized_exported_program.json" in members:
        return "export"
    if "constants.pkl" in names:
        raise ModelError(
            "the file is a TorchScript archive, whose graph cannot be trained or paired",
            where=where, hint=f"save the state dict of the original model, and {name_factory(option)}",
        )  # fmt: skip
    if "data.pkl" in names:
        return "torch"
    raise ModelError(
        f"the file is an archive, but PyTorch did not write it (it begins with {members[:1]})",
        where=where, hint="save the model with torch.save(model.state_dict(), PATH)",
    )  # fmt: skip


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Its parts are those that were written, and not much more than they take in the file.

    Raises:
        ModelError: They are not; nothing of it is in memory then.
        BadZipFile: It is a piece of something else.
    """
    if not files.is_whole(archive):
        raise zipfile.BadZipFile("it is a piece of something else, or two in one")
    if wrong := files.expansion(archive, most=_LARGEST_EXPANSION):
        raise ModelError(
            f"the file is an archive, and {wrong}; torch.save writes none that do", where=str(path),
            hint="save the model again with torch.save(model.state_dict(), PATH)",
        )  # fmt: skip
    try:
        damaged = archive.testzip()
    except Exception as cause:  # whatever the decompressor makes of what is no data of its kind
        raise _damaged(path, cause) from cause
    if damaged is not None:
        raise ModelError(
            f"the file is damaged: the checksum of its part '{damaged}' is wrong", where=str(path),
            hint="copy or download it again",
        )  # fmt: skip


def _read_torch(path: Path, *, trust_code: bool, option: str) -> tuple[Any, bool]:
    """What torch.save wrote, and whether it had to be unpickled."""
    try:
        return inert.read(path), False
    except Exception as cause:
        if trust_code:
            return unpickle(path), True
        if isinstance(cause, inert.ForeignPickleError):
            raise pickled(path, str(cause), option) from cause
        raise _damaged(path, cause) from cause


def pickled(path: Path, name: str, option: str) -> ModelError:
    """Why a file with a pickled object of some class is not opened.

    Args:
        path: The file.
        name: The class, where it is known.
        option: The option that names the model's factory, for the hint.
    """
    return ModelError(
        f"the file holds pickled objects{name and f' ({name})'}, and unpickling runs whatever code is in the file",
        where=str(path),
        hint=f"save torch.save(model.state_dict(), PATH) instead and {name_factory(option)}; "
        "or, if you trust where the file comes from, add --trust-code",
    )


def unpickle(path: Path) -> Any:
    """What a file that the user trusts holds; this runs whatever code is in it.

    Raises:
        ModelError: It is damaged, or needs what is not here.
    """
    try:
        with working_directory_importable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as cause:
        raise ModelError(
            f"the pickle needs a class that cannot be imported: {cause}",
            where=str(path), hint="run where the module of that class can be imported",
        ) from cause  # fmt: skip
    except Exception as cause:
        raise _damaged(path, cause) from cause


def _read_safetensors(path: Path) -> tuple[Any, bool]:
    try:
        return load_file(path), False
    except Exception as cause:
        raise _damaged(path, cause) from cause


def _damaged(path: Path, cause: Exception) -> ModelError:
    return ModelError(
        f"the file cannot be read as a model: {first_line(cause)}", where=str(path),
        hint="it is truncated, damaged, or torch.save did not write it; copy or write it again",
    )  # fmt: skip

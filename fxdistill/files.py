"""Files on disk: written whole or not at all, and told apart by their hash.

What the file system refuses is one of two things: the place is wrong (no such folder, no permission, a folder in the
way), which is the user's to correct, or the disk is full or failing, which is not.
"""

import errno
import hashlib
import os
import re
import secrets
import stat
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from fxdistill.errors import InputError, PlanError, StorageError

PLACE_ERRORS = frozenset({
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EBUSY, errno.ENOTEMPTY,
})  # fmt: skip
"""The place is wrong."""
STORAGE_ERRORS = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EMLINK, errno.ENODEV,
    errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT,
})  # fmt: skip
"""The place is right, and the disk, or the number of open files, fails."""
_SMALL = 1 << 24  # bytes that any archive may expand to, and that a text may have
_END = 22  # bytes of an archive's last record, behind its table of contents
_LONGEST = 120  # characters of a text in a file's name, which may have 255 in all
_MADE_OF_RUNS = (".html", ".onnx")  # what a run directory may get anew: its report, its models for elsewhere
_LEFT = 3600.0  # seconds after which a temporary file is one that its writer left


def is_there(place: str | Path) -> bool:
    """Whether something lies at a place; nothing does at one that is too long for a name, as a factory may be."""
    return os.path.exists(place)  # noqa: PTH110  # pathlib raises there


def is_folder(place: str | Path) -> bool:
    """Whether a folder lies at a place; see :func:`is_there`."""
    return os.path.isdir(place)  # noqa: PTH112


def as_name(text: str) -> str:
    """A text as part of a file's name: what no file system may refuse, another one for another text."""
    name = quote(text, safe=" +[]")
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """The text of a file that is read as a whole, as JSON is, which may take 25 times as much memory.

    Raises:
        OSError: It cannot be read, or is larger than any that is written.
        UnicodeDecodeError: It is no text.
    """
    if path.stat().st_size > _SMALL:
        raise OSError(errno.EFBIG, f"it is larger than {_SMALL:,} bytes")
    return path.read_text(encoding=encoding)


def writable(path: Path, *read: str | Path | None) -> None:
    """Check that a file may be written under this name.

    Args:
        path: Its name.
        read: What is read before, and is not to be lost: files, and run directories with what these consist of.

    Raises:
        InputError: It is a folder, lies in none, or is one of the files that are read.
    """
    if path.is_file() and any(_is_of(path, one) for one in read if one is not None):
        raise InputError("the output is a file that is read here", where=str(path), hint="give it another name")
    if path.is_dir():
        raise InputError("the output is a folder", where=str(path), hint="give the name of a file")
    if not path.resolve().parent.is_dir():
        hint = "make that folder first, or write to another one"
        raise InputError("the output lies in a folder that does not exist", where=str(path), hint=hint)


def _is_of(path: Path, read: str | Path) -> bool:
    """Whether a file is one that is read, or lies in a folder that is, and is none of those that are made of it."""
    if is_folder(read):
        return Path(read).resolve() in path.resolve().parents and path.suffix not in _MADE_OF_RUNS
    return is_there(read) and path.samefile(read)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        PlanError: The place cannot be written to, or the text holds a file's name that is no text.
        StorageError: The disk is full.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as cause:
        name = text[: cause.start].rpartition('"')[2] + text[cause.start :].partition('"')[0]
        raise PlanError(
            f"'{name}' cannot be written down, for it is not UTF-8", where=str(path), hint="rename that file or folder"
        ) from cause
    write_bytes(path, content)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; see :func:`write_parts`."""
    write_parts(path, (content,))


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all: part by part to a temporary file beside it, synced, then renamed.

    A file that is replaced keeps its mode; a new one gets that of every new file here (the umask).

    Raises:
        PlanError: The place cannot be written to (missing folder, no permission).
        StorageError: The disk is full or fails.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    with writing(path):
        _sweep(path)
        try:
            with temporary.open("xb") as file:
                _take_mode(temporary, path)
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except FileExistsError:  # another's file of that name
            raise
        except BaseException:  # also Ctrl-C
            temporary.unlink(missing_ok=True)
            raise


def _sweep(path: Path) -> None:
    """Remove what writers of this file that were killed have left, an hour ago or more."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}")
    for entry in path.parent.iterdir():
        if name.fullmatch(entry.name) and entry.is_file() and time.time() - entry.stat().st_mtime > _LEFT:
            entry.unlink(missing_ok=True)


def check_text(path: Path, *, error: type[InputError] = PlanError) -> None:
    """Check that a path is text, which it is not where an old name is not UTF-8: ONNX writes to no such place.

    Raises:
        InputError: It is none, of the kind that is given.
    """
    if str(path).encode("utf-8", "ignore").decode() != str(path):
        raise error("its name is not UTF-8", where=str(path), hint="rename that file or folder, or choose another")


def check_onnx_name(path: Path) -> None:
    """Check that a path ends as an ONNX file does.

    Raises:
        PlanError: It does not, or is no text.
    """
    check_text(path)
    if path.suffix.lower() != ".onnx":
        hint = f"name it {path.with_suffix('.onnx').name}" if path.name else "give the name of a file, x.onnx"
        raise PlanError(f"'{path.name}' is not the name of an ONNX file", where=str(path), hint=hint)


def put(draft: Path, path: Path) -> None:
    """Move a finished file to its place on the same disk, with the mode that :func:`write_bytes` would give it.

    Raises:
        OSError: It cannot be moved.
    """
    probe = draft.with_name(f".{draft.name}.{secrets.token_hex(4)}")
    probe.touch(exist_ok=False)  # whatever wrote the draft may have given it a mode of its own
    _take_mode(draft, probe)
    probe.unlink()
    _take_mode(draft, path)
    draft.replace(path)


def _take_mode(file: Path, other: Path) -> None:
    """Give a file the mode of another, where that is there."""
    if other.is_file():
        file.chmod(stat.S_IMODE(other.stat().st_mode))


@contextmanager
def writing(path: Path, *, hint: str = "") -> Iterator[None]:
    """Tell what the file system refuses inside as an error about a path.

    Raises:
        PlanError: The place is wrong.
        StorageError: The disk is full or fails.
    """
    try:
        yield
    except OSError as cause:
        raise failure(cause, where=str(path), hint=hint) from cause


def failure(
    cause: OSError, *, where: str, what: str = "cannot write", hint: str = "", error: type[InputError] = PlanError
) -> InputError | StorageError:
    """The error that says what the file system refused.

    Args:
        cause: What it raised.
        where: The file or folder.
        what: What failed.
        hint: What to do, where that is known better than here.
        error: Of which kind a wrong place is.
    """
    what = f"{what}: {cause.strerror or cause}"
    if cause.errno in PLACE_ERRORS:
        return error(what, where=where, hint=hint or "choose another place, or look at its permissions")
    return StorageError(
        what, where=where, hint=hint or "free some space on the disk; a run continues from there with --resume"
    )


def expansion(archive: zipfile.ZipFile, *, most: int) -> str:
    """What is wrong with how far an archive would expand, '' where nothing is; nothing of it is in memory then.

    Parts may lie in one another, so that it is the file itself that they are compared with.

    Args:
        archive: The archive.
        most: How many times its own size its parts may have together.
    """
    parts = archive.infolist()
    if odd := [part for part in parts if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]:
        return f"its part '{odd[0].filename}' is compressed in a way that is not read"
    whole = sum(part.file_size for part in parts)
    size = Path(str(archive.filename)).stat().st_size
    return "" if whole <= most * size + _SMALL else f"its {size:,} bytes would expand to {whole:,}"


def is_whole(archive: zipfile.ZipFile) -> bool:
    """Whether an archive is one from a file's first byte to its last, with one table of contents.

    Python reads one that lies somewhere in a file as well: a truncated archive's last part, or what other readers skip.
    """
    names = [part.filename.casefold() for part in archive.infolist()]  # some readers take them in any case
    with Path(str(archive.filename)).open("rb") as file:
        file.seek(-_END, os.SEEK_END)
        end = file.read()
    first = min((part.header_offset for part in archive.infolist()), default=0)
    return first == 0 and end.startswith(b"PK\x05\x06") and len(set(names)) == len(names)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

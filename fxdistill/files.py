"""Files on disk: written whole or not at all, and told apart by their hash."""

import hashlib
import os
import tempfile
from pathlib import Path

from fxdistill.errors import PlanError


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        PlanError: The place cannot be written to.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, synced, then renamed.

    Raises:
        PlanError: The place cannot be written to (missing folder, no permission, full disk).
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as cause:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(cause, OSError):  # Ctrl-C
            raise
        raise PlanError(
            f"cannot write: {cause.strerror or cause}",
            where=str(path),
            hint="choose another place, or free some space",
        ) from cause


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

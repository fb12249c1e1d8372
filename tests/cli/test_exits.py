"""How a command ends when the file system refuses something that nobody foresaw."""

import errno
import os

import pytest
import typer

from fxdistill.cli.exits import reported
from fxdistill.errors import InputError, StorageError


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EFBIG, 1), (errno.EIO, 1),
        (errno.EACCES, 2), (errno.EPERM, 2), (errno.EROFS, 2), (errno.ENOTDIR, 2), (errno.EISDIR, 2),
        (errno.ENAMETOOLONG, 2),
    ],
)  # fmt: skip
def test_a_full_disk_is_a_failure_and_a_wrong_place_is_wrong_input(
    code: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, reported():
        raise OSError(code, os.strerror(code), "some/file")
    assert caught.value.exit_code == status
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot write or read: {os.strerror(code)}\n  where: some/file\n  to do: ")
    assert ("space" in said.partition("to do")[2]) == (status == 1)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "missing"), OSError("without a number")])
def test_what_is_a_fault_of_ours_keeps_its_traceback(error: OSError) -> None:
    with pytest.raises(OSError, match=str(error.args[-1])), reported():
        raise error


def test_our_errors_have_the_exit_codes_of_their_kinds() -> None:
    for error, status in ((StorageError("full"), 1), (InputError("wrong"), 2)):
        with pytest.raises(typer.Exit) as caught, reported():
            raise error
        assert caught.value.exit_code == status

"""Files: whole or not at all, with the mode that is due, and the right error where they cannot be written."""

import errno
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fxdistill import files
from fxdistill.errors import FxdistillError, InputError, PlanError, RunDirError, StorageError


@pytest.fixture(params=[0o022, 0o077, 0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_mode_of_every_new_file(tmp_path: Path, umask: int) -> None:
    files.write_text(tmp_path / "a.txt", "x")
    (tmp_path / "draft").touch(mode=0o600)
    files.put(tmp_path / "draft", tmp_path / "b.txt")
    assert mode(tmp_path / "a.txt") == mode(tmp_path / "b.txt") == 0o666 & ~umask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_what_a_run_consists_of_is_not_written_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "tensorboard").mkdir(parents=True)
    held = [run / name for name in ("plan.json", "student.pt", "tensorboard/events")]
    made = [run / name for name in ("report.html", "student.onnx")]
    for path in (*held, *made):
        path.touch()
    for path in held:
        with pytest.raises(InputError, match="a file that is read here"):
            files.writable(path, None, run)
    for path in (*made, run / "smaller.pt", tmp_path / "plan.json"):  # made of a run, new, or elsewhere
        files.writable(path, "torchvision.models:resnet18", run)
    files.writable(made[0], f"models:factory?widths={[8] * 100}")  # longer than any file's name


@pytest.mark.parametrize("old", [0o600, 0o640, 0o644, 0o666, 0o444, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, umask: int, old: int) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(old)
    files.write_text(tmp_path / "a.txt", "new")
    (tmp_path / "draft").write_text("new")
    files.put(tmp_path / "draft", tmp_path / "b.txt")
    for name in ("a.txt", "b.txt"):
        assert (mode(tmp_path / name), (tmp_path / name).read_text()) == (old, "new")


def test_a_private_file_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen, fsync = tmp_path / "a.txt", [], os.fsync

    def watch(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    path.touch()
    path.chmod(0o600)
    monkeypatch.setattr(os, "fsync", watch)
    files.write_text(path, "secret")
    assert seen == [0o600]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENFILE])
def test_a_disk_that_fails_is_a_failure_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=f"cannot write: {os.strerror(code)}") as caught:
        files.write_text(tmp_path / "a.txt", "new")
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, InputError)
    assert "space" in caught.value.hint
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_wrong_place_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "inside").touch()
    places = ("missing/a.txt", "file/a.txt", "folder", "full", "x" * 300, ".", "folder/..")
    for place in places:
        with pytest.raises(PlanError, match="cannot write") as caught:
            files.write_text(tmp_path / place, "x")
        assert caught.value.exit_code == 2
        assert "space" not in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "full"]


def test_a_name_that_is_no_text_is_wrong_input(tmp_path: Path) -> None:
    """As Python reads names of files in Latin-1 where the system's are UTF-8."""
    with pytest.raises(PlanError, match=r"^'te\\udce9.pt' cannot be written down"):
        files.write_text(tmp_path / "plan.json", '{"path": "te\udce9.pt"}')
    for place in ("caf\udce9/student.onnx", "caf\udce9.onnx"):
        with pytest.raises(PlanError, match="not UTF-8"):
            files.check_onnx_name(tmp_path / place)
    files.check_onnx_name(tmp_path / "café.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP])
def test_a_place_that_is_not_ours_is_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PlanError):
        files.write_text(tmp_path / "a.txt", "x")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (OSError(errno.ENOSPC, "full"), StorageError),
        (OSError(errno.ENOMEM, "no memory"), StorageError),
        (OSError("without a number"), StorageError),
        (OSError(errno.ENOENT, "missing"), RunDirError),
        (OSError(errno.EEXIST, "there"), RunDirError),
    ],
)
def test_a_wrong_place_is_an_error_of_the_wanted_kind(cause: OSError, kind: type[FxdistillError]) -> None:
    found = files.failure(cause, where="here", what="cannot make it", error=RunDirError)
    assert type(found) is kind
    assert found.what == f"cannot make it: {cause.strerror or cause}"
    assert (found.where, bool(found.hint)) == ("here", True)


def test_the_two_kinds_of_errors_do_not_overlap() -> None:
    assert not files.PLACE_ERRORS & files.STORAGE_ERRORS


def test_what_killed_writers_left_is_swept_when_the_file_is_written_again(tmp_path: Path) -> None:
    names = {".a.json.0123abcd": True, ".a.json.89efcdab": False, ".a.json.notours!": True, ".b.json.0123abcd": True}
    for name, old in names.items():
        (tmp_path / name).write_text("half")
        if old:
            os.utime(tmp_path / name, (0, 0))
    files.write_text(tmp_path / "a.json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *list(names)[1:]}


def test_an_archive_is_held_to_the_file_that_it_lies_in(tmp_path: Path) -> None:
    """Parts that lie in one another count as often as they are read."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert files.expansion(archive, most=2) == ""
        archive.filelist.extend(archive.filelist * 40)
        assert "would expand" in files.expansion(archive, most=2)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_takes_memory_to_expand_is_not_expanded(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("a", b"x")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert "not read" in files.expansion(archive, most=100)


def test_an_archive_in_something_else_is_not_whole(tmp_path: Path) -> None:
    def whole(content: bytes) -> bool:
        (tmp_path / "b.zip").write_bytes(content)
        with zipfile.ZipFile(tmp_path / "b.zip") as archive:
            return files.is_whole(archive)

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"x")
    content = (tmp_path / "a.zip").read_bytes()
    assert whole(content)
    assert not whole(b"before" + content)
    assert not whole(content + content)
    assert not whole(content + b"behind")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("A", b"y")
    assert not whole((tmp_path / "a.zip").read_bytes())

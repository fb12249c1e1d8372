"""Errors say what, where and what to do, in any process."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import FxdistillError


def kinds(kind: type[FxdistillError] = FxdistillError) -> Iterator[type[FxdistillError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def fail(kind: type[FxdistillError]) -> None:
    raise kind("it is wrong", where="there", hint="mend it")


@pytest.mark.parametrize("kind", list(kinds()))
def test_errors_survive_pickling_and_copying(kind: type[FxdistillError]) -> None:
    error = kind("it is wrong", where="there", hint="mend it")
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == "it is wrong\n  where: there\n  to do: mend it"


def test_errors_survive_another_process() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(FxdistillError, match="it is wrong\n  where: there\n  to do: mend it"),
    ):
        pool.submit(fail, FxdistillError).result()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one\nand\r\nanother", "one and another"),
        ("half \ud800", "half \\ud800"),
        ("\x1b]0;title\x07 and \x9b1m", "\\x1b]0;title\\x07 and \\x9b1m"),
        ("turned \u202e", "turned \\u202e"),
        ("Größe 日本", "Größe 日本"),
        ("x" * 100_000, "x" * 1000 + " …"),
    ],
)
def test_an_error_and_a_remark_are_lines_that_can_be_printed(text: str, shown: str) -> None:
    error = FxdistillError(text, where=text, hint=text)
    assert str(error) == f"{shown}\n  where: {shown}\n  to do: {shown}"
    assert error.what == error.args[0] == shown
    remark = Diagnostic(code="code", severity="note", where=text, why=text, hint=text)
    assert (remark.where, remark.why, remark.hint) == (shown,) * 3

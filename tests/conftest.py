"""The order of the tests, and what they share."""

import functools
import gc
import importlib
import os
import signal
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest
import torch

from tests import children, runs
from tests.plugins import add

__all__ = ["add"]
_FORKING = (("runtime", "test_checkpoint.py"), ("runtime", "test_crew.py"))

for _size in ("COLUMNS", "LINES"):  # of the terminal that starts the tests: a console keeps what it finds as it is made
    os.environ.pop(_size, None)
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # under nohup, or in the background of a script
        signal.signal(_number, _handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First those that fork: once anything has started autograd's threads, a forked child can no longer train."""
    items.sort(key=lambda item: item.path.parts[-2:] not in _FORKING)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Processes for the tests are to be had from here on."""
    if session.items:
        children.begin()


def pytest_unconfigure() -> None:
    """There is nothing more to do for them."""
    children.end()


def pytest_collection_finish() -> None:
    """What is here now stays until the end: nobody looks again and again whether it is garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """Tests of which none asks how well anything is learnt train on a quarter of the digits."""
    with runs.few_digits():
        yield


_compiled = functools.cache(compile)


def _code(source: str, name: str, *how: str, **options: bool) -> CodeType:
    """What ``compile`` makes of a source, in objects of its own."""
    return _named(_compiled(source, "", *how, **options), name)


def _named(code: CodeType, name: str) -> CodeType:
    inside = tuple(_named(one, name) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.replace(co_filename=name, co_consts=inside)


@pytest.fixture(autouse=True, scope="session")
def quick() -> Iterator[None]:
    """What is read or made anew each time, and is the same, is so once; nobody waits for a disk.

    Digits; how torch writes its operations in ONNX, which takes a quarter of an export; which operations torch has;
    the code of a graph, of which there are many alike; the commands of the command line; whether there is a driver.
    """
    digits = importlib.import_module("fxdistill.data.sources.digits")
    onnx: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    exports: Any = importlib.import_module("torch._export.utils")
    typer: Any = importlib.import_module("typer.testing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load_digits", functools.cache(digits.load_digits))
        patch.setattr(onnx, "from_torchlib", staticmethod(functools.cache(onnx.from_torchlib)))
        patch.setattr(exports, "_materialize_cpp_cia_ops", functools.cache(exports._materialize_cpp_cia_ops))
        patch.setattr(torch.fx.graph_module, "compile", _code, raising=False)
        patch.setattr(typer, "_get_command", functools.cache(typer._get_command))
        patch.setattr(os, "fsync", lambda _: None)
        if not torch.cuda.is_available():
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield

"""Named things that a test adds, each by one file: as if the file lay in the package of its kind."""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fxdistill import registry
from fxdistill.ir import operators
from fxdistill.registry import Registry

Add = Callable[[Registry[Any], str, str], None]
"""``add(LOSSES, "cosine", source)`` writes ``cosine.py``; the name is there until the test ends."""


def _forget() -> None:
    registry._files.cache_clear()
    operators.table.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def add(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Add]:
    """Adds a file to the package of a registry; nothing else is told of it."""
    written: list[tuple[str, str]] = []

    def write(kind: Registry[Any], name: str, source: str) -> None:
        package = importlib.import_module(kind.package)
        folder: Path = tmp_path_factory.mktemp(kind.package.rpartition(".")[2])
        stem = name.replace("-", "_")
        (folder / f"{stem}.py").write_text(textwrap.dedent(source))
        package.__path__.append(str(folder))
        written.append((kind.package, stem))
        _forget()

    yield write
    for package_name, stem in reversed(written):
        package = importlib.import_module(package_name)
        package.__path__.pop()
        sys.modules.pop(f"{package_name}.{stem}", None)
        vars(package).pop(stem, None)
    _forget()

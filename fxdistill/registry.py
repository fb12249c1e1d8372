"""Names: what a plan or a command line may name, and where each name comes from.

    kd              fxdistill/losses/kd.py, its attribute LOSS                    ours: the folder is the list
    tp.lamp         fxdistill/criteria/tp/lamp.py, its attribute CRITERION        a folder in the folder: a family
    anything else   an entry point of an installed distribution, in the group ``fxdistill.losses`` …

Listing names imports nothing, so that help and "did you mean" are quick. Ours come first: an installed distribution
adds names and replaces none. A plan records the distribution and version of every name that is not ours.
"""

import difflib
import functools
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

from fxdistill.errors import FxdistillError, InputError, InvariantError

Entry = TypeVar("Entry")

GROUPS = {
    "loss": "fxdistill.losses", "criterion": "fxdistill.criteria", "method": "fxdistill.methods",
    "task": "fxdistill.tasks", "data source": "fxdistill.data.sources",
    "augmentation": "fxdistill.data.augmentations", "operator": "fxdistill.operators",
}  # fmt: skip
"""What can be named, and our package that holds a file for each name: also the group of others' entry points."""


@dataclass(frozen=True)
class Origin:
    """The installed distribution that a name comes from."""

    distribution: str
    version: str


@dataclass(frozen=True)
class Registry(Generic[Entry]):
    """The named things of one kind.

    Attributes:
        kind: What they are, in messages: ``loss``.
        package: Our package with a file for each of them; the group of others' entry points has the same name.
        attribute: The attribute of each file that holds the thing.
        entry: The class that each of them is an instance of; where only names are asked for, any.
    """

    kind: str
    package: str
    attribute: str
    entry: type[Any] = object  # maybe an abstract one

    def names(self) -> tuple[str, ...]:
        """All names, ours first, each kind in alphabetical order."""
        return names(self.package)

    def get(self, name: str, *, where: str = "", error: type[InputError] = InputError) -> Entry:
        """The thing of a name.

        Args:
            name: The name.
            where: What names it: an option, a field of the plan.
            error: What to raise.

        Raises:
            InputError: There is no such name, two distributions give it, it cannot be imported, or is something else.
        """
        if name in _files(self.package):
            file = importlib.import_module(f"{self.package}.{_files(self.package)[name]}")
            ours: Entry = getattr(file, self.attribute)
            return ours
        points = _entry_points(self.package).get(name, ())
        if not points:
            raise error(
                f"there is no {self.kind} named '{name}'", where=where or f"{self.kind} '{name}'",
                hint=suggestion(name, self.names(), "known are"),
            )  # fmt: skip
        if len(points) > 1:
            owners = " and ".join(sorted(point.dist.name for point in points if point.dist is not None))
            raise error(
                f"more than one distribution gives the {self.kind} '{name}'", where=owners, hint="uninstall one of them"
            )
        try:
            found: object = points[0].load()
        except Exception as cause:
            raise error(
                f"the {self.kind} '{name}' cannot be imported: {type(cause).__name__}: {cause}",
                where=f"entry point {points[0].value}", hint="update or reinstall the distribution that gives it",
            ) from cause  # fmt: skip
        if not isinstance(found, self.entry):
            raise error(
                f"the {self.kind} '{name}' is a {type(found).__name__}, not a {self.entry.__name__}",
                where=f"entry point {points[0].value}", hint="tell the authors of the distribution that gives it",
            )  # fmt: skip
        return cast("Entry", found)

    @contextmanager
    def called(self, name: str, *, error: type[InputError] = InputError) -> Iterator[None]:
        """Around what the thing of a name does: what goes wrong in one of an installed distribution is told as its own.

        Raises:
            InputError: It failed, or broke a promise.
        """
        try:
            yield
        except Exception as cause:
            known = isinstance(cause, FxdistillError) and not isinstance(cause, InvariantError)
            points = () if known or name in _files(self.package) else _entry_points(self.package).get(name, ())
            if not points:
                raise
            told = str(cause.what) if isinstance(cause, FxdistillError) else f"{type(cause).__name__}: {cause}"
            raise error(
                f"the {self.kind} '{name}' failed: {told}",
                where=f"entry point {points[0].value}", hint="tell the authors of the distribution that gives it",
            ) from cause  # fmt: skip

    def origin(self, name: str) -> Origin | None:
        """The distribution of a name; None for ours, and for unknown ones."""
        return origin(self.package, name)


def names(group: str) -> tuple[str, ...]:
    """All names of a group, ours first, each kind in alphabetical order."""
    return (*_files(group), *sorted(set(_entry_points(group)) - set(_files(group))))


def origin(group: str, name: str) -> Origin | None:
    """The distribution that a name of a group comes from; None for ours, and for unknown ones."""
    points = () if name in _files(group) else _entry_points(group).get(name, ())
    dist = points[0].dist if points else None
    return Origin(dist.name, dist.version) if dist is not None else None


@functools.cache
def _files(package: str) -> dict[str, str]:
    """The names that our files give, and the modules below the package that hold them."""
    loaded = sys.modules.get(package)  # else its folder is looked up, without importing it
    spec = importlib.util.find_spec(package) if loaded is None else None
    folders = loaded.__path__ if loaded is not None else spec and spec.submodule_search_locations
    return dict(sorted(_modules(list(folders or ()), "")))


def _modules(path: Sequence[str], prefix: str) -> Iterator[tuple[str, str]]:
    for module in pkgutil.iter_modules(list(path)):
        if module.name.startswith("_"):
            continue
        if module.ispkg:
            yield from _modules([f"{folder}/{module.name}" for folder in path], f"{prefix}{module.name}.")
        else:
            name = f"{prefix}{module.name}"
            yield name.replace("_", "-"), name


@functools.cache
def _entry_points(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    found: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for point in metadata.entry_points(group=group):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def suggestion(wrong: str, known: Sequence[str], introduction: str) -> str:
    """A hint for a wrong name: the nearest one, and all of them."""
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    question = f"did you mean '{near[0]}'? " if near else ""
    return f"{question}{introduction} {', '.join(known)}" if known else "there are none"

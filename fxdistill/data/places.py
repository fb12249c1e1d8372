"""The places that a plan names: relative to the plan's file, so that both can be moved and committed together."""

import os
from pathlib import Path

from fxdistill.data import sources


def relative(path: Path, plan: Path) -> str:
    """A place as a plan in the file ``plan`` writes it."""
    return Path(os.path.relpath(path.resolve(), plan.resolve().parent)).as_posix()


def relative_data(spec: str, plan: Path) -> str:
    """A data spec as a plan writes it: a relative place (``npz:digits.npz``) becomes relative to the plan's file."""
    kind, place = sources.split(spec)
    return f"{kind}:{relative(Path(place), plan)}" if place and not _from_home(place).is_absolute() else spec


def resolved_data(spec: str | None, base: Path) -> str | None:
    """A plan's data spec for use here: a relative place is below ``base``, the plan's folder."""
    kind, place = sources.split(spec or "")
    if not place or (held := _from_home(place)).is_absolute():
        return f"{kind}:{held}" if place else spec
    folder = (base / held.parent).resolve()
    return f"{kind}:{(folder if base.is_absolute() else Path(os.path.relpath(folder))) / held.name}"


def is_same(spec: str | None, other: str | None) -> bool:
    """Whether two data specs, resolved, name the same data, whatever links lead to it."""
    (kind, place), (kind_of_other, place_of_other) = (sources.split(one or "") for one in (spec, other))
    if not place or not place_of_other:
        return spec == other
    return kind == kind_of_other and Path(place).resolve() == Path(place_of_other).resolve()


def _from_home(place: str) -> Path:
    """A place, of which the shell sees the ``~`` only where it stands first; a name that begins so is a name."""
    try:
        return Path(place).expanduser()
    except RuntimeError:  # nobody is called that
        return Path(place)

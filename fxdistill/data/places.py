"""The places that a plan names: relative to the plan's file, so that both can be moved and committed together."""

import os
from pathlib import Path

from fxdistill.data import sources


def relative(path: Path, plan: Path) -> str:
    """A place as a plan in the file ``plan`` writes it."""
    return Path(os.path.relpath(path.expanduser().resolve(), plan.resolve().parent)).as_posix()


def relative_data(spec: str, plan: Path) -> str:
    """A data spec as a plan writes it: a relative place (``npz:digits.npz``) becomes relative to the plan's file."""
    kind, place = sources.split(spec)
    return f"{kind}:{relative(Path(place), plan)}" if place and not Path(place).expanduser().is_absolute() else spec


def resolved_data(spec: str | None, base: Path) -> str | None:
    """A plan's data spec for use here: a relative place is below ``base``, the plan's folder."""
    kind, place = sources.split(spec or "")
    return f"{kind}:{base / Path(place).expanduser()}" if place else spec

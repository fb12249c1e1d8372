"""The places that a plan names: relative to the plan's file, so that both can be moved and committed together."""

import os
from pathlib import Path


def relative(path: Path, plan: Path) -> str:
    """A place as a plan in the file ``plan`` writes it."""
    return Path(os.path.relpath(path.expanduser().resolve(), plan.resolve().parent)).as_posix()


def relative_data(spec: str, plan: Path) -> str:
    """A data spec as a plan writes it: a relative place (``npz:digits.npz``) becomes relative to the plan's file."""
    kind, place = _split(spec)
    return f"{kind}:{relative(Path(place), plan)}" if place and not Path(place).expanduser().is_absolute() else spec


def resolved_data(spec: str | None, base: Path) -> str | None:
    """A plan's data spec for use here: a relative place is below ``base``, the plan's folder."""
    kind, place = _split(spec or "")
    return f"{kind}:{base / Path(place).expanduser()}" if place else spec


def _split(spec: str) -> tuple[str, str]:
    """Kind and place of a spec; the place is empty for specs that name none (``digits``, a factory)."""
    from fxdistill.data.reading import SPECS  # noqa: PLC0415  # slow to import

    kind, _, place = spec.partition(":")
    kinds = {known.partition(":")[0] for known in SPECS if known.partition(":")[2] in ("ROOT", "DIR", "FILE")}
    return kind, place if kind in kinds else ""

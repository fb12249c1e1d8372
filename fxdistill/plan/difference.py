"""In what two plans differ, field by field."""

from collections.abc import Iterator
from typing import Any

from fxdistill.plan.document import Plan

_TOLD, _WIDEST = 6, 60
_ABSENT = object()


def told(begun: Plan, now: Plan) -> str:
    """The first fields in which a plan differs from the one that a run was begun with, in words."""
    found = [
        f"{field}: {_short(old)}, now {_short(new)}"
        for field, old, new in _differences(begun.model_dump(mode="json"), now.model_dump(mode="json"), "")
    ]
    more = f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
    return "; ".join(found[:_TOLD]) + more


def _differences(old: Any, new: Any, field: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = {str(key): (old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in (*old, *new)}
    elif isinstance(old, list) and isinstance(new, list) and any(isinstance(item, dict) for item in (*old, *new)):
        pairs = {
            str(index): (old[index] if index < len(old) else _ABSENT, new[index] if index < len(new) else _ABSENT)
            for index in range(max(len(old), len(new)))
        }
    else:
        if old != new:
            yield field, old, new
        return
    for key, (before, after) in pairs.items():
        yield from _differences(before, after, f"{field}.{key}" if field else key)


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "none"
    if isinstance(value, dict):
        return f"'{value['name']}'" if "name" in value else "one"
    text = repr(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"

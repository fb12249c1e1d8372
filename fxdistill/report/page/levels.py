"""The levels of a cascade: what each keeps of every layer, as a table, and as a drawing of who teaches whom.

In the drawing a box is a member, from the teacher down to the student, and a bar in it is a layer, filled as high as
the share of its channels that is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fxdistill.plan.members import Hardened, Masked
from fxdistill.report import outcome
from fxdistill.report.layout import count
from fxdistill.report.page.network import teaching
from fxdistill.report.page.told import Told, role_of

WIDTH = 400.0
_BOX, _HEIGHT, _GAP, _EDGE = 320.0, 46.0, 24.0, 1.0
_STRIP, _BAR, _BETWEEN = 220.0, 15.0, 2.0
_WIDEST = 26.0
"""Of a bar at most, however few layers there are."""


@dataclass(frozen=True)
class Bar:
    """A layer of a member: where it stands, and how high it is filled."""

    x: float
    y: float
    width: float
    filled: float
    told: str
    height: float = _BAR


@dataclass(frozen=True)
class Box:
    """A member with its layers."""

    y: float
    label: str
    note: str
    cost: str
    slot: str
    bars: tuple[Bar, ...]
    x: float = _EDGE
    width: float = _BOX
    height: float = _HEIGHT


@dataclass(frozen=True)
class Arrow:
    """What goes from one member to another: a path with a head, and a label."""

    path: str
    head: str
    label: str
    x: float
    y: float
    cuts: bool = False


@dataclass(frozen=True)
class Levels:
    """The members of a cascade, from the teacher down, and what goes between them."""

    told: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    height: float
    width: float = WIDTH


def table(told: Told) -> dict[str, Any] | None:
    """What the levels of a cascade keep of each layer, by the scores that training starts with and as it ended."""
    levels = _masked(told)
    if not levels:
        return None
    rows = []
    for number, layer in enumerate(next(iter(levels.values())).layers):
        cells = []
        for name, one in levels.items():
            first, last = _kept(told, name, one, number)
            share = round(min(1.0, max(0.0, last / layer.channels)), 3)
            cells.append({"share": share, "text": f"{first} → {last}" if name in told.kept else str(first)})
        rows.append({"layer": layer.name, "channels": layer.channels, "cells": cells})
    return {"names": list(levels), "rows": rows}


def drawing(told: Told) -> Levels | None:
    """The levels of a cascade from its teacher to its student; None where the plan has none."""
    if not _masked(told):
        return None
    plan = told.plan
    taught = teaching(plan)
    made = [name for name, one in plan.members.items() if isinstance(one, Masked)][::-1]
    made += [name for name, one in plan.members.items() if isinstance(one, Hardened)]
    names = [*dict.fromkeys(one for one, other in taught if other in made and one not in made), *made]
    boxes = {
        name: Box(
            _EDGE + number * (_HEIGHT + _GAP), name, _note(told, name), _cost(told, name), role_of(plan, name),
            tuple(_bars(told, name, _EDGE + number * (_HEIGHT + _GAP))),
        )
        for number, name in enumerate(names)
    }  # fmt: skip
    arrows = tuple(_arrows(told, boxes, taught))
    said = "; ".join(f"{box.label} {box.note}" for box in boxes.values())
    return Levels(said, tuple(boxes.values()), arrows, len(boxes) * (_HEIGHT + _GAP) - _GAP + 2 * _EDGE)


def _masked(told: Told) -> dict[str, Masked]:
    members = told.plan.members.items()
    return {name: one for name, one in members if isinstance(one, Masked) and one.is_masked and one.layers}


def _kept(told: Told, name: str, level: Masked, number: int) -> tuple[int, int]:
    """How many channels of a layer a level keeps: as training starts, and as it ended or starts."""
    first = level.layers[number].kept if number < len(level.layers) else 0
    return first, told.kept.get(name, {}).get(level.layers[number].name, first) if first else 0


def _level(told: Told, name: str) -> tuple[str, Masked] | None:
    """The level that a member is, or is cut out of; None for what has no mask."""
    member = told.plan.members[name]
    name = member.of if isinstance(member, Hardened) else name
    found = _masked(told).get(name)
    return None if found is None else (name, found)


def _note(told: Told, name: str) -> str:
    member, level = told.plan.members[name], _level(told, name)
    if isinstance(member, Hardened):
        return f"cut out of {member.of}"
    if level is None:
        return "keeps all" if isinstance(member, Masked) else "as it is given"
    if level[1].budget is not None:
        return f"keeps what {outcome.allowed(level[1].budget)} allow"
    return f"keeps {level[1].keep:.1%} of the channels"


def _cost(told: Told, name: str) -> str:
    """What a member costs; one whose mask has moved as it ended, where that was cut out."""
    level, macs = _level(told, name), getattr(told.plan.members[name], "macs", 0)
    if level is not None and level[0] in told.kept:
        macs = _ended(told, level[0])
    return f"{count(macs)} MACs" if macs else ""


def _ended(told: Told, level: str) -> int:
    """The multiply-accumulates of what was cut out of a level under the seed that is exported; 0 for nothing."""
    result, export = told.result or {}, told.plan.export
    found, student = dict(result.get("levels", {})), told.plan.members[export.member]
    if result and isinstance(student, Hardened):
        own = (export.arm, result.get("exported_seed", told.plan.seeds[0]))
        found[student.of] = next((arm for arm in result["arms"] if (arm["name"], arm["seed"]) == own), {})
    return int(found.get(level, {}).get("macs", 0))


def _bars(told: Told, name: str, y: float) -> Iterator[Bar]:
    """The layers of a member that can be masked, in order."""
    layers = next(iter(_masked(told).values())).layers
    wide, level = min(_WIDEST, _STRIP / len(layers)), _level(told, name)
    gap = min(_BETWEEN, wide / 3)
    for number, layer in enumerate(layers):
        kept = layer.channels if level is None else _kept(told, *level, number)[1]
        filled = round(_BAR * min(1.0, kept / layer.channels), 2)
        yield Bar(
            round(_EDGE + 8 + number * wide, 2), y + _HEIGHT - _BAR - 7, round(wide - gap, 2), filled,
            f"{layer.name}: {kept} of {layer.channels}",
        )  # fmt: skip


def _arrows(
    told: Told, boxes: dict[str, Box], taught: dict[tuple[str, str], list[str]]
) -> Iterator[Arrow]:  # fmt: skip
    """Who teaches whom, and whose gradient moves the scores; then what is cut out of what."""
    names, members, outer = list(boxes), told.plan.members, 0
    for (one, other), losses in taught.items():
        if one not in boxes or other not in boxes:
            continue
        student = members[other]
        label = " + ".join(losses) or "pairs"
        label += ", moves its scores" if isinstance(student, Masked) and student.guide == one else ""
        if names.index(other) == names.index(one) + 1:
            yield _down(boxes[one], boxes[other], label, 60.0)
        else:
            outer += 1
            yield _around(boxes[one], boxes[other], label, outer)
    for name in names:
        member = members[name]
        if isinstance(member, Hardened) and member.of in boxes:
            yield _down(boxes[member.of], boxes[name], "cut out when that is trained", 60.0, cuts=True)


def _down(one: Box, other: Box, label: str, x: float, *, cuts: bool = False) -> Arrow:
    start, end = one.y + one.height, other.y
    return Arrow(f"M{x:g} {start:g}V{end - 5:g}", _head(x, end, 0, 1), label, x + 10, (start + end) / 2, cuts=cuts)


def _around(one: Box, other: Box, label: str, number: int) -> Arrow:
    """Past the boxes between, on their right."""
    right, out = one.x + one.width, one.x + one.width + 10 + 14 * number
    start, end = one.y + one.height / 2, other.y + other.height / 2
    path = f"M{right:g} {start:g}H{out:g}V{end:g}H{right + 5:g}"
    return Arrow(path, _head(right, end, -1, 0), label, out + 4, (start + end) / 2)


def _head(x: float, y: float, right: int, down: int) -> str:
    """A head whose tip is at a point."""
    back, side = 7, 3.5
    points = [(x, y)] + [(x - right * back + s * down * side, y - down * back + s * right * side) for s in (-1, 1)]
    return " ".join(f"{a:g},{b:g}" for a, b in points)


def told_of(told: Told) -> str:
    """What the table shows, and when the student is cut out."""
    cut: Sequence[str] = [name for name, one in told.plan.members.items() if isinstance(one, Hardened)]
    ended = "before training, and as it ended under the seed that is exported."
    said = ended if told.kept else "by the scores that training starts with."
    return said + (f" {', '.join(cut)} is cut out when that is trained." if cut else "")

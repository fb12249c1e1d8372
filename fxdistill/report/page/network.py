"""Two networks side by side as geometry: their layers in order of execution, and the pairs drawn between them.

A network has hundreds of layers, a reader's patience ends at some twenty boxes: layers that follow each other and lie
in one module are one box, by modules as small as the number of boxes allows. A tap ends its box, so that each box has
one tap at most, its last layer. Under the name of a box stands a square a stage: what of it runs then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fxdistill.compiler.outline import Layer, Runs
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.schema import Pair, Tap
from fxdistill.report.layout import count

MOST = 18
"""Boxes of a network at most, unless it has more taps."""
WIDTH = 400.0
_BOX, _HEIGHT, _GAP, _EDGE = 158.0, 32.0, 9.0, 1.0
_LETTERS = 22
_SQUARE, _BETWEEN = 7.0, 2.5
_ROW = 108.0
"""What squares may take of a box's width, beside its note."""
_LABEL = 13
"""Letters that have room between two boxes."""


@dataclass(frozen=True)
class Square:
    """What of a box runs in a stage."""

    x: float
    y: float
    state: str
    told: str


@dataclass(frozen=True)
class Box:
    """Some layers that follow each other, the last of them tapped where ``tapped``."""

    x: float
    y: float
    label: str
    note: str
    told: str
    slot: str
    tapped: bool
    squares: tuple[Square, ...]
    width: float = _BOX
    height: float = _HEIGHT


@dataclass(frozen=True)
class Link:
    """A pair, or a loss of two outputs: a path between two boxes, with a label."""

    path: str
    label: str
    told: str
    x: float
    y: float
    pair: bool


@dataclass(frozen=True)
class Drawing:
    """Two networks and what is between them."""

    teacher: str
    student: str
    slots: tuple[str, str]
    told: str
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    stages: tuple[str, ...]
    height: float
    whole: bool
    wide: float
    width: float = WIDTH
    square: float = _SQUARE


@dataclass(frozen=True)
class _Group:
    label: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _Side:
    """One of two networks, before it has places."""

    member: str
    groups: tuple[_Group, ...]
    taps: frozenset[str]
    slot: str


def drawings(
    plan: Plan, layers: Mapping[str, Sequence[Layer]], runs: Sequence[Runs], slots: Mapping[str, str]
) -> tuple[Drawing, ...]:
    """A drawing for each two members of which one learns from the other.

    Args:
        plan: The plan.
        layers: Of each member its layers, in order; of members that are not there only taps are drawn.
        runs: What runs in which stage.
        slots: The colours of members.
    """
    made, placed = [], _placed(plan)
    for names, losses in teaching(plan).items():
        if _are_one(plan, names, layers):
            continue
        pairs = [pair for pair in placed if (pair.teacher.member, pair.student.member) == names]
        drawn = [_drawn_as(plan, name, layers) for name in names]
        taps = [[pair.teacher for pair in pairs], [pair.student for pair in pairs]]
        sides = [_side(*one, layers, slots) for one in zip(names, drawn, taps, strict=True)]
        if losses and not any(name in layers for name in drawn):
            sides = [replace(side, groups=(*side.groups, _Group("output", ()))) for side in sides]
        whole = all(name in layers for name in drawn)
        made.append(_drawing(plan, sides, pairs, runs, whole=whole, losses=losses))
    return tuple(made)


def _placed(plan: Plan) -> list[Pair]:
    """The pairs, those of masked members at the layers whose channels their gates pass: its teacher has these taps."""
    masked = {name for name, member in plan.members.items() if isinstance(member, Masked)}
    own = [pair for pair in plan.pairs if pair.student.member in masked and pair.teacher.member not in masked]
    layers = {pair.student.path: pair.teacher.path for pair in own}

    def at(tap: Tap) -> Tap:
        return tap.changed(path=layers.get(tap.path, tap.path)) if tap.member in masked else tap

    return [pair.changed(teacher=at(pair.teacher), student=at(pair.student)) for pair in plan.pairs]


def teaching(plan: Plan) -> dict[tuple[str, str], list[str]]:
    """Who teaches whom: by both names the losses that read their outputs, none where only taps are compared."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for arm in plan.all_arms:
        for term in (term for stage in arm.stages for term in stage.losses):
            if term.teacher is not None and term.student is not None and term.teacher != term.student:
                between = found.setdefault((term.teacher, term.student), {})
                between.update({term.loss: None} if term.pair is None else {})
    for pair in plan.pairs:
        found.setdefault((pair.teacher.member, pair.student.member), {})
    return {names: list(losses) for names, losses in found.items()}


def _are_one(plan: Plan, names: tuple[str, str], layers: Mapping[str, object]) -> bool:
    """Whether two members are one network, parts of it masked or cut out, and nothing is paired between them."""
    paired = any((pair.teacher.member, pair.student.member) == names for pair in plan.pairs)
    made = any(isinstance(plan.members[name], Masked | Hardened) for name in names)
    return made and not paired and len({_drawn_as(plan, name, layers) for name in names} & {*layers}) <= 1


def _side(
    name: str, drawn: str, taps: Sequence[Tap], layers: Mapping[str, Sequence[Layer]], slots: Mapping[str, str]
) -> _Side:
    tapped = {tap.path: Layer(tap.path, "tap", tap.width) for tap in taps}
    own = layers.get(drawn) or list(tapped.values())
    return _Side(name, tuple(_groups(own, frozenset(tapped))), frozenset(tapped), slots[name])


def _drawing(
    plan: Plan, sides: Sequence[_Side], pairs: Sequence[Pair], runs: Sequence[Runs], *, whole: bool,
    losses: Sequence[str],
) -> Drawing:  # fmt: skip
    teacher, student = sides
    tall = max(len(side.groups) for side in sides) * (_HEIGHT + _GAP) - _GAP
    both = [one for one in runs if teacher.member in one.layers or student.member in one.layers]
    places = (_EDGE, WIDTH - _EDGE - _BOX)
    boxes = [_boxes(side, x, tall, both) for side, x in zip(sides, places, strict=True)]
    links = [_pair_link(plan, pair, sides, boxes) for pair in pairs]
    if losses and all(boxes):
        told = " + ".join(losses)
        label = told if len(told) <= _LABEL or len(losses) == 1 else f"{len(losses)} losses"
        links.append(_link(boxes[0][-1], boxes[1][-1], label, f"{told} of what both answer", pair=False))
    told = "; ".join(f"{pair.name}, {pair.teacher.path} teaches {pair.student.path}" for pair in pairs) or "none"
    stages = tuple(f"{one.arm} · {one.stage}" for one in both)
    return Drawing(
        teacher.member, student.member, (teacher.slot, student.slot),
        f"{teacher.member} and {student.member} side by side; pairs: {told}",
        (*boxes[0], *boxes[1]), tuple(_joined(links)), stages, tall + 2 * _EDGE, whole,
        round(_step(both) * _SQUARE / (_SQUARE + _BETWEEN), 2),
    )  # fmt: skip


def _drawn_as(plan: Plan, name: str, layers: Mapping[str, object]) -> str:
    """The member whose layers stand for a member: its own, or those of what it is cut out of."""
    member = plan.members[name]
    return name if name in layers or not isinstance(member, Masked | Hardened) else _drawn_as(plan, member.of, layers)


def _groups(layers: Sequence[Layer], taps: frozenset[str]) -> list[_Group]:
    """Layers by modules as small as the number of boxes allows; a tap ends its group."""
    deepest = max((layer.path.count(".") for layer in layers), default=0) + 1
    for depth in range(deepest, 0, -1):
        found = _grouped(layers, taps, depth)
        if len(found) <= MOST:
            return found
    while len(found) > max(MOST, 2 * len(taps) + 2):  # a flat network: neighbours without a tap become one
        merged = _merged(found, taps)
        if len(merged) == len(found):
            break
        found = merged
    return found


def _grouped(layers: Sequence[Layer], taps: frozenset[str], depth: int) -> list[_Group]:
    found: list[tuple[str, list[Layer]]] = []
    open_ = False  # whether the last group may have more
    for layer in layers:
        parts = layer.path.split(".")
        label = ".".join(parts[:depth]) if len(parts) > depth else layer.path
        follows = len(parts) <= depth and not layer.macs
        if open_ and (follows or found[-1][0] == label):
            found[-1][1].append(layer)
        else:
            found.append((label, [layer]))
        open_ = layer.path not in taps
    return [_Group(label, tuple(own)) for label, own in found]


def _merged(groups: list[_Group], taps: frozenset[str]) -> list[_Group]:
    """Neighbours as one, two and two, unless a tap is between them."""
    found: list[_Group] = []
    single = False
    for group in groups:
        if single and found[-1].layers[-1].path not in taps:
            last = found.pop()
            label = f"{last.label.partition(' … ')[0]} … {group.label.rpartition(' … ')[2]}"
            found.append(_Group(label, (*last.layers, *group.layers)))
            single = False
        else:
            found.append(group)
            single = True
    return found


def _boxes(side: _Side, x: float, tall: float, runs: Sequence[Runs]) -> list[Box]:
    step = (tall - _HEIGHT) / (len(side.groups) - 1) if len(side.groups) > 1 else 0.0
    found = []
    for number, group in enumerate(side.groups):
        y = round(_EDGE + number * step, 1)
        last = group.layers[-1].path if group.layers else ""
        label = last if last in side.taps else group.label
        squares = tuple(_squares(group, side.member, runs, x + 8, y + _HEIGHT - _SQUARE - 4))
        found.append(Box(x, y, _cut(label), _note(group.layers), _told(group), side.slot, last in side.taps, squares))
    return found


def _squares(group: _Group, member: str, runs: Sequence[Runs], x: float, y: float) -> Iterator[Square]:
    heavy = [layer.path for layer in group.layers if layer.counts] or [layer.path for layer in group.layers]
    for number, one in enumerate(runs if heavy else ()):
        states = [one.layers.get(member, {}).get(path, "dead") for path in heavy]
        alive = [state for state in states if state != "dead"]
        folded, narrowed = states.count("folded"), states.count("narrowed")
        state = "dead" if not alive else "part" if len(alive) < len(states) else "runs"
        said = {"dead": "does not run", "part": f"{len(alive)} of {len(states)} layers run", "runs": "runs"}[state]
        said += f", {folded} folded into the layer before" if folded else ""
        said += f", {narrowed} narrowed to the channels that are read" if narrowed else ""
        yield Square(
            round(x + number * _step(runs), 2), y, "narrowed" if narrowed else state, f"{one.arm} · {one.stage}: {said}"
        )


def _step(runs: Sequence[Runs]) -> float:
    """From a square to the next one: less than usual where there are many stages."""
    return min(_SQUARE + _BETWEEN, _ROW / max(1, len(runs)))


def _note(layers: Sequence[Layer]) -> str:
    macs = sum(layer.macs for layer in layers)
    return count(macs) if macs else ""


def _told(group: _Group) -> str:
    kinds: dict[str, int] = {}
    for layer in group.layers:
        kinds[layer.kind] = kinds.get(layer.kind, 0) + 1
    said = ", ".join(f"{number} {kind}" if number > 1 else kind for kind, number in kinds.items())
    macs = sum(layer.macs for layer in group.layers)
    width = group.layers[-1].width if group.layers else 0
    return f"{group.label}: {said}" + (f"; {width} channels" if width else "") + (f"; {macs:,} MACs" if macs else "")


def _cut(path: str) -> str:
    return path if len(path) <= _LETTERS else f"…{path[-_LETTERS + 1 :]}"


def _pair_link(plan: Plan, pair: Pair, sides: Sequence[_Side], boxes: Sequence[Sequence[Box]]) -> Link:
    ends = []
    for side, drawn, tap in zip(sides, boxes, (pair.teacher, pair.student), strict=True):
        holds = [any(layer.path == tap.path for layer in group.layers) for group in side.groups]
        ends.append(drawn[holds.index(True) if True in holds else -1])
    told = f"{pair.name}: {pair.teacher.path} teaches {pair.student.path}"
    return _link(ends[0], ends[1], widths(plan, pair), told, pair=True)


def widths(plan: Plan, pair: Pair) -> str:
    """How the two widths of a pair become one."""
    if (kept := plan.kept_for(pair.name)) is not None:
        return f"{len(kept.channels)} of {kept.width}"
    if pair.align == "project":
        return f"{pair.student.width} → {pair.teacher.width}"
    return f"{pair.teacher.width} kept" if pair.align == "kept" else str(pair.teacher.width)


def _joined(links: Sequence[Link]) -> Iterator[Link]:
    """Links of the same two boxes as one, which says what all of them say."""
    for path in dict.fromkeys(link.path for link in links):
        same = [link for link in links if link.path == path]
        labels, told = (list(dict.fromkeys(getattr(one, name) for one in same)) for name in ("label", "told"))
        label = ", ".join(labels)
        label = label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"
        yield replace(same[0], label=label, told="; ".join(told), pair=any(one.pair for one in same))


def _link(one: Box, other: Box, label: str, told: str, *, pair: bool) -> Link:
    x1, y1, x2, y2 = one.x + one.width, one.y + one.height / 2, other.x, other.y + other.height / 2
    bend = (x2 - x1) / 2
    path = f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    return Link(path, label, told, (x1 + x2) / 2, (y1 + y2) / 2, pair)

"""What masks kept while they moved, as people read it: a small picture a layer and level, epoch by epoch.

    features.4   16   ▄▅▆█  3 -> 6

A bar is a layer's count over the most that the level kept of it, so that a layer that is being emptied falls to the
ground. The first bar is the plan's, from the scores that training starts with; where there are more epochs than bars,
bars stand as far apart as can be, the last one at the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from fxdistill.plan.document import Plan
from fxdistill.plan.members import Masked
from fxdistill.report.layout import Line, Table

BARS = "▁▂▃▄▅▆▇█"
_MOST = 24  # bars in a row


def kept_lines(plan: Plan, records: Sequence[Mapping[str, Any]], *, seed: int) -> Iterator[RenderableType]:
    """The pictures of one seed; nothing where no masks moved.

    Args:
        plan: The plan.
        records: The lines of ``metrics.jsonl``.
        seed: The seed whose student is exported.
    """
    told = [record for record in records if record["seed"] == seed and record.get("kept")]
    levels = {name: member for name in (told[0]["kept"] if told else ()) if (member := _masked(plan, name)) is not None}
    if not levels:
        return
    courses = {name: _courses(name, member, told) for name, member in levels.items()}
    rows = (
        (layer.name, str(layer.channels), *(_cell(courses[name][layer.name]) for name in levels))
        for layer in next(iter(levels.values())).layers
    )
    title = f", from the start to epoch {len(told)} of '{told[-1]['name']}', seed {seed}"
    yield Text()
    yield Line(Text.assemble(("channels kept", "bold"), title), indent=2)
    yield Table(("layer", "channels", *levels), tuple(rows))


def bars(counts: Sequence[int]) -> str:
    """Counts as bars over the largest of them; the lowest bar for those that are nothing beside it."""
    if len(counts) > _MOST:
        counts = [counts[round(place * (len(counts) - 1) / (_MOST - 1))] for place in range(_MOST)]
    most = max(*counts, 1)
    return "".join(BARS[max(0, -(-count * len(BARS) // most) - 1)] for count in counts)


def _cell(counts: Sequence[int]) -> str:
    return f"{bars(counts)}  {counts[0]} -> {counts[-1]}"


def _masked(plan: Plan, name: str) -> Masked | None:
    found = plan.members.get(name)
    return found if isinstance(found, Masked) else None


def _courses(name: str, member: Masked, told: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Of each layer what a level kept: at the start, and after each epoch."""
    found = {layer.name: [layer.kept] for layer in member.layers}
    for record in told:
        for layer, counts in found.items():
            counts.append(int(record["kept"].get(name, {}).get(layer, counts[-1])))
    return found

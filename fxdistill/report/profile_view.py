"""What the steps of a profiled run spent their time on: a line a stage, on one screen."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from fxdistill.figures import figure
from fxdistill.report.layout import Line, Table
from fxdistill.runtime.training.profiling import PARTS, StageTimes


def profile_view(found: Sequence[StageTimes], where: str) -> RenderableType:
    """The share of each part, for the stages of each arm.

    Args:
        found: What the stages took, in order.
        where: Where the traces are.
    """
    tables = []
    for arm in dict.fromkeys(one.arm for one in found):
        rows = [one for one in found if one.arm == arm]
        parts = [part for part in PARTS if any(part in one.seconds for one in rows)]
        header = (arm, "ms", *(_SHORT.get(part, part) for part in parts))
        tables.append(Table(header, tuple(_row(one, parts) for one in rows)))
    head = "profile: milliseconds of a step, shares of its parts"
    return Group(Text(), Line(Text(head), indent=2), *tables, Line(Text(f"traces: {where}"), indent=2))


_SHORT = {"backward": "back", "optimiser": "optim"}


def _row(times: StageTimes, parts: Sequence[str]) -> tuple[str, ...]:
    total = max(sum(times.seconds.values()), 1e-9)
    shares = (f"{times.seconds.get(part, 0.0) / total:.0%}" for part in parts)
    return (times.stage, figure(1000 * total / max(1, times.steps)), *shares)

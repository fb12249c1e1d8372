"""How long models take, as people read it: one table, the first model the one that others are held against."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from fxdistill.figures import figure
from fxdistill.report.layout import Line, Table
from fxdistill.runtime.deployment.timing import Timed


def timing_view(made: Sequence[Timed], *, threads: int, repeats: int) -> RenderableType:
    """A row a model, batch size and runner.

    Args:
        made: What was measured; the first of each batch size counts as 1.
        threads: Threads within an operator.
        repeats: Timed runs of each.
    """
    first = {one.batch: one for one in reversed(made)}
    rows = [
        (
            one.model, str(one.batch), one.latency.provider.removesuffix("ExecutionProvider"),
            f"{figure(one.latency.median_ms)} ms", f"{figure(one.latency.p10)} to {figure(one.latency.p90)}",
            figure(one.images_per_second),
            f"{one.images_per_second / first[one.batch].images_per_second:.2f}x",
        )
        for one in made
    ]  # fmt: skip
    of_size: dict[str, list[str]] = {}
    for model, image in dict.fromkeys((one.model, one.image) for one in made):
        of_size.setdefault("x".join(map(str, image)), []).append(model)
    sizes = next(iter(of_size)) if len(of_size) == 1 else ", ".join(
        f"{size} ({', '.join(models)})" for size, models in of_size.items()
    )  # fmt: skip
    runs = "1 run" if repeats == 1 else f"{repeats} runs"
    return Group(
        Table(("model", "batch", "runs in", "median", "10th to 90th", "images/s", "speed"), tuple(rows)),
        Line(Text(f"{runs} of each, in turn; threads within an operator: {threads}; images of {sizes}")),
    )

"""What a run will take, as people read it: a row a stage, and what is left out."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from fxdistill.figures import figure
from fxdistill.report.layout import Line, Table, scaled
from fxdistill.runtime.run.estimating import Estimate

_UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
_HEADER = ("stage", "epochs", "a step", "time", "activations", "memory")


def estimate_view(made: Estimate) -> RenderableType:
    """A table, and a few lines."""
    rows = tuple(
        (
            f"{one.arm}: {one.stage}", f"{one.epochs:,}", span(one.step), span(one.seconds), size(one.activations),
            size(one.memory),
        )
        for one in made.stages
    )  # fmt: skip
    lines = (Line(Text(one), indent=2) for one in _said(made))
    return Group(Text("what a run takes", "bold"), Table(_HEADER, rows), *lines)


def _said(made: Estimate) -> Iterator[str]:
    several = {arm: count for arm, count in made.trials.items() if count > 1}
    seeds = f", {', '.join(f'{arm} under {count} seeds' for arm, count in several.items())}" if several else ""
    yield f"all together about {span(made.seconds)} on this {made.device} device{seeds}"
    most = max(made.stages, key=lambda one: one.memory)
    there = f" of {size(made.there)}" if made.there is not None else ""
    parts = {
        "weights": most.weights, "gradients": most.gradients, "optimiser": most.optimizer,
        "activations": most.activations,
    }  # fmt: skip
    told = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
    yield f"memory: {size(most.memory)}{there} at once, in stage '{most.stage}': {told}"
    if cache := max(one.cache for one in made.stages):
        yield f"cache: up to {size(cache)} of what frozen members compute; the time that it saves is not counted"
    yield from map(_scaled, dict.fromkeys((one.measured, one.images) for one in made.stages))
    yield (
        "counted: weights, gradients, what the optimiser keeps, what a step saves for the way back; left out: the "
        "program itself (about a gigabyte), the images, what operators need for a moment, the measurements in the end, "
        "exports, checkpoints"
    )


def _scaled(sizes: tuple[int, int]) -> str:
    measured, images = sizes
    if measured == images:
        return f"measured: steps of {images} images, as they are trained"
    return (
        f"estimated: steps of {measured} images were measured, and a step has {images}: time and activations in "
        "proportion"
    )


def span(seconds: float) -> str:
    """A time: ``3.4 ms``, ``12 s``, ``2 min 5 s``, ``3 h 10 min``."""
    if round(seconds * 1000) < 1000:
        return f"{figure(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes: ``1.2 GB``."""
    return f"{count:.0f} B" if round(count) < 1000 else scaled(count, _UNITS)

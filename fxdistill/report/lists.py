"""Lists of what can be named: one line each, with its source, and the distribution that it comes from if not ours."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from rich.text import Text

from fxdistill.errors import InputError
from fxdistill.losses import LOSSES, Loss
from fxdistill.methods import METHODS, Method
from fxdistill.registry import Registry
from fxdistill.report.layout import Line

Entry = TypeVar("Entry")


def methods_view() -> Iterator[Line]:
    """What ``--method`` takes: its summary, and whether it is a warm-up that goes before others."""
    return _lines(METHODS, lambda method: method.summary, lambda method: method.source, _way)


def losses_view() -> Iterator[Line]:
    """The losses that a plan can have: what each compares, and its arguments with their defaults."""
    return _lines(LOSSES, _summary, lambda loss: loss.source, _arguments)


def _summary(loss: Loss) -> str:
    """What it says of itself, or else what its function does."""
    return loss.summary or ((loss.function or loss.build).__doc__ or "").partition("\n")[0].rstrip(".")


def _way(method: Method) -> str:
    return "goes before another: NAME+METHOD" if method.main is None else ""


def _arguments(loss: Loss) -> str:
    given = loss.arguments().model_dump(mode="json") if loss.arguments is not None else {}
    return ", ".join(f"{name}={value}" for name, value in given.items())


def _lines(
    registry: Registry[Entry], summary: Callable[[Entry], str], source: Callable[[Entry], str],
    more: Callable[[Entry], str],
) -> Iterator[Line]:  # fmt: skip
    width = max(map(len, registry.names()))
    for name in registry.names():
        origin = registry.origin(name)
        try:
            entry = registry.get(name)
        except InputError as cause:  # of others: what is wrong with one hides no other
            said, behind = f"{cause.what} ({cause.hint})", []
        else:
            said, behind = summary(entry), [more(entry), source(entry)]
        behind.append(f"{origin.distribution} {origin.version}" if origin is not None else "")
        text = Text.assemble(said, *((f"{'; ' if said else ''}{part}", "dim") for part in behind if part))
        yield Line(text, head=Text(f"{name:<{width}}  ", "bold"))

"""Help texts: the names that can be given are listed when a help text is shown, and not before."""

from typing import Any

from typer.core import TyperCommand

from fxdistill.criteria import CRITERIA
from fxdistill.data.sources import SOURCES
from fxdistill.methods import METHODS
from fxdistill.registry import Registry
from fxdistill.tasks import TASKS

_LISTS: dict[str, Registry[Any]] = {
    "{methods}": METHODS, "{tasks}": TASKS, "{criteria}": CRITERIA, "{sources}": SOURCES,
}  # fmt: skip


class Command(TyperCommand):
    """A command whose help lists names, those of installed plug-ins too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fill the lists in, then format."""
        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            for place, registry in _LISTS.items():
                if place in text:
                    text = text.replace(place, ", ".join(registry.names()))
                    parameter.help = text  # type: ignore[attr-defined]  # of an option, which has one
        super().format_help(ctx, formatter)

"""Help texts: the names that can be given are listed when a help text is shown, and not before."""

from typing import Any

from typer.core import TyperCommand

_LISTS = {
    "{methods}": "method", "{tasks}": "task", "{criteria}": "criterion", "{sources}": "data source",
    "{augmentations}": "augmentation",
}  # fmt: skip


class Command(TyperCommand):
    """A command whose help lists names, those of installed plug-ins too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fill the lists in, then format."""
        from fxdistill.registry import GROUPS, names

        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            for place, kind in _LISTS.items():
                if place in text:
                    text = text.replace(place, ", ".join(names(GROUPS[kind])))
                    parameter.help = text  # type: ignore[attr-defined]  # of an option, which has one
        super().format_help(ctx, formatter)

"""Help texts, versions, completion: the names that can be given are listed when they are asked for, and not before."""

import copy
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from fxdistill.cli import values
from fxdistill.cli.groups import divided

usage_error: Any = typer.BadParameter.__base__  # of click, which typer depends on or brings along, by its version
_LISTS = {
    "{methods}": "method", "{tasks}": "task", "{criteria}": "criterion", "{sources}": "data source",
    "{augmentations}": "augmentation",
}  # fmt: skip


class Command(TyperCommand):
    """A command whose help lists names, those of installed plug-ins too, and options that belong together.

    An option that takes one value is refused where two are given: the parser would take the last one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Refuse a second value, then parse."""
        try:
            if not ctx.resilient_parsing:
                self._single(ctx, args)
            return super().parse_args(ctx, args)
        except usage_error as error:  # that of an option without its value does not say of which command
            error.ctx = error.ctx or ctx
            raise

    def _single(self, ctx: Any, args: list[str]) -> None:
        """Parse as though each option took several values, and look.

        Raises:
            InputError: One that takes one has two.
        """
        parser = type(self.make_parser(ctx))(ctx)
        parameters: list[Any] = self.get_params(ctx)
        for one in parameters:
            several = copy.copy(one)
            several.multiple = one.param_type_name == "option"
            several.add_to_parser(parser, ctx)
        given, *_ = parser.parse_args(args=list(args))
        if "help" in given:
            return
        for one in parameters:
            if one.param_type_name == "option" and not one.multiple:
                told = given.get(one.name, ())
                names = [(one.opts if value else one.secondary_opts)[0] if one.is_flag else value for value in told]
                values.once(max(one.opts, key=len), (("", str(name)) for name in names))

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

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options under their headings."""
        shown = [one for one in self.get_params(ctx) if one.get_help_record(ctx) is not None]
        arguments = [one for one in shown if one.param_type_name == "argument"]
        options = divided([one for one in shown if one.param_type_name == "option"])
        for heading, found in [("Arguments", arguments), *options]:
            if found:
                with formatter.section(heading):
                    formatter.write_dl([one.get_help_record(ctx) for one in found])


def names(kind: str, *, between: str = "") -> Callable[[str], list[str]]:
    """Completes the names of a registry; behind each character of ``between`` another name begins."""

    def complete(incomplete: str) -> list[str]:
        from fxdistill import registry

        at = 1 + max((incomplete.rfind(character) for character in between), default=-1)
        before, begun = incomplete[:at], incomplete[at:]
        return [before + name for name in registry.names(registry.GROUPS[kind]) if name.startswith(begun)]

    return complete


def version(wanted: bool) -> None:  # noqa: FBT001  # an option's callback
    """Print the versions, and end."""
    if wanted:
        from fxdistill.compiler.versions import versions

        found = versions()
        ours = found.pop("fxdistill", "of no version")
        typer.echo(f"fxdistill {ours} ({', '.join(' '.join(one) for one in found.items())})")
        raise typer.Exit

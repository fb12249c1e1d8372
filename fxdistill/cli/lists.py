"""``fxdistill methods`` and ``fxdistill losses``: what can be named, one line each."""

from rich.console import Console

from fxdistill.cli.exits import reported


def methods() -> None:
    """List the methods, with their sources."""
    with reported():
        from fxdistill.report.lists import methods_view

        Console(highlight=False).print(*methods_view(), sep="\n", end="")


def losses() -> None:
    """List the losses, with their arguments and sources."""
    with reported():
        from fxdistill.report.lists import losses_view

        Console(highlight=False).print(*losses_view(), sep="\n", end="")

"""``python -m fxdistill``."""

from fxdistill.cli.commands import main

main()

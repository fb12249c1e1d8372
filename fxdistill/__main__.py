"""``python -m fxdistill``."""

from fxdistill.cli import main

main()

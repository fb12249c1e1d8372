"""One command in several processes: started by ``--devices``, or by ``torchrun``. One of them speaks for all."""

import os
import sys
from collections.abc import Sequence


def _count() -> int:
    """How many processes there are, as far as that is known without what is heavy to import."""
    told = os.environ.get("WORLD_SIZE", "")
    return int(told) if told.isdecimal() and "LOCAL_WORLD_SIZE" in os.environ else 1


def starts(devices: int | None, nodes: int) -> bool:
    """Whether this process starts others, and is none of those that train."""
    return "LOCAL_WORLD_SIZE" not in os.environ and (devices or 1) * nodes > 1


def start(command: Sequence[str], devices: int, nodes: int) -> int:
    """Run a command of fxdistill in several processes; returns the exit code."""
    from fxdistill.runtime.processes import launch

    return launch.launch([sys.executable, "-m", *command], devices=devices, nodes=nodes)


def is_first() -> bool:
    """Whether this process shows what there is to show; of several it ends, from here on, with what started it."""
    from fxdistill.runtime.processes import launch
    from fxdistill.runtime.processes.crew import Standing

    launch.follow()
    return Standing.here().rank == 0


def speaks(code: int) -> bool:
    """Whether this process says why the command ends with an exit code."""
    if _count() == 1:
        return True
    from fxdistill.runtime.processes import launch

    return launch.speaks(code)


def ended(error: Exception) -> str:
    """What an error says that comes of another process having ended; '' for any other error."""
    if _count() == 1:
        return ""
    from fxdistill.runtime.processes import launch

    found = launch.lost(error)
    return "" if found is None else str(found)

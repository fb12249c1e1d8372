"""Starting the processes of a run, one a device, and ending them together.

What is started here is what ``torchrun`` would start: the same command in each, with its place in the environment, and
a store that all can reach. Of several machines the user starts the command on each and says in the environment which
one it is: ``NODE_RANK`` (0 on the first), ``MASTER_ADDR`` and ``MASTER_PORT`` (of the first).

The first process that fails says why, for all, and leaves its exit code in the store; the others are ended. Signals go
on to all: they finish the step in hand, and end alike.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from fxdistill.errors import FxdistillError, InputError
from fxdistill.runtime.processes import stopping
from fxdistill.runtime.processes.crew import Standing

_SAID, _CODE, _HERE = "fxdistill/said", "fxdistill/code", "fxdistill/here/"
CHILD = "FXDISTILL_CHILD"
"""Stands in the environment of processes that were started by fxdistill, and end with the one that started them."""
_WAIT = timedelta(seconds=300)  # until all machines are there
_GRACE = 10.0  # seconds that others get to end by themselves, and then to follow a signal
_OFTEN = 0.1  # seconds between two looks
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset")
"""What torch's errors say, which are plain RuntimeErrors in part, where another process has ended."""


def launch(command: Sequence[str], *, devices: int, nodes: int) -> int:
    """Start a command in a process for each device of this machine, and wait for them; returns the exit code.

    Raises:
        InputError: The environment does not say where this machine stands among several.
        FxdistillError: A process was ended from outside, or the machines did not find each other.
    """
    node, address, port = _place(nodes)
    try:
        store = TCPStore(address, port, is_master=node == 0, wait_for_workers=False, timeout=_WAIT)
        store.set(f"{_HERE}{node}", "")
        store.wait([f"{_HERE}{other}" for other in range(nodes)])
    except Exception as cause:
        raise FxdistillError(
            f"the machines of the run do not find each other: {next(iter(str(cause).splitlines()), '')}",
            where=f"{address}:{port}", hint="check NODE_RANK, MASTER_ADDR and MASTER_PORT on each of them",
        ) from cause  # fmt: skip
    threads = str(max(1, (os.cpu_count() or 1) // devices))
    common = {
        "MASTER_ADDR": address, "MASTER_PORT": str(store.port), "WORLD_SIZE": str(devices * nodes),
        "LOCAL_WORLD_SIZE": str(devices), "GROUP_RANK": str(node), "GROUP_WORLD_SIZE": str(nodes),
        CHILD: "1", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }  # fmt: skip
    places = ({"RANK": str(node * devices + local), "LOCAL_RANK": str(local)} for local in range(devices))
    started = [
        subprocess.Popen(  # noqa: S603  # this very command, without a shell
            command, env={**os.environ, **common, **place}, stdin=subprocess.PIPE, start_new_session=True
        )
        for place in places
    ]

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    try:
        with stopping.handled(pass_on):
            return _watched(started, store)
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _place(nodes: int) -> tuple[int, str, int]:
    """Which machine this is, and where the first one listens."""
    if nodes == 1:
        return 0, "127.0.0.1", 0  # any port that is free
    names = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    node, address, port = (os.environ.get(name, "") for name in names)
    if not (node.isdecimal() and int(node) < nodes and address and port.isdecimal()):
        raise InputError(
            f"nothing says which of the {nodes} machines this is", where=f"--nodes {nodes}",
            hint=f"start the command on each with NODE_RANK (0 to {nodes - 1}), and MASTER_ADDR and MASTER_PORT of the "
            "first one, in the environment",
        )  # fmt: skip
    return int(node), address, int(port)


def _watched(processes: Sequence["subprocess.Popen[bytes]"], store: TCPStore) -> int:
    """Wait for all; where one fails, here or on another machine, the others are ended. Returns the exit code."""
    failed, codes = 0.0, list[tuple[int, int]]()
    while None in [process.poll() for process in processes]:
        codes = codes or [(rank, one.returncode) for rank, one in enumerate(processes) if one.returncode]
        if not failed and (codes or _code(store)):
            failed = time.monotonic()
        if failed and time.monotonic() - failed > _GRACE:
            for process in processes:
                process.kill() if time.monotonic() - failed > 2 * _GRACE else process.terminate()
        time.sleep(_OFTEN)
    codes = codes or [(rank, one.returncode) for rank, one in enumerate(processes) if one.returncode]
    if not codes:  # the run is complete; the first machine may be gone by now
        return 0
    if said := _code(store):
        return said
    rank, code = codes[0]
    if code > 0:
        return code
    raise FxdistillError(f"process {rank} of the run was ended by signal {-code}", hint="continue with --resume")


def _code(store: TCPStore) -> int:
    """The exit code that the run has, where a process has failed; 1 where the first machine is gone."""
    try:
        return int(store.get(_CODE)) if store.check([_CODE]) else 0
    except Exception:  # noqa: BLE001  # whatever torch makes of a connection that is lost
        return 1


def speaks(code: int) -> bool:
    """Whether this process says why the run fails, with an exit code; of several the first that asks."""
    here = Standing.here()
    if here.count == 1:
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection((address, port), timeout=_GRACE).close()  # of nobody there torch prints its stack
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=_GRACE))
        first = store.add(_SAID, 1) == 1
        if first:
            store.set(_CODE, str(code))
    except Exception:  # noqa: BLE001  # nobody to agree with
        return here.rank == 0
    return first


def lost(error: Exception) -> FxdistillError | None:
    """What an error says that comes of another process having ended; None for any other error."""
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
    if Standing.here().count == 1 or not (told or isinstance(error, DistError)):
        return None
    return FxdistillError("another process of the run has ended", hint="continue with --resume")


def follow() -> None:
    """End with the process that started this one, in whatever way that ends: its end of a pipe closes then."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(0, 1)  # sys.stdin would hold a lock at exit
        os.kill(os.getpid(), signal.SIGTERM)

    if CHILD in os.environ:
        threading.Thread(target=watch, daemon=True).start()

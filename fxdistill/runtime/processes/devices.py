"""The device that a process trains on, by Lightning Fabric; of several processes it joins those of the run."""

import inspect
import logging
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from fxdistill.errors import InputError
from fxdistill.runtime.processes.crew import Crew, Standing

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
_PATIENCE = timedelta(days=7)
"""How long processes wait for one another: the first exports and measures alone. One that ends is noticed at once."""


class _Mixed(MixedPrecision):
    """Mixed precision of what is computed: a batch comes as it is, and the targets in it keep their digits."""

    def convert_input(self, data: Any) -> Any:
        """As it is; autocast rounds what is multiplied."""
        return data


def started(accelerator: str, precision: Any, wanted: int | None = None) -> tuple[Fabric, Crew]:
    """The device of this process, and the processes of its run, joined.

    Args:
        accelerator: Fabric's name of the kind of device.
        precision: Fabric's name of the precision.
        wanted: How many devices of this machine the user asked for.

    Raises:
        InputError: There are not as many processes as devices were asked for, or not as many devices.
    """
    # it would speak of processes, of a precision that was asked for, and of one that was not
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    here = Standing.here()
    if wanted not in (None, here.local):
        raise InputError(
            f"{wanted} devices were asked for, and {here.local} of this run's processes are on this machine",
            where="devices", hint="start it as `fxdistill run … --devices N`, or under `torchrun --nproc-per-node N`",
        )  # fmt: skip
    if accelerator == "cuda" and here.local > torch.cuda.device_count():
        raise InputError(
            f"{here.local} processes would train on the {torch.cuda.device_count()} CUDA devices of this machine",
            where="--devices", hint="ask for as many as there are, or train on --device cpu",
        )  # fmt: skip
    how: dict[str, Any] = {"accelerator": accelerator}
    how |= {"precision": precision} if precision == "32-true" else {"plugins": _Mixed(precision, accelerator)}
    if here.count == 1:
        return Fabric(devices=1, **how), Crew()
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    options: dict[str, Any] = {"static_graph": True, buffers: False}  # they are the same in all processes
    strategy = DDPStrategy(process_group_backend=_BACKENDS[accelerator], timeout=_PATIENCE, **options)
    fabric = Fabric(devices=here.local, num_nodes=here.count // here.local, strategy=strategy, **how)
    fabric.launch()
    return fabric, Crew(here.rank, here.count)

"""Memory: what a step of training takes, roughly, before one is taken.

    weights     of every member, once
    training    of what is trained, thrice more: gradients and the two moments of Adam
    activations what trained members compute for a batch, kept for the way back; of frozen ones the largest value

In place operations and recomputation are left out, so that the figure is an upper one, and never more than a few times
what is taken. It is there to find the batch that takes ten times what the machine has.
"""

import math
import os

import torch

from fxdistill.errors import InputError
from fxdistill.ir.graph import shape_of
from fxdistill.ir.program import Program

_TRAINING = 4
_SLACK = 2  # the estimate is an upper one


def needed(program: Program, batch_size: int) -> int:
    """Bytes that a step of a program takes, at most and roughly.

    Args:
        program: An arm's program.
        batch_size: Images a step.
    """
    weights = sum(
        tensor.numel() * tensor.element_size() * (_TRAINING if tensor.requires_grad else 1)
        for tensor in (*program.parameters(), *program.buffers())
    )
    kept, largest = 0, 0
    for node in program.graph.nodes:
        shape = shape_of(node)
        if shape is None or node.meta.get("role") != "model":
            continue
        size = 4 * math.prod(shape[1:]) * batch_size if len(shape) > 1 else 0
        kept, largest = (kept, max(largest, size)) if node.meta["frozen"] else (kept + size, largest)
    return weights + kept + largest


def check(program: Program, batch_size: int, *, device: str, where: str) -> None:
    """Refuse a program whose steps would take far more memory than the device has.

    Raises:
        InputError: They would.
    """
    there = available(device)
    wanted = needed(program, batch_size)
    if there is not None and wanted > _SLACK * there:
        raise InputError(
            f"a step would take about {wanted / 1e9:,.0f} GB, and the {device} device has {there / 1e9:,.0f} GB",
            where=where, hint="use a smaller --batch-size or --input, or --force if you know better",
        )  # fmt: skip


def available(device: str) -> int | None:
    """Bytes of memory of a device, None where the system does not say."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None

"""In which order feature maps lie in memory: channels first, as torch makes them, or channels last.

On a CPU, oneDNN computes convolutions on blocks of channels: it reorders maps that have their channels first around
every convolution, and reads those that have them last as they are; there gradients of weights cost more. So it pays
where convolutions read and write a lot beside the weights that they have, in the arm in which they do most:

    a = elements that the trained convolutions read and write for a batch        w = elements of their weights
    channels last     where     a >= w     and     a >= 250,000

A step gains about 4 ns an element of ``a``, with convolutions in groups more, and loses 3.5 ns one of ``w``
(``benchmarks/README.md``); below 250,000 it is a millisecond that is in question. Whether it pays is a function of
programs, batch size and device, and nothing is timed for it: the two orders round differently, and a plan and a seed
give the same numbers again. Where a model does not stand it (a ``view`` of a map as another shape), a try on two images
tells.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset
from fxdistill.errors import line
from fxdistill.ir.graph import macs_of, op_name, shape_of
from fxdistill.ir.program import Program
from fxdistill.ir.running import attributes_kept, buffers_kept, copied, in_mode, same, seeded

_LEAST = 250_000
_ALIKE = 1e-3  # of a loss
_CONVOLUTIONS = ("conv2d", "conv_transpose2d")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layout:
    """How maps lie in memory in a run.

    Attributes:
        last: Whether the channels come last.
        why: Why, in words.
    """

    last: bool = False
    why: str = ""


def laid_out(program: Program) -> Program:
    """The program with its weights, and so what its convolutions make, in channels-last memory."""
    return program.to(memory_format=torch.channels_last)


def chosen(
    programs: Mapping[str, Program], dataset: Dataset, *, batch_size: int, device: str
) -> Layout:  # fmt: skip
    """How maps are to lie in a run: with the channels last where that pays and every program stands it.

    Args:
        programs: The programs of the arms by name, with the channels first.
        dataset: Two of its images are tried.
        batch_size: Images a step.
        device: ``cpu`` or ``cuda``.
    """
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return Layout(last=False, why="channels first: that channels last pays was measured on CPUs with oneDNN alone")
    found = _worth(programs.values(), batch_size)
    for name, program in programs.items() if found.last else ():
        if wrong := _not_stood(program, dataset):
            return Layout(last=False, why=f"channels first: arm '{name}' does not stand them last: {wrong}")
    return found


def _worth(programs: Iterable[Program], batch_size: int) -> Layout:
    moved, weights = max(map(_elements, programs))
    moved *= batch_size
    last = moved >= max(weights, _LEAST)
    told = f"trained convolutions read and write {moved:,} elements a batch, beside {weights:,} weights"
    return Layout(last, f"channels {'last' if last else 'first'}: {told}")


def _elements(program: Program) -> tuple[int, int]:
    """What the trained convolutions of a program read and write for an image, and of how many weights they are."""
    moved = weights = 0
    for node in program.graph.nodes:
        if not node.meta.get("frozen") and op_name(node, program) in _CONVOLUTIONS:
            given = node.args[0] if node.args else node.kwargs["input"]
            read, made = (shape_of(one) or program.meta["input_shape"] for one in (given, node))
            moved += math.prod(read[1:]) + math.prod(made[1:])
            places = read if "transpose" in op_name(node, program) else made
            weights += macs_of(node) // (places[0] * math.prod(places[2:]))
    return moved, weights


def _not_stood(program: Program, dataset: Dataset) -> str:
    """What goes wrong where a copy of a program has its maps with the channels last; '' for nothing.

    A loss that is another one under another seed is not compared: dropout draws in the order of the memory.
    """
    batch = next(batches(dataset.train, 2))

    def losses(one: Program, seed: int) -> dict[str, Tensor]:
        with in_mode(one, training=False), torch.no_grad(), seeded(_CPU, seed):
            found: dict[str, Tensor] = one(batch)
        return found

    try:
        with attributes_kept(program), buffers_kept(program):
            first, again = losses(program, 0), losses(program, 1)
            other = laid_out(copied(program))
        found = losses(other, 0)
        with seeded(_CPU):
            torch.stack(list(other.train()(batch).values())).sum().backward()
    except Exception as cause:  # noqa: BLE001  # whatever a model of the user's makes of it
        return line(next(iter(str(cause).splitlines()), type(cause).__name__))
    for key, value in first.items():
        if same(value, again[key]) and not torch.isclose(found[key], value, rtol=_ALIKE, atol=_ALIKE, equal_nan=True):
            return f"'{key}' is {float(found[key]):.6g} and not {float(value):.6g}"
    return ""

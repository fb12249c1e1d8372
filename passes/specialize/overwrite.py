"""Overwriting: a sum of a member is written where one of its operands was.

    a + b    →    add_(a, b)        where nothing but the sum reads a, and a is memory that a layer took for it
                                    and does not read again, in its backward pass either

The operands may be in either order. Symbolic traces write ``out += skip`` as a sum of its own, and the memory that it
takes anew in every step costs more than adding does.
"""

import operator
from collections import Counter

import torch
from torch import Tensor, fx

from fxdistill.ir.graph import memory, op_name, shape_of, submodule
from fxdistill.ir.program import Program
from fxdistill.passes.specialize.sink import is_plain

_SUMS = (operator.add, torch.add)
_FRESH = frozenset(("conv1d", "conv2d", "conv3d", "linear", "batch_norm", "add"))
"""Operations whose result is memory of its own, which their backward pass does not read."""


def add_(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two tensors, in the memory of the first one where the sum has its shape and type.

    Args:
        first: Of any shape; overwritten.
        second: Of a shape that broadcasts with it. Under autocast it may be of another type.
    """
    if first.shape == second.shape and first.dtype == second.dtype:
        return first.add_(second)
    return first + second


def overwrite(program: Program) -> int:
    """Write the sums of members over their operands, where that is known to change nothing.

    Returns:
        How many.
    """
    groups = memory(program.graph, program)
    sizes = Counter(groups.values())

    def free(value: object, node: fx.Node) -> bool:
        return (
            isinstance(value, fx.Node)
            and value.meta.get("role") == "model"
            and len(value.users) == 1
            and sizes[groups[value]] == 1
            and op_name(value, program) in _FRESH
            and ((module := submodule(program, value)) is None or is_plain(module))
            and shape_of(value) == shape_of(node) is not None
        )

    found = 0
    for node in program.graph.nodes:
        if node.target not in _SUMS or node.meta.get("role") != "model" or node.kwargs or len(set(node.args)) != 2:
            continue
        for first, second in (node.args, node.args[::-1]):
            if free(first, node) and isinstance(second, fx.Node):
                node.target, node.args = add_, (first, second)
                found += 1
                break
    return found

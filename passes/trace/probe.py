"""Probe: what a module does to a seeded batch, and whether a graph does the same, bit for bit.

Whatever is run here leaves the process and the module as they were.

NaN equals NaN, which says nothing: what answers standard normal images with no finite number is asked about positive
ones, of which logarithms and roots are numbers. What answers these so as well can be traced, and compared with nothing.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import CheckpointFunction

from fxdistill.errors import InvariantError, ModelError, first_line
from fxdistill.ir import outputs
from fxdistill.ir.graph import Shape
from fxdistill.ir.running import (
    attention_in_parts,
    attributes_kept,
    buffers_kept,
    example,
    in_mode,
    quiet,
    same,
    seeded,
    tensors_in,
    told_by,
)  # fmt: skip
from fxdistill.passes.trace.effects import gradient_ways


class Probe:
    """A seeded batch, and what the untraced module answers to it, and does to its buffers, in one mode.

    Attributes:
        images: The batch.
        input_shape: The shape that was asked for; batch statistics need a batch of two, and images may be smaller.
        expected: The tensors of the module's answer.
        structured: Whether the answer is more than a tensor.
        updates: The buffers that a call changes, by name, and their new values.
    """

    def __init__(self, module: nn.Module, input_shape: Shape, *, training: bool, size: Shape | None = None) -> None:
        # batch statistics need more than one value a channel
        batch = max(2, input_shape[0]) if training else input_shape[0]
        images = example(module, (batch, *(input_shape[1:] if size is None else size)))
        self.input_shape = input_shape
        self.images, self.expected = told_by(images, lambda images: self._asked(module, images, training=training))

    def _asked(self, module: nn.Module, images: Tensor, *, training: bool) -> list[Tensor]:
        """What the module answers to images; what else it does to them is kept."""
        try:
            with (
                quiet(), in_mode(module, training=training), attributes_kept(module), buffers_kept(module) as before,
            ):  # fmt: skip
                answer = self.call(module, images)
                found, self.structured = tensors_in(answer), not isinstance(answer, Tensor)
                after = dict(module.named_buffers(remove_duplicate=False))
                self.updates = {n: b.clone() for n, b in after.items() if n in before and not same(b, before[n])}
                self._ways = self._gradients(module, images) if training else None
                self._tensors = {name: id(after[name]) for name in self.updates}
        except Exception as cause:
            shape = "x".join(map(str, images.shape))
            other = 224 if images.shape[-1] < 224 else 32  # not what was just tried
            raise ModelError(
                f"the model does not run on an input of shape {shape}: {first_line(cause)}",
                where=type(module).__name__,
                hint=f"give the right shape with --input, e.g. --input 1x3x{other}x{other}; two models that read "
                "images of different sizes say so with --size teacher=224 --size student=128",
            ) from cause
        outputs.refuse_lists(answer, where=type(module).__name__)
        if not found:
            raise ModelError(
                f"the model returns a {type(answer).__name__}, in which there is no tensor",
                where=type(module).__name__, hint="return a tensor, or a dict, tuple or dataclass of tensors",
            )  # fmt: skip
        return found

    @staticmethod
    def call(module: Callable[[Tensor], object], images: Tensor) -> object:
        """Run on a copy of some images, random numbers from the probe's seed."""
        with torch.no_grad(), seeded(images.device), attention_in_parts():
            return module(images.clone())

    @staticmethod
    def _gradients(module: nn.Module, images: Tensor) -> tuple[set[int], list[str]] | None:
        """Which parameters gradients reach, and through which functions of one's own; None where torch hides that."""
        with torch.enable_grad(), seeded(images.device):
            given = images.clone().requires_grad_() * 1  # which may be written into
            leaves, functions = gradient_ways(tensors_in(module(given)))
        own = leaves & {id(parameter) for parameter in module.parameters()}
        return None if CheckpointFunction.__name__ in functions else (own, functions)

    def compare(self, module: fx.GraphModule) -> None:
        """Raise InvariantError unless outputs and updated buffers of the graph equal the module's, bit for bit."""
        with buffers_kept(module):
            found = tensors_in(self.call(module, self.images))
            lost = self._lost(dict(module.named_buffers(remove_duplicate=False)))
            ways = None if self._ways is None else self._gradients(module, self.images)
        if len(found) != len(self.expected):
            raise InvariantError("the graph returns another number of tensors")
        if not all(map(same, found, self.expected)):
            raise InvariantError("the graph's output differs from the module's")
        if lost:
            raise InvariantError(f"the graph does not update the buffer '{lost[0]}' as the module does")
        if self._ways is not None and ways != self._ways:
            raise InvariantError(_other_ways(module, self._ways, ways or (set(), [])))

    def _lost(self, after: dict[str, Tensor]) -> list[str]:
        """The buffers that are not as the module left them; one that has several names may go by any of them."""
        there = {self._tensors[name] for name in self.updates if name in after}
        return [
            name for name, value in self.updates.items()
            if (not same(after[name], value) if name in after else self._tensors[name] not in there)
        ]  # fmt: skip


def _other_ways(module: nn.Module, expected: tuple[set[int], list[str]], found: tuple[set[int], list[str]]) -> str:
    if expected[1] != found[1]:
        functions = ", ".join(sorted(set(expected[1]) ^ set(found[1]))) or "called another number of times"
        return f"the graph loses the gradient that a function of the model's own has ({functions})"
    names = [name for name, tensor in module.named_parameters() if id(tensor) in expected[0] ^ found[0]]
    return f"gradients reach '{names[0] if names else 'a constant'}' in one of module and graph, not in both"


@contextmanager
def random_kept() -> Iterator[None]:
    """The generators of Python and NumPy, which a forward pass may use, are afterwards as they were.

    They go on inside: a choice that a tracer froze shows as a difference.
    """
    python, numpy = random.getstate(), np.random.get_state()  # the global one is what models use
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """What ``torch.compile`` made of a model or its parts runs as it is written: compiled, it rounds differently."""
    parts = list(module.modules())
    if not any(type(part).__name__ == "OptimizedModule" or part._compiled_call_impl for part in parts):  # noqa: SLF001
        yield
        return
    dynamo: Any = torch._dynamo  # noqa: SLF001  # torch imports it where it is named
    with torch.compiler.set_stance("force_eager"), dynamo.config.patch(error_on_nested_fx_trace=False):
        yield

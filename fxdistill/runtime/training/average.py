"""A running mean of the weights in training (EMA; Polyak and Juditsky, 1992).

    mean = share x mean + (1 - share) x weights, after every step, from the weights that the stage starts with

Everything that training changes is averaged, running statistics included; what is no floating-point number, or
infinite to begin with (a mask), is taken as it is. The mean is shown while a member is measured, and takes the place of
the weights when the stage ends.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fxdistill.errors import RunDirError
from fxdistill.ir.program import Program


class Average:
    """The mean of what a program trains; nothing at all where the share is 0.

    Args:
        program: The program.
        share: What a step keeps of the mean.
        values: The mean so far, by name; None to begin with the weights as they are.

    Raises:
        RunDirError: It is of other weights.
    """

    def __init__(self, program: Program, share: float, values: Mapping[str, Tensor] | None = None) -> None:
        self.share = share
        self._own = {name: tensor.detach() for name, tensor in program.trainable_state().items()} if share else {}
        self.values = {name: tensor.clone() for name, tensor in self._own.items()}
        self._moves = {n for n, own in self._own.items() if own.is_floating_point() and bool(own.isfinite().all())}
        if values is not None and values.keys() != self.values.keys():
            raise RunDirError(
                "the checkpoint is not one of this plan: its running mean is of other weights", where="checkpoint.pt",
                hint="put the run's own checkpoint back, or run the plan anew elsewhere",
            )  # fmt: skip
        for name, tensor in (values or {}).items():
            self.values[name].copy_(tensor)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        for name, mean in self.values.items():
            if name in self._moves:
                mean.lerp_(self._own[name], 1 - self.share)
            else:
                mean.copy_(self._own[name])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The program has the mean as its weights inside, and its own again behind."""
        before = {name: tensor.clone() for name, tensor in self._own.items()}
        self.settle()
        try:
            yield
        finally:
            self._put(before)

    def settle(self) -> None:
        """Put the mean in the place of the weights."""
        self._put(self.values)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in values.items():
            self._own[name].copy_(tensor)

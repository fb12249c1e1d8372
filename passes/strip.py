"""Strip: the student alone, as its user made it, with new weights.

The program trains the user's own parameters, so there is nothing to extract: stripping moves a copy of the user's
module to the CPU in eval mode, and proves that it is what was trained. Taps, adapters and losses stay behind with the
program.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from fxdistill.errors import InvariantError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.program import Program
from fxdistill.passes.instrument import Projection


@dataclass(frozen=True)
class Trained:
    """A program, and the user's module that is its student."""

    program: Program
    student: nn.Module


@dataclass(frozen=True)
class Strip(Pass[Trained, nn.Module]):
    """Take the trained student out of a program."""

    def run(self, source: Trained) -> PassResult[nn.Module]:
        """A copy of the user's module on the CPU, in eval mode."""
        student = copy.deepcopy(source.student).cpu().eval()
        student.zero_grad(set_to_none=True)
        return PassResult(student, modified=True)

    def ensures(self, source: Trained, value: nn.Module) -> None:
        """Every tensor that the program trained is in the result, and nothing of this package is."""
        state = value.state_dict()
        inside = getattr(source.program, "student", nn.Module())
        for name, tensor in inside.state_dict().items():
            if name in state and not torch.allclose(state[name], tensor.cpu(), rtol=0, atol=0, equal_nan=True):
                raise InvariantError(f"'{name}' of the stripped student is not what was trained")
        ours = [name for name, part in value.named_modules() if isinstance(part, Program | Projection)]
        if ours:
            raise InvariantError(f"the stripped student still holds a part of the program: '{ours[0]}'")

"""Strip: a trained member alone, as its user made it, with new weights.

The program trains the user's own parameters, so there is nothing to extract: stripping moves a copy of the user's
module to the CPU in eval mode, and proves that it is what was trained. Taps, adapters and losses stay behind with the
program.
"""

from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxdistill.errors import InvariantError
from fxdistill.ir.adapters import Projection
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.program import Program
from fxdistill.ir.running import copied, same


@dataclass(frozen=True)
class Trained:
    """A program, and the user's module that is one of its trained members."""

    program: Program
    module: nn.Module
    member: str = "student"


@dataclass(frozen=True)
class Strip(Pass[Trained, nn.Module]):
    """Take a trained member out of a program."""

    def requires(self, source: Trained) -> None:
        """The member is one that the program trains."""
        found = next((member for member in source.program.members if member.name == source.member), None)
        if found is None:
            raise InvariantError(f"the program has no member '{source.member}'")
        if not found.trained:
            raise InvariantError(f"the member '{source.member}' was not trained")

    def run(self, source: Trained) -> PassResult[nn.Module]:
        """A copy of the user's module on the CPU, in eval mode."""
        stripped = copied(source.module).cpu().eval()
        stripped.zero_grad(set_to_none=True)
        return PassResult(stripped, modified=True)

    def ensures(self, source: Trained, value: nn.Module) -> None:
        """It is the user's module with every tensor that the program trained, and nothing of this package is inside."""
        # every graph module has a class of its own
        graphs = isinstance(value, fx.GraphModule) and isinstance(source.module, fx.GraphModule)
        if type(value) is not type(source.module) and not graphs:
            raise InvariantError(f"the stripped member is a {type(value).__name__}, not what was trained")
        ours = [name for name, part in value.named_modules() if isinstance(part, Program | Projection)]
        if ours:
            raise InvariantError(f"the stripped member still holds a part of the program: '{ours[0]}'")
        state, own = value.state_dict(), source.module.state_dict()
        if state.keys() != own.keys():
            raise InvariantError(f"the stripped member has other tensors: '{sorted(state.keys() ^ own.keys())[0]}'")
        inside = source.program.get_submodule(source.member).state_dict()
        trained = {name: tensor for name, tensor in inside.items() if name in own}
        if own and not trained:
            raise InvariantError(f"no tensor of the stripped member is one of the program's '{source.member}'")
        for name, tensor in {**own, **trained}.items():
            if isinstance(tensor, Tensor) and not same(state[name], tensor.cpu()):
                raise InvariantError(f"'{name}' of the stripped member is not what was trained")

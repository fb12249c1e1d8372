"""Whether a stage's program goes through ``torch.compile``: it pays where a stage is long, and only trying tells.

    compile where   steps left · (seconds of a step as it is - seconds compiled)  >  seconds that compiling takes

Both are timed on a batch of the stage, forward and backward. Nothing of that stays: gradients, statistics, what losses
remember and random numbers are as before. What was chosen for a stage of an arm is noted in the checkpoint, and holds
under all seeds and after a resume, since compiled programs round differently.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from fxdistill.errors import FxdistillError, InputError
from fxdistill.figures import figure
from fxdistill.ir.program import Program
from fxdistill.ir.running import attributes_kept, buffers_kept

_STEPS = 3
_LEAST = 30.0
"""Seconds: what is over sooner is not worth a try, for compiling takes about as long."""


@dataclass
class Choice:
    """Chooses for the stages of one arm.

    Attributes:
        arm: Its name.
        chosen: What was chosen so far, by ``ARM/STAGE``: whether it is compiled.
        say: Told what was chosen, where, and why.
        device: Where the programs run.
    """

    arm: str
    chosen: dict[str, bool]
    say: Callable[[str, str], None]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def made(self, stage: str, program: Program, step: Callable[[nn.Module], object], *, steps: int) -> nn.Module:
        """The program, or what compiling makes of it.

        Args:
            stage: The stage's name.
            program: Its program.
            step: A step with a module in place of the program, up to its gradients.
            steps: How many steps are left.
        """
        key, where = f"{self.arm}/{stage}", f"arm '{self.arm}', stage '{stage}'"
        if key in self.chosen:
            return compiled(program) if self.chosen[key] else program
        with buffers_kept(program), attributes_kept(program):
            module, why = self._tried(program, step, steps)
        for parameter in program.parameters():
            parameter.grad = None
        self.chosen[key] = module is not program
        self.say(where, f"{'compiled' if self.chosen[key] else 'not compiled'}: {why}")
        return module

    def _tried(self, program: Program, step: Callable[[nn.Module], object], steps: int) -> tuple[nn.Module, str]:
        plain = self._seconds(lambda: step(program))
        if plain * steps < _LEAST:
            return program, f"what is left of it takes about {plain * steps:.2g} s as it is"
        module = compiled(program)
        try:
            compiling = self._once(lambda: step(module))
            quick = self._seconds(lambda: step(module))
        except Exception as cause:
            if not _is_of_compiler(cause):
                raise
            return program, f"torch.compile cannot compile it: {_why(cause)}"
        told = f"a step takes {figure(1000 * quick)} ms compiled and {figure(1000 * plain)} as it is"
        told += f"; compiling took {compiling:.3g} s, {steps:,} steps are left"
        return (module if steps * (plain - quick) > compiling else program), told

    def _seconds(self, step: Callable[[], object]) -> float:
        step()  # the first one makes what the others reuse
        return statistics.median(self._once(step) for _ in range(_STEPS))

    def _once(self, step: Callable[[], object]) -> float:
        start = time.perf_counter()
        step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start


def compiled(program: Program) -> nn.Module:
    """The program through ``torch.compile``, on its first call."""
    return cast("nn.Module", torch.compile(program))


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Make one clear error of what the compiler says; what it hides of ours comes out."""
    try:
        yield
    except FxdistillError:
        raise
    except Exception as error:
        if not _is_of_compiler(error):
            raise
        raise InputError(
            f"torch.compile cannot compile this program: {_why(error)}", where="--compile",
            hint="run with --compile off or auto, or install what is missing: on a CPU it needs a C++ compiler",
        ) from error  # fmt: skip


def _why(error: Exception) -> str:
    """The line with the reason; above it may stand whose it is."""
    lines = (part.strip() for part in str(error).splitlines())
    return next((part for part in lines if part and not part.endswith(":")), type(error).__name__)


def _is_of_compiler(error: Exception) -> bool:
    """Whether the compiler says that something cannot be compiled, or that what it needs is not there."""
    return any(part in type(error).__module__ for part in ("torch._dynamo", "torch._inductor"))

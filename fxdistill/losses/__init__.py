"""Losses, one file each: what a loss is, and the registry of their names.

A loss says which **ports** it reads; one rule resolves them for every term of a plan:

    student.logits, teacher.logits    the prediction of the member in that role
    student.tap, teacher.tap          the two taps of the term's pair, brought to one shape
    labels, index, …                  a field of the batch

It is a pure function of what it reads, or it is **built** from what it will read: a learned projection, variances, a
memory bank are modules that are trained along, lie in checkpoints, and are gone when the student is stripped out.

    LOSS = Loss(reads=("student.logits", "teacher.logits"), function=kd, arguments=Arguments)

Functions hold no state, do not branch on data and write nothing in place: they are nodes of FX graphs and compile
without breaks. They work in float32 at least, whatever autocast says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxdistill.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from fxdistill.arguments import Arguments

ROLES = ("student", "teacher")
VALUES = ("logits", "tap")


@dataclass(frozen=True)
class Context:
    """What a loss may know when it is built.

    Attributes:
        shapes: For each port that it reads the shape of the value, batch included; taps as the loss gets them.
        classes: Number of classes of the data; 0 where it has none, or none is known.
        train_size: Number of training images; 0 where it is not known.
    """

    shapes: Mapping[str, tuple[int, ...]]
    classes: int = 0
    train_size: int = 0


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        reads: The ports, in the order of the function's positional arguments.
        function: The loss as a pure function; returns a float32 scalar. The arguments follow as keywords.
        build: Instead of ``function``: makes the function, or a module, from a :class:`Context` and the arguments.
            Random weights come from torch's global generator, which is seeded.
        arguments: What it takes, with defaults and bounds; None for nothing.
    """

    reads: tuple[str, ...]
    function: "Callable[..., Tensor] | None" = None
    build: "Callable[[Context, Any], Callable[..., Tensor]] | None" = None
    arguments: "type[Arguments] | None" = None

    @property
    def reads_taps(self) -> bool:
        """Whether it compares the taps of a pair."""
        return any(port.endswith(".tap") for port in self.reads)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that it reads from: ``student``, ``teacher``."""
        return tuple(role for role in ROLES if any(port.startswith(f"{role}.") for port in self.reads))


LOSSES: Registry[Loss] = Registry("loss", __name__, "LOSS", Loss)

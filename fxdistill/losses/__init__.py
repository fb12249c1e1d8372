"""Losses, one file each: what a loss is, and the registry of their names.

A loss says which **ports** it reads; one rule resolves them for every term of a plan:

    student.logits, teacher.logits    the prediction of the member in that role
    student.tap, teacher.tap          the two taps of the term's pair, brought to one shape, channels in dimension 1;
                                      without a pair, for a loss ``of_images``, the answers of the two members
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

from fxdistill.errors import InputError
from fxdistill.registry import Registry, suggestion

if TYPE_CHECKING:
    from torch import Tensor

    from fxdistill.arguments import Arguments

ROLES = ("student", "teacher")
VALUES = ("logits", "tap")
FIELDS = ("images", "labels", "index")
"""The fields of a batch."""


@dataclass(frozen=True)
class Context:
    """What a loss may know when it is built.

    Attributes:
        shapes: For each port that it reads the shape of the value, batch included; taps as the loss gets them; () for
            fields of the batch.
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
        of_logits: Whether predictions have to be logits for it, because it takes the softmax or the sigmoid itself.
        same_shapes: Whether two predictions that it reads must have one shape, because it compares entry by entry.
        of_images: Whether it compares how images lie to each other, so that a term without a pair may compare the
            members' answers, where these are embeddings.
        mixed_labels: Whether it takes labels as rows of shares (B, classes) as well, as mixup makes them.
        by_image: Whether it is the mean over the batch of what each image alone gives, so that of a batch in parts it
            is the mean of the parts' by their sizes.
        summary: One line for lists; '' where its authors gave none.
        source: Where it was published: an arXiv number, a venue.
    """

    reads: tuple[str, ...]
    function: "Callable[..., Tensor] | None" = None
    build: "Callable[[Context, Any], Callable[..., Tensor]] | None" = None
    arguments: "type[Arguments] | None" = None
    same_shapes: bool = True
    of_logits: bool = True
    of_images: bool = False
    mixed_labels: bool = False
    by_image: bool = False
    summary: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what no term can use.

        Raises:
            InputError: A port is unknown, or there is not one of function and build.
        """
        known = (*(f"{role}.{value}" for role in ROLES for value in VALUES), *FIELDS)
        for port in self.reads:
            if port not in known:
                raise InputError(f"a loss reads '{port}'", where="reads", hint=suggestion(port, known, "ports are"))
        if not self.roles or (self.function is None) == (self.build is None):
            raise InputError(
                "a loss needs a member to read from, and either a function or a way to build one", where="Loss",
                hint='e.g. Loss(reads=("student.logits", "teacher.logits"), function=kd)',
            )  # fmt: skip

    @property
    def reads_taps(self) -> bool:
        """Whether it compares the taps of a pair."""
        return any(port.endswith(".tap") for port in self.reads)

    @property
    def predicting(self) -> tuple[str, ...]:
        """The roles whose predictions it reads."""
        return tuple(role for role in ROLES if f"{role}.logits" in self.reads)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that it reads from: ``student``, ``teacher``."""
        return tuple(role for role in ROLES if any(port.startswith(f"{role}.") for port in self.reads))


LOSSES: Registry[Loss] = Registry("loss", __name__, "LOSS", Loss)

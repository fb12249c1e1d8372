"""What a selection is of: blocks of classes, and the wanted widths of taps."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Classes that the same weights produce.

    Attributes:
        classes: The free ones among them.
        step: Their number shall be a multiple of this.
        target: How many shall stay; None where wanted widths alone decide.
        whole: How many there were before earlier steps; shares are of it. 0 for as many as there are.
    """

    classes: tuple[int, ...]
    step: int
    target: int | None
    whole: int = 0

    def share(self, share: float) -> float:
        """A share of it, as a number of classes."""
        return share * (self.whole or len(self.classes))

    def nearest(self, count: float, least: int = 1) -> int:
        """The number of classes that it can keep which is nearest to a count, and not below another one."""
        least = self.step * max(1, math.ceil(least / self.step))
        return min(len(self.classes), max(least, self.step * round(count / self.step)))

    def less(self, count: int, steps: int) -> int:
        """So many steps less than a number of classes that it can keep; all of them may be no multiple."""
        return self.step * (math.ceil(count / self.step) - steps)

    def relative(self, scores: Tensor) -> Tensor:
        """The importance of its classes as parts of the largest one: what the classes of several blocks compete by."""
        values = scores[list(self.classes)]
        return values / max(float(values.abs().max()), 1e-30)


class Importance(NamedTuple):
    """The importance of every class, by class id, (classes + 1,).

    Attributes:
        across: What layers compete by: how wide each becomes.
        within: What the channels of one layer compete by: which stay.
    """

    across: Tensor
    within: Tensor


@dataclass(frozen=True)
class Width:
    """A wanted width of a tap: the classes of its channels, in order, and how many channels shall stay."""

    path: str
    classes: tuple[int, ...]
    width: int

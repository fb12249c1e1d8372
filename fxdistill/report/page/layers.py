"""Layers of members, and what of them runs in which stage, as a report draws them."""

from collections.abc import Mapping
from dataclasses import dataclass

_WEIGHTY = ("conv", "linear", "attention", "norm", "lstm", "gru", "embedding", "einsum", "matmul", "bmm")


@dataclass(frozen=True)
class Layer:
    """A node of a traced model.

    Attributes:
        path: Its path.
        kind: Its operation.
        width: Channels of its value; 0 where it has none.
        macs: Multiply-accumulates of one image.
    """

    path: str
    kind: str
    width: int = 0
    macs: int = 0

    @property
    def weighs(self) -> bool:
        """Whether it computes with weights or costs something: others are drawn with what they follow."""
        return self.macs > 0 or any(part in self.kind for part in _WEIGHTY)


@dataclass(frozen=True)
class Runs:
    """What of the members runs in a stage: by member and path ``runs``, ``narrowed`` or ``folded``; others do not."""

    arm: str
    stage: str
    layers: Mapping[str, Mapping[str, str]]

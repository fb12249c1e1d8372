"""Parity: what the gate found, as a result keeps it and people read it."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

TOLERANCE = 1e-4
"""How far a file's predictions may be from the module's, as a share of their :func:`scale`, if nothing else is said."""
_LEAST = 0.01
"""What differences are relative to where values are smaller: rounding is that of larger values that made them."""


def scale(largest: float) -> float:
    """What differences of two tensors are relative to: their largest absolute value, or a hundredth."""
    return max(_LEAST, largest)


@dataclass(frozen=True)
class Parity:
    """How an ONNX file's predictions differ from the module's.

    Attributes:
        max_abs_error: Largest absolute difference of two entries.
        agreement: Share of predictions that say the same, 0 to 1: in classification, of equal top-1 predictions; None
            where they are numbers, or no output is known to be the prediction.
        images: How many were compared.
        widest_flip: Over the predictions that differ, PyTorch's largest gap between its own choice and ONNX
            Runtime's, in units of the output; 0 where all agree.
        agreement_name: What the task calls the agreement.
        vacuous: Why all of this says nothing; '' where it does.
        others: Of each output beside the prediction the largest difference, relative to its :func:`scale`.
        largest: The largest absolute value of an entry of the prediction.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    max_abs_error: float
    agreement: float | None
    images: int
    widest_flip: float = 0.0
    agreement_name: str = "agreement"
    vacuous: str = ""
    others: dict[str, float] = field(default_factory=dict)
    largest: float = 0.0

    def __str__(self) -> str:
        error = f"largest error {float(np.max([self.max_abs_error, *self.others.values()])):.1e}"
        agreed = "" if self.agreement is None else f", {self.agreement_name} {self.agreement:.2%}"
        vacuous = f" (which says nothing: {self.vacuous})" if self.vacuous else ""
        return f"{error}{agreed}{vacuous}"

"""Matrix products in float32, whatever autocast says: it would round the factors to half precision."""

import torch
from torch import Tensor, fx


def gram(values: Tensor) -> Tensor:
    """Products of all rows (B, D) with each other: (B, B)."""
    return _product(values, values)


def product(values: Tensor, weight: Tensor) -> Tensor:
    """Rows (..., D) with the rows of a weight (C, D): (..., C)."""
    return _product(values, weight)


@fx.wrap  # one node: a trace does not see that autocast is off inside
def _product(values: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(values.device.type, enabled=False):
        return values.float() @ weight.float().t()

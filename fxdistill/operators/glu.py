"""GLU: one half of the channels gates the other."""

import torch
from torch import Tensor

from fxdistill.operators import Operator


def glu(value: Tensor, dim: int = -1) -> Tensor:
    """``F.glu`` in other operations: its two halves live and die together."""
    one, other = value.chunk(2, dim)
    return torch.mul(one, torch.sigmoid(other))


OPERATOR = Operator(names=("glu",), spelled=glu)

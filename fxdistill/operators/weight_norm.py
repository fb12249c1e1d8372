"""Weight normalisation (arXiv 1602.07868): a direction and a length for each output; zeros do not count in a norm."""

from torch import Tensor

from fxdistill.operators import Operator


def weight_norm(direction: Tensor, length: Tensor, _dim: int = 0) -> Tensor:
    """``torch._weight_norm`` as its labels see it: the length of each output scales it."""
    return direction * length


OPERATOR = Operator(names=("_weight_norm",), spelled=weight_norm)

"""Channel shuffle (ShuffleNet, arXiv 1707.01083): a transposition of the groups with what is in them."""

from torch import Tensor

from fxdistill.operators import Operator, Trait


def channel_shuffle(value: Tensor, groups: int) -> Tensor:
    """``F.channel_shuffle`` in views, which split the channels into groups."""
    grouped: Tensor = value.unflatten(1, (groups, -1))
    return grouped.transpose(1, 2).flatten(1, 2)


OPERATOR = Operator(
    names=("channel_shuffle", "native_channel_shuffle"),
    traits=Trait.PERMUTES | Trait.REORDERS,
    spelled=channel_shuffle,
)

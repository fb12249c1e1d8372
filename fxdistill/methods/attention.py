"""Attention transfer at every pair of maps, beside the task's own loss.

Zagoruyko and Komodakis, arXiv 1612.03928; the factor 1000 is that of the common CIFAR-100 comparisons (Tian et al.,
ICLR 2020, arXiv 1910.10699), where the losses of all pairs are summed. A pair of which a side has one position is
left out.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods._taps import at_maps
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage; none where no pair has maps."""
    return at_maps(recipe, "attention", weight=1000.0)


METHOD = Method(
    summary="where the teacher's layers are active", main=main, needs_pairs=True, source="arXiv 1612.03928, ICLR 2017"
)

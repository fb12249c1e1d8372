"""The teacher's features at every pair, beside the task's own loss where there is one.

The hints of Romero et al., "FitNets", ICLR 2015, arXiv 1412.6550, at all pairs at once and with weight 1; with
``--align project`` through a learned regressor to the teacher's full width, as there. Nothing is asked of the
teacher's predictions, so that it may have other classes, or none.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods._taps import at_every
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    return at_every(recipe, "mse")


METHOD = Method(
    summary="the teacher's features at every pair (FitNets)", main=main, needs_pairs=True,
    source="arXiv 1412.6550, ICLR 2015",
)  # fmt: skip

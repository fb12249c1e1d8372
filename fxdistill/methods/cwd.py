"""Channel-wise distillation at every pair of maps, beside the task's own loss: where each channel is active.

Shu et al., ICCV 2021, arXiv 2011.13256, with their weight of 50 for feature maps, at temperature 4. A pair of which a
side has one position is left out.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods._taps import at_maps
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage; none where no pair has maps."""
    return at_maps(recipe, "cwd", weight=50.0)


METHOD = Method(
    summary="where each channel is active, at every pair of maps", main=main, needs_pairs=True,
    source="arXiv 2011.13256, ICCV 2021",
)  # fmt: skip

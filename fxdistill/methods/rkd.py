"""Relational distillation: distances and angles between images, in the deepest pair or the embedding.

Park et al., CVPR 2019, arXiv 1904.05068, with distances 25, angles 50, beside the task's own loss with weight 1, as the
common CIFAR-100 comparisons have it (Tian et al., ICLR 2020, arXiv 1910.10699).
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods._taps import at_deepest
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    return at_deepest(recipe, "rkd", weight=1.0)


METHOD = Method(
    summary="distances and angles between images", main=main, needs_pairs=True, takes_embeddings=True,
    source="arXiv 1904.05068, CVPR 2019",
)  # fmt: skip

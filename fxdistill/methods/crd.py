"""Contrastive distillation in the deepest pair, or the embedding: each image's is told from those of many others.

Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699: 0.8 times the loss beside the task's own, as they have it. It
remembers every training image; see :mod:`fxdistill.losses.crd` for what that costs.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods._taps import at_deepest
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    return at_deepest(recipe, "crd", weight=0.8)


METHOD = Method(
    summary="each image's embedding knows the teacher's among those of others", main=main, needs_pairs=True,
    takes_embeddings=True, source="arXiv 1910.10699, ICLR 2020",
)  # fmt: skip

"""Similarity-preserving distillation: which images of a batch activate the deepest pair, or the embedding, alike.

Tung and Mori, ICCV 2019, arXiv 1907.09682. Beside the task's own loss with the factor 3000 of the common CIFAR-100
comparisons (Tian et al., ICLR 2020, arXiv 1910.10699); a task without one has it alone.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods._taps import at_deepest
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    return at_deepest(recipe, "sp", weight=3000.0)


METHOD = Method(
    summary="which images of a batch are alike", main=main, needs_pairs=True, takes_embeddings=True,
    source="arXiv 1907.09682, ICCV 2019",
)  # fmt: skip

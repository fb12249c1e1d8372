"""Variational information distillation at every pair, beside the task's own loss.

Ahn et al., CVPR 2019, arXiv 1904.05835, with weight 1 at each pair, as in the common CIFAR-100 comparisons (Tian et
al., ICLR 2020, arXiv 1910.10699).
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods._taps import at_every
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    return at_every(recipe, "vid")


METHOD = Method(
    summary="how well the teacher's layers can be told from the student's", main=main, needs_pairs=True,
    source="arXiv 1904.05835, CVPR 2019",
)  # fmt: skip

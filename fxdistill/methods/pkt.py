"""Probabilistic knowledge transfer: how the samples of a batch lie to each other, in the embedding or the deepest pair.

Passalis, Tzelepi, Tefas, CVPR 2020. Where the task has a loss of its own, both are summed, PKT with the factor 30,000
of the common CIFAR-100 comparisons (Tian et al., ICLR 2020, arXiv 1910.10699). Where predictions are embeddings, it is
PKT of these alone, which is how InDistill's released student is trained for retrieval.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods._taps import at_deepest
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    return at_deepest(recipe, "pkt", weight=30_000.0)


METHOD = Method(
    summary="how samples lie to each other", main=main, needs_pairs=True, takes_embeddings=True, source="CVPR 2020"
)  # fmt: skip

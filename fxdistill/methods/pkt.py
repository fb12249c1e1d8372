"""Probabilistic knowledge transfer: how the samples of a batch lie to each other, in the embedding or the deepest pair.

Passalis, Tzelepi, Tefas, CVPR 2020. Where the task has a loss of its own, both are summed, PKT with the factor 30,000
of the common CIFAR-100 comparisons (Tian et al., ICLR 2020, arXiv 1910.10699). Where predictions are embeddings, it is
PKT of these alone, which is how InDistill's released student is trained for retrieval.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.schema import LossTerm

_WEIGHT = 30_000.0


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    if recipe.embeds:
        return [LossTerm(loss="pkt", student=recipe.student, teacher=recipe.teacher)]
    own = [recipe.supervised] if recipe.supervised is not None else []
    deepest = recipe.pairs[-1]
    pkt = LossTerm(
        loss="pkt", pair=deepest.name, student=deepest.student.member, teacher=deepest.teacher.member,
        weight=_WEIGHT if own else 1.0,
    )  # fmt: skip
    return [*own, pkt]


METHOD = Method(summary="how samples lie to each other", main=main, needs_pairs=True)

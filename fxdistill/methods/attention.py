"""Attention transfer at every pair, beside the task's own loss.

Zagoruyko and Komodakis, arXiv 1612.03928; the factor 1000 is that of the common CIFAR-100 comparisons (Tian et al.,
ICLR 2020, arXiv 1910.10699), where the losses of all pairs are summed.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.schema import LossTerm

_WEIGHT = 1000.0


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    own = [recipe.supervised] if recipe.supervised is not None else []
    return [
        *own,
        *(
            LossTerm(
                loss="attention", pair=pair.name, student=pair.student.member, teacher=pair.teacher.member,
                weight=_WEIGHT,
            )
            for pair in recipe.pairs
        ),
    ]  # fmt: skip


METHOD = Method(summary="where the teacher's layers are active", main=main, needs_pairs=True)

"""The teacher's features at every pair, beside the task's own loss where there is one.

The hints of Romero et al., "FitNets", ICLR 2015, arXiv 1412.6550, at all pairs at once and with weight 1; nothing is
asked of the teacher's predictions, so that it may have other classes, or none.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.schema import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    own = [recipe.supervised] if recipe.supervised is not None else []
    pairs = [(pair.name, pair.student.member, pair.teacher.member) for pair in recipe.pairs]
    return [*own, *(LossTerm(loss="mse", pair=name, student=s, teacher=t) for name, s, t in pairs)]


METHOD = Method(summary="the teacher's features at every pair", main=main, needs_pairs=True)

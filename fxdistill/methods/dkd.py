"""Decoupled knowledge distillation of the predictions, beside the task's own loss.

Cross-entropy 1 + DKD 1 (alpha 1, beta 8, temperature 4): Zhao et al., CVPR 2022, arXiv 2203.08679, as in their code's
default for CIFAR-100, which takes a beta of 1 to 8 for other pairs, less for teachers that are less sure
(``--arg dkd.beta=2``).
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage; none where predictions are not imitated class against class, or have no labels."""
    if recipe.supervised is None or recipe.imitation is None or recipe.imitation.loss != "kd":
        return []
    return [recipe.supervised, LossTerm(loss="dkd", student=recipe.student, teacher=recipe.teacher)]


METHOD = Method(
    summary="the label against the rest, and the other classes, each by itself", main=main,
    source="arXiv 2203.08679, CVPR 2022",
)  # fmt: skip

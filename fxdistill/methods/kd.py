"""Knowledge distillation of the predictions, beside the task's own loss.

Cross-entropy 0.1 + KD 0.9 at temperature 4: the weights of the common CIFAR-100 comparisons (Tian et al., "Contrastive
Representation Distillation", ICLR 2020, arXiv 1910.10699). A task without a loss of its own has KD alone.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.schema import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage."""
    own = [recipe.supervised.changed(weight=0.1)] if recipe.supervised is not None else []
    kd = LossTerm(
        loss="kd", student=recipe.student, teacher=recipe.teacher, weight=0.9 if own else 1.0, args={"temperature": 4.0}
    )  # fmt: skip
    return [*own, kd]


METHOD = Method(summary="the teacher's softened predictions", main=main)

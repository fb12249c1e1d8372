"""Knowledge distillation of the predictions, beside the task's own loss.

Cross-entropy 0.1 + KD 0.9 at temperature 4: the weights of the common CIFAR-100 comparisons (Tian et al., "Contrastive
Representation Distillation", ICLR 2020, arXiv 1910.10699). A task says by which loss its predictions imitate others
(a regression: by the squared error); one without a loss of its own has the imitation alone.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage; none for a task in which predictions are not imitated."""
    if recipe.imitation is None:
        return []
    if recipe.supervised is None:
        return [recipe.imitation]
    return [recipe.supervised.changed(weight=0.1), recipe.imitation.changed(weight=0.9)]


METHOD = Method(summary="the teacher's softened predictions", main=main, source="arXiv 1503.02531")

"""Knowledge distillation of the predictions with standardised logits, beside the task's own loss.

Cross-entropy 0.1 + 9 times KD at temperature 2: Sun et al., CVPR 2024, arXiv 2403.01427, who raise the weight tenfold
over plain distillation, because standardised logits are closer to each other. A task without a loss of its own has
the imitation alone.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage; none for a task in which no class is imitated against the others."""
    if recipe.imitation is None or recipe.imitation.loss != "kd":
        return []
    imitation = LossTerm(loss="kd-standardized", student=recipe.student, teacher=recipe.teacher)
    if recipe.supervised is None:
        return [imitation]
    return [recipe.supervised.changed(weight=0.1), imitation.changed(weight=9.0)]


METHOD = Method(
    summary="the teacher's softened predictions, logits standardised", main=main, source="arXiv 2403.01427, CVPR 2024"
)

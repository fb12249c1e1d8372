"""Predictions that correlate with the teacher's, within images and within classes, beside the task's own loss.

Cross-entropy 1, 2 times each relation, temperature 1: Huang et al., NeurIPS 2022, arXiv 2205.10536 (for CIFAR-100 they
take temperature 4: ``--arg dist.temperature=4``). A task without a loss of its own has the relations alone.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage; none for a task in which no class is imitated against the others."""
    if recipe.imitation is None or recipe.imitation.loss != "kd":
        return []
    relations = LossTerm(loss="dist", student=recipe.student, teacher=recipe.teacher)
    return [relations] if recipe.supervised is None else [recipe.supervised, relations.changed(weight=2.0)]


METHOD = Method(
    summary="predictions correlate, within images and within classes", main=main,
    source="arXiv 2205.10536, NeurIPS 2022",
)  # fmt: skip

"""The task's own loss alone, after a warm-up: for a teacher whose predictions are none for the task (other classes).

Of the teacher the student then learns the layers: ``indistill+supervised``.
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.training import LossTerm


def main(recipe: Recipe) -> list[LossTerm]:
    """The task's own term; none for a task, or data, without one."""
    return [recipe.supervised] if recipe.supervised is not None else []


METHOD = Method(summary="the task's own loss alone", main=main)

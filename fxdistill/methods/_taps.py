"""Terms that compare taps, beside the task's own loss where there is one."""

import math
from dataclasses import replace

from fxdistill.methods import Recipe
from fxdistill.plan.schema import Pair, Tap
from fxdistill.plan.training import LossTerm


def at_every(recipe: Recipe, loss: str, *, weight: float = 1.0) -> list[LossTerm]:
    """The task's own term, and a loss at every pair."""
    return [*_own(recipe), *(_term(pair, loss, weight) for pair in recipe.pairs)]


def at_maps(recipe: Recipe, loss: str, *, weight: float) -> list[LossTerm]:
    """The same where both sides of a pair have more than one position; none at all where no pair has."""
    maps = [pair for pair in recipe.pairs if min(_positions(pair.student), _positions(pair.teacher)) > 1]
    return at_every(replace(recipe, pairs=maps), loss, weight=weight) if maps else []


def at_deepest(recipe: Recipe, loss: str, *, weight: float) -> list[LossTerm]:
    """The task's own term, and a loss of how images lie to each other; its weight is 1 where it stands alone.

    It compares the deepest pair, or, where predictions are embeddings, these.
    """
    own = _own(recipe)
    weight = weight if own else 1.0
    if recipe.embeds:
        return [*own, LossTerm(loss=loss, student=recipe.student, teacher=recipe.teacher, weight=weight)]
    return [*own, _term(recipe.pairs[-1], loss, weight)]


def _own(recipe: Recipe) -> list[LossTerm]:
    return [recipe.supervised] if recipe.supervised is not None else []


def _term(pair: Pair, loss: str, weight: float) -> LossTerm:
    return LossTerm(
        loss=loss, pair=pair.name, student=pair.student.member, teacher=pair.teacher.member, weight=weight
    )  # fmt: skip


def _positions(tap: Tap) -> int:
    return math.prod(tap.shape[1:]) // tap.width - tap.prefix

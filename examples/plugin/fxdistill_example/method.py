"""A method: the student's layers learn the teacher's all at once, by ``vid-linear``, before plain distillation.

One warm-up stage over all pairs; the main stage is that of ``kd``, or of the method named behind it (``example+kd``).
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.training import LossTerm, Optimizer, Stage

_EPOCHS = 3


def warm_up(recipe: Recipe) -> list[Stage]:
    """One stage over all pairs."""
    terms = [
        LossTerm(loss="vid-linear", pair=pair.name, student=pair.student.member, teacher=pair.teacher.member)
        for pair in recipe.pairs
    ]
    return [Stage(name="vid", epochs=_EPOCHS, losses=terms, optimizer=Optimizer(name="adam", lr=recipe.lr))]


METHOD = Method(
    summary="variational information distillation at every pair, then another method (kd)", warm_up=warm_up,
    needs_pairs=True, criterion="spread",
)  # fmt: skip

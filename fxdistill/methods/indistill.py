"""InDistill: the student's intermediate layers learn the teacher's pruned ones first, one by one, from shallow to deep.

Sarridis et al., "InDistill: Information flow-preserving knowledge distillation for model compression", WACV 2025,
arXiv 2205.10003. Each of the pairs 1, 2, 3 … is a warm-up stage of its own, 2 + l epochs of MSE for pair l, earlier
losses dropped, nothing frozen. What is compared are standardized taps: raw ones spend the loss on the few channels with
the largest activations. The paper keeps the channels with the largest filters, which may all say the same; where there
are images to look at, those are kept that say different things (:mod:`fxdistill.criteria.interpolative`). The main
stage that follows is any distillation method's:

    indistill          the warm-up, then kd
    indistill+METHOD   the warm-up, then that method
"""

from fxdistill.methods import Method, Recipe
from fxdistill.plan.training import Comparison, LossTerm, Optimizer, Stage

_FIRST_WARM_UP = 3


def warm_up(recipe: Recipe) -> list[Stage]:
    """One stage a pair, at a constant learning rate."""
    return stages(recipe, "standardized", Optimizer(name="adam", lr=recipe.lr))


def stages(recipe: Recipe, compare: Comparison, optimizer: Optimizer) -> list[Stage]:
    """One stage a pair: 2 + l epochs of MSE for pair l."""
    return [
        Stage(
            name=f"warm-up-{order + 1}", epochs=_FIRST_WARM_UP + order, optimizer=optimizer,
            losses=[
                LossTerm(
                    loss="mse", pair=pair.name, compare=compare, student=pair.student.member,
                    teacher=pair.teacher.member,
                )
            ],
        )
        for order, pair in enumerate(recipe.pairs)
    ]  # fmt: skip


METHOD = Method(
    summary="warm-up layer by layer, then another method (kd)", source="arXiv 2205.10003, WACV 2025", warm_up=warm_up,
    needs_pairs=True, on_data="interpolative",
)  # fmt: skip

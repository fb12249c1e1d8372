"""InDistill's warm-up as its authors' released code runs it.

The released code (of arXiv 2205.10003) differs from the method's text in three ways, all kept here: the pruned layers
of the teacher run in training mode, so that they normalise by the statistics of the batch; their BatchNorm has no
offset; Adam starts afresh with every epoch. Its experiment is for retrieval, and trains on at a tenth of the rate:

    indistill-released+pkt --task retrieval --epochs 58 --set main.optimizer.restart=true
        --set main.schedule=step --set main.optimizer.decay_every=48
"""

from fxdistill.methods import Method, Recipe
from fxdistill.methods.indistill import stages
from fxdistill.plan.training import Optimizer, Stage


def warm_up(recipe: Recipe) -> list[Stage]:
    """One stage a pair; its teacher needs a BatchNorm right before the tap."""
    return stages(recipe, "released", Optimizer(name="adam", lr=recipe.lr, restart=True))


METHOD = Method(
    summary="InDistill's warm-up as its released code runs it", source="arXiv 2205.10003, WACV 2025", warm_up=warm_up,
    needs_pairs=True, default_main="pkt", lr=1e-3,
)  # fmt: skip

"""First order of what the loss loses, of all members of a group. Molchanov et al. 2019, https://arxiv.org/abs/1906.10771."""

from torch import Tensor
from torch_pruning.pruner import importance

from fxdistill.criteria import Criterion
from fxdistill.criteria.tp._groups import measured
from fxdistill.ir.channels import Channels


def taylor(channels: Channels) -> Tensor:
    """On a batch, or with the gradients that lie in ``.grad``."""
    return measured(channels, importance.TaylorImportance(), gradients=channels.gradients("tp.taylor"))


CRITERION = Criterion(
    score=taylor, summary="Torch-Pruning: first order of what the loss loses, group-wise", needs_batch=True
)

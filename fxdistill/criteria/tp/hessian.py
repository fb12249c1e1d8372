"""Second order of what the loss loses: Σ w² h, h the mean over the batch of each image's squared gradients.

LeCun et al. 1989, https://proceedings.neurips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html.
The mean is taken here: ``accumulate_grad`` of Torch-Pruning 1.6 keeps the last image only.
"""

from torch import Tensor
from torch_pruning.pruner import importance

from fxdistill.criteria import Criterion
from fxdistill.criteria.tp._groups import measured
from fxdistill.ir.channels import Channels


def hessian(channels: Channels) -> Tensor:
    """On a batch."""
    squares = channels.squared_gradients("tp.hessian")
    # only ratios inside of a group count, and squares of small gradients would vanish in the measure's float32
    largest = max((float(square.max()) for square in squares.values()), default=0.0) or 1.0
    scaled = {name: square / largest for name, square in squares.items()}
    return measured(channels, importance.HessianImportance(), gradients=scaled)


CRITERION = Criterion(
    score=hessian, summary="Torch-Pruning: second order of what the loss loses, group-wise", needs_batch=True
)

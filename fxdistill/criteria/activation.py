"""Mean magnitude of what a channel hands to layers that weigh it: Σ E |x|, over images and positions.

Hu et al. 2016, https://arxiv.org/abs/1607.03250, count zeros instead of magnitudes.
"""

from torch import Tensor

from fxdistill.criteria import Criterion
from fxdistill.criteria._handed import handed_on
from fxdistill.ir.channels import Channels


def activation(channels: Channels) -> Tensor:
    """On a batch."""
    scores, sums, counts = channels.zeros(), dict[str, Tensor](), dict[str, int]()
    of = dict[str, Tensor]()

    def look(path: str, value: Tensor, classes: Tensor) -> None:
        sums[path] = sums.get(path, 0) + value.abs().double().sum(1).cpu()
        counts[path], of[path] = counts.get(path, 0) + value.shape[1], classes

    handed_on(channels, "activation", look)
    for path, total in sums.items():
        scores.index_add_(0, of[path], total / counts[path])
    return scores


CRITERION = Criterion(score=activation, summary="magnitude of what a channel hands on", needs_batch=True)

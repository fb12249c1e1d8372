"""Optimal brain damage by the Fisher diagonal: Σ w² F, F the mean over the batch of each image's squared gradients.

Of the producing weights alone. Wang et al. 2019, https://arxiv.org/abs/1905.05934. Torch-Pruning collects F with hooks
on ``nn.Linear`` and ``nn.Conv2d``, and cannot multiply it where a layer has a bias. Here F comes from the gradients
themselves, for every kind of weight, with the labels of the batch.
"""

from torch import Tensor
from torch_pruning.pruner import importance

from fxdistill.criteria import Criterion
from fxdistill.criteria.tp._groups import Item, measured
from fxdistill.ir.channels import Channels


def obdc(channels: Channels) -> Tensor:
    """On a batch."""
    squares = channels.squared_gradients("tp.obdc")
    measure = importance.OBDCImportance(num_classes=-1)  # it leaves layers of that many outputs out
    measure.steps = 1

    def prepare(items: list[Item]) -> None:
        measure.Fisher = {item.side.layer: _fisher(item) for item in sorted(items, key=lambda item: item.side.outputs)}

    return measured(channels, measure, gradients=squares, prepare=prepare)


def _fisher(item: Item) -> Tensor:
    """F of a layer; of its outputs only those of the group, as the measure expects it."""
    fisher: Tensor = item.side.layer.weight.grad.flatten(1)  # type: ignore[union-attr,operator]
    return fisher[item.indices] if item.side.outputs else fisher


CRITERION = Criterion(
    score=obdc, summary="Torch-Pruning: optimal brain damage by the Fisher diagonal", needs_batch=True
)

"""What a masked model costs once it is cut: parameters and multiply-accumulates as functions of the mask, exactly.

Of a weight what is left are the products of what is left along its dimensions, and a layer's multiply-accumulates
shrink as its weight does:

    alive(dim)  =  fixed + the sum of the mask over the maskable channels along it
    parameters  =  sum over tensors  size * alive / width * alive' / width'
    MACs        =  sum over layers   MACs in full * the same share of its weight
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxdistill.ir.coupling import Coupling, core, varying
from fxdistill.ir.graph import Traced, macs_of
from fxdistill.passes.mask.maskable import Maskable, weights_of


@dataclass(frozen=True, eq=False)
class Cost:
    """The cost of a model under masks of its K maskable channels; everything in float64, where integers are exact.

    Attributes:
        counts: (D, K): how often each channel occurs along each dimension.
        fixed: (D,): how many channels along it cannot be masked.
        rows: (T, 2): for each tensor the two dimensions that shrink; the last one stands for none, and is always 1.
        parameters: (T,): the entries of the tensor for one index of each of these dimensions.
        macs: (T,): the multiply-accumulates, likewise.
        base: Those of what has no tensor.
    """

    counts: Tensor
    fixed: Tensor
    rows: Tensor
    parameters: Tensor
    macs: Tensor
    base: int

    def of(self, mask: Tensor) -> tuple[int, int]:
        """Parameters and multiply-accumulates where channels are kept as a mask (K,) says."""
        parameters, macs = self._of(self.fixed + self.counts @ mask.double().cpu())
        return int(parameters), int(macs)

    def of_first(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """The same for masks that keep the first one, the first two … of an order of the channels: (K,) each."""
        return self._of(self.fixed[:, None] + self.counts[:, order.cpu()].cumsum(1))

    def _of(self, alive: Tensor) -> tuple[Tensor, Tensor]:
        product = alive[self.rows[:, 0]] * alive[self.rows[:, 1]]
        shape = (-1, *(1,) * (alive.dim() - 1))
        macs = (product * self.macs.view(shape)).sum(0) + self.base
        return (product * self.parameters.view(shape)).sum(0).round(), macs.round()


def cost_of(traced: Traced, coupling: Coupling, found: Maskable) -> Cost:
    """The cost of a model under its masks.

    Args:
        traced: The model in eval mode.
        coupling: Its coupled channels.
        found: What of it can be masked.
    """
    place = torch.full((coupling.class_count + 1,), -1)
    place[list(found.classes)] = torch.arange(len(found.classes))
    dims: dict[tuple[int, ...], int] = {}
    names: dict[str, tuple[list[int], int]] = {}
    first: dict[int, str] = {}
    for name, tensor in traced.module.named_parameters(remove_duplicate=False):
        labels = coupling.parameter_labels(first.setdefault(id(tensor), name))
        shrink = [
            tuple(place[_along(labels[dim], dim)].tolist()) for dim in labels if varying(labels[dim]) in ((dim,), ())
        ]
        shrink = [one for one in shrink if max(one) >= 0][:2]
        rest = tensor.numel()
        for one in shrink:
            rest //= len(one)
        names[name] = [dims.setdefault(one, len(dims)) for one in shrink], rest
    macs, base = _macs(traced, names, dict(traced.module.named_parameters(remove_duplicate=False)))
    nothing, size = len(dims), len(found.classes)
    counts, fixed = torch.zeros(nothing + 1, size, dtype=torch.float64), torch.ones(nothing + 1, dtype=torch.float64)
    for along, row in dims.items():
        index = torch.tensor(along)
        counts[row].index_add_(0, index[index >= 0], torch.ones(int((index >= 0).sum()), dtype=torch.float64))
        fixed[row] = float((index < 0).sum())
    own = [name for name in names if first[id(traced.module.get_parameter(name))] == name]
    rows = torch.tensor([(names[name][0] + [nothing] * 2)[:2] for name in names])
    parameters = torch.tensor([float(names[name][1]) if name in own else 0.0 for name in names], dtype=torch.float64)
    per = torch.tensor([macs.get(name, 0.0) for name in names], dtype=torch.float64)
    return Cost(counts, fixed, rows, parameters, per, base)


def _along(labels: Tensor, dim: int) -> Tensor:
    """The class of each index of a dimension."""
    small = core(labels).movedim(dim, 0)
    return small.reshape(small.shape[0], -1)[:, 0].expand(labels.shape[dim])


def _macs(
    traced: Traced, names: dict[str, tuple[list[int], int]], tensors: dict[str, Tensor]
) -> tuple[dict[str, float], int]:
    """For each weight its layers' multiply-accumulates for one index of what shrinks; and those of the rest."""
    found: dict[str, float] = {}
    base = 0
    for node in traced.graph.nodes:
        weight = _weight(node, traced, tensors)
        if weight is None:
            base += macs_of(node)
        else:
            found[weight] = found.get(weight, 0.0) + macs_of(node) * names[weight][1] / tensors[weight].numel()
    return found, base


def _weight(node: fx.Node, traced: Traced, tensors: dict[str, Tensor]) -> str | None:
    if not macs_of(node):
        return None
    return max(weights_of(node, traced), key=lambda name: tensors[name].numel(), default=None)

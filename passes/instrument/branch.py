"""The teacher's side branch as InDistill's released code runs it: pruned, in training mode.

There a pruned layer is fed the unpruned teacher's activation, and its BatchNorm has the teacher's gamma, no beta, and
the statistics of the batch. What follows it up to the tap acts per channel, so that the branch over all channels, of
which the tap's are then kept, is the same:

    tap = g(gamma (x - mean) / std + beta)   →   g(gamma (x - batch mean) / batch std)

An addition in between keeps its other side as it is: the shortcut. A bias in front of the BatchNorm makes no odds.
"""

from torch import fx, nn

from fxdistill.errors import PairingError
from fxdistill.ir.adapters import batch_normalized
from fxdistill.ir.graph import op_name, submodule
from fxdistill.ir.operators import is_a
from fxdistill.ir.program import tap, tap_copy
from fxdistill.operators import Trait
from fxdistill.passes.instrument.layouts import call

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_PER_CHANNEL = (Trait.POINTWISE, Trait.POOLING, Trait.ELEMENTWISE)


def by_batch_statistics(graph: fx.Graph, root: nn.Module, value: fx.Node, *, where: str) -> fx.Node:
    """A frozen member's tap, computed again from the input of the last BatchNorm before it.

    Raises:
        PairingError: There is none, or something else than activations, poolings and additions follows it.
    """
    way = _way(root, value)
    if way is None:
        raise PairingError(
            "no BatchNorm stands right before the teacher's tap, so that there is none to normalise by the batch",
            where=where, hint="compare the taps 'standardized' or 'raw'",
        )  # fmt: skip
    new, following = dict[fx.Node, fx.Node](), value.next  # all that is new stands between the two, in order
    with graph.inserting_before(following):
        for node in way:
            norm = submodule(root, node)
            if isinstance(norm, _NORMS):
                weight = None
                if norm.weight is not None:
                    weight = graph.get_attr(f"{node.target}.weight")
                    weight.meta = {"role": "adapter"}
                new[node] = call(graph, "adapter", batch_normalized, node.all_input_nodes[0], weight, norm.eps)
            else:
                new[node] = graph.node_copy(node, lambda other: new.get(other, other))
            new[node].meta = {"role": "adapter", "frozen": True, "shape": node.meta["shape"]}
    return new[value]


def _way(root: nn.Module, node: fx.Node) -> list[fx.Node] | None:
    """The nodes from the last BatchNorm to a value, in order; None where there is none."""
    if isinstance(submodule(root, node), _NORMS):
        return [node]
    name = op_name(node, root)
    if node.target not in (tap, tap_copy) and not any(is_a(name, trait) for trait in _PER_CHANNEL):
        return None
    found = [way for before in node.all_input_nodes if (way := _way(root, before)) is not None]
    return [*min(found, key=len), node] if found else None

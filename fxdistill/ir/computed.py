"""Computed weights: what a layer multiplies with where that is no parameter, but made of some.

W = g * v / |v|        a weight norm;  likewise a mask over a weight, a standardised one, a gain
"""

from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.nn.utils.weight_norm import WeightNorm

from fxdistill.ir.coupling import Coupling, varying
from fxdistill.ir.graph import Traced, path_of
from fxdistill.ir.running import buffers_kept, seeded

_PARAMETRIZED = ".parametrizations."


def computed_weights(traced: Traced, coupling: Coupling) -> dict[tuple[str, int], Tensor]:
    """What layers multiply with instead of parameters, by the parameter and the dimension of its outputs.

    Args:
        traced: The model.
        coupling: Its coupled channels: what parameters do, and which channels a computed weight has.

    Returns:
        The weights with their outputs along dimension 0; of parameters that a layer takes as they are there is none.
    """
    ends = _ends(traced.graph)
    values = _values(traced, ends)
    found: dict[tuple[str, int], Tensor] = {}
    for (name, dim), classes in coupling.outputs.items():
        weight = _of_layer(traced.module, name)
        if weight is not None:
            found[name, dim] = weight.movedim(dim, 0)
            continue
        for node in (end for end, names in ends.items() if name in names):
            for layer in coupling.layers(path_of(node)):
                dims = varying(layer)
                if len(dims) == 1 and torch.equal(layer.movedim(dims[0], 0).flatten(1)[:, 0], classes):
                    found.setdefault((name, dim), values[node].movedim(dims[0], 0))
    return found


def bound(traced: Traced, coupling: Coupling) -> frozenset[int]:
    """The classes of outputs of computed weights that are others where other outputs are: of a spectral norm, say.

    Every second output is doubled in the parameters; what a weight is for the others must stay.
    """
    before = computed_weights(traced, coupling)
    parameters = dict(traced.module.named_parameters(remove_duplicate=False))
    changed = {
        key: classes % 2 == 1 for key, classes in coupling.outputs.items() if key in before and key[0] in parameters
    }
    with torch.no_grad():
        kept = {name: parameters[name].clone() for name, _ in changed}
        for (name, dim), odd in changed.items():
            parameters[name].movedim(dim, 0)[odd] *= 2
        try:
            after = computed_weights(traced, coupling)
        finally:
            for name, value in kept.items():
                parameters[name].copy_(value)
    return frozenset(
        class_id for key, odd in changed.items() if not torch.equal(before[key][~odd], after[key][~odd])
        for class_id in coupling.outputs[key].tolist()
    )  # fmt: skip


def _of_layer(root: nn.Module, name: str) -> Tensor | None:
    """The weight that a layer computes of a parameter itself, by a parametrization or a hook of torch's."""
    owner, inside, rest = name.partition(_PARAMETRIZED)
    if not inside:
        owner, _, leaf = name.rpartition(".")
        return _of_hook(root.get_submodule(owner), leaf)
    weight = getattr(root.get_submodule(owner), rest.partition(".")[0], None)  # what was exported has no such layer
    if not isinstance(weight, Tensor) or weight.shape != attrgetter(name)(root).shape:
        return None
    return weight.detach()


def _of_hook(layer: nn.Module, leaf: str) -> Tensor | None:
    for hook in layer._forward_pre_hooks.values():  # noqa: SLF001  # there is no other way to ask
        if isinstance(hook, prune.BasePruningMethod) and leaf == f"{hook._tensor_name}_orig":  # noqa: SLF001
            masked: Tensor = hook.apply_mask(layer)
            return masked.detach()
        if isinstance(hook, WeightNorm) and leaf == f"{hook.name}_v":
            normed: Tensor = hook.compute_weight(layer)
            return normed.detach()
    return None


def _ends(graph: fx.Graph) -> dict[fx.Node, frozenset[str]]:
    """The values that are computed from tensors of the model alone and meet others, and the names of those tensors.

    What is met by others as it is, too, is no part of a computed weight.
    """
    names: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            names[node] = frozenset((str(node.target),))
        elif node.op.startswith("call") and node.all_input_nodes and all(n in names for n in node.all_input_nodes):
            names[node] = frozenset[str]().union(*(names[source] for source in node.all_input_nodes))
    ends = [node for node in names if any(user not in names for user in node.users)]
    plain = {str(node.target) for node in ends if node.op == "get_attr"}
    return {node: names[node] - plain for node in ends if node.op != "get_attr" and names[node] - plain}


def _values(traced: Traced, ends: Iterable[fx.Node]) -> dict[fx.Node, Tensor]:
    """The values of nodes that need no images."""
    needed, waiting = set[fx.Node](), list(ends)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    if not needed:
        return {}
    runner = fx.Interpreter(traced.module, garbage_collect_values=False)
    device = next(traced.module.parameters()).device
    with torch.no_grad(), traced.running(), buffers_kept(traced.module), seeded(device):
        for node in (node for node in traced.graph.nodes if node in needed):
            runner.env[node] = runner.run_node(node)
    return runner.env

"""Restore: layers whose mode ``torch.export`` froze into a graph become modules again, over the same tensors.

    aten.batch_norm(x, P.weight, P.bias, P.running_mean, P.running_var, False, …)   →   P(x), P = BatchNorm
    aten.dropout(x, p, False)                                                        →   P(x), P = Dropout(p)

So statistics move and dropout drops in training, as they do in the model. Where the model itself is at hand its own
layers are taken. What cannot be restored (statistics that are computed, a normalisation without any) stays a call in
the mode that it was traced in.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

_FUNCTIONS = {"batch_norm", "dropout", "feature_dropout"}
_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_DROPOUTS: dict[str, type[nn.Module]] = {"dropout": nn.Dropout, "feature_dropout": nn.Dropout2d}
_STATES = ("weight", "bias", "running_mean", "running_var")


def restore(root: nn.Module, graph: fx.Graph, model: nn.Module | None = None) -> list[str]:
    """Put the layers back, in place.

    Args:
        root: The owner of the graph's tensors and modules.
        graph: A graph of ``torch.export``.
        model: The model that was exported, whose layers are taken where they are plain ones.

    Returns:
        The names of the calls whose mode stays frozen.
    """
    stuck = []
    for node in list(graph.nodes):
        kind = _kind(node)
        if kind is None:
            continue
        place = _norm(root, node, model) if kind == "batch_norm" else _dropout(root, node, model, _DROPOUTS[kind])
        if place is None:
            stuck.append(node.name)
            continue
        with graph.inserting_before(node):
            call = graph.create_node("call_module", place, (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if _counts(node) or (node.op == "get_attr" and not node.users):
            graph.erase_node(node)
    return stuck


def _kind(node: fx.Node) -> str | None:
    name = str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")
    return name if node.op == "call_function" and name in _FUNCTIONS else None


def _counts(node: fx.Node) -> bool:
    """Whether a node counts the batches of a normalisation, which the module does itself."""
    counter = str(getattr(node.args[0], "target", "")) if node.args else ""
    return str(node.target) == "aten.add_.Tensor" and not node.users and counter.endswith("num_batches_tracked")


def _norm(root: nn.Module, node: fx.Node, model: nn.Module | None) -> str | None:
    """The place of the normalisation's module; None where its states are not those of one."""
    x, *states = node.args[:5]
    training, momentum, eps = node.args[5:8]
    named = {name: state for name, state in zip(_STATES, states, strict=True) if isinstance(state, fx.Node)}
    if any(state.op != "get_attr" for state in named.values()):
        return None
    places = {str(state.target).rpartition(".")[::2] for state in named.values()}
    if not {"running_mean", "running_var"} <= named.keys() or {leaf for _, leaf in places} != named.keys():
        return None
    (place, *others), kinds = {scope for scope, _ in places}, tuple(_NORMS.values())
    if others or not place or not isinstance(x, fx.Node):
        return None
    old = root.get_submodule(place)
    if isinstance(old, kinds):
        return place
    own = _own(model, place, kinds)
    if own is None:
        value = x.meta.get("val")
        kind: Any = _NORMS[value.ndim if isinstance(value, Tensor) else 4]
        width = old.get_buffer("running_mean").numel()
        own = kind(width, eps=eps, momentum=momentum, affine="weight" in named).train(bool(training))
        for name, parameter in old.named_parameters(recurse=False):
            own.register_parameter(name, parameter)
        for name, buffer in old.named_buffers(recurse=False):
            own.register_buffer(name, buffer)
    _put(root, place, own)
    return place


def _dropout(root: nn.Module, node: fx.Node, model: nn.Module | None, kind: Callable[..., nn.Module]) -> str:
    probability = node.args[1]
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    place = str(stack[-1][0]) if stack else ""
    if not place or "Dropout" not in str(stack[-1][1]) or any(name == place for name, _ in root.named_modules()):
        place = node.name
    _put(root, place, _own(model, place, (nn.Dropout, nn.Dropout2d)) or kind(probability))
    return place


def _put(root: nn.Module, place: str, module: nn.Module) -> None:
    """Set a module, with what has to lie around it."""
    scope, _, leaf = place.rpartition(".")
    for part in scope.split(".") if scope else ():
        if part not in root._modules:  # noqa: SLF001
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(leaf, module)


def _own(model: nn.Module | None, place: str, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
    """The model's own layer of that place, if it is exactly one of some kinds with nothing hung on it."""
    try:
        found = None if model is None else model.get_submodule(place)
    except AttributeError:
        return None
    if found is None or found._forward_hooks or found._forward_pre_hooks or "forward" in vars(found):  # noqa: SLF001
        return None
    return found if type(found) in kinds else None

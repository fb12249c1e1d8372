"""Restore: layers whose mode ``torch.export`` froze into a graph become modules again, over the same tensors.

    aten.batch_norm(x, P.weight, P.bias, P.running_mean, P.running_var, False, …)   →   P(x), P = BatchNorm
    aten.dropout(x, p, False)                                                        →   P(x), P = Dropout(p)

So statistics move and dropout drops in training, as they do in the model. Where the model itself is at hand its own
layers are taken. What cannot be restored (statistics that are computed) stays a call in the mode that it was traced
in; what is in the other mode than the model (dropout that always drops, a normalisation without statistics) was asked
to be, and stays as well.
"""

from typing import Any

from torch import Tensor, fx, nn

from fxdistill.ir.graph import attach
from fxdistill.ir.operators import bare_name

_NORMS: dict[str, dict[int, type[nn.Module]]] = {
    "batch_norm": {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d},
    "instance_norm": {2: nn.InstanceNorm1d, 3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d},
}
_DROPOUTS: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout, "feature_dropout": nn.Dropout2d, "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout, "rrelu": nn.RReLU,
}  # fmt: skip
_RANDOM: tuple[type[nn.Module], ...] = (*_DROPOUTS.values(), nn.Dropout1d, nn.Dropout3d)
_FLAGS = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "feature_alpha_dropout": 2, "rrelu": 3,
          "batch_norm": 5, "instance_norm": 5}  # fmt: skip
_ON_BY_DEFAULT = frozenset(("dropout", "feature_dropout", "instance_norm"))
_STATES = ("weight", "bias", "running_mean", "running_var")


def restore(
    root: nn.Module, graph: fx.Graph, model: nn.Module | None = None, *, training: bool | None = None
) -> list[str]:
    """Put the layers back, in place.

    Args:
        root: The owner of the graph's tensors and modules.
        graph: A graph of ``torch.export``.
        model: The model that was exported, whose layers are taken where they are plain ones.
        training: The mode that it was exported in; None for that of the calls, where they agree, else eval mode.

    Returns:
        The names of the calls whose mode stays frozen.
    """
    if training is None:
        flags = [trains(node, kind) for node in graph.nodes if (kind := kind_of(node)) is not None]
        training = bool(flags) and all(flags)
    stuck = []
    for node in list(graph.nodes):
        kind = kind_of(node)
        if kind is None or trains(node, kind) != training:
            continue
        place = _norm(root, node, model, _NORMS[kind]) if kind in _NORMS else _random(root, node, model, kind)
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


def kind_of(node: fx.Node) -> str | None:
    """The operation of a call whose result depends on the mode, None for any other node."""
    name = bare_name(node.target) if node.op == "call_function" else ""
    name = "feature_dropout" if name in ("dropout1d", "dropout2d", "dropout3d") else name
    return name if name in _FLAGS else None


def trains(node: fx.Node, kind: str) -> bool:
    """Whether such a call says that it is in training mode."""
    position = _FLAGS[kind]
    if len(node.args) > position:
        return bool(node.args[position])
    named = (node.kwargs[name] for name in ("training", "train", "use_input_stats") if name in node.kwargs)
    return bool(next(named, kind in _ON_BY_DEFAULT))


def switched_off(node: fx.Node) -> str | None:
    """The operation of a call that would do something else in training, and is fixed to what it does in eval mode."""
    kind = kind_of(node)
    if kind is None or trains(node, kind):
        return None
    chance = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5) if "dropout" in kind else 1
    return kind if chance else None


def _counts(node: fx.Node) -> bool:
    """Whether a node counts the batches of a normalisation, which the module does itself."""
    counter = str(getattr(node.args[0], "target", "")) if node.args else ""
    return str(node.target) == "aten.add_.Tensor" and not node.users and counter.endswith("num_batches_tracked")


def _norm(
    root: nn.Module, node: fx.Node, model: nn.Module | None, by_dimension: dict[int, type[nn.Module]]
) -> str | None:
    """The place of the normalisation's module; None where its states are not those of one."""
    x, *states = node.args[:5]
    training, momentum, eps = node.args[5:8]
    named = {name: state for name, state in zip(_STATES, states, strict=True) if isinstance(state, fx.Node)}
    if any(state.op != "get_attr" for state in named.values()):
        return None
    places = {str(state.target).rpartition(".")[::2] for state in named.values()}
    if not {"running_mean", "running_var"} <= named.keys() or {leaf for _, leaf in places} != named.keys():
        return None
    (place, *others), kinds = {scope for scope, _ in places}, tuple(by_dimension.values())
    if others or not place or not isinstance(x, fx.Node):
        return None
    old = root.get_submodule(place)
    if isinstance(old, kinds):
        return place
    own = _own(model, place, kinds)
    if own is None:
        value = x.meta.get("val")
        kind: Any = by_dimension[value.ndim if isinstance(value, Tensor) else 4]
        width = old.get_buffer("running_mean").numel()
        options = {"eps": eps, "momentum": momentum, "affine": "weight" in named, "track_running_stats": True}
        own = kind(width, **options).train(bool(training))
        for name, parameter in old.named_parameters(recurse=False):
            own.register_parameter(name, parameter)
        for name, buffer in old.named_buffers(recurse=False):
            own.register_buffer(name, buffer)
    attach(root, place, own)
    return place


def _random(root: nn.Module, node: fx.Node, model: nn.Module | None, kind: str) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    place = str(stack[-1][0]) if stack else ""
    random = any(layer.__name__ in str(stack[-1][1]) for layer in _RANDOM) if place else False
    if not random or any(name == place for name, _ in root.named_modules()):
        place = f"{node.name}_restored" if hasattr(root, node.name) else node.name
    attach(root, place, _own(model, place, _RANDOM) or _DROPOUTS[kind](*node.args[1 : _FLAGS[kind]]))
    return place


def _own(model: nn.Module | None, place: str, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
    """The model's own layer of that place, if it is exactly one of some kinds with nothing hung on it."""
    try:
        found = None if model is None else model.get_submodule(place)
    except AttributeError:
        return None
    if found is None or found._forward_hooks or found._forward_pre_hooks or "forward" in vars(found):  # noqa: SLF001
        return None
    return found if type(found) in kinds else None

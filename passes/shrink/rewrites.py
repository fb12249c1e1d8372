"""Rewrites: what states a width in a node or a module is corrected to what survives.

Each rule gets a node whose inputs have already their smaller values, and the masks of its result. A rule changes
arguments only where they are wrong: sizes that the graph computes itself (a batch size, ``x.shape[1]``) stay computed
as long as they come out right.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from fxdistill.ir.graph import Shape, op_name, path_of, submodule
from fxdistill.ir.operators import is_a, operator_of
from fxdistill.ir.survivors import Mask, Masks, Survivors
from fxdistill.operators import Trait, rule


class Obstacle(Exception):  # noqa: N818  # not an error of the model: the reason why a part of it has to stay
    """A removal that cannot be carried out at some node.

    Attributes:
        path: The node, or the parameter.
        fused: Whether tracing in smaller operations would help.
    """

    def __init__(self, why: str, *, path: str, fused: bool = False) -> None:
        super().__init__(f"{why} at '{path}'")
        self.why, self.path, self.fused = why, path, fused


class Rewriting(Protocol):
    """What the rules need of the interpreter that runs the shrunken graph."""

    graph: fx.Graph
    root: fx.GraphModule
    env: dict[fx.Node, Any]
    survivors: Survivors
    shapes: dict[str, Shape | None]
    scalars: dict[str, Any]

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""


Rule = Callable[[fx.Node, Rewriting, Masks], None]
_LIBRARIES = ("torch.", "_operator", "operator", "math", "builtins")


def rewrite(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """Correct one node.

    Raises:
        Obstacle: The node hides what would have to be corrected, or picks survivors in a way that has no counterpart.
    """
    if not _touched(node, run, masks):
        return
    name = op_name(node, run.root)
    given = operator_of(name).rewrite
    has_own = callable(given)  # whoever wrote it knows what the operation hides
    if not has_own:
        _refuse_fused(node, name, run)
    module = submodule(run.root, node)
    found = rule(given, _RULES, field="rewrite", name=name)
    if module is not None and not has_own:
        _fit_module(module, run.env[node.args[0]] if isinstance(node.args[0], fx.Node) else None, masks)
    elif found is not None:
        found(node, run, masks)
    else:
        _keep_scalars(node, run)


def _touched(node: fx.Node, run: Rewriting, masks: Masks) -> bool:
    """Whether anything that goes in or comes out gets smaller."""
    if _smaller(masks) or any(_smaller(run.survivors.of(path_of(source))) for source in node.all_input_nodes):
        return True
    if node.op == "call_module":
        prefix = str(node.target)
        owned = (name for name, _ in run.root.get_submodule(prefix).named_parameters(prefix))
        return any(_smaller(run.survivors.of_parameter(name)) for name in owned)
    return any(not isinstance(run.env.get(source), Tensor) for source in node.all_input_nodes)


def _smaller(masks: Masks) -> bool:
    return any(map(_smaller, masks)) if isinstance(masks, list) else masks is not None and not masks.whole


def _refuse_fused(node: fx.Node, name: str, run: Rewriting) -> None:
    """Refuse what computes with smaller weights in a way that the rules do not see."""
    module = submodule(run.root, node)
    if module is not None:
        foreign = not (type(module).__module__ + ".").startswith(_LIBRARIES) and not _familiar(module)
        weighs = any(True for _ in module.parameters()) or any(True for _ in module.children())
    else:
        foreign = not (_owner(node) + ".").startswith(_LIBRARIES)
        tensors = [source for source in node.all_input_nodes if isinstance(run.env[source], Tensor)]
        weighs = len(tensors) > 1 and any(source.op == "get_attr" for source in tensors)
    if is_a(name, Trait.FUSED) or (foreign and weighs):
        raise Obstacle("it computes several operations in one", path=path_of(node), fused=True)


def _familiar(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm | nn.Linear | nn.GroupNorm)


def _owner(node: fx.Node) -> str:
    if node.op != "call_function":
        return "torch"
    return str(getattr(node.target, "__module__", None) or "torch")


def _fit_module(module: nn.Module, x: Any, masks: Masks) -> None:
    """Correct the attributes of a module whose parameters are already smaller."""
    width = x.shape[1] if isinstance(x, Tensor) and x.dim() > 1 else 0
    if isinstance(module, nn.modules.conv._ConvTransposeNd):  # noqa: SLF001  # the public base of all of them
        depthwise = module.groups == module.in_channels
        module.in_channels = module.weight.shape[0]
        module.groups = module.in_channels if depthwise else module.groups
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001
        module.in_channels, module.out_channels = width, module.weight.shape[0]
        module.groups = width // module.weight.shape[1]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):  # noqa: SLF001
        module.num_features = width
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(x.shape[x.dim() - len(module.normalized_shape) :])
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = width
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.Unflatten) and isinstance(masks, Mask) and masks.sizes is not None:
        dim = int(module.dim) % x.dim()
        count = len(tuple(module.unflattened_size))
        module.unflattened_size = tuple(masks.sizes[dim : dim + count])


def _keep_scalars(node: fx.Node, run: Rewriting) -> None:
    """Numbers computed from widths and used as numbers (the scale of an attention) keep the full model's value."""

    def kept(source: fx.Node) -> Any:
        value, full = run.env.get(source), run.scalars.get(path_of(source))
        is_number = isinstance(value, int | float) and isinstance(full, int | float)
        return full if is_number and value != full else source

    if node.op != "output" and any(isinstance(run.env.get(s), Tensor) for s in node.all_input_nodes):
        node.args = fx.map_arg(node.args, kept)
        node.kwargs = fx.map_arg(node.kwargs, kept)


def _argument(node: fx.Node, position: int, *names: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def _set_argument(node: fx.Node, position: int, value: Any, *names: str) -> None:
    if len(node.args) > position:
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        key = next((name for name in names if name in node.kwargs), names[0])
        node.kwargs = {**node.kwargs, key: value}


def _sizes(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """view, reshape, expand: the sizes of the result."""
    expected = masks.sizes if isinstance(masks, Mask) else run.shapes.get(path_of(node))
    if expected is None:
        return
    key = next((k for k in ("shape", "size") if k in node.kwargs), None)
    packed = len(node.args) == 2 and not _is_number(node.args[1], run)
    given = node.kwargs[key] if key else node.args[1] if packed else node.args[1:]
    if isinstance(given, torch.dtype):
        return
    entries = _entries(given, node, run, expected)
    if entries is None:
        return
    if key:
        node.kwargs = {**node.kwargs, key: entries}
    else:
        node.args = (node.args[0], entries) if packed else (node.args[0], *entries)


def _is_number(value: Any, run: Rewriting) -> bool:
    return isinstance(run.env.get(value) if isinstance(value, fx.Node) else value, int)


def _entries(given: Any, node: fx.Node, run: Rewriting, expected: Shape) -> tuple[Any, ...] | None:
    """The sizes with wrong entries replaced; None where all are right."""
    whole = given if isinstance(given, fx.Node) else None
    values = run.env[whole] if whole is not None else given
    found = [run.env[v] if isinstance(v, fx.Node) else v for v in values]
    right = [one in (-1, other) for one, other in zip(found, expected, strict=True)]
    if all(right):
        return None
    entries: list[Any] = []
    for index, (ok, size) in enumerate(zip(right, expected, strict=True)):
        if ok and whole is not None:
            entries.append(_picked(whole, index, node, run))
        else:
            entries.append(values[index] if ok else size)
    return tuple(entries)


def _picked(shape: fx.Node, index: int, before: fx.Node, run: Rewriting) -> fx.Node:
    with run.graph.inserting_before(before):
        new = run.graph.call_function(operator.getitem, (shape, index))
    new.meta = {"path": f"{path_of(before)}.size_{index}", "scope": before.meta.get("scope", "")}
    run.env[new] = run.env[shape][index]
    return new


def _unflatten(node: fx.Node, _: Rewriting, masks: Masks) -> None:
    if isinstance(masks, Mask) and masks.sizes is not None:
        sizes = _argument(node, 2, "sizes")
        dim = int(_argument(node, 1, "dim")) % (len(masks.sizes) - len(sizes) + 1)
        _set_argument(node, 2, tuple(masks.sizes[dim : dim + len(sizes)]), "sizes")


def _pieces(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """chunk, split: explicit sizes where the pieces would come out wrong."""
    if not isinstance(masks, list):
        return
    dim = int(_argument(node, 2, "dim", default=0))
    source = node.args[0]
    rank = run.env[source].dim() if isinstance(source, fx.Node) else 0
    sizes = [_piece_size(mask, dim % rank, node) for mask in masks]
    try:
        natural = [int(part.shape[dim]) for part in run.run_node(node)]
    except (RuntimeError, ValueError):
        natural = []
    if natural != sizes:
        node.op, node.target = "call_function", torch.split
        node.args, node.kwargs = (source, sizes, dim), {}


def _piece_size(mask: Masks, dim: int, node: fx.Node) -> int:
    if not isinstance(mask, Mask) or mask.sizes is None or mask.sizes[dim] == 0:
        raise Obstacle("what survives of a part is not a box", path=path_of(node))
    return mask.sizes[dim]


def _layer_norm(node: fx.Node, run: Rewriting, _: Masks) -> None:
    x = run.env[node.args[0]]  # type: ignore[index]
    count = len(_argument(node, 1, "normalized_shape"))
    _set_argument(node, 1, tuple(x.shape[x.dim() - count :]), "normalized_shape")


def _convolution(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """Functional convolutions: the number of groups."""
    x, weight = (run.env[node.args[i]] for i in (0, 1))  # type: ignore[index]
    position = 8 if op_name(node, run.root) == "convolution" else 6
    groups = _argument(node, position, "groups", default=1)
    computed = isinstance(groups, fx.Node)  # one kernel for each image, say
    groups = int(run.env[groups] if computed else groups)
    full = run.shapes[path_of(node.args[0])]  # type: ignore[arg-type]
    transposed = "transpose" in op_name(node, run.root) or (position == 8 and bool(_argument(node, 6, default=False)))
    if groups > 1:
        depthwise = full is not None and groups == full[1]
        new = (x.shape[1] if depthwise else groups) if transposed else x.shape[1] // weight.shape[1]
        if int(new) != groups or not computed:
            _set_argument(node, position, int(new), "groups")


def _attention(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """The scale is that of the full head, whatever its width is now."""
    query = node.args[0] if node.args else node.kwargs["query"]
    full = run.shapes[path_of(query)]  # type: ignore[arg-type]
    if node.kwargs.get("scale") is None and full is not None and run.env[query].shape[-1] != full[-1]:  # type: ignore[index]
        node.kwargs = {**node.kwargs, "scale": 1.0 / math.sqrt(full[-1])}


def _pad(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """Padded channels are channels: of those that a pad adds, some are removed."""
    source = node.args[0]
    before = run.shapes[path_of(source)]  # type: ignore[arg-type]
    if not isinstance(masks, Mask) or before is None:
        return
    widths = list(_argument(node, 1, "pad"))
    for index in range(0, len(widths), 2):
        dim = len(before) - 1 - index // 2
        alive = masks.along(dim).expand(masks.shape[dim])
        low, high = widths[index], widths[index + 1]
        if not bool(alive.all()) and low >= 0 and high >= 0:
            widths[index], widths[index + 1] = int(alive[:low].sum()), int(alive[len(alive) - high :].sum())
    _set_argument(node, 1, widths, "pad")


def _narrow(node: fx.Node, run: Rewriting, _: Masks) -> None:
    dim, start, length = (_argument(node, i, name) for i, name in ((1, "dim"), (2, "start"), (3, "length")))
    new = _moved_slice(node, run, int(dim), slice(start, start + length))
    if isinstance(new, slice):
        node.args, node.kwargs = (node.args[0], dim, new.start, new.stop - new.start), {}


def _slice(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """``aten.slice(x, dim, start, end, step)``."""
    dim = int(_argument(node, 1, "dim", default=0))
    start, end, step = (_argument(node, i, name) for i, name in ((2, "start"), (3, "end"), (4, "step")))
    new = _moved_slice(node, run, dim, slice(start, end, step))
    if isinstance(new, slice):
        node.args, node.kwargs = (node.args[0], dim, new.start, new.stop), {}


def _select(node: fx.Node, run: Rewriting, _: Masks) -> None:
    dim, index = int(_argument(node, 1, "dim")), int(_argument(node, 2, "index"))
    new = _moved_slice(node, run, dim, slice(index, None if index == -1 else index + 1))
    if isinstance(new, slice):
        _set_argument(node, 2, new.start, "index")


def _getitem(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """Slices and indices of a tensor in Python's notation."""
    source, given = node.args
    value = run.env.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(value, Tensor):
        return
    index: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
    rank = value.dim()
    dim = 0
    new: list[Any] = []
    for entry in index:
        if entry is Ellipsis:
            dim = rank - sum(1 for e in index[index.index(Ellipsis) + 1 :] if e is not None)
            new.append(entry)
            continue
        if entry is None:
            new.append(entry)
            continue
        moved: Any = entry
        if isinstance(entry, slice) and entry != slice(None):
            moved = _moved_slice(node, run, dim, entry) or entry
        elif isinstance(entry, int):
            found = _moved_slice(node, run, dim, slice(entry, None if entry == -1 else entry + 1))
            moved = found.start if found else entry
        new.append(moved)
        dim += 1
    node.args = (source, tuple(new) if isinstance(given, tuple) else new[0])


def _moved_slice(node: fx.Node, run: Rewriting, dim: int, wanted: slice) -> slice | None:
    """A slice of the full dimension as one of the survivors; None where the dimension is as it was."""
    source = node.args[0]
    mask = run.survivors.of_tensor(path_of(source)) if isinstance(source, fx.Node) else None
    if mask is None or mask.whole:
        return None
    dim %= len(mask.shape)
    alive = mask.along(dim).expand(mask.shape[dim])
    if bool(alive.all()) and run.env[source].shape[dim] == mask.shape[dim]:  # type: ignore[index]
        return None
    bounds = [
        run.scalars.get(path_of(b)) if isinstance(b, fx.Node) else b for b in (wanted.start, wanted.stop, wanted.step)
    ]
    rank = (alive.cumsum(0) - 1).tolist()
    places = [rank[i] for i in range(mask.shape[dim])[slice(*bounds)] if bool(alive[i])]
    contiguous = bool(places) and places == list(range(places[0], places[0] + len(places)))
    if not contiguous or not (mask.is_product or len(places) == len(rank)):
        raise Obstacle("it picks channels that do not lie side by side", path=path_of(node))
    return slice(places[0], places[-1] + 1)


_RULES: dict[str, Rule] = {
    "sizes": _sizes, "pieces": _pieces, "layer-norm": _layer_norm, "convolution": _convolution, "pad": _pad,
    "unflatten": _unflatten, "attention": _attention, "narrow": _narrow, "slice": _slice, "select": _select,
    "getitem": _getitem,
}  # fmt: skip

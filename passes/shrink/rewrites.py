"""Rewrites: what states a width in a node or a module is corrected to what survives.

Each rule gets a node whose inputs have already their smaller values, and the masks of its result. A rule changes
arguments only where they are wrong: sizes that the graph computes itself (a batch size, ``x.shape[1]``) stay computed
as long as they come out right.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from fxdistill.ir.graph import op_name, path_of, submodule
from fxdistill.ir.operators import is_a, operator_of
from fxdistill.ir.survivors import Mask, Masks
from fxdistill.operators import Trait, rule
from fxdistill.passes.shrink import sizes, slices
from fxdistill.passes.shrink.arguments import Obstacle, Rewriting, argument, correct, keep_numbers, meant

Rule = Callable[[fx.Node, Rewriting, Masks], None]
_LIBRARIES = ("torch.", "_operator", "operator", "math", "builtins")


def rewrite(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """Correct one node.

    Raises:
        Obstacle: The node hides what would have to be corrected, or picks survivors in a way that has no counterpart.
    """
    if not _touched(node, run, masks):
        return
    name, sources = op_name(node, run.root), node.all_input_nodes
    given = operator_of(name).rewrite
    has_own = callable(given)  # whoever wrote it knows what the operation hides
    if not has_own:
        _refuse_fused(node, name, run)
    module = submodule(run.root, node)
    found = rule(given, _RULES, field="rewrite", name=name)
    if module is not None and not has_own:
        read = argument(node, 0, "input")
        _fit_module(module, run.env[read] if isinstance(read, fx.Node) else None, masks)
    elif found is not None:
        found(node, run, masks)
    elif run.shapes.get(path_of(node)) is not None or any(isinstance(run.env.get(s), Tensor) for s in sources):
        keep_numbers(node, run)


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
        if module._forward_pre_hooks:  # noqa: SLF001  # there is no other way to ask
            raise Obstacle("hooks compute its weights or its input", path=path_of(node), fused=True)
        if is_parametrized(module):
            return
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


def _convolution(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """Functional convolutions: the number of groups."""
    source = argument(node, 0, "input")
    x, weight = run.env[source], run.env[argument(node, 1, "weight")]
    position = 8 if op_name(node, run.root) == "convolution" else 6
    groups = int(meant(argument(node, position, "groups", default=1), run))
    full = run.shapes[path_of(source)]
    transposed = "transpose" in op_name(node, run.root) or (position == 8 and bool(argument(node, 6, default=False)))
    if groups > 1:
        depthwise = full is not None and groups == full[1]
        new = (x.shape[1] if depthwise else groups) if transposed else x.shape[1] // weight.shape[1]
        correct(node, run, position, int(new), "groups")


def _attention(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """The scale is that of the full head, whatever its width is now."""
    query = node.args[0] if node.args else node.kwargs["query"]
    full = run.shapes[path_of(query)]  # type: ignore[arg-type]
    if node.kwargs.get("scale") is None and full is not None and run.env[query].shape[-1] != full[-1]:  # type: ignore[index]
        node.kwargs = {**node.kwargs, "scale": 1.0 / math.sqrt(full[-1])}


_RULES: dict[str, Rule] = {
    "sizes": sizes.sizes, "unflatten": sizes.unflatten, "layer-norm": sizes.layer_norm, "pad": sizes.pad,
    "pieces": slices.pieces, "narrow": slices.narrow, "slice": slices.aten_slice, "select": slices.select,
    "getitem": slices.getitem, "convolution": _convolution, "attention": _attention,
}  # fmt: skip

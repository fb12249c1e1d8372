"""The ladder of trace: three ways from a module to an FX graph over the module's own tensors.

1. ``symbolic``: ``torch.fx`` symbolic trace; modules of ``torch.nn`` are leaves.
2. ``leaves``: the same, with what is known not to trace (torchvision's operators, timm's registries) as leaves.
3. ``export``: ``torch.export`` with a dynamic batch, back as a graph of ATen operators.

Each freezes the mode that the module is in.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxdistill.ir.graph import Rung


class _PathTracer(fx.Tracer):
    """A tracer that can take more modules as leaves than ``torch.nn``'s own, and functions as single nodes."""

    def __init__(
        self, leaves: tuple[type[nn.Module], ...] = (), functions: tuple[Callable[..., Any], ...] = ()
    ) -> None:
        super().__init__(autowrap_functions=functions, param_shapes_constant=True)
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module stays one node."""
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)


def _symbolic(module: nn.Module, _: Tensor, tracer: fx.Tracer | None = None) -> fx.GraphModule:
    if isinstance(module, fx.GraphModule):  # a graph already; tracing it again would lose where its nodes come from
        return fx.GraphModule(module, _copied(module.graph), type(module).__name__)
    tracer = tracer or _PathTracer()
    return fx.GraphModule(module, tracer.trace(module), type(module).__name__)


def _copied(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def _leaves(module: nn.Module, images: Tensor) -> fx.GraphModule:
    from torchvision.models import feature_extraction  # noqa: PLC0415  # slow to import, rarely needed

    leaves = set(feature_extraction._get_leaf_modules_for_ops())  # noqa: SLF001  # the registry has no public name
    functions: set[Callable[..., Any]] = {len}
    if type(module).__module__.startswith("timm") or any(
        type(m).__module__.startswith("timm") for m in module.modules()
    ):
        from timm.models import _features_fx  # noqa: PLC0415  # only where timm is at work

        registries: Any = _features_fx  # not annotated
        leaves |= set(registries.get_notrace_modules())
        functions |= set(registries.get_notrace_functions())
    return _symbolic(module, images, _PathTracer(tuple(leaves), tuple(functions)))


def _export(module: nn.Module, images: Tensor) -> fx.GraphModule:
    """``torch.export`` with a dynamic batch, the batch fixed where a model does not allow it."""
    batch = torch.cat([images, images]) if len(images) == 1 else images
    try:
        program = torch.export.export(module, (batch,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
    except Exception:  # noqa: BLE001  # whatever the reason, the static batch is the second try
        program = torch.export.export(module, (images,), strict=False)
    exported = program.module(check_guards=False)
    graph = exported.graph
    graph.set_codegen(fx.graph.CodeGen())
    _restore_structure(graph, program)
    root = nn.Module()
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        _attach(root, name, tensor)
    for node in graph.nodes:
        if node.op == "get_attr":
            _adopt(root, exported, str(node.target))
    traced = fx.GraphModule(root, graph, type(module).__name__)
    traced.graph.lint()
    return traced


def _restore_structure(graph: fx.Graph, program: torch.export.ExportedProgram) -> None:
    """Give the graph the module's own output structure instead of a flat tuple."""
    output = next(node for node in graph.nodes if node.op == "output")
    flat = output.args[0]
    spec = program.call_spec.out_spec
    if spec is not None and isinstance(flat, tuple | list):
        output.args = (torch.utils._pytree.tree_unflatten(list(flat), spec),)  # noqa: SLF001  # no public name


def _attach(root: nn.Module, name: str, tensor: Tensor) -> None:
    parent = root
    *scope, leaf = name.split(".")
    for part in scope:
        if not hasattr(parent, part):
            parent.add_module(part, nn.Module())
        parent = getattr(parent, part)
    if isinstance(tensor, nn.Parameter):
        parent.register_parameter(leaf, tensor)
    else:
        parent.register_buffer(leaf, tensor)


def _adopt(root: nn.Module, exported: nn.Module, target: str) -> None:
    """Copy a lifted constant that the module itself does not own."""
    own: Any = root
    for part in target.split("."):
        own = getattr(own, part, None)
    if own is None:
        value: Any = exported
        for part in target.split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor):
            _attach(root, target, value)
        else:
            root.add_module(target, value)


RUNGS: dict[Rung, Callable[[nn.Module, Tensor], fx.GraphModule]] = {
    "symbolic": _symbolic, "leaves": _leaves, "export": _export,
}  # fmt: skip

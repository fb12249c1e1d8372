"""The ladder of trace: three ways from a module to an FX graph over the module's own tensors.

1. ``symbolic``: ``torch.fx`` symbolic trace; modules of ``torch.nn`` are leaves.
2. ``leaves``: the same, with what is known not to trace (torchvision's operators, timm's registries) as leaves.
3. ``export``: ``torch.export`` with a dynamic batch, back as a graph of ATen operators and, where it had frozen the
   mode, of modules.

Each freezes the mode that the module is in.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from operator import attrgetter
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import ParameterProxy
from torchvision.models import feature_extraction

from fxdistill.ir.graph import attach, submodule
from fxdistill.ir.running import plainly
from fxdistill.passes.trace.effects import WITHOUT_GRADIENT, detach_marked, own_gradients, shapes_as_values
from fxdistill.passes.trace.probe import Probe
from fxdistill.passes.trace.restore import restore
from fxdistill.plan.schema import Rung


class _PathTracer(fx.Tracer):
    """A tracer that can take more modules as leaves than ``torch.nn``'s own, and functions as single nodes.

    The images are the only input; other arguments of ``forward`` have their defaults, as in a call. A buffer that the
    call updates is followed, so that the graph updates it too; any other is a constant.
    """

    def __init__(
        self, followed: Mapping[str, Tensor], leaves: tuple[type[nn.Module], ...] = (),
        functions: tuple[Callable[..., Any], ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(autowrap_functions=functions, param_shapes_constant=True)
        self._leaves = leaves
        self._followed = {id(tensor): name for name, tensor in followed.items()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module stays one node."""
        if "forward" in vars(m) and not isinstance(m, torch.jit.ScriptModule):  # another one than its class has
            return False
        whole = isinstance(m, (torch.jit.ScriptModule, *self._leaves))
        return whole or super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        """An argument, or a part of the output; a dataclass is the dict of its fields, like any other mapping."""
        return super().create_arg(plainly(a) if dataclasses.is_dataclass(a) else a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node, marked where gradients are off."""
        node = super().create_node(*args, **kwargs)
        if not torch.is_grad_enabled():
            node.meta[WITHOUT_GRADIENT] = True
        return node

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,  # noqa: FBT001  # the signature of fx.Tracer
        concrete_args: Any = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        """What ``forward`` is called with: the module and its images."""
        del is_module, concrete_args
        _, images, *_ = inspect.signature(root_fn).parameters
        return root_fn, [self.root, self.create_proxy("placeholder", images, (), {})]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A stand-in for a parameter, and for a buffer that is updated; anything else as it is."""
        name = self._followed.get(id(attr_val))  # torch.fx itself looks through all parameters each time
        if name is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            constant = partial(ParameterProxy, self, name=name, param=attr_val)  # in its shape
            parameter = isinstance(attr_val, nn.Parameter)
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr", name, (), {}, proxy_factory_fn=constant if parameter else None
            )
        return parameter_proxy_cache[name]


def _symbolic(module: nn.Module, probe: Probe, **more: Any) -> fx.GraphModule:
    if isinstance(module, fx.GraphModule):  # a graph already; tracing it again would lose where its nodes come from
        return _led(fx.GraphModule(module, _copied(module.graph), type(module).__name__))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    updated = {name: buffers[name] for name in probe.updates}
    tracer = _PathTracer({**dict(module.named_parameters()), **updated}, **more)
    with torch.enable_grad(), own_gradients(partial(tracer.create_proxy, "call_function")):
        graph = tracer.trace(module)
    detach_marked(graph)
    shapes_as_values(graph)
    return _led(fx.GraphModule(module, graph, type(module).__name__))


_AFTER = frozenset(("condition", "sorted_sequence"))
"""What the few functions begin with whose ``input`` comes later."""


def _led(traced: fx.GraphModule) -> fx.GraphModule:
    """Calls in the form that all passes know: ``torch.sum(input=x, dim=1)`` is ``sum(x, dim=1)``; of einsums alike."""
    for node in traced.graph.nodes:
        layer = submodule(traced, node)
        known = inspect.isbuiltin(node.target) if layer is None else type(layer).__module__.startswith("torch.nn.")
        if known and not node.args and "input" in node.kwargs and _AFTER.isdisjoint(node.kwargs):
            node.args = (node.kwargs["input"],)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        elif node.target is torch.einsum and isinstance(node.args[0], fx.Node):
            node.args = _with_equation(node.args)
    traced.recompile()
    return traced


def _with_equation(args: Sequence[Any]) -> tuple[Any, ...]:
    """``einsum(x, [0, 1], y, [1, 2], [0, 2])`` as ``einsum("ab,bc->ac", x, y)``."""
    paired, result = (args[:-1], [args[-1]]) if len(args) % 2 else (args, [])
    terms, found = (
        ["".join("..." if place is ... else ascii_letters[place] for place in places) for places in lists]
        for lists in (paired[1::2], result)
    )
    return "->".join([",".join(terms), *found]), *paired[::2]


def _copied(graph: fx.Graph) -> fx.Graph:
    """The same graph with its first input alone; what else it takes becomes a constant."""
    copied = fx.Graph()
    new: dict[fx.Node, Any] = {}
    images: fx.Node | None = None  # constants may stand before it
    for node in graph.nodes:
        if node.op == "placeholder" and images is not None:
            new[node] = _default(node)
        elif node.op == "placeholder" and str(node.target).startswith("*"):
            images, new[node] = node, (copied.placeholder(str(node.target).lstrip("*")),)
        else:
            images = node if node.op == "placeholder" else images
            new[node] = copied.node_copy(node, new.__getitem__)
    return copied


def _default(placeholder: fx.Node) -> Any:
    name = str(placeholder.target)
    if name.startswith("*"):
        return {} if name.startswith("**") else ()
    return placeholder.args[0]


def _leaves(module: nn.Module, probe: Probe) -> fx.GraphModule:
    leaves = set(feature_extraction._get_leaf_modules_for_ops())  # noqa: SLF001  # the registry has no public name
    functions: set[Callable[..., Any]] = {len}
    if type(module).__module__.startswith("timm") or any(
        type(m).__module__.startswith("timm") for m in module.modules()
    ):
        from timm.models import _features_fx  # noqa: PLC0415  # optional, and only where it is at work

        registries: Any = _features_fx  # not annotated
        leaves |= set(registries.get_notrace_modules())
        functions |= set(registries.get_notrace_functions())
    return _symbolic(module, probe, leaves=tuple(leaves), functions=tuple(functions))


def _export(module: nn.Module, probe: Probe) -> fx.GraphModule:
    """``torch.export`` with a dynamic batch, the batch fixed where a model does not allow it."""
    images = probe.images
    if probe.structured:  # torch.export takes no classes of the model's own; whoever called puts forward back
        module.forward = _in_plain(module.forward)
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
    first: dict[int, str] = {}  # tied weights go by the first of their names
    names: dict[str, str] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        attach(root, name, tensor)
        names[name] = first.setdefault(id(tensor), name)
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names.get(str(node.target), node.target)
            _adopt(root, exported, str(node.target))
    restore(root, graph, module, training=module.training)
    shapes_as_values(graph)
    traced = fx.GraphModule(root, graph, type(module).__name__)
    traced.graph.lint()
    return traced


def _in_plain(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def called(*args: Any, **kwargs: Any) -> Any:
        return plainly(forward(*args, **kwargs))

    return called


def _restore_structure(graph: fx.Graph, program: torch.export.ExportedProgram) -> None:
    """Give the graph the module's own output structure instead of a flat tuple."""
    output = next(node for node in graph.nodes if node.op == "output")
    flat = output.args[0]
    spec = program.call_spec.out_spec
    if spec is not None and isinstance(flat, tuple | list):
        output.args = (torch.utils._pytree.tree_unflatten(list(flat), spec),)  # noqa: SLF001  # no public name


def _adopt(root: nn.Module, exported: nn.Module, target: str) -> None:
    """Copy a lifted constant that the module itself does not own."""
    try:
        attrgetter(target)(root)
    except AttributeError:
        attach(root, target, attrgetter(target)(exported))


RUNGS: dict[Rung, Callable[[nn.Module, Probe], fx.GraphModule]] = {
    "symbolic": _symbolic, "leaves": _leaves, "export": _export,
}  # fmt: skip

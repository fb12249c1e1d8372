"""Trace: a module becomes an FX graph with stable paths, shapes and costs.

A ladder, each rung tried in turn:

1. ``symbolic``: ``torch.fx`` symbolic trace; modules of ``torch.nn`` are leaves.
2. ``leaves``: the same, with what is known not to trace (torchvision's operators, timm's registries) as leaves.
3. ``export``: ``torch.export`` with a dynamic batch, back as a graph of ATen operators.

Tracing must not change outputs: on a seeded batch the graph and the module agree **exactly**, in the mode that was
traced. A trace freezes that mode (functional dropout, stochastic depth, auxiliary heads), so a model that is trained
is traced in both. Parameters and buffers of the graph are the module's own, not copies.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InvariantError, ModelError
from fxdistill.graph import Rung, Shape, Traced, tensors_in
from fxdistill.passbase import Pass, PassResult

_PROBE_SEED = 0


@dataclass(frozen=True)
class Trace(Pass[nn.Module, Traced]):
    """Trace a module.

    Attributes:
        input_shape: Shape of one batch, the batch size first.
        training: The mode to trace; the module itself is left in the mode that it had.
        rungs: The rungs to try, in order.
    """

    input_shape: Shape
    training: bool = False
    rungs: tuple[Rung, ...] = ("symbolic", "leaves", "export")

    def run(self, source: nn.Module) -> PassResult[Traced]:
        """Climb the ladder until a rung's graph reproduces the module exactly.

        Raises:
            ModelError: The module does not run on the input shape, or no rung traces it.
        """
        probe = _Probe(source, self.input_shape, training=self.training)
        failures: list[str] = []
        for rung in self.rungs:
            try:
                with _mode(source, training=self.training), _quiet():
                    module = _RUNGS[rung](source, probe.images)
                module.train(self.training)
                probe.compare(module)
            except Exception as cause:  # noqa: BLE001  # any failure of a rung is a reason to try the next
                failures.append(f"{rung}: {_first_line(cause)}")
                continue
            _annotate(module, probe)
            traced = Traced(module, rung, self.training, self.input_shape)
            return PassResult(traced, modified=True, diagnostics=tuple(_remarks(traced, failures)))
        raise ModelError(
            "the model could not be traced: " + "; ".join(failures),
            where=type(source).__name__,
            hint="keep data-dependent control flow out of forward, or put it into a module of its own",
        )

    def ensures(self, source: nn.Module, value: Traced) -> None:
        """Every parameter of the graph is one of the module, and every node has a path of its own."""
        own = {id(p) for p in source.parameters()}
        strangers = [name for name, p in value.module.named_parameters() if id(p) not in own]
        if strangers:
            raise InvariantError(f"the trace copied the parameter '{strangers[0]}'")
        paths = [node.meta["path"] for node in value.graph.nodes if node.op != "get_attr"]
        if len(set(paths)) != len(paths):
            raise InvariantError("two nodes of the trace share a path")


class _Probe:
    """A seeded batch, and what the untraced module answers to it in the mode that is traced."""

    def __init__(self, module: nn.Module, input_shape: Shape, *, training: bool) -> None:
        # batch statistics need more than one value a channel
        batch = max(2, input_shape[0]) if training else input_shape[0]
        generator = torch.Generator().manual_seed(_PROBE_SEED)
        self.images = torch.randn(batch, *input_shape[1:], generator=generator)
        self.input_shape = input_shape
        self.training = training
        try:
            with _mode(module, training=training), buffers_kept(module):
                self.expected = tensors_in(self._call(module))
        except Exception as cause:
            raise ModelError(
                f"the model does not run on an input of shape {'x'.join(map(str, self.images.shape))}: {_first_line(cause)}",
                where=type(module).__name__,
                hint="give the right shape with --input, e.g. --input 1x3x224x224",
            ) from cause

    def _call(self, module: Callable[[Tensor], object]) -> object:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_PROBE_SEED)
            return module(self.images.clone())

    def compare(self, module: fx.GraphModule) -> None:
        """Raise InvariantError unless the graph's outputs equal the module's, bit for bit."""
        with buffers_kept(module):
            found = tensors_in(self._call(module))
        if len(found) != len(self.expected):
            raise InvariantError("the graph returns another number of tensors")
        for one, other in zip(found, self.expected, strict=True):
            if not torch.equal(one, other):
                raise InvariantError("the graph's output differs from the module's")


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves the module's buffers (running statistics) as they were."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """The module in one mode; every submodule gets the mode back that it had."""
    before = [(child, child.training) for child in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for child, was in before:
            child.training = was


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings and logs of the tracers say nothing that a user could act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


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

        leaves |= set(_features_fx.get_notrace_modules())
        functions |= set(_features_fx.get_notrace_functions())
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


_RUNGS: dict[Rung, Callable[[nn.Module, Tensor], fx.GraphModule]] = {
    "symbolic": _symbolic, "leaves": _leaves, "export": _export,
}  # fmt: skip


class _Annotator(fx.Interpreter):
    """Runs the graph once and notes each node's shape and multiply-accumulates."""

    def run_node(self, n: fx.Node) -> object:
        """Run one node under a counter."""
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        n.meta["macs"] = counter.get_total_flops() // 2
        return value


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as matrix products, which the counter can count; the fused kernels of the CPU it cannot."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _annotate(module: fx.GraphModule, probe: _Probe) -> None:
    _name_nodes(module)
    images = probe.images[: max(1, probe.input_shape[0])]
    if probe.training and len(images) == 1:
        images = probe.images
    with buffers_kept(module), torch.no_grad(), torch.random.fork_rng(devices=[]), _plain_attention():
        _Annotator(module).run(images)
    if len(images) != probe.input_shape[0]:
        _rescale(module, found=len(images), wanted=probe.input_shape[0])


def _rescale(module: fx.GraphModule, *, found: int, wanted: int) -> None:
    """Shapes and costs at the batch size that was asked for."""
    for node in module.graph.nodes:
        shape = node.meta["shape"]
        if shape and shape[0] % found == 0 and node.op != "get_attr":
            node.meta["shape"] = (shape[0] // found * wanted, *shape[1:])
        node.meta["macs"] = node.meta["macs"] * wanted // found


def _name_nodes(module: fx.GraphModule) -> None:
    """Give every node its ``path`` and ``scope`` (see :mod:`fxdistill.graph`)."""
    seen: dict[str, int] = {}
    for node in module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        scope = str(stack[-1][0]) if stack else ""
        if node.op == "call_module":
            path = str(node.target)
            scope = scope if scope != path else path.rpartition(".")[0]
        elif node.op in ("placeholder", "output"):
            path = node.op if node.op == "output" else str(node.target)
        else:
            target = node.target if isinstance(node.target, str) else _target_name(node.target)
            path = f"{scope}.{target}" if scope and node.op != "get_attr" else target
        count = seen.get(path, 0)
        seen[path] = count + 1
        node.meta["path"] = f"{path}_{count}" if count else path
        node.meta["scope"] = scope


def _target_name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(packet or target, "__name__", target))


def _remarks(traced: Traced, failures: list[str]) -> Iterator[Diagnostic]:
    for failure in failures:
        yield Diagnostic(
            code="trace-rung", severity="note", where=type(traced.module).__name__,
            why=f"traced by '{traced.rung}', because {failure}",
        )  # fmt: skip


def _first_line(cause: BaseException) -> str:
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)[:200]

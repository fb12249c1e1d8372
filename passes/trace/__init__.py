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
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.graph import Rung, Shape, Traced
from fxdistill.ir.running import attributes_kept, buffers_kept, example, in_mode, same, seeded, tensors_in
from fxdistill.passes.trace.rungs import RUNGS


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

    def requires(self, source: nn.Module) -> None:
        """The input shape is a batch of something."""
        if len(self.input_shape) < 2 or any(size < 1 for size in self.input_shape):
            raise ModelError(
                f"{self.input_shape} is no shape of a batch", where=type(source).__name__,
                hint="give batch size, channels, height and width, e.g. --input 1x3x224x224",
            )  # fmt: skip
        own = {name for name, _ in (*source.named_children(), *source.named_parameters(), *source.named_buffers())}
        taken = sorted(own & {"code", "graph"})
        if taken:
            raise ModelError(
                f"the model has a part called '{taken[0]}', a name that torch.fx graphs use themselves",
                where=type(source).__name__, hint="give that parameter, buffer or submodule another name",
            )  # fmt: skip

    def run(self, source: nn.Module) -> PassResult[Traced]:
        """Climb the ladder until a rung's graph reproduces the module exactly.

        Raises:
            ModelError: The module does not run on the input shape, or no rung traces it.
        """
        probe = _Probe(source, self.input_shape, training=self.training)
        failures: list[str] = []
        for rung in self.rungs:
            with in_mode(source, training=self.training), buffers_kept(source), attributes_kept(source), _quiet():
                try:
                    module = RUNGS[rung](source, probe.images)
                    module.train(self.training)
                    probe.compare(module)
                except Exception as cause:  # noqa: BLE001  # any failure of a rung is a reason to try the next
                    failures.append(f"{rung}: {_first_line(cause)}")
                    continue
                _annotate(module, probe)
                traced = Traced(module, rung, self.training, self.input_shape)
                remarks = (*_remarks(traced, failures), *_static_batch(traced, probe))
            return PassResult(traced, modified=True, diagnostics=remarks)
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
    """A seeded batch, and what the untraced module answers to it, and does to its buffers, in the traced mode."""

    def __init__(self, module: nn.Module, input_shape: Shape, *, training: bool) -> None:
        # batch statistics need more than one value a channel
        batch = max(2, input_shape[0]) if training else input_shape[0]
        self.images = example(module, (batch, *input_shape[1:]))
        self.input_shape = input_shape
        try:
            with in_mode(module, training=training), attributes_kept(module), buffers_kept(module) as before:
                self.expected = tensors_in(self.call(module, self.images))
                after = dict(module.named_buffers(remove_duplicate=False))
                self.updates = {n: b.clone() for n, b in after.items() if n in before and not same(b, before[n])}
        except Exception as cause:
            size = "x".join(map(str, self.images.shape))
            raise ModelError(
                f"the model does not run on an input of shape {size}: {_first_line(cause)}",
                where=type(module).__name__,
                hint="give the right shape with --input, e.g. --input 1x3x224x224",
            ) from cause

    @staticmethod
    def call(module: Callable[[Tensor], object], images: Tensor) -> object:
        """Run on a copy of some images, random numbers from the probe's seed."""
        with torch.no_grad(), seeded(images.device):
            return module(images.clone())

    def compare(self, module: fx.GraphModule) -> None:
        """Raise InvariantError unless outputs and updated buffers of the graph equal the module's, bit for bit."""
        with buffers_kept(module):
            found = tensors_in(self.call(module, self.images))
            after = dict(module.named_buffers(remove_duplicate=False))
            lost = [n for n, buffer in self.updates.items() if n not in after or not same(after[n], buffer)]
        if len(found) != len(self.expected):
            raise InvariantError("the graph returns another number of tensors")
        if not all(map(same, found, self.expected)):
            raise InvariantError("the graph's output differs from the module's")
        if lost:
            raise InvariantError(f"the graph does not update the buffer '{lost[0]}' as the module does")


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


class _Annotator(fx.Interpreter):
    """Runs the graph once and notes what each node makes, costs, and does to the memory of its inputs."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.measured: dict[fx.Node, tuple[Shape | None, int]] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Read a parameter apart from autograd: the counter would hang hooks on it, which need a gradient."""
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) else value

    def run_node(self, n: fx.Node) -> object:
        """Run one node under a counter."""
        inputs = [tensors_in(self.env[source]) for source in n.all_input_nodes]
        versions = [[_version(t) for t in tensors] for tensors in inputs]
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        own = {_address(t) for t in tensors_in(value)} - {0}
        n.meta["writes"] = tuple(i for i, old in enumerate(versions) if [_version(t) for t in inputs[i]] != old)
        n.meta["shares"] = tuple(i for i, tensors in enumerate(inputs) if own & {_address(t) for t in tensors})
        self.measured[n] = (tuple(value.shape) if isinstance(value, Tensor) else None, counter.get_total_flops() // 2)
        return value


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001  # counts writes; it has no public name


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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
    """Note shapes and costs at the batch size that was asked for.

    Batch statistics do not run on one image: then both come from two and three images, being affine in the number.
    """
    _name_nodes(module)
    batch, wanted = len(probe.images), probe.input_shape[0]
    found = _measured(module, probe.images)
    try:
        more = found if batch == wanted else _measured(module, example(module, (batch + 1, *probe.input_shape[1:])))
    except Exception:  # noqa: BLE001  # a graph of one batch size: it stays at that
        more = found
    surplus = batch - wanted
    for node, (shape, macs) in found.items():
        other, cost = more[node]
        node.meta["macs"] = macs - surplus * (cost - macs)
        node.meta["shape"] = shape
        if shape is not None and other is not None and len(shape) == len(other):
            node.meta["shape"] = tuple(a - surplus * (b - a) for a, b in zip(shape, other, strict=True))


def _measured(module: fx.GraphModule, images: Tensor) -> dict[fx.Node, tuple[Shape | None, int]]:
    annotator = _Annotator(module)
    with buffers_kept(module), torch.no_grad(), seeded(images.device), _plain_attention():
        annotator.run(images.clone())
    return annotator.measured


def _name_nodes(module: fx.GraphModule) -> None:
    """Give every node its ``path`` and ``scope`` (see :mod:`fxdistill.ir.graph`)."""
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
        while count and f"{path}_{count}" in seen:  # a module may be called relu_1 as well
            count += 1
        seen[path] = count + 1
        node.meta["path"] = f"{path}_{count}" if count else path
        seen.setdefault(node.meta["path"], 1)
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


def _static_batch(traced: Traced, probe: _Probe) -> Iterator[Diagnostic]:
    """An exported graph may hold for one batch size alone."""
    batch = len(probe.images)
    if traced.rung != "export":
        return
    try:
        with buffers_kept(traced.module):
            probe.call(traced.module, example(traced.module, (batch + 1, *probe.input_shape[1:])))
    except Exception as cause:  # noqa: BLE001  # whatever the reason
        yield Diagnostic(
            code="static-batch", severity="warning", where=type(traced.module).__name__,
            why=f"the trace takes batches of exactly {batch}: {_first_line(cause)}",
            hint="plan with --input of the batch size that is trained with, a divisor of the data",
        )  # fmt: skip


def _first_line(cause: BaseException) -> str:
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)[:200]

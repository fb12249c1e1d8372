"""Measure: what each node of a graph makes, costs, and does to the memory of its inputs.

Shapes and costs are those of the size that was asked for, and are computed on no data: the graph runs on the ``meta``
device or, where something in it cannot, on images. What a node does to memory is seen where it runs on images.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fxdistill.ir.graph import Shape, module_op_name
from fxdistill.ir.operators import bare_name, is_a, operator_of
from fxdistill.ir.running import attention_in_parts, buffers_kept, example, same, seeded, tensors_in
from fxdistill.operators import Trait
from fxdistill.passes.trace.probe import Probe

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORMING = (nn.functional.batch_norm, torch.batch_norm, torch.ops.aten.batch_norm.default)
_FREE = frozenset((
    "pointwise", "elementwise", "movement", "sizes", "select", "getitem", "pieces", "cat", "stack", "pad", "spatial",
    "reduction", "channel-norm", "last-dims-norm", "group-norm", "metadata",
))  # fmt: skip
"""What :attr:`fxdistill.operators.Operator.labels` says of operations without a product."""
_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001  # torch counts those of GPUs alone
_Measured = dict[fx.Node, tuple[Shape | None, int]]


def annotate(module: fx.GraphModule, probe: Probe) -> None:
    """Note what nodes do to memory, and shapes and costs at the batch size that was asked for.

    Batch statistics do not run on one image: then both come from two and three images, being affine in the number.
    """
    batch, (wanted, *size) = len(probe.images), probe.input_shape
    small = list(probe.images.shape[1:]) != size
    with _apart(module, probe.images.device):
        watch = _Watch(module, probe.updates, counting=not small)
        watch.run(probe.images.clone())
    found = _measured(module, (batch, *size)) if small else watch.measured
    try:
        more = found if batch == wanted else _measured(module, (batch + 1, *size))
    except Exception:  # noqa: BLE001  # a graph of one batch size: it stays at that
        more = found
    surplus = batch - wanted
    for node, (shape, macs) in found.items():
        other, cost = more[node]
        node.meta["macs"] = macs - surplus * (cost - macs)
        node.meta["shape"] = shape
        if shape is not None and other is not None and len(shape) == len(other):
            node.meta["shape"] = tuple(a - surplus * (b - a) for a, b in zip(shape, other, strict=True))


def _measured(module: fx.GraphModule, shape: Shape) -> _Measured:
    """What each node makes and costs on a batch of one shape."""
    images = example(module, shape)
    own = {name: t.detach().to("meta") for name, t in (*module.named_parameters(), *module.named_buffers())}
    try:
        return _counted(module, own, images.to("meta"))
    except Exception:  # noqa: BLE001  # an operation that reads values, or a constant that no module owns
        return _counted(module, {}, images)


def _counted(module: fx.GraphModule, others: Mapping[str, Tensor], images: Tensor) -> _Measured:
    """The same with other tensors in the places of the graph's own."""
    count = _Count(module)
    with _apart(module, images.device):
        torch.func.functional_call(_Called(count), {f"graph.{n}": t for n, t in others.items()}, (images,))
    return count.measured


class _Called(nn.Module):
    """An interpreter as a module, whose tensors a functional call can replace."""

    def __init__(self, interpreter: fx.Interpreter) -> None:
        super().__init__()
        self.graph, self.interpreter = interpreter.module, interpreter

    def forward(self, images: Tensor) -> object:
        """Run the graph."""
        return self.interpreter.run(images)


class _Count(fx.Interpreter):
    """Runs the graph once and notes what each node makes and costs."""

    def __init__(self, module: fx.GraphModule, *, counting: bool = True) -> None:
        super().__init__(module)
        self.measured: _Measured = {}
        self._counting = counting

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Read a parameter apart from autograd: the counter would hang hooks on it, which need a gradient."""
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer; where there is no data, one that keeps shapes is not: it costs nothing, and takes long."""
        if len(args) == 1 and isinstance(args[0], Tensor) and args[0].is_meta and _keeps(self.submodules[target]):
            return args[0].clone()
        return super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function; batch norm is left out like its layer."""
        if target in _NORMING and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0].clone()
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> object:
        """Run one node, under a counter where it may cost something: counting takes long."""
        if not self._counting or self._is_free(n):
            value, macs = super().run_node(n), 0
        else:
            with FlopCounterMode(display=False, custom_mapping={_FUSED: _attention}) as counter:
                value = super().run_node(n)
            macs = counter.get_total_flops() // 2
            if not macs and bare_name(n.target) == "einsum":
                macs = _summed(*self.fetch_args_kwargs_from_env(n)[0])
        self.measured[n] = (tuple(value.shape) if isinstance(value, Tensor) else None, macs)
        return value

    def _is_free(self, node: fx.Node) -> bool:
        """Whether a node is known to have no product."""
        if node.op == "call_module":
            return _keeps(self.submodules[node.target])
        if node.op == "call_function" and not _of_torch(node.target):
            return False
        return not node.op.startswith("call") or operator_of(bare_name(node.target)).labels in _FREE


class _Watch(_Count):
    """The same, and notes what each node does to the memory of its inputs."""

    def __init__(self, module: fx.GraphModule, updated: Collection[str], *, counting: bool) -> None:
        super().__init__(module, counting=counting)
        self.updated = updated

    def run_node(self, n: fx.Node) -> object:
        """Run one node and look at its inputs before and after."""
        inputs = [tensors_in(self.env[source]) for source in n.all_input_nodes]
        versions = [[_version(t) for t in tensors] for tensors in inputs]
        copies = [self._copies(source) for source in n.all_input_nodes]
        value = super().run_node(n)
        own = {_address(t) for t in tensors_in(value)} - {0}
        n.meta["writes"] = tuple(
            i for i, (tensors, old, copied) in enumerate(zip(inputs, versions, copies, strict=True))
            if [_version(t) for t in tensors] != old or not all(map(same, copied, tensors))
        )  # fmt: skip
        n.meta["shares"] = tuple(i for i, tensors in enumerate(inputs) if own & {_address(t) for t in tensors})
        return value

    def _copies(self, node: fx.Node) -> list[Tensor]:
        """The value of a buffer that is updated: batch norm writes its statistics without counting it as a write."""
        tensors = tensors_in(self.env[node])
        return [t.clone() for t in tensors] if node.op == "get_attr" and node.target in self.updated else []


def _keeps(module: nn.Module) -> bool:
    """Whether a layer of torch gives a value for each value, without a product."""
    plain = type(module).__module__.startswith("torch.nn.modules.")
    return plain and (type(module) in _NORMS or is_a(module_op_name(module), Trait.POINTWISE))


def _of_torch(function: Any) -> bool:
    """Whether a function is one of torch or of Python, and no other of such a name."""
    return str(getattr(function, "__module__", None) or "torch").split(".")[0] in ("torch", "_operator", "builtins")


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001  # counts writes; it has no public name


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _apart(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A run that changes nothing, with what the counter can count."""
    with buffers_kept(module), torch.no_grad(), seeded(device), attention_in_parts():
        yield


def _attention(query: Shape, key: Shape, value: Shape, *_args: object, **_options: object) -> int:
    """The operations of attention in one kernel: those of its two products, of each head with the keys of its group.

    Args:
        query: Shape (..., heads, length, width).
        key: Shape (..., heads or fewer, other length, width).
        value: Shape (..., heads or fewer, other length, width of the values).
    """
    heads = query[:-2]  # of grouped ones torch 2.11 counts none
    count: int = sdpa_flop_count(query, (*heads, *key[-2:]), (*heads, *value[-2:]))
    return count


def _summed(equation: object, *operands: object) -> int:
    """The multiply-accumulates of an ``einsum`` of two values that sums over a dimension which both have, of size 1.

    Torch multiplies there without a matrix product, which its counter does not see.
    """
    terms, arrow, result = str(equation).replace(" ", "").partition("->")
    names = terms.split(",")
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    values = [one for one in given if isinstance(one, Tensor)]
    if not arrow or "." in terms or len(names) != 2 or len(values) != 2:
        return 0
    sizes: dict[str, int] = {}
    for name, value in zip(names, values, strict=True):
        for letter, size in zip(name, value.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values()) if set(names[0]) & set(names[1]) - set(result) else 0

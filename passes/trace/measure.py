"""Measure: what each node of a graph makes, costs, and does to the memory of its inputs."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxdistill.ir.graph import Shape
from fxdistill.ir.running import buffers_kept, example, same, seeded, tensors_in
from fxdistill.passes.trace.probe import Probe


def annotate(module: fx.GraphModule, probe: Probe) -> None:
    """Note shapes and costs at the batch size that was asked for.

    Batch statistics do not run on one image: then both come from two and three images, being affine in the number.
    """
    batch, wanted = len(probe.images), probe.input_shape[0]
    found = _measured(module, probe.images, probe.updates)
    larger = example(module, (batch + 1, *probe.input_shape[1:]))
    try:
        more = found if batch == wanted else _measured(module, larger, probe.updates)
    except Exception:  # noqa: BLE001  # a graph of one batch size: it stays at that
        more = found
    surplus = batch - wanted
    for node, (shape, macs) in found.items():
        other, cost = more[node]
        node.meta["macs"] = macs - surplus * (cost - macs)
        node.meta["shape"] = shape
        if shape is not None and other is not None and len(shape) == len(other):
            node.meta["shape"] = tuple(a - surplus * (b - a) for a, b in zip(shape, other, strict=True))


def _measured(
    module: fx.GraphModule, images: Tensor, updated: Collection[str]
) -> dict[fx.Node, tuple[Shape | None, int]]:
    annotator = _Annotator(module, updated)
    with buffers_kept(module), torch.no_grad(), seeded(images.device), _plain_attention():
        annotator.run(images.clone())
    return annotator.measured


class _Annotator(fx.Interpreter):
    """Runs the graph once and notes what each node makes, costs, and does to the memory of its inputs."""

    def __init__(self, module: fx.GraphModule, updated: Collection[str]) -> None:
        super().__init__(module)
        self.measured: dict[fx.Node, tuple[Shape | None, int]] = {}
        self.updated = updated

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Read a parameter apart from autograd: the counter would hang hooks on it, which need a gradient."""
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) else value

    def run_node(self, n: fx.Node) -> object:
        """Run one node under a counter."""
        inputs = [tensors_in(self.env[source]) for source in n.all_input_nodes]
        versions = [[_version(t) for t in tensors] for tensors in inputs]
        copies = [self._copies(source) for source in n.all_input_nodes]
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        own = {_address(t) for t in tensors_in(value)} - {0}
        n.meta["writes"] = tuple(
            i for i, (tensors, old, copied) in enumerate(zip(inputs, versions, copies, strict=True))
            if [_version(t) for t in tensors] != old or not all(map(same, tensors, copied))
        )  # fmt: skip
        n.meta["shares"] = tuple(i for i, tensors in enumerate(inputs) if own & {_address(t) for t in tensors})
        self.measured[n] = (tuple(value.shape) if isinstance(value, Tensor) else None, counter.get_total_flops() // 2)
        return value

    def _copies(self, node: fx.Node) -> list[Tensor]:
        """The value of a buffer that is updated: batch norm writes its statistics without counting it as a write."""
        tensors = tensors_in(self.env[node])
        return [t.clone() for t in tensors] if node.op == "get_attr" and node.target in self.updated else tensors


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

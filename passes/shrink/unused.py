"""What ``forward`` does not use: a head for training, say. The smaller model keeps it as it is, under its own names.

A graph holds what its nodes name. A node that reads a tensor and is read by none keeps it: it is copied, saved, loaded
and counted like the rest.
"""

import copy
from collections.abc import Iterator, Mapping
from operator import attrgetter

from torch import Tensor, fx, nn

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.graph import Traced, attach


def unused(module: nn.Module, traced: Traced) -> dict[str, Tensor]:
    """The parameters of a model that its graph does not read, by name, with the buffers beside them."""
    used = {id(tensor) for node in traced.graph.nodes for tensor in _read(node, traced.module)}
    tensors = (*module.named_parameters(), *module.named_buffers())
    found = {name: tensor for name, tensor in tensors if id(tensor) not in used}
    owners = {name.rpartition(".")[0] for name, tensor in found.items() if isinstance(tensor, nn.Parameter)}
    return {name: tensor for name, tensor in found.items() if name.rpartition(".")[0] in owners}


def _read(node: fx.Node, root: nn.Module) -> Iterator[Tensor]:
    if node.op == "call_module":
        called = root.get_submodule(str(node.target))
        yield from (*called.parameters(), *called.buffers())
    elif node.op == "get_attr" and node.users:
        value = attrgetter(str(node.target))(root)
        if isinstance(value, Tensor):
            yield value


def keep(module: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Add copies of tensors to a graph module, under their names."""
    known = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    first = next(iter(module.graph.nodes))
    for name, tensor in tensors.items():
        if name in known:
            continue
        attach(module, name, copy.deepcopy(tensor))
        with module.graph.inserting_before(first):
            module.graph.get_attr(name).meta = {"path": name, "scope": name.rpartition(".")[0]}
    module.recompile()


def remarks(tensors: Mapping[str, Tensor]) -> Iterator[Diagnostic]:
    """One remark for each module with parameters that are not used."""
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            owner = name.rpartition(".")[0] or name
            counts[owner] = counts.get(owner, 0) + tensor.numel()
    for owner, count in counts.items():
        yield Diagnostic(
            code="not-pruned", severity="note", where=owner,
            why=f"keeps its {count} parameters: forward does not use them; they stay as they are and are counted",
        )  # fmt: skip

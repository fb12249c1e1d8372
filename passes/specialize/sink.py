"""Sinking: the slices of a program move towards the producers of what they slice.

The rules, and where they end, are those of :mod:`fxdistill.passes.specialize`. A rule applies only where all of it is
known: an operation of another name, a subclass, a hook, a broadcast that is not along the channels, memory that
somebody else looks at, end the way. The slice then stays where it is, which is slower and as right.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fxdistill.errors import InvariantError
from fxdistill.ir.graph import memory, op_name, shape_of, submodule, written
from fxdistill.ir.operators import is_a
from fxdistill.ir.program import Program, tap, tap_copy
from fxdistill.operators import Trait

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_PLAIN_PACKAGES = ("torch.nn.modules.", "torchvision.ops.")


def is_frozen(node: fx.Node) -> bool:
    """Whether the node belongs to a frozen member."""
    return node.meta.get("role") == "model" and bool(node.meta.get("frozen"))


def is_plain(module: nn.Module) -> bool:
    """Whether a module is what its class says: a layer of ``torch.nn``, no subclass, without hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        type(module).__module__.startswith(_PLAIN_PACKAGES)
        and not any(getattr(module, name) for name in hooks)
        and "forward" not in vars(module)
    )


class Sinker:
    """Moves the slices of one program towards the producers of what they slice."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = program.graph
        self.adapters = program.get_submodule("adapters") if hasattr(program, "adapters") else nn.Module()
        self.memory = memory(program.graph, program)
        self.moves = 0

    def run(self) -> int:
        """Move every slice as far as it goes; returns the number of moves."""
        pending = [n for n in self.graph.nodes if n.target is torch.index_select and n.meta.get("role") == "adapter"]
        while pending:
            pending.extend(self._sink(pending.pop()))
        return self.moves

    def _sink(self, node: fx.Node) -> list[fx.Node]:
        """Move one slice by one step; returns the slices to go on with."""
        value, dim = node.args[0], node.args[1]
        if not isinstance(value, fx.Node) or not isinstance(dim, int) or len(value.users) != 1:
            return []
        shape = shape_of(value)
        if value.op in ("placeholder", "get_attr") or shape is None or not self._alone(value):
            return []
        module = submodule(self.program, value)
        if module is not None and not is_plain(module):
            return []
        name = op_name(value, self.program)
        inputs = value.all_input_nodes
        unary = len(inputs) == 1 and (is_a(name, Trait.POINTWISE) or value.target in (tap, tap_copy))
        if unary or (len(inputs) == 1 and is_a(name, Trait.POOLING) and dim == 1 and len(shape) == 4):
            return self._through(node, value)
        if is_a(name, Trait.ELEMENTWISE):
            return self._through(node, value)
        if is_a(name, Trait.CONCATENATES):
            return self._through_cat(node, value, shape)
        if module is not None and is_frozen(value):
            return self._narrow(node, value, module)
        return []

    def _alone(self, value: fx.Node) -> bool:
        """Whether what the value overwrites is seen by nobody else."""
        groups = {self.memory[target] for target in written(value, self.program) if target in self.memory}
        shared = [n for n, group in self.memory.items() if group in groups]
        return all(len(n.users) <= 1 and n.op not in ("get_attr", "placeholder") for n in shared)

    def _through(self, node: fx.Node, value: fx.Node, module: nn.Module | None = None) -> list[fx.Node]:
        """slice(f(a, b)) → f(slice(a), slice(b)); operands that broadcast along the dimension stay as they are."""
        dim, full = _dim(node), shape_of(value) or ()
        wanted: dict[fx.Node, fx.Node | None] = {}
        for operand in value.all_input_nodes:
            shape = shape_of(operand)
            if shape is None or (len(shape) != len(full) and shape != ()):
                return []
            if shape and shape[dim] == full[dim]:
                wanted[operand] = _index(node)
            elif shape and shape[dim] != 1:
                return []
        if not wanted:
            return []
        if module is not None:
            self._narrow_module(node, value, module)
        return self._replace(node, value, wanted)

    def _through_cat(self, node: fx.Node, value: fx.Node, full: tuple[int, ...]) -> list[fx.Node]:
        axis = value.kwargs.get("dim", value.args[1] if len(value.args) > 1 else 0)
        parts = value.args[0] if value.args else None
        if not isinstance(axis, int) or axis % len(full) != _dim(node) or not isinstance(parts, list | tuple):
            return []
        keep = self._indices(node)
        wanted: dict[fx.Node, fx.Node | None] = {}
        start = 0
        for part in parts:
            shape = shape_of(part) if isinstance(part, fx.Node) else None
            if not isinstance(part, fx.Node) or shape is None or part in wanted or len(shape) != len(full):
                return []
            width = shape[_dim(node)]
            inside = keep[(keep >= start) & (keep < start + width)] - start
            wanted[part] = self._index_node(inside) if len(inside) else None
            start += width
        value.args = ([part for part in parts if wanted[part] is not None], *value.args[1:])
        return self._replace(node, value, {part: index for part, index in wanted.items() if index is not None})

    def _narrow(self, node: fx.Node, value: fx.Node, module: nn.Module) -> list[fx.Node]:
        """slice(conv(x)) → conv[keep](x), on a copy: the module itself stays as it is."""
        rank, dim = len(shape_of(value) or ()), _dim(node)
        if dim == 1 and (type(module) in NORMS or _is_depthwise(module)):
            return self._through(node, value, module)
        if (dim == 1 and rank > 2 and _is_dense(module)) or (dim == rank - 1 and type(module) is nn.Linear):
            self._narrow_module(node, value, module)
            return self._replace(node, value, {})
        return []

    def _narrow_module(self, node: fx.Node, value: fx.Node, module: nn.Module) -> None:
        keep = self._indices(node)
        target = f"{value.target}_kept_{len(keep)}"
        while _has(self.program, target):
            target += "_"
        self.program.add_submodule(target, narrowed(module, keep))
        value.target = target
        macs = int(value.meta.get("macs", 0)) * len(keep) // (shape_of(value) or (1,))[_dim(node)]
        value.meta = {**value.meta, "macs": macs}

    def _replace(self, node: fx.Node, value: fx.Node, wanted: Mapping[fx.Node, fx.Node | None]) -> list[fx.Node]:
        """Slice the given operands of ``value`` instead of its result."""
        slices: list[fx.Node] = []
        for operand, index in wanted.items():
            with self.graph.inserting_before(value):
                new = self.graph.call_function(torch.index_select, (operand, _dim(node), index))
            new.meta = dict(node.meta)
            value.replace_input_with(operand, new)
            slices.append(new)
        shape = list(shape_of(value) or ())
        shape[_dim(node)] = len(self._indices(node))
        value.meta = {**value.meta, "shape": tuple(shape)}
        node.replace_all_uses_with(value)
        self.graph.erase_node(node)
        for new in slices:  # an index is a constant: it may come first
            self._first_attribute_place().append(_index(new))
        self.moves += 1
        return slices

    def _first_attribute_place(self) -> fx.Node:
        nodes: list[fx.Node] = list(self.graph.nodes)
        return [n for n in nodes if n.op == "placeholder"][-1]

    def _indices(self, node: fx.Node) -> Tensor:
        return self.program.get_buffer(str(_index(node).target))

    def _index_node(self, indices: Tensor) -> fx.Node:
        name = f"keep_part_{sum(1 for _ in self.adapters.buffers())}"
        while hasattr(self.adapters, name):
            name += "_"
        self.adapters.register_buffer(name, indices)
        with self.graph.inserting_after(self._first_attribute_place()):
            new = self.graph.get_attr(f"adapters.{name}")
        new.meta = {"role": "adapter"}
        return new


def _dim(node: fx.Node) -> int:
    dim = node.args[1]
    if not isinstance(dim, int):
        raise InvariantError("a slice without a dimension", where=str(node))
    return dim


def _index(node: fx.Node) -> fx.Node:
    index = node.args[2]
    if not isinstance(index, fx.Node):
        raise InvariantError("a slice without indices", where=str(node))
    return index


def _is_dense(module: nn.Module) -> bool:
    return type(module) in CONVOLUTIONS and isinstance(module, CONVOLUTIONS) and module.groups == 1


def _is_depthwise(module: nn.Module) -> bool:
    if type(module) not in CONVOLUTIONS or not isinstance(module, CONVOLUTIONS):
        return False
    return module.groups == module.in_channels == module.out_channels != 1


def _has(root: nn.Module, target: str) -> bool:
    try:
        root.get_submodule(target)
    except AttributeError:
        return False
    return True


def fused(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    """A copy of a convolution that computes what a BatchNorm in eval mode makes of its result.

    Where weights have no values (on ``meta``), shapes are all there is to compute.
    """
    if not conv.weight.is_meta:
        return fuse_conv_bn_eval(conv, norm)
    made = _copied(conv)
    made.bias = nn.Parameter(conv.weight.new_empty(conv.out_channels), requires_grad=False)
    return made


def narrowed(module: nn.Module, keep: Tensor) -> nn.Module:
    """A copy of a convolution, linear layer or BatchNorm that computes only the channels in ``keep`` (int64, sorted).

    Its weights are slices of the module's; it is frozen and in the module's mode.
    """
    made = _copied(module)
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.dim() > 0:
            sliced = tensor.detach().index_select(0, keep.to(tensor.device))
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(made, name, nn.Parameter(sliced, requires_grad=False) if is_parameter else sliced)
    sizes = {"out_channels": len(keep), "out_features": len(keep), "num_features": len(keep)}
    if _is_depthwise(module):
        sizes |= {"in_channels": len(keep), "groups": len(keep)}
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(made, name, size)
    return made.train(module.training)


def _copied(module: nn.Module) -> nn.Module:
    """A module that shares its tensors with another, and can be given others."""
    made = copy.copy(module)
    made.__dict__ |= {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers")}
    return made

"""Specialize: the program cut down to one stage.

Only the stage's losses stay; whatever nothing needs any more goes, so that a warm-up stage on a shallow pair runs a
fraction of both networks. Then the frozen teacher is made cheaper, in two rewrites:

    bn(conv(x))                → conv'(x)                       BatchNorm in eval mode is affine per channel
    slice(f(x))                → f(slice(x))                    f acts per channel: ReLU, pooling, BatchNorm …
    slice(a + b)               → slice(a) + slice(b)
    slice(cat(a, b))           → cat(slice(a), slice(b))
    slice(conv(x))             → conv[keep](x)                  fewer filters are computed at all

A slice sinks as far as each value has no other user. That sinking *is* InDistill's pruning of an intermediate layer: each
pruned layer reads the full activation of the unpruned teacher. The proof, run every time: what the stage's losses read
from the teacher is what they read from it before.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fxdistill.errors import InvariantError
from fxdistill.graph import mutates_input, op_name, shape_of, submodule
from fxdistill.passbase import Pass, PassResult
from fxdistill.plan import Stage
from fxdistill.program import Program, Term, tap, tap_copy

TOLERANCE = 1e-4
"""Largest difference of a teacher value before and after, relative to the largest value (float32 rounding)."""

_POINTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh", "clamp",
    "hardswish", "hardsigmoid", "softplus", "identity", "dropout", "contiguous", "clone", "neg", "abs", "sqrt", "pow",
    "stochastic_depth", "tap", "tap_copy",
}  # fmt: skip
_POOLING = {
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "interpolate",
    "upsample",
}
_BINARY = {"add", "sub", "mul", "truediv", "div", "maximum", "minimum"}


@dataclass(frozen=True)
class Specialize(Pass[Program, Program]):
    """Cut a program down to one stage.

    Attributes:
        stage: The stage's name.
    """

    stage: str

    def run(self, source: Program) -> PassResult[Program]:
        """Restrict, fold, sink, remove what is dead."""
        stage = source.find_stage(self.stage)
        program = restricted(source, stage)
        folded = _fold_batch_norms(program)
        sunk = _Sinker(program).run()
        program = _clean(program)
        smaller = len(program.graph.nodes) < len(source.graph.nodes)
        return PassResult(program, modified=bool(smaller or folded or sunk))

    def ensures(self, source: Program, value: Program) -> None:
        """The losses read from the teacher what they read before."""
        before = restricted(source, source.find_stage(self.stage))
        one, other = _teacher_values(before), _teacher_values(value)
        if one is None or other is None:
            return
        for key, first in one.items():
            second = other[key]
            scale = max(1.0, float(first.abs().max()))
            error = float((first - second).abs().max()) / scale
            if not error <= TOLERANCE:
                raise InvariantError(
                    f"specializing changed what '{key}' reads from the teacher, by {error:.1e} of its largest value",
                    where=f"stage {self.stage}",
                )


def restricted(source: Program, stage: Stage) -> Program:
    """The program with only a stage's losses and what they need; nothing is rewritten yet."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in source.graph.nodes:
        if node.op != "output":
            new[node] = graph.node_copy(node, new.__getitem__)
    by_key = {node.meta["key"]: new[node] for node in source.nodes("loss") if "key" in node.meta}
    terms = tuple(
        Term(_key(source, wanted.name, wanted.model_copy(update={"weight": 1.0})), wanted) for wanted in stage.losses
    )
    graph.output({term.key: by_key[term.key] for term in terms})
    _remove_dead(graph)
    program = Program.assemble(source, graph, stages=(stage,), terms=terms)
    program.meta.update(source.meta)
    program.train(source.training)
    return program


def _key(source: Program, name: str, wanted: object) -> str:
    for term in source.terms:
        if term.loss.model_copy(update={"weight": 1.0}) == wanted:
            return term.key
    raise InvariantError(f"the program lacks the loss '{name}'")


def _remove_dead(graph: fx.Graph) -> None:
    """Remove nodes that nothing needs; the inputs stay, so that every stage is called alike.

    A batch norm in training mode has a side effect, its running statistics, but only for what reads it: in a stage that does
    not reach it, it would learn from features that are not trained yet.
    """
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def _clean(program: Program) -> Program:
    """Reassemble after rewriting: unused modules and tensors go."""
    _remove_dead(program.graph)
    clean = Program.assemble(program, program.graph, stages=program.stages, terms=program.terms)
    clean.meta.update(program.meta)
    clean.train(program.training)
    return clean


def _is_teacher(node: fx.Node) -> bool:
    return node.meta.get("role") == "teacher"


def _only_call(program: Program, node: fx.Node) -> bool:
    """Whether no other node calls this node's module."""
    return sum(other.target == node.target for other in program.graph.nodes if other.op == "call_module") == 1


def _fold_batch_norms(program: Program) -> int:
    """Fold the frozen teacher's BatchNorms into the convolutions in front of them; the user's modules stay as they are."""
    folded = 0
    for node in list(program.graph.nodes):
        norm = submodule(program, node)
        if not _is_teacher(node) or not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d | nn.BatchNorm3d):
            continue
        conv_node = node.args[0]
        if not isinstance(conv_node, fx.Node) or len(conv_node.users) != 1 or norm.running_mean is None:
            continue
        conv = submodule(program, conv_node)
        if not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d) or not _only_call(program, conv_node):
            continue
        program.add_submodule(f"{conv_node.target}_folded", fuse_conv_bn_eval(conv, norm))
        conv_node.target = f"{conv_node.target}_folded"
        node.replace_all_uses_with(conv_node)
        program.graph.erase_node(node)
        folded += 1
    return folded


class _Sinker:
    """Moves the slices of one program towards the producers of what they slice."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.moves = 0

    def run(self) -> int:
        """Move every slice as far as it goes; returns the number of moves."""
        pending = [n for n in self.program.graph.nodes if n.op == "call_function" and n.target is torch.index_select]
        while pending:
            pending.extend(self._sink(pending.pop()))
        return self.moves

    def _sink(self, node: fx.Node) -> list[fx.Node]:
        """Move one slice by one step; returns the slices to go on with."""
        value, dim = node.args[0], node.args[1]
        if not isinstance(value, fx.Node) or not isinstance(dim, int) or len(value.users) != 1:
            return []
        name = op_name(value, self.program)
        module = submodule(self.program, value)
        source = value.args[0] if value.args else None
        if mutates_input(value, self.program) and isinstance(source, fx.Node) and len(source.users) > 1:
            return []
        if value.op in ("placeholder", "get_attr"):
            return []
        if name in _POINTWISE or (name in _POOLING and dim == 1) or (value.target in (tap, tap_copy)):
            return self._through(node, value, [source])
        if name in _BINARY:
            return self._through(node, value, list(value.args))
        if name in ("cat", "concat") and self._axis(value) == dim:
            return self._through_cat(node, value)
        if _is_teacher(value) and module is not None:
            return self._narrow(node, value, module)
        return []

    def _through(self, node: fx.Node, value: fx.Node, operands: list[object]) -> list[fx.Node]:
        """slice(f(a, b)) → f(slice(a), slice(b)); operands that broadcast along the dimension stay as they are."""
        dim = int(node.args[1])  # type: ignore[arg-type]
        full = shape_of(value)
        slices: list[fx.Node] = []
        for operand in operands:
            if not isinstance(operand, fx.Node):
                continue
            shape = shape_of(operand)
            if full is None or shape is None:
                return []
            if len(shape) != len(full):
                if shape != ():
                    return []
                continue
            if shape[dim] == full[dim]:
                slices.append(operand)
            elif shape[dim] != 1:
                return []
        return self._replace(node, value, dict.fromkeys(slices, node.args[2]))

    def _through_cat(self, node: fx.Node, value: fx.Node) -> list[fx.Node]:
        dim = int(node.args[1])  # type: ignore[arg-type]
        keep = self._indices(node)
        parts = [part for part in value.args[0] if isinstance(part, fx.Node)]  # type: ignore[union-attr]
        wanted: dict[fx.Node, object] = {}
        start = 0
        for part in parts:
            shape = shape_of(part)
            if shape is None or part in wanted:
                return []
            inside = keep[(keep >= start) & (keep < start + shape[dim])] - start
            wanted[part] = self._index_node(node, inside)
            start += shape[dim]
        return self._replace(node, value, wanted)

    def _replace(self, node: fx.Node, value: fx.Node, wanted: dict[fx.Node, object]) -> list[fx.Node]:
        """Slice the given operands of ``value`` instead of its result."""
        slices: dict[fx.Node, fx.Node] = {}
        for operand, index in wanted.items():
            with self.program.graph.inserting_before(value):
                new = self.program.graph.call_function(torch.index_select, (operand, node.args[1], index))
            new.meta = dict(node.meta)
            slices[operand] = new
        for operand, new in slices.items():
            value.replace_input_with(operand, new)
        kept = len(self._indices(node))
        shape = list(shape_of(value) or ())
        if shape:
            shape[int(node.args[1])] = kept  # type: ignore[arg-type]
            value.meta = {**value.meta, "shape": tuple(shape)}
        node.replace_all_uses_with(value)
        self.program.graph.erase_node(node)
        self.moves += 1
        for new in slices.values():  # an index is a constant: it may come first
            index = new.args[2]
            if isinstance(index, fx.Node):
                first = next(iter(self.program.graph.nodes))
                if index is not first:
                    first.prepend(index)
        return list(slices.values())

    def _narrow(self, node: fx.Node, value: fx.Node, module: nn.Module) -> list[fx.Node]:
        """slice(conv(x)) → conv[keep](x), on a copy: the module itself stays as it is."""
        keep, dim = self._indices(node), node.args[1]
        per_channel = isinstance(module, nn.BatchNorm2d) or _is_depthwise(module)
        if not (dim == 1 and (per_channel or _is_plain_conv(module))) and not (
            isinstance(module, nn.Linear) and dim in (-1, len(shape_of(value) or ()) - 1)
        ):
            return []
        target = f"{value.target}_kept_{len(keep)}"
        while hasattr(self.program, "teacher") and _has(self.program, target):
            target += "_"
        self.program.add_submodule(target, narrowed(module, keep))
        value.target = target
        value.meta = {
            **value.meta,
            "macs": int(value.meta.get("macs", 0)) * len(keep) // max(1, _width(module)),
        }
        return self._through(node, value, [value.args[0]]) if per_channel else self._replace(node, value, {})

    def _indices(self, node: fx.Node) -> Tensor:
        index = node.args[2]
        if not isinstance(index, fx.Node):
            raise InvariantError("a slice without indices")
        return self.program.get_buffer(str(index.target))

    def _index_node(self, node: fx.Node, indices: Tensor) -> fx.Node:
        name = f"keep_{len(list(self.program.adapters.named_buffers()))}_{len(indices)}"
        self.program.adapters.register_buffer(name, indices)
        with self.program.graph.inserting_before(node):
            new = self.program.graph.get_attr(f"adapters.{name}")
        new.meta = {"role": "adapter"}
        return new

    @staticmethod
    def _axis(value: fx.Node) -> object:
        return value.kwargs.get("dim", value.args[1] if len(value.args) > 1 else 0)


def _is_plain_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module.groups == module.in_channels == module.out_channels > 1
    )


def _width(module: nn.Module) -> int:
    weight = module.weight
    return int(weight.shape[0]) if isinstance(weight, Tensor) else 1


def _has(root: nn.Module, target: str) -> bool:
    try:
        root.get_submodule(target)
    except AttributeError:
        return False
    return True


def narrowed(module: nn.Module, keep: Tensor) -> nn.Module:
    """A copy of a convolution, linear layer or BatchNorm that computes only the channels in ``keep`` (int64, sorted).

    Its weights are slices of the module's; it is frozen and in eval mode.
    """
    copy: nn.Module = _shallow(module)
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.dim() > 0:
            sliced = tensor.detach().index_select(0, keep.to(tensor.device))
            setattr(
                copy,
                name,
                nn.Parameter(sliced, requires_grad=False) if isinstance(tensor, nn.Parameter) else sliced,
            )
    sizes = {"out_channels": len(keep), "out_features": len(keep), "num_features": len(keep)}
    if _is_depthwise(module):
        sizes |= {"in_channels": len(keep), "groups": len(keep)}
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(copy, name, size)
    return copy.eval()


def _shallow(module: nn.Module) -> nn.Module:
    copy = type(module).__new__(type(module))
    copy.__dict__ = {
        **module.__dict__,
        "_parameters": dict(module._parameters),
        "_buffers": dict(module._buffers),
    }  # noqa: SLF001
    return copy


def _teacher_values(program: Program) -> dict[str, Tensor] | None:
    """What each loss reads from the teacher, on a seeded batch."""
    read = {
        str(node.meta["key"]): node.args[1]
        for node in program.nodes("loss")
        if isinstance(node.args[1], fx.Node) and _depends_on_teacher(node.args[1])
    }
    if not read:
        return None
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op != "output":
            new[node] = graph.node_copy(node, new.__getitem__)
    graph.output({key: new[value] for key, value in read.items()})
    _remove_dead(graph)
    module = fx.GraphModule(program, graph)
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    images = torch.randn(program.meta["input_shape"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values: dict[str, Tensor] = module.eval()(images.to(device), None)
    return values


def _depends_on_teacher(node: fx.Node, seen: set[fx.Node] | None = None) -> bool:
    seen = set() if seen is None else seen
    if node in seen:
        return False
    seen.add(node)
    return _is_teacher(node) or any(_depends_on_teacher(source, seen) for source in node.all_input_nodes)

"""FX vocabulary: what a traced model is, and how its nodes are named, found and read.

A node is named by its **path**: the path of the module it lies in plus, for what is not a module call, the name
of the operation, with ``_1``, ``_2`` … for repetitions, as in torchvision's feature extraction
(``layer1.1.relu_1``, ``layer1.1.add``). Paths are stable under retracing, so that plans can refer to them, and both
modes have those of the eval mode (:mod:`fxdistill.passes.trace.paths`). A module's own path (``layer1``) stands for
the node at which that module's scope ends.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from fxdistill.errors import PairingError
from fxdistill.ir import outputs
from fxdistill.ir.operators import IN_PLACE_OPERATORS, bare_name, is_a
from fxdistill.ir.running import attributes_kept, in_mode
from fxdistill.operators import Trait
from fxdistill.plan.schema import Rung

Shape = tuple[int, ...]
LADDER: tuple[Rung, ...] = ("symbolic", "leaves", "export")
"""How a model may be traced, in the order in which it is tried."""


@dataclass(frozen=True)
class Traced:
    """A model as an FX graph.

    Attributes:
        module: The graph; its parameters and buffers **are** those of the traced model. Its modules are too, so that
            the mode is common to both: run the graph inside :meth:`running`. Every node's ``meta`` holds ``path``
            (str), ``scope`` (path of the innermost module), ``shape`` (tuple, or None where the value is not one
            tensor), ``macs`` (multiply-accumulates at ``input_shape``) and, as it was seen when it ran, which of its
            inputs (positions in ``all_input_nodes``) the node ``writes`` into and ``shares`` memory with.
        rung: How it was traced.
        training: The mode that is frozen into the graph.
        input_shape: Shape of the one input, batch included.
        entry: Which entry of a structured output is the prediction.
        held: The modules that the model's own ``train()`` leaves in eval mode (normalisations that stay as they are).
        compared: The graph's code that was found to answer like the module; '' for none.
    """

    module: fx.GraphModule
    rung: Rung
    training: bool
    input_shape: Shape
    entry: str = ""
    held: tuple[str, ...] = ()
    compared: str = field(default="", repr=False, compare=False)

    @contextmanager
    def running(self) -> Iterator[fx.GraphModule]:
        """The graph in the mode that it was traced in; afterwards every module has its mode and attributes back."""
        with attributes_kept(self.module), in_mode(self.module, training=self.training, held=self.held) as module:
            yield module

    @property
    def graph(self) -> fx.Graph:
        """The FX graph."""
        return self.module.graph

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass at ``input_shape``."""
        return sum(macs_of(node) for node in self.graph.nodes)

    @property
    def images(self) -> int:
        """How many images the batch at ``input_shape`` has."""
        return max(1, self.input_shape[0])

    @property
    def macs_of_image(self) -> int:
        """Multiply-accumulates of an image: what a model is said to cost."""
        return round(self.macs / self.images)

    @property
    def input(self) -> fx.Node:
        """The placeholder of the image batch."""
        return _first(self.graph, "placeholder")

    @property
    def output_value(self) -> Any:
        """What the graph returns: a node, or a structure of nodes."""
        return _first(self.graph, "output").args[0]

    @property
    def output(self) -> fx.Node:
        """The node whose value is the prediction: the output, or the main entry of a structured one."""
        return main_output(self.graph, self.entry)


def ladder(first: Rung) -> tuple[Rung, ...]:
    """The ladder with one rung first: the one that a plan names, the others behind it."""
    return (first, *(rung for rung in LADDER if rung != first))


def path_of(node: fx.Node) -> str:
    """The stable path of a traced node."""
    return str(node.meta["path"])


def scope_of(node: fx.Node) -> str:
    """The path of the innermost module that the node lies in; '' at the top."""
    return str(node.meta["scope"])


def shape_of(node: fx.Node) -> Shape | None:
    """The shape of the node's value, None where it is not one tensor."""
    shape: Shape | None = node.meta.get("shape")
    return shape


def macs_of(node: fx.Node) -> int:
    """Multiply-accumulates of the node at the traced input shape."""
    return int(node.meta.get("macs", 0))


def main_output(graph: fx.Graph, entry: str = "") -> fx.Node:
    """The node that holds the prediction.

    Args:
        graph: A model's graph.
        entry: Which entry of a structured output is the prediction, '' for the rule of :mod:`fxdistill.ir.outputs`.

    Raises:
        ModelError: There is no such entry.
        PairingError: No node holds it.
    """
    value = outputs.find(_first(graph, "output").args[0], entry)
    if not isinstance(value, fx.Node) or ("shape" in value.meta and shape_of(value) is None):
        raise PairingError(
            "the model's output is not a tensor", where=str(value),
            hint="return the prediction, or a dict or a tuple that holds it, and name the entry (--teacher-output, "
            "--student-output, --output-entry)",
        )  # fmt: skip
    return value


def _first(graph: fx.Graph, op: str) -> fx.Node:
    nodes: Iterable[fx.Node] = graph.nodes
    return next(node for node in nodes if node.op == op)


def find(traced: Traced, path: str) -> fx.Node:
    """The node with this path; a module's path gives the node at which its scope ends.

    Raises:
        PairingError: There is none; the closest names are given.
    """
    ends = False
    nodes: list[fx.Node] = [n for n in traced.graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    for node in nodes:
        if path_of(node) == path:
            return node
        if _lies_in(node, path):
            ends = True
    if ends:
        return scope_end(traced, path)
    inside = dict.fromkeys(scope for n in nodes for scope in modules_around(scope_of(n)))
    known = [*inside, *(path_of(n) for n in nodes)]
    ending = sorted((one for one in known if one.endswith(f".{path}")), key=len)
    near = ending[:3] or difflib.get_close_matches(path, known, n=3, cutoff=0.3)
    mode = " in training mode" if traced.training else ""
    raise PairingError(
        f"no node or module has the path '{path}'{mode}",
        where=path,
        hint=f"did you mean {', '.join(near)}?" if near else "use a module path of the model",
    )


def modules_around(scope: str) -> Iterator[str]:
    """The paths of the modules that a scope lies in, the outermost first, and its own."""
    parts = scope.split(".") if scope else []
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def scope_end(traced: Traced, path: str) -> fx.Node:
    """The last node of a module's scope whose value is used outside of it.

    Raises:
        PairingError: Nothing of that module is used outside of it.
    """
    nodes: Iterable[fx.Node] = traced.graph.nodes
    inside = [n for n in nodes if _lies_in(n, path)]
    chosen = set(inside)
    for node in reversed(inside):
        if any(user not in chosen for user in node.users):
            return node
    raise PairingError(f"no value of '{path}' is used outside of it", where=path)


def _lies_in(node: fx.Node, path: str) -> bool:
    """Whether a node is a module, or lies in it: the last node of a module may be named for what lies deeper."""
    return node.op not in ("placeholder", "output", "get_attr") and (
        within(scope_of(node), path) or within(path_of(node), path)
    )


def within(scope: str, path: str) -> bool:
    """Whether a scope is a module path or lies below it."""
    return scope == path or scope.startswith(path + ".")


def submodule(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a ``call_module`` node calls, None for other nodes."""
    if node.op != "call_module":
        return None
    found: nn.Module = functools.reduce(getattr, str(node.target).split("."), root)  # get_submodule looks thrice
    return found


def attach(root: nn.Module, path: str, value: Tensor | nn.Module) -> None:
    """Register a parameter, a buffer or a module at a path, with empty modules around it where there are none."""
    *scope, leaf = path.split(".")
    for part in scope:
        if not isinstance(getattr(root, part, None), nn.Module):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Module):
        root.add_module(leaf, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value)


def weights_of(node: fx.Node, traced: Traced) -> tuple[str, ...]:
    """The names of the parameters that a node reads itself."""
    if node.op == "call_module":
        owned = traced.module.get_submodule(str(node.target)).named_parameters(remove_duplicate=False)
        return tuple(f"{node.target}.{name}" for name, _ in owned)
    known = {name for name, _ in traced.module.named_parameters(remove_duplicate=False)}
    read = (str(source.target) for source in node.all_input_nodes if source.op == "get_attr")
    return tuple(name for name in read if name in known)


def op_name(node: fx.Node, root: nn.Module) -> str:
    """One name for an operation, however it is spelled.

    ``nn.Conv2d``, ``F.conv2d``, ``torch.conv2d`` and ``aten.conv2d.default`` are all ``conv2d``; ``x + y``, ``x += y``,
    ``torch.add`` and ``x.add_(y)`` are all ``add``. An attribute (``x.mT``, ``x.shape``) goes by its name. Modules of
    other packages keep their class name in snake case.
    """
    module = submodule(root, node)
    if module is not None:
        return module_op_name(module)
    if node.op not in ("call_function", "call_method"):
        return node.op
    return bare_name(str(node.args[1]) if node.target is getattr else node.target)


def module_op_name(module: nn.Module) -> str:
    """The operation of a leaf module: its class name in snake case without the dimension of norms and dropouts."""
    return _operation(type(module).__name__)


@functools.cache
def _operation(name: str) -> str:
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    snake = {"re_lu": "relu", "re_lu6": "relu6", "si_lu": "silu", "gelu": "gelu", "p_re_lu": "prelu",
             "leaky_re_lu": "leaky_relu", "se_lu": "selu", "ce_lu": "celu"}.get(snake, snake)  # fmt: skip
    return re.sub(r"^(batch_norm|instance_norm|dropout|sync_batch_norm)\d?d?$", r"\1", snake)


def mutates_input(node: fx.Node, root: nn.Module) -> bool:
    """Whether the node writes into one of its inputs (in-place activations, ``+=``, ``relu_``, ``out=``)."""
    return bool(written(node, root))


def written(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """The input nodes whose memory the node writes into: seen when it ran, or known from how it is called."""
    found: list[Any] = [node.all_input_nodes[position] for position in node.meta.get("writes", ())]
    if node.op in ("call_module", "call_function", "call_method") and _is_in_place(node, root):
        found.append(node.args[0] if node.args else node.kwargs.get("input"))
    found.append(node.kwargs.get("out"))
    return [source for source in dict.fromkeys(found) if isinstance(source, fx.Node)]


def memory(
    graph: fx.Graph, root: nn.Module, writes: Mapping[fx.Node, list[fx.Node]] | None = None
) -> dict[fx.Node, int]:
    """A number for each node; nodes with the same number may share memory: views of one another, in-place results.

    ``writes``: what :func:`written` says of each node, where that is known.
    """
    group: dict[fx.Node, int] = {}
    members: dict[int, list[fx.Node]] = {}
    for number, node in enumerate(graph.nodes):
        group[node], members[number] = number, [node]
        if node.op == "output":
            continue
        joined = {node.all_input_nodes[position] for position in node.meta.get("shares", ())}
        joined |= set(written(node, root) if writes is None else writes[node])
        if is_a(op_name(node, root), Trait.VIEW):
            joined |= set(node.all_input_nodes[:1])
        for old in {group[source] for source in joined}:
            members[number] += members[old]
            group.update(dict.fromkeys(members.pop(old), number))
    return group


def _is_in_place(node: fx.Node, root: nn.Module) -> bool:
    module = submodule(root, node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.target in IN_PLACE_OPERATORS or node.kwargs.get("inplace"):
        return True
    name = _function_name(node.target)
    return (name.endswith("_") and not name.endswith("__")) or _inplace_argument(node)


def _inplace_argument(node: fx.Node) -> bool:
    """Whether ``inplace`` was given by position, as in ``F.relu(x, True)``."""
    position = _inplace_position(node.target)
    return position is not None and position < len(node.args) and bool(node.args[position])


@functools.cache
def _inplace_position(function: Any) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (ValueError, TypeError):  # builtins have none
        return None
    return names.index("inplace") if "inplace" in names else None


def _function_name(target: Any) -> str:
    if hasattr(target, "overloadpacket"):  # aten.conv2d.default
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))

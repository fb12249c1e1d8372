"""Which parameters a value depends on, told from its graph.

A parameter is **reached** where its gradient can be other than zero: it is read on a way to the value on which nothing
stops gradients (``detach``, ``argmax``, comparisons …). Memory counts like values: what a node writes into in place is
part of what is read from there later.
"""

from collections.abc import Iterable
from operator import attrgetter

from torch import fx, nn

from fxdistill.ir.graph import memory, modules_around, op_name, submodule, written
from fxdistill.ir.operators import is_a
from fxdistill.operators import Trait

_STOPS = frozenset((
    "detach", "data", "argmax", "argmin", "argsort", "zeros_like", "ones_like", "rand_like", "randn_like", "empty_like",
))  # fmt: skip


def reached(root: nn.Module, graph: fx.Graph, values: Iterable[fx.Node], *, by_gradients: bool = True) -> set[int]:
    """The parameters that some values of a graph depend on, as the ids of the parameters.

    Args:
        root: The module that owns the graph's targets.
        graph: The graph.
        values: Nodes of it.
        by_gradients: Whether a way counts only where gradients pass it; else every one does.
    """
    group = memory(graph, root)
    live, read = set(values), {group[value] for value in values}
    found: set[int] = set()
    for node in reversed(list(graph.nodes)):
        if node.op in ("placeholder", "output") or not (node in live or _writes(node, root, group, read)):
            continue
        found |= {id(parameter) for parameter in _own(root, node)}
        if not (by_gradients and _stops(node, root)):
            live.update(node.all_input_nodes)
            read.update(group[source] for source in node.all_input_nodes)
    return found


def _writes(node: fx.Node, root: nn.Module, group: dict[fx.Node, int], read: set[int]) -> bool:
    return node.op != "get_attr" and any(group[target] in read for target in written(node, root))


def _stops(node: fx.Node, root: nn.Module) -> bool:
    if not node.op.startswith("call"):
        return False
    name = op_name(node, root)
    return name in _STOPS or is_a(name, Trait.BOOLEAN) or is_a(name, Trait.METADATA)


def _own(root: nn.Module, node: fx.Node) -> Iterable[nn.Parameter]:
    """The parameters that a node reads itself."""
    module = submodule(root, node)
    if module is not None:
        return module.parameters()
    if node.op != "get_attr":
        return ()
    value = attrgetter(str(node.target))(root)
    return (value,) if isinstance(value, nn.Parameter) else ()


def gathered(module: nn.Module, parameters: set[int]) -> list[str]:
    """Names for some parameters of a module: that of the outermost part all of whose parameters they are, or their own.

    Args:
        module: The module.
        parameters: The ids of the parameters.
    """
    own = {name: id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}
    found: list[str] = []
    for name, parameter in own.items():
        if parameter in parameters and not any(name.startswith(f"{part}.") for part in found):
            scopes = modules_around(name.rpartition(".")[0])
            whole = (s for s in scopes if all(p in parameters for n, p in own.items() if n.startswith(f"{s}.")))
            found.append(next(whole, name))
    return found


def of_images(graph: fx.Graph) -> set[fx.Node]:
    """The values that the images decide: the others are weights, and what is computed of them."""
    found = set[fx.Node]()
    for node in graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found

"""Effects: what a tracer records as a call for its effect, or not at all, becomes values in the graph.

    y.unsqueeze_(1); f(y)                 →   z = y.unsqueeze(1); f(z)
    with torch.no_grad(): y = f(x)        →   y = f(x); z = y.detach()
    Function.apply(x)                     →   one node, not what its forward is made of

A value of a graph has one shape, and one answer to whether gradients go through it, whatever is done later.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function
from torch.utils.checkpoint import CheckpointFunction

from fxdistill.ir.operators import bare_name

WITHOUT_GRADIENT = "without gradient"
"""What marks, in ``meta``, a node that was made where gradients were off."""
_RESHAPED = frozenset(("unsqueeze", "squeeze", "transpose", "swapaxes", "swapdims", "t"))


def shapes_as_values(graph: fx.Graph) -> None:
    """Give what changes the shape of a value in place a value of its own, which everything after it reads."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        name = bare_name(node.target) if node.op in ("call_function", "call_method") else ""
        changed = node.args[0] if node.args else None
        if name not in _RESHAPED or not isinstance(changed, fx.Node) or not _called(node).endswith("_"):
            continue
        node.target = name if node.op == "call_method" else getattr(torch, name)
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)


def _called(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def detach_marked(graph: fx.Graph) -> None:
    """Let no gradient through what was computed where gradients were off, as in the module."""
    for node in list(graph.nodes):
        outside = [user for user in node.users if WITHOUT_GRADIENT not in user.meta]
        if WITHOUT_GRADIENT not in node.meta or not outside:
            continue
        with graph.inserting_after(node):
            made = graph.call_method("detach", (node,))
        made.meta = dict(node.meta)
        for user in outside:
            user.replace_input_with(node, made)


@contextmanager
def own_gradients(make: Callable[..., Any]) -> Iterator[None]:
    """Functions with a gradient of their own become one node each; one that only saves memory is what it computes.

    Args:
        make: Makes a node of a function, arguments and keyword arguments.
    """
    original = Function.__dict__["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
            return original.__get__(None, cls)(*args, **kwargs)
        if cls is CheckpointFunction:
            function, _, *rest = args
            return function(*rest)
        return make(_as_function(original.__get__(None, cls), cls), args, kwargs)

    Function.apply = classmethod(apply)
    try:
        yield
    finally:
        Function.apply = original


def _as_function(apply: Callable[..., Any], cls: type[Function]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        return apply(*args, **kwargs)

    called.__name__ = called.__qualname__ = cls.__name__
    called.__module__ = cls.__module__
    return called


def gradient_ways(outputs: list[Tensor]) -> tuple[set[int], list[str]]:
    """Where gradients of some tensors arrive: the ids of leaves, and the functions on the way that have their own."""
    leaves: set[int] = set()
    functions: list[str] = []
    stack: list[Any] = [value.grad_fn for value in outputs]
    seen: set[Any] = {None}
    while stack:
        step = stack.pop()
        if step in seen:
            continue
        seen.add(step)
        if hasattr(step, "variable"):
            leaves.add(id(step.variable))
        if isinstance(step, torch.autograd.function.BackwardCFunction):
            functions.append(type(step).__name__.removesuffix("Backward"))
        stack.extend(following for following, _ in step.next_functions)
    return leaves, sorted(functions)

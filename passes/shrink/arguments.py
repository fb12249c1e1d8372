"""Arguments of a node: constants, and numbers that the graph computes from widths.

A number in the graph has two values: that of the full model, which says what is meant, and that of the smaller one,
where it comes out of smaller widths. A rule reads what is meant, works out what is right now, and changes an argument
only where it would come out wrong: sizes that come out right stay computed. One that comes out wrong becomes a
constant or, where it goes by how many images there are and how large, what it is times what is right over what it is
here: ``batch * 16``, of 16 channels half of which stay, is right for any batch as ``batch * 16 * 8 // 16``.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, Protocol

from torch import fx

from fxdistill.ir.graph import Shape, path_of
from fxdistill.ir.survivors import Survivors


class Obstacle(Exception):  # noqa: N818  # not an error of the model: the reason why a part of it has to stay
    """A removal that cannot be carried out at some node.

    Attributes:
        path: The node, or the parameter.
        fused: Whether tracing in smaller operations would help.
    """

    def __init__(self, why: str, *, path: str, fused: bool = False) -> None:
        super().__init__(f"{why} at '{path}'")
        self.why, self.path, self.fused = why, path, fused


class Rewriting(Protocol):
    """What the rules need of the interpreter that runs the shrunken graph."""

    graph: fx.Graph
    root: fx.GraphModule
    env: dict[fx.Node, Any]
    survivors: Survivors
    shapes: dict[str, Shape | None]
    scalars: dict[str, Any]

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""

    def varies(self, path: str, index: int | None = None) -> bool:
        """Whether a number of the full model, or one of several, depends on the images."""


def argument(node: fx.Node, position: int, *names: str, default: Any = None) -> Any:
    """An argument as it stands in the graph."""
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def meant(value: Any, run: Rewriting) -> Any:
    """A nested argument with every computed number as the full model has it."""
    return _plain(fx.map_arg(value, lambda n: run.scalars.get(path_of(n), run.env.get(n))))


def now(value: Any, run: Rewriting) -> Any:
    """A nested argument with every computed number as it comes out of the smaller widths."""
    return _plain(fx.map_arg(value, run.env.get))


def correct(node: fx.Node, run: Rewriting, position: int, value: Any, *names: str, inferred: bool = False) -> None:
    """Set an argument to its right value, unless it comes out right already; -1 may stand for an ``inferred`` size."""
    given = argument(node, position, *names)
    if given is not None and now(given, run) == _plain(value):
        return
    if given is not None and isinstance(value, tuple | list):
        value = entries(given, value, node, run, inferred=inferred)
    elif given is not None:
        value = adapted(given, value, node, run)
    if len(node.args) > position:
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        key = next((name for name in names if name in node.kwargs), names[0])
        node.kwargs = {**node.kwargs, key: value}


def entries(
    given: Any, right: Sequence[Any], before: fx.Node, run: Rewriting, *, inferred: bool = False
) -> tuple[Any, ...]:
    """Numbers as they stand in the graph, the wrong ones replaced; -1 may stand for what is ``inferred``."""
    values = now(given, run)
    if not isinstance(values, tuple | list) or len(values) != len(right):
        return tuple(right)
    fine = [one == other or (inferred and one == -1) for one, other in zip(values, right, strict=True)]
    if not isinstance(given, fx.Node):
        return tuple(given[i] if ok else adapted(given[i], right[i], before, run) for i, ok in enumerate(fine))
    path = path_of(given)
    single = [_picked(given, i, before, run) if ok or run.varies(path, i) else None for i, ok in enumerate(fine)]
    return tuple(
        right[i] if one is None else one if fine[i] else _share(one, right[i], before, run)
        for i, one in enumerate(single)
    )


def adapted(given: Any, right: Any, before: fx.Node, run: Rewriting) -> Any:
    """The right value in place of a number of the graph: a constant, or a share of the number where that varies."""
    varies = isinstance(given, fx.Node) and run.varies(path_of(given))
    return _share(given, right, before, run) if varies else right


def _share(number: fx.Node, right: Any, before: fx.Node, run: Rewriting) -> Any:
    """A number of the graph times what is right over what it is here."""
    here = run.env[number]
    if not here:
        return right
    if not (isinstance(here, int) and isinstance(right, int)):
        return _inserted((operator.mul, number, right / here), before, run, "share")
    shared = math.gcd(here, right)
    times = _inserted((operator.mul, number, right // shared), before, run, "times")
    return _inserted((operator.floordiv, times, here // shared), before, run, "share")


def _picked(shape: fx.Node, index: int, before: fx.Node, run: Rewriting) -> fx.Node:
    return _inserted((operator.getitem, shape, index), before, run, f"size_{index}")


def _inserted(call: tuple[Any, fx.Node, Any], before: fx.Node, run: Rewriting, name: str) -> fx.Node:
    function, one, other = call
    with run.graph.inserting_before(before):
        new = run.graph.call_function(function, (one, other))
    new.meta = {"path": f"{path_of(before)}.{name}", "scope": before.meta.get("scope", "")}
    run.env[new] = function(run.env[one], other)
    return new


def keep_numbers(node: fx.Node, run: Rewriting) -> None:
    """Numbers computed from widths and used as numbers (the scale of an attention) keep the full model's value."""

    def kept(source: fx.Node) -> Any:
        value, full = run.env.get(source), run.scalars.get(path_of(source))
        if isinstance(value, int | float) and isinstance(full, int | float):
            return adapted(source, full, node, run) if value != full else source
        if isinstance(value, tuple | list) and isinstance(full, tuple | list) and _plain(value) != _plain(full):
            return entries(source, full, node, run)
        return source

    if node.op != "output":
        node.args = fx.map_arg(node.args, kept)
        node.kwargs = fx.map_arg(node.kwargs, kept)


def _plain(value: Any) -> Any:
    """Sequences of any kind as tuples, to be compared."""
    return tuple(_plain(item) for item in value) if isinstance(value, tuple | list) else value

"""Rewrites of what takes pieces: a slice of the full dimension is one of the survivors, if they lie side by side."""

from typing import Any

import torch
from torch import Tensor, fx

from fxdistill.ir.graph import path_of
from fxdistill.ir.survivors import Mask, Masks
from fxdistill.passes.shrink.arguments import Obstacle, Rewriting, argument, correct, meant, now


def narrow(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """``x.narrow(dim, start, length)``."""
    names = ((1, "dim"), (2, "start"), (3, "length"))
    dim, start, length = (int(meant(argument(node, position, name), run)) for position, name in names)
    right = _moved(node, run, dim, slice(start, start + length))
    correct(node, run, 2, right.start, "start")
    correct(node, run, 3, right.stop - right.start, "length")


def aten_slice(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """``aten.slice(x, dim, start, end, step)``."""
    dim = int(argument(node, 1, "dim", default=0))
    wanted = slice(*(meant(argument(node, i, name), run) for i, name in ((2, "start"), (3, "end"), (4, "step"))))
    right = _moved(node, run, dim, wanted)
    if right != wanted:
        node.args, node.kwargs = (node.args[0], dim, right.start, right.stop), {}


def select(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """``x.select(dim, index)``."""
    dim, index = (int(meant(argument(node, i, name), run)) for i, name in ((1, "dim"), (2, "index")))
    correct(node, run, 2, _moved(node, run, dim, _one(index)).start, "index")


def getitem(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """Slices and indices of a tensor in Python's notation."""
    source, given = node.args
    value = run.env.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(value, Tensor):
        return
    index: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
    dim = 0
    new: list[Any] = []
    for entry in index:
        if entry is Ellipsis:
            dim = value.dim() - sum(1 for e in index[index.index(Ellipsis) + 1 :] if e is not None)
        new.append(_indexed(node, run, dim, value.shape[dim], entry) if _is_place(entry, run) else entry)
        dim += entry is not None and entry is not Ellipsis
    node.args = (source, tuple(new) if isinstance(given, tuple) else new[0])


def _is_place(entry: Any, run: Rewriting) -> bool:
    known = meant(entry, run)
    return (isinstance(known, slice) and known != slice(None)) or (isinstance(known, int) and known is not True)


def _indexed(node: fx.Node, run: Rewriting, dim: int, size: int, entry: Any) -> Any:
    """One entry of an index, as it stands if it is right."""
    known, found = meant(entry, run), now(entry, run)
    if isinstance(known, int):
        right = _moved(node, run, dim, _one(known)).start
        return entry if found == right else right
    moved = _moved(node, run, dim, known)
    return entry if range(size)[found] == range(size)[moved] else moved


def _one(index: int) -> slice:
    return slice(index, None if index == -1 else index + 1)


def pieces(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """chunk, split: explicit sizes where the pieces would come out wrong."""
    if not isinstance(masks, list):
        return
    dim = int(argument(node, 2, "dim", default=0))
    source = node.args[0]
    rank = run.env[source].dim() if isinstance(source, fx.Node) else 0
    sizes = [_piece_size(mask, dim % rank, node) for mask in masks]
    try:
        natural = [int(part.shape[dim]) for part in run.run_node(node)]
    except (RuntimeError, ValueError):
        natural = []
    if natural != sizes:
        node.op, node.target = "call_function", torch.split
        node.args, node.kwargs = (source, sizes, dim), {}


def _piece_size(mask: Masks, dim: int, node: fx.Node) -> int:
    if not isinstance(mask, Mask) or mask.sizes is None or mask.sizes[dim] == 0:
        raise Obstacle("what survives of a part is not a box", path=path_of(node))
    return mask.sizes[dim]


def _moved(node: fx.Node, run: Rewriting, dim: int, wanted: slice) -> slice:
    """A slice of the full dimension as one of the survivors; itself where the dimension is as it was."""
    source = node.args[0]
    mask = run.survivors.of_tensor(path_of(source)) if isinstance(source, fx.Node) else None
    if mask is None or mask.whole:
        return wanted
    dim %= len(mask.shape)
    alive = mask.along(dim).expand(mask.shape[dim])
    if bool(alive.all()) and run.env[source].shape[dim] == mask.shape[dim]:  # type: ignore[index]
        return wanted
    rank = (alive.cumsum(0) - 1).tolist()
    places = [rank[i] for i in range(mask.shape[dim])[wanted] if bool(alive[i])]
    contiguous = bool(places) and places == list(range(places[0], places[0] + len(places)))
    if not contiguous or not (mask.is_product or len(places) == len(rank)):
        raise Obstacle("it picks channels that do not lie side by side", path=path_of(node))
    return slice(places[0], places[-1] + 1)

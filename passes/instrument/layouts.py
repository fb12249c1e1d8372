"""Layouts: two taps, each in the layout of its own model, brought to one shape.

tokens and channels-last become NCHW (class token and registers are dropped), and the larger of two maps is
average-pooled to the smaller one. Where both have one layout already, channels come second, where every loss expects
them.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import fx

from fxdistill.errors import PairingError
from fxdistill.plan.schema import Pair, Tap


def call(graph: fx.Graph, role: str, function: object, *arguments: object, member: str = "") -> fx.Node:
    """A new node that calls a function, of a role in the program."""
    node = graph.create_node("call_function", function, arguments)  # type: ignore[arg-type]
    node.meta = {"role": role, **({"member": member} if member else {})}
    return node


def same_layout(graph: fx.Graph, pair: Pair, student: fx.Node, teacher: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two values of a pair, brought to one layout and one size.

    Raises:
        PairingError: They cannot be.
    """
    one, other = pair.student, pair.teacher
    if one.layout == other.layout and _positions(one) == _positions(other) and one.prefix == other.prefix:
        return _channels_second(graph, student, one), _channels_second(graph, teacher, other)
    sizes = [_spatial(tap_) for tap_ in (one, other)]
    student, teacher = _to_nchw(graph, student, one), _to_nchw(graph, teacher, other)
    small = [min(pair_) for pair_ in zip(*sizes, strict=True)]
    if sizes[0] != small:
        student = call(graph, "adapter", F.adaptive_avg_pool2d, student, small)
    if sizes[1] != small:
        teacher = call(graph, "adapter", F.adaptive_avg_pool2d, teacher, small)
    return student, teacher


def _channels_second(graph: fx.Graph, node: fx.Node, tap_: Tap) -> fx.Node:
    """The value with its channels in dimension 1, where every loss expects them; a view."""
    rank = len(tap_.shape)
    order = (0, tap_.channel_dim, *(d for d in range(1, rank) if d != tap_.channel_dim))
    return node if tap_.channel_dim == 1 else call(graph, "adapter", torch.permute, node, order)


def _to_nchw(graph: fx.Graph, node: fx.Node, tap_: Tap) -> fx.Node:
    if tap_.layout == "nchw":
        return node
    if tap_.layout == "nhwc":
        return call(graph, "adapter", torch.permute, node, (0, 3, 1, 2))
    if tap_.layout == "features":
        raise PairingError("a pooled feature cannot be paired with a feature map", where=tap_.path)
    if tap_.prefix:
        node = call(graph, "adapter", torch.narrow, node, 1, tap_.prefix, _positions(tap_)[0] - tap_.prefix)
    node = call(graph, "adapter", torch.transpose, node, 1, 2)
    return call(graph, "adapter", torch.unflatten, node, 2, _spatial(tap_))


def _positions(tap_: Tap) -> list[int]:
    """The sizes of the tap's dimensions without batch and channel."""
    return [size for dim, size in enumerate(tap_.shape) if dim not in (0, tap_.channel_dim)]


def _spatial(tap_: Tap) -> list[int]:
    """Height and width of the tap's positions; a token sequence is taken as a square."""
    positions = _positions(tap_)
    if tap_.layout != "tokens":
        return positions
    side = math.isqrt(positions[0] - tap_.prefix)
    if side * side != positions[0] - tap_.prefix:
        raise PairingError(
            f"{positions[0]} tokens are not a square", where=tap_.path, hint="pair it with a token sequence"
        )
    return [side, side]

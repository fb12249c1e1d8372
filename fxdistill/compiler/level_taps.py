"""What of a cascade's levels is tapped: what masked layers hand on to the layers that read them.

    hints     of each level, behind its gates, what the last three masked layers hand on; projected, it reconstructs
              that of the level above it
    warm-up   of all levels, of the deepest masked layer of each resolution; it imitates the frozen teacher's
    alone     of the student that is cut out, of the last three; it imitates the channels of the frozen teacher that
              are left of it, which is known once it is cut out: :func:`fitted`

Behind its gates, a masked channel is zero: it adds a constant to what a warm-up compares, and learns nothing from it.
The teacher has no gates; of it, and of a level that keeps all, the tap lies where they would be.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from fxdistill.errors import PlanError
from fxdistill.ir import masks
from fxdistill.ir.graph import path_of, shape_of
from fxdistill.passes.mask import kept_of
from fxdistill.passes.mask.maskable import Edge, Layer, Maskable
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.schema import LAYOUTS, Align, Kept, Pair, Tap

if TYPE_CHECKING:
    from fxdistill.plan.document import Plan

_LAST = 3
_Place = tuple[int, Edge]
"""A gate: its number, and where it stands."""


def hints(found: Maskable, names: Sequence[str], teacher: str) -> Iterator[Pair]:
    """The pairs of hints, of each level and the one above it, from the student's up."""
    for below, above in zip(names, [*names[1:], teacher], strict=True):
        for place in _last(found):
            name = f"{below}, {path_of(place[1].source)}"
            yield _pair(name, place, _tap(place, below), _tap(place, above, gated=above != teacher), "project")


def warm_ups(found: Maskable, levels: Mapping[str, Masked], teacher: str) -> Iterator[Pair]:
    """The pairs of a warm-up, of each level and the teacher, for each level from shallow to deep."""
    for name, member in levels.items():
        for place in _deepest(found):
            student, taught = _tap(place, name, gated=member.is_masked), _tap(place, teacher, gated=False)
            yield _pair(f"{name} warms up, {path_of(place[1].source)}", place, student, taught, "slice")


def alone(found: Maskable, student: str, teacher: str) -> Iterator[Pair]:
    """The pairs of the student that is cut out; their widths are those of the whole network."""
    for place in _last(found):
        student_, taught = (_tap(place, name, gated=False) for name in (student, teacher))
        yield _pair(f"{student}, {path_of(place[1].source)}", place, student_, taught, "kept")


def whole(pair: Pair, criterion: str) -> Kept:
    """That a sliced pair keeps all channels of its teacher."""
    width = pair.teacher.width
    return Kept(
        pair=pair.name, path=pair.teacher.path, channels=list(range(width)), width=width, criterion=criterion,
        coupled=[],
    )  # fmt: skip


def fitted(plan: "Plan", modules: Mapping[str, nn.Module]) -> "Plan":
    """The plan with the pairs of what is cut out as wide as masks are now.

    Args:
        plan: The plan.
        modules: Its members; those that something with such a pair is cut out of are read.

    Raises:
        PlanError: The masked member is not there, or has nothing of that name.
    """
    pairs, kept = [], list(plan.kept)
    for pair in plan.pairs:
        member = plan.members[pair.student.member]
        if pair.align != "kept" or not isinstance(member, Hardened):
            pairs.append(pair)
            continue
        left = _left(modules.get(member.of), pair)
        tap = pair.student
        shape = [len(left) if dim == tap.channel_dim else size for dim, size in enumerate(tap.shape)]
        pairs.append(pair.changed(align="slice", student=tap.changed(shape=shape, width=len(left))))
        kept.append(whole(pair, "mask").changed(channels=left))
    return plan.changed(pairs=pairs, kept=kept)


def _left(masked: nn.Module | None, pair: Pair) -> list[int]:
    """Which channels of a pair's teacher are left of a masked member."""
    graph = masked.graph if isinstance(masked, fx.GraphModule) else fx.Graph()
    gates = [node for node in graph.nodes if node.target is masks.gate]
    index = next((node.args[2] for node in gates if path_of(node.args[0]) == pair.teacher.path), None)
    if masked is None or index is None:
        raise PlanError(
            f"no mask lies behind '{pair.teacher.path}'", where=f"pair {pair.name}",
            hint="give the masked member, or plan anew",
        )  # fmt: skip
    alive = torch.cat([kept_of(masked), torch.ones(1)])  # the last one is read by -1: what cannot be masked
    left: list[int] = alive[masked.get_buffer(str(index.target)).cpu()].nonzero().flatten().tolist()
    return left


def _last(found: Maskable) -> list[_Place]:
    """The gates behind the last layers."""
    return [place for layer in found.layers[-_LAST:] if (place := _handed_on(found, layer)) is not None]


def _deepest(found: Maskable) -> list[_Place]:
    """The gates behind the deepest layer of each resolution, from shallow to deep: of as many positions a channel.

    Of what is flattened, the positions of a channel lie side by side in the dimension of the channels.
    """
    places: dict[int, _Place] = {}
    for layer in found.layers:
        if (place := _handed_on(found, layer)) is not None:
            source, index = place[1].source, place[1].index
            times = int((index == found.classes.index(layer.classes[0])).sum())
            places[math.prod((shape_of(source) or ())[1:]) * times // len(index)] = place
    return list(places.values())


def _handed_on(found: Maskable, layer: Layer) -> _Place | None:
    """The first gate that channels of a layer pass; None for one whose value has no layout."""
    first = found.classes.index(layer.classes[0])
    for number, edge in enumerate(found.edges):
        if bool((edge.index == first).any()) and (len(shape_of(edge.source) or ()), edge.dim) in LAYOUTS:
            return number, edge
    return None


def _tap(place: _Place, member: str, *, gated: bool = True) -> Tap:
    number, edge = place
    path = (f"gate_{number}" if number else "gate") if gated else path_of(edge.source)
    shape = [int(size) for size in shape_of(edge.source) or ()]
    return Tap(
        member=member, path=path, shape=shape, channel_dim=edge.dim, width=shape[edge.dim],
        layout=LAYOUTS[len(shape), edge.dim],
    )  # fmt: skip


def _pair(name: str, place: _Place, student: Tap, teacher: Tap, align: Align) -> Pair:
    why = [f"what '{path_of(place[1].source)}' hands on to '{path_of(place[1].reader)}'"]
    return Pair(name=name, teacher=teacher, student=student, score=1.0, runner_up=None, why=why, align=align)

"""How layers meet: the one algebra behind elementwise operations, products and attention.

Operands are brought into one space of dimensions (the letters of an ``einsum``), some of them contracted. Two layers
*match* where they vary along a common dimension. Then

- matching layers are united, element by element, and go on (or end, where the dimension is contracted);
- a layer without a match goes on if the other operand is broadcast along it, and is locked if the other
  has elements of its own there, which could not be removed: it ends, unless it alone says where the channels lie;
- a layer that says less (one label a head, against one a channel) is united if the dimension that shrinks is among
  those it varies along, and locked otherwise.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxdistill.ir.coupling import core
from fxdistill.passes.couple.values import Ledger, dims_of


@dataclass(frozen=True)
class Operand:
    """An operand in the common space.

    Attributes:
        layers: Its layers, expanded to the common shape.
        own: Whether it has elements of its own along each dimension (and is not broadcast).
    """

    layers: tuple[Tensor, ...]
    own: tuple[bool, ...]


def operand(ledger: Ledger, value: Tensor, letters: Sequence[int], sizes: Sequence[int]) -> Operand:
    """Bring a value into the common space: its dimension ``i`` is the letter ``letters[i]``."""
    own = [False] * len(sizes)
    for dim, letter in enumerate(letters):
        own[letter] = value.shape[dim] > 1 and value.stride(dim) != 0
    order = sorted(range(len(letters)), key=lambda dim: letters[dim])
    layers = []
    for layer in ledger.layers(value):
        view = layer.permute(order)
        for letter in range(len(sizes)):
            if letter not in letters:
                view = view.unsqueeze(letter)
        layers.append(view.expand(tuple(sizes)))
    return Operand(tuple(layers), tuple(own))


def join(ledger: Ledger, one: Operand, other: Operand, contracted: Collection[int] = ()) -> Operand:
    """Unite the layers of two operands; the layers that go on, in the common space."""
    ends = [_ends(ledger, side, contrary, contracted) for side, contrary in ((one, other), (other, one))]
    _contract(ledger, ends[0], ends[1], one, other)
    going = [[layer for layer in side.layers if not _hit(layer, contracted)] for side in (one, other)]
    result = _meet(ledger, going[0], going[1], one, other)
    own = tuple(a or b for a, b in zip(one.own, other.own, strict=True))
    return Operand(tuple(result), own)


def _hit(layer: Tensor, dims: Collection[int]) -> bool:
    return any(dim in dims for dim in dims_of(layer))


def _ends(ledger: Ledger, side: Operand, contrary: Operand, contracted: Collection[int]) -> list[Tensor]:
    """The layers that end in the contraction, united along what only this side has."""
    found = []
    for layer in side.layers:
        if _hit(layer, contracted):
            if len(dims_of(layer)) > 1:
                _mark_heads(ledger, layer)
            free = [d for d in dims_of(layer) if d not in contracted and not contrary.own[d]]
            found.append(ledger.unite_along(layer, free))
    return found


def _mark_heads(ledger: Ledger, layer: Tensor) -> None:
    inner = ledger.inner(layer)
    if inner is not None and inner[1] is not None and inner[1].kind == "split":
        inner[1].kind = "heads"


def _contract(ledger: Ledger, left: list[Tensor], right: list[Tensor], one: Operand, other: Operand) -> None:
    pairs, left_alone, right_alone = match(left, right)
    for a, b in pairs:
        ledger.unite(a, b)
    for layers, contrary in ((left_alone, other), (right_alone, one)):
        for layer in layers:
            if any(contrary.own[dim] for dim in dims_of(layer)):
                ledger.lock(layer, "is multiplied with values that carry no channels")


def _meet(ledger: Ledger, left: list[Tensor], right: list[Tensor], one: Operand, other: Operand) -> list[Tensor]:
    pairs, left_alone, right_alone = match(left, right)
    result = [layer for a, b in pairs for layer in _pair(ledger, a, b, one, other)]
    for layers, contrary, others in ((left_alone, other, right), (right_alone, one, left)):
        for layer in layers:
            passes = _passes(ledger, layer, contrary)
            if not passes:
                ledger.lock(layer, "meets values that carry no channels")
            if passes or (not others and len(dims_of(layer)) == 1):  # locked, it still says where the channels lie
                result.append(layer)
    return result


def match(
    left: Sequence[Tensor], right: Sequence[Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor], list[Tensor]]:
    """Pairs of layers that vary along common dimensions, the closest first, and those left alone."""
    scored = []
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            dims, others = set(dims_of(a)), set(dims_of(b))
            if dims & others:
                scored.append((-len(dims & others) / len(dims | others), i, j))
    used_left: set[int] = set()
    used_right: set[int] = set()
    pairs = []
    for _, i, j in sorted(scored):
        if i not in used_left and j not in used_right:
            used_left.add(i)
            used_right.add(j)
            pairs.append((left[i], right[j]))
    alone = [a for i, a in enumerate(left) if i not in used_left]
    return pairs, alone, [b for j, b in enumerate(right) if j not in used_right]


def _pair(ledger: Ledger, a: Tensor, b: Tensor, one: Operand, other: Operand) -> tuple[Tensor, ...]:
    """Unite two matching layers, or lock the one that says less; what goes on."""
    if _apart(ledger, a, b, other) and _apart(ledger, b, a, one):
        return a, b
    for full, part, owner in ((a, b, other), (b, a, one)):
        missing = set(dims_of(full)) - set(dims_of(part))
        if missing and not any(owner.own[dim] for dim in missing):
            inner = ledger.inner(full)
            if inner is not None and inner[0] in missing:
                if inner[1] is not None:
                    inner[1].fixed = True
                ledger.lock(part, "is shared by all channels of a head")
                return (full,)
    ledger.unite(a, b)
    if len(dims_of(a)) != len(dims_of(b)):
        return (min((a, b), key=lambda layer: len(dims_of(layer))),)
    return (b if bool((core(a) == 0).any()) else a,)


def _apart(ledger: Ledger, full: Tensor, part: Tensor, owner: Operand) -> bool:
    """Whether a layer shrinks along a dimension that the other layer does not vary along, nor its operand own."""
    inner = ledger.inner(full)
    if inner is None or inner[0] in dims_of(part) or owner.own[inner[0]]:
        return False
    if inner[1] is not None:
        inner[1].fixed = True
    return True


def _passes(ledger: Ledger, layer: Tensor, contrary: Operand) -> bool:
    """Whether a layer can go on beside an operand without a matching one."""
    dims = dims_of(layer)
    if not any(contrary.own[dim] for dim in dims):
        return True
    inner = ledger.inner(layer)
    if inner is None or contrary.own[inner[0]]:
        return False
    if inner[1] is not None:
        inner[1].fixed = True
        if inner[1].kind == "split":
            inner[1].kind = "heads"
    return True

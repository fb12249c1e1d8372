"""Labelled values and the ledger of what is known about labels.

A :class:`Labelled` tensor has a real shape and type (it lives on the meta device) and **layers** of integer labels
instead of numbers; see :mod:`fxdistill.ir.coupling`. Layers are always *compact*: a dimension has a stride other than 0
only if labels vary along it. The :class:`Ledger` mints labels, notes which are united, locked or split, and is solved
once at the end, as the connected components of a sparse graph.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.coupling import Layers, Role, core, varying

Key = tuple[str, int]


class Opaque(Exception):  # noqa: N818  # not an error: the reason why an operation becomes a barrier
    """An operation cannot be followed; the message says why."""


class Labelled(Tensor):
    """A tensor of labels: shape and type of a meta tensor, and label layers.

    Attributes:
        layers: Compact integer tensors of this tensor's shape.
        parameter: Name of the parameter or buffer that this is, '' for what is computed.
        origins: Names of the parameters that it is computed from, where it is computed from nothing else.
    """

    layers: Layers
    parameter: str
    origins: frozenset[str]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001  # the documented way to opt out


def labelled(like: Tensor, layers: Sequence[Tensor], parameter: str = "") -> Labelled:
    """A labelled tensor with the shape and type of a meta tensor."""
    value: Labelled = Tensor._make_subclass(Labelled, like)  # noqa: SLF001  # the documented constructor
    value.layers = tuple(layers)
    value.parameter = parameter
    value.origins = frozenset((parameter,)) if parameter else frozenset()
    return value


def compact(labels: Tensor) -> Tensor:
    """The same labels with stride 0 along every dimension that they do not vary along."""
    small = core(labels)
    dims = varying(small)
    for dim, size in enumerate(small.shape):
        if size > 1 and dim not in dims:
            small = small.narrow(dim, 0, 1)
    return small.expand(labels.shape)


def dims_of(layer: Tensor) -> tuple[int, ...]:
    """The dimensions that a compact layer varies along: told by its strides."""
    return tuple(d for d, stride in enumerate(layer.stride()) if stride and layer.shape[d] > 1)


def spread(vector: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """A vector of labels along one dimension of a shape."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.reshape(view).expand(tuple(shape))


def along(layer: Tensor, dim: int) -> Tensor:
    """The labels of a layer along one dimension, the first entry being taken of all others."""
    labels = layer.movedim(dim, 0)
    for _ in range(labels.dim() - 1):
        labels = labels.select(-1, 0)
    return labels


@dataclass
class Split:
    """A view that made several dimensions of one: the labels over them, of which the last dimension shrinks.

    Attributes:
        fixed: Whether a decision was taken that relies on the last dimension being the one that shrinks.
    """

    labels: Tensor
    where: str
    kind: Literal["groups", "heads", "norm", "split"] = "split"
    fixed: bool = False


@dataclass
class _Uniform:
    """A tensor of one number, kept so that its identity stays its own, and its labels once it was asked for them."""

    tensor: Tensor
    follow: Callable[[], Labelled]
    labels: Labelled | None = None


@dataclass
class Ledger:
    """What is known about labels so far.

    Attributes:
        root: The module whose parameters and buffers get labels.
        where: Path of the node that is executed now.
    """

    root: nn.Module
    where: str = ""
    count: int = 1
    unions: list[tuple[Tensor, Tensor, str]] = field(default_factory=list)
    locks: list[tuple[Tensor, str, str]] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    parameters: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    roles: dict[Key, Role] = field(default_factory=dict)
    tied: dict[Key, None] = field(default_factory=dict)
    mixing: dict[str, bool] = field(default_factory=dict)
    computed: list[tuple[frozenset[str], Tensor, int, Role]] = field(default_factory=list)
    statistics: dict[str, None] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    _wrapped: dict[int, Labelled] = field(default_factory=dict)
    _split_of: dict[int, int] = field(default_factory=dict)
    _uniform: dict[int, "_Uniform"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in (*self.root.named_parameters(), *self.root.named_buffers()):
            if tensor.is_floating_point():
                self.names.setdefault(id(tensor), name)

    def mint(self, count: int) -> Tensor:
        """Fresh labels."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def wrap(self, tensor: Tensor) -> Labelled:
        """A parameter or buffer of the model as a labelled value, its labels minted on first sight."""
        key = id(tensor)
        if key not in self._wrapped:
            meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            self._wrapped[key] = labelled(meta, (), self.names[key])
        return self._wrapped[key]

    def known(self, value: Tensor) -> Tensor:
        """The model's own parameters and buffers as labelled values; what has one element has no channels."""
        own = not isinstance(value, Labelled) and id(value) in self.names and value.numel() > 1
        return self.wrap(value) if own else value

    def note_uniform(self, value: Tensor, follow: Callable[[], Labelled]) -> None:
        """Remember a tensor of one number; ``follow`` labels it if it is ever asked to have channels."""
        if value.numel() > 1 and value.device.type != "meta":
            self._uniform.setdefault(id(value), _Uniform(value, follow))  # in-place operations return what they got

    def is_uniform(self, value: Tensor) -> bool:
        """Whether a tensor is known to hold one number, and still does."""
        return id(value) in self._uniform and bool((value == value.reshape(-1)[0]).all())

    def as_uniform(self, value: Tensor) -> Tensor:
        """A tensor of one number as a labelled value: whichever of its elements die, the others are as they were."""
        if isinstance(value, Labelled) or not self.is_uniform(value):
            return value
        found = self._uniform[id(value)]
        found.labels = found.labels if found.labels is not None else found.follow()
        return found.labels

    def uniform_layers(self, value: Tensor) -> Layers:
        """The layers that a tensor of one number was given; () where it met no channels."""
        found = self._uniform.get(id(value))
        return found.labels.layers if found is not None and found.labels is not None else ()

    def layers(self, value: Tensor) -> Layers:
        """The layers of a value; those of a parameter are minted here, one for each dimension."""
        if not isinstance(value, Labelled):
            return ()
        if value.parameter:
            dims = (d for d, size in enumerate(value.shape) if size > 1)
            return tuple(self.dimension(value, d) for d in dims)
        return value.layers

    def dimension(self, value: Labelled, dim: int) -> Tensor:
        """The layer of one dimension of a parameter."""
        known = self.parameters.setdefault(value.parameter, {})
        if dim not in known:
            known[dim] = spread(self.mint(value.shape[dim]), dim, value.shape)
        return known[dim]

    def unite(self, one: Tensor, other: Tensor) -> None:
        """The elements of two layers of one shape live and die together, where both have labels; else neither dies."""
        small = core(one), core(other)
        shape = [max(sizes) for sizes in zip(small[0].shape, small[1].shape, strict=True)]
        left, right = (labels.expand(shape).reshape(-1) for labels in small)
        if left.data_ptr() == right.data_ptr() and left.numel() == right.numel():
            return
        self.unions.append((left, right, self.where))

    def unite_along(self, layer: Tensor, dims: Sequence[int]) -> Tensor:
        """Unite all labels of a layer along dimensions; the layer as it is then (stride 0 there)."""
        for dim in dims:
            if layer.shape[dim] > 1 and layer.stride(dim) != 0:
                first = layer.narrow(dim, 0, 1).expand(layer.shape)
                self.unite(layer, first)
                layer = first
        return layer

    def lock(self, labels: Tensor, reason: str) -> None:
        """These labels may not be removed."""
        self.locks.append((core(labels).reshape(-1), reason, self.where))

    def used_as(self, value: Labelled, dim: int, role: Role) -> None:
        """Note what a dimension of a weight does: of a parameter itself, or of what is computed from parameters."""
        if role == "in" and (value.parameter or value.origins):
            self.mixing[self.where] = self.mixing.get(self.where, True) and bool(value.parameter)
        if value.parameter:
            self.acts_as((value.parameter, dim), role)
        elif value.origins:
            layers = (along(layer, dim) for layer in value.layers if dims_of(layer) == (dim,))
            self.computed += [(value.origins, labels, dim, role) for labels in layers]

    def acts_as(self, key: Key, role: Role) -> None:
        """Note what a dimension of a parameter does, and whether it does the other thing in another place."""
        if self.roles.setdefault(key, role) != role:
            self.tied[key] = None

    def is_locked(self, layer: Tensor) -> bool:
        """Whether none of these labels may be removed, as far as is known now: what meets them is locked as well."""
        labels = core(layer).unique()
        known = torch.cat([labels.new_zeros(1), *(locked for locked, _, _ in self.locks)])
        return bool(torch.isin(labels, known).all())

    def split(self, layer: Tensor, kind: Literal["groups", "heads", "norm", "split"], *, fixed: bool = False) -> None:
        """Note that the dimensions along which a layer varies stem from one, the last of them shrinking."""
        small = core(layer).squeeze()
        if small.dim() < 2:
            return
        if kind == "split":
            self._split_of.update(zip(small.reshape(-1).tolist(), repeat(len(self.splits))))
        self.splits.append(Split(small, self.where, kind, fixed))

    def cut(self, before: Tensor, after: Tensor) -> None:
        """Note a piece of a split, cut along the dimension that shrinks: each row has as many channels of it."""
        found = self.inner(after)
        if found is not None and found[1] is not None and after.shape[found[0]] < before.shape[found[0]]:
            self.splits.append(Split(core(after).movedim(found[0], -1).squeeze(), self.where))

    def inner(self, layer: Tensor) -> tuple[int, Split | None] | None:
        """The dimension of a layer that shrinks, with the split that says so; None where that is not known."""
        dims = dims_of(layer)
        if len(dims) == 1:
            return dims[0], None
        small = core(layer)
        origin = small[(0,) * small.dim()]
        index = self._split_of.get(int(origin))
        if index is None:
            return None
        split = self.splits[index]
        found = [d for d in dims if _moves_last_only(split.labels, origin, small.select(d, 1).reshape(-1)[0])]
        return (found[0], split) if len(found) == 1 else None

    def note(self, code: str, why: str, hint: str = "") -> None:
        """A remark about the current node."""
        severity: Literal["warning", "note"] = "warning" if code == "opaque-node" else "note"
        self.diagnostics.append(Diagnostic(code=code, severity=severity, where=self.where, why=why, hint=hint))


def mint_all(ledger: Ledger, like: Tensor) -> Layers:
    """Fresh labels along every dimension of a tensor."""
    dims = (dim for dim, size in enumerate(like.shape) if size > 1)
    return tuple(spread(ledger.mint(like.shape[dim]), dim, like.shape) for dim in dims)


def _moves_last_only(labels: Tensor, one: Tensor, other: Tensor) -> bool:
    places = [(labels == label).nonzero() for label in (one, other)]
    if not len(places[0]) or not len(places[1]):
        return False
    first, second = places[0][0], places[1][0]
    return bool((first[:-1] == second[:-1]).all()) and bool(first[-1] != second[-1])


def tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Nested arguments with every tensor replaced: lists and tuples of any kind, those of torch.fx among them."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return rebuilt(value, [mapped(item, function) for item in value])
    if isinstance(value, list):
        return [mapped(item, function) for item in value]
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(bound, function) for bound in (value.start, value.stop, value.step)))
    return value


def rebuilt(like: tuple[Any, ...], items: list[Any]) -> Any:
    """A tuple of the kind of another: a plain one, a size, a named one, or one of torch's own."""
    if type(like) in (tuple, torch.Size):
        return tuple(items) if next(tensors(items), None) is not None else type(like)(items)
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)


def to_meta(value: Any) -> Any:
    """Nested arguments with every tensor on the meta device: what shapes are computed with."""
    return mapped(value, lambda tensor: tensor if tensor.device.type == "meta" else tensor.to("meta"))

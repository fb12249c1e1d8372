"""Survivors: which elements of every value and weight are left when classes are removed, and in what shape.

An element is dead as soon as one of its layers names a removed class (:mod:`fxdistill.ir.coupling`). What is left of a
tensor is again a box, if in every dimension all slices that are not empty keep the same number of indices; which ones
may differ from slice to slice of the dimensions before it (heads of an attention, groups of a convolution):

    survivors(t)  =  t[alive].reshape(sizes),    Π sizes = number of alive elements

Masks are *compact*: size 1 along dimensions that deadness does not depend on, so they cost next to nothing.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from fxdistill.ir.coupling import Coupling, Layers, Structure, core

Shape: TypeAlias = tuple[int, ...]
Masks: TypeAlias = "Mask | list[Masks] | None"
"""The mask of a tensor, a list for a structured value, None for what has no labels."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Which elements of a tensor survive.

    Attributes:
        small: Booleans, broadcastable to ``shape``.
        shape: Shape of the full tensor.
    """

    small: Tensor
    shape: Shape

    @property
    def full(self) -> Tensor:
        """The mask in the full tensor's shape (expanded, not copied)."""
        return self.small.expand(self.shape)

    @cached_property
    def whole(self) -> bool:
        """Whether every element survives."""
        return bool(self.small.all())

    @cached_property
    def sizes(self) -> Shape | None:
        """The shape of what survives; None where that is no box."""
        sizes = []
        for dim in range(self.small.dim()):
            later = tuple(range(dim + 1, self.small.dim()))
            counts = (self.small.any(later) if later else self.small).sum(dim)
            found = set(counts[counts > 0].tolist())
            if len(found) != 1:
                return None
            sizes.append(int(found.pop()))
        cut = zip(sizes, self.small.shape, self.shape, strict=True)
        return tuple(full if small == 1 else size for size, small, full in cut)

    @cached_property
    def is_product(self) -> bool:
        """Whether each dimension loses its indices independently of the others."""
        product = torch.ones((), dtype=torch.bool)
        for dim in range(self.small.dim()):
            view = [1] * self.small.dim()
            view[dim] = -1
            product = product & self.along(dim).reshape(view)
        return bool((product == self.small).all())

    def along(self, dim: int) -> Tensor:
        """The indices of a dimension of which anything survives, as booleans (size 1 where deadness does not vary)."""
        others = tuple(d for d in range(self.small.dim()) if d != dim)
        return self.small.any(others) if others else self.small

    def indices(self, dim: int) -> list[int]:
        """The indices of a dimension of the full tensor of which anything survives."""
        alive = self.along(dim).expand(self.shape[dim])
        return [int(index) for index in alive.nonzero().flatten().tolist()]

    def take(self, tensor: Tensor) -> Tensor:
        """The survivors of a full tensor, in their order. The mask must be a box."""
        if self.whole:
            return tensor
        if self.sizes is None:
            return tensor[self.full.to(tensor.device)]
        cut = [dim for dim, size in enumerate(self.small.shape) if size > 1]
        rest = [dim for dim in range(tensor.dim()) if dim not in cut]
        rows = tensor.permute(*cut, *rest).flatten(0, len(cut) - 1)
        taken = rows[self.small.flatten().nonzero().flatten().to(tensor.device)]
        order = sorted(range(tensor.dim()), key=[*cut, *rest].__getitem__)
        sizes = [self.sizes[dim] for dim in (*cut, *rest)]
        return taken.reshape(sizes).permute(order).contiguous()


class Survivors:
    """The survivors of one model under a set of removed classes."""

    def __init__(self, coupling: Coupling, removed: Collection[int]) -> None:
        self.coupling = coupling
        self.removed = frozenset(removed)
        self._dead = torch.zeros(coupling.class_count + 1, dtype=torch.bool)
        self._dead[sorted(self.removed)] = True

    def of(self, path: str) -> Masks:
        """The masks of a node's value."""
        return self._masks(self.coupling.structure(path))

    def of_tensor(self, path: str) -> Mask | None:
        """The mask of a node whose value is one tensor; None where it has no labels."""
        found = self.of(path)
        return found if isinstance(found, Mask) else None

    def of_parameter(self, name: str) -> Mask | None:
        """The mask of a parameter or buffer; None where it has no labels."""
        return self._mask(tuple(self.coupling.parameter_labels(name).values()))

    def _masks(self, structure: Structure) -> Masks:
        if isinstance(structure, list):
            return [self._masks(item) for item in structure]
        return self._mask(structure) if structure is not None else None

    def _mask(self, layers: Layers) -> Mask | None:
        if not layers:
            return None
        small = torch.ones((1,) * layers[0].dim(), dtype=torch.bool)
        for layer in layers:
            small = small & ~self._dead[core(layer)]
        return Mask(small, tuple(layers[0].shape))

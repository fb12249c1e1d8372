"""Coupling: which channels of a model must live and die together.

Every channel of every weight carries an integer **label**; labels that the graph ties together form one **class**,
and a class is removed whole or not at all. A tensor value is described by its **layers**: each layer is an integer
tensor of the value's real shape (stride 0 wherever it does not vary, so it costs no memory) whose entries say which
class an element belongs to, 0 for none. An element dies as soon as one of its layers names a removed class:

    alive(element)  =  no layer of the element names a removed class

An activation mostly has one layer; a weight has one per dimension (outputs along 0, inputs along 1), so that
``weight[alive].reshape(new shape)`` is the shrunken weight, grouped convolutions included.

A class may be **locked** (network input and output, a barrier), and a :class:`Constraint` lists sets of classes
that must keep the same *number* alive (groups of a convolution, heads of an attention, a view that splits a channel
dimension). Where such a split is followed by a merge (channel shuffle), the survivors of the shrunken graph may come
in another order than in the full one: only a replay of the labels on the shrunken graph tells it.
"""

from collections import Counter, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.graph import path_of

Integers: TypeAlias = NDArray[np.int64]
Layers: TypeAlias = tuple[Tensor, ...]
Structure: TypeAlias = "Layers | list[Structure] | None"
"""The layers of one tensor (a tuple), a list for a structured value, None for what is no labelled tensor."""
Said: TypeAlias = dict[Hashable, tuple[dict[str, int], Tensor]]
"""What criteria have said of the classes, by criterion and seed, each with the checksums of the model then."""
Role = Literal["out", "in", "parameter"]
_SEQUENCE = 3  # dimensions: batch, tokens, channels


@dataclass(frozen=True)
class Constraint:
    """Every row of ``sets`` must keep the same number of classes alive.

    Attributes:
        kind: ``groups`` (grouped convolution), ``norm`` (GroupNorm), ``heads`` (an attention), ``split`` (another view
            that splits a channel dimension).
        where: Path of the node that asks for it.
        sets: Class ids, one row for each group, head or outer index. A class may occur in several rows.
    """

    kind: Literal["groups", "heads", "norm", "split"]
    where: str
    sets: tuple[tuple[int, ...], ...]

    @cached_property
    def divided(self) -> frozenset[int]:
        """The classes that the rows divide into equal parts; none where rows overlap, or differ in length."""
        classes = [class_id for row in self.sets for class_id in row]
        found = frozenset(classes)
        return found if len(found) == len(classes) and len(set(map(len, self.sets))) == 1 else frozenset()


@dataclass(frozen=True)
class Slice:
    """A slice of a parameter or buffer that lives and dies with a class.

    Attributes:
        parameter: Name of the parameter or buffer.
        path: Path of the module that owns it.
        dim: The dimension along which the class has slices.
        kind: ``out`` (the weight produces the channel), ``in`` (it consumes it), ``parameter`` (it acts on it:
            norms, layer scale).
        indices: The slices of that dimension that belong to the class.
    """

    parameter: str
    path: str
    dim: int
    kind: Role
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Lock:
    """Why, and at which node, a class may not be removed."""

    reason: str
    where: str

    def __str__(self) -> str:
        return f"{self.reason} at '{self.where}'"


@dataclass(frozen=True, eq=False)
class Coupling:
    """The coupled channels of one traced model. See the module docstring.

    Attributes:
        graph: The graph that was labelled.
        values: For each node path the raw label layers of its value.
        parameters: For each labelled parameter and buffer its raw label layers by dimension.
        roles: What a dimension of a parameter does, where it is ``in`` or ``out``.
        class_of: Class id of every raw label; ``class_of[0] == 0``.
        locks: The locked classes.
        constraints: Equal counts.
        statistics: Paths of nodes that normalise over channels: their statistics are over the survivors.
        tied: Dimensions of parameters that are ``in`` in one place and ``out`` in another.
        mixing: Paths of nodes that consume their inputs with a weight, and whether that is a parameter, not computed.
        diagnostics: What was found out on the way.
        seconds: Time that the labelling took.
    """

    graph: fx.Graph
    values: dict[str, Structure]
    parameters: dict[str, dict[int, Tensor]]
    roles: dict[tuple[str, int], Role]
    class_of: Tensor
    locks: dict[int, Lock]
    constraints: tuple[Constraint, ...] = ()
    statistics: tuple[str, ...] = ()
    tied: tuple[tuple[str, int], ...] = ()
    mixing: dict[str, bool] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    seconds: float = 0.0
    _cache: dict[str, tuple[int, Tensor] | None] = field(default_factory=dict, repr=False)

    @property
    def class_count(self) -> int:
        """Number of classes; ids run from 1 to this."""
        return int(self.class_of.max())

    def layers(self, path: str) -> Layers:
        """The class-id layers of a tensor node, each of the value's shape; () where it has none."""
        structure = self.structure(path)
        return structure if isinstance(structure, tuple) else ()

    def structure(self, path: str) -> Structure:
        """The same for any node: a list of structures where the value is a tuple or list."""
        return self._classes_in(self.values.get(path))

    def channel_dim(self, path: str) -> int | None:
        """The one dimension of the node's value along which classes vary, None where there is none or more."""
        found = self._channel(path)
        return found[0] if found is not None else None

    def classes(self, path: str) -> tuple[int, ...]:
        """The class of every index of the node's channel dimension; () where it has none."""
        found = self._channel(path)
        if found is None:
            return ()
        dim, labels = found
        rows = core(labels).movedim(dim, -1).reshape(-1, labels.shape[dim])
        return tuple(rows[0].tolist())  # the same wherever it is

    def parameter_labels(self, name: str) -> dict[int, Tensor]:
        """For each coupled dimension of a parameter or buffer: class ids, in the parameter's shape (compact).

        Dimension ``d`` is sliced by its entry alone: ``entry.movedim(d, 0)`` is constant over the other dimensions,
        except for the inputs of a grouped convolution, which differ from group to group.
        """
        return {dim: self._to_classes(labels) for dim, labels in self.parameters.get(name, {}).items()}

    def locked(self, class_id: int) -> str | None:
        """Reason and node path where a class may not be removed, None where it may."""
        lock = self.locks.get(class_id)
        return str(lock) if lock is not None else None

    def slices(self, class_id: int) -> tuple[Slice, ...]:
        """The slices of parameters and buffers that live and die with a class."""
        return tuple(self._slices_of(class_id))

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The classes, in groups that touch the same dimensions of the same parameters."""
        classes, signatures = self._signatures
        order = np.lexsort((classes, signatures))
        edges = np.flatnonzero(np.diff(signatures[order])) + 1
        parts = np.split(classes[order], edges) if len(order) else []
        return tuple(sorted(tuple(part.tolist()) for part in parts))

    def group_of(self, class_id: int) -> tuple[int, ...]:
        """The classes that touch the same parameters as this one, itself included."""
        return self._group_index.get(class_id, (class_id,))

    def chain(self, path: str, class_id: int) -> tuple[str, ...]:
        """Node paths from a node that carries a class to the node that locks it; () where nothing locks it.

        Neighbouring nodes of the chain are users of each other and carry the class: the way that a removal would go.
        """
        lock = self.locks.get(class_id)
        nodes = {path_of(node): node for node in self.graph.nodes}
        if lock is None or path not in nodes:
            return ()
        return self._search(nodes[path], class_id, lock.where) or (path, lock.where)

    def carried(self, path: str) -> frozenset[int]:
        """The classes that elements of a node's value belong to."""
        if path not in self._carried_sets:
            found = {i for layer in flat_layers(self.structure(path)) for i in np.unique(core(layer).numpy()).tolist()}
            self._carried_sets[path] = frozenset(found - {0})
        return self._carried_sets[path]

    def producers(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that produce channels, each once, with the class of each output."""
        dims = {name: dim for (name, dim), role in self.roles.items() if role == "out"}
        yield from ((name, self.outputs[name, dim]) for name, dim in dims.items() if (name, dim) in self.outputs)

    @cached_property
    def outputs(self) -> dict[tuple[str, int], Tensor]:
        """The class of each output of the weights that produce channels, by weight and the dimension that has them.

        A grouped transposed convolution numbers them within each group: there are more than that dimension is long.
        """
        found = {}
        for name, dim in (key for key, role in self.roles.items() if role == "out"):
            if dim in self.parameters.get(name, {}):
                labels = core(self.parameters[name][dim])
                each = labels.flatten() if len(varying(labels)) < 2 else labels.unique()  # in the order of the outputs
                found[name, dim] = self.class_of[each]
        return found

    @cached_property
    def importances(self) -> Said:
        """What criteria have said of the classes."""
        return {}

    @cached_property
    def makers(self) -> dict[int, dict[str, int]]:
        """For each class the weights that produce it, and how many of their outputs are of it."""
        found: dict[int, dict[str, int]] = {}
        for name, classes in self.producers():
            for class_id, count in Counter(classes.tolist()).items():
                found.setdefault(class_id, {})[name] = count
        return found

    def _search(self, start: fx.Node, class_id: int, goal: str) -> tuple[str, ...]:
        before: dict[fx.Node, fx.Node | None] = {start: None}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if path_of(node) == goal:
                return tuple(reversed([path_of(n) for n in _walk_back(before, node)]))
            inputs = () if self.mixes(node) else node.all_input_nodes
            for neighbour in (*inputs, *(user for user in node.users if not self.mixes(user) or path_of(user) == goal)):
                reached = path_of(neighbour) == goal or class_id in self.carried(path_of(neighbour))
                if neighbour not in before and reached:
                    before[neighbour] = node
                    queue.append(neighbour)
        return ()

    def mixes(self, node: fx.Node) -> bool:
        """Whether a node consumes its inputs with a weight: its outputs are other channels."""
        return path_of(node) in self.mixing

    @cached_property
    def _carried_sets(self) -> dict[str, frozenset[int]]:
        return {}

    def _to_classes(self, labels: Tensor) -> Tensor:
        return self.class_of[core(labels)].expand(labels.shape)

    def _classes_in(self, structure: Structure) -> Structure:
        if isinstance(structure, list):
            return [self._classes_in(item) for item in structure]
        return None if structure is None else tuple(self._to_classes(layer) for layer in structure)

    def _channel(self, path: str) -> tuple[int, Tensor] | None:
        if path not in self._cache:
            found = [(dims[0], layer) for layer in self.layers(path) if len(dims := varying(layer)) == 1]
            self._cache[path] = found[0] if len(found) == 1 and len(self.layers(path)) == 1 else self._open(found)
        return self._cache[path]

    def _open(self, found: list[tuple[int, Tensor]]) -> tuple[int, Tensor] | None:
        """Of several layers, the only one that is not locked throughout; of tokens, that along the last dimension."""
        free = [f for f in found if any(i not in self.locks for i in np.unique(core(f[1]).numpy()).tolist() if i)]
        last = [f for f in found if f[1].dim() == _SEQUENCE and f[0] == _SEQUENCE - 1]
        return free[0] if len(free) == 1 else last[0] if len(last) == 1 else None

    @cached_property
    def _slices(self) -> tuple[list[tuple[str, int]], Integers, Integers]:
        """All (parameter, dim), and pairs (class, its index in that list), unique and sorted by class."""
        keys = [(name, dim) for name, dims in self.parameters.items() for dim in dims]
        pairs = [np.zeros((0, 2), np.int64)]
        for index, (name, dim) in enumerate(keys):
            classes = np.unique(core(self._to_classes(self.parameters[name][dim])).numpy())
            pairs.append(np.stack([classes, np.full_like(classes, index)], axis=1))
        joined = np.concatenate(pairs)
        joined = joined[joined[:, 0] > 0]
        joined = joined[np.argsort(joined[:, 0], kind="stable")]
        return keys, joined[:, 0], joined[:, 1]

    @cached_property
    def _signatures(self) -> tuple[Integers, Integers]:
        keys, classes, members = self._slices
        random = np.random.default_rng(0).integers(1, 2**62, size=max(1, len(keys)), dtype=np.int64)
        unique, starts = np.unique(classes, return_index=True)
        if not len(unique):
            return unique, unique
        return unique, np.add.reduceat(random[members], starts)

    @cached_property
    def _group_index(self) -> dict[int, tuple[int, ...]]:
        return {class_id: group for group in self.groups for class_id in group}

    def _slices_of(self, class_id: int) -> Iterator[Slice]:
        keys, classes, members = self._slices
        low, high = np.searchsorted(classes, [class_id, class_id + 1])
        for index in members[low:high].tolist():
            name, dim = keys[index]
            hit = core(self._to_classes(self.parameters[name][dim])) == class_id
            others = tuple(d for d in range(hit.dim()) if d != dim)
            along = hit.any(others) if others else hit
            indices = tuple(along.nonzero().flatten().tolist())
            yield Slice(name, name.rpartition(".")[0], dim, self.roles.get((name, dim), "parameter"), indices)


def core(labels: Tensor) -> Tensor:
    """The tensor with every stride-0 dimension cut to size 1: what has to be looked at."""
    strides = labels.stride()
    if 0 not in strides:
        return labels
    sizes = [size if stride else min(size, 1) for size, stride in zip(labels.shape, strides, strict=True)]
    return labels.as_strided(sizes, strides, labels.storage_offset())


def varying(labels: Tensor) -> tuple[int, ...]:
    """The dimensions along which labels differ."""
    small = core(labels)
    dims = (d for d, size in enumerate(small.shape) if size > 1)
    return tuple(d for d in dims if not bool((small == small.narrow(d, 0, 1)).all()))


def flat_layers(structure: Structure) -> Iterator[Tensor]:
    """All layers in a structure."""
    if isinstance(structure, list):
        for item in structure:
            yield from flat_layers(item)
    elif structure is not None:
        yield from structure


def _walk_back(before: dict[fx.Node, fx.Node | None], node: fx.Node | None) -> Iterator[fx.Node]:
    while node is not None:
        yield node
        node = before[node]

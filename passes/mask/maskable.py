"""What of a model can be masked: the coupled channels that convolutions make and layers with weights read.

A class of coupled channels is masked where all that makes it are convolutions, not the first one among them unless that
is wanted, and all that reads it either acts on each channel alone, or weighs channels with weights of its own. In
front of each of the latter stands a gate; a channel whose gates are all shut is read by nobody, and can be cut.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.computed import bound
from fxdistill.ir.cost import CONVOLUTIONS
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced, op_name, path_of, weights_of
from fxdistill.ir.operators import is_a
from fxdistill.ir.reach import of_images
from fxdistill.operators import Trait

_FILTER = 3  # dimensions of a convolution's weight, at least


@dataclass(frozen=True)
class Layer:
    """Channels that the same convolutions make.

    Attributes:
        name: The first of these convolutions.
        classes: The maskable classes of their outputs, in order.
    """

    name: str
    classes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Edge:
    """A place where channels are read by a layer with weights.

    Attributes:
        source: What is read.
        reader: The layer.
        dim: The dimension of the channels.
        index: For each channel the position of its class among all maskable ones; -1 for one that is not maskable.
    """

    source: fx.Node
    reader: fx.Node
    dim: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class Maskable:
    """What of a model can be masked.

    Attributes:
        layers: The layers, in the order of the model.
        edges: Where gates stand.
        remarks: What is not masked, and why.
    """

    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...]
    remarks: tuple[Diagnostic, ...]

    @property
    def classes(self) -> tuple[int, ...]:
        """All maskable classes; a channel's score stands at the position of its class."""
        return tuple(class_id for layer in self.layers for class_id in layer.classes)

    def least(self, multiple: int = 1) -> int:
        """How many channels are kept at least, so that each layer keeps as many as a multiple, or all it has."""
        return sum(min(multiple, len(layer.classes)) for layer in self.layers)

    @property
    def positions(self) -> Tensor:
        """For each layer the positions of its scores, (layers, longest); filled up with the layer's first one."""
        longest, start, rows = max(len(layer.classes) for layer in self.layers), 0, []
        for layer in self.layers:
            own = list(range(start, start + len(layer.classes)))
            rows.append(own + own[:1] * (longest - len(own)))
            start += len(own)
        return torch.tensor(rows)


def maskable(traced: Traced, coupling: Coupling, *, first: bool = False) -> Maskable:
    """What of a model can be masked.

    Args:
        traced: The model, in eval mode.
        coupling: Its coupled channels.
        first: Whether the first convolution's channels are masked as well.
    """
    made: dict[int, dict[str, None]] = {}
    for name, classes in coupling.producers():
        for class_id in classes.tolist():
            made.setdefault(class_id, {})[name] = None
    whole = None if first else first_convolution(traced)
    reasons = _reasons(traced, coupling, made, () if whole is None else weights_of(whole, traced))
    free: dict[tuple[str, ...], list[int]] = {}
    for class_id, names in made.items():
        if class_id not in reasons:
            free.setdefault(tuple(names), []).append(class_id)
    owners = [_owner(names[0]) for names in free]
    layers = tuple(  # the channels of one convolution may be coupled with those of different others
        Layer(owner if owners.count(owner) == 1 else f"{owner}#{owners[:position].count(owner) + 1}", tuple(classes))
        for position, (owner, classes) in enumerate(zip(owners, free.values(), strict=True))
    )
    place = torch.full((coupling.class_count + 1,), -1)
    ordered = [class_id for layer in layers for class_id in layer.classes]
    place[ordered] = torch.arange(len(ordered))
    return Maskable(layers, tuple(_edges(traced, coupling, place)), tuple(_remarks(coupling, reasons)))


def first_convolution(traced: Traced) -> fx.Node | None:
    """The first convolution of a model; None where it has none."""
    return next((node for node in traced.graph.nodes if op_name(node, traced.module) in CONVOLUTIONS), None)


def _reasons(
    traced: Traced, coupling: Coupling, made: Mapping[int, Collection[str]], whole: Collection[str]
) -> dict[int, str]:
    """Why classes are not masked, by class; what ``whole`` makes stays."""
    found: dict[int, str] = {0: "carries no channels"}
    for class_id, names in made.items():
        dense = [name for name in names if min(one.dim() for one in coupling.parameters[name].values()) < _FILTER]
        if lock := coupling.locked(class_id):
            found.setdefault(class_id, lock)
        elif kept := set(whole).intersection(names):
            found.setdefault(class_id, f"is made by '{_owner(min(kept))}', the first convolution, which stays whole")
        elif dense:
            found.setdefault(class_id, f"is made by '{_owner(dense[0])}', which is no convolution")
    for rule in coupling.constraints:
        for class_id in {one for row in rule.sets for one in row}:
            found.setdefault(class_id, f"must keep equal counts at '{rule.where}' ({rule.kind})")
    for class_id, reason in (*_weights(traced, coupling), *_readers(traced, coupling)):
        found.setdefault(class_id, reason)
    return found


def _weights(traced: Traced, coupling: Coupling) -> Iterator[tuple[int, str]]:
    """Classes that a weight both makes and reads, or that are others where other outputs of their weight are."""
    for name, dim in coupling.tied:
        classes = coupling.parameter_labels(name)[dim].unique().tolist()
        yield from ((i, f"is made and read by the same weight '{name}'") for i in classes)
    yield from ((i, "is made by a computed weight that is another one without it") for i in bound(traced, coupling))


def _readers(traced: Traced, coupling: Coupling) -> Iterator[tuple[int, str]]:
    """Classes that are read by what neither acts on each channel alone nor has weights for them."""
    over, shown = set(coupling.statistics), of_images(traced.graph)
    for node in (node for node in traced.graph.nodes if node in shown):
        path, values = path_of(node), [source for source in node.all_input_nodes if source in shown]
        inside = {i for source in values for i in coupling.carried(path_of(source))}
        name = op_name(node, traced.module)
        if path in over:
            yield from ((i, f"is part of a statistic over channels at '{path}'") for i in inside)
        elif not coupling.mixes(node) and not is_a(name, Trait.METADATA):
            ends = inside - coupling.carried(path)
            yield from ((i, f"is read at '{path}' ({name}) without a weight of its own") for i in ends)
        elif not coupling.mixing.get(path, True):
            yield from ((i, f"is weighed by a computed weight at '{path}'") for i in inside)
        elif coupling.mixes(node):
            for source in values:
                if coupling.channel_dim(path_of(source)) is None:
                    where = path_of(source)
                    yield from ((i, f"lies in '{where}' along several dimensions") for i in coupling.carried(where))


def _edges(traced: Traced, coupling: Coupling, place: Tensor) -> Iterator[Edge]:
    shown = of_images(traced.graph)
    for node in (node for node in traced.graph.nodes if coupling.mixes(node)):
        for source in (source for source in node.all_input_nodes if source in shown):
            dim = coupling.channel_dim(path_of(source))
            index = place[list(coupling.classes(path_of(source)))] if dim is not None else place[:0]
            if dim is not None and bool((index >= 0).any()):
                yield Edge(source, node, dim, index)


def _remarks(coupling: Coupling, reasons: Mapping[int, str]) -> Iterator[Diagnostic]:
    """One remark for each weight that makes channels of which some are not masked."""
    for name, classes in coupling.producers():
        held = [i for i in dict.fromkeys(classes.tolist()) if i in reasons]
        if held and coupling.parameter_labels(name):
            whole = len(held) == len(set(classes.tolist()))
            count = "its channels stay" if whole else f"{len(held)} of its {len(classes)} channels stay"
            yield Diagnostic(
                code="not-masked", severity="note", where=_owner(name), why=f"{count}: one {reasons[held[0]]}"
            )


def _owner(name: str) -> str:
    return name.rpartition(".")[0] or name

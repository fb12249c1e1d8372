"""Groups: coupled classes as what Torch-Pruning's measures read.

The classes that touch the same dimensions of the same parameters are one of its groups, with an item for each **side**:
the outputs or the inputs of a weight, or a norm, with the class of every index. A weight is shown to it as a layer of a
type that it knows, in one form whatever the model does with it:

    2 dimensions         nn.Linear, outputs first
    more                 nn.Conv1d, outputs first, the kernel flattened, transposed convolutions turned over; of a
                         grouped one the inputs with what their own group reads of them
    BatchNorm, LayerNorm  themselves

The layers are stand-ins that share the weights and carry the gradients: the model is never touched. What Torch-Pruning
has no type for, or no measure reads, does not count: bare parameters, functional norms, layer scale, tables of
embeddings, depthwise convolutions. A class without any other member has 0.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.dependency import Dependency, Group, Node
from torch_pruning.pruner.function import PrunerBox

from fxdistill.ir.channels import Channels
from fxdistill.ir.coupling import Coupling, varying
from fxdistill.ir.running import seeded

Measure = Any
"""A ``torch_pruning.importance.Importance``; the package has no types."""


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a layer.

    Attributes:
        path: The weight's name in the model.
        layer: The stand-in.
        outputs: Whether these are its outputs (a norm's channels are), or its inputs.
        classes: The class of every index, 0 for none.
    """

    path: str
    layer: nn.Module
    outputs: bool
    classes: Tensor

    @functools.cached_property
    def prune(self) -> Callable[..., nn.Module]:
        """Torch-Pruning's function that prunes it, by which its measures know what it is."""
        pruner = PrunerBox[torch_pruning.ops.module2type(self.layer)]
        found: Callable[..., nn.Module] = pruner.prune_out_channels if self.outputs else pruner.prune_in_channels
        return found


@dataclass(frozen=True, eq=False)
class Item:
    """A side's part in one group: the indices along it in ascending order, and the position of each one's class."""

    side: Side
    indices: list[int]
    positions: list[int]


def measured(
    channels: Channels, measure: Measure, *, gradients: Mapping[str, Tensor] | None = None,
    prepare: Callable[[list[Item]], None] | None = None,
) -> Tensor:  # fmt: skip
    """The importance of every class by one of Torch-Pruning's measures.

    Args:
        channels: What is known of the model.
        measure: Takes a group, returns a score for each of its classes.
        gradients: By parameter, for measures that read ``.grad``.
        prepare: Called with the items of each group before it is measured.
    """
    scores, sides = channels.zeros(), list(_sides(channels, gradients))
    with seeded(torch.device("cpu"), channels.seed):
        for classes, items in _items(channels.coupling, sides):
            counted = _first_in_order(items, len(classes), getattr(measure, "target_types", (nn.Module,)))
            if not counted:
                continue
            if prepare is not None:
                prepare(counted)
            group = _group(counted)
            found = measure(group)
            if found is not None and not (bool(found.isnan().all()) and _says_nothing(measure, group)):
                scores[list(classes)] = found[: len(classes)].double()
    return scores


def _says_nothing(measure: Measure, group: Group) -> bool:
    """Whether a measure gives 0 to all, by which it divides as it normalises: then nothing tells the classes apart."""
    plain = copy.copy(measure)
    plain.normalizer = None
    return not bool(plain(group).any())


def _items(coupling: Coupling, sides: list[Side]) -> Iterator[tuple[tuple[int, ...], list[Item]]]:
    """The groups of coupled classes that a side belongs to, each with its items."""
    owner, position = (torch.full((coupling.class_count + 1,), -1) for _ in range(2))
    for number, classes in enumerate(coupling.groups):
        owner[list(classes)] = number
        position[list(classes)] = torch.arange(len(classes))
    found: dict[int, list[Item]] = {}
    for side in sides:
        numbers, positions = owner[side.classes], position[side.classes]
        for number in numbers[numbers >= 0].unique().tolist():
            indices = (numbers == number).nonzero().flatten()
            found.setdefault(number, []).append(Item(side, indices.tolist(), positions[indices].tolist()))
    yield from ((coupling.groups[number], found[number]) for number in sorted(found))


def _first_in_order(items: list[Item], count: int, types: tuple[type[nn.Module], ...]) -> list[Item]:
    """The items of layers that a measure reads, first one with an index for each class: it gives the scores' number.

    Where every one has more (gates that are halves of one weight), one of zeros is put before them.
    """
    read = [item for item in items if isinstance(item.side.layer, tuple(types))]
    exact = [item for item in read if len(item.indices) == count]
    if not read or exact:
        return [*exact, *(item for item in read if len(item.indices) != count)]
    zeros, like = torch.zeros(count, 1), read[0].side.layer
    layer: nn.Module = _norm(nn.BatchNorm1d(count), zeros[:, 0]) if _is_norm(like) else _linear(zeros)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    root = Side("", layer, outputs=True, classes=torch.arange(count))
    return [Item(root, list(range(count)), list(range(count))), *read]


def _group(items: list[Item]) -> Group:
    group = Group()
    for item in items:
        node = Node(item.side.layer, None, item.side.path)
        group.add_dep(Dependency(item.side.prune, item.side.prune, node, node), item.indices)
        group[len(group) - 1].root_idxs = item.positions
    return group


def _sides(channels: Channels, gradients: Mapping[str, Tensor] | None) -> Iterator[Side]:
    """The sides of all weights and norms that carry classes."""
    module = channels.traced.module
    modules = dict(module.named_modules(remove_duplicate=False))
    for name, parameter in module.named_parameters(remove_duplicate=False):
        labels, owner = channels.coupling.parameter_labels(name), modules.get(name.rpartition(".")[0])
        gradient = gradients.get(name, torch.zeros_like(parameter)) if gradients is not None else None
        if not labels or not parameter.is_floating_point():
            continue
        if parameter.dim() >= 2:
            yield from _weight_sides(name, parameter, gradient, channels.coupling, groups=_groups_of(owner))
        elif name.endswith(".weight") and isinstance(owner, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):  # noqa: SLF001
            copy = nn.LayerNorm(len(parameter)) if isinstance(owner, nn.LayerNorm) else nn.BatchNorm1d(len(parameter))
            yield Side(name, _norm(copy, parameter, gradient), outputs=True, classes=labels[0].contiguous())


def _groups_of(owner: nn.Module | None) -> int:
    return owner.groups if isinstance(owner, nn.modules.conv._ConvNd) else 1  # noqa: SLF001


def _weight_sides(
    name: str, weight: Tensor, gradient: Tensor | None, coupling: Coupling, *, groups: int
) -> Iterator[Side]:
    """The outputs and the inputs of a weight."""
    labels = coupling.parameter_labels(name)
    roles = {coupling.roles.get((name, dim)): dim for dim in labels}
    out, into = roles.get("out"), roles.get("in")
    if out is None and into is None:
        return
    out = out if out is not None else (0 if into != 0 else 1)
    into = into if into is not None else (1 if out != 1 else 0)
    turn = functools.partial(_turned, out=out, into=into, groups=groups)
    turned, slopes = turn(weight), None if gradient is None else turn(gradient)
    if groups > 1 and turned.shape[1] == 1:  # depthwise: it neither makes nor mixes channels, and no measure counts it
        return
    plain = {dim: groups > 1 or varying(found) in ((), (dim,)) for dim, found in labels.items()}
    if "out" in roles and plain[out]:
        classes = turn(labels[out]).flatten(1)[:, 0].contiguous()
        yield Side(name, _layer(turned, slopes), outputs=True, classes=classes)
    if "in" in roles and plain[into]:
        classes = _read(turn(labels[into]), groups)[0].reshape(turned.shape[1] * groups, -1)[:, 0]
        slopes = None if slopes is None else _read(slopes, groups)
        yield Side(name, _layer(_read(turned, groups), slopes), outputs=False, classes=classes.contiguous())


def _turned(weight: Tensor, *, out: int, into: int, groups: int) -> Tensor:
    """A weight with its outputs first and its inputs second; of a grouped transposed convolution, those of a group."""
    if (out, into, groups > 1) == (1, 0, True):
        grouped: Tensor = weight.unflatten(0, (groups, -1))
        return grouped.transpose(1, 2).flatten(0, 1)
    return weight.movedim((out, into), (0, 1))


def _read(weight: Tensor, groups: int) -> Tensor:
    """A grouped weight by all of its inputs: for each of them what its own group reads of it."""
    if groups == 1:
        return weight
    grouped: Tensor = weight.unflatten(0, (groups, -1))
    return grouped.transpose(0, 1).flatten(1, 2)


def _layer(weight: Tensor, gradient: Tensor | None) -> nn.Module:
    if weight.dim() == 2:
        return _linear(weight, gradient)
    outputs, inputs, kernel = weight.shape[0], weight.shape[1], weight[0, 0].numel()
    layer = nn.Conv1d(inputs, outputs, kernel, bias=False, device="meta")
    return _filled(layer, weight.flatten(2), gradient.flatten(2) if gradient is not None else None)


def _linear(weight: Tensor, gradient: Tensor | None = None) -> nn.Module:
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta"), weight, gradient)


def _norm(layer: nn.Module, weight: Tensor, gradient: Tensor | None = None) -> nn.Module:
    return _filled(layer, weight, gradient)


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm)  # noqa: SLF001


def _filled(layer: nn.Module, weight: Tensor, gradient: Tensor | None) -> nn.Module:
    """The layer with a weight and its gradient, in float32 on the CPU, without a bias."""
    parameter = nn.Parameter(weight.detach().cpu().float())
    if gradient is not None:
        parameter.grad = gradient.detach().cpu().float()
    layer.register_parameter("weight", parameter)
    layer.register_parameter("bias", None)
    return layer

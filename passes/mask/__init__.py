"""Mask: a model whose channels compete, all layers together or within each, for the few that are kept.

Cascaded channel pruning (Miles and Mikolajczyk, BMVC 2020, arXiv 2008.06814) prunes a student out of its own teacher:
levels of one network share their convolutions, each with a mask of its own, and the scores s_i behind the mask of level
i move by the gradient of the level above it (equation 5):

    ds_i  =  sum over batch, positions of  dL_{i+1} / dY_{i+1} * (what Y_{i+1} is unmasked)

so that a filter that the student does not use still gets a signal. Here that is one factor on each value that a layer
with weights reads (:mod:`fxdistill.ir.masks`); no hook is needed:

    conv ─ BatchNorm ─ ReLU ─ pool ─ [ * factor ] ─ next conv         factor = m_{i+1} + (s_i - stop(s_i))

**Why there**, and not behind the convolution itself, before its BatchNorm:

- *The signal.* A BatchNorm in training mode undoes any factor on what it reads, so that the sum of dL/dY * Y is zero
  for every channel that is kept; and one that is masked to a constant zero is divided by sqrt(eps), which makes its
  slope hundreds of times too large. Behind the activation equation 5 is what it means to be: the change of the loss
  if this channel were let through. Nor does a ReLU follow there, whose slope at a masked zero is none.
- *Cutting.* A channel that is zero only before BatchNorm leaves a constant behind, which at the border of a padded
  convolution cannot be folded into its reader's bias. A channel that all readers read as zero is read by nobody: it can
  be cut from weights and graph, exactly, by ``shrink``.
- *Coupled channels* (residual sums, concatenations, depthwise convolutions) have one class, and so one score: each
  of its readers has a gate for it, and the score gets the sum over all of them. What lies between gates is not masked,
  and need not be: nobody reads it.

In a network without BatchNorm and activation the factor lies on the output of the convolution.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import InputError, InvariantError
from fxdistill.ir import masks
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.cost import cost_of
from fxdistill.ir.coupling import Coupling, core
from fxdistill.ir.graph import Traced, path_of, scope_of, shape_of
from fxdistill.ir.running import buffers_kept, example, seeded, tensors_in
from fxdistill.passes.mask.maskable import Edge, Maskable, maskable

MASKS = "masks"
"""The part of a masked model that holds its scores."""
TOLERANCE = 1e-4
"""Largest difference to the model whose readers weigh masked channels with zeros, relative to the largest value."""


@dataclass(frozen=True)
class MaskSource:
    """A traced model in eval mode, its coupled channels, and whether those of its first convolution are masked."""

    traced: Traced
    coupling: Coupling
    first: bool = False

    @property
    def found(self) -> Maskable:
        """What can be masked."""
        return maskable(self.traced, self.coupling, first=self.first)


@dataclass(frozen=True)
class Mask(Pass[MaskSource, Traced]):
    """Put gates into a model: a mask of its own, the scores of another level that ride on it, or both.

    The scores are parameters of the part ``masks``: ``scores`` behind the mask, ``riding`` those that learn here. They
    are zeros; whoever makes levels of one network gives them their values, and two levels the same ones.

    Attributes:
        count: How many channels are kept; None for a level that keeps all of them, or as many as ``limit`` allows.
        limit: What it may cost once it is cut: ``macs`` or ``parameters``, and how many; None for ``count``.
        rides: Whether scores ride on it.
        nested: How many channels the levels keep that its mask lies inside of, the outermost first; their scores are
            ``around_0``, ``around_1`` … then.
        by_layer: Whether each layer keeps about the same share, here and around, instead of all layers competing.
        multiple: Of each layer so many are kept, or a multiple of that, or all, here and around; ``count`` is then the
            most that are kept.
        centred: Whether the gradients of what rides are centred within each layer.
    """

    count: int | None = None
    limit: tuple[str, int] | None = None
    rides: bool = False
    nested: tuple[int, ...] = ()
    by_layer: bool = False
    multiple: int = 1
    centred: bool = False

    def requires(self, source: MaskSource) -> None:
        """Something can be masked, each layer keeps a channel, and not all are kept."""
        found = source.found
        check_maskable(found)
        least, most = found.least(self.multiple), len(found.classes)
        if self.count is not None and not least <= self.count <= most:
            raise InputError(
                f"{self.count} channels are to be kept of {most} in {len(found.layers)} layers, of which none may lose "
                f"all{f', in multiples of {self.multiple}' if self.multiple > 1 else ''}",
                where="keep", hint=f"keep {least / most:.3g} or more of them",
            )  # fmt: skip

    def run(self, source: MaskSource) -> PassResult[Traced]:
        """Add the scores, the mask and the gates."""
        found = source.found
        graph, new = _copied(source.traced.graph)
        module = fx.GraphModule(source.traced.module, graph, type(source.traced.module).__name__)
        module.add_module(MASKS, nn.Module())
        factors = self._factors(module, graph, source, found)
        if factors is not None:
            for number, edge in enumerate(found.edges):
                _gate(module, edge, new, factors, number)
        graph.lint()
        module.recompile()
        return PassResult(replace(source.traced, module=module, compared=""), modified=factors is not None)

    def ensures(self, source: MaskSource, value: Traced) -> None:
        """As many channels are kept as were asked for, of each layer one at least; without gates it is the model."""
        if str(unmasked(value.module).graph) != str(_copied(source.traced.graph)[0]):
            raise InvariantError("masking changed more of the graph than what layers read")
        found = source.found
        kept = kept_of(value.module) if self._masks else torch.ones(len(found.classes))
        if self.count is not None and not self.count - self.multiple < int(kept.sum()) <= self.count:
            raise InvariantError("the mask keeps another number of channels")
        for layer, part in zip(found.layers, kept.split([len(one.classes) for one in found.layers]), strict=True):
            if not part.any() or (int(part.sum()) % self.multiple and not part.all()):
                raise InvariantError("the mask keeps no channel of a layer, or no multiple", where=layer.name)

    def proves(self, source: MaskSource, value: Traced) -> None:
        """It answers as the model does whose layers weigh what is masked with zeros."""
        found = source.found
        kept = kept_of(value.module) if self._masks else torch.ones(len(found.classes))
        gone = frozenset(i for i, alive in zip(found.classes, kept.tolist(), strict=True) if not alive)
        images = example(source.traced.module, source.traced.input_shape)
        with torch.no_grad(), seeded(images.device), buffers_kept(value.module), value.running() as module:
            masked = module(images.clone())
        with torch.no_grad(), seeded(images.device), source.traced.running() as module, buffers_kept(module):
            silent = torch.func.functional_call(module, silenced(source.traced, source.coupling, gone), images.clone())
        for one, other in zip(tensors_in(masked), tensors_in(silent), strict=True):
            scale = max(float(other.abs().max()), torch.finfo(torch.float32).tiny)
            if not float((one - other).abs().max()) <= TOLERANCE * scale:
                raise InvariantError("the masked model does not answer as one that does not read what is masked")

    @property
    def _masks(self) -> bool:
        return self.count is not None or self.limit is not None

    def _factors(self, module: fx.GraphModule, graph: fx.Graph, source: MaskSource, found: Maskable) -> fx.Node | None:
        """The nodes of the factors, in front of everything that reads them."""
        held = module.get_submodule(MASKS)
        first, mask = next(node for node in graph.nodes if node.op != "placeholder"), None
        with graph.inserting_before(first):
            if self._masks or self.centred:
                held.register_buffer("layers", found.positions)
                layers = _read(graph, "layers")
            if self._masks:
                how: dict[str, object] = {"by_layer": True} if self.by_layer else {}
                how |= {"multiple": self.multiple} if self.multiple > 1 else {}
                for number, count in enumerate(self.nested):
                    scores = _scores(held, graph, f"around_{number}", found)
                    mask = _call(graph, masks.threshold, (scores, layers, count, mask), f"kept.{number}", how)
                scores = _scores(held, graph, "scores", found)
                if self.limit is None:
                    mask = _call(graph, masks.threshold, (scores, layers, self.count, mask), "kept", how)
                else:
                    arguments = (scores, layers, *_priced(held, graph, source, found, self.limit), mask)
                    mask = _call(graph, masks.affordable, arguments, "kept", how)
            if not self.rides:
                return mask
            riding = _scores(held, graph, "riding", found)
            return _call(graph, masks.ride, (mask, riding, *((layers,) if self.centred else ())), "factors")


def _scores(held: nn.Module, graph: fx.Graph, name: str, found: Maskable) -> fx.Node:
    held.register_parameter(name, nn.Parameter(torch.zeros(len(found.classes))))
    return _read(graph, name)


def _priced(
    held: nn.Module, graph: fx.Graph, source: MaskSource, found: Maskable, limit: tuple[str, int]
) -> Iterator[object]:
    """What a budget is counted with, tensors as buffers."""
    *tensors, most = cost_of(source.traced, source.coupling, found.classes).priced(*limit)
    for name, tensor in zip(("counts", "fixed", "rows", "weights"), tensors, strict=True):
        held.register_buffer(name, tensor)
        yield _read(graph, name)
    yield most


def check_maskable(found: Maskable) -> None:
    """Refuse a model without maskable channels.

    Raises:
        InputError: It has none; says why.
    """
    if not found.layers:
        listed = "; ".join(f"'{one.where}': {one.why}" for one in found.remarks[:5])
        raise InputError(
            "the model has no channels that can be masked", where="teacher",
            hint="the cascade masks what convolutions make, the first one with --mask-first or a budget alone. "
            f"{listed or 'It has no convolution'}",
        )  # fmt: skip


def kept_of(module: nn.Module) -> Tensor:
    """Which channels a masked model keeps now: (K,), 1 and 0.

    Raises:
        InvariantError: It has no mask of its own.
    """
    values: dict[fx.Node, Tensor] = {}
    last: Tensor | None = None
    for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
        if node.op == "call_function" and node.target in masks.MASKS:
            read: Any = fx.node.map_arg(
                node.args, lambda one: values[one] if one in values else attrgetter(str(one.target))(module)
            )
            found: Any = node.target(*read, **node.kwargs)
            last = values[node] = found
    if last is None:
        raise InvariantError("the model has no mask of its own")
    return last.detach().cpu()


def unmasked(module: fx.GraphModule) -> fx.GraphModule:
    """The model without its gates, over the same tensors; what only they read is gone."""
    graph, _ = _copied(module.graph)
    for node in graph.nodes:
        if node.op == "call_function" and node.target is masks.gate:
            node.replace_all_uses_with(node.args[0])
    for node in reversed(list(graph.nodes)):
        ours = node.op == "get_attr" and str(node.target).startswith(f"{MASKS}.")
        if not node.users and (ours or (node.op == "call_function" and node.target in masks.NODES)):
            graph.erase_node(node)
    return fx.GraphModule(module, graph, type(module).__name__)


def _copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    copied, new = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        new[node] = copied.node_copy(node, new.__getitem__)
    return copied, new


def silenced(traced: Traced, coupling: Coupling, gone: frozenset[int]) -> dict[str, Tensor]:
    """The weights of a model, zeros where they weigh a channel of one of these classes."""
    dead = torch.zeros(coupling.class_count + 1, dtype=torch.bool)
    dead[sorted(gone)] = True
    found: dict[str, Tensor] = {}
    for name, weight in traced.module.named_parameters(remove_duplicate=False):
        labels = coupling.parameter_labels(name)
        alive = [~dead[core(labels[dim])] for dim in labels if coupling.roles.get((name, dim)) == "in"]
        for one in alive:
            found[name] = found.get(name, weight.detach()) * one.expand(weight.shape).to(weight)
    return found


def _gate(module: fx.GraphModule, edge: Edge, new: dict[fx.Node, fx.Node], factors: fx.Node, number: int) -> None:
    graph, name = module.graph, f"index_{number}"
    module.get_submodule(MASKS).register_buffer(name, edge.index)
    source, reader = new[edge.source], new[edge.reader]
    with graph.inserting_before(reader):
        node = _call(graph, masks.gate, (source, factors, _read(graph, name), edge.dim), f"{path_of(reader)}.gate")
    node.meta |= {"scope": scope_of(reader), "shape": shape_of(source)}
    reader.replace_input_with(source, node)


def _read(graph: fx.Graph, name: str) -> fx.Node:
    node = graph.get_attr(f"{MASKS}.{name}")
    node.meta = {"path": f"{MASKS}.{name}", "scope": MASKS, "shape": None}
    return node


def _call(
    graph: fx.Graph, function: object, arguments: tuple[object, ...], path: str, named: dict[str, object] | None = None
) -> fx.Node:  # fmt: skip
    node = graph.create_node("call_function", function, arguments, named or {})  # type: ignore[arg-type]
    node.meta = {"path": path, "scope": MASKS, "shape": None, "macs": 0}
    return node

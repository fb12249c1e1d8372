"""Shrink: carry a removal out on weights, modules and graph.

Works on a copy. Every weight becomes ``weight[alive].reshape(sizes)``, grouped and ragged ones included; then the graph
is run once on the smaller weights, and whatever states a width is corrected on the way, so that each value gets the
shape that its survivors have (:mod:`fxdistill.passes.shrink.rewrites`):

    module attributes     in_channels, groups, num_features, normalized_shape …
    shape constants       view, reshape, expand, unflatten, split, chunk, slices, pad, normalized_shape
    attention             the scale stays that of the full head

A permutation of a *ragged* value (channel shuffle with different survivors in each group) brings the survivors into
another order than in the full model. That order is followed on element indices, and put right by one ``index_select``
as soon as it is a permutation along one dimension, so that everywhere else

    shrunken value  =  full value[alive]

holds, which :mod:`fxdistill.passes.shrink.prove` checks.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import InputError, InvariantError, first_line
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Shape, Traced, op_name, path_of, shape_of
from fxdistill.ir.operators import is_a
from fxdistill.ir.running import buffers_kept, copied, example, seeded, tensors_in
from fxdistill.ir.survivors import Mask, Survivors
from fxdistill.operators import Trait
from fxdistill.passes.shrink.arguments import Obstacle
from fxdistill.passes.shrink.prove import Proof, prove
from fxdistill.passes.shrink.rewrites import rewrite


@dataclass(frozen=True)
class ShrinkSource:
    """A traced model, its coupling, and the classes to remove."""

    traced: Traced
    coupling: Coupling
    removed: frozenset[int]


@dataclass(frozen=True, eq=False)
class Shrunken:
    """A physically smaller model.

    Attributes:
        module: Independent of the model that it came from, and of fxdistill.
        proofs: The pass's guarantee leaves what it found here.
    """

    module: fx.GraphModule
    proofs: list[Proof] = field(default_factory=list)

    @property
    def proof(self) -> Proof:
        """What was compared with the masked full model.

        Raises:
            InvariantError: Nothing was compared yet.
        """
        if not self.proofs:
            raise InvariantError("the shrunken model is not proved", hint="run the pass as a whole: Shrink()(source)")
        return self.proofs[-1]


@dataclass(frozen=True)
class Shrink(Pass[ShrinkSource, Shrunken]):
    """Make a model physically smaller, and prove that it is the masked one.

    Attributes:
        seed: Seed of the proof's batch.
    """

    seed: int = 0

    def requires(self, source: ShrinkSource) -> None:
        """Something is removed, and nothing that must stay."""
        if not source.removed:
            raise InputError("nothing is to be removed", hint="lower --keep, or protect less")
        for class_id in sorted(source.removed):
            reason = source.coupling.locked(class_id)
            if reason is not None:
                raise InputError(f"a channel that {reason} cannot be removed", where=f"class {class_id}")

    def run(self, source: ShrinkSource) -> PassResult[Shrunken]:
        """Slice the weights, correct the graph.

        Raises:
            Obstacle: The removal cannot be carried out at some node.
        """
        module = shrink(source.traced, Survivors(source.coupling, source.removed))
        return PassResult(Shrunken(module), modified=True)

    def ensures(self, source: ShrinkSource, value: Shrunken) -> None:
        """The shrunken model is the masked one, and shares no memory with the model that it came from.

        Raises:
            InvariantError: It is not; names the first node that differs.
        """
        theirs = {tensor.untyped_storage().data_ptr() for _, tensor in _tensors(source.traced.module)} - {0}
        for name, tensor in _tensors(value.module):
            if tensor.untyped_storage().data_ptr() in theirs:
                raise InvariantError("the shrunken model shares memory with the full one", where=name)
        survivors = Survivors(source.coupling, source.removed)
        try:
            value.proofs.append(prove(source.traced, survivors, value.module, seed=self.seed))
        except (RuntimeError, TypeError, ValueError) as cause:
            first = next(iter(str(cause).splitlines()), "")
            raise InvariantError(f"the shrunken model does not run: {type(cause).__name__}: {first}") from cause


def shrink(traced: Traced, survivors: Survivors) -> fx.GraphModule:
    """The shrunken model, not proved yet; its nodes' ``meta["path"]`` are those of the full graph."""
    module = copied(traced.module).train(traced.training)
    slice_weights(traced, survivors, module)
    images = example(traced.module, traced.input_shape)
    with torch.no_grad(), seeded(images.device), buffers_kept(module), traced.running():
        _Rewriter(traced, survivors, module, images).run_all()
    module.graph.lint()
    module.graph._tracer_cls = None  # noqa: SLF001  # else a pickle asks for our tracer
    return fx.GraphModule(module, module.graph, type(traced.module).__name__)


def agrees(value: Tensor, expected: Shape) -> bool:
    """Whether a value has the expected shape; one that is broadcast along a dimension may be of any size there."""
    sizes = zip(value.shape, expected, value.stride(), strict=False)
    return value.dim() == len(expected) and all(size == wanted or stride == 0 for size, wanted, stride in sizes)


def slice_weights(traced: Traced, survivors: Survivors, module: nn.Module) -> None:
    """Slice the parameters and buffers of a copy; what was one tensor under two names stays one."""
    first: dict[int, str] = {}
    new: dict[int, Tensor] = {}
    for name, tensor in _tensors(traced.module):
        mask = survivors.of_parameter(first.setdefault(id(tensor), name))
        if mask is None or mask.whole:
            continue
        if mask.sizes is None or 0 in mask.sizes:
            raise Obstacle("what survives is not a box", path=name)
        owner, _, leaf = name.rpartition(".")
        if id(tensor) not in new:
            sliced = mask.take(tensor.detach()).clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            new[id(tensor)] = nn.Parameter(sliced, requires_grad=tensor.requires_grad) if is_parameter else sliced
        setattr(module.get_submodule(owner), leaf, new[id(tensor)])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


class _Rewriter(fx.Interpreter):
    """Runs the shrunken graph and corrects each node before it runs."""

    def __init__(self, traced: Traced, survivors: Survivors, module: fx.GraphModule, images: Tensor) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.graph, self.root = module.graph, module
        self.survivors, self.full = survivors, traced
        self.shapes = {path_of(node): node.meta.get("shape") for node in traced.graph.nodes}
        self.layouts: dict[fx.Node, Tensor] = {}
        self.images = images
        self.scalars = _scalars(traced, images)
        self.args_iter = iter((images,))

    def varies(self, path: str, index: int | None = None) -> bool:
        """Whether a number of the full model, or one of several, goes by how many images there are and how large."""
        found = [numbers[path] for numbers in (self.scalars, *self._others) if path in numbers]
        chosen = found if index is None else [value[index] for value in found]
        return any(one != chosen[0] for one in chosen)

    @cached_property
    def _others(self) -> list[dict[str, Any]]:
        """The numbers of the full graph for one image more, and for images twice as large, where it takes such."""
        batch, channels, *sides = self.images.shape
        found = []
        for shape in ((batch + 1, channels, *sides), (batch, channels, *(2 * side for side in sides))):
            with suppress(Exception):  # an exported graph, say, takes one size alone
                found.append(_scalars(self.full, example(self.full.module, shape)))
        return found

    def run_all(self) -> None:
        """Correct and run every node."""
        uses = {node: set(node.users) for node in self.graph.nodes}
        for node in list(self.graph.nodes):
            path = path_of(node)
            self._step(node, path)
            for source in node.all_input_nodes:
                uses.setdefault(source, set(source.users)).discard(node)
                if not uses[source]:
                    self.env.pop(source, None)

    def _step(self, node: fx.Node, path: str) -> None:
        masks = self.survivors.of(path)
        sources = [source for source in node.all_input_nodes if isinstance(self.env[source], Tensor)]
        try:
            rewrite(node, self, masks)
            self.env[node] = value = self.run_node(node)
        except (Obstacle, InputError):  # an operator that is wrong itself
            raise
        except Exception as cause:
            why = f"the smaller model does not run ({type(cause).__name__}: {first_line(cause)})"
            raise Obstacle(why, path=path, fused=node.op == "call_module") from cause
        if isinstance(value, Tensor):
            mask = masks if isinstance(masks, Mask) else None
            if self._may_permute(node, sources, mask):
                self._follow(node, sources, mask)
            else:
                self._check(value, mask, path)
        elif isinstance(masks, list) and isinstance(value, tuple | list) and len(value) == len(masks):
            for part, inner in zip(value, masks, strict=True):
                if isinstance(part, Tensor) and isinstance(inner, Mask):
                    self._check(part, inner, path)

    def _check(self, value: Tensor, mask: Mask | None, path: str) -> None:
        expected = self.shapes.get(path) if mask is None else mask.sizes
        if expected is not None and not agrees(value, expected):
            raise Obstacle(f"its shape is {tuple(value.shape)} where {tuple(expected)} survive", path=path)

    def _may_permute(self, node: fx.Node, sources: list[fx.Node], mask: Mask | None) -> bool:
        if any(source in self.layouts for source in sources):
            return True
        if mask is None or mask.whole:
            return False
        name = op_name(node, self.root)
        return is_a(name, Trait.REORDERS) or (is_a(name, Trait.PERMUTES) and not mask.is_product)

    def _follow(self, node: fx.Node, sources: list[fx.Node], mask: Mask | None) -> None:
        """Keep track of the order of survivors, and put it right as soon as one index_select can."""
        if mask is None or len(sources) != 1:
            raise Obstacle("the survivors come in another order", path=path_of(node))
        layout = self._moved(node, op_name(node, self.root), sources[0])
        ordered = mask.full.reshape(-1).nonzero().reshape(-1)
        if torch.equal(layout.reshape(-1), ordered) and mask.sizes in (None, tuple(layout.shape)):
            return
        node.meta = {**node.meta, "unordered": True}
        found = _order(layout, ordered.reshape(layout.shape)) if mask.sizes == tuple(layout.shape) else None
        if found is not None:
            self._reorder(node, *found)
        else:
            self.layouts[node] = layout

    def _moved(self, node: fx.Node, name: str, source: fx.Node) -> Tensor:
        """For each element of the shrunken value, the flat index of the element of the full one."""
        layout = self.layouts.get(source)
        if layout is None:
            before = self.survivors.of_tensor(path_of(source))
            if before is None or before.sizes is None:
                raise Obstacle("the survivors are not known", path=path_of(source))
            layout = before.full.reshape(-1).nonzero().reshape(before.sizes)
        keeps = is_a(name, Trait.KEEPS_ORDER)
        if not keeps and not is_a(name, Trait.PERMUTES):
            raise Obstacle("the survivors come in another order", path=path_of(node))
        moved = self._run_on(node, source, layout)
        if keeps:
            return moved
        shape: Shape = self.shapes[path_of(source)]
        places = self._run_on(node, source, torch.arange(torch.Size(shape).numel()).reshape(shape)).reshape(-1)
        back = torch.empty_like(places)
        back[places] = torch.arange(len(places))
        return back[moved]

    def _run_on(self, node: fx.Node, source: fx.Node, indices: Tensor) -> Tensor:
        """The node applied to element indices."""
        kept = self.env.get(source)
        self.env[source] = indices
        try:
            value: Tensor = self.run_node(node)
        finally:
            self.env[source] = kept
        return value

    def _reorder(self, node: fx.Node, dim: int, order: Tensor) -> None:
        name = f"{node.name}_order"
        self.root.register_buffer(name, order)
        with self.graph.inserting_after(node):
            index = self.graph.get_attr(name)
        with self.graph.inserting_after(index):
            new = self.graph.call_function(torch.index_select, (node, dim, index))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        new.meta = {key: value for key, value in node.meta.items() if key != "unordered"}
        index.meta = {"path": f"{path_of(node)}.order", "scope": node.meta.get("scope", "")}
        self.env[new] = self.env[node].index_select(dim, order)


def _order(layout: Tensor, ordered: Tensor) -> tuple[int, Tensor] | None:
    """The dimension and the order that bring a layout to the wanted one."""
    for dim in range(layout.dim()):
        order = layout.movedim(dim, 0).reshape(layout.shape[dim], -1)[:, 0].argsort()
        if torch.equal(layout.index_select(dim, order), ordered):
            return dim, order
    return None


class _Numbers(fx.Interpreter):
    """Runs a graph and keeps every value that is no tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if isinstance(value, int | float | tuple | list):
            self.found[path_of(n)] = value
        return value


def _scalars(traced: Traced, images: Tensor) -> dict[str, Any]:
    """The numbers that the full graph computes from shapes, by path."""
    if all(shape_of(node) is not None or node.op == "output" for node in traced.graph.nodes):
        return {}
    numbers = _Numbers(traced.module)
    with buffers_kept(traced.module):
        numbers.run(images)
    return {path: value for path, value in numbers.found.items() if not tensors_in(value)}

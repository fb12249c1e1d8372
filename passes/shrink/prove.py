"""Prove: the shrunken model computes what the full one computes with the removed channels silenced.

Both run on one seeded batch, node by node. In the full model every removed element is set to zero after every node, so
consumers read zeros, and statistics over channels are taken over the survivors. Then for every node

    shrunken value  =  (masked full value)[alive]        within ``TOLERANCE`` of the node's largest value

The first node at which that fails is named. In a deep network, or in half precision, rounding alone can add up to more
than that; what differs is therefore compared once more in double precision, where rounding vanishes and a mistake
stays. Where sums cancel (the mean of what a norm has centred), all of a value is rounding: a difference is then
relative to the share ``CANCELLED`` of what the node read, and so it is in the nodes that read nothing but that.

NaN equals NaN, which says nothing: an answer without a finite number proves nothing. Positive images are tried then, of
which logarithms and roots are numbers.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from fxdistill.errors import InvariantError, ModelError
from fxdistill.ir.graph import Traced, mutates_input, op_name, path_of, submodule
from fxdistill.ir.operators import operator_of
from fxdistill.ir.running import buffers_kept, example, says_nothing, seeded
from fxdistill.ir.survivors import Mask, Masks, Survivors
from fxdistill.operators import rule
from fxdistill.passes.shrink.masked import OVER_CHANNELS, RULES, Call

TOLERANCE = 1e-4
"""Largest difference, relative to the node's largest value."""
CANCELLED = 1e-9
"""What counts as a value at the least, relative to the largest entry of what it is computed from."""

_UNSET = frozenset(("empty", "new_empty", "empty_like", "empty_strided"))
"""Operations whose values are whatever the memory held."""


@dataclass(frozen=True)
class Proof:
    """What was compared.

    Attributes:
        nodes: Number of node values compared.
        error: The largest difference, relative to its node's largest value.
        where: The node that has it.
        precision: What was computed in: the model's own, or ``float64`` where rounding had to be told from a mistake.
    """

    nodes: int
    error: float
    where: str
    precision: str


class _DisagreementError(InvariantError):
    """The two models differ, and it may be rounding."""


class _NothingComparedError(ModelError):
    """The answer has no finite number."""


def _disagreement(path: str, error: float) -> _DisagreementError:
    """The first node at which they differ, and by how much."""
    return _DisagreementError(
        f"the shrunken model disagrees with the masked full one, first at '{path}', by {error:.1e} of its "
        "largest value", where=path, hint="nothing was written; protect this part with --protect and report the model",
    )  # fmt: skip


def prove(full: Traced, survivors: Survivors, shrunken: fx.GraphModule, *, seed: int = 0) -> Proof:
    """Compare the masked full model with the shrunken one, node by node.

    Args:
        full: The traced model that was shrunk.
        survivors: What is left of it.
        shrunken: Its nodes' ``meta["path"]`` are those of the full graph; values whose survivors come in another order
            (``meta["unordered"]``) are compared where they are in order again.
        seed: Seed of the batch.

    Raises:
        InvariantError: They disagree; names the first node that does.
        ModelError: The full model answers with no finite number.
    """
    images = example(full.module, full.input_shape, seed=seed)
    try:
        return _proved(full, survivors, shrunken, images)
    except _NothingComparedError:
        return _proved(full, survivors, shrunken, images.abs())


def _proved(full: Traced, survivors: Survivors, shrunken: fx.GraphModule, images: Tensor) -> Proof:
    try:
        return _prove(full, survivors, shrunken, images)
    except _DisagreementError as found:
        if images.dtype == torch.float64:
            raise
        try:
            exact = replace(full, module=_in_double(full.module))
            return _prove(exact, survivors, _in_double(shrunken), images.double())
        except (RuntimeError, TypeError):  # a type that the model fixes itself
            raise found from None


def _prove(full: Traced, survivors: Survivors, shrunken: fx.GraphModule, images: Tensor) -> Proof:
    with torch.no_grad(), seeded(images.device), full.running(), buffers_kept(full.module), buffers_kept(shrunken):
        masked = _Masked(full.module, survivors, images)
        found = _compare(masked, _Steps(shrunken, images), survivors)
    if says_nothing(masked.latest):
        raise _NothingComparedError(
            "the model answers images of noise, and positive ones as well, with no finite number, so that there is "
            "nothing to compare", where="output", hint="give a model, and weights, that answer with numbers",
        )  # fmt: skip
    return Proof(*found, precision=str(images.dtype).removeprefix("torch."))


def _in_double(module: fx.GraphModule) -> fx.GraphModule:
    """A copy that computes in double precision, where its graph asks for less as well, or a graph inside of it."""
    module = copy.deepcopy(module).double()
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                wider: Any = fx.node.map_aggregate((node.args, node.kwargs), _doubled)
                node.args, node.kwargs = wider
                if node.op == "call_method" and node.target in ("float", "half", "bfloat16"):
                    node.target = "double"
            part.recompile()
    return module


def _doubled(argument: Any) -> Any:
    return torch.float64 if argument in (torch.float32, torch.float16, torch.bfloat16) else argument


def _compare(full: "_Masked", shrunken: "_Steps", survivors: Survivors) -> tuple[int, float, str]:
    """How many values were compared, and the largest difference with the node that has it."""
    count, worst, where = 0, 0.0, ""
    known = {path_of(node) for node in full.graph.nodes}
    absent = known - {str(node.meta.get("path", "")) for node in shrunken.graph.nodes}
    if absent:
        raise InvariantError("the shrunken model lacks a node of the full one", where=min(absent))
    cancelled = dict[fx.Node, float]()
    for node, value in shrunken.walk():
        path = str(node.meta.get("path", ""))
        if before := [cancelled[source] for source in node.all_input_nodes if source in cancelled]:
            cancelled[node] = max(before)
        if path not in known or node.op == "get_attr" or node.meta.get("unordered"):
            continue
        reference = full.advance(path)
        if op_name(node, shrunken.root) in _UNSET:
            continue
        masks, least = survivors.of(path), cancelled.pop(node, 0.0)
        for one, other in _tensor_pairs(reference, value, masks, path):
            error = _difference(one, other, path)
            if not error <= TOLERANCE:
                cancelled[node] = least = max(least, CANCELLED * shrunken.read_by(node))
                error = _difference(one, other, path, least=least)
            count += 1
            if error > worst:
                worst, where = error, path
            if not error <= TOLERANCE:
                raise _disagreement(path, error)
    return count, worst, where


def _tensor_pairs(reference: Any, value: Any, masks: Masks, path: str) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(reference, Tensor) and isinstance(value, Tensor):
        mask = masks if isinstance(masks, Mask) else None
        if mask is not None and mask.sizes is None:
            return  # a transposed ragged box: compared where it is a box again
        yield mask.take(reference) if mask is not None else reference, value
    elif isinstance(reference, dict) and isinstance(value, dict):
        for index, key in enumerate(reference):
            inner = masks[index] if isinstance(masks, list) and index < len(masks) else None
            yield from _tensor_pairs(reference[key], value[key], inner, path)
    elif isinstance(reference, tuple | list):
        if len(reference) != len(value):
            raise InvariantError("the shrunken model has another number of values", where=path)
        inners = masks if isinstance(masks, list) and len(masks) == len(reference) else [None] * len(reference)
        for one, other, inner in zip(reference, value, inners, strict=True):
            yield from _tensor_pairs(one, other, inner, path)


def _difference(one: Tensor, other: Tensor, path: str, *, least: float = 0.0) -> float:
    """The largest difference, relative to the largest entry of the first one or to ``least``; NaN equals NaN."""
    one, other = _without_broadcast(one, other)
    if one.shape != other.shape:
        raise InvariantError(
            f"the shrunken model has the shape {tuple(other.shape)} where {tuple(one.shape)} survive", where=path
        )
    if one.numel() == 0:
        return 0.0
    if not one.is_floating_point():
        return 0.0 if torch.equal(one, other) else float("inf")
    wide = torch.promote_types(one.dtype, torch.float32)
    error = float((one.to(wide) - other.to(wide)).abs_().max())
    if math.isfinite(error):
        low, high = one.aminmax()
        return error / max(-float(low), float(high), least, torch.finfo(wide).tiny)
    finite = one.isfinite()
    if bool(finite.all()) or not torch.equal(one[~finite].nan_to_num(), other[~finite].nan_to_num()):
        return float("inf")
    return _difference(one[finite], other[finite], path, least=least)


def _without_broadcast(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors with one index of each dimension that both are broadcast along, in different sizes."""
    if one.dim() == other.dim():
        for dim in range(one.dim()):
            if one.shape[dim] != other.shape[dim] and one.stride(dim) == other.stride(dim) == 0:
                one, other = one.narrow(dim, 0, 1), other.narrow(dim, 0, 1)
    return one, other


class _Steps(fx.Interpreter):
    """Runs a graph node by node, forgetting values after their last use."""

    def __init__(self, module: fx.GraphModule, images: Tensor) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.args_iter = iter((images.clone(),))
        self.graph, self.root = module.graph, module
        self._draws = torch.get_rng_state()
        self._last: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(list(self.graph.nodes)):
            for source in node.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    self._last.setdefault(node, []).append(source)

    def walk(self) -> Iterator[tuple[fx.Node, Any]]:
        """Each node with its value, right after it ran."""
        for node in self.graph.nodes:
            self.env[node] = self._drawn(node)
            yield node, self.env[node]
            for done in self._last.get(node, ()):
                del self.env[done]

    def read_by(self, node: fx.Node) -> float:
        """The largest entry of the values that a node reads, right after it ran; 0 where it reads none."""
        values = (self.env[source] for source in node.all_input_nodes)
        found = [value[value.isfinite()] for value in values if isinstance(value, Tensor) and value.is_floating_point()]
        return max((float(value.abs().max()) for value in found if value.numel()), default=0.0)

    def _drawn(self, node: fx.Node) -> Any:
        """The value of a node; what is random draws the same numbers in both models, which run in turns."""
        torch.set_rng_state(self._draws)
        value = self.run_node(node)
        self._draws = torch.get_rng_state()
        return value


class _Masked(_Steps):
    """The full model with the removed elements silenced; ``latest`` is the value that it came to last."""

    def __init__(self, module: fx.GraphModule, survivors: Survivors, images: Tensor) -> None:
        super().__init__(module, images)
        self.survivors = survivors
        self.statistics = set(survivors.coupling.statistics)
        self._walk = self.walk()
        self.latest: Any = None

    def advance(self, path: str) -> Any:
        """Run up to and including the node with this path; its value."""
        for node, value in self._walk:
            self.latest = value
            if path_of(node) == path:
                return value
        raise InvariantError("the shrunken graph has another order of nodes", where=path)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a module; where its weights are computed from parameters (norms), from what is left of those."""
        module = self.root.get_submodule(target)
        if not is_parametrized(module):
            return super().call_module(target, args, kwargs)
        masks = {name: self.survivors.of_parameter(f"{target}.{name}") for name, _ in _tensors(module)}
        masked = {name: _silence(tensor, masks[name], in_place=False) for name, tensor in _tensors(module)}
        return torch.func.functional_call(module, masked, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and silence what was removed."""
        reference = self._reference(n)
        value = super().run_node(n) if reference is None else reference
        masks = self.survivors.of(path_of(n))
        if n.meta.get("shares") and isinstance(value, Tensor) and isinstance(masks, Mask) and _is_silent(value, masks):
            return value  # a view stays one: what is written to it later is written to its base
        return _silence(value, masks, in_place=mutates_input(n, self.root))

    def _reference(self, node: fx.Node) -> Any:
        """The value of a node for which zeros in the place of what was removed do not do; None for other nodes."""
        name = op_name(node, self.root)
        given = operator_of(name).masked
        found = rule(given, RULES, field="masked", name=name)
        if found is None or (given in OVER_CHANNELS and path_of(node) not in self.statistics):
            return None
        source = node.args[0]
        mask = self.survivors.of_tensor(path_of(source)) if isinstance(source, fx.Node) else None
        if mask is None or mask.whole:
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return found(Call(name, args, kwargs, submodule(self.root, node)), mask.full)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _is_silent(value: Tensor, mask: Mask) -> bool:
    return mask.whole or not bool((value.ne(0) & ~mask.full).any())


def _silence(value: Any, masks: Masks, *, in_place: bool) -> Any:
    if isinstance(value, Tensor) and isinstance(masks, Mask):
        if masks.whole:
            return value
        return (value if in_place else value.clone()).masked_fill_(~masks.full, 0)  # a clone lies in memory as it does
    if isinstance(masks, list) and isinstance(value, tuple | list) and len(masks) == len(value):
        items = [_silence(item, inner, in_place=False) for item, inner in zip(value, masks, strict=True)]
        return items if isinstance(value, list) else type(value)(items) if type(value) is tuple else value
    return value

"""Prove: the shrunken model computes what the full one computes with the removed channels silenced.

Both run on one seeded batch, node by node. In the full model every removed element is set to zero after every node, so
consumers read zeros, and statistics over channels are taken over the survivors. Then for every node

    shrunken value  =  (masked full value)[alive]        within ``TOLERANCE`` of the node's largest value

The first node at which that fails is named. In a deep network rounding alone can add up to more than that; what
differs is therefore compared once more in double precision, where rounding vanishes and a mistake stays.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import InvariantError
from fxdistill.ir.graph import Traced, mutates_input, op_name, path_of, submodule
from fxdistill.ir.running import buffers_kept, example, seeded
from fxdistill.ir.survivors import Mask, Masks, Survivors

TOLERANCE = 1e-4
"""Largest difference, relative to the node's largest value."""

_NORMS = {"layer_norm", "rms_norm", "group_norm"}
_MOMENTS = {"mean", "var", "std", "var_mean", "std_mean"}


@dataclass(frozen=True)
class Proof:
    """What was compared.

    Attributes:
        nodes: Number of node values compared.
        error: The largest difference, relative to its node's largest value.
        where: The node that has it.
        precision: What was computed in: ``float32``, or ``float64`` where rounding had to be told from a mistake.
    """

    nodes: int
    error: float
    where: str
    precision: Literal["float32", "float64"] = "float32"


class _DisagreementError(InvariantError):
    """The first node at which the two models differ, and by how much."""

    def __init__(self, path: str, error: float) -> None:
        super().__init__(
            f"the shrunken model disagrees with the masked full one, first at '{path}', by {error:.1e} of its "
            "largest value", where=path,
            hint="nothing was written; protect this part with --protect and report the model",
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
    """
    images = example(full.module, full.input_shape, seed=seed)
    try:
        return _prove(full, survivors, shrunken, images)
    except _DisagreementError as found:
        if images.dtype != torch.float32:
            raise
        try:
            exact = replace(full, module=_in_double(full.module))
            proof = _prove(exact, survivors, _in_double(shrunken), images.double())
        except (RuntimeError, TypeError):  # a type that the model fixes itself
            raise found from None
        return replace(proof, precision="float64")


def _prove(full: Traced, survivors: Survivors, shrunken: fx.GraphModule, images: Tensor) -> Proof:
    with torch.no_grad(), seeded(images.device), full.running(), buffers_kept(full.module), buffers_kept(shrunken):
        return _compare(_Masked(full.module, survivors, images), _Steps(shrunken, images), survivors)


def _in_double(module: fx.GraphModule) -> fx.GraphModule:
    """A copy that computes in double precision, where its graph asks for single as well."""
    module = copy.deepcopy(module).double()
    for node in module.graph.nodes:
        wider: Any = fx.node.map_aggregate((node.args, node.kwargs), _doubled)
        node.args, node.kwargs = wider
        if node.op == "call_method" and node.target == "float":
            node.target = "double"
    return module


def _doubled(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def _compare(full: "_Masked", shrunken: "_Steps", survivors: Survivors) -> Proof:
    count, worst, where = 0, 0.0, ""
    known = {path_of(node) for node in full.graph.nodes}
    for node, value in shrunken.walk():
        path = str(node.meta.get("path", ""))
        if path not in known or node.op == "get_attr" or node.meta.get("unordered"):
            continue
        reference = full.advance(path)
        masks = survivors.of(path)
        for one, other in _tensor_pairs(reference, value, masks, path):
            error = _difference(one, other, path)
            count += 1
            if error > worst:
                worst, where = error, path
            if not error <= TOLERANCE:
                raise _DisagreementError(path, error)
    return Proof(count, worst, where)


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


def _difference(one: Tensor, other: Tensor, path: str) -> float:
    """The largest difference of two tensors, relative to the largest entry of the first; NaN equals NaN."""
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
        return error / max(-float(low), float(high), 1e-12)
    finite = one.isfinite()
    if bool(finite.all()) or not torch.equal(one[~finite].nan_to_num(), other[~finite].nan_to_num()):
        return float("inf")
    return _difference(one[finite], other[finite], path)


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
        self.graph = module.graph
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
            self.env[node] = self.run_node(node)
            yield node, self.env[node]
            for done in self._last.get(node, ()):
                del self.env[done]


class _Masked(_Steps):
    """The full model with the removed elements silenced."""

    def __init__(self, module: fx.GraphModule, survivors: Survivors, images: Tensor) -> None:
        super().__init__(module, images)
        self.root = module
        self.survivors = survivors
        self.statistics = set(survivors.coupling.statistics)
        self._walk = self.walk()

    def advance(self, path: str) -> Any:
        """Run up to and including the node with this path; its value."""
        for node, value in self._walk:
            if path_of(node) == path:
                return value
        raise InvariantError("the shrunken graph has another order of nodes", where=path)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and silence what was removed."""
        name = op_name(n, self.root)
        special = self._statistic(n) if path_of(n) in self.statistics or name == "batch_norm" else None
        value = super().run_node(n) if special is None else special
        masks = self.survivors.of(path_of(n))
        if n.meta.get("shares") and isinstance(value, Tensor) and isinstance(masks, Mask) and _is_silent(value, masks):
            return value  # a view stays one: what is written to it later is written to its base
        return _silence(value, masks, in_place=mutates_input(n, self.root))

    def _statistic(self, node: fx.Node) -> Tensor | tuple[Tensor, Tensor] | None:
        """The value of a node that normalises over channels, with statistics over the survivors."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        source = node.args[0] if node.args else node.kwargs.get("input")
        mask = self.survivors.of_tensor(path_of(source)) if isinstance(source, fx.Node) else None
        if mask is None or mask.whole:
            return None
        name = op_name(node, self.root)
        alive = mask.full
        if name == "batch_norm":  # with statistics of its own: standardized weights (NFNet)
            return _batch_norm(args, kwargs, alive) if submodule(self.root, node) is None else None
        if name in _MOMENTS:
            return _moment(name, args, kwargs, alive)
        if name in _NORMS:
            return _norm(name, args, kwargs, alive, submodule(self.root, node))
        return None


def _is_silent(value: Tensor, mask: Mask) -> bool:
    return mask.whole or not bool((value.ne(0) & ~mask.full).any())


def _silence(value: Any, masks: Masks, *, in_place: bool) -> Any:
    if isinstance(value, Tensor) and isinstance(masks, Mask):
        if masks.whole:
            return value
        dead = ~masks.full
        return value.masked_fill_(dead, 0) if in_place else value.masked_fill(dead, 0)
    if isinstance(masks, list) and isinstance(value, tuple | list) and len(masks) == len(value):
        items = [_silence(item, inner, in_place=False) for item, inner in zip(value, masks, strict=True)]
        return items if isinstance(value, list) else type(value)(items) if type(value) is tuple else value
    return value


def _moment(name: str, args: Sequence[Any], kwargs: dict[str, Any], alive: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """``mean``, ``var``, ``std``, ``var_mean`` and ``std_mean`` of the survivors along dimensions."""
    x: Tensor = args[0]
    flags = [value for value in args[1:] if isinstance(value, bool)]  # keepdim of a mean; else unbiased, then keepdim
    keep = flags[-1] if flags and (name == "mean" or len(flags) > 1) else False
    unbiased = flags[0] if flags and name != "mean" else True
    given = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 and not isinstance(args[1], bool) else None))
    dims = tuple(range(x.dim())) if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
    keep = bool(kwargs.get("keepdim", kwargs.get("keepdims", keep)))
    correction = kwargs.get("correction", 1 if kwargs.get("unbiased", unbiased) else 0)
    count = alive.sum(dims, keepdim=True)
    mean: Tensor = (x * alive).sum(dims, keepdim=True) / count.clamp(min=1)
    square = (((x - mean) ** 2) * alive).sum(dims, keepdim=True) / (count - correction).clamp(min=1)
    mean, square = (mean, square) if keep else (mean.squeeze(dims), square.squeeze(dims))
    spread = square.sqrt() if name.startswith("std") else square
    return mean if name == "mean" else (spread, mean) if name.endswith("_mean") else spread


def _norm(name: str, args: Sequence[Any], kwargs: dict[str, Any], alive: Tensor, module: nn.Module | None) -> Tensor:
    """Layer, RMS and group normalisation with the statistics of the survivors."""
    x, given = args[0], _norm_arguments(name, args, kwargs, module)
    if name == "group_norm":
        shape = (x.shape[0], given["groups"], -1)
        normed = _standardized(x.reshape(shape), alive.reshape(shape), (2,), given["eps"], center=True).reshape(x.shape)
        view: tuple[int, ...] = (1, -1, *(1,) * (x.dim() - 2))
    else:
        dims = tuple(range(x.dim() - len(given["shape"]), x.dim()))
        normed = _standardized(x, alive, dims, given["eps"], center=name != "rms_norm")
        view = tuple(given["shape"])
    for key, combine in _AFFINE:
        if given[key] is not None:
            normed = combine(normed, given[key].reshape(view))
    return normed


def _batch_norm(args: Sequence[Any], kwargs: dict[str, Any], alive: Tensor) -> Tensor | None:
    """A functional batch norm whose statistics run over channels, as weight standardization uses it."""
    names = ("x", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    defaults: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    if not given["training"]:
        return None
    x: Tensor = given["x"]
    dims = tuple(d for d in range(x.dim()) if d != 1)
    normed = _standardized(x, alive, dims, given["eps"], center=True)
    for key, combine in _AFFINE:
        if given[key] is not None:
            normed = combine(normed, given[key].reshape(1, -1, *(1,) * (x.dim() - 2)))
    return normed


_AFFINE: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (("weight", torch.mul), ("bias", torch.add))


def _standardized(x: Tensor, alive: Tensor, dims: tuple[int, ...], eps: float, *, center: bool) -> Tensor:
    count = alive.sum(dims, keepdim=True).clamp(min=1)
    if center:
        x = (x - (x * alive).sum(dims, keepdim=True) / count) * alive
    power = (x**2 * alive).sum(dims, keepdim=True) / count
    return x * (power + eps).rsqrt()


def _norm_arguments(name: str, args: Sequence[Any], kwargs: dict[str, Any], module: nn.Module | None) -> dict[str, Any]:
    if module is not None:
        eps = getattr(module, "eps", None)
        return {
            "groups": getattr(module, "num_groups", 1), "shape": getattr(module, "normalized_shape", ()),
            "weight": getattr(module, "weight", None), "bias": getattr(module, "bias", None),
            "eps": torch.finfo(args[0].dtype).eps if eps is None else eps,
        }  # fmt: skip
    names = ("shape", "weight", "eps") if name == "rms_norm" else ("shape", "weight", "bias", "eps")
    given = {"bias": None, "weight": None, "eps": 1e-5, **dict(zip(names, args[1:], strict=False))}
    given |= {{"normalized_shape": "shape", "num_groups": "shape"}.get(k, k): v for k, v in kwargs.items()}
    given["groups"] = given["shape"]
    if given["eps"] is None:
        given["eps"] = torch.finfo(args[0].dtype).eps
    return given

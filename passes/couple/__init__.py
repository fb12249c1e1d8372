"""Couple: run the graph on channel labels instead of numbers; what is united is coupled.

Every node is executed as it stands, under a :class:`torch.overrides.TorchFunctionMode` that answers each torch
function with its label rule. Modules and fused Python functions (a window attention, say) are run as well and
fall apart into torch functions; so one table of rules serves symbolic traces and exported ones. An operation without
a rule is a barrier: what enters it is locked and what leaves it carries no channels, with a diagnostic. Never a guess.

At the end the united labels are the connected components of a sparse graph.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from fxdistill.errors import InputError, InvariantError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.coupling import Constraint, Coupling, Lock, Structure, core, flat_layers, varying
from fxdistill.ir.graph import Traced, path_of, shape_of
from fxdistill.ir.operators import bare_name, is_a, operator_of
from fxdistill.ir.running import buffers_kept, example, seeded
from fxdistill.operators import Trait
from fxdistill.passes.couple.operations import empty_labels, end, only_typed, typed
from fxdistill.passes.couple.rules import apply_rule
from fxdistill.passes.couple.values import (
    Labelled,
    Ledger,
    Opaque,
    Split,
    labelled,
    mapped,
    mint_all,
    spread,
    tensors,
    to_meta,
)


@dataclass(frozen=True)
class Couple(Pass[Traced, Coupling]):
    """Find the channels that live and die together. See the module docstring."""

    def run(self, source: Traced) -> PassResult[Coupling]:
        """Label every value, then solve."""
        start = time.perf_counter()
        ledger = Ledger(source.module)
        kept = buffers_kept(source.module) if source.training else nullcontext()
        with torch.no_grad(), source.running(), kept:
            values = _Labeller(source, ledger).label()
            class_of = _components(ledger)
        _roles_of_computed(source, ledger, class_of)
        coupling = Coupling(
            graph=source.graph, values=values, parameters=ledger.parameters, roles=ledger.roles, class_of=class_of,
            locks=_locks(ledger, class_of), constraints=tuple(_constraints(ledger, class_of)),
            statistics=tuple(ledger.statistics), tied=tuple(ledger.tied), mixing=ledger.mixing,
            diagnostics=tuple(dict.fromkeys(ledger.diagnostics)), seconds=time.perf_counter() - start,
        )  # fmt: skip
        return PassResult(coupling, modified=True, diagnostics=coupling.diagnostics)

    def ensures(self, source: Traced, value: Coupling) -> None:
        """Every value is labelled in its shape, what enters and leaves the network is locked, rows are equally long.

        Raises:
            InvariantError: It is not so; names the node or the parameter.
        """
        for node in source.graph.nodes:
            path = path_of(node)
            if path not in value.values:
                raise InvariantError(f"'{path}' was not labelled", where=path)
            for layer in value.layers(path):
                if tuple(layer.shape) != shape_of(node):
                    raise InvariantError(f"the labels of '{path}' have the shape {tuple(layer.shape)}", where=path)
            if node.op in ("placeholder", "output"):
                _ensure_locked(value, path)
        for constraint in value.constraints:
            if len({len(row) for row in constraint.sets}) != 1:
                raise InvariantError("rows of different lengths are to keep equal counts", where=constraint.where)
        for name, dims in value.parameters.items():
            shape = attrgetter(name)(source.module).shape
            if any(layer.shape != shape for layer in dims.values()):
                raise InvariantError(f"the labels of the parameter '{name}' do not have its shape", where=name)


def _ensure_locked(coupling: Coupling, path: str) -> None:
    """Raise where a class that a value carries may be removed."""
    for layer in flat_layers(coupling.structure(path)):
        free = set(core(layer).flatten().tolist()) - {0} - set(coupling.locks)
        if free:
            raise InvariantError(f"'{path}' has channels that may be removed", where=path)


class LabelMode(TorchFunctionMode):
    """Answers torch functions with their label rules; what touches no label is computed."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One torch function."""
        args, kwargs = mapped((args, kwargs or {}), self.ledger.known)
        given = list(tensors((args, kwargs)))
        name = bare_name(func)
        if any(isinstance(t, Labelled) for t in given) and not only_typed(name, given):
            args, kwargs = mapped((args, kwargs), self.ledger.as_uniform)
            value = apply_rule(self, func, args, kwargs)
            _note_origins(value, tensors((args, kwargs)))
        else:
            value = func(*mapped(args, typed), **mapped(kwargs, typed))
        self._note_uniform(name, func, given, value, (args, kwargs))
        return value

    def _note_uniform(
        self, name: str, func: Callable[..., Any], given: Sequence[Tensor], value: Any, arguments: Any
    ) -> None:
        """Remember what holds one number everywhere; it gets channels where it meets some."""
        if not isinstance(value, Tensor) or isinstance(value, Labelled):
            return
        plain = [t for t in given if not isinstance(t, Labelled)]
        if is_a(name, Trait.UNIFORM):
            self.ledger.note_uniform(value, lambda: labelled(to_meta(value), mint_all(self.ledger, value)))
        elif plain and operator_of(name).labels in _CARRYING and all(map(self.ledger.is_uniform, plain)):
            self.ledger.note_uniform(value, lambda: self._followed(func, arguments))

    def _followed(self, func: Callable[..., Any], arguments: Any) -> Any:
        args, kwargs = mapped(arguments, self.ledger.as_uniform)
        return apply_rule(self, func, args, kwargs)


def _note_origins(value: Any, given: Iterable[Tensor]) -> None:
    """A value that is computed from parameters alone is a weight."""
    origins = [t.origins for t in given if isinstance(t, Labelled)]
    if all(origins):
        for part in tensors(value):
            if isinstance(part, Labelled) and not part.parameter:
                part.origins = frozenset[str]().union(*origins)


_CARRYING = frozenset(("movement", "pointwise", "elementwise"))
"""Rules under which one number everywhere stays one number everywhere."""


class _Labeller(fx.Interpreter):
    """Runs the graph under the label mode and keeps the layers of every node."""

    def __init__(self, source: Traced, ledger: Ledger) -> None:
        super().__init__(source.module, garbage_collect_values=False)
        self.source, self.ledger, self.mode = source, ledger, LabelMode(ledger)
        self.values: dict[str, Structure] = {}
        self.unchanged: dict[str, str] = {}  # nodes whose value is a parameter itself: its name
        self.uniform: dict[str, Tensor] = {}  # nodes whose value holds one number everywhere

    def label(self) -> dict[str, Structure]:
        """Label the whole graph."""
        self.run(self._input())
        for path, name in self.unchanged.items():
            # only now is it known which of a parameter's dimensions are channels
            self.values[path] = tuple(self.ledger.parameters.get(name, {}).values())
        for path, tensor in self.uniform.items():
            self.values[path] = self.ledger.uniform_layers(tensor)
        return self.values

    def _input(self) -> Labelled:
        shape = shape_of(self.source.input) or self.source.input_shape
        like = torch.empty(shape, dtype=example(self.source.module, shape).dtype, device="meta")
        dim = 1 if len(shape) != 3 else 2
        self.ledger.where = path_of(self.source.input)
        if len(shape) < 2 or shape[dim] == 1:
            return labelled(like, ())
        layer = spread(self.ledger.mint(shape[dim]), dim, shape)
        self.ledger.lock(layer, "is the network's input")
        return labelled(like, (layer,))

    def run_node(self, n: fx.Node) -> Any:
        """One node; what cannot be run on labels is a barrier."""
        self.ledger.where = path_of(n)
        before = len(self.ledger.diagnostics)
        try:
            with self.mode:
                value = super().run_node(n)
        except InputError:  # an operator that is wrong itself
            raise
        except Exception as cause:  # noqa: BLE001  # whatever fails on labels is opaque, and said so
            del self.ledger.diagnostics[before:]
            value = self._barrier(n, cause)
        if n.op == "output":
            end(self.ledger, value, "is the network's output")
        self.values[path_of(n)] = _structure(self.ledger, value)
        if isinstance(value, Tensor) and id(value) in self.ledger.names:
            self.unchanged[path_of(n)] = self.ledger.names[id(value)]
        elif isinstance(value, Tensor) and not isinstance(value, Labelled):
            self.uniform[path_of(n)] = value
        return value

    def _barrier(self, n: fx.Node, cause: Exception) -> Any:
        """Lock what enters; a run on numbers tells the structure of what leaves."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        end(self.ledger, (args, kwargs), "enters an operation that is not followed")
        reason = (
            str(cause)
            if isinstance(cause, Opaque)
            else f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
        )
        self.ledger.note(
            "opaque-node", f"channels are not followed through it: {reason}", "its inputs keep their channels"
        )
        return empty_labels(self._seen[path_of(n)])

    @cached_property
    def _seen(self) -> dict[str, Any]:
        """What every node makes of real numbers: the structure of it, and the numbers that are no tensors."""
        images = example(self.source.module, shape_of(self.source.input) or self.source.input_shape)
        seen = _Seen(self.source.module)
        with buffers_kept(self.source.module), seeded(images.device):
            seen.run(images)
        return seen.made


class _Seen(fx.Interpreter):
    """Runs the graph on numbers and keeps of every value how it is made up."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.made: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        self.made[path_of(n)] = to_meta(value)
        return value


def _structure(ledger: Ledger, value: Any) -> Structure:
    if isinstance(value, Labelled):
        return ledger.layers(value)
    if isinstance(value, Tensor):
        return ()
    if isinstance(value, tuple | list):
        return [_structure(ledger, item) for item in value]
    return [_structure(ledger, item) for item in value.values()] if isinstance(value, dict) else None


def _components(ledger: Ledger) -> Tensor:
    """Class id of every label: connected components, numbered in the order of their first labels."""
    empty = np.zeros(0, np.int64)
    left = np.concatenate([empty, *(one.numpy() for one, _, _ in ledger.unions)])
    right = np.concatenate([empty, *(other.numpy() for _, other, _ in ledger.unions)])
    both = (left != 0) & (right != 0)
    places = np.repeat(np.arange(len(ledger.unions)), [len(one) for one, _, _ in ledger.unions])
    for alone in ((left != 0) & ~both, (right != 0) & ~both):
        for place in np.unique(places[alone]).tolist():
            labels = torch.from_numpy((left + right)[alone & (places == place)])
            ledger.locks.append((labels, "meets values that carry no channels", ledger.unions[place][2]))
    shape = (ledger.count, ledger.count)
    ones = np.ones(int(both.sum()), np.int8)
    graph = coo_array((ones, (left[both], right[both])), shape=shape)
    _, found = connected_components(graph, directed=False)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    return torch.from_numpy(rank[inverse].astype(np.int64))


def _roles_of_computed(source: Traced, ledger: Ledger, class_of: Tensor) -> None:
    """What the weights do that others are computed from: what those do, along the dimension of the same classes.

    Where inputs and outputs are coupled both have the same ones: it is the same dimension then.
    """
    weights = {name for name, p in source.module.named_parameters() if sum(size > 1 for size in p.shape) > 1}
    for origins, labels, own, role in ledger.computed:
        wanted = class_of[labels].unique()
        for name in sorted(origins & weights):
            layers = ledger.parameters.get(name, {})
            alike = [dim for dim, layer in layers.items() if torch.equal(class_of[core(layer)].unique(), wanted)]
            for dim in [own] if own in alike else alike:
                ledger.acts_as((name, dim), role)


def _locks(ledger: Ledger, class_of: Tensor) -> dict[int, Lock]:
    """The first reason found for each locked class."""
    result: dict[int, Lock] = {}
    for labels, reason, where in ledger.locks:
        for class_id in np.unique(class_of[labels].numpy()).tolist():
            if class_id:
                result.setdefault(class_id, Lock(reason, where))
    return result


def _constraints(ledger: Ledger, class_of: Tensor) -> Iterator[Constraint]:
    """Splits along whose rows classes still differ, each once."""
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for split in ledger.splits:
        rows = _rows(split, class_of)
        if rows is not None and rows not in seen:
            seen.add(rows)
            yield Constraint(split.kind, split.where, rows)


def _rows(split: Split, class_of: Tensor) -> tuple[tuple[int, ...], ...] | None:
    classes = class_of[split.labels]
    dims = varying(classes)
    if not dims or (len(dims) == 1 and not split.fixed):
        return None
    inner = classes.dim() - 1 if split.fixed else dims[-1]
    if split.fixed and len(dims) == 1 and dims[0] == inner:
        return None
    table = core(classes).expand(classes.shape).movedim(inner, -1)
    return tuple(tuple(row) for row in table.reshape(-1, table.shape[-1]).tolist())

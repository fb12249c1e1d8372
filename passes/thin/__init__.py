"""Thin: decide which coupled classes a whole model loses. No weight is touched.

The classes that the same weights produce form a **block**; inside a block they compete by importance, and the block
keeps ``keep`` of them, rounded so that the weights' widths are multiples of ``round_to``. Classes that must keep equal
counts (groups, heads, views that split channels) and wanted widths make this an integer program
(:mod:`fxdistill.passes.thin.selection`); everything else is a sort.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from fxdistill.criteria import CRITERIA, importance
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, InvariantError, PairingError, PlanError
from fxdistill.ir.channels import Channels, Examples
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.coupling import Coupling, core
from fxdistill.ir.graph import Traced, find, path_of, within
from fxdistill.passes.thin.selection import Block, Width, select

KeptIndices = dict[str, list[int]]
"""For each weight that loses outputs the indices that it keeps, along its output dimension."""


@dataclass(frozen=True)
class ThinSource:
    """A traced model, its coupled channels, and what criteria read gradients on.

    Attributes:
        traced: The model.
        coupling: Its coupled channels.
        batch: Images and targets, for criteria that read gradients.
        loss: What the targets say about a prediction, for the same.
    """

    traced: Traced
    coupling: Coupling
    batch: Examples | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy


@dataclass(frozen=True)
class Removal:
    """The decision.

    Attributes:
        removed: The classes to remove.
        kept: The same as indices, for the weights that get smaller; :func:`removed_of` replays them.
        widths: For each producing module its width before and after.
    """

    removed: frozenset[int]
    kept: KeptIndices
    widths: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Thin(Pass[ThinSource, Removal]):
    """Choose the classes to remove.

    Attributes:
        keep: Share of the channels to keep, in (0, 1); None removes only what ``widths`` asks for.
        widths: Wanted widths of taps: (node path, channels).
        criterion: The name of one of :mod:`fxdistill.criteria`.
        round_to: The widths of the producers become multiples of this.
        protect: Module or node paths whose channels stay.
        only: Module paths; channels that are produced anywhere else stay. Empty: everywhere.
        seed: Seed of what is random in the criterion.
    """

    keep: float | None = None
    widths: tuple[tuple[str, int], ...] = ()
    criterion: str = "l1"
    round_to: int = 1
    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seed: int = 0

    def requires(self, source: ThinSource) -> None:
        """A share between 0 and 1, a positive multiple, a criterion and paths that exist."""
        CRITERIA.get(self.criterion, where="criterion", error=PlanError)
        if self.keep is not None and not 0 < self.keep < 1:
            hint = "give a number above 0 and below 1"
            raise InputError(f"the share to keep is {self.keep}", where="--keep", hint=hint)
        if self.keep is None and not self.widths:
            raise InputError("nothing says how much to keep", where="keep", hint="give --keep 0.5, or widths")
        if self.round_to < 1:
            raise InputError(f"widths cannot be multiples of {self.round_to}", where="round_to", hint="give 1 or more")
        for path in (*self.protect, *self.only):
            find(source.traced, path)

    def run(self, source: ThinSource) -> PassResult[Removal]:
        """Decide.

        Raises:
            PairingError: A width cannot be had; names the chain of couplings.
            InputError: The request changes nothing.
        """
        coupling = source.coupling
        stays = _Reasons(source, self.protect, self.only)
        wanted = [_wanted(source, path, width, stays) for path, width in self.widths]
        channels = Channels(source.traced, coupling, batch=source.batch, seed=self.seed, loss=source.loss)
        if not stays.producers:
            raise _nothing(stays)
        scores = importance(self.criterion, channels)
        named = {class_id for width in wanted for class_id in width.classes}
        blocks = [self._block(key, members, named) for key, members in _blocks(stays).items()]
        selection = select(coupling, blocks, wanted, scores, frozen=stays.frozen)
        removed = selection.removed
        if not removed:
            raise _nothing(stays)
        removal = Removal(removed, kept_indices(coupling, removed), dict(_widths(stays, removed)))
        # without a share, nobody asked for the channels of the others
        held = () if self.keep is None else tuple(_not_pruned(stays, removed))
        alike = tuple(_unscored(stays, removed, scores, self.criterion))
        return PassResult(removal, modified=True, diagnostics=(*selection.diagnostics, *held, *alike))

    def ensures(self, source: ThinSource, value: Removal) -> None:
        """What must stay stays, rows of constraints keep equal counts, wanted widths are met, the indices replay.

        Raises:
            InvariantError: It is not so; names the node or the parameter.
        """
        if any(i in source.coupling.locks for i in value.removed):
            raise InvariantError("a locked channel was removed")
        stays = _Reasons(source, self.protect, self.only)
        for class_id in sorted(value.removed & stays.frozen):
            raise InvariantError(f"a channel was removed that {stays.reason(class_id)}", where=f"class {class_id}")
        if value.widths != dict(_widths(stays, value.removed)):
            raise InvariantError("the widths are not those that the removal leaves")
        for constraint in source.coupling.constraints:
            counts = {sum(i not in value.removed for i in row) for row in constraint.sets}
            if len(counts) > 1 or 0 in counts:
                raise InvariantError(f"unequal counts {sorted(counts)}", where=constraint.where)
        for path, width in self.widths:
            node = path_of(find(source.traced, path))
            if sum(i not in value.removed for i in source.coupling.classes(node)) != width:
                raise InvariantError(f"the width {width} of '{path}' was not met", where=path)
        if value.kept != kept_indices(source.coupling, value.removed):
            raise InvariantError("the kept indices do not say what is removed")

    def _block(self, key: "_Key", members: list[int], named: set[int]) -> Block:
        times = max(count for _, count in key)
        step = self.round_to // math.gcd(self.round_to, times)
        if self.keep is None:
            target = None if named & set(members) else len(members)
        else:
            target = min(len(members), max(step, step * round(self.keep * len(members) / step)))
        return Block(tuple(members), step, target)


_LISTED = 5
"""As many layers are listed where a request changes nothing."""
_Key = tuple[tuple[str, int], ...]


@dataclass
class _Reasons:
    """Who produces which classes, and which classes stay for what reason."""

    source: ThinSource
    protect: tuple[str, ...]
    only: tuple[str, ...]
    producers: dict[str, Tensor] = field(default_factory=dict)
    of_class: dict[int, dict[str, int]] = field(default_factory=dict)
    frozen: set[int] = field(default_factory=set)
    _kept_for: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coupling = self.source.coupling
        self.producers.update(coupling.producers())
        for name, classes in self.producers.items():
            for class_id, count in Counter(classes.tolist()).items():
                self.of_class.setdefault(class_id, {})[name] = count
        self._protect()
        self._confine()
        self.frozen = {i for i in self.of_class if i == 0 or i in coupling.locks or i in self._kept_for}

    def reason(self, class_id: int) -> str:
        """Why a frozen class stays."""
        return self.source.coupling.locked(class_id) or self._kept_for.get(class_id, "carries no channels")

    def _protect(self) -> None:
        for path in self.protect:
            node = path_of(find(self.source.traced, path))
            inside = {i for name, classes in self.producers.items() if within(name, path) for i in classes.tolist()}
            for class_id in inside | set(self.source.coupling.classes(node)):
                self._kept_for.setdefault(class_id, f"is protected by '{path}'")

    def _confine(self) -> None:
        for class_id, names in self.of_class.items():
            outside = [n for n in names if self.only and not any(within(n, path) for path in self.only)]
            if outside:
                owner = outside[0].rpartition(".")[0]
                self._kept_for.setdefault(class_id, f"is produced by '{owner}', outside of what is to be pruned")


def _blocks(stays: _Reasons) -> dict[_Key, list[int]]:
    """Free classes by who produces them, and how often."""
    blocks: dict[_Key, list[int]] = {}
    for class_id in sorted(stays.of_class):
        if class_id not in stays.frozen:
            blocks.setdefault(tuple(sorted(stays.of_class[class_id].items())), []).append(class_id)
    return blocks


def _wanted(source: ThinSource, path: str, width: int, stays: _Reasons) -> Width:
    """A wanted width of a tap, refused at once where too much of it must stay."""
    node = path_of(find(source.traced, path))
    classes = source.coupling.classes(node)
    where = f"tap {path}"
    if not classes:
        raise PairingError(f"the channels of '{path}' are not known", where=where, hint="take another node")
    if not 1 <= width <= len(classes):
        raise PairingError(f"'{path}' has {len(classes)} channels, so it cannot keep {width}", where=where)
    held = [i for i in classes if i in stays.frozen or i not in stays.of_class]
    if len(held) > width:
        chain = source.coupling.chain(node, held[0])
        raise PairingError(
            f"'{path}' cannot have {width} channels: {len(held)} of its {len(classes)} must stay, because the channel "
            f"{stays.reason(held[0])}" + (f"; coupled along {' → '.join(chain)}" if chain else ""),
            where=where, hint="pair another node, protect less, or use --align slice",
        )  # fmt: skip
    return Width(path, classes, width)


def kept_indices(coupling: Coupling, removed: Iterable[int]) -> KeptIndices:
    """The output indices that each weight keeps, for the weights that lose some."""
    gone = torch.zeros(coupling.class_count + 1, dtype=torch.bool)
    gone[sorted(removed)] = True
    kept = {}
    for name, classes in coupling.producers():
        alive = ~gone[classes]
        if not bool(alive.all()):
            kept[name] = [int(i) for i in alive.nonzero().flatten().tolist()]
    return kept


def removed_of(coupling: Coupling, kept: KeptIndices) -> frozenset[int]:
    """The classes that are removed where weights keep these output indices: a decision replayed.

    Raises:
        InputError: The indices are not of this architecture.
    """
    removed: set[int] = set()
    producers = dict(coupling.producers())
    for name, indices in kept.items():
        if name not in producers:
            raise InputError(
                f"the model has no producing weight '{name}'", where=name, hint="give the model it was made for"
            )
        classes = producers[name]
        alive = torch.zeros(len(classes), dtype=torch.bool)
        if not all(0 <= i < len(classes) for i in indices):
            raise InputError(f"an index is out of range for '{name}', which has {len(classes)} outputs", where=name)
        alive[indices] = True
        removed |= set(classes[~alive].tolist())
    return frozenset(removed)


def _layer(name: str) -> str:
    """The module whose parameter it is, as the user knows it: parametrizations lie inside of it."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0] or name


def _widths(stays: _Reasons, removed: frozenset[int]) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, classes in sorted(stays.producers.items()):
        before = classes.tolist()
        yield _layer(name), (len(before), sum(i not in removed for i in before))


def _nothing(stays: _Reasons) -> InputError:
    """The error for a request that changes nothing."""
    listed = [f"'{remark.where}' {remark.why}" for remark in _not_pruned(stays, frozenset())]
    more = f"; and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    found = "; ".join(listed[:_LISTED]) + more if listed else "no weight was found that makes channels"
    return InputError(
        "the request changes nothing: no channel would be removed", where="keep",
        hint=f"what stays, and why: {found}. Lower --keep or --round-to, or protect less",
    )  # fmt: skip


def _unscored(stays: _Reasons, removed: frozenset[int], scores: Tensor, criterion: str) -> Iterator[Diagnostic]:
    """One remark for each producer that loses channels of which the criterion says nothing."""
    for name, classes in sorted(stays.producers.items()):
        if not removed.isdisjoint(classes.tolist()) and not bool(scores[classes].any()):
            yield Diagnostic(
                code="no-importance", severity="warning", where=_layer(name),
                why=f"the criterion '{criterion}' says nothing about its outputs: all count alike, the first are kept",
            )  # fmt: skip


def _not_pruned(stays: _Reasons, removed: frozenset[int]) -> Iterator[Diagnostic]:
    """One remark for each producer that keeps its width."""
    for name, classes in sorted(stays.producers.items()):
        ids = classes.tolist()
        if any(i in removed for i in ids):
            continue
        held = [i for i in ids if i in stays.frozen]
        why = (
            f"its channel {stays.reason(held[0])}"
            if held
            else "its width is already what was asked for, or rounds to it"
        )
        yield Diagnostic(
            code="not-pruned", severity="note", where=_layer(name),
            why=f"keeps its {len(ids)} outputs: {why}",
        )  # fmt: skip
    yield from _not_followed(stays)


def _not_followed(stays: _Reasons) -> Iterator[Diagnostic]:
    """One remark for each layer with weights that enter what is not followed, so that it is nobody's producer."""
    coupling, module = stays.source.coupling, stays.source.traced.module
    called = {str(node.target): path_of(node) for node in coupling.graph.nodes if node.op == "call_module"}
    listed = {_layer(name) for name in stays.producers}
    for name, parameter in module.named_parameters():
        layer = _layer(name)
        if layer in listed or sum(size > 1 for size in parameter.shape) < 2:
            continue
        classes = {i for labels in coupling.parameter_labels(name).values() for i in core(labels).flatten().tolist()}
        locks = [coupling.locks[i] for i in sorted(classes) if i in coupling.locks]
        entered = next((str(lock) for lock in locks if lock.reason.startswith("enters")), None)
        owner = next((path for target, path in called.items() if within(name, target)), None)
        if not classes and owner is not None:
            entered = f"lies in an operation that is not followed at '{owner}'"
        if entered is not None and len(locks) == len(classes):
            listed.add(layer)
            yield Diagnostic(
                code="not-pruned", severity="note", where=layer, why=f"keeps its weights: '{name}' {entered}"
            )

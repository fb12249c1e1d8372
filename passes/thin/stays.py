"""Which classes a model may lose, who produces them, and why others stay."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError
from fxdistill.ir.coupling import Coupling, core
from fxdistill.ir.graph import Traced, find, path_of, within
from fxdistill.passes.thin.blocks import Importance

_LISTED = 5
"""As many layers are listed where a request changes nothing."""
Key = tuple[tuple[str, int], ...]


@dataclass
class Stays:
    """Who produces which classes, and which classes stay for what reason."""

    traced: Traced
    coupling: Coupling
    protect: tuple[str, ...]
    only: tuple[str, ...]
    producers: dict[str, Tensor] = field(default_factory=dict)
    frozen: set[int] = field(default_factory=set)
    _kept_for: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producers.update(self.coupling.producers())
        self._protect()
        if self.only:
            self._confine()
        self.frozen = {i for i in self.of_class if i == 0 or i in self.coupling.locks or i in self._kept_for}

    @property
    def of_class(self) -> dict[int, dict[str, int]]:
        """For each class its producers, and how often these have it."""
        return self.coupling.makers

    @cached_property
    def blocks(self) -> dict[Key, list[int]]:
        """Free classes by who produces them, and how often."""
        blocks: dict[Key, list[int]] = {}
        for class_id in sorted(self.of_class):
            if class_id not in self.frozen:
                blocks.setdefault(tuple(sorted(self.of_class[class_id].items())), []).append(class_id)
        return blocks

    def reason(self, class_id: int) -> str:
        """Why a frozen class stays."""
        return self.coupling.locked(class_id) or self._kept_for.get(class_id, "carries no channels")

    def _protect(self) -> None:
        for path in self.protect:
            node = path_of(find(self.traced, path))
            inside = {i for name, classes in self.producers.items() if within(name, path) for i in classes.tolist()}
            for class_id in inside | set(self.coupling.classes(node)):
                self._kept_for.setdefault(class_id, f"is protected by '{path}'")

    def _confine(self) -> None:
        for class_id, names in self.of_class.items():
            outside = [n for n in names if not any(within(n, path) for path in self.only)]
            if outside:
                owner = outside[0].rpartition(".")[0]
                self._kept_for.setdefault(class_id, f"is produced by '{owner}', outside of what is to be pruned")


def layer_of(name: str) -> str:
    """The module whose parameter it is, as the user knows it: parametrizations lie inside of it."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0] or name


def widths_of(stays: Stays, removed: frozenset[int]) -> Iterator[tuple[str, tuple[int, int]]]:
    """For each producing module its width before and after."""
    for name, classes in sorted(stays.producers.items()):
        before = classes.tolist()
        yield layer_of(name), (len(before), sum(i not in removed for i in before))


def nothing(stays: Stays) -> InputError:
    """The error for a request that changes nothing."""
    listed = [f"'{remark.where}' {remark.why}" for remark in not_pruned(stays, frozenset())]
    more = f"; and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    found = "; ".join(listed[:_LISTED]) + more if listed else "no weight was found that makes channels"
    return InputError(
        "the request changes nothing: no channel would be removed", where="keep",
        hint=f"what stays, and why: {found}. Lower --keep or --round-to, or protect less",
    )  # fmt: skip


def unscored(
    stays: Stays, removed: frozenset[int], scores: Importance, criteria: tuple[str, str], *, worthless: bool
) -> Iterator[Diagnostic]:
    """One remark for each producer that loses channels of which a criterion says nothing.

    Args:
        stays: Who produces which classes.
        removed: The classes that go.
        scores: The importance of every class.
        criteria: By which criterion layers compete, and by which the channels of one.
        worthless: Whether layers of which the first one says nothing go first.
    """
    by_layer, by_channel = criteria
    for name, classes in sorted(stays.producers.items()):
        if removed.isdisjoint(classes.tolist()):
            continue
        alike = not bool(scores.within[classes].any())
        first = worthless and not bool(scores.across[classes].any())
        if alike or first:
            says = "all count alike, the first are kept" if alike else "as nothing is lost with them, they go first"
            yield Diagnostic(
                code="no-importance", severity="warning", where=layer_of(name),
                why=f"the criterion '{by_channel if alike else by_layer}' says nothing about its outputs: {says}",
                hint=f"if they matter, give them a share: --scope {layer_of(name)}=0.5" if first else "",
            )  # fmt: skip


def not_pruned(stays: Stays, removed: frozenset[int]) -> Iterator[Diagnostic]:
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
            code="not-pruned", severity="note", where=layer_of(name),
            why=f"keeps its {len(ids)} outputs: {why}",
        )  # fmt: skip
    yield from _not_followed(stays)


def _not_followed(stays: Stays) -> Iterator[Diagnostic]:
    """One remark for each layer with weights that enter what is not followed, so that it is nobody's producer."""
    coupling, module = stays.coupling, stays.traced.module
    called = {str(node.target): path_of(node) for node in coupling.graph.nodes if node.op == "call_module"}
    listed = {layer_of(name) for name in stays.producers}
    for name, parameter in module.named_parameters():
        layer = layer_of(name)
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

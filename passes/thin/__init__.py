"""Thin: decide which coupled classes a whole model loses. No weight is touched.

The classes that the same weights produce form a **block**; inside a block they compete by importance, blocks compete
with each other by that or by another one (:class:`Importance`). A block keeps a share of its classes, rounded so that
the weights' widths are multiples of ``round_to``: ``keep``, or what a budget leaves
(:mod:`fxdistill.passes.thin.search`). Classes that must keep equal counts (groups, heads, views that split channels)
and wanted widths make this an integer program (:mod:`fxdistill.passes.thin.program`); everything else is a sort.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from torch import Tensor
from torch.nn import functional

from fxdistill.criteria import CRITERIA, importance, measures, other_than
from fxdistill.errors import BudgetError, CriterionError, InputError, InvariantError, PairingError, PlanError
from fxdistill.ir.budget import Limit, Size
from fxdistill.ir.channels import Channels, Examples
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.cost import Cost, cost_of
from fxdistill.ir.coupling import Coupling, Said
from fxdistill.ir.graph import Traced, find, path_of, within
from fxdistill.ir.layers import Timing
from fxdistill.passes.thin.blocks import Block, Importance, Width
from fxdistill.passes.thin.kept import KeptIndices, kept_indices
from fxdistill.passes.thin.search import Ranking, Search, costs_of, pools
from fxdistill.passes.thin.selection import Selection, select
from fxdistill.passes.thin.stays import Key, Stays, layer_of, not_pruned, nothing, unscored, widths_of


@dataclass(frozen=True)
class ThinSource:
    """A traced model, its coupled channels, and what criteria read gradients on.

    Attributes:
        traced: The model.
        coupling: Its coupled channels.
        batch: Images and targets, for criteria that read gradients.
        loss: What the targets say about a prediction, for the same.
        known: What criteria have said of the batch before; see :class:`Channels`.
        unread: Parameters that the model has and does not read; they stay, and count.
        timing: How long layers take, for budgets of time.
    """

    traced: Traced
    coupling: Coupling
    batch: Examples | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    known: Said = field(default_factory=dict)
    unread: int = 0
    timing: Timing | None = None


@dataclass(frozen=True)
class Removal:
    """The decision.

    Attributes:
        removed: The classes to remove.
        kept: The same as indices, for the weights that get smaller.
        widths: For each producing module its width before and after.
        size: With a budget, what is left of the model as it was counted.
    """

    removed: frozenset[int]
    kept: KeptIndices
    widths: dict[str, tuple[int, int]]
    size: Size | None = None


@dataclass(frozen=True)
class Thin(Pass[ThinSource, Removal]):
    """Choose the classes to remove.

    Attributes:
        keep: Share of the channels to keep, in (0, 1); None removes only what the others ask for.
        limits: What the model may cost instead.
        ranking: What competes with what (:mod:`fxdistill.passes.thin.search`); None for ``uniform`` with ``keep`` and
            ``global`` with a budget.
        floor: The least share of its channels that a layer keeps; one channel stays in any case. None for 0 with
            ``keep`` and 0.1 with a budget.
        scopes: Parts with a share of their own: (module path, share to keep in (0, 1]). What several of them
            name belongs to the innermost one, and what is coupled with channels of a part to that part.
        widths: Wanted widths of taps: (node path, channels).
        criterion: The name of one of :mod:`fxdistill.criteria`; or ``NAME+NAME``, where layers compete for widths by
            the first, and the channels of a layer by the second.
        round_to: The widths of the producers become multiples of this; None for the first of 8, 4, 2 and 1 that is no
            more than an eighth of the layers' mean width and by which a budget is met.
        protect: Module or node paths whose channels stay.
        only: Module paths; channels that are produced anywhere else stay. Empty: everywhere.
        seed: Seed of what is random in the criterion.
        before: The widths of layers before earlier steps, by module path: floors and shares of parts are of these.
        roughly: Whether the widths nearest below a budget will do where none come within 2 % of it, with a remark.
    """

    keep: float | None = None
    limits: tuple[Limit, ...] = ()
    ranking: Ranking | None = None
    floor: float | None = None
    scopes: tuple[tuple[str, float], ...] = ()
    widths: tuple[tuple[str, int], ...] = ()
    criterion: str = "l1"
    round_to: int | None = 1
    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seed: int = 0
    before: tuple[tuple[str, int], ...] = ()
    roughly: bool = False

    def requires(self, source: ThinSource) -> None:
        """Something that says how much, numbers that make sense, a criterion and paths that exist."""
        for name in measures(self.criterion):
            CRITERIA.get(name, where="criterion", error=PlanError)
        if self.keep is not None and not 0 < self.keep < 1:
            hint = "give a number above 0 and below 1"
            raise InputError(f"the share to keep is {self.keep}", where="--keep", hint=hint)
        if self.keep is None and not (self.widths or self.limits or self.scopes):
            hint = "give --keep 0.5, --macs 0.5, --params 0.5 or --latency 0.5"
            raise InputError("nothing says how much to keep", where="keep", hint=hint)
        if self.limits and (self.keep is not None or self.widths):
            other = "--keep" if self.keep is not None else "widths"
            raise InputError(
                f"both {self.limits[0].option} and {other} say how much to keep", where=other, hint="give one of them"
            )
        self._check_ranking()
        if self.round_to is not None and self.round_to < 1:
            raise InputError(f"widths cannot be multiples of {self.round_to}", where="round_to", hint="give 1 or more")
        for path in (*self.protect, *self.only, *(path for path, _ in self.scopes)):
            find(source.traced, path)
        weights = [name for name, _ in source.traced.module.named_parameters(remove_duplicate=False)]
        for option, paths in (("--only", self.only), ("--scope", [path for path, _ in self.scopes])):
            for path in (path for path in paths if not any(within(name, path) for name in weights)):
                raise InputError(
                    f"'{path}' has no weights, so that it makes no channels", where=option,
                    hint="name a module that has some; --protect keeps the channels of any node",
                )  # fmt: skip

    def _check_ranking(self) -> None:
        for limit in self.limits:
            if not 0 < limit.amount < math.inf or (limit.amount > 1 and limit.amount != int(limit.amount)):
                raise InputError(
                    f"{limit.amount} is no budget", where=limit.option,
                    hint="give a share of the model's own above 0 and below 1, or a whole number",
                )  # fmt: skip
        if self.ranking is not None and self.ranking not in get_args(Ranking):
            hint = f"give {', '.join(get_args(Ranking))}"
            raise InputError(f"there is no ranking named '{self.ranking}'", where="--ranking", hint=hint)
        if self.floor is not None and not 0 <= self.floor < 1:
            raise InputError(f"{self.floor} is no share", where="--floor", hint="give a number from 0 and below 1")
        for path, share in self.scopes:
            if not 0 < share <= 1:
                hint = f"write it as --scope {path}=0.3; 1 keeps all"
                raise InputError(f"the share of '{path}' to keep is {share}", where="--scope", hint=hint)
        if self.keep is None and not self.limits and (self.ranking is not None or self.floor is not None):
            option = "--ranking" if self.ranking is not None else "--floor"
            hint = "give --keep or a budget as well"
            raise InputError(f"{option} is about what competes for a share of the whole", where=option, hint=hint)

    def run(self, source: ThinSource) -> PassResult[Removal]:
        """Decide.

        Raises:
            PairingError: A width cannot be had; names the chain of couplings.
            CriterionError: The criterion says nothing of what may be removed.
            InputError: The request changes nothing.
        """
        coupling = source.coupling
        stays = Stays(source.traced, source.coupling, self.protect, self.only)
        wanted = [_wanted(source, path, width, stays) for path, width in self.widths]
        channels = Channels(
            source.traced, coupling, batch=source.batch, seed=self.seed, loss=source.loss, known=source.known
        )  # fmt: skip
        if not stays.blocks:
            raise nothing(stays)
        scores = self._importance(channels, stays)
        selection, size = self._chosen(source, wanted, scores, stays)
        removed = selection.removed
        if not removed:
            raise nothing(stays)
        removal = Removal(removed, kept_indices(coupling, removed), dict(widths_of(stays, removed)), size)
        # without a share, nobody asked for the channels of the others
        held = () if self.keep is None and not self.limits else tuple(not_pruned(stays, removed))
        names = measures(self.criterion)
        worthless = bool(self.limits) and CRITERIA.get(names[0]).of_loss and self.ranking != "uniform"
        alike = tuple(unscored(stays, removed, scores, names, worthless=worthless))
        return PassResult(removal, modified=True, diagnostics=(*selection.diagnostics, *held, *alike))

    def _importance(self, channels: Channels, stays: Stays) -> Importance:
        """What layers compete by, and what the channels of one layer do: the former where that says nothing of it."""
        names, blocks = measures(self.criterion), list(stays.blocks.values())
        across, within = (importance(name, channels) for name in names)
        for name, scores in zip(names, (across, within), strict=True):
            if not bool(scores[[i for block in blocks for i in block]].any()):
                raise CriterionError(
                    f"the criterion '{name}' says nothing about any channel that may be removed",
                    where="criterion", hint=other_than(name),
                )  # fmt: skip
        for block in blocks:
            if not bool(within[block].any()):
                within[block] = across[block]
        return Importance(across, within)

    def ensures(self, source: ThinSource, value: Removal) -> None:
        """What must stay stays, rows of constraints keep equal counts, wanted widths are met, the indices replay.

        Raises:
            InvariantError: It is not so; names the node or the parameter.
        """
        if any(i in source.coupling.locks for i in value.removed):
            raise InvariantError("a locked channel was removed")
        stays = Stays(source.traced, source.coupling, self.protect, self.only)
        for class_id in sorted(value.removed & stays.frozen):
            raise InvariantError(f"a channel was removed that {stays.reason(class_id)}", where=f"class {class_id}")
        if value.widths != dict(widths_of(stays, value.removed)):
            raise InvariantError("the widths are not those that the removal leaves")
        for constraint in source.coupling.constraints:
            counts = {sum(i not in value.removed for i in row) for row in constraint.sets}
            if len(counts) > 1 or 0 in counts:
                raise InvariantError(f"unequal counts {sorted(counts)}", where=constraint.where)
        for path, width in self.widths:
            node = path_of(find(source.traced, path))
            if sum(i not in value.removed for i in source.coupling.classes(node)) != width:
                raise InvariantError(f"the width {width} of '{path}' was not met", where=path)
        if self.limits:
            self._check_size(source, value, stays)
        if value.kept != kept_indices(source.coupling, value.removed):
            raise InvariantError("the kept indices do not say what is removed")

    def _check_size(self, source: ThinSource, value: Removal, stays: Stays) -> None:
        cost = self._cost(source, [i for block in stays.blocks.values() for i in block])
        size, own = cost.spent_without(value.removed), cost.spent_without(())
        if value.size != size[:2] or any(getattr(size, one.what) > one.most(own) for one in self.limits):
            raise InvariantError(f"the budget is not met: {size} of {own}")

    def _cost(self, source: ThinSource, free: Sequence[int]) -> Cost:
        return cost_of(source.traced, source.coupling, free, unread=source.unread, timing=source.timing)

    def _blocks(self, stays: Stays, named: set[int], multiple: int) -> list[Block]:
        """The blocks that may lose classes; with a target where a part has a share, or nobody asks for them."""
        found, unused, before = [], dict(self.scopes), dict(self.before)
        scopes = sorted(self.scopes, key=lambda one: (-one[0].count("."), -one[1]))  # the innermost first
        for key, members in stays.blocks.items():
            grown = max(before.get(layer_of(name), 0) / len(stays.producers[name]) for name, _ in key)
            step = _step(key, members, multiple, stays.coupling)
            block = Block(tuple(members), step, None, round(max(1.0, grown) * len(members)))
            reached = [path for path, _ in scopes if any(within(name, path) for name, _ in key)]
            for path in reached:
                unused.pop(path, None)
            share = dict(scopes)[reached[0]] if reached else None
            if share == 1:  # all of it stays, as if it were protected
                continue
            if share is not None:
                block = replace(block, target=block.nearest(block.share(share)))
            elif self.keep is None and not self.limits and not named.intersection(members):
                block = replace(block, step=1, target=len(members))
            found.append(block)
        if idle := next((path for path, share in unused.items() if share < 1), None):
            hint = "name a module that makes channels which can be removed"
            raise InputError(f"nothing that can be removed is made by '{idle}'", where="--scope", hint=hint)
        return found

    def _chosen(
        self, source: ThinSource, wanted: Sequence[Width], scores: Importance, stays: Stays
    ) -> tuple[Selection, Size | None]:
        """What goes, by the largest multiple of widths that meets the budget."""
        named = {class_id for width in wanted for class_id in width.classes}
        multiples = [self.round_to] if self.round_to else [1]
        if not self.round_to and self.limits:
            mean = statistics.fmean(map(len, stays.blocks.values()))
            multiples = [m for m in _MULTIPLES if m <= max(1.0, mean * _MOVED)]
        while True:
            blocks = self._blocks(stays, named, multiples.pop(0))
            try:
                return self._selected(source, blocks, wanted, scores, stays, roughly=self.roughly and not multiples)
            except BudgetError:
                if not multiples:
                    raise

    def _selected(
        self, source: ThinSource, blocks: Sequence[Block], wanted: Sequence[Width], scores: Importance, stays: Stays, *,
        roughly: bool,
    ) -> tuple[Selection, Size | None]:  # fmt: skip
        if self.keep is None and not self.limits:
            return select(source.coupling, blocks, wanted, scores.within, frozen=stays.frozen), None
        ranking = self.ranking or ("global" if self.limits else "uniform")
        floor = (_FLOOR if self.limits else 0.0) if self.floor is None else self.floor
        cost = self._cost(source, [class_id for block in blocks for class_id in block.classes]) if self.limits else None
        across, _ = measures(self.criterion)
        search = Search(
            source.coupling, blocks, pools(blocks, ranking, source.coupling), scores, frozen=stays.frozen, floor=floor,
            costs=costs_of(blocks, self.limits, cost) if cost and CRITERIA.get(across).of_loss else None,
        )  # fmt: skip
        if cost is not None:
            selection, spent = search.meet(self.limits, cost, roughly=roughly)
            return selection, Size(*spent[:2])
        return search.selected(search.targets(self.keep or 0.0), wanted), None


_MULTIPLES = (8, 4, 2, 1)
"""Kernels are made for widths that are multiples of 8."""
_MOVED = 1 / 8
"""The largest multiple as a share of a layer's mean width: rounding moves that by a sixteenth at most."""
_FLOOR = 0.1
"""The least share of its channels that a layer keeps under a budget."""


def _step(key: Key, members: Sequence[int], multiple: int, coupling: Coupling) -> int:
    """What the number of classes of a block is a multiple of: of the wanted one, and of how many equal rows it has."""
    steps = (multiple // math.gcd(multiple, count) for _, count in key)
    rows = math.lcm(*(len(rule.sets) for rule in coupling.constraints if rule.divided == frozenset(members)))
    return math.lcm(*steps, rows)


def _wanted(source: ThinSource, path: str, width: int, stays: Stays) -> Width:
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

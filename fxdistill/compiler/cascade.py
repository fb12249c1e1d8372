"""The cascade's part of the compiler: levels of one network, what they keep, and the student that is cut out of one.

    teacher ─ trace ─ couple ─ mask ─┬─ level-(N-1) … level-0   the same tensors, but for those of their own
                                     └─ student                 cut out of level-0 when that is trained, with proof

What the plan says is made the same way whenever it is made: when it is planned, when it is run, when a run is resumed.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, fx, nn

from fxdistill.compiler import level_taps
from fxdistill.compiler.shrink_model import barrier_remarks, next_barrier, with_barriers
from fxdistill.criteria import CRITERIA, importance
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, PassError, PlanError
from fxdistill.ir.channels import Channels
from fxdistill.ir.contract import PassManager
from fxdistill.ir.cost import Cost, Size, check_limit, cost_of
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced, ladder, op_name, weights_of
from fxdistill.ir.masks import ranked
from fxdistill.ir.running import copied
from fxdistill.methods.cascade import Cascade, Threshold, level
from fxdistill.passes.couple import Couple
from fxdistill.passes.mask import MASKS, Mask, MaskSource, check_maskable, kept_of, unmasked
from fxdistill.passes.mask.maskable import CONVOLUTIONS, Maskable, first_convolution, maskable
from fxdistill.passes.shrink import Shrink, ShrinkSource
from fxdistill.passes.shrink.arguments import Obstacle
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Budget, Hardened, Masked, MaskedLayer
from fxdistill.plan.schema import DataPlan, Kept, Pair

_NORMS = frozenset(("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"))
_DENSE = frozenset(("linear", "addmm"))


@dataclass(frozen=True, eq=False)
class Base:
    """A network that levels are made of: its trace in eval mode, what of it can be masked, and what that costs."""

    traced: Traced
    coupling: Coupling
    found: Maskable
    cost: Cost

    @classmethod
    def of(cls, traced: Traced, coupling: Coupling, barriers: Sequence[str] = ()) -> "Base":
        """See the class; channels that touch a barrier are not masked.

        Raises:
            InputError: Nothing of it can be masked.
        """
        coupling = with_barriers(traced, coupling, barriers) if barriers else coupling
        found = maskable(traced, coupling)
        check_maskable(found)
        return cls(traced, coupling, found, cost_of(traced, coupling, found.classes))

    def gone(self, mask: Tensor) -> frozenset[int]:
        """The classes that a mask does not keep."""
        return frozenset(i for i, alive in zip(self.found.classes, mask.tolist(), strict=True) if not alive)

    def count(self, keep: float) -> int:
        """How many channels a share is; each layer has one at least."""
        return max(len(self.found.layers), round(keep * len(self.found.classes)))

    def scores(self, criterion: str, scale: float = 1.0, seed: int = 0) -> Tensor:
        """The scores that training starts with: an importance over the mean of the layer, (K,)."""
        if CRITERIA.get(criterion, where="--criterion").needs_batch:
            raise InputError(
                f"the criterion '{criterion}' reads data, and scores start from weights alone", where="--criterion",
                hint="choose one that reads weights, e.g. l1",
            )  # fmt: skip
        found = importance(criterion, Channels(self.traced, self.coupling, seed=seed)).float()
        parts = [found[list(layer.classes)] for layer in self.found.layers]
        return scale * torch.cat([part / part.mean().clamp(min=torch.finfo(torch.float32).tiny) for part in parts])

    def mask(self, scores: Tensor, count: int, threshold: Threshold) -> Tensor:
        """The mask that keeps so many of them."""
        order = ranked(scores, self.found.positions, by_layer=threshold == "layer")
        return torch.zeros(len(scores)).index_fill(0, order[:count], 1.0)

    def within(self, scores: Tensor, budget: Budget, threshold: Threshold) -> int:
        """How many channels a budget allows.

        Raises:
            InputError: It cannot be met, or the whole network costs no more.
        """
        what, most = priced(budget)
        parameters, macs = self.cost.of_first(ranked(scores, self.found.positions, by_layer=threshold == "layer"))
        paid = (macs if what == "macs" else parameters)[len(self.found.layers) - 1 :]
        least, whole = (Size(int(parameters[at]), int(macs[at])) for at in (len(self.found.layers) - 1, -1))
        check_limit(what, most, least=least, whole=whole, where="--budget", floor="with one channel a layer")
        return len(self.found.layers) - 1 + int((paid <= most).sum())


def priced(budget: Budget) -> tuple[Literal["parameters", "macs"], int]:
    """What a budget is of, and how much."""
    return ("macs", budget.macs) if budget.macs is not None else ("parameters", budget.parameters or 0)


def own_tensors(traced: Traced) -> list[str]:
    """The tensors that each level has for itself: normalisations, the first convolution, the classifier.

    That is the dense layers behind the last convolution or, where there are none, convolutions that no layer follows.
    """
    convolved, followed = _in_front_of(traced, CONVOLUTIONS), _in_front_of(traced, CONVOLUTIONS | _DENSE | _NORMS)
    first = first_convolution(traced)
    own: dict[str, None] = {}
    for node in traced.graph.nodes:
        name = op_name(node, traced.module)
        head = (name in _DENSE and node not in convolved) or (name in CONVOLUTIONS and node not in followed)
        if name in _NORMS or head or node is first:
            own.update(dict.fromkeys(weights_of(node, traced)))
    return list(own)


def _in_front_of(traced: Traced, kinds: frozenset[str]) -> set[fx.Node]:
    """The nodes that a layer of one of these kinds depends on."""
    before: set[fx.Node] = set()
    for node in reversed(traced.graph.nodes):
        if op_name(node, traced.module) in kinds or node in before:
            before.update(node.all_input_nodes)
    return before


@dataclass(frozen=True)
class Proposal:
    """The members of a cascade, and what there is to say about them."""

    members: dict[str, Masked | Hardened]
    remarks: tuple[Diagnostic, ...]
    pairs: tuple[Pair, ...] = ()
    kept: tuple[Kept, ...] = ()


def propose(
    traced: Traced, coupling: Coupling, options: Cascade, *, of: str, criterion: str, student: str, passes: PassManager,
    warms_up: bool = False,
) -> Proposal:  # fmt: skip
    """Decide on the levels of a network, and cut the student out of them once: what cannot be cut is not masked.

    Args:
        traced: The network, in eval mode.
        coupling: Its coupled channels.
        options: The user's decisions.
        of: The network's name.
        criterion: The measure of importance that scores start with.
        student: The name of what is cut out.
        passes: Where passes run.
        warms_up: Whether the method has a warm-up, which needs pairs.

    Raises:
        InputError: A share or a budget cannot be had, or nothing can be masked.
    """
    barriers: dict[str, str] = {}
    while True:
        base = Base.of(traced, coupling, tuple(barriers))
        made = _planned(base, options, of=of, criterion=criterion, barriers=list(barriers))
        first = made[level(0)]
        mask = base.mask(base.scores(criterion), sum(one.kept for one in first.layers), options.threshold)
        if not (gone := base.gone(mask)):
            break
        try:
            passes.run(Shrink(), ShrinkSource(traced, base.coupling, gone))
            break
        except PassError as error:
            if not isinstance(obstacle := error.__cause__, Obstacle):
                raise
            path = next_barrier(traced, obstacle.path, barriers)
            barriers[path] = obstacle.why
    cut = Hardened(of=level(0), parameters=first.parameters, macs=first.macs)
    pairs = [
        *(level_taps.hints(base.found, list(made), of) if options.hints else ()),
        *(level_taps.warm_ups(base.found, made, of) if warms_up else ()),
        *(level_taps.alone(base.found, student, of) if options.hints_alone else ()),
    ]
    kept = tuple(level_taps.whole(pair, criterion) for pair in pairs if pair.align == "slice")
    return Proposal({**made, student: cut}, (*base.found.remarks, *barrier_remarks(barriers)), tuple(pairs), kept)


def _planned(base: Base, options: Cascade, *, of: str, criterion: str, barriers: list[str]) -> dict[str, Masked]:
    """The levels of a cascade, from the student's up."""
    scores = base.scores(criterion)
    budget = None if options.budget is None else Budget.model_validate(dict([options.budget]))
    shares = options.shares(None if budget is None else base.within(scores, budget, options.threshold) / len(scores))
    own = own_tensors(base.traced)
    made: dict[str, Masked] = {}
    for number, share in enumerate(shares):
        count = base.count(share)
        if number == 0 and count == len(scores):
            most = math.floor(1e3 * (count - 1) / count) / 1e3
            raise InputError(
                f"{share:g} of {count} channels is all of them", where="--levels" if options.levels else "--keep",
                hint=f"keep {most:g} or less" if count > len(base.found.layers) else "nothing of it can be removed",
            )  # fmt: skip
        if share < 1 and number == 0 and round(share * len(scores)) < len(base.found.layers):
            least = len(base.found.layers) / len(scores)
            raise InputError(
                f"{share:g} of {len(scores)} channels is less than one in each of {len(base.found.layers)} layers, of "
                "which none may lose all", where="--levels" if options.levels else "--keep",
                hint=f"keep {least:.3g} or more",
            )  # fmt: skip
        mask = base.mask(scores, count, options.threshold) if share < 1 else torch.ones(len(scores))
        parameters, macs = base.cost.of(mask)
        guide = level(min(number + 1, len(shares) - 1)) if share < 1 else None
        made[level(number)] = Masked(
            of=of, keep=share, budget=budget if number == 0 else None, guide=guide, criterion=criterion, own=own,
            barriers=barriers, nested=options.nested and number + 2 < len(shares),
            threshold=options.threshold if share < 1 else "global", centred=options.centred and share < 1,
            layers=_layers(base, mask), parameters=parameters, macs=macs,
        )  # fmt: skip
    return made


def _layers(base: Base, mask: Tensor) -> list[MaskedLayer]:
    kept = kept_by_layer(base.found, mask)
    return [
        MaskedLayer(name=layer.name, channels=len(layer.classes), kept=kept[layer.name]) for layer in base.found.layers
    ]


def kept_by_layer(found: Maskable, mask: Tensor) -> dict[str, int]:
    """How many channels a mask keeps of each layer."""
    sizes = [len(layer.classes) for layer in found.layers]
    return {
        layer.name: int(part.sum()) for layer, part in zip(found.layers, mask.split(sizes), strict=True)
    }  # fmt: skip


def watched(data: DataPlan) -> Iterator[Diagnostic]:
    """A note where there is nothing to tell by that a student is better than its teacher."""
    if data.val is None or not data.labelled:
        lacks, hint = (
            ("validation images", "plan with --val 0.1") if data.labelled else ("labels", "give data with any")
        )
        yield Diagnostic(
            code="no-validation", severity="note", where="stage 'main', successors",
            why=f"without {lacks} nobody can say when the student is better than its teacher, so the first one stays",
            hint=hint,
        )  # fmt: skip


def levels(plan: Plan, original: nn.Module, *, passes: PassManager | None = None) -> dict[str, fx.GraphModule]:
    """The masked members of a plan, over one set of tensors that they share; the original is not changed.

    Raises:
        PlanError: The plan's levels are not of this model.
        InputError: Nothing of it can be masked.
    """
    passes = passes or PassManager()
    wanted = {name: member for name, member in plan.members.items() if isinstance(member, Masked)}
    if not wanted:
        return {}
    name = next(iter(wanted.values())).of
    ref = plan.given(name)
    traced = passes.run(Trace(plan.shape_of(name), entry=ref.output, rungs=ladder(ref.rung)), original)
    traced = replace(traced, module=copied(traced.module))
    barriers = next(iter(wanted.values())).barriers
    base = Base.of(traced, passes.run(Couple(), traced), barriers)
    made = {one: _level(base, plan, one, member, passes) for one, member in wanted.items()}
    for one, member in wanted.items():
        if member.guide is not None:
            _tie(made[member.guide], "riding", made[one])
        for number, above in enumerate(_around(plan, member)):
            _tie(made[one], f"around_{number}", made[above])
    return made


def _level(base: Base, plan: Plan, name: str, member: Masked, passes: PassManager) -> fx.GraphModule:
    """One level: a copy whose shared tensors are the base's own, with gates, and with the scores to start from."""
    known = dict(base.traced.module.named_parameters(remove_duplicate=False))
    layers = [(one.name, one.channels) for one in member.layers]
    if strange := [one for one in member.own if one not in known]:
        raise PlanError(f"the model has no tensor '{strange[0]}'", where=f"members.{name}.own", hint="plan anew")
    if layers != [(one.name, len(one.classes)) for one in base.found.layers]:
        raise PlanError("what can be masked is not what was planned", where=f"members.{name}.layers", hint="plan anew")
    own = {id(known[one]) for one in member.own}
    shared = {id(tensor): tensor for tensor in known.values() if id(tensor) not in own}
    module = copy.deepcopy(base.traced.module, dict(shared))
    traced = replace(base.traced, module=module)
    riding = [one for one in plan.members.values() if isinstance(one, Masked) and one.guide == name]
    around = [plan.members[one] for one in _around(plan, member)]
    mask = Mask(
        count=base.count(member.keep) if member.is_masked and member.budget is None else None,
        rides=bool(riding), centred=any(one.centred for one in riding), by_layer=member.threshold == "layer",
        limit=None if member.budget is None else priced(member.budget),
        nested=tuple(base.count(one.keep) for one in around if isinstance(one, Masked)),
    )  # fmt: skip
    made = passes.run(mask, MaskSource(traced, base.coupling)).module
    if member.is_masked:
        with torch.no_grad():
            made.get_parameter(f"{MASKS}.scores").copy_(base.scores(member.criterion, member.scale, plan.seed))
    return made


def _around(plan: Plan, member: Masked) -> list[str]:
    """The levels that a nested mask lies inside of, the outermost first."""
    found: list[str] = []
    while member.nested and member.guide is not None:
        above = plan.members[member.guide]
        if not isinstance(above, Masked) or not above.is_masked:
            break
        found.insert(0, member.guide)
        member = above
    return found


def _tie(module: nn.Module, name: str, scored: nn.Module) -> None:
    """Make a module's scores those of another one: the same parameter."""
    setattr(module.get_submodule(MASKS), name, scored.get_parameter(f"{MASKS}.scores"))


@dataclass(frozen=True, eq=False)
class Cut:
    """What was cut out of a masked model: the smaller one, and its size."""

    module: fx.GraphModule
    parameters: int
    macs: int


def harden(
    masked: fx.GraphModule, member: Masked, *, input_shape: tuple[int, ...], passes: PassManager | None = None
) -> Cut:  # fmt: skip
    """Cut a masked model: its scores become indices, and ``shrink`` proves the result; it shares nothing with it.

    Args:
        masked: The model, on any weights and scores; it is not changed.
        member: What the plan says of it.
        input_shape: Shape of one batch.
        passes: Where the passes run.

    Raises:
        InvariantError: It has no mask.
        PassError: What is left is not the masked model.
    """
    passes = passes or PassManager()
    kept = kept_of(masked)
    traced = passes.run(Trace(input_shape), copied(unmasked(masked)).cpu())
    base = Base.of(traced, passes.run(Couple(), traced), member.barriers)
    gone = base.gone(kept)
    small = passes.run(Shrink(), ShrinkSource(traced, base.coupling, gone)).module if gone else copied(traced.module)
    return Cut(small, *base.cost.of(kept))


def kept_counts(masked: nn.Module, member: Masked) -> dict[str, int]:
    """How many channels a masked member keeps of each layer now."""
    sizes = [one.channels for one in member.layers]
    parts = kept_of(masked).split(sizes)
    return {one.name: int(part.sum()) for one, part in zip(member.layers, parts, strict=True)}

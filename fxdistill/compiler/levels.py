"""The levels of one network: copies over the tensors that they share, each with a mask of its own.

    teacher ─ trace ─ couple ─ mask ─┬─ level-(N-1) … level-0   the same tensors, but for those of their own
                                     └─ student                 cut out of level-0 when that is trained, with proof

What the plan says is made the same way whenever it is made: when it is planned, when it is run, when a run is resumed.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from fxdistill.compiler.barriers import with_barriers
from fxdistill.criteria import CRITERIA, importance
from fxdistill.errors import InputError, InvariantError, PlanError
from fxdistill.ir.budget import check_limit
from fxdistill.ir.channels import Channels
from fxdistill.ir.contract import PassManager
from fxdistill.ir.cost import Cost, cost_of
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced, ladder
from fxdistill.ir.masks import affordable, threshold
from fxdistill.ir.running import copied
from fxdistill.methods.cascade import Threshold
from fxdistill.passes.couple import Couple
from fxdistill.passes.mask import MASKS, Mask, MaskSource, check_maskable, kept_of, unmasked
from fxdistill.passes.mask.maskable import Maskable, maskable
from fxdistill.passes.shrink import Shrink, ShrinkSource
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Budget, Masked, MaskedLayer


@dataclass(frozen=True, eq=False)
class Base:
    """A network that levels are made of: its trace in eval mode, what of it can be masked, and what that costs."""

    traced: Traced
    coupling: Coupling
    found: Maskable
    cost: Cost
    first: bool = False

    @classmethod
    def of(cls, traced: Traced, coupling: Coupling, barriers: Sequence[str] = (), *, first: bool = False) -> "Base":
        """The base of a traced model; channels that touch a barrier are not masked, the first convolution's if wanted.

        Raises:
            InputError: Nothing of it can be masked.
        """
        coupling = with_barriers(traced, coupling, barriers) if barriers else coupling
        found = maskable(traced, coupling, first=first)
        check_maskable(found)
        return cls(traced, coupling, found, cost_of(traced, coupling, found.classes), first)

    def gone(self, mask: Tensor) -> frozenset[int]:
        """The classes that a mask does not keep."""
        return frozenset(i for i, alive in zip(self.found.classes, mask.tolist(), strict=True) if not alive)

    def count(self, keep: float, multiple: int = 1) -> int:
        """How many channels a share is; each layer has one at least, or so many as a multiple."""
        return max(self.found.least(multiple), round(keep * len(self.found.classes)))

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

    def mask(self, scores: Tensor, count: int, among: Threshold, multiple: int = 1) -> Tensor:
        """The mask that keeps so many of them."""
        return threshold(scores, self.found.positions, count, by_layer=among == "layer", multiple=multiple)

    def within(self, scores: Tensor, budget: Budget, among: Threshold, multiple: int = 1) -> Tensor:
        """The mask that keeps as many of them as a budget allows.

        Raises:
            InputError: It cannot be met, or the whole network costs no more.
        """
        (what, most), positions = budget.limit, self.found.positions
        least = self.mask(scores, self.found.least(multiple), among, multiple)
        floor = f"with {'one channel' if multiple == 1 else f'{multiple} channels'} a layer"
        check_limit(
            what, most, least=self.cost.of(least), whole=self.cost.of(torch.ones_like(scores)), where="--budget",
            floor=floor,
        )  # fmt: skip
        priced = self.cost.priced(what, most)
        return affordable(scores, positions, *priced, by_layer=among == "layer", multiple=multiple)

    def layers(self, mask: Tensor) -> list[MaskedLayer]:
        """What a mask keeps of each layer."""
        sizes = [len(layer.classes) for layer in self.found.layers]
        return [
            MaskedLayer(name=layer.name, channels=size, kept=int(part.sum()))
            for layer, size, part in zip(self.found.layers, sizes, mask.split(sizes), strict=True)
        ]


def masked_members(plan: Plan, original: nn.Module, *, passes: PassManager | None = None) -> dict[str, fx.GraphModule]:
    """The masked members of a plan, over one set of tensors that they share; the original is not changed.

    Raises:
        PlanError: The plan's levels are not of this model.
        InputError: Nothing of it can be masked.
    """
    passes = passes or PassManager()
    wanted = {name: member for name, member in plan.members.items() if isinstance(member, Masked)}
    if not wanted:
        return {}
    told = next(iter(wanted.values()))
    ref = plan.given(told.of)
    traced = passes.run(Trace(plan.shape_of(told.of), entry=ref.output, rungs=ladder(ref.rung)), original)
    traced = replace(traced, module=copied(traced.module))
    base = Base.of(traced, passes.run(Couple(), traced), told.barriers, first=told.first)
    made = {name: _level(base, plan, name, member, passes) for name, member in wanted.items()}
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
    scores = base.scores(member.criterion, member.scale, plan.seed) if member.is_masked else None
    if scores is not None and member.budget is not None:
        base.within(scores, member.budget, member.threshold, member.multiple)
    own = {id(known[one]) for one in member.own}
    shared = {id(tensor): tensor for tensor in known.values() if id(tensor) not in own}
    module = copy.deepcopy(base.traced.module, dict(shared))
    traced = replace(base.traced, module=module)
    riding = [one for one in plan.members.values() if isinstance(one, Masked) and one.guide == name]
    around = [plan.members[one] for one in _around(plan, member)]
    mask = Mask(
        count=base.count(member.keep, member.multiple) if member.is_masked and member.budget is None else None,
        rides=bool(riding), centred=any(one.centred for one in riding), by_layer=member.threshold == "layer",
        multiple=member.multiple,
        limit=None if member.budget is None else member.budget.limit,
        nested=tuple(base.count(one.keep, one.multiple) for one in around if isinstance(one, Masked)),
    )  # fmt: skip
    made = passes.run(mask, MaskSource(traced, base.coupling, base.first)).module
    if scores is not None:
        with torch.no_grad():
            made.get_parameter(f"{MASKS}.scores").copy_(scores)
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
        InvariantError: It has no mask, or its mask costs more than its budget.
        PassError: What is left is not the masked model.
    """
    passes = passes or PassManager()
    kept = kept_of(masked)
    traced = passes.run(Trace(input_shape), copied(unmasked(masked)).cpu())
    base = Base.of(traced, passes.run(Couple(), traced), member.barriers, first=member.first)
    gone = base.gone(kept)
    small = passes.run(Shrink(), ShrinkSource(traced, base.coupling, gone)).module if gone else copied(traced.module)
    cost = base.cost.of(kept)
    if member.budget is not None and getattr(cost, (limit := member.budget.limit)[0]) > limit[1]:
        raise InvariantError(f"the mask costs more than its budget of {limit[1]:,} {limit[0]}")
    return Cut(small, *cost)


def kept_counts(masked: nn.Module, member: Masked) -> dict[str, int]:
    """How many channels a masked member keeps of each layer now."""
    sizes = [one.channels for one in member.layers]
    parts = kept_of(masked).split(sizes)
    return {one.name: int(part.sum()) for one, part in zip(member.layers, parts, strict=True)}

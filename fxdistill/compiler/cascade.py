"""The cascade's part of a plan: how many levels of a network, what each keeps, and what it learns layer by layer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxdistill.compiler import level_taps
from fxdistill.compiler.barriers import barrier_remarks, next_barrier
from fxdistill.compiler.levels import Base
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, PassError
from fxdistill.ir.contract import PassManager
from fxdistill.ir.cost import CONVOLUTIONS
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced, op_name, weights_of
from fxdistill.methods.cascade import Cascade, level
from fxdistill.passes.mask.maskable import first_convolution
from fxdistill.passes.shrink import Shrink, ShrinkSource
from fxdistill.passes.shrink.arguments import Obstacle
from fxdistill.plan.members import Budget, Hardened, Masked
from fxdistill.plan.schema import DataPlan, Kept, Pair

_NORMS = frozenset(("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"))
_DENSE = frozenset(("linear", "addmm"))


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
        base = Base.of(traced, coupling, tuple(barriers), first=options.first)
        made, mask = _planned(base, options, of=of, criterion=criterion, barriers=list(barriers))
        first = made[level(0)]
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


def _planned(
    base: Base, options: Cascade, *, of: str, criterion: str, barriers: list[str]
) -> tuple[dict[str, Masked], Tensor]:
    """The levels of a cascade, from the student's up, and the mask that the student's starts with."""
    scores, multiple, layers = base.scores(criterion), options.round_to, base.found.layers
    if (least := base.found.least(multiple)) == len(scores) > len(layers):
        raise InputError(
            f"no layer has more than {max(len(one.classes) for one in layers)} channels that can be masked, so in "
            f"multiples of {multiple} nothing can be removed", where="--round-to", hint="give a smaller one",
        )  # fmt: skip
    budget = None if options.budget is None else Budget.model_validate(dict([options.budget]))
    within = None if budget is None else base.within(scores, budget, options.threshold, multiple)
    shares = options.shares(None if within is None else float(within.mean()))
    own = own_tensors(base.traced)
    made: dict[str, Masked] = {}
    for number, share in enumerate(shares):
        count = base.count(share, multiple)
        if number == 0 and count == len(scores):
            most = math.floor(1e3 * (count - 1) / count) / 1e3
            raise InputError(
                f"{share:g} of {count} channels is all of them", where="--levels" if options.levels else "--keep",
                hint=f"keep {most:g} or less" if count > least else "nothing of it can be removed",
            )  # fmt: skip
        if share < 1 and number == 0 and round(share * len(scores)) < least:
            raise InputError(
                f"{share:g} of {len(scores)} channels is less than {'one' if multiple == 1 else multiple} in each of "
                f"{len(layers)} layers, of which none may lose all", where="--levels" if options.levels else "--keep",
                hint=f"keep {least / len(scores):.3g} or more",
            )  # fmt: skip
        mask = base.mask(scores, count, options.threshold, multiple) if share < 1 else torch.ones(len(scores))
        if number == 0:
            student = mask = mask if within is None else within
        parameters, macs = base.cost.of(mask)
        guide = level(min(number + 1, len(shares) - 1)) if share < 1 else None
        made[level(number)] = Masked(
            of=of, keep=share, budget=budget if number == 0 else None, guide=guide, criterion=criterion, own=own,
            barriers=barriers, first=options.first, nested=options.nested and number + 2 < len(shares),
            threshold=options.threshold if share < 1 else "global", centred=options.centred and share < 1,
            multiple=multiple if share < 1 else 1, layers=base.layers(mask), parameters=parameters, macs=macs,
        )  # fmt: skip
    return made, student


def watched(data: DataPlan) -> Iterator[Diagnostic]:
    """A note where nothing can show that a student is better than its teacher."""
    if data.val is None or not data.labelled:
        lacks, hint = (
            ("validation images", "plan with --val 0.1") if data.labelled else ("labels", "give data with any")
        )
        yield Diagnostic(
            code="no-validation", severity="note", where="stage 'main', successors",
            why=f"without {lacks} nobody can say when the student is better than its teacher, so the first one stays",
            hint=hint,
        )  # fmt: skip

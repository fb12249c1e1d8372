"""What has to hold between the parts of a plan, beyond what each part says of itself.

Names are told apart, and what is named is there; widths and kept channels belong together; a frozen member is what it
was given as or what one arm made of it; labels are there where a loss reads them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fxdistill.data import augmentations
from fxdistill.losses import LOSSES
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.schema import MOST_EPOCHS, Kept, ModelRef, Pair, Shrunken
from fxdistill.plan.training import CONTROL, Arm, Control, LossTerm

if TYPE_CHECKING:
    from fxdistill.plan.document import Plan

_RESERVED = {"adapters", "losses", "plan", "origin", "result", "checkpoint", "metrics", "tensorboard", "code", "graph"}


def wrong(plan: "Plan") -> Iterator[str]:
    """What is wrong with a plan, in words; nothing where all holds. Names come first: the rest goes by them."""
    twice = [
        f"there is more than one {kind} '{name}'"
        for kind, names in _named(plan)
        for name in names
        if names.count(name) > 1
    ]
    if twice:
        yield twice[0]
        return
    for found in (_wrong_members, _wrong_pairs, _wrong_arms, _wrong_freezing, _wrong_labels):
        yield from found(plan)


def _named(plan: "Plan") -> Iterator[tuple[str, list[str]]]:
    """What must have names of its own, each kind with its names."""
    yield "pair", [pair.name for pair in plan.pairs]
    between: dict[tuple[str, str, str], list[str]] = {}
    for pair in plan.pairs:
        nodes = f"{pair.teacher.path} = {pair.student.path}"
        between.setdefault((pair.teacher.member, pair.student.member, pair.align), []).append(nodes)
    for found in between.values():
        yield "pair of the nodes", found
    yield "list of kept channels of", [kept.pair for kept in plan.kept]
    yield "seed", [str(seed) for seed in plan.seeds]
    yield "arm", [arm.name for arm in plan.arms]
    for arm in plan.arms:
        yield "stage", [stage.name for stage in arm.stages]


def _wrong_members(plan: "Plan") -> Iterator[str]:
    for name, member in plan.members.items():
        if name in _RESERVED:
            yield f"a member cannot be called '{name}'"
        if isinstance(member, ModelRef):
            yield from _wrong_preprocessing(plan, name, member)
        elif isinstance(member, Masked | Hardened):
            yield from _wrong_cascade(plan, name, member)
        else:
            yield from _wrong_shrunken(plan, name, member)
    for pair in plan.pairs:
        for tap in (pair.teacher, pair.student):
            if tap.member not in plan.members:
                yield f"the pair '{pair.name}' names the member '{tap.member}', which the plan has not"


def _wrong_shrunken(plan: "Plan", name: str, member: Shrunken) -> Iterator[str]:
    if not isinstance(plan.members.get(member.of), ModelRef):
        yield f"the member '{name}' is made of '{member.of}', which the plan does not have as a given member"
    known = {"weight": set(member.kept), "pair": {pair.name for pair in plan.pairs}}
    for kind, given in (("weight", member.widths), ("pair", member.taps)):
        for unknown in sorted(set(given) - known[kind])[:1]:
            yield f"the widths of the member '{name}' name the {kind} '{unknown}', which it has not"


def _wrong_cascade(plan: "Plan", name: str, member: Masked | Hardened) -> Iterator[str]:
    source = plan.members.get(member.of)
    if isinstance(member, Hardened):
        if not isinstance(source, Masked) or not source.is_masked:
            yield f"the member '{name}' is cut out of '{member.of}', which the plan does not have as a masked member"
        return
    if not isinstance(source, ModelRef):
        yield f"the member '{name}' is made of '{member.of}', which the plan does not have as a given member"
    first, like = next((one, other) for one, other in plan.members.items() if isinstance(other, Masked))
    if differ := [field for field, value in member.network.items() if like.network[field] != value]:
        yield f"the members '{first}' and '{name}' are masked of one network, and differ in {' and '.join(differ)}"
    guide = plan.members.get(member.guide) if member.guide is not None else member
    if not isinstance(guide, Masked) or guide.of != member.of:
        yield f"the guide of the member '{name}' is '{member.guide}', which is not masked of '{member.of}'"
    guided = [one for one, other in plan.members.items() if isinstance(other, Masked) and other.guide == name]
    if len(guided) > 1:
        yield f"the member '{name}' guides both '{guided[0]}' and '{guided[1]}'; it can guide one"
    alike = isinstance(guide, Masked) and (not guide.is_masked or guide.kept_by == member.kept_by)
    wider = isinstance(guide, Masked) and guide.budget is None and guide.keep > member.keep  # so there is no circle
    if member.nested and not wider:
        yield f"the member '{name}' cannot lie inside of '{member.guide}', which has a budget or keeps no more"
    elif member.nested and not alike:
        yield f"the member '{name}' cannot lie inside of '{member.guide}', whose threshold or multiple is another one"


def _wrong_preprocessing(plan: "Plan", name: str, member: ModelRef) -> Iterator[str]:
    found, shape = member.preprocessing, plan.input.shape
    if found is None:
        return
    if len(shape) != 4:
        yield f"the member '{name}' preprocesses images, and the input has {len(shape)} dimensions"
    elif found.mean and len(found.mean) != shape[1]:
        yield f"the member '{name}' normalises {len(found.mean)} channels, the images have {shape[1]}"


def _wrong_pairs(plan: "Plan") -> Iterator[str]:
    pairs = {pair.name: pair for pair in plan.pairs}
    for kept in plan.kept:
        if kept.pair not in pairs:
            yield f"kept channels name the pair '{kept.pair}', which the plan has not"
        else:
            yield from _wrong_kept(kept, pairs[kept.pair])
    sliced = {kept.pair for kept in plan.kept}
    for pair in plan.pairs:
        if pair.align == "slice" and pair.name not in sliced:
            yield f"no kept channels for the sliced pair '{pair.name}'"
        if pair.align == "shrink" and not isinstance(plan.members.get(pair.teacher.member), Shrunken):
            yield f"the align of the pair '{pair.name}' is 'shrink', and its teacher is no shrunken member"
        if pair.align == "kept" and not isinstance(plan.members.get(pair.student.member), Hardened):
            yield f"the align of the pair '{pair.name}' is 'kept', and its student is not cut out of another member"
        if pair.align == "kept" and pair.teacher.width != pair.student.width:
            yield f"the pair '{pair.name}' has two widths; with align 'kept' they are that of the whole network"
        if pair.align == "shrink" and pair.teacher.width != pair.student.width:
            yield f"the pair '{pair.name}' has two widths; with align 'shrink' they are the same"


def _wrong_kept(kept: Kept, pair: Pair) -> Iterator[str]:
    if pair.align != "slice":
        yield f"the pair '{kept.pair}' has kept channels but its align is '{pair.align}'"
    if kept.width != pair.teacher.width or kept.path != pair.teacher.path:
        yield f"the kept channels of '{kept.pair}' are not about its teacher tap"
    if kept.channels != sorted(set(kept.channels)):
        yield f"the kept channels of '{kept.pair}' are not sorted and distinct"
    elif kept.channels and kept.channels[-1] >= kept.width:
        yield (
            f"the kept channel {kept.channels[-1]} of '{kept.pair}' is out of range: '{kept.path}' has "
            f"{kept.width} channels, 0 to {kept.width - 1}"
        )
    if len(kept.channels) != pair.student.width:
        yield f"'{kept.pair}' keeps {len(kept.channels)} channels; the student's tap has {pair.student.width}"


def _wrong_arms(plan: "Plan") -> Iterator[str]:
    pairs = {pair.name: pair for pair in plan.pairs}
    arms = {arm.name: arm for arm in plan.arms}
    for arm in plan.arms:
        if arm.name == CONTROL:
            yield f"an arm cannot be called '{CONTROL}': that one is derived from the field 'control'"
        for name in arm.members:
            if name not in plan.members:
                yield f"the arm '{arm.name}' names the member '{name}', which the plan has not"
        for stage in arm.stages:
            for term in stage.losses:
                yield from _wrong_term(term, pairs, f"stage '{stage.name}'")
    if plan.control is not None:
        yield from _wrong_control(plan.control, arms)
    if plan.export.arm not in arms or plan.export.member not in arms[plan.export.arm].trains:
        yield f"no arm '{plan.export.arm}' trains the member '{plan.export.member}' that is to be exported"
    if plan.export.seed == "best" and plan.data.val is None:
        yield "the best seed is to be exported, and there are no validation images to tell it by: plan with --val 0.1"


def _wrong_freezing(plan: "Plan") -> Iterator[str]:
    """A frozen member is what it was given as, or what an arm before made of it once: not one of several.

    A masked one is what the one arm made of it that trains it, before and under the same seed.
    """
    once: set[str] = set()
    levels = _LevelsTrained(plan)
    varied = {member for arm in plan.arms if not arm.once for member in arm.trains}
    trained = {member for arm in plan.arms for member in arm.trains}
    for arm in plan.arms:
        for member in arm.members:
            if member in arm.trains or member not in trained or member in once or levels.before(arm, member):
                continue
            when = "under every seed" if member in varied else "after it"
            yield f"the arm '{arm.name}' reads the member '{member}' frozen, which another arm trains {when}"
        once |= set(arm.trains) - varied if arm.once else set()
    for arm in plan.arms:
        for member in arm.trains:
            source = plan.members.get(member)
            if isinstance(source, Hardened) and not levels.before(arm, source.of):
                yield f"the arm '{arm.name}' trains '{member}', and no arm before it has trained '{source.of}'"


class _LevelsTrained:
    """Which masked members have been trained, and by which arm."""

    def __init__(self, plan: "Plan") -> None:
        self.order = {arm.name: position for position, arm in enumerate(plan.arms)}
        levels = {name for name, member in plan.members.items() if isinstance(member, Masked)}
        self.by = {name: [arm for arm in plan.arms if name in arm.trains] for name in levels}

    def before(self, arm: Arm, member: str) -> bool:
        """Whether one arm has trained a masked member before another one, under the same seed."""
        by = self.by.get(member, [])
        return len(by) == 1 and self.order[by[0].name] < self.order[arm.name] and by[0].once == arm.once


def _wrong_labels(plan: "Plan") -> Iterator[str]:
    yield from _wrong_mixing(plan)
    if plan.data.labelled:
        return
    for arm in plan.all_arms:
        for term in (term for stage in arm.stages for term in stage.losses):
            if "labels" in LOSSES.get(term.loss).reads:
                yield f"the arm '{arm.name}' has the loss '{term.loss}', which reads labels, and the data has none"


def _wrong_mixing(plan: "Plan") -> Iterator[str]:
    if not any(one.augmentation.mixes for one in augmentations.named(plan.data.augmentation)):
        return
    for name in dict.fromkeys(term.loss for arm in plan.all_arms for stage in arm.stages for term in stage.losses):
        if "labels" in LOSSES.get(name).reads and not LOSSES.get(name).mixed_labels:
            yield f"the augmentation mixes labels, and the loss '{name}' does not take mixed ones"


def _wrong_control(control: Control, arms: dict[str, Arm]) -> Iterator[str]:
    if control.of not in arms:
        yield f"the control arm stands beside the arm '{control.of}', which the plan has not"
        return
    if arms[control.of].once:
        yield f"the control arm stands beside the arm '{control.of}', which is trained once, for others to read"
    epochs = sum(stage.epochs for stage in arms[control.of].stages)
    if epochs > MOST_EPOCHS:
        yield f"the control arm would train as the arm '{control.of}' does, {epochs} epochs; {MOST_EPOCHS} is the most"
    for term in control.losses:
        if term.teacher is not None or term.pair is not None:
            yield f"the control arm trains without a teacher, and its loss '{term.loss}' needs one"
        elif term.student not in arms[control.of].trains:
            yield f"the control arm's loss '{term.loss}' reads '{term.student}', which it does not train"


def _wrong_term(term: LossTerm, pairs: dict[str, Pair], where: str) -> Iterator[str]:
    if term.pair is None:
        return
    if term.pair not in pairs:
        yield f"{where} names the pair '{term.pair}', which the plan has not"
        return
    pair = pairs[term.pair]
    for role, tap, member in (("student", pair.student, term.student), ("teacher", pair.teacher, term.teacher)):
        if member is not None and member != tap.member:
            yield f"{where}: the {role} of '{term.name}' is '{member}', that of its pair '{tap.member}'"

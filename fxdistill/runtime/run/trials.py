"""Trials: the trainings that a plan stands for, in the order in which a run carries them out."""

from dataclasses import dataclass

from fxdistill.plan.document import Plan


@dataclass(frozen=True)
class Trial:
    """One training: of which arm, under which seed."""

    seed: int
    name: str


def trials_of(plan: Plan) -> list[Trial]:
    """The trials in order: arms that are trained once, then for each seed the others, the control beside its arm."""
    once = [Trial(plan.seed, arm.name) for arm in plan.all_arms if arm.once]
    return [*once, *(Trial(seed, arm.name) for seed in plan.seeds for arm in plan.all_arms if not arm.once)]


def teaching(plan: Plan) -> list[str]:
    """The members that teach as they are: no arm trains them."""
    trained = {member for arm in plan.arms for member in arm.trains}
    return [name for name in plan.members if name not in trained]

"""The steps on programs: that of the arm in which the student learns is built, and each of its stages is costed.

A cost is the multiply-accumulates of an image over those of all given members together.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from fxdistill.compiler import remarks
from fxdistill.compiler.compilation import DISTILLED, STUDENT, Compilation
from fxdistill.ir.contract import PassManager
from fxdistill.passes.instrument import Instrument, Joint
from fxdistill.passes.specialize import Specialize
from fxdistill.plan.training import Arm, Stage


def instrument(c: Compilation, passes: PassManager) -> Compilation:
    """Build the program of the arm in which the student learns."""
    plan = c.finished()
    members = {name: c.trainable.get(name, c.traced[name]) for name in plan.arm(DISTILLED).members}
    return replace(c, programs={DISTILLED: passes.run(Instrument(plan, DISTILLED), Joint(members))})


def specialize(c: Compilation, passes: PassManager) -> Compilation:
    """Cut every stage out, and note what it costs."""
    plan, program = c.finished(), c.programs[DISTILLED]
    for member in () if passes.prove else program.members:
        module = program.get_submodule(member.name)
        scripted = any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())  # these cannot move there
        if not (member.trained or scripted):  # what nothing runs needs no weights; they would be copied for every stage
            module.to("meta")
    staged = {stage.name: passes.run(Specialize(stage.name), program) for stage in program.stages}
    whole = max(1, sum(c.traced[name].macs for name in c.models))
    costs = {name: round(one.macs / whole, 4) for name, one in staged.items()}
    arms = [
        arm.changed(stages=[stage.changed(cost=_cost(c, arm, stage, costs, whole)) for stage in arm.stages])
        for arm in plan.arms
    ]
    control = plan.control and plan.control.changed(cost=round(c.traced[STUDENT].macs / whole, 4))
    read = {**c.traced, **c.trainable}
    taught = remarks.untaught(STUDENT, c.models[STUDENT], staged.values(), c.traced[STUDENT])
    said = dict.fromkeys((*passes.diagnostics, *c.remarks, *remarks.not_logits(plan, read), *taught))
    plan = plan.changed(arms=arms, control=control, costed=plan.cost_basis, diagnostics=list(said))
    return replace(c, plan=plan.changed(costed=plan.cost_basis), programs={**c.programs, **staged})


def _cost(c: Compilation, arm: Arm, stage: Stage, costs: Mapping[str, float], whole: int) -> float:
    if arm.name == DISTILLED:
        return costs[stage.name]
    return round(sum(c.traced[name].macs for name in arm.members) / whole, 4)

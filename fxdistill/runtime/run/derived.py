"""The members of a plan that are made of others: the auxiliary teacher, masked levels, and what is cut out of these."""

from collections.abc import Mapping

from torch import fx, nn

from fxdistill.compiler.auxiliary import make
from fxdistill.compiler.levels import masked_members
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Masked
from fxdistill.plan.schema import Shrunken
from fxdistill.runtime.run.hardening import harden_all


def derived(plan: Plan, given: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """They, made of the members that a plan is given.

    Args:
        plan: The plan.
        given: The members that are files or factories, by name.
    """
    modules, masked = dict(given), dict[str, fx.GraphModule]()
    for name, member in plan.members.items():
        if isinstance(member, Shrunken):
            modules[name] = make(member, modules[member.of], input_shape=plan.shape_of(member.of))
        elif isinstance(member, Masked):
            masked = masked or masked_members(plan, modules[member.of])
            modules[name] = masked[name]
    modules |= {name: cut.module for name, cut in harden_all(plan, modules).items()}
    return {name: module for name, module in modules.items() if name not in given}

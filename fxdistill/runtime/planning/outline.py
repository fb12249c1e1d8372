"""The members of a plan in outline, before anything trains."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from fxdistill.compiler.auxiliary import make
from fxdistill.compiler.outline import Outline, outline
from fxdistill.errors import InputError
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef, Shrunken
from fxdistill.runtime.planning import preflight


def planned_outline(plan: Plan, base: Path, *, allow: Sequence[str] = (), trust_code: bool = False) -> Outline:
    """What can be told of a plan's members from their files; those that cannot be loaded are left out, and said.

    Args:
        plan: The plan.
        base: The folder to which the places in it are relative.
        allow: Modules whose factories may be called.
        trust_code: Whether a file that the plan says to unpickle may be.
    """
    modules, missing = dict[str, nn.Module](), ""
    for name, member in plan.members.items():
        try:
            if isinstance(member, ModelRef):
                modules[name] = preflight.load_model(member, base, seed=plan.seed, allow=allow, trust_code=trust_code)
            elif isinstance(member, Shrunken) and member.of in modules:
                modules[name] = make(member, modules[member.of], input_shape=plan.shape_of(member.of))
        except InputError as cause:
            missing = missing or f"{name}: {cause.what}" + (f" ({cause.hint})" if cause.hint else "")
    found = outline(plan, modules)
    return Outline(found.layers, found.runs, missing or found.missing)

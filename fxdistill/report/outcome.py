"""What a run's result says of its members, for whoever shows it."""

import statistics
from collections.abc import Mapping
from typing import Any

from fxdistill.diagnostics import Diagnostic
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Budget, Hardened, Masked
from fxdistill.report.layout import count


def size_of(plan: Plan, result: Mapping[str, Any], member: str) -> tuple[int, int] | None:
    """A member's parameters and MACs, the mean over seeds of one that was cut; None of what is computed whole."""
    found = plan.members[member]
    if isinstance(found, Masked):
        return None
    cut = [arm for arm in result["arms"] if isinstance(found, Hardened) and "macs" in arm]
    if not cut:
        return found.parameters, found.macs
    parameters, macs = (round(statistics.fmean(arm[key] for arm in cut)) for key in ("parameters", "macs"))
    return parameters, macs


def exported(plan: Plan, result: Mapping[str, Any]) -> str:
    """Which training the exported member is of, where there were several; '' where there was one."""
    arms = [arm for arm in plan.arms if plan.export.member in arm.trains]
    several = len(plan.seeds) > 1 and "exported_seed" in result and not plan.arm(plan.export.arm).once
    why = "the best on the validation images" if plan.export.seed == "best" else "the first one"
    said = [plan.export.arm] if len(arms) > 1 else []
    return ", ".join([*said, *([f"seed {result['exported_seed']}", why] if several else [])])


def remarks(result: Mapping[str, Any]) -> list[Diagnostic]:
    """What there was to say of what came out of training, each once."""
    found = (Diagnostic(**remark) for arm in result["arms"] for remark in arm.get("remarks", ()))
    return list(dict.fromkeys(found))


def allowed(budget: Budget) -> str:
    """What a member may cost: ``52 M MACs``."""
    what, most = budget.limit
    return f"{count(most)} {'MACs' if what == 'macs' else what}"

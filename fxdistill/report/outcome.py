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


def remarks(result: Mapping[str, Any]) -> list[Diagnostic]:
    """What there was to say of what came out of training, each once."""
    found = (Diagnostic(**remark) for arm in result["arms"] for remark in arm.get("remarks", ()))
    return list(dict.fromkeys(found))


def allowed(budget: Budget) -> str:
    """What a member may cost: ``52 M MACs``."""
    what, most = budget.limit
    return f"{count(most)} {'MACs' if what == 'macs' else what}"

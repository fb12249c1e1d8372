"""What ``result.json`` must have, for whoever reads it: runs are copied, edited and come from others."""

import json
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # typing's own will do from Python 3.12 on

from fxdistill.diagnostics import Diagnostic
from fxdistill.measure.differences import Difference
from fxdistill.measure.parity import Parity
from fxdistill.plan.document import Plan
from fxdistill.plan.training import CONTROL


class _Latency(TypedDict):
    median_ms: float
    provider: str


class _Summary(TypedDict):
    mean: float
    deviation: float


class _Arm(TypedDict):
    name: str
    remarks: NotRequired[list[Diagnostic]]
    epochs: NotRequired[dict[str, Annotated[int, Field(strict=True)]]]


class _Outcome(TypedDict):
    metric: str
    members: dict[str, dict[str, float]]
    arms: list[_Arm]
    summary: dict[str, _Summary]
    differences: NotRequired[dict[str, Difference]]
    exported_seed: NotRequired[Annotated[int, Field(strict=True)]]
    parity: Parity
    latency: dict[str, _Latency]
    levels: NotRequired[dict[str, dict[str, float]]]


_OUTCOME = TypeAdapter(_Outcome)
"""What a result must have, for whoever shows it."""


def parsed(text: str) -> dict[str, Any]:
    """A result as it was written.

    Raises:
        ValueError: It is no JSON, or lacks what it must have, which a ``pydantic.ValidationError`` names.
    """
    result: dict[str, Any] = json.loads(text, parse_constant=_no_number)
    _OUTCOME.validate_json(text, strict=True)  # what is used is the JSON: a text is no number in it
    return result


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def odd(result: dict[str, Any], plan: Plan) -> str:
    """Whom a result speaks of that its plan does not have, or the other way round; '' where they agree."""
    arms = {arm.name for arm in plan.all_arms}
    known = {
        "members": set(plan.members),
        "levels": set(plan.members),
        "latency": set(plan.members),
        "summary": arms,
        "differences": arms,
    }
    for field, names in known.items():
        if odd := sorted(result.get(field, {}).keys() - names):
            return f"{field} names '{odd[0]}', which the plan has not"
    for name, found in result.get("differences", {}).items():
        if (found["low"] is None) != (found["high"] is None):
            return f"differences gives one end of the interval of '{name}'"
    if plan.export.member not in result["latency"]:
        return f"latency lacks the exported member, {plan.export.member}"
    compared = (plan.control.of, CONTROL) if plan.control is not None and result["summary"] else ()
    if missing := [arm for arm in compared if arm not in result["summary"]]:
        return f"summary lacks the arm '{missing[0]}'"
    return ""

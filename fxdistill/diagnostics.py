"""What a pass has to say to the user, as data: one :class:`Diagnostic` each, collected and never printed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from fxdistill.errors import line

Severity = Literal["note", "warning", "error"]


class Diagnostic(BaseModel):
    """One remark about a model or a plan.

    Attributes:
        code: A stable kebab-case name, e.g. ``opaque-node``; they stand in ``docs/reference/diagnostics.md``.
        severity: ``note`` (good to know), ``warning`` (the result may not be what you want), ``error``.
        where: The node path, file or plan field that it is about.
        why: What was found.
        hint: What can be done about it; empty where nothing needs doing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    code: str
    severity: Severity
    where: str
    why: str
    hint: str = ""

    @field_validator("where", "why", "hint")
    @classmethod
    def _is_one_line(cls, text: str) -> str:
        return line(text)

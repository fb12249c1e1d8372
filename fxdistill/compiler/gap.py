"""The gap between teacher and student, and whether an assistant should stand in it.

Slicing a tap of the teacher to the student's width keeps one in r of its channels, r being how many times as wide it
is. Where r is large, what is kept says little of the rest, and an assistant of a size between the two teaches better
(Mirzadeh et al., AAAI 2020; InDistill's auxiliary teacher). The one that is proposed has taps of the geometric mean of
both widths, so that neither step is wider than the other:

    t channels  →  √(t s)  →  s          one in √r is kept twice, instead of one in r once

Only widths decide: a teacher that is as wide and deeper is no matter for a narrower one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.graph import Traced
from fxdistill.plan.schema import Pair

WIDE = 4.0
"""From here on one is proposed: taps as many times as wide as the student's, on the geometric mean."""


@dataclass(frozen=True)
class Gap:
    """How many times as large a teacher is as a student.

    Attributes:
        widths: Its paired taps, on the geometric mean; 1 where there are none.
        parameters: Its parameters.
        macs: Its multiply-accumulates.
    """

    widths: float
    parameters: float
    macs: float

    @property
    def is_wide(self) -> bool:
        """Whether an assistant of a width between is proposed."""
        return self.widths >= WIDE

    def __str__(self) -> str:
        return (
            f"the teacher's paired layers are {self.widths:.3g} times as wide as the student's, with "
            f"{self.parameters:.3g} times the parameters and {self.macs:.3g} times the MACs"
        )


def between(teacher: nn.Module, student: nn.Module, traced: tuple[Traced, Traced], pairs: Sequence[Pair]) -> Gap:
    """The gap between two models; neither is changed."""
    ratios = [math.log(pair.teacher.width / pair.student.width) for pair in pairs]
    sizes = [sum(p.numel() for p in module.parameters()) for module in (teacher, student)]
    return Gap(
        widths=math.exp(sum(ratios) / len(ratios)) if ratios else 1.0, parameters=sizes[0] / max(1, sizes[1]),
        macs=traced[0].macs / max(1, traced[1].macs),
    )  # fmt: skip


def middle(pair: Pair) -> int:
    """The width between those of a pair's taps."""
    return max(pair.student.width, round(math.sqrt(pair.teacher.width * pair.student.width)))


def proposed(gap: Gap) -> Diagnostic:
    """A remark on the assistant that was proposed."""
    return _note(f"{gap}: one is made of the teacher with the widths between, which learns from it and then teaches")


def needless(gap: Gap, because: str = "") -> Diagnostic:
    """A remark where none was proposed."""
    reason = because or f"from {WIDE:g} times on one is proposed, so the teacher itself teaches"
    return _note(
        f"{gap}: {reason}", hint="" if gap.is_wide else "name a model of yours to have one all the same: --via MODEL"
    )


def given(epochs: int) -> Diagnostic:
    """A remark on the assistant that the user gave."""
    if not epochs:
        return _note(
            "it is trained, and teaches as it is", hint="to have it learn from the teacher first: --via-epochs"
        )
    return _note(f"it learns from the teacher for {epochs} epoch{'s' if epochs > 1 else ''}, and then teaches")


def chosen_early() -> Diagnostic:
    """A remark on channels of the assistant that the user gave, where that has yet to be trained."""
    return _note(
        "its weights are random, and which of its channels the student learns is chosen before it learns itself: they "
        "say nothing of what a channel will be worth",
        hint="train it first and give its file, or add --align project, which chooses none",
    )


def _note(why: str, *, hint: str = "") -> Diagnostic:
    return Diagnostic(code="assistant", severity="note", where="--via", why=why, hint=hint)

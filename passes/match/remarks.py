"""Remarks: what stands in the way of a pair, and what is said of that which was not paired, or not as asked."""

from collections.abc import Iterator

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import PairingError
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import path_of, shape_of
from fxdistill.passes.match.blocks import Candidate
from fxdistill.passes.match.candidates import Survey
from fxdistill.plan.schema import Align, Pair

Pairing = tuple[Candidate, Candidate]
Stages = list[list[Candidate]]


def obstacle(teacher: Candidate, student: Candidate) -> str:
    """Why two values cannot be brought to one shape, channels aside; '' where they can."""
    taps = teacher.tap, student.tap
    layouts = {tap.layout for tap in taps}
    if "features" in layouts:
        return "" if layouts == {"features"} else "one is a vector, the other a feature map or a token sequence"
    if (teacher.grid and student.grid) or (layouts == {"tokens"} and taps[0].shape[1] == taps[1].shape[1]):
        return ""
    role, bare = ("student", student) if teacher.grid else ("teacher", teacher)
    return f"the {role}'s {_no_grid(bare)}"


def _no_grid(candidate: Candidate) -> str:
    return (
        f"{candidate.size} form no square grid, with or without what stands before it, so that they can be compared "
        "with token sequences of the same length only"
    )


def locked(path: str, coupling: Coupling) -> list[int]:
    """The classes of a tap's channels that cannot be removed, one for each channel. A slice removes none."""
    return [class_id for class_id in coupling.classes(path) if class_id in coupling.locks]


def projected(pairs: list[Pair], align: Align, coupling: Coupling) -> Iterator[Diagnostic]:
    """One remark for each pair that cannot be aligned as asked, with the reason in the teacher."""
    for pair in pairs:
        if pair.align == align:
            continue
        wide = f"the teacher's '{pair.teacher.path}' has {pair.teacher.width} channels, the student's "
        wide += f"'{pair.student.path}' has {pair.student.width}: "
        hint = "pin another pair with --pair, or forbid this one with --forbid"
        if pair.teacher.width < pair.student.width:
            why = f"{wide}no slice is possible, so it is 'project'"
            yield Diagnostic(code="teacher-narrower", severity="warning", where=pair.name, why=why, hint=hint)
        else:
            stay = locked(pair.teacher.path, coupling)
            why = f"{wide}{len(stay)} of them must stay, so it is 'project'; a channel {coupling.locked(stay[0])}"
            hint = f"{hint}, or use --align slice, which changes no teacher"
            yield Diagnostic(code="teacher-locked", severity="warning", where=pair.name, why=why, hint=hint)


def unpaired(role: str, stages: Stages, pairings: list[Pairing]) -> Iterator[Diagnostic]:
    """One remark for each stage that could have been paired and was not; one for all tokens without a grid."""
    used = [pairing[role == "student"] for pairing in pairings]
    paths = {c.path for c in used}
    alone = [s for s in stages if not any(c.path in paths for c in s) and s[0].layers not in {c.layers for c in used}]
    for stage in alone:
        other = "student" if role == "teacher" else "teacher"
        yield Diagnostic(
            code="unpaired-stage", severity="note", where=stage[0].path,
            why=f"the {role}'s stage at {stage[0].size}, ending in '{stage[0].path}', "
            f"has no counterpart in the {other}",
            hint="pin one with --pair TEACHER=STUDENT if it should be learnt",
        )  # fmt: skip
    firsts = [stage[0] for stage in stages if stage[0].path not in paths]
    bare = [c for c in firsts if c.tap.layout == "tokens" and c.grid is None]
    if bare:
        yield Diagnostic(
            code="no-token-grid", severity="warning", where=bare[0].path, why=f"the {role}'s {_no_grid(bare[0])}",
            hint="choose a model of square images whose other tokens stand before those of the image",
        )  # fmt: skip


def unlike(role: str, survey: Survey) -> Iterator[Diagnostic]:
    """One remark on layers that are no taps because of the form of what they make."""
    if found := survey.unlike:
        shape = "x".join(map(str, shape_of(found[0]) or ()))
        yield Diagnostic(
            code="no-tap", severity="note", where=path_of(found[0]),
            why=f"what {len(found)} of the {role}'s layers make, here {shape}, is none of (N, C, H, W), (N, H, W, C), "
            "(N, tokens, C) and (N, C), so they are paired with nothing",
        )  # fmt: skip


def no_pair(teacher: Survey, student: Survey) -> PairingError:
    """The refusal where nothing can be paired, with what there was to pair."""
    ends = [[stage[0] for stage in survey.stages] for survey in (teacher, student)]
    obstacles = [obstacle(t, s) for t in ends[0] for s in ends[1]]
    reason = f": {obstacles[-1]}" if obstacles and all(obstacles) else ""
    told = [", ".join(c.path for c in side) or "none" for side in ends]
    return PairingError(
        f"no teacher node can be paired with a student node{reason}",
        where=f"candidates of the teacher: {told[0]}; of the student: {told[1]}",
        hint="pin a pair with --pair TEACHER=STUDENT",
    )

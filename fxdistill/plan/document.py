"""The plan: everything that a run does, as reviewable data.

A plan is JSON: versioned, validated, without tensors and without code. ``run`` does what it says and nothing that it
does not say; there are no hidden defaults, because writing a plan spells every default out. The same inputs and seed
give the same bytes. Models are bound by the sha256 of their files.

    plan = members + task + data + pairs (with evidence) + kept channels + arms (+ the control arm) + export

**Members** are models by name: given (a file, a factory), or made from another member (a shrunken teacher). A **pair**
is two taps, each of a member. An **arm** trains some members, stage by stage; every other member that its losses read
is frozen. The **control arm** is derived: the same members, for as many epochs, with the task's own loss alone.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import PlanError
from fxdistill.plan import consistency
from fxdistill.plan.members import Masked, Member
from fxdistill.plan.schema import (
    DataPlan,
    ExportPlan,
    InputSpec,
    Kept,
    MemberName,
    ModelRef,
    Pair,
    Part,
    Plugin,
    Precision,
    Seed,
)
from fxdistill.plan.training import CONTROL, Arm, Control, Recalibration, Stage
from fxdistill.preprocessing import PLAIN, Preprocessing, Reading, View
from fxdistill.registry import suggestion
from fxdistill.tasks import TASKS

VERSION: Literal[3] = 3


class Plan(Part):
    """A whole plan. See the module docstring."""

    version: Literal[3]
    method: str
    task: str = "classification"
    seed: Seed
    members: Annotated[dict[MemberName, Member], Field(min_length=1)]
    input: InputSpec
    data: DataPlan
    pairs: list[Pair]
    kept: list[Kept]
    arms: Annotated[list[Arm], Field(min_length=1)]
    control: Control | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)]
    precision: Precision = "32-true"
    recalibration: Recalibration | None = None
    export: ExportPlan = ExportPlan()
    costed: str = ""
    plugins: list[Plugin] = []
    diagnostics: list[Diagnostic] = []
    versions: dict[str, str] = {}

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, name: str) -> str:
        if name not in TASKS.names():
            raise ValueError(f"there is no task named '{name}'; {suggestion(name, TASKS.names(), 'known are')}")
        return name

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        if wrong := list(consistency.wrong(self)):
            raise ValueError("; ".join(dict.fromkeys(wrong)))
        return self

    def kept_for(self, pair: str) -> Kept | None:
        """The kept channels of a pair, None where it is not sliced."""
        return next((kept for kept in self.kept if kept.pair == pair), None)

    @property
    def idle(self) -> tuple[str, ...]:
        """The pairs that no stage compares."""
        compared = {term.pair for arm in self.all_arms for stage in arm.stages for term in stage.losses}
        return tuple(pair.name for pair in self.pairs if pair.name not in compared)

    def arm(self, name: str) -> Arm:
        """An arm by name; the control arm with the epochs of the arm beside it.

        Raises:
            PlanError: There is none; lists those that there are.
        """
        for arm in self.all_arms:
            if arm.name == name:
                return arm
        known = ", ".join(arm.name for arm in self.all_arms)
        raise PlanError(f"the plan has no arm '{name}'", where="arms", hint=f"its arms are: {known}")

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        """The arms in order, the control arm behind the one that it stands beside."""
        return tuple(_with_control(self))

    def preprocessing_of(self, member: str) -> Preprocessing | None:
        """What a member does to an image before it looks at it: a member that is made does as its original does."""
        found = self.members[member]
        return found.preprocessing if isinstance(found, ModelRef) else self.preprocessing_of(found.of)

    def shape_of(self, member: str) -> tuple[int, ...]:
        """Shape of one batch as a member reads it."""
        found = self.preprocessing_of(member)
        return tuple(self.input.shape) if found is None else (*self.input.shape[:2], *found.size)

    def view_of(self, member: str) -> View:
        """How a member looks at a batch of the plan's input."""
        found = self.preprocessing_of(member)
        return PLAIN if found is None else found.view(self.input.shape[2:])

    def reading_of(self, member: str) -> Reading | None:
        """How image files are read for a member; None where nobody said."""
        found = self.preprocessing_of(member)
        return None if found is None else found.reading(self.input.shape[1])

    @property
    def reading(self) -> Reading | None:
        """How image files are read for training: as the first member does that reads the largest images."""
        found = [one for name in self.members if (one := self.reading_of(name)) is not None]
        return max(found, key=lambda one: one.size[0] * one.size[1], default=None)

    def entry_of(self, member: str) -> str:
        """Which entry of a member's output is its prediction; '' for the whole."""
        found = self.members[member]
        return found.output if isinstance(found, ModelRef) else self.entry_of(found.of)

    def given(self, name: str) -> ModelRef:
        """A member that is given.

        Raises:
            PlanError: There is none of this name, or it is made from another.
        """
        found = self.members.get(name)
        if not isinstance(found, ModelRef):
            raise PlanError(f"the plan has no given member '{name}'", where="members", hint="plan anew")
        return found

    def to_json(self) -> str:
        """The plan's text: stable, every default spelled out, lists of numbers on one line."""
        return _dump(self.model_dump(mode="json")) + "\n"

    @property
    def sha256(self) -> str:
        """Hash of the plan's text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def cost_basis(self) -> str:
        """Hash of what the costs of the stages follow from; equal to ``costed`` unless the plan was edited since."""
        terms = [
            [arm.name, stage.name, term.loss, term.pair, *term.members]
            for arm in self.all_arms
            for stage in arm.stages
            for term in stage.losses
        ]
        levels = [member for member in self.members.values() if isinstance(member, Masked)]
        aside = {"difficulty", "layers", "parameters", "macs"}  # what was measured and counted, for the reader
        parts = [part.model_dump(mode="json", exclude=aside) for part in (*self.pairs, *self.kept, self.input, *levels)]
        basis = [{name: self.shape_of(name) for name in self.members}, terms, parts]
        return hashlib.sha256(json.dumps(basis).encode()).hexdigest()

    def __str__(self) -> str:
        members = ", ".join(self.members)
        stages = "; ".join(f"{arm.name}: {', '.join(map(_stage, arm.stages))}" for arm in self.all_arms)
        pairs = ", ".join(f"{pair.teacher.path} = {pair.student.path}" for pair in self.pairs) or "none"
        return f"Plan of {self.method} for {self.task}: members {members}; pairs {pairs}; epochs of {stages}"

    __repr__ = __str__


def edited(plan: Plan) -> Iterator[Diagnostic]:
    """Notes on what was edited in a plan and has not been edited elsewhere."""
    if plan.costed and plan.costed != plan.cost_basis:
        yield Diagnostic(
            code="stale-cost", severity="note", where="arms",
            why="pairs, kept channels, levels or losses were edited after the costs of the stages were counted: they "
            "are those from before", hint="plan anew to count them; nothing else depends on them",
        )  # fmt: skip
    if (control := plan.control) is None:
        return
    main = next(stage for stage in reversed(plan.arm(control.of).stages) if not stage.extends)
    if (main.optimizer, main.schedule) != (control.optimizer, control.schedule):
        yield Diagnostic(
            code="other-control", severity="note", where="control",
            why=f"the control arm has another optimiser or schedule than the stage '{main.name}' of '{control.of}': "
            "the difference between the two arms is not that of distillation alone",
            hint="give control.optimizer and control.schedule what the stage has",
        )  # fmt: skip


def _stage(stage: Stage) -> str:
    return f"{stage.name} ({stage.epochs})"


def _with_control(plan: Plan) -> Iterator[Arm]:
    for arm in plan.arms:
        yield arm
        if plan.control is not None and plan.control.of == arm.name:
            control = plan.control
            own = Stage(
                name=CONTROL, epochs=sum(stage.epochs for stage in arm.stages if not stage.extends),
                losses=control.losses, optimizer=control.optimizer, schedule=control.schedule, cost=control.cost,
            )  # fmt: skip
            more = [stage for stage in arm.stages if stage.extends]
            stages = [own, *(own.changed(name=stage.name, epochs=stage.epochs, extends=True) for stage in more)]
            yield Arm(name=CONTROL, trains=arm.trains, stages=stages, once=arm.once)


def _dump(value: object, indent: int = 0) -> str:
    """JSON with one entry a line, except that a list of plain values stays on one line: made for diffs."""
    pad, inner = "  " * indent, "  " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = (f"{inner}{json.dumps(key)}: {_dump(item, indent + 1)}" for key, item in value.items())
        return "{\n" + ",\n".join(rows) + f"\n{pad}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_dump(item, indent + 1)}" for item in value) + f"\n{pad}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

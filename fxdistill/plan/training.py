"""How the members of a plan are trained: optimisers, terms, stages, arms, the control arm.

arm   = members that it trains + stages, one after the other
stage = epochs + an optimiser that starts afresh + loss = sum of weight * decay ** epoch * term
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from fxdistill.arguments import Arguments
from fxdistill.errors import InputError
from fxdistill.losses import LOSSES, Loss
from fxdistill.plan.schema import MOST_EPOCHS, ArmName, Epochs, MemberName, Name, Part, PositiveInt
from fxdistill.registry import suggestion

Schedule = Literal["constant", "cosine", "step"]
Comparison = Literal["raw", "standardized", "running", "normalized", "released"]
MOST_RATE, MOST_WEIGHT = 100, 1_000_000_000
CONTROL = "control"
"""The name of the control arm."""


class Optimizer(Part):
    """How the weights move: a torch optimiser by name, with its arguments, and what is done about its steps.

    Attributes:
        nesterov: Whether sgd's momentum looks ahead.
        warm_up: Epochs over which the learning rate rises, from step to step, in a line from 0 to that of the schedule;
            the schedule runs over the rest of the stage.
        floor: The share of the learning rate at which a cosine ends.
        decay_every: With the schedule ``step``: epochs between two factors.
        decay: That factor.
        clip: Gradients longer than this, all together, are shortened to it; None for never.
        ema: The share of a running mean of the weights that a step keeps; 0 for none. The mean is what is evaluated,
            and what the stage ends with.
        restart: Whether it forgets, with every epoch, what it keeps of steps before: moments, a momentum.
    """

    name: Literal["sgd", "adam", "adamw"]
    lr: Annotated[float, Field(gt=0, le=MOST_RATE)]
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    warm_up: Annotated[float, Field(ge=0, le=MOST_EPOCHS)] = 0.0
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    decay_every: Epochs = 30
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    clip: Annotated[float, Field(gt=0, le=1e9)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    restart: bool = False

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Self:
        if self.momentum and self.name != "sgd":
            raise ValueError(f"'{self.name}' takes no momentum; it is for sgd")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is about a momentum, and there is none; give sgd one")
        return self


class ScoreOptimizer(Part):
    """How the scores behind masks move; their rate follows the schedule of the stage, and they do not decay.

    Attributes:
        momentum: Of either.
        until: The share of the stage's steps in which they move; then masks stand still, and weights settle to them.
    """

    name: Literal["sgd", "rmsprop"]
    lr: Annotated[float, Field(gt=0, le=1e6)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    until: Annotated[float, Field(gt=0, le=1)] = 1.0


class LossTerm(Part):
    """One loss of a stage.

    Attributes:
        loss: Its name.
        pair: The pair whose taps it compares. None for a loss that reads none; one that compares how images lie to each
            other reads the members' answers then, which are their embeddings.
        compare: What it reads of the taps: the values as they are (``raw``); less the mean, over the standard
            deviation, of their channel over batch and positions (``standardized``), or the teacher's by statistics that
            are measured once over training images (``running``); those of each image over their root
            mean square (``normalized``); or the teacher's as its last BatchNorm would make it from the batch, with no
            offset (``released``): how InDistill's released code does it. See :mod:`fxdistill.ir.adapters`.
        student: The member in the role of the student, None where the loss does not read it.
        teacher: The member in the role of the teacher, None where the loss does not read it. It learns nothing from
            being imitated: where the arm trains it as well, the loss has no gradient in it.
        weight: Factor in the sum.
        decay: What the weight is multiplied by with every epoch of the stage.
        args: Its arguments, every default spelled out.
    """

    loss: str
    pair: str | None = None
    compare: Comparison = "raw"
    student: MemberName | None = None
    teacher: MemberName | None = None
    weight: Annotated[float, Field(ge=0, le=MOST_WEIGHT)] = 1.0
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    args: dict[str, JsonValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, data: Any) -> Any:
        """Fill in what the loss says of itself: the roles that it reads, the defaults of its arguments."""
        if not isinstance(data, dict) or not isinstance(data.get("loss"), str):
            return data
        loss = _known_loss(data["loss"])
        roles = {role: data.get(role) or role for role in loss.roles}
        unread = [role for role in ("student", "teacher") if role not in roles and data.get(role)]
        if unread:
            raise ValueError(f"the loss '{data['loss']}' reads nothing of a {unread[0]}")
        paired = data.get("pair") is not None
        if loss.reads_taps != paired and not loss.of_images:
            raise ValueError(f"the loss '{data['loss']}' needs {'a pair' if loss.reads_taps else 'no pair'}")
        if not paired and len(set(roles.values())) < len(roles):
            raise ValueError(f"the loss '{data['loss']}' compares '{roles['student']}' with itself")
        if not paired and data.get("compare", "raw") != "raw":
            raise ValueError(f"the loss '{data['loss']}' reads no pair, of which it could compare something else")
        return {**data, **roles, "args": _full_arguments(data["loss"], loss, data.get("args") or {})}

    @property
    def name(self) -> str:
        """The term's name in metrics: ``mse[pair]``, ``kd``."""
        return f"{self.loss}[{self.pair}]" if self.pair is not None else self.loss

    @property
    def members(self) -> tuple[str, ...]:
        """The members that it reads."""
        return tuple(member for member in (self.student, self.teacher) if member is not None)

    @property
    def is_succeeded(self) -> bool:
        """Whether its teacher may be replaced while a stage goes on; that of a pair stays."""
        return self.teacher is not None and self.pair is None

    @property
    def plain(self) -> Self:
        """The same loss, whatever its weight: the same value for the same batch."""
        return self.changed(weight=1.0, decay=1.0)


def _known_loss(name: str) -> Loss:
    try:
        return LOSSES.get(name)
    except InputError as cause:
        raise ValueError(f"{cause.what}; {cause.hint}") from cause


def _full_arguments(name: str, loss: Loss, given: Any) -> dict[str, Any]:
    """The arguments of a loss, validated, with the defaults of those that are not given."""
    model: type[Arguments] = loss.arguments or Arguments
    try:
        return model.model_validate(given).model_dump(mode="json")
    except ValidationError as cause:
        first = cause.errors()[0]
        argument = ".".join(map(str, first["loc"])) or "arguments"
        if first["type"] == "extra_forbidden":
            known = suggestion(argument, tuple(model.model_fields), "its arguments are")
            raise ValueError(f"the loss '{name}' has no argument '{argument}'; {known}") from None
        raise ValueError(f"the loss '{name}', {argument} = {first['input']!r}: {first['msg'].lower()}") from None


class Plateau(Part):
    """When a stage ends before its epochs are over: where its loss, over an epoch of training, no longer falls.

    That is the weighted sum of its terms, by the weights of its first epoch. The epochs that it leaves are the main
    stage's: the last one of the arm that extends nothing.

    Attributes:
        share: The share that it has to fall by, of what it was when it last fell by so much.
        epochs: The stage ends where it has not in so many epochs, taken together.
    """

    share: Annotated[float, Field(gt=0, lt=1)]
    epochs: Epochs = 1


class Stage(Part):
    """Some epochs under one set of losses, with an optimiser that starts fresh.

    Attributes:
        epochs: How many; with a plateau, at most.
        plateau: When it ends earlier; None for never.
        schedule: Learning rate over the stage: ``constant``, half a ``cosine`` down to the optimiser's floor, or by a
            factor every few epochs: ``step``.
        cost: MACs of the stage's program for one image, as a share of all given members in full.
        extends: Whether it was added to an arm that had been trained: the control arm then gets a stage of as many
            epochs as well, instead of a longer one.
        scores: How the scores of masked members move; None where none are trained.
        successors: Members that take the teacher's place in its losses, one after the other: with the epoch after which
            the arm's first member is better than its teacher on the validation images. Without these nobody does. The
            teacher of a pair stays who it is.
    """

    name: Name
    epochs: Epochs
    losses: Annotated[list[LossTerm], Field(min_length=1)]
    optimizer: Optimizer
    schedule: Schedule = "constant"
    cost: Annotated[float, Field(ge=0)] = 1.0
    extends: bool = False
    plateau: Plateau | None = None
    scores: ScoreOptimizer | None = None
    successors: list[MemberName] = []

    def under(self, taught: int) -> Self:
        """The stage once so many successors have taken the teacher's place; it has no more of them."""
        if not taught:
            return self.changed(successors=[])
        now = self.successors[taught - 1]
        losses = [term.changed(teacher=now) if term.is_succeeded else term for term in self.losses]
        return self.changed(losses=losses, successors=[])

    @model_validator(mode="after")
    def _succession_is_clear(self) -> Self:
        teachers = [term.teacher for term in self.losses if term.is_succeeded]
        if self.successors and len(set(teachers)) != 1:
            raise ValueError(
                f"the stage '{self.name}' names successors: its losses that compare no pairs then have one teacher"
            )
        if len(set(names := [*teachers[:1], *self.successors])) != len(names):
            raise ValueError(f"a teacher of the stage '{self.name}' succeeds itself")
        return self

    @model_validator(mode="after")
    def _weighs(self) -> Self:
        if not any(term.weight > 0 for term in self.losses):
            raise ValueError(f"every loss of the stage '{self.name}' has the weight 0, so that nothing is learnt")
        if self.optimizer.warm_up >= self.epochs:
            raise ValueError(
                f"the learning rate of the stage '{self.name}' would rise over {self.optimizer.warm_up:g} of "
                f"{self.epochs} epochs; warm_up has to be shorter than the stage"
            )
        return self


def lengths(stages: Sequence[Stage], taken: Sequence[int] = ()) -> list[int]:
    """How many epochs each stage has, where the first ones took so many: the main one has those that they left."""
    found = [*taken, *(stage.epochs for stage in stages[len(taken) :])]
    heir = max((place for place, stage in enumerate(stages) if not stage.extends), default=0)
    if len(taken) <= heir < len(stages):
        found[heir] += sum(stage.epochs for stage in stages[: len(taken)]) - sum(taken)
    return found


def longest(stages: Sequence[Stage]) -> list[int]:
    """How many epochs each stage can have at most: the main one where all others end as soon as they can."""
    most = lengths(stages, [1 if stage.plateau else stage.epochs for stage in stages if not stage.extends][:-1])
    return [max(stage.epochs, found) for stage, found in zip(stages, most, strict=True)]


class Arm(Part):
    """One training: the members that it trains, and its stages.

    Attributes:
        name: Its name.
        trains: The members that it trains, the one that it is measured by first.
        stages: Its stages, in order.
        once: Whether it is trained once, under the plan's own seed; else under each of its seeds.
    """

    name: ArmName
    trains: Annotated[list[MemberName], Field(min_length=1)]
    stages: Annotated[list[Stage], Field(min_length=1)]
    once: bool = False

    @model_validator(mode="after")
    def _extensions_come_last(self) -> Self:
        extends = [stage.extends for stage in self.stages]
        if extends[0] or extends != sorted(extends):
            raise ValueError(f"the arm '{self.name}' has a stage that extends nothing: such stages come last")
        main = [stage for stage in self.stages if not stage.extends][-1]
        if late := [stage.name for stage in self.stages if stage.plateau and (stage is main or stage.extends)]:
            raise ValueError(
                f"the stage '{late[0]}' of the arm '{self.name}' ends on a plateau, and no main stage follows that "
                "would have the epochs that it leaves"
            )
        if max(longest(self.stages)) > MOST_EPOCHS:
            raise ValueError(f"the arm '{self.name}' has more than {MOST_EPOCHS} epochs, which its main stage may get")
        return self

    @property
    def members(self) -> tuple[str, ...]:
        """The members that take part, those that are trained first."""
        read = [member for stage in self.stages for term in stage.losses for member in term.members]
        later = (member for stage in self.stages for member in stage.successors)
        return tuple(dict.fromkeys((*self.trains, *read, *later)))


class Control(Part):
    """The control arm: an arm's members, for as many epochs, with losses that need no teacher.

    Attributes:
        of: The arm beside which it stands. It starts as that arm does and trains for as many epochs.
    """

    of: ArmName
    losses: Annotated[list[LossTerm], Field(min_length=1)]
    optimizer: Optimizer
    schedule: Schedule = "cosine"
    cost: Annotated[float, Field(ge=0)] = 1.0


class Recalibration(Part):
    """Whether BatchNorm statistics are estimated anew when an arm is trained, for every arm alike.

    Attributes:
        when: ``disagree``: where evaluation and training mode clearly disagree on training images, and it helps; or
            ``always``.
        images: Over so many training images, or all that there are.
    """

    when: Literal["disagree", "always"] = "disagree"
    images: PositiveInt = 2048

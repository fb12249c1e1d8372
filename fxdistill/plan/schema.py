"""The parts of a plan: members, taps, pairs, kept channels, terms, stages, arms; see :mod:`fxdistill.plan.document`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from fxdistill import classnames
from fxdistill.arguments import Arguments
from fxdistill.data import augmentations
from fxdistill.errors import InputError
from fxdistill.losses import LOSSES, Loss
from fxdistill.preprocessing import Preprocessing
from fxdistill.registry import GROUPS, suggestion

Align = Literal["slice", "shrink", "project", "kept"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Layout = Literal["nchw", "nhwc", "tokens", "features"]
Schedule = Literal["constant", "cosine", "step"]
Rung = Literal["symbolic", "leaves", "export"]
Comparison = Literal["raw", "standardized", "running", "normalized", "released"]
PositiveInt = Annotated[int, Field(gt=0)]
MOST_EPOCHS = 1_000_000
MOST_PIXELS = 1 << 16
Epochs = Annotated[int, Field(gt=0, le=MOST_EPOCHS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
MemberName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=60)]
ArmName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*([-+][a-z0-9]+)*$", max_length=60)]
_FORM: dict[str, tuple[int, int]] = {"nchw": (4, 1), "nhwc": (4, 3), "tokens": (3, 2), "features": (2, 1)}
"""Number of dimensions and the channels' dimension of each layout."""


class Part(BaseModel):
    """A part of a plan: strict, frozen, nothing else allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def changed(self, **update: Any) -> Self:
        """The same with other values, validated like any."""
        return type(self).model_validate({**{name: getattr(self, name) for name in type(self).model_fields}, **update})


class ModelRef(Part):
    """A member that is given: where its model comes from.

    Attributes:
        path: The file, relative to the plan; None for a factory alone (random weights under the plan's seed).
        sha256: Hash of that file.
        factory: ``module:function`` that builds the architecture; None for a ``.pt2`` or a trusted pickle.
        kwargs: Keyword arguments of the factory.
        entry: The entry of a checkpoint that the weights were taken from; '' for the whole file.
        trusted: Whether the user allowed the file to be unpickled.
        rung: How the model was traced.
        output: Which entry of a structured output is the prediction: ``logits``, ``1``; '' for the whole.
        head: The last layer, which is left away so that the member answers with its embedding; '' for none.
        preprocessing: What it does to an image before it looks at it; None for a structural plan, where nobody said.
    """

    kind: Literal["model"] = "model"
    path: str | None
    sha256: str | None
    factory: str | None
    kwargs: dict[str, JsonValue] = {}
    entry: str = ""
    trusted: bool = False
    rung: Rung = "symbolic"
    output: str = ""
    head: str = ""
    preprocessing: Preprocessing | None = None
    parameters: Count = 0
    macs: Count = 0


class Shrunken(Part):
    """A member that is made: another one, really smaller. InDistill's auxiliary teacher is one.

    Attributes:
        of: The member that it is made from.
        kept: For each weight that gets smaller, the output indices that it keeps.
        widths: Outputs of each of these weights before, for the reader.
        taps: For each pair whose tap gets narrower, its width before, for the reader.
        barriers: Nodes and parameters whose channels all stay.
        criterion: By which importance the channels were chosen, for the reader.
        rung: How the original was traced for this.
    """

    kind: Literal["shrunken"] = "shrunken"
    of: MemberName
    kept: dict[str, Annotated[list[Count], Field(min_length=1)]]
    widths: dict[str, PositiveInt] = {}
    taps: dict[str, PositiveInt] = {}
    barriers: list[str] = []
    criterion: str = ""
    rung: Rung = "symbolic"
    parameters: Count = 0
    macs: Count = 0


class InputSpec(Part):
    """What programs read: shape of one batch of pixels (its first entry is the batch size used for planning).

    Members whose preprocessing has another size resize it: :class:`fxdistill.preprocessing.View`.
    """

    shape: Annotated[list[Annotated[int, Field(gt=0, le=MOST_PIXELS)]], Field(min_length=2)]


class Division(Part):
    """A split that is set aside from the training images: :mod:`fxdistill.data.division`.

    Attributes:
        share: The share of them; 0 for a split that the data has of its own.
        seed: What is drawn under.
    """

    share: Annotated[float, Field(ge=0, lt=1)]
    seed: Seed = 0


class DataPlan(Part):
    """The data and its augmentation. How pixels are normalised is each member's own: its preprocessing.

    Attributes:
        spec: ``digits``, ``cifar10:ROOT`` …; None for a structural plan, which cannot be run.
        batch_size: Images a training step at most; see :mod:`fxdistill.data.batches`.
        augmentation: Names of augmentations, applied in order: ``flip``, ``crop:PADDING``.
        views: How many ways of looking at an image the augmentation draws: those of epoch ``e`` are those of epoch
            ``e`` modulo this number. None for new ones in every epoch.
        classes: Class names in label order; empty where the task has none.
        train_size: Number of training images; 0 where it is not known.
        mapped: Whether the classes are those of the models, and the data's are found among them by name.
        labelled: Whether training images have labels; without, no loss may read them.
        test: The test images that are set aside from data that is one split; None for those of the data.
        val: The images that training is watched by, of the data or set aside; None for the test images.
    """

    spec: str | None
    batch_size: Annotated[int, Field(gt=0, le=1 << 20)] = 128
    augmentation: list[str] = []
    views: Epochs | None = None
    classes: list[str] = []
    train_size: Count = 0
    mapped: bool = False
    labelled: bool = True
    test: Division | None = None
    val: Division | None = None

    @field_validator("classes")
    @classmethod
    def _classes_are_told_apart(cls, names: list[str]) -> list[str]:
        if wrong := classnames.wrong(names):
            raise ValueError(wrong)
        return names

    @model_validator(mode="after")
    def _augmentation_is_known(self) -> Self:
        try:
            augmentations.check(self.augmentation)
        except InputError as cause:
            raise ValueError(f"{cause.what}; {cause.hint}") from cause
        return self


class Tap(Part):
    """A node of a member whose value is compared: path, shape, channel dimension and layout.

    Attributes:
        class_token: Whether a sequence of tokens begins with one that is no position.
        registers: How many more such tokens follow it (registers, a distillation token) before the first position.
    """

    member: MemberName
    path: str
    shape: list[PositiveInt]
    channel_dim: Count
    width: PositiveInt
    layout: Layout
    class_token: bool = False
    registers: Count = 0

    @property
    def prefix(self) -> int:
        """How many tokens stand before the first position."""
        return self.class_token + self.registers

    @model_validator(mode="after")
    def _shape_holds(self) -> Self:
        rank, dim = _FORM[self.layout]
        if (len(self.shape), self.channel_dim) != (rank, dim):
            raise ValueError(f"the layout '{self.layout}' has {rank} dimensions, the channels in dimension {dim}")
        if self.shape[dim] != self.width:
            raise ValueError(f"the width is {self.width}, the shape {self.shape} has {self.shape[dim]} channels")
        if self.registers and (not self.class_token or self.prefix >= self.shape[1]):
            raise ValueError(f"{self.registers} registers need a class token before them, and tokens behind them")
        return self


class RunnerUp(Part):
    """The second-best teacher node for a student node."""

    teacher: str
    score: float


class Pair(Part):
    """Two taps that are brought together, with the evidence for it: the one that teaches and the one that learns.

    Attributes:
        align: How the two widths become one: the teacher's kept channels (``slice``), a teacher that was made as wide
            (``shrink``), a learned projection of the student's (``project``), or the teacher's channels that are left
            of the student once it is cut out of a masked member, both widths being those before (``kept``).
        difficulty: What a probe of the untrained student leaves unexplained of the teacher's tap, as a share of its
            variance (:mod:`fxdistill.compiler.probe`), for the reader; None where nothing was measured.
    """

    name: Name
    teacher: Tap
    student: Tap
    score: float
    runner_up: RunnerUp | None
    why: list[str]
    align: Align
    difficulty: Annotated[float, Field(ge=0)] | None = None


class Kept(Part):
    """The teacher channels that a pair keeps (sorted), of how many, by which criterion, coupled with what."""

    pair: str
    path: str
    channels: list[Count]
    width: PositiveInt
    criterion: str
    coupled: list[str]


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
    lr: Annotated[float, Field(gt=0, le=100)]
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
    weight: Annotated[float, Field(ge=0, le=1e9)] = 1.0
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
        once: Whether it is trained once, under the first seed; else under every seed.
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


class ExportPlan(Part):
    """The ONNX file and its gate.

    Attributes:
        member: Which member is exported.
        arm: As which arm trained it.
        seed: Under which seed: the ``first`` one, or the one that is ``best`` on the validation images.
        outputs: Which outputs; all where empty.
        levels: Whether the assistants of a cascade are cut out and exported as well, as the joint phase leaves them.
    """

    member: MemberName = "student"
    arm: ArmName = "distilled"
    seed: Literal["first", "best"] = "first"
    opset: PositiveInt = 18
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    outputs: list[str] = []
    levels: bool = False


class Plugin(Part):
    """A name that does not come with this package: what it is, and what has to be installed for it."""

    kind: Annotated[str, Field(pattern=f"^({'|'.join(GROUPS)})$")]
    name: Name
    distribution: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.!+_-]{1,64}$")]

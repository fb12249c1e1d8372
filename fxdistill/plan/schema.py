"""What a plan says before it trains: members, data, taps, pairs, kept channels; see :mod:`fxdistill.plan.document`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from fxdistill import classnames
from fxdistill.data import augmentations
from fxdistill.errors import InputError
from fxdistill.preprocessing import Preprocessing
from fxdistill.registry import GROUPS

Align = Literal["slice", "shrink", "project", "kept"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Layout = Literal["nchw", "nhwc", "tokens", "features"]
Rung = Literal["symbolic", "leaves", "export"]
PositiveInt = Annotated[int, Field(gt=0)]
MOST_EPOCHS = 1_000_000
MOST_SEEDS = 1000
MOST_PIXELS = 1 << 16
Epochs = Annotated[int, Field(gt=0, le=MOST_EPOCHS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
MemberName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=60)]
ArmName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*([-+][a-z0-9]+)*$", max_length=60)]
LAYOUTS: dict[tuple[int, int], Layout] = {(4, 1): "nchw", (4, 3): "nhwc", (3, 2): "tokens", (2, 1): "features"}
"""Each layout by its number of dimensions and the channels' dimension."""


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
            augmentations.named(self.augmentation)
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
        rank, dim = next(form for form, layout in LAYOUTS.items() if layout == self.layout)
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

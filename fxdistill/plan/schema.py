"""The plan: everything that a run does, as reviewable data.

A plan is JSON: versioned, validated, without tensors and without code. ``run`` does what it says and nothing that it
does not say; there are no hidden defaults, because writing a plan spells every default out. The same inputs and seed
give the same bytes. Both models are bound by the sha256 of their files.

    plan = models + input + data + pairs (with evidence) + kept channels (or an auxiliary teacher)
         + stages (+ control stages) + export
"""

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import PlanError

VERSION: Literal[1] = 1
Align = Literal["slice", "shrink", "project"]
ArmName = Literal["auxiliary", "distilled", "control"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Layout = Literal["nchw", "nhwc", "tokens", "features"]
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
_FORM: dict[str, tuple[int, int]] = {"nchw": (4, 1), "nhwc": (4, 3), "tokens": (3, 2), "features": (2, 1)}
"""Number of dimensions and the channels' dimension of each layout."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelRef(_Data):
    """Where a model comes from.

    Attributes:
        path: The file, relative to the plan; None for a factory alone (random weights under the plan's seed).
        sha256: Hash of that file.
        factory: ``module:function`` that builds the architecture; None for a ``.pt2`` or a trusted pickle.
        kwargs: Keyword arguments of the factory.
        entry: The entry of a checkpoint that the weights were taken from; '' for the whole file.
        trusted: Whether the user allowed the file to be unpickled.
        rung: How the model was traced.
    """

    path: str | None
    sha256: str | None
    factory: str | None
    kwargs: dict[str, JsonValue] = {}
    entry: str = ""
    trusted: bool = False
    rung: Literal["symbolic", "leaves", "export"] = "symbolic"
    parameters: Count = 0
    macs: Count = 0


class InputSpec(_Data):
    """What both models read: shape of one batch (the first entry is the batch size used for planning)."""

    shape: Annotated[list[PositiveInt], Field(min_length=2)]


class DataPlan(_Data):
    """The data, its augmentation and normalisation.

    Attributes:
        spec: ``digits``, ``cifar10:ROOT`` …; None for a structural plan, which cannot be run.
        batch_size: Images a training step.
        augmentation: Names of augmentations, applied in order: ``flip``, ``crop:PADDING``.
        mean: Subtracted per input channel, pixels in 0 … 1.
        std: Divided by, per input channel.
        classes: Class names in label order.
    """

    spec: str | None
    batch_size: PositiveInt = 128
    augmentation: list[str] = []
    mean: list[float] = []
    std: list[Annotated[float, Field(gt=0)]] = []
    classes: list[str] = []


class Tap(_Data):
    """A node whose value is compared: path, shape, channel dimension and layout."""

    path: str
    shape: list[PositiveInt]
    channel_dim: Count
    width: PositiveInt
    layout: Layout
    class_token: bool = False

    @model_validator(mode="after")
    def _shape_holds(self) -> Self:
        rank, dim = _FORM[self.layout]
        if (len(self.shape), self.channel_dim) != (rank, dim):
            raise ValueError(f"the layout '{self.layout}' has {rank} dimensions, the channels in dimension {dim}")
        if self.shape[dim] != self.width:
            raise ValueError(f"the width is {self.width}, the shape {self.shape} has {self.shape[dim]} channels")
        return self


class RunnerUp(_Data):
    """The second-best teacher node for a student node."""

    teacher: str
    score: float


class Pair(_Data):
    """A teacher node and a student node that are brought together, with the evidence for it."""

    name: Name
    teacher: Tap
    student: Tap
    score: float
    runner_up: RunnerUp | None
    why: list[str]
    align: Align


class Kept(_Data):
    """The teacher channels that a pair keeps (sorted), of how many, by which criterion, coupled with what."""

    pair: str
    path: str
    channels: list[Count]
    width: PositiveInt
    criterion: str
    coupled: list[str]


class Optimizer(_Data):
    """A torch optimiser by name, with its arguments."""

    name: Literal["sgd", "adam", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0)] = 0.0


class LossTerm(_Data):
    """One loss of a stage.

    Attributes:
        loss: Name in the registry of losses.
        pair: The pair whose taps it compares; None for the logits.
        weight: Factor in the sum.
        args: Further arguments, e.g. ``temperature``.
    """

    loss: str
    pair: str | None
    weight: Annotated[float, Field(ge=0)] = 1.0
    args: dict[str, float] = {}

    @model_validator(mode="after")
    def _loss_is_known(self) -> Self:
        from fxdistill.losses import old  # noqa: PLC0415  # brings torch, which a plan alone does not need

        try:
            old.arguments(self.loss, self.args)
        except PlanError as cause:
            raise ValueError(f"{cause.what}; {cause.hint}") from cause
        if (old.get(self.loss).reads == "taps") != (self.pair is not None):
            raise ValueError(f"the loss '{self.loss}' needs {'no pair' if self.pair is not None else 'a pair'}")
        return self

    @property
    def name(self) -> str:
        """The term's name in metrics: ``mse[pair]``, ``kd``."""
        return f"{self.loss}[{self.pair}]" if self.pair is not None else self.loss


class Stage(_Data):
    """Some epochs under one set of losses, with an optimiser that starts fresh.

    Attributes:
        schedule: Learning rate over the stage: ``constant``, or ``cosine`` to zero.
        cost: MACs of the stage's program for one image, as a share of teacher and student in full.
    """

    name: Name
    epochs: PositiveInt
    losses: Annotated[list[LossTerm], Field(min_length=1)]
    optimizer: Optimizer
    schedule: Literal["constant", "cosine"] = "constant"
    cost: Annotated[float, Field(ge=0)] = 1.0


class Auxiliary(_Data):
    """A smaller teacher, made from the teacher and fine-tuned from it, that teaches in its place.

    Attributes:
        kept: For each weight of the teacher that gets smaller, the output indices that it keeps.
        widths: Outputs of each of these weights in the teacher, for the reader.
        taps: For each pair whose teacher tap gets narrower, its width in the teacher, for the reader.
        barriers: Nodes and parameters of the teacher whose channels all stay.
        rung: How the teacher was traced for this.
        stages: Its training, with the teacher as teacher; their losses compare logits.
    """

    kept: dict[str, Annotated[list[Count], Field(min_length=1)]]
    widths: dict[str, PositiveInt] = {}
    taps: dict[str, PositiveInt] = {}
    barriers: list[str] = []
    rung: Literal["symbolic", "leaves", "export"] = "symbolic"
    stages: Annotated[list[Stage], Field(min_length=1)]
    parameters: Count = 0
    macs: Count = 0


class ExportPlan(_Data):
    """The ONNX file and its gate."""

    opset: PositiveInt = 18
    tolerance: Annotated[float, Field(gt=0)] = 1e-4


class Plan(_Data):
    """A whole plan. See the module docstring."""

    version: Literal[1]
    method: str
    seed: Count
    teacher: ModelRef
    student: ModelRef
    input: InputSpec
    data: DataPlan
    pairs: list[Pair]
    kept: list[Kept]
    auxiliary: Auxiliary | None = None
    stages: Annotated[list[Stage], Field(min_length=1)]
    control: list[Stage] = []
    seeds: Annotated[list[Count], Field(min_length=1)]
    precision: Precision = "32-true"
    export: ExportPlan = ExportPlan()
    diagnostics: list[Diagnostic] = []
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        names = [pair.name for pair in self.pairs]
        _unique(names, "pair")
        _unique([f"{pair.teacher.path} = {pair.student.path}" for pair in self.pairs], "pair of the nodes")
        _unique([kept.pair for kept in self.kept], "list of kept channels of")
        _unique([str(seed) for seed in self.seeds], "seed")
        if len(self.data.mean) != len(self.data.std):
            raise ValueError(f"data.mean has {len(self.data.mean)} entries, data.std {len(self.data.std)}")
        for stages in (self.stages, self.control):
            _unique([stage.name for stage in stages], "stage")
        by_name = {pair.name: pair for pair in self.pairs}
        for stage in (*self.stages, *self.control):
            for term in stage.losses:
                if term.pair is not None and term.pair not in by_name:
                    raise ValueError(f"stage '{stage.name}' names the pair '{term.pair}', which the plan has not")
        for kept in self.kept:
            _kept_holds(kept, by_name)
        _auxiliary_holds(self.auxiliary, self.pairs)
        missing = [p.name for p in self.pairs if p.align == "slice"]
        absent = set(missing) - {kept.pair for kept in self.kept}
        if absent:
            raise ValueError(f"no kept channels for the sliced pair '{sorted(absent)[0]}'")
        return self

    def kept_for(self, pair: str) -> Kept | None:
        """The kept channels of a pair, None where it is not sliced."""
        return next((kept for kept in self.kept if kept.pair == pair), None)

    def stages_of(self, arm: ArmName) -> tuple[Stage, ...]:
        """The stages of an arm; () where the plan does not have it."""
        auxiliary = self.auxiliary.stages if self.auxiliary is not None else []
        return tuple({"auxiliary": auxiliary, "distilled": self.stages, "control": self.control}[arm])

    def to_json(self) -> str:
        """The plan's text: stable, every default spelled out, lists of numbers on one line."""
        return _dump(self.model_dump(mode="json")) + "\n"

    @property
    def sha256(self) -> str:
        """Hash of the plan's text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _unique(names: list[str], kind: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"there is more than one {kind} '{name}'")


def _auxiliary_holds(auxiliary: Auxiliary | None, pairs: list[Pair]) -> None:
    if auxiliary is not None:
        _unique([stage.name for stage in auxiliary.stages], "stage")
        if any(term.pair is not None for stage in auxiliary.stages for term in stage.losses):
            raise ValueError("a stage of the auxiliary teacher names a pair; its losses compare logits")
        names = {"weight": (auxiliary.widths, auxiliary.kept), "pair": (auxiliary.taps, {pair.name for pair in pairs})}
        for kind, (given, known) in names.items():
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"the auxiliary teacher's widths name the {kind} '{unknown[0]}', which it has not")
    for pair in pairs:
        if pair.align == "shrink" and auxiliary is None:
            raise ValueError(f"the align of the pair '{pair.name}' is 'shrink', and the plan has no auxiliary teacher")
        if pair.align == "shrink" and pair.teacher.width != pair.student.width:
            raise ValueError(f"the pair '{pair.name}' has two widths; with align 'shrink' they are the same")


def _kept_holds(kept: Kept, pairs: dict[str, Pair]) -> None:
    if kept.pair not in pairs:
        raise ValueError(f"kept channels name the pair '{kept.pair}', which the plan has not")
    pair = pairs[kept.pair]
    if pair.align != "slice":
        raise ValueError(f"the pair '{kept.pair}' has kept channels but its align is '{pair.align}'")
    if kept.width != pair.teacher.width or kept.path != pair.teacher.path:
        raise ValueError(f"the kept channels of '{kept.pair}' are not about its teacher tap")
    if kept.channels != sorted(set(kept.channels)):
        raise ValueError(f"the kept channels of '{kept.pair}' are not sorted and distinct")
    if kept.channels and kept.channels[-1] >= kept.width:
        raise ValueError(
            f"the kept channel {kept.channels[-1]} of '{kept.pair}' is out of range: '{kept.path}' has "
            f"{kept.width} channels, 0 to {kept.width - 1}"
        )
    if len(kept.channels) != pair.student.width:
        raise ValueError(
            f"'{kept.pair}' keeps {len(kept.channels)} channels; the student's tap has {pair.student.width}"
        )


def _dump(value: object, indent: int = 0) -> str:
    """JSON with one entry a line, except that a list of plain values stays on one line: made for diffs."""
    pad, inner = "  " * indent, "  " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = (f"{inner}{json.dumps(key)}: {_dump(item, indent + 1)}" for key, item in value.items())
        return "{\n" + ",\n".join(rows) + f"\n{pad}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_dump(item, indent + 1)}" for item in value) + f"\n{pad}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

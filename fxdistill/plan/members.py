"""Members of a plan that are made by training: the levels of a cascade, and the student that is cut out of one.

A **masked** member is its original's architecture with some channels masked. All masked members have one original, and
share its tensors but for those that are their ``own``; which channels are kept follows from scores, which are trained.
A **hardened** member is a masked one whose scores have become indices: it is really smaller, once that one is trained.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fxdistill.plan.schema import Count, MemberName, ModelRef, Name, Part, PositiveInt, Shrunken


class Budget(Part):
    """What a masked member may cost once it is cut; exactly one of the two.

    Attributes:
        macs: Multiply-accumulates of an image.
        parameters: Parameters.
    """

    macs: PositiveInt | None = None
    parameters: PositiveInt | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.macs is None) == (self.parameters is None):
            raise ValueError("a budget is either of macs or of parameters")
        return self

    @property
    def limit(self) -> tuple[Literal["parameters", "macs"], int]:
        """What it is of, and how much of that."""
        return ("macs", self.macs) if self.macs is not None else ("parameters", self.parameters or 0)


class MaskedLayer(Part):
    """Channels of a masked member that the same convolutions make.

    Attributes:
        name: The first of these convolutions.
        channels: How many of its channels can be masked.
        kept: How many of them the scores keep that training starts with, for the reader.
    """

    name: Name
    channels: PositiveInt
    kept: PositiveInt


class Masked(Part):
    """A member that is another one with channels masked: a level of a cascade.

    Attributes:
        of: The given member that it is made from.
        keep: The share of the maskable channels, over all layers, that it keeps; 1 for no mask.
        budget: What it may cost instead: it keeps as many of the best channels as that allows.
        guide: The member whose gradient moves its scores; None without a mask.
        nested: Whether it keeps only what its guide keeps as well.
        threshold: Whether all layers' channels compete by their scores (``global``), or each layer keeps about the same
            share (``layer``).
        multiple: Each layer keeps so many, or a multiple of that, or all; ``keep`` is then the most.
        centred: Whether the gradients that move its scores are centred: less their mean over the channels of the layer.
        criterion: The measure of importance that its scores start with, over the mean of their layer.
        scale: What that is multiplied by.
        barriers: Nodes whose channels are not masked, because they cannot be cut.
        first: Whether the channels of the first convolution can be masked as well; they all stay otherwise.
        own: The tensors that it does not share with the other masked members of the same original.
        layers: What can be masked of it, in the order of the model.
        parameters: What it would have if it were cut as the scores say that training starts with.
        macs: Likewise.
    """

    kind: Literal["masked"] = "masked"
    of: MemberName
    keep: Annotated[float, Field(gt=0, le=1)]
    budget: Budget | None = None
    guide: MemberName | None = None
    nested: bool = False
    threshold: Literal["global", "layer"] = "global"
    multiple: PositiveInt = 1
    centred: bool = False
    criterion: str = "l1"
    scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    barriers: list[str] = []
    first: bool = False
    own: list[str] = []
    layers: list[MaskedLayer] = []
    parameters: Count = 0
    macs: Count = 0

    @model_validator(mode="after")
    def _mask_has_a_guide(self) -> Self:
        if self.is_masked != (self.guide is not None):
            raise ValueError("a masked member that keeps less than all needs a guide, and one that keeps all has none")
        return self

    @property
    def is_masked(self) -> bool:
        """Whether it has a mask of its own."""
        return self.keep < 1 or self.budget is not None

    @property
    def kept_by(self) -> tuple[str, int]:
        """How the channels are chosen that it keeps: among which, and in what multiples."""
        return self.threshold, self.multiple

    @property
    def network(self) -> dict[str, object]:
        """What all masked members of a plan have in common, by the name of its field: what is masked, and where."""
        return {
            "of": self.of, "barriers": self.barriers, "first": self.first,
            "layers": [(layer.name, layer.channels) for layer in self.layers],
        }  # fmt: skip


class Hardened(Part):
    """A member that is cut out of a masked one when that is trained.

    Attributes:
        of: The masked member.
        parameters: What it would have by the scores that training starts with.
        macs: Likewise.
    """

    kind: Literal["hardened"] = "hardened"
    of: MemberName
    parameters: Count = 0
    macs: Count = 0


Member = Annotated[ModelRef | Shrunken | Masked | Hardened, Field(discriminator="kind")]

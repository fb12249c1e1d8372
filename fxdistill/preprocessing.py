"""Preprocessing: what a model does to an image before it looks at it. It belongs to the model, not to the data.

    file ─ resize ─ crop ─▶ pixels in 0 … 1 ─ order of channels ─ range ─ (x - mean) / std ─▶ model
    └──── geometry ────┘                      └────────────── normalisation ─────────────┘

The geometry is how image files are read (:class:`Reading`). What is left for a batch of pixels, bringing it to the
model's size and normalising it, is the model's :class:`View` of that batch: it becomes nodes of a program.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fit = Literal["crop", "squash", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Channels = Literal["rgb", "bgr", "gray", "other"]
MOST_SIDE = 1 << 16
Positive = Annotated[int, Field(gt=0, le=MOST_SIDE)]
MOST_PIXELS = 1 << 26
"""Of an image: beyond it, a file of some kilobytes takes gigabytes."""
Size = Annotated[list[Positive], Field(min_length=2, max_length=2)]
USUAL_SIZE, USUAL_RESIZE = (224, 224), (256, 256)
"""The geometry of most ImageNet models, where nothing says another one."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, data: Any) -> Any:
        """From Python, a tuple is as good as a list."""
        if not isinstance(data, dict):
            return data
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    def changed(self, **update: Any) -> Self:
        """The same with other values, validated like any."""
        return type(self).model_validate({**{name: getattr(self, name) for name in type(self).model_fields}, **update})


class Source(_Part):
    """Where the two parts of a preprocessing came from, in words for people; '' where nobody says."""

    geometry: str = ""
    normalisation: str = ""


class Preprocessing(_Part):
    """What a model does to an image before it looks at it.

    Attributes:
        size: Height and width that the model reads.
        resize: Height and width to resize to before the middle is cut out; None for ``size`` itself.
        fit: ``crop``: the shorter side becomes that of ``resize`` and the middle is cut out; ``squash``: both sides do,
            whatever the proportions; ``pad``: the longer side does, and what is missing is filled with the mean.
        interpolation: Of the resizing.
        mean: Subtracted per channel; empty where images are taken as they are.
        std: Divided by, per channel.
        channels: Their order: ``rgb``, ``bgr``, ``gray``; ``other`` for what is no colour.
        range: The value of the brightest pixel before that: 1, or 255 where mean and std are in that scale.
        source: Where this came from.
    """

    size: Size
    resize: Size | None = None
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    mean: list[float] = []
    std: list[Annotated[float, Field(gt=0)]] = []
    channels: Channels = "rgb"
    range: Literal[1, 255] = 1
    source: Source = Source()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} entries, std {len(self.std)}")
        wanted = {"bgr": 3, "gray": 1}.get(self.channels, len(self.mean))
        if self.mean and len(self.mean) != wanted:
            raise ValueError(f"mean and std have {len(self.mean)} entries, the channels '{self.channels}' are {wanted}")
        for height, width in filter(None, (self.size, self.resize)):
            if height * width > MOST_PIXELS:
                raise ValueError(f"{height} x {width} are more pixels than {MOST_PIXELS:,}")
        return self

    def sized(self, size: Sequence[int], source: str) -> Self:
        """The same for images of another size, with the same share cut out, which whoever said it still says."""
        share = "" if self.resize is None else self.source.geometry
        said = self.source.changed(geometry=", ".join(dict.fromkeys(filter(None, (source, share)))))
        resize = self.resize and [
            side * before // own for side, before, own in zip(size, self.resize, self.size, strict=True)
        ]
        return self.changed(size=list(size), resize=resize, source=said)

    def reading(self, channels: int) -> "Reading":
        """How image files are read for it."""
        fill = tuple(round(255 * value / self.range) for value in self.mean) if self.fit == "pad" else ()
        if self.channels == "bgr":
            fill = fill[::-1]
        height, width = self.size
        resize = self.resize if self.resize is not None else self.size
        return Reading((height, width), (resize[0], resize[1]), self.fit, self.interpolation, channels, fill)

    def view(self, size: Sequence[int]) -> "View":
        """How it looks at a batch of pixels of this height and width."""
        height, width = self.size
        return View(
            None if list(size) == self.size else (height, width), self.channels == "bgr", float(self.range),
            tuple(self.mean), tuple(self.std),
        )  # fmt: skip


def names_of(channels: int) -> Channels:
    """What so many channels usually are."""
    return "gray" if channels == 1 else "rgb" if channels == 3 else "other"


def in_words(value: Preprocessing) -> str:
    """A preprocessing in one line, with where it came from."""
    size, resize = ("x".join(map(str, found)) for found in (value.size, value.resize or value.size))
    how = {"crop": "middle of", "squash": "squashed to", "pad": "padded from"}[value.fit]
    geometry = f"{size}, {how} {resize}, {value.interpolation}" if value.resize or value.fit != "crop" else size
    if value.mean:
        numbers = (" ".join(f"{number:.4g}" for number in found) for found in (value.mean, value.std))
        normal = "mean {} std {}".format(*numbers)
    else:
        normal = "pixels as they are"
    normal += "" if value.channels in ("rgb", "other") else f", {value.channels}"
    normal += "" if value.range == 1 else ", pixels to 255"
    sources = [f" ({text})" if text else "" for text in (value.source.geometry, value.source.normalisation)]
    if sources[0] == sources[1]:
        return f"{geometry}; {normal}{sources[0]}"
    return f"{geometry}{sources[0]}; {normal}{sources[1]}"


@dataclass(frozen=True)
class Reading:
    """How image files become images of one size; see :class:`Preprocessing`.

    Attributes:
        size: Height and width.
        resize: Height and width before the middle is cut out.
        fit: How the proportions change.
        interpolation: Of the resizing.
        channels: 1 or 3.
        fill: Colour of what is padded, 0 … 255 a channel.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    channels: int = 3
    fill: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, *self.size


@dataclass(frozen=True)
class View:
    """How a model looks at a batch of pixels (N, C, H, W) in 0 … 1; what :mod:`fxdistill.ir.views` does with them.

    Equal views are one set of nodes in a program.

    Attributes:
        size: Height and width to resize to, None where the batch has them.
        reverse: Whether the order of channels is reversed.
        range: Factor of the pixels.
        mean: Subtracted per channel; () for none.
        std: Divided by, per channel.
    """

    size: tuple[int, int] | None
    reverse: bool = False
    range: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


PLAIN = View(None)
"""Images as they are."""


@dataclass(frozen=True)
class Wishes:
    """What a user says of a preprocessing; None for what he does not.

    Attributes:
        size: Height and width.
        crop: The share of the resized side that is cut out.
        interpolation: Of the resizing.
        mean: Per channel.
        std: Per channel.
        where: What said the size: ``--size``, ``--input``.
    """

    size: tuple[int, int] | None = None
    crop: float | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    where: str = "--size"


NOTHING = Wishes()
"""No wishes."""

"""What an ONNX file says of itself, and the file as a model again.

Every file that is exported says in its metadata, as JSON, what is needed to use it and nothing else knows:

    fxdistill.preprocessing   size, resize, fit, interpolation, mean, std, channels, range; null where nobody said
    fxdistill.classes         names in the order of the outputs; [] where they are not known
    fxdistill.task            what the prediction is
    fxdistill.versions        what wrote it
    fxdistill.embedded        true where the input is uint8 (N, H, W, C) and the normalisation is inside the file
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fxdistill.compiler.versions import versions
from fxdistill.errors import ModelError, first_line
from fxdistill.ir.views import column, seen, steps
from fxdistill.measure import onnx_refers
from fxdistill.measure.latency import open_session, run
from fxdistill.preprocessing import Preprocessing, Source, View

_KEY = "fxdistill."


def described(
    *, task: str, preprocessing: Preprocessing | None, classes: Sequence[str], embedded: bool = False
) -> dict[str, str]:
    """The metadata of a file: see the module docstring."""
    said: dict[str, Any] = {
        "preprocessing": None if preprocessing is None else preprocessing.model_dump(mode="json"),
        "classes": list(classes), "versions": versions(), "embedded": embedded,
    }  # fmt: skip
    return {f"{_KEY}task": task, **{f"{_KEY}{name}": json.dumps(value) for name, value in said.items()}}


@dataclass(frozen=True)
class Description:
    """What a file says of itself.

    Attributes:
        task: What its prediction is; None where it does not say.
        preprocessing: What is done to an image before; None where it does not say.
        classes: Their names; () where they are not known.
        embedded: Whether it takes pixels, uint8 (N, H, W, C), and normalises them itself.
    """

    task: str | None
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]
    embedded: bool


def _read(metadata: Mapping[str, str], where: str) -> Description:
    try:
        values = {name: json.loads(metadata.get(f"{_KEY}{name}", "null")) for name in ("preprocessing", "classes")}
        found = None if values["preprocessing"] is None else Preprocessing.model_validate(values["preprocessing"])
        embedded = json.loads(metadata.get(f"{_KEY}embedded", "false")) is True
    except (ValidationError, ValueError, RecursionError) as cause:
        why = f"the file's metadata is not valid: {first_line(cause)}"
        raise ModelError(why, where=where, hint="export it anew") from cause
    if found is not None:
        found = found.changed(source=Source(geometry="the file", normalisation="the file" if found.mean else ""))
    names = values["classes"] if isinstance(values["classes"], list) else []
    return Description(metadata.get(f"{_KEY}task"), found, tuple(map(str, names)), embedded)


class OnnxModel(nn.Module):
    """An ONNX file as a model: images (N, C, H, W) in, a prediction out; of several outputs a mapping of them.

    A file whose normalisation is inside is given pixels in 0 … 1, rounded to the uint8 that it takes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        onnx_refers.check(path)
        self.path, self.session = path, open_session(path)
        self.description = _read(self.session.get_modelmeta().custom_metadata_map, str(path))
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            taken = ", ".join(f"{one.name} ({' x '.join(map(str, one.shape))})" for one in inputs)
            raise ModelError(
                f"the file does not take one batch of images, but {taken or 'nothing'}", where=str(path),
                hint="give another one",
            )  # fmt: skip
        self.outputs = [output.name for output in self.session.get_outputs()]

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one image as a batch, channels first; None where the file leaves it open."""
        shape = self.session.get_inputs()[0].shape[1:]
        if not all(isinstance(side, int) for side in shape):
            return None
        return (1, shape[2], *shape[:2]) if self.description.embedded else (1, *shape)

    @property
    def batch(self) -> int | None:
        """How many images the file takes at once; None for any number."""
        first = self.session.get_inputs()[0].shape[0]
        return first if isinstance(first, int) else None

    def called(self, name: str) -> str | None:
        """The entry that is the prediction, which comes first of several under a task's name; None where none does."""
        return name if len(self.outputs) > 1 and self.outputs[0] == name else None

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Run the file."""
        given = (as_pixels(images) if self.description.embedded else images.float()).cpu().numpy()
        found = self._answers(given) if self.batch in (None, len(given)) else self._in_turn(given, self.batch or 1)
        values = [torch.from_numpy(one.astype(np.float32) if one.dtype == np.float16 else one) for one in found]
        return values[0] if len(values) == 1 else dict(zip(self.outputs, values, strict=True))

    def _answers(self, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return [np.asarray(value) for value in run(self.session, images, where=str(self.path))]

    def _in_turn(self, images: np.ndarray[Any, Any], batch: int) -> list[np.ndarray[Any, Any]]:
        """What a file says that takes so many images at once; what lacks at the end are images seen before."""
        count = len(images)
        padded = np.resize(images, (-(-count // batch) * batch, *images.shape[1:]))
        parts = [self._answers(padded[start : start + batch]) for start in range(0, len(padded), batch)]
        return [np.concatenate(one)[:count] for one in zip(*parts, strict=True)]


class Embedded(nn.Module):
    """A model behind its own normalisation: uint8 (N, H, W, C) in.

    Args:
        model: The model.
        view: How it looks at pixels in 0 … 1.
    """

    def __init__(self, model: nn.Module, view: View) -> None:
        super().__init__()
        self.model, self.view = model, view
        self.register_buffer("mean", column(view.mean))
        self.register_buffer("std", column(view.std))

    def forward(self, pixels: Tensor) -> Any:
        """What the model makes of the pixels."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32).div(255)
        shown: Tensor = steps(
            self.view, images, lambda function, *rest: function(*rest), lambda name, _: self.get_buffer(name)
        )
        return self.model(shown)


def as_pixels(images: Tensor, view: View | None = None) -> Tensor:
    """Images (N, C, H, W) in 0 … 1 as uint8 (N, H, W, C), resized as a view wants them."""
    if view is not None:
        images = seen(images, View(view.size))
    return images.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

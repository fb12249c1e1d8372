"""What of a model becomes an ONNX file: a copy for deployment, its outputs by name, and whether they take any batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxdistill.errors import ModelError
from fxdistill.ir import outputs
from fxdistill.measure.gate import INPUT, reason, reference
from fxdistill.measure.onnx_model import Embedded

Shape = tuple[int, ...]
TRIAL_BATCHES = (1, 3)
"""Batch sizes at which a model, and its file, are tried."""


@dataclass(frozen=True)
class Source:
    """What is exported: a copy of the model that returns tensors in order, and their names.

    Attributes:
        module: The copy; returns a tensor, or a tuple of them.
        names: The names of what it returns.
        batched: Those whose first dimension is that of the images.
        left_out: The entries that it does not return.
        whole: Whether it takes pixels, uint8 (N, H, W, C).
    """

    module: nn.Module
    names: tuple[str, ...]
    batched: frozenset[str]
    left_out: tuple[str, ...] = ()
    whole: bool = False

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        found = self.module(image)
        return dict(zip(self.names, (found,) if isinstance(found, Tensor) else found, strict=True))


def deployable(
    module: nn.Module, input_shape: tuple[int, ...], entry: str, only: Sequence[str], *, prediction_name: str,
    alone: str,
) -> Source:  # fmt: skip
    """What to export: found out on the trial batches."""
    source, found, whole = reference(module), [], isinstance(module, Embedded)
    for batch in TRIAL_BATCHES:
        try:
            with torch.no_grad():
                output = source(noise(batch, input_shape, whole=whole))
        except Exception as cause:  # whatever the model's own code raises
            raise ModelError(
                f"the model does not run on an input of shape {(batch, *input_shape[1:])}: {reason(cause)}",
                where=type(module).__name__,
                hint="give the shape that the model was made for; exported models must take any batch size",
            ) from cause
        tensors = outputs.named(output, entry, prediction_name=prediction_name, taken=(INPUT,), alone=alone)
        found.append({name: (value, tuple(value.shape)) for name, value in tensors.items()})
    names = _wanted(output, found[-1], only)
    if list(found[0]) != list(found[-1]):
        raise ModelError(
            f"the model answers with {len(found[0])} values for one image and {len(found[-1])} for three",
            where=type(module).__name__,
            hint="a list with an entry for each image is no output of an ONNX file: return tensors of a fixed number",
        )
    batched = [all(seen[n][1][:1] == (b,) for seen, b in zip(found, TRIAL_BATCHES, strict=True)) for n in names]
    of_batch = frozenset(name for name, changes in zip(names, batched, strict=True) if changes)
    if isinstance(output, Tensor):
        return Source(source, names, of_batch, whole=whole)
    ids = [id(found[-1][name][0]) for name in names]
    places = {id(value): place for place, value in reversed(list(outputs.entries(output)))}
    left_out = tuple(place for place, value in outputs.entries(output) if value is not None and id(value) not in ids)
    # the second exporter puts back the mode that it finds at the top, in every layer
    return Source(_Outputs(source, [places[i] for i in ids]).eval(), names, of_batch, left_out, whole)


def _wanted(output: object, found: Mapping[str, tuple[Tensor, Shape]], only: Sequence[str]) -> tuple[str, ...]:
    """The names of the outputs to write, in order; those asked for are given by name or by entry."""
    names = {id(value): name for name, (value, _) in found.items()}
    by_place = {place: names[id(value)] for place, value in outputs.entries(output) if id(value) in names}
    asked = [one if one in found else by_place.get(one) for one in only]
    if None in asked:
        unknown = only[asked.index(None)]
        raise ModelError(
            f"the model has no output '{unknown}'", where=f"output {unknown}",
            hint=f"its outputs are: {', '.join(found)}",
        )  # fmt: skip
    return tuple(name for name in found if not only or name in asked)


class _Outputs(nn.Module):
    """A model with a structured output, reduced to some of its entries, in order."""

    def __init__(self, model: nn.Module, places: Sequence[str]) -> None:
        super().__init__()
        self.model, self.places = model, tuple(places)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = dict(outputs.entries(self.model(image)))
        return tuple(found[place] for place in self.places)


def noise(batch: int, input_shape: tuple[int, ...], *, whole: bool = False) -> Tensor:
    """Normal noise, or pixels (N, H, W, C), uint8."""
    generator = torch.Generator().manual_seed(batch)
    if whole:
        channels, height, width = input_shape[1:]
        return torch.randint(256, (batch, height, width, channels), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, *input_shape[1:], generator=generator)

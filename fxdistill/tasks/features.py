"""Features: a student learns the teacher's layers, and no labels; the teacher may have other classes, or none.

Nothing but images is needed to train. Where the images have class numbers, what the models answer is measured as an
embedding, as in retrieval; feature maps and tokens by their means over positions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fxdistill.tasks import Agreement
from fxdistill.tasks._tallies import Means
from fxdistill.tasks.retrieval import Retrieval

_POSITIONS = {4: (2, 3), 3: (1,)}


class Features(Retrieval):
    """Any tensor (B, ...), labels (B,), which only the metrics read."""

    summary = "the teacher's layers, whatever it was trained for"
    default_main = "features"
    has_predictions = False
    embeds = False
    output_name = "features"
    collapsed = "the same features for every image"

    def wrong_output(
        self, output: Tensor, image_shape: Sequence[int], classes: int, target_shape: Sequence[int] | None = None
    ) -> str:
        """Anything, as long as there is one answer for each image."""
        if output.ndim < 2 or not output.is_floating_point():
            return f"the model answers with {output.dtype} of shape {tuple(output.shape)}, not with features of images"
        return ""

    def evaluate(
        self, predict: Callable[[str], Iterable[tuple[Tensor, Tensor]]], classes: int, device: torch.device | str
    ) -> dict[str, float]:
        """The ranks of the pooled features."""

        def pooled(split: str) -> Iterable[tuple[Tensor, Tensor]]:
            return ((_pooled(output), targets) for output, targets in predict(split))

        return super().evaluate(pooled, classes, device)

    def kept(self, output: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, ...]:
        """The pooled features, and their classes."""
        return super().kept(_pooled(output), targets, classes)

    def tally(self, kept: Sequence[Tensor], train: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Means:
        """The ranks of the pooled features."""

        def pooled() -> Iterator[tuple[Tensor, Tensor]]:
            return ((_pooled(output), targets) for output, targets in train())

        return super().tally(kept, pooled)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """As in retrieval, by the pooled features."""
        return super().distance(_pooled(ours), _pooled(theirs))

    def says(self, output: Tensor) -> Tensor:
        """The direction of the pooled features."""
        return super().says(_pooled(output))

    def agreement(self, ours: Tensor, theirs: Tensor) -> Agreement:
        """Equal nearest neighbours by the pooled features."""
        return super().agreement(_pooled(ours), _pooled(theirs))


def _pooled(output: Tensor) -> Tensor:
    """(B, C, H, W) or (B, tokens, C) as (B, C); what else there is as it is, flat."""
    return output.float().mean(_POSITIONS[output.ndim]) if output.ndim in _POSITIONS else output.flatten(1)


TASK = Features()

"""Predictions as rows: every position of every image is one, so that dense predictions are a larger batch."""

from torch import Tensor


def rows(logits: Tensor) -> Tensor:
    """(B, C) or (B, C, ...) as (rows, C), float32."""
    return logits.float().movedim(1, -1).flatten(0, -2)

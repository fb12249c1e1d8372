"""Cross-entropy with the labels: -log softmax(s)[label], mean over the batch (and over positions)."""

from typing import Annotated

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss


class CrossEntropyArguments(Arguments):
    """``label_smoothing``: share of the target spread evenly over all classes, 0 to 1."""

    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0


def cross_entropy(student_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels.

    Args:
        student_logits: (B, C), or (B, C, ...) for dense prediction.
        labels: (B,) class indices, or (B, ...); -100 where there is no label.
        label_smoothing: Share of the target spread evenly over all classes.

    Returns:
        A float32 scalar, in nats.
    """
    return F.cross_entropy(student_logits.float(), labels, label_smoothing=label_smoothing)


LOSS = Loss(reads=("student.logits", "labels"), function=cross_entropy, arguments=CrossEntropyArguments)

"""Cross-entropy with the labels: -log softmax(s)[label], mean over what has a label; 0 where nothing has."""

from typing import Annotated

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor, fx

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss
from fxdistill.tasks import NO_LABEL


class CrossEntropyArguments(Arguments):
    """``label_smoothing``: share of the target spread evenly over all classes, 0 to 1."""

    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0


def cross_entropy(student_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels.

    Args:
        student_logits: (B, C), or (B, C, ...) for dense prediction.
        labels: (B,) class indices, or (B, ...); -100 where there is no label. Or rows of shares (B, C), float, of
            labels that were mixed; a row that sums to less than 1 has so much of a label.
        label_smoothing: Share of the target spread evenly over all classes.

    Returns:
        A float32 scalar, in nats.
    """
    return _mean(student_logits.float(), labels, label_smoothing)


@fx.wrap  # one node: which of the two it is lies in the type of the labels, which a trace does not know
def _mean(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    if labels.is_floating_point():
        share = labels.sum(1, keepdim=True)
        wanted = (1 - label_smoothing) * labels + label_smoothing * share / labels.shape[1]
        return -(wanted * logits.log_softmax(1)).sum() / share.sum().clamp_min(1)
    total = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels != NO_LABEL).sum().clamp_min(1)


LOSS = Loss(
    reads=("student.logits", "labels"), function=cross_entropy, arguments=CrossEntropyArguments, mixed_labels=True,
    summary="the labels' classes",
)  # fmt: skip

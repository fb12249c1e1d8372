"""Binary cross-entropy with the labels: -y log p - (1 - y) log(1 - p), p = sigmoid(s), mean over known entries."""

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor

from fxdistill.losses import Loss


def binary_cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy with the labels.

    Args:
        student_logits: (B, K).
        labels: (B, K), 0 to 1; not a number, or below 0 (-1 and -100 in many data sets), where there is no label.

    Returns:
        A float32 scalar, in nats; 0 where nothing has a label.
    """
    known = labels >= 0
    wanted = labels.float().nan_to_num().clamp_min(0)
    each = F.binary_cross_entropy_with_logits(student_logits.float(), wanted, reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)


LOSS = Loss(
    reads=("student.logits", "labels"), function=binary_cross_entropy,
    summary="a yes or no of every class, with the labels",
)  # fmt: skip

"""Mean absolute difference between predictions and targets: |s - y|, mean over all entries."""

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor

from fxdistill.losses import Loss


def l1(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute difference.

    Args:
        student_logits: (B, ...), predicted values.
        labels: The same shape, or (B,) for predictions (B, 1).

    Returns:
        A float32 scalar, in units of the targets.
    """
    return F.l1_loss(student_logits.float(), labels.float().reshape(student_logits.shape))


LOSS = Loss(
    reads=("student.logits", "labels"), function=l1, of_logits=False,
    summary="absolute difference to the targets",
)  # fmt: skip

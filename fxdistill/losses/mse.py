"""Mean squared difference of two taps: (s - t)², mean over all entries."""

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor

from fxdistill.losses import Loss


def mse(student_tap: Tensor, teacher_tap: Tensor) -> Tensor:
    """Mean squared difference of two taps of the same shape.

    Returns:
        A float32 scalar, in squared units of the taps.
    """
    return F.mse_loss(student_tap.float(), teacher_tap.float())


LOSS = Loss(
    reads=("student.tap", "teacher.tap"), function=mse, by_image=True, summary="squared difference of two layers"
)

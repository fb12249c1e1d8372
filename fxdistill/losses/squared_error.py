"""Mean squared difference of two predictions: (s - t)², mean over all entries; how a regression imitates another."""

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor

from fxdistill.losses import Loss


def squared_error(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference.

    Args:
        student_logits: (B, ...), predicted values.
        teacher_logits: The same shape.

    Returns:
        A float32 scalar, in squared units of the predictions.
    """
    return F.mse_loss(student_logits.float(), teacher_logits.float())


LOSS = Loss(
    reads=("student.logits", "teacher.logits"), function=squared_error, by_image=True, of_logits=False,
    summary="squared difference to the teacher's predictions",
)  # fmt: skip

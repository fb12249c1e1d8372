"""Distillation of softened predictions.

T² · KL(softmax(t / T) ‖ softmax(s / T)), mean over the batch (and over positions); T² keeps the size of its gradient
when T changes.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
"""

from typing import Annotated

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss
from fxdistill.losses._rows import rows


class KDArguments(Arguments):
    """``temperature``: what logits are divided by."""

    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 4.0


def kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Distillation of softened predictions.

    Args:
        student_logits: (B, C), or (B, C, ...) for dense prediction.
        teacher_logits: The same shape.
        temperature: What logits are divided by; above 0.

    Returns:
        A float32 scalar, in nats times T²; 0 where the logits are equal up to a shift of each row.
    """
    student = F.log_softmax(rows(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(rows(teacher_logits) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


LOSS = Loss(
    reads=("student.logits", "teacher.logits"), function=kd, by_image=True, arguments=KDArguments,
    summary="softened predictions", source="arXiv 1503.02531",
)  # fmt: skip

"""Distillation of predictions in which every class is a yes or no of its own.

KL([q, 1 - q] ‖ [p, 1 - p]) with q = sigmoid(t), p = sigmoid(s), mean over images and classes.

Source: the multi-label logits distillation of Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, arXiv
2308.06453, who sum over the classes; the mean keeps it beside the binary cross-entropy, which is one.
"""

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor

from fxdistill.losses import Loss


def binary_kd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Distillation of independent yes-or-no predictions.

    Args:
        student_logits: (B, K).
        teacher_logits: The same shape.

    Returns:
        A float32 scalar, in nats; 0 where the logits are equal.
    """
    student, teacher = student_logits.float(), teacher_logits.float()
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (yes + no).mean()


LOSS = Loss(
    reads=("student.logits", "teacher.logits"), function=binary_kd, by_image=True,
    summary="a yes or no of every class, with the teacher's", source="arXiv 2308.06453, ICCV 2023",
)  # fmt: skip

"""Decoupled distillation: the label against the rest, and the other classes among themselves, each with its weight.

    T² (alpha KL(b(t) ‖ b(s)) + beta KL(q(t) ‖ q(s)))          mean over what has a label

With p = softmax(x / T) and the label y, b(x) = (p_y, 1 - p_y) is the label against all others, q(x)_i = p_i / (1 - p_y)
the distribution over the others. Plain distillation is KL(b(t) ‖ b(s)) + (1 - p_y(t)) KL(q(t) ‖ q(s)): where the
teacher is sure, it weighs the other classes with next to nothing, and here beta says with how much.

Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, equation 7. Its
code lets the weight rise over the first 20 of 240 epochs: a term has one weight in a stage, so that is a matter of the
stages (a warm-up before, or a learning rate that rises, ``--warm-up``).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss
from fxdistill.losses._rows import rows
from fxdistill.tasks import NO_LABEL

_NEVER = torch.finfo(torch.float32).min / 2  # finite: a difference of two of them is 0


class DKDArguments(Arguments):
    """``alpha`` weighs the label against the rest, ``beta`` the others; ``temperature``: what logits are divided by."""

    alpha: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    beta: Annotated[float, Field(ge=0, le=1e6)] = 8.0
    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 4.0


def dkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float = 1.0, beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:  # fmt: skip
    """Decoupled distillation.

    Args:
        student_logits: (B, C), or (B, C, ...) for dense prediction.
        teacher_logits: The same shape.
        labels: (B,) class indices, or (B, ...); what has none (-100) takes no part.
        alpha: Weight of the label against the rest.
        beta: Weight of the others among themselves.
        temperature: What logits are divided by; above 0.

    Returns:
        A float32 scalar, in nats times T²; 0 where the logits are equal up to a shift of each row, or nothing has a
        label.
    """
    labels = labels.flatten()
    known = labels != NO_LABEL
    labels = labels.clamp_min(0).unsqueeze(1)
    s_label, s_rest, s_others = _parted(rows(student_logits) / temperature, labels)
    t_label, t_rest, t_others = _parted(rows(teacher_logits) / temperature, labels)
    sure = t_label.exp() * (t_label - s_label) + t_rest.exp() * (t_rest - s_rest)
    others = (t_others.exp() * (t_others - s_others)).sum(1)
    each = alpha * sure + beta * others
    return (each * known).sum() / known.sum().clamp_min(1) * temperature**2


def _parted(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of p_y, of 1 - p_y, and of q (rows, C), in which the label has none."""
    others = x.scatter(1, labels, _NEVER)
    all_, rest = x.logsumexp(1), others.logsumexp(1)
    return x.gather(1, labels).squeeze(1) - all_, rest - all_, others - rest.unsqueeze(1)


LOSS = Loss(
    reads=("student.logits", "teacher.logits", "labels"), function=dkd, arguments=DKDArguments,
    summary="the label against the rest, and the other classes, each by itself", source="arXiv 2203.08679, CVPR 2022",
)  # fmt: skip

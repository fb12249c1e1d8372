"""Distillation of relations: predictions have to correlate with the teacher's, and not to equal them.

    T² (beta (1 - mean_i r(p_i, q_i)) + gamma (1 - mean_c r(p_·c, q_·c))),    p = softmax(s / T), q = softmax(t / T)

r is Pearson's correlation: of the classes of each row (how a teacher ranks the classes of one image), and of the rows
of each class (how it ranks the images of a batch by one class).

Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536,
equations 6 to 9.
"""

from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss
from fxdistill.losses._rows import rows

_ROUNDING = 1e-6


class DISTArguments(Arguments):
    """``beta`` weighs rows, ``gamma`` classes; ``temperature``: what logits are divided by."""

    beta: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    gamma: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 1.0


def dist(
    student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Distillation of relations within images and within classes.

    Args:
        student_logits: (B, C), or (B, C, ...) for dense prediction, whose positions are rows.
        teacher_logits: The same shape.
        beta: Weight of the relations within an image.
        gamma: Weight of the relations within a class.
        temperature: What logits are divided by; above 0.

    Returns:
        A float32 scalar, 0 to 2 T² (beta + gamma); 0 where predictions are equal and not constant. What is constant
        (one row alone, equal rows) correlates with nothing, gives 1, and teaches nothing.
    """
    student = (rows(student_logits) / temperature).softmax(1)
    teacher = (rows(teacher_logits) / temperature).softmax(1)
    within_rows = 1 - _correlation(student, teacher, 1).mean()
    within_classes = 1 - _correlation(student, teacher, 0).mean()
    return (beta * within_rows + gamma * within_classes) * temperature**2


def _correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    own, its = (x - x.mean(dim, keepdim=True) for x in (one, other))
    return F.cosine_similarity(own, its, dim=dim) * _varies(own, one, dim) * _varies(its, other, dim)


def _varies(centred: Tensor, values: Tensor, dim: int) -> Tensor:
    """Whether more than rounding is left of values less their mean: its direction is none, and its slope 1e8."""
    left: Tensor = torch.linalg.vector_norm(centred.detach(), dim=dim)
    varies: Tensor = left > _ROUNDING * torch.linalg.vector_norm(values.detach(), dim=dim)
    return varies


LOSS = Loss(
    reads=("student.logits", "teacher.logits"), function=dist, arguments=DISTArguments,
    summary="predictions correlate, within images and within classes", source="arXiv 2205.10536, NeurIPS 2022",
)  # fmt: skip

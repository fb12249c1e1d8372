"""Distillation of softened predictions whose logits are standardised first.

T² · KL(softmax(z(t) / T) ‖ softmax(z(s) / T)), z(x) = (x - mean x) / (std x + ε)         mean over the batch

The student learns how the teacher's logits lie to each other and not how large they are: a network of a fraction of
the size need not reach the teacher's margins. Standardised logits of C classes lie within ±√C, so that T = 2 softens
them as 4 and more do plain ones.

Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427,
algorithm 1; as in its code the standard deviation is that of a sample (C - 1), and ε = 1e-7.
"""

from typing import Annotated

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss
from fxdistill.losses._rows import rows

_EPS = 1e-7
_ROUNDING = 1e-6


class StandardizedKDArguments(Arguments):
    """``temperature``: what standardised logits are divided by."""

    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 2.0


def kd_standardized(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Distillation of softened predictions with standardised logits.

    Args:
        student_logits: (B, C), or (B, C, ...) for dense prediction.
        teacher_logits: The same shape.
        temperature: What standardised logits are divided by; above 0.

    Returns:
        A float32 scalar, in nats times T²; 0 where the logits of each row are equal up to a shift and a factor above 0.
        A row whose logits are all the same, as those of a classifier that starts from 0, teaches nothing.
    """
    student = F.log_softmax(_standardized(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(_standardized(teacher_logits) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _standardized(logits: Tensor) -> Tensor:
    x = rows(logits)
    size = x.detach().abs().amax(1, keepdim=True)
    x = x - x.mean(1, keepdim=True)
    freedom = x.shape[1] - 1 + (x.shape[1] == 1)  # one class has no deviation, and no difference either
    deviation: Tensor = x.norm(dim=1, keepdim=True) / freedom**0.5
    varies = deviation.detach() > _ROUNDING * size  # else the slope would be 1 / _EPS, of nothing but rounding
    return x / (deviation + _EPS) * varies


LOSS = Loss(
    reads=("student.logits", "teacher.logits"), function=kd_standardized, by_image=True,
    arguments=StandardizedKDArguments,
    summary="softened predictions, logits standardised", source="arXiv 2403.01427, CVPR 2024",
)  # fmt: skip

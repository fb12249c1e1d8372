"""Probabilistic knowledge transfer: compares how the samples of one batch lie to each other.

    J(P_cos(t), P_cos(s)) + J(P_t(t), P_t(s))       mean over the B x B entries

Per sample pair it takes the cosine kernel (cos(x_i, x_j) + 1) / 2 and the Student-t kernel 1 / (1 + ‖x_i - x_j‖),
divides each row by its sum to get probabilities P. J(p, q) = (p - q)(log p - log q) is an entry of Jeffreys
divergence. Widths need not agree. Gram matrices are taken in float64, because distances cancel and because autocast
and TF32 would round float32 products.

Source: Passalis, Tzelepi, Tefas, "Heterogeneous Knowledge Distillation Using Information Flow Modeling", CVPR 2020,
the variant that InDistill (arXiv 2205.10003) trains with; eps is that of its code.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss


class PKTArguments(Arguments):
    """``eps``: added to norms and to squared distances, and the least value of the cosine kernel."""

    eps: Annotated[float, Field(ge=1e-12, le=1e-2)] = 1e-6


def pkt(student: Tensor, teacher: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Probabilistic knowledge transfer with the cosine and the Student-t kernel together.

    Args:
        student: (B, ...); flattened for each sample.
        teacher: (B, ...); its further shape may differ.
        eps: Added to norms and to squared distances, and the least value of the cosine kernel.

    Returns:
        A float32 scalar; 0 where both have the same kernels, and always for B = 1.
    """
    student, teacher = student.flatten(1).double(), teacher.flatten(1).double()
    cosine = _jeffreys(_cosine_kernel(teacher, eps), _cosine_kernel(student, eps))
    student_t = _jeffreys(_student_t_kernel(teacher, eps), _student_t_kernel(student, eps))
    return (cosine + student_t).float()


def _cosine_kernel(features: Tensor, eps: float) -> Tensor:
    norm = features.norm(dim=1, keepdim=True)
    unit = features / (norm + eps) * (norm.detach() > 0)  # a zero row has no direction: its slope would be 1 / eps
    kernel: Tensor = (unit @ unit.t() + 1) / 2
    return kernel.clamp_min(eps)  # opposite samples have kernel 0, whose logarithm is not finite


def _student_t_kernel(features: Tensor, eps: float) -> Tensor:
    products = features @ features.t()
    squared_norm: Tensor = products.diagonal()
    squared = squared_norm.unsqueeze(0) + squared_norm.unsqueeze(1) - 2 * products
    distance: Tensor = (squared.clamp_min(0) + eps).sqrt()  # eps keeps the root's slope finite on the diagonal
    return 1 / (1 + distance)


def _jeffreys(teacher_kernel: Tensor, student_kernel: Tensor) -> Tensor:
    teacher = teacher_kernel / teacher_kernel.sum(1, keepdim=True)
    student = student_kernel / student_kernel.sum(1, keepdim=True)
    return ((teacher - student) * (teacher.log() - student.log())).mean()


LOSS = Loss(
    reads=("student.tap", "teacher.tap"), function=pkt, arguments=PKTArguments, same_shapes=False,
    of_images=True, summary="how the samples of a batch lie to each other", source="CVPR 2020",
)  # fmt: skip

"""Variational information distillation: how well the teacher's tap can be told from the student's, with learned doubt.

    (t - μ(s))² / (2 v_c) + log(v_c) / 2,     v_c = softplus(a_c) + ε         mean over all entries

μ are three learned 1x1 convolutions of the student's tap with ReLUs between, to the teacher's width, and a_c is a
learned number for each channel c of the teacher's: a channel that cannot be told costs little. A bound of the mutual
information of the two taps; it can be below 0. The convolutions and variances are trained along and never exported.

Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
arXiv 1904.05835, equations 5 and 6; widths, first variance and ε are those of its code.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor, nn

from fxdistill.arguments import Arguments
from fxdistill.losses import Context, Loss
from fxdistill.losses._products import product


class VIDArguments(Arguments):
    """``variance``: what every channel starts from; ``eps``: the least one."""

    variance: Annotated[float, Field(ge=1e-3, le=100)] = 5.0
    eps: Annotated[float, Field(ge=1e-12, le=1e-3)] = 1e-5


class VID(nn.Module):
    """The loss of one pair.

    Args:
        student: Channels of the student's tap.
        teacher: Channels of the teacher's tap.
        arguments: Where the variances start, and their least value.
    """

    def __init__(self, student: int, teacher: int, arguments: VIDArguments) -> None:
        super().__init__()
        self.eps = arguments.eps
        self.first = nn.Linear(student, teacher, bias=False)
        self.second = nn.Linear(teacher, teacher, bias=False)
        self.third = nn.Linear(teacher, teacher, bias=False)
        self.scale = nn.Parameter(torch.full((teacher,), math.log(math.expm1(arguments.variance))))

    def forward(self, student_tap: Tensor, teacher_tap: Tensor) -> Tensor:
        """The loss, a float32 scalar, of taps (B, C, ...) and (B, C', ...)."""
        value = product(student_tap.movedim(1, -1), self.first.weight).relu()
        mean = product(product(value, self.second.weight).relu(), self.third.weight)
        variance = F.softplus(self.scale) + self.eps
        error = (teacher_tap.float().movedim(1, -1) - mean).square()
        return 0.5 * (error / variance + variance.log()).mean()


def build(context: Context, arguments: VIDArguments) -> VID:
    """The loss for the taps of a pair."""
    return VID(context.shapes["student.tap"][1], context.shapes["teacher.tap"][1], arguments)


LOSS = Loss(
    reads=("student.tap", "teacher.tap"), build=build, by_image=True, arguments=VIDArguments, same_shapes=False,
    summary="how well the teacher's layer can be told from the student's", source="arXiv 1904.05835, CVPR 2019",
)  # fmt: skip

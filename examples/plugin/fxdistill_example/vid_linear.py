"""Variational information distillation: how well the teacher's tap can be told from the student's, with learned doubt.

    mean over all entries of   (t - μ(s))² / (2 v_c) + log(v_c) / 2,     v_c = softplus(a_c) + ε

where μ is a learned 1x1 convolution of the student's tap and a_c a learned number for each channel c of the teacher's.

Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
arXiv 1904.05835, equations 5 and 6; in the loss ``vid`` of fxdistill μ has three layers.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fxdistill.arguments import Arguments
from fxdistill.errors import PlanError
from fxdistill.losses import Context, Loss


class VIDArguments(Arguments):
    """``variance``: the variance that every channel starts from; ``eps``: the least one."""

    variance: Annotated[float, Field(gt=0)] = 5.0
    eps: Annotated[float, Field(gt=0)] = 1e-5


class VID(nn.Module):
    """The loss for one pair of feature maps.

    Args:
        student: Channels of the student's tap.
        teacher: Channels of the teacher's tap.
        arguments: Where the variances start, and their least value.
    """

    def __init__(self, student: int, teacher: int, arguments: VIDArguments) -> None:
        super().__init__()
        self.eps = arguments.eps
        self.mean = nn.Conv2d(student, teacher, kernel_size=1, bias=False)
        self.scale = nn.Parameter(torch.full((teacher,), math.log(math.expm1(arguments.variance))))

    def forward(self, student_tap: Tensor, teacher_tap: Tensor) -> Tensor:
        """The loss, a float32 scalar, of taps (B, C, H, W) and (B, C', H, W)."""
        variance = (functional.softplus(self.scale) + self.eps)[:, None, None]
        error = (teacher_tap.float() - self.mean(student_tap).float()).square()
        loss: Tensor = 0.5 * (error / variance + variance.log()).mean()
        return loss


def build(context: Context, arguments: VIDArguments) -> VID:
    """The loss for the taps of a pair.

    Raises:
        PlanError: They are no feature maps.
    """
    shapes = [context.shapes[port] for port in ("student.tap", "teacher.tap")]
    if any(len(shape) != 4 for shape in shapes):
        raise PlanError("vid-linear compares feature maps (images, channels, height, width)", where="loss vid-linear")
    return VID(shapes[0][1], shapes[1][1], arguments)


LOSS = Loss(reads=("student.tap", "teacher.tap"), build=build, arguments=VIDArguments)

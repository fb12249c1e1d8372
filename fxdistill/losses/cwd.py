"""Channel-wise distillation: where in the image each channel is active.

T² · KL(softmax(t_c / T) ‖ softmax(s_c / T)), over the positions of channel c      mean over images and channels

Made for dense prediction, where a channel's peaks are what counts. Of the feature losses of its time it is the one
that fits a pair of taps: ReviewKD (Chen et al., 2021) reads all stages at once, and the margins of OFD (Heo et al.,
2019) want taps in front of the activation. Maps of one position say nothing to it.

Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv
2011.13256, equations 4 and 5.
"""

from typing import Annotated

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss


class CWDArguments(Arguments):
    """``temperature``: what activations are divided by."""

    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 4.0


def cwd(student_tap: Tensor, teacher_tap: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Channel-wise distillation.

    Args:
        student_tap: (B, C, H, W) or (B, C, tokens).
        teacher_tap: The same shape.
        temperature: What activations are divided by; above 0.

    Returns:
        A float32 scalar, in nats times T²; 0 where the taps are equal up to a shift of each channel of each image.
    """
    student = F.log_softmax(_channels(student_tap) / temperature, dim=1)
    teacher = F.log_softmax(_channels(teacher_tap) / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _channels(tap: Tensor) -> Tensor:
    """Every channel of every image as a row of positions."""
    return tap.float().unsqueeze(-1).flatten(2).flatten(0, 1)


LOSS = Loss(
    reads=("student.tap", "teacher.tap"), function=cwd, by_image=True, arguments=CWDArguments,
    summary="where in the image each channel is active", source="arXiv 2011.13256, ICCV 2021",
)  # fmt: skip

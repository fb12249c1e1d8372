"""Attention transfer: compares where taps are active, not in which channel.

    (q(s) - q(t))²,  q(x) = flat(mean_c x²) / ‖flat(mean_c x²)‖     mean over all entries

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, equation 2 with p = 2; as in
the authors' code, the square is averaged over the entries and carries no factor.
"""

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor

from fxdistill.losses import Loss


def attention(student_tap: Tensor, teacher_tap: Tensor) -> Tensor:
    """Attention transfer.

    Args:
        student_tap: (B, C, H, W) or (B, C, tokens); with the teacher's positions, of any width.
        teacher_tap: (B, C', H, W) or (B, C', tokens).

    Returns:
        A float32 scalar, at most 4 / (H W); of one position nothing can be told.
    """
    return F.mse_loss(_attention_map(student_tap), _attention_map(teacher_tap))


def _attention_map(tap: Tensor) -> Tensor:
    return F.normalize(tap.float().unsqueeze(-1).square().mean(1).flatten(1), dim=1)


LOSS = Loss(
    reads=("student.tap", "teacher.tap"), function=attention, by_image=True, same_shapes=False,
    summary="where a layer is active, not in which channel", source="arXiv 1612.03928, ICLR 2017",
)  # fmt: skip

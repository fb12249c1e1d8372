"""Similarity-preserving distillation: which images of a batch activate a layer alike.

    ‖G(s) - G(t)‖² / B²,      G(x) = A Aᵀ with rows of length 1, A the batch as rows

Widths need not agree. A row of G says how one image's activations lie to those of all others.

Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682, equations 1 to 4.
"""

import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor

from fxdistill.losses import Loss
from fxdistill.losses._products import gram

_LEAST = 1e-30


def sp(student_tap: Tensor, teacher_tap: Tensor) -> Tensor:
    """Similarity-preserving distillation.

    Args:
        student_tap: (B, ...); flattened for each sample.
        teacher_tap: (B, ...); its further shape may differ.

    Returns:
        A float32 scalar, at most 4 / B; 0 for B = 1 where neither is zero. An image whose tap is zero teaches
        nothing by its own row.
    """
    return F.mse_loss(_similarities(student_tap), _similarities(teacher_tap))


def _similarities(tap: Tensor) -> Tensor:
    rows = tap.float().flatten(1)
    size = rows.detach().abs().amax().clamp_min(_LEAST)  # G does not depend on it, its squares may leave float32
    products = gram(rows / size)
    return F.normalize(products, dim=1) * products.detach().any(1, keepdim=True)  # else a zero row's slope is 1e12


LOSS = Loss(
    reads=("student.tap", "teacher.tap"), function=sp, same_shapes=False,
    of_images=True, summary="which images of a batch activate a layer alike", source="arXiv 1907.09682, ICCV 2019",
)  # fmt: skip

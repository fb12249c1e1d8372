"""Relational distillation: how far the images of a batch lie from each other, and at which angles.

    distance · h(d(s), d(t)) + angle · h(cos(s), cos(t))        mean over pairs (B x B) and triples (B x B x B)

d_ij = ‖x_i - x_j‖ over its mean over pairs, cos_ijk that of the angle at x_j between x_i and x_k, h Huber's loss.
Widths need not agree, and neither value knows size or place of the features. Angles are taken from the products of
centred rows,

    (x_i - x_j)·(x_k - x_j) = G_ik - G_ij - G_jk + G_jj

so that B³ numbers are held (8 MB for 128 images, 0.5 GB for 512), and not B² times the width. Rows that are nearer to
each other than a thousandth of the usual distance have no direction.

Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, equations 5 to 8; the
weights are those of its classification.
"""

from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.losses import Loss
from fxdistill.losses._products import gram

_LEAST, _NEAR = 1e-18, 1e-6  # of the usual size of a row; of a squared distance, rows having size 1


class RKDArguments(Arguments):
    """``distance`` and ``angle``: the weights of the two."""

    distance: Annotated[float, Field(ge=0, le=1e6)] = 25.0
    angle: Annotated[float, Field(ge=0, le=1e6)] = 50.0


def rkd(student_tap: Tensor, teacher_tap: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Relational distillation.

    Args:
        student_tap: (B, ...); flattened for each sample.
        teacher_tap: (B, ...); its further shape may differ.
        distance: Weight of the distances.
        angle: Weight of the angles.

    Returns:
        A float32 scalar; 0 where one is the other moved, turned and scaled, and for B = 1.
    """
    (s_distances, s_angles), (t_distances, t_angles) = _relations(student_tap), _relations(teacher_tap)
    return distance * F.smooth_l1_loss(s_distances, t_distances) + angle * F.smooth_l1_loss(s_angles, t_angles)


def _relations(tap: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (B, B) over their mean, and cosines (B, B, B) of angles, the corner first."""
    rows = tap.float().flatten(1)
    rows = rows - rows.mean(0)
    size = rows.detach().square().sum(1).mean().sqrt().clamp_min(_LEAST)
    products = gram(rows / size)
    norms = products.diagonal()
    others = 1 - torch.diag_embed(torch.ones_like(norms))
    squares = norms.unsqueeze(1) + norms.unsqueeze(0) - 2 * products
    distances = squares.clamp_min(_NEAR).sqrt()
    mean = (distances * others).sum() / others.sum().clamp_min(1)
    inverse = others * (squares > _NEAR) / distances
    corner = products.unsqueeze(0) - products.unsqueeze(2) - products.unsqueeze(1) + norms[:, None, None]
    return distances * others / mean.clamp_min(_NEAR), corner * inverse.unsqueeze(2) * inverse.unsqueeze(1)


LOSS = Loss(
    reads=("student.tap", "teacher.tap"), function=rkd, arguments=RKDArguments, same_shapes=False,
    of_images=True, summary="distances and angles between the images of a batch", source="arXiv 1904.05068, CVPR 2019",
)  # fmt: skip

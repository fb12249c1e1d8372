"""Contrastive distillation: of one image, the student's embedding knows the teacher's among those of many others.

    -1/B Σ_i ( log h(s_i, T_i) + Σ_k log(1 - h(s_i, T_k)) )  +  the same with the roles exchanged
    h(a, b) = p / (p + K / N),    p = exp(a·b / T) / Z

s and t are the taps, averaged over positions, through a learned linear layer each, to length 1. What they are
compared with comes from a **memory** of all N training images, a running mean of each one's embedding: T_i its
teacher's (S_i its student's), and K others k that are drawn for each step. Z is set by the first batch, so that p has
the mean 1 / N.

The memory takes 8 N dim bytes on the device and in every checkpoint: 51 MB for the 50,000 images of CIFAR, 1.3 GB for
ImageNet. Two choices: the K others are drawn for a batch and not for each image (its products are one matrix, and not
a gather of B K rows: 1 GB a step), and they are any other images, those of the same class too, since no label is read.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699, equations 10 to
17; numbers, momentum and Z are those of its code.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor, nn

from fxdistill.arguments import Arguments
from fxdistill.errors import PlanError
from fxdistill.losses import Context, Loss
from fxdistill.losses._products import product

_EPS = 1e-7


class CRDArguments(Arguments):
    """``dim`` of the embedding, ``negatives`` a step, ``temperature``, ``momentum``: what the memory keeps a step."""

    dim: Annotated[int, Field(ge=1, le=1 << 16)] = 128
    negatives: Annotated[int, Field(ge=1, le=1 << 20)] = 16384
    temperature: Annotated[float, Field(ge=0.02, le=1000)] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5


class CRD(nn.Module):
    """The loss of one pair.

    Args:
        widths: Channels of the student's and of the teacher's tap.
        images: Number of training images.
        arguments: See :class:`CRDArguments`.
    """

    memory: Tensor
    scale: Tensor

    def __init__(self, widths: tuple[int, int], images: int, arguments: CRDArguments) -> None:
        super().__init__()
        self.arguments = arguments
        self.student, self.teacher = (nn.Linear(width, arguments.dim) for width in widths)
        self.register_buffer("memory", F.normalize(torch.rand(2, images, arguments.dim) - 0.5, dim=2))
        self.register_buffer("scale", torch.zeros(2))  # Z of both directions; 0 before the first batch

    def forward(self, student_tap: Tensor, teacher_tap: Tensor, index: Tensor) -> Tensor:
        """The loss, a float32 scalar, of taps (B, C, ...) and (B, C', ...) of the training images ``index`` (B,)."""
        both = torch.stack([_embedded(student_tap, self.student), _embedded(teacher_tap, self.teacher)])
        others = self.drawn(index.device)  # each is compared with the memory of the other role
        own = self.memory[:, index].flip(0)
        banks = self.memory[:, others].flip(0)
        similar = torch.stack([product(both[0], banks[0]), product(both[1], banks[1])])
        scores = torch.cat([(both * own).sum(2, keepdim=True), similar], 2) / self.arguments.temperature
        self._remember(index, both.detach())
        return self._contrast(scores, index.unsqueeze(1) != others)

    def drawn(self, device: torch.device) -> Tensor:
        """Positions (K,) of the images that a step's are told from."""
        return torch.randint(self.memory.shape[1], (self.arguments.negatives,), device=device)

    def _contrast(self, scores: Tensor, others: Tensor) -> Tensor:
        """The loss of a·b / T (2, B, 1 + K), the image's own first; ``others`` (B, K): which are of another image."""
        images, negatives = self.memory.shape[1], others.shape[1]
        first = (scores.detach().flatten(1).logsumexp(1) - math.log(scores[0].numel() / images)).exp()
        scale = torch.where(self.scale > 0, self.scale, first)
        if self.training:
            self.scale.copy_(scale)
        chance = negatives / images
        odds = scores - (scale * (chance + _EPS)).log()[:, None, None]  # log p / (K / N): p itself may leave float32
        knows = F.logsigmoid(odds[:, :, 0])
        told = (F.logsigmoid(-odds[:, :, 1:]) - math.log1p(_EPS / chance)) * others
        return -(knows.sum() + told.sum()) / len(others)

    def _remember(self, index: Tensor, both: Tensor) -> None:
        """Move the images' places in the memory towards what they are now."""
        if self.training:
            kept = self.arguments.momentum
            moved = kept * self.memory[:, index] + (1 - kept) * both
            self.memory.index_copy_(1, index, F.normalize(moved, dim=2))


def _embedded(tap: Tensor, layer: nn.Linear) -> Tensor:
    """Rows (B, dim) of length 1, of taps (B, C, ...)."""
    pooled = tap.float().unsqueeze(-1).flatten(2).mean(2)
    return F.normalize(product(pooled, layer.weight) + layer.bias, dim=1)


def build(context: Context, arguments: CRDArguments) -> CRD:
    """The loss for the taps of a pair.

    Raises:
        PlanError: The number of training images is not known.
    """
    if not context.train_size:
        raise PlanError(
            "the loss 'crd' remembers every training image, and their number is not known", where="data",
            hint="plan with --data, or with another method",
        )  # fmt: skip
    widths = context.shapes["student.tap"][1], context.shapes["teacher.tap"][1]
    return CRD(widths, context.train_size, arguments)


LOSS = Loss(
    reads=("student.tap", "teacher.tap", "index"), build=build, arguments=CRDArguments, same_shapes=False,
    of_images=True,
    summary="each image's embedding knows the teacher's among those of others", source="arXiv 1910.10699, ICLR 2020",
)  # fmt: skip

"""Uniform in [0, 1), from the seed: the control."""

import torch
from torch import Tensor

from fxdistill.criteria import Criterion
from fxdistill.ir.channels import Channels


def random(channels: Channels) -> Tensor:
    """One number for every class."""
    generator = torch.Generator().manual_seed(channels.seed)
    return torch.rand(channels.coupling.class_count + 1, generator=generator, dtype=torch.float64)


CRITERION = Criterion(score=random, summary="a control, from the seed")

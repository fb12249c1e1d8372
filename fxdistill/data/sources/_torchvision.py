"""CIFAR as torchvision unpacks it."""

from typing import Any

import torch

from fxdistill.data.dataset import Dataset, Split, checked
from fxdistill.data.sources import Request


def cifar(kind: Any, request: Request) -> Dataset:
    """The data of one of torchvision's two CIFAR classes, 3x32x32."""
    parts = [kind(str(request.place), train=train, download=False) for train in (True, False)]
    train, test = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return checked(train, test, parts[0].classes, where=request.spec, task=request.task)

"""Arrays of numpy's as tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """The same values; torch itself takes no array in the other byte order, and none that is read backwards.

    Raises:
        TypeError: It holds no numbers.
    """
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))

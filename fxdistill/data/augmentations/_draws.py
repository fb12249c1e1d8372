"""Random numbers that are a function of (seed, view, image), for all images of a batch at once.

Each image has a key, and a number is a hash of its key and of how many were drawn before (SplitMix64, Steele et al.,
2014). An image therefore sees the same whatever its neighbours in the batch are, and nothing global is read or moved.
"""

import hashlib
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass
class Draws:
    """Numbers for a batch of images.

    Attributes:
        keys: (N,) int64 on the CPU, one an image.
        count: How many numbers an image were drawn already.
    """

    keys: Tensor
    count: int = 0

    @classmethod
    def of(cls, seed: int, view: int, index: Tensor, *, what: str) -> Self:
        """The numbers of some images, by their positions in the split, for one purpose."""
        digest = hashlib.sha256(f"{what} {seed},{view}".encode()).digest()
        start = int.from_bytes(digest[:8], "little", signed=True)
        return cls(_hash(_hash(index.cpu().to(torch.int64)) + start))

    def uniform(self, count: int) -> Tensor:
        """The next numbers of each image: (N, count), float64 in 0 … 1 without 1."""
        return (_shifted(self._next(count), 11)).to(torch.float64) * 2.0**-53

    def below(self, most: int, count: int) -> Tensor:
        """The next whole numbers from 0 to below ``most``: (N, count), int64."""
        return (self.uniform(count) * most).to(torch.int64)

    def seeds(self) -> list[int]:
        """A seed an image, for what draws from a generator of torch."""
        found: list[int] = _shifted(self._next(1), 1).flatten().tolist()
        return found

    def _next(self, count: int) -> Tensor:
        places = torch.arange(self.count + 1, self.count + count + 1) * _signed(_GOLDEN)
        self.count += count
        return _hash(self.keys[:, None] + places)


def _hash(values: Tensor) -> Tensor:
    """The finaliser of SplitMix64; int64 wraps around as uint64 does."""
    values = (values ^ _shifted(values, 30)) * _signed(_FIRST)
    values = (values ^ _shifted(values, 27)) * _signed(_SECOND)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """A shift to the right that brings in zeros."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value

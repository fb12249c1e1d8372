"""Images that are read from disk, ahead of their use, by worker processes.

An error of ours passes from a worker as a value and is raised here, where it still says what, where and what to do.
Raised in the worker, torch would make another one from the text of the worker's traceback alone.

Whoever asks a whole group of processes to end (a terminal, ``timeout``) does not ask workers: the process that they
read for finishes what it has in hand, needs them for that, and ends them.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from fxdistill.errors import FxdistillError

_MOST_WORKERS = 8


class Readable(Protocol):
    """Images that are read one by one."""

    def __getitem__(self, index: int) -> Tensor:
        """One image (C, H, W)."""


@dataclass(frozen=True)
class _Guarded:
    images: Readable

    def __getitem__(self, index: int) -> Tensor | FxdistillError:
        try:
            return self.images[index]
        except FxdistillError as error:
            return error


def _grouped_apart(_worker: int) -> None:
    """In a worker: be no part of the group of the process that it reads for."""
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()


def _collated(items: list[Tensor | FxdistillError]) -> Any:
    return next((item for item in items if isinstance(item, FxdistillError)), None) or default_collate(items)


def read_ahead(images: Readable, batches: Sequence[Tensor], *, workers: int | None = None) -> Iterator[Tensor]:
    """The images of each batch of indices, (n, C, H, W).

    Args:
        images: What reads them; is sent to the workers.
        batches: The indices, batch after batch.
        workers: Number of processes; None for up to eight, one core being left to us. 0 reads here.

    Raises:
        FxdistillError: What reading an image raised.
        RuntimeError: A worker was ended from outside. It can come up wherever the program is then.
    """
    # the loader draws from a generator even where it has nothing to draw: not from the global one
    loader: Any = DataLoader(
        _Guarded(images),  # type: ignore[arg-type]
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=min(_MOST_WORKERS, (os.cpu_count() or 1) - 1) if workers is None else workers,
        collate_fn=_collated,
        generator=torch.Generator(),
        worker_init_fn=_grouped_apart,
    )
    for found in loader:
        if isinstance(found, FxdistillError):
            raise found
        yield found

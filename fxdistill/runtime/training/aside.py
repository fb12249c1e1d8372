"""Memory at its peak: what a step does not read is not in memory while it is taken.

A stage's program has copies of its own of what was folded and narrowed, or laid out anew. The weights that they were
made of, and those that training starts from, are read when the next stage or trial begins and at a run's end. They are
put **aside**: into a file that has no name, mapped into memory, of which a part is there once it is read and goes
when it is let go of. So a step holds the teacher once, as a loop by hand does.

What nobody holds any more is let go of as well: torch.fx makes a circle of a module and its graph, and its weights
stay until Python's collector comes by.
"""

import ctypes
import gc
import mmap
import sys
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

WORTH = 1 << 25
"""Bytes of weights that are worth a file, and the third of a second that a collection takes."""
_ALIGNED = 64


@dataclass
class Aside:
    """Weights that lie in files, mapped into memory.

    Attributes:
        folder: Where the files lie; as they have no names there, nothing is left of them however a run ends.
    """

    folder: Path
    _mapped: "list[tuple[weakref.ref[mmap.mmap], range]]" = field(default_factory=list)

    def put(self, tensors: Iterable[Tensor], *, written: Iterable[Tensor] = ()) -> None:
        """Put some tensors aside that nobody writes to: each is what it was, and shares memory with those it did.

        Those on an accelerator, and too few bytes, stay where they are; all do where the disk has no room.

        Args:
            tensors: The tensors.
            written: Tensors that are written to: what shares memory with one of them stays as well.
        """
        shared, busy = dict[int, list[Tensor]](), set(map(_place, written))
        done = [places for memory, places in self._mapped if memory() is not None]
        for tensor in tensors:
            place = _place(tensor)
            if place and place not in busy and not any(place in places for places in done):
                shared.setdefault(place, []).append(tensor)
        whole = [_bytes_of(own[0]) for own in shared.values()]
        if sum(map(len, whole)) < WORTH:
            return
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                for content in whole:
                    file.write(content.numpy().data)
                    file.write(bytes(-len(content) % _ALIGNED))
                file.flush()
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError:
            return
        found = torch.frombuffer(memory, dtype=torch.uint8)
        self._mapped.append((weakref.ref(memory), range(found.data_ptr(), found.data_ptr() + len(found))))
        sizes = [len(content) - len(content) % -_ALIGNED for content in whole]
        for part, content, own in zip(found.split(sizes), whole, shared.values(), strict=True):
            alone = torch.frombuffer(memory, dtype=torch.uint8, count=len(content), offset=part.storage_offset())
            for tensor in own:
                form = tensor.storage_offset(), tensor.size(), tensor.stride()
                tensor.data = torch.empty(0, dtype=tensor.dtype).set_(alone.untyped_storage(), *form)

    def let_go(self) -> None:
        """Let go of what was read of them, until it is read again."""
        for memory, _ in self._mapped:
            if (found := memory()) is not None and hasattr(mmap, "MADV_DONTNEED"):
                found.madvise(mmap.MADV_DONTNEED)


def _place(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 for one that has none, or none that can be mapped."""
    plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_quantized
    return tensor.untyped_storage().data_ptr() if plain else 0


def _bytes_of(tensor: Tensor) -> Tensor:
    """The memory that a tensor lies in."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def collect(module: nn.Module) -> None:
    """Let go of what is held in circles alone, where the weights of a module say that it is worth the time."""
    if sum(parameter.nbytes for parameter in module.parameters()) >= WORTH:
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
            trim(0)  # glibc keeps what is free, in pieces

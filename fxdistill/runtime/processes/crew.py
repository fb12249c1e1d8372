"""The processes of a run: one, or several that divide every batch among themselves.

Several carry the same run out in step: the same plan, weights and order of images. Of each batch of the plan, n images,
process r of N takes a part,

    rows  n r // N  …  n (r + 1) // N          all n, where that would leave a process without any

so that together they take the steps that one would take. What hangs on a whole batch (batch statistics, a loss) is made
of all parts, and is the same number L in all of them. Gradients flow back through what joins the parts and are those of
N L with respect to what a process has put in; their mean over the processes, which Fabric's DDP takes, is that of L.

What is written, measured with a clock or decided for all is done by the first process, which tells the others.
"""

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from fxdistill.errors import FxdistillError

Value = TypeVar("Value")
_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Standing:
    """Where a process stands among those of a run, as ``torchrun`` says in the environment.

    Attributes:
        rank: Its number; the first is 0.
        count: How many there are.
        local: How many of them are on this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 1

    @classmethod
    def here(cls) -> "Standing":
        """That of this process."""
        if not all(os.environ.get(name, "").isdecimal() for name in _NAMES):
            return cls()
        rank, _, count, local = (int(os.environ[name]) for name in _NAMES)
        return cls(rank, count, local)


@dataclass
class Crew:
    """The processes, as one of them sees them; a single one, unless said otherwise.

    Attributes:
        rank: Number of this process.
        count: How many there are.
        whole: Images of the batch in hand, all parts together.
    """

    rank: int = 0
    count: int = 1
    whole: int = 0
    _alone: bool = field(default=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def is_several(self) -> bool:
        """Whether there are others that do now what this one does."""
        return self.count > 1 and not self._alone

    def divides(self, whole: int) -> bool:
        """Whether a batch is divided, or everybody's."""
        return self.is_several and whole >= self.count

    def part(self, whole: int, rank: int | None = None) -> slice:
        """Which rows of a batch a process takes, this one unless said otherwise."""
        if not self.divides(whole):
            return slice(0, whole)
        rank = self.rank if rank is None else rank
        return slice(whole * rank // self.count, whole * (rank + 1) // self.count)

    def rows(self, rank: int | None = None) -> int:
        """How many images of the batch in hand a process has."""
        found = self.part(self.whole, rank)
        return int(found.stop - found.start)

    @property
    def share(self) -> float:
        """The share of the batch in hand that this process has."""
        return self.rows() / max(1, self.whole)

    def gathered(self, value: Tensor) -> Tensor:
        """All rows of a value that has one for each image of the batch in hand; gradients flow back to the parts."""
        if not self.divides(self.whole):
            return value
        return _Gathered.apply(value, self)  # type: ignore[no-any-return]

    def summed(self, value: Tensor) -> Tensor:
        """The sum of the processes' values; gradients flow back to each. Of a batch that is everybody's, the value."""
        if not self.divides(self.whole):
            return value
        return _Summed.apply(value)  # type: ignore[no-any-return]

    def most(self, value: int) -> int:
        """The largest of the processes' numbers."""
        if not self.is_several:
            return value
        found = torch.tensor(value)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def first(self, work: Callable[[], Value]) -> Value:
        """What the first process makes; it alone does the work, and what goes wrong there goes wrong in all."""
        if not self.is_several:
            return work()
        told: list[Any] = [None, None]
        wrong: FxdistillError | None = None
        if self.is_first:
            self._alone = True
            try:
                told[0] = work()
            except FxdistillError as error:
                wrong, told[1] = error, pickle.dumps(error)
            finally:
                self._alone = False
        distributed.broadcast_object_list(told, 0)
        if told[1] is not None:
            raise wrong or pickle.loads(told[1])  # noqa: S301  # what the first process of this run has just raised
        return told[0]  # type: ignore[no-any-return]


class _Summed(torch.autograd.Function):
    """The sum over processes; backward that of the gradients."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        found = value.clone()
        distributed.all_reduce(found)
        return found

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        found = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(found)
        return found


class _Gathered(torch.autograd.Function):
    """All rows. What is made of them is the same in all processes, so that each knows the others' gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor, crew: Crew) -> Tensor:
        sizes = [crew.rows(rank) for rank in range(crew.count)]
        context.part, context.count = crew.part(crew.whole), crew.count
        sent = value.new_zeros((max(sizes), *value.shape[1:]))
        sent[: len(value)] = value
        found = [torch.empty_like(sent) for _ in sizes]
        distributed.all_gather(found, sent)
        return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][context.part] * context.count, None

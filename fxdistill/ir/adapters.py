"""Adapters: what brings the two taps of a pair to one shape, as modules; and calls of what has no name."""

from collections.abc import Callable

from torch import Tensor, nn

from fxdistill.plan.schema import Tap


class Projection(nn.Module):
    """A learned encoder from the student's to the teacher's width: a 1x1 convolution (FitNets, Romero et al., 2015).

    Reads the student's tap in its own layout and returns the same layout.
    """

    def __init__(self, student: Tap, width: int) -> None:
        super().__init__()
        self.channel_dim = student.channel_dim
        self.weight = nn.Linear(student.width, width, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        """Apply to the channel dimension."""
        return self.weight(value.movedim(self.channel_dim, -1)).movedim(-1, self.channel_dim)  # type: ignore[no-any-return]


class Called(nn.Module):
    """A callable that is neither a module nor a function with a name, such as a ``functools.partial``."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor, **arguments: object) -> Tensor:
        """Call it."""
        return self.function(*values, **arguments)

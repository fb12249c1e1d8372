"""What a smaller model leaves out in training mode is said, and nothing is said where it leaves out nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.compiler.training_mode import otherwise_in_training
from fxdistill.diagnostics import Diagnostic
from fxdistill.passes.trace import Trace
from tests.user_models import IMAGE, conv, pooled, randomized


class Small(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 5)
        self.register_buffer("center", torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = y + self.between(self.b(y))
        return self.head(pooled(y))  # type: ignore[no-any-return]

    def between(self, y: Tensor) -> Tensor:
        return y


class DropsPaths(Small):
    def between(self, y: Tensor) -> Tensor:
        return y * (torch.rand(len(y), 1, 1, 1) > 1e-6) if self.training else y


class Centers(Small):
    def between(self, y: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("center").mul_(0.9).add_(0.1 * y.detach().mean((0, 2, 3)).view(-1, 1, 1))
        return y - self.get_buffer("center")


class KeepsStatistics(Small):
    def train(self, mode: bool = True) -> "KeepsStatistics":
        super().train(mode)
        self.b.eval()
        return self


class TwoHeads(Small):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return (y, y * 2) if self.training else y


def dropped() -> nn.Module:
    """Layers of torch change with the mode; nothing is left out."""
    return nn.Sequential(conv(3, 8), nn.Dropout2d(0.5), conv(8, 8), nn.Flatten(), nn.Dropout(), nn.Linear(2048, 5))


class OnlyEvaluates(Small):
    def between(self, y: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("not made for training")
        return y


class TwiceNamed(Small):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.b


def said(net: nn.Module) -> list[Diagnostic]:
    result = shrink_model(randomized(net), input_shape=IMAGE, keep=0.5)
    return [remark for remark in result.diagnostics if remark.code == "frozen-mode"]


@pytest.mark.parametrize(
    ("make", "words"),
    [(DropsPaths, "in training mode"), (Centers, "updates the buffer 'center'"), (KeepsStatistics, "in training mode"),
     (TwoHeads, "in training mode")],
)  # fmt: skip
def test_what_training_alone_does_is_said(make: Callable[[], nn.Module], words: str) -> None:
    (remark,) = said(make())
    assert words in remark.why
    assert remark.where == make.__name__


@pytest.mark.parametrize("make", [Small, dropped, OnlyEvaluates, TwiceNamed])
def test_nothing_is_said_of_others(make: Callable[[], nn.Module]) -> None:
    assert said(make()) == []


def test_the_model_stays_as_it_was() -> None:
    net = randomized(Centers())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    traced = Trace(IMAGE)(net).value
    drawn = torch.get_rng_state()
    assert len(list(otherwise_in_training(net, traced))) == 1
    assert not any(part.training for part in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)

"""How alike two layers are."""

import pytest
import torch
from torch import nn

from fxdistill.ir.contract import PassManager
from fxdistill.measure.similarity import Reading, cka, features
from fxdistill.passes.trace import Trace


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_a_rotation_and_a_scale_change_nothing() -> None:
    x = drawn(64, 16)
    turned = x @ torch.linalg.qr(drawn(16, 16, 1))[0] * 7 + 3
    assert cka(x, turned) == pytest.approx(1, abs=1e-6)


def test_it_is_the_formula_written_out() -> None:
    x, y, n = drawn(12, 3).double(), drawn(12, 5, 1).double(), 12
    x, y = x - x.mean(0), y - y.mean(0)

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        k, l_ = a @ a.T, b @ b.T
        k, l_ = k - k.diag().diag(), l_ - l_.diag().diag()
        one = torch.ones(n, dtype=torch.double)
        middle = (one @ k @ one) * (one @ l_ @ one) / ((n - 1) * (n - 2))
        return float((torch.trace(k @ l_) + middle - 2 / (n - 2) * (one @ k @ l_ @ one)) / (n * (n - 3)))

    assert cka(x, y) == pytest.approx(hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5, abs=1e-9)


def test_features_that_have_nothing_in_common_are_not_alike_however_many_there_are() -> None:
    found = cka(drawn(64, 4000), drawn(64, 4000, 1))
    assert found is not None
    assert abs(found) < 0.1  # the plain estimator says 0.98


def test_of_too_few_images_or_constant_features_nothing_is_said() -> None:
    assert cka(drawn(7, 3), drawn(7, 3)) is None
    assert cka(torch.ones(20, 3), drawn(20, 3)) is None


def test_features_of_every_layout() -> None:
    assert features(torch.rand(2, 3, 20, 4), "nchw").shape == (2, 3 * 8 * 4)
    x = torch.rand(2, 5, 6, 3)
    assert torch.equal(features(x, "nhwc"), features(x.permute(0, 3, 1, 2), "nchw"))
    assert features(torch.rand(2, 197, 8), "tokens").shape == (2, 8 * 64)
    assert features(torch.rand(2, 9), "features").shape == (2, 9)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.act(self.conv(x)).mean((2, 3))
        return answer


def test_a_value_is_read_before_it_is_written_over() -> None:
    model, x = InPlace().eval(), drawn(6, 25).reshape(6, 1, 5, 5)
    traced = PassManager(prove=False).run(Trace((1, 1, 5, 5)), model)
    with traced.running():
        read = Reading(traced, {"conv": "nchw"}).read([x[:4], x[4:]])
    assert torch.equal(read["conv"], model.conv(x).flatten(1).detach())
    assert bool((read["conv"] < 0).any())

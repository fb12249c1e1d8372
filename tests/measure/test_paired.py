"""How far two models are apart on the same images: intervals by hand, by theory, and on what cannot be told."""

import math

import pytest
import torch
from torch import Tensor

from fxdistill.measure.paired import ADJUSTED, BOOTSTRAP, paired
from fxdistill.tasks._tallies import Means, Rankings, Ratios


def means(scores: Tensor) -> Means:
    return Means(scores, torch.zeros(len(scores), dtype=torch.int64))


def right(alone_first: int, alone_second: int, both: int, neither: int) -> tuple[Means, Means]:
    first = [True] * alone_first + [False] * alone_second + [True] * both + [False] * neither
    second = [False] * alone_first + [True] * alone_second + [True] * both + [False] * neither
    return means(torch.tensor(first)), means(torch.tensor(second))


def test_shares_by_hand() -> None:
    found = paired(*right(9, 1, 60, 30))
    assert found.values == (0.69, 0.61)
    assert found.value == pytest.approx(-0.08)
    gained, lost = 2 / 102, 10 / 102
    half = 1.959964 * math.sqrt((gained + lost - (gained - lost) ** 2) / 102)
    assert found.low == pytest.approx(gained - lost - half)
    assert found.high == pytest.approx(gained - lost + half)
    assert found.alone == (9, 1)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)  # 0 or 1 of 10, and as far on the other side
    assert found.interval == ADJUSTED


def test_the_order_of_the_two_is_a_sign() -> None:
    one, other = paired(*right(9, 1, 60, 30)), paired(*right(1, 9, 60, 30))
    assert one.value == pytest.approx(-other.value)
    for value, turned in ((one.low, other.high), (one.high, other.low)):
        assert turned is not None
        assert value == pytest.approx(-turned)


def test_two_that_are_right_on_the_same_images_have_an_interval_all_the_same() -> None:
    found = paired(*right(0, 0, 3, 1))
    assert (found.value, found.p, found.alone) == (0, 1.0, (0, 0))
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low < 0 < found.high <= 1
    single = paired(*right(0, 1, 0, 0))
    assert single.low is not None
    assert (single.low >= -1, single.high is not None and single.high <= 1) == (True, True)


def test_what_the_pairs_have_in_common_cancels() -> None:
    chance = torch.Generator().manual_seed(0)
    hard, noise = torch.randn(400, generator=chance).exp() * 10, torch.randn(400, generator=chance) * 0.1
    found = paired(means(hard), means(hard + 0.05 + noise))
    assert found.interval == BOOTSTRAP
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * float(noise.std()) / 20
    centre = 0.05 + float(noise.mean())
    assert found.value == pytest.approx(centre, abs=1e-5)
    assert found.low == pytest.approx(centre - half, abs=0.2 * half)
    assert found.high == pytest.approx(centre + half, abs=0.2 * half)
    assert paired(means(hard), means(hard + 0.05 + noise)) == found
    assert (found.p, found.alone) == (None, None)


def test_metrics_that_are_no_means_of_images() -> None:
    chance = torch.Generator().manual_seed(0)
    scores, known = torch.randn(50, 3, generator=chance), (torch.rand(50, 3, generator=chance) < 0.4).long()
    known[:, 2] = torch.where(torch.arange(50) == 7, 1, 0)  # many samples have no image of the last class
    found = paired(Rankings(scores, known), Rankings(scores + 2 * known, known))
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high < 1
    pixels = torch.randint(1, 9, (50, 3), generator=chance)
    same = paired(Ratios(pixels, pixels + 1, pixels), Ratios(pixels, pixels + 1, pixels))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_of_one_image_there_is_no_interval() -> None:
    found = paired(means(torch.tensor([1.0])), means(torch.tensor([3.0])))
    assert (found.value, found.low, found.high) == (2.0, None, None)

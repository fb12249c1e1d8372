"""Paired differences by hand."""

import pytest

from fxdistill.measure.differences import Difference, paired


def test_by_hand() -> None:
    """Differences 1, 2, 6: mean 3, deviation sqrt(7); t(97.5 %, 2) = 4.3027."""
    found = paired({0: 11.0, 1: 12.0, 2: 16.0, 7: 99.0}, {2: 10.0, 1: 10.0, 0: 10.0}, beside="kd")
    assert found is not None
    assert (found.beside, found.mean, found.seeds) == ("kd", 3.0, 3)
    half = 4.302653 * 7**0.5 / 3**0.5
    assert [found.low, found.high] == pytest.approx([3 - half, 3 + half])


def test_one_seed_has_no_interval_and_none_no_difference() -> None:
    assert paired({4: 0.75}, {4: 0.5}, beside="control") == Difference("control", 0.25, None, None, 1)
    assert paired({4: 0.75}, {5: 0.5}, beside="control") is None


def test_differences_that_are_all_the_same_have_no_interval_unless_they_are_zero() -> None:
    """Of 40 images each seed gains one: an interval of no width would promise that the next one gains one too."""
    one, other = {0: 0.9, 1: 0.7}, {0: 0.875, 1: 0.675}
    found = paired(one, other, beside="kd")
    assert found is not None
    assert (found.low, found.high, found.seeds) == (None, None, 2)
    assert found.mean == pytest.approx(0.025)
    assert paired(one, one, beside="kd") == Difference("kd", 0.0, 0.0, 0.0, 2)

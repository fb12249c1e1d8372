"""The time that is left, learnt from what a run took so far."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxdistill.report.remaining import Remaining

COSTS = {"distilled": [(2, 0.5), (4, 1.0)], "control": [(6, 0.25)]}
ORDER = ["distilled", "control", "distilled", "control"]


def test_nothing_is_known_before_something_was_done() -> None:
    left = Remaining(COSTS, ORDER)
    assert left.seconds() is None
    left.note(0, 0, 0.5, 100.0)  # of a resumed run what was done before says nothing
    assert left.seconds() is None


def test_costs_are_the_first_guess_and_what_was_seen_takes_their_place() -> None:
    left = Remaining(COSTS, ORDER)
    left.note(0, 0, 0.0, 0.0)
    left.note(0, 0, 0.5, 1.0)  # 2 s an epoch, of a cost of 0.5: 4 s a unit
    trial = 2 * 2 + 4 * 4 + 6 * 1
    assert left.seconds() == pytest.approx(2 * trial - 1)
    left.note(0, 0, 2.0, 4.0)
    left.note(0, 1, 0.25, 9.0)  # what lies between two stages is neither's
    assert left.seconds() == pytest.approx(2 * trial - 4 - 0.25 * 4)
    left.note(0, 1, 1.25, 19.0)  # 10 s an epoch instead of 4; the unit is 12 s for 1.5
    assert left.seconds() == pytest.approx(2.75 * 10 + 6 * 2 + (2 * 2 + 4 * 10) + 6 * 2)


def test_an_earlier_seed_tells_of_a_later_one_and_what_ended_early_is_not_waited_for() -> None:
    left = Remaining(COSTS, ORDER)
    for trial, stage, epochs, now in (
        (0, 0, 0, 0),
        (0, 0, 1, 3),
        (0, 1, 0, 3),
        (0, 1, 4, 11),
        (1, 0, 0, 11),
        (1, 0, 6, 17),
    ):
        left.note(trial, stage, epochs, now)
    assert left.seconds() == pytest.approx(2 * 3 + 4 * 2 + 6 * 1)
    left.note(2, 1, 0.0, 20.0)  # the first stage ended on a plateau
    assert left.seconds() == pytest.approx(4 * 2 + 6)
    left.note(3, 0, 6.0, 30.0)
    assert left.seconds() == 0


@given(st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3))
def test_a_run_whose_epochs_take_what_they_cost_is_known_from_its_first_step(paces: list[float]) -> None:
    costs = {"a": [(2.0, paces[0]), (3.0, paces[1])], "b": [(1.0, paces[2])]}
    left = Remaining(costs, ["a", "b"])
    left.note(0, 0, 0.0, 0.0)
    left.note(0, 0, 0.125, 0.125 * 7 * paces[0])
    assert left.seconds() == pytest.approx(7 * (1.875 * paces[0] + 3 * paces[1] + paces[2]))

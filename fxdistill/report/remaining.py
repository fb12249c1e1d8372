"""The time that is left of a run, learnt from what it took so far.

    left = Σ over arms and stages   epochs left · seconds of an epoch

The seconds of an epoch are those that the stage took itself, in this process: in the epochs before, or under an earlier
seed. A stage that has not begun takes as much longer or shorter than those that have as the plan's costs say; the first
steps of the first stage are thus enough for a guess.
"""

from collections.abc import Mapping, Sequence

Place = tuple[str, int]
"""An arm's name, and the number of a stage in it."""


class Remaining:
    """Learns how long epochs take.

    Args:
        costs: Of each arm, by stage, its epochs and what one costs, in any unit.
        order: The arms as they are trained, one a trial.
    """

    def __init__(self, costs: Mapping[str, Sequence[tuple[float, float]]], order: Sequence[str]) -> None:
        self._costs, self._order = costs, order
        self._took: dict[Place, tuple[float, float]] = {}
        self._last: tuple[int, Place, float, float] | None = None

    def note(self, trial: int, stage: int, epochs: float, now: float) -> None:
        """Learn that a trial has done so many epochs of a stage at a time, in seconds of any clock."""
        place = (self._order[trial], stage)
        if self._last is not None and self._last[:2] == (trial, place):
            seconds, done = self._took.get(place, (0.0, 0.0))
            self._took[place] = (seconds + now - self._last[3], done + epochs - self._last[2])
        self._last = (trial, place, epochs, now)

    def seconds(self) -> float | None:
        """The seconds that are left; None while nothing is known."""
        known = {place: s / done for place, (s, done) in self._took.items() if done > 0}
        if self._last is None or not known:
            return None
        trial, (_, stage), epochs, _ = self._last
        cost = sum(self._costs[arm][number][1] for arm, number in known)
        pace = sum(known.values()) / max(cost, 1e-9)
        left = 0.0
        for later, arm in enumerate(self._order[trial:]):
            for number, (whole, price) in enumerate(self._costs[arm]):
                done = 0.0 if later or number > stage else epochs if number == stage else whole
                left += max(0.0, whole - done) * known.get((arm, number), price * pace)
        return left

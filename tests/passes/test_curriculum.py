"""Curriculum: what the user says of a method's warm-ups, as numbers of the plan."""

from typing import Any

import pytest

from fxdistill.errors import InputError
from fxdistill.methods import Recipe
from fxdistill.passes.schedule import Schedule
from fxdistill.passes.schedule.curriculum import Curriculum
from fxdistill.plan.training import LossTerm, Plateau, Stage
from tests.tiny_models import planned

PAIR = planned("body", "body", (2, 8, 8, 8), (2, 4, 8, 8)).pairs[0]
HARD = {"a": 0.6, "b": 0.2, "c": 0.4}
PAIRS = tuple(PAIR.changed(name=name, difficulty=hard) for name, hard in HARD.items())
OWN, IMITATION = LossTerm(loss="cross-entropy"), LossTerm(loss="kd")


def stages(method: str = "indistill", *, epochs: int = 24, pairs: Any = PAIRS, **said: Any) -> list[Stage]:
    made = Schedule(method, Curriculum(**said))(Recipe(pairs, OWN, IMITATION, epochs=epochs)).value
    assert (made[-1].name, made[-1].epochs, made[-1].plateau) == ("main", epochs, None)
    return list(made)


def told(made: list[Stage]) -> list[tuple[str, int, str]]:
    return [(stage.name, stage.epochs, str(stage.losses[0].pair)) for stage in made[:-1]]


USUAL = [("warm-up-1", 3, "a"), ("warm-up-2", 4, "b"), ("warm-up-3", 5, "c")]


def test_without_a_word_it_is_the_methods_own() -> None:
    assert stages() == list(Schedule()(Recipe(PAIRS, OWN, IMITATION, epochs=24)).value)
    assert told(stages()) == USUAL


@pytest.mark.parametrize(
    ("share", "epochs", "lengths"),
    [(1 / 3, 24, [3, 4, 5]), (0.5, 24, [6, 8, 10]), (0.2, 12, [1, 1, 1]), (0.2, 48, [3, 4, 5]), (0.1, 45, [1, 2, 2])],
)
def test_a_share_of_all_epochs_is_divided_as_the_method_divides(share: float, epochs: int, lengths: list[int]) -> None:
    for method in ("indistill", "indistill-released+kd"):
        made = stages(method, epochs=epochs, share=share)
        assert [stage.epochs for stage in made[:-1]] == lengths
        assert sum(lengths) == round(share * (sum(lengths) + epochs))


def test_earlier_pairs_are_kept_with_a_weight_that_falls_every_epoch() -> None:
    made = stages(keep_earlier=0.5)
    terms = [[(term.name, term.weight, term.decay) for term in stage.losses] for stage in made[:-1]]
    assert terms == [
        [("mse[a]", 1.0, 1.0)],
        [("mse[b]", 1.0, 1.0), ("mse[a]", 0.5, 0.5)],
        [("mse[c]", 1.0, 1.0), ("mse[b]", 0.5, 0.5), ("mse[a]", 0.5**5, 0.5)],  # a: four epochs of b lie between
    ]
    assert [stage.epochs for stage in made] == [stage.epochs for stage in stages()]
    assert made[-1] == stages()[-1]
    assert {term.compare for stage in made[:-1] for term in stage.losses} == {"standardized"}


def test_a_weight_that_is_nothing_any_more_costs_nothing() -> None:
    assert [len(stage.losses) for stage in stages(keep_earlier=0.001)] == [1, 2, 2, 2]


def test_a_plateau_is_of_warm_ups_alone() -> None:
    plateau = Plateau(share=0.01, epochs=2)
    assert [stage.plateau for stage in stages(plateau=plateau)] == [plateau, plateau, plateau, None]


def test_difficulty_decides_the_order_or_the_lengths() -> None:
    assert told(stages(probe="order")) == [("warm-up-1", 3, "b"), ("warm-up-2", 4, "c"), ("warm-up-3", 5, "a")]
    assert told(stages(probe="lengths")) == [("warm-up-1", 6, "a"), ("warm-up-2", 2, "b"), ("warm-up-3", 4, "c")]
    both = told(stages(probe="lengths", share=0.5))
    assert both == [("warm-up-1", 12, "a"), ("warm-up-2", 4, "b"), ("warm-up-3", 8, "c")]
    hard = [PAIR.changed(name=name, difficulty=value) for name, value in zip("abc", (0.37, 0.85, 0.95), strict=True)]
    once = stages(probe="lengths", share=0.5, epochs=6, pairs=hard)  # rounded once: 1.02, 2.35, 2.63
    assert [stage.epochs for stage in once[:-1]] == [1, 2, 3]
    earlier = stages(probe="order", keep_earlier=0.5)[1]
    assert [term.name for term in earlier.losses] == ["mse[c]", "mse[b]"]


@pytest.mark.parametrize("hard", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1e-9, 1.0, 1e-9)])
def test_no_pair_is_left_without_an_epoch(hard: tuple[float, ...]) -> None:
    pairs = tuple(pair.changed(difficulty=value) for pair, value in zip(PAIRS, hard, strict=True))
    lengths = [stage.epochs for stage in stages(pairs=pairs, probe="lengths")[:-1]]
    assert min(lengths) >= 1
    assert sum(lengths) == 12
    if not any(hard):
        assert lengths == [4, 4, 4]


@pytest.mark.parametrize(
    ("said", "where", "what"),
    [({"share": 0.0}, "--warm-up-share", "between 0 and 1"), ({"share": 1.0}, "--warm-up-share", "between 0 and 1"),
     ({"share": float("nan")}, "--warm-up-share", "between"), ({"keep_earlier": 1.5}, "--keep-earlier", "between"),
     ({"probe": "depth"}, "--probe", "'depth' is not something"), ({"share": 0.05}, "--warm-up-share", "are 1")],
)  # fmt: skip
def test_what_is_no_curriculum_is_refused(said: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as refusal:
        stages(**said)
    assert refusal.value.where == where


@pytest.mark.parametrize("said", [{"share": 0.5}, {"keep_earlier": 0.5}, {"plateau": Plateau(share=0.1)}])
def test_a_method_without_a_warm_up_has_none_to_say_anything_of(said: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no warm-up"):
        stages("kd", **said)


def test_difficulty_that_nobody_measured_decides_nothing() -> None:
    with pytest.raises(InputError, match="'warm-up-1' is not about one pair whose difficulty was measured"):
        stages(pairs=tuple(pair.changed(difficulty=None) for pair in PAIRS), probe="order")

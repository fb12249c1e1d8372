"""Schedule: a method's name as explicit numbers."""

from collections.abc import Callable

import pytest

from fxdistill.errors import InputError, InvariantError, PairingError, PlanError
from fxdistill.ir.contract import PassManager
from fxdistill.methods import Recipe
from fxdistill.passes.schedule import Schedule
from fxdistill.passes.schedule.curriculum import Curriculum
from fxdistill.plan.schema import Pair
from fxdistill.plan.training import LossTerm, Stage
from tests.tiny_models import planned

PAIR = planned("body", "body", (2, 8, 8, 8), (2, 4, 8, 8)).pairs[0]
PAIRS: tuple[Pair, ...] = tuple(PAIR.changed(name=name) for name in ("a", "b", "c"))
OWN, IMITATION = LossTerm(loss="cross-entropy"), LossTerm(loss="kd")


def test_indistill_warms_up_from_shallow_to_deep_and_drops_what_was_before() -> None:
    stages = Schedule()(Recipe(PAIRS, OWN, IMITATION, epochs=20, lr=0.01)).value
    told = [(s.name, s.epochs, s.schedule, [(t.name, t.weight) for t in s.losses]) for s in stages]
    assert told == [
        ("warm-up-1", 3, "constant", [("mse[a]", 1.0)]),
        ("warm-up-2", 4, "constant", [("mse[b]", 1.0)]),
        ("warm-up-3", 5, "constant", [("mse[c]", 1.0)]),
        ("main", 20, "cosine", [("cross-entropy", 0.1), ("kd", 0.9)]),
    ]
    assert {(stage.optimizer.name, stage.optimizer.lr) for stage in stages} == {("adam", 0.01)}
    assert stages[-1].losses[1].args == {"temperature": 4.0}


def test_it_is_said_where_warm_ups_take_more_epochs_than_the_main_stage() -> None:
    def said(epochs: int, share: float | None = None) -> list[str]:
        recipe = Recipe(PAIRS, OWN, IMITATION, epochs=epochs)
        return [f"{d.code}: {d.why}" for d in Schedule(curriculum=Curriculum(share))(recipe).diagnostics]

    assert said(12) == said(3, share=0.7) == []
    (long,) = said(11)
    assert long.startswith("long-warm-up: warm-ups take 12 epochs and the main stage 11,")


def test_kd_is_the_main_stage_alone() -> None:
    alone = Schedule("kd")(Recipe(PAIRS, OWN, IMITATION)).value
    assert (
        alone
        == Schedule("kd")(Recipe((), OWN, IMITATION)).value
        == Schedule()(Recipe(PAIRS, OWN, IMITATION)).value[-1:]
    )


@pytest.mark.parametrize("method", ["indistill", "attention", "pkt", "indistill+attention"])
def test_some_methods_need_pairs(method: str) -> None:
    with pytest.raises(PairingError, match=f"the method '{method.replace('+', '.')}' needs at least one pair"):
        PassManager().run(Schedule(method), Recipe((), OWN, IMITATION))


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("epochs", -1), ("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("lr", float("inf"))],
)
def test_numbers_that_no_stage_can_have(name: str, value: float) -> None:
    with pytest.raises(PlanError, match=f"{name} is {value}"):
        PassManager().run(Schedule(), Recipe(PAIRS, OWN, IMITATION, **{name: value}))  # type: ignore[arg-type]


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(InputError, match="there is no method named 'indistil'") as caught:
        PassManager().run(Schedule("indistil+kd"), Recipe(PAIRS, OWN, IMITATION))
    assert "did you mean 'indistill'" in caught.value.hint
    assert caught.value.exit_code == 2


def twice(stages: list[Stage]) -> list[Stage]:
    return [stages[0], *stages]


def renamed(stages: list[Stage]) -> list[Stage]:
    return [*stages[:-1], stages[-1].changed(name="end")]


def shorter(stages: list[Stage]) -> list[Stage]:
    return [*stages[:-1], stages[-1].changed(epochs=1)]


def stranger(stages: list[Stage]) -> list[Stage]:
    return [stages[0].changed(losses=[stages[0].losses[0].changed(pair="d")]), *stages[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (twice, "two stages have one name: warm-up-1, warm-up-1"),
        (lambda stages: stages[::-1], "the main stage is not last"),
        (lambda stages: stages[:-1], "the main stage is not last"),
        (lambda _: [], "the main stage is not last"),
        (renamed, "the main stage is not last"),
        (shorter, "not as long as was asked for"),
        (stranger, "a stage names the pair 'd', which there is not"),
    ],
)
def test_a_wrong_result_is_refused(change: Callable[[list[Stage]], list[Stage]], message: str) -> None:
    recipe = Recipe(PAIRS, OWN, IMITATION)
    right = Schedule()(recipe).value
    Schedule().ensures(recipe, right)
    with pytest.raises(InvariantError, match=message):
        Schedule().ensures(recipe, tuple(change(list(right))))

"""Schedule: a method's name as explicit numbers."""

import pytest

from fxdistill.errors import PairingError, PlanError
from fxdistill.ir.contract import PassManager
from fxdistill.passes.schedule import Schedule, control
from fxdistill.plan.schema import Pair
from tests.tiny_models import planned

PAIR = planned("body", "body", (2, 8, 8, 8), (2, 4, 8, 8)).pairs[0]
PAIRS: tuple[Pair, ...] = tuple(PAIR.model_copy(update={"name": name}) for name in ("a", "b", "c"))


def test_indistill_warms_up_from_shallow_to_deep_and_drops_what_was_before() -> None:
    stages = Schedule(epochs=20, lr=0.01)(PAIRS).value
    told = [(s.name, s.epochs, s.schedule, [(t.name, t.weight) for t in s.losses]) for s in stages]
    assert told == [
        ("warm-up-1", 3, "constant", [("mse[a]", 1.0)]),
        ("warm-up-2", 4, "constant", [("mse[b]", 1.0)]),
        ("warm-up-3", 5, "constant", [("mse[c]", 1.0)]),
        ("main", 20, "cosine", [("cross_entropy", 0.1), ("kd", 0.9)]),
    ]
    assert {stage.optimizer.lr for stage in stages} == {0.01}
    assert stages[-1].losses[1].args == {"temperature": 4.0}


def test_kd_is_the_main_stage_alone() -> None:
    assert Schedule(method="kd")(PAIRS).value == Schedule(method="kd")(()).value == Schedule()(PAIRS).value[-1:]


def test_control_has_the_same_budget() -> None:
    (stage,) = control(Schedule(epochs=20)(PAIRS).value)
    assert (stage.epochs, [t.name for t in stage.losses], stage.schedule) == (32, ["cross_entropy"], "cosine")


def test_indistill_needs_pairs() -> None:
    with pytest.raises(PairingError, match="needs at least one pair"):
        PassManager().run(Schedule(), ())


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("epochs", -1), ("lr", 0.0), ("lr", float("nan"))])
def test_numbers_that_no_stage_can_have(name: str, value: float) -> None:
    with pytest.raises(PlanError, match=f"{name} is {value}"):
        PassManager().run(Schedule(**{name: value}), PAIRS)  # type: ignore[arg-type]

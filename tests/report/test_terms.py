"""Losses that have one name are told apart by their members."""

from collections.abc import Sequence
from typing import Any

import pytest

from fxdistill.plan.training import LossTerm, Optimizer, Stage
from fxdistill.report.terms import of_members


def stage(*losses: LossTerm, successors: Sequence[str] = ()) -> Stage:
    return Stage(
        name="main", epochs=1, losses=[*losses], optimizer=Optimizer(name="sgd", lr=0.1), successors=[*successors]
    )


def kd(student: str, teacher: str, **arguments: Any) -> LossTerm:
    return LossTerm.model_validate({"loss": "kd", "student": student, "teacher": teacher, "args": arguments})


@pytest.mark.parametrize(("found", "told"), [
    (stage(kd("student", "teacher")), {"kd": "kd"}),
    (stage(kd("a", "b"), kd("b", "c")), {"kd": "kd of a", "kd#2": "kd of b"}),
    (stage(kd("a", "b"), successors=["c"]), {"kd": "kd from b", "kd#2": "kd from c"}),
    (
        stage(kd("a", "b"), kd("a", "c"), kd("b", "c")),
        {"kd": "kd of a from b", "kd#2": "kd of a from c", "kd#3": "kd of b"},
    ),
    (stage(kd("a", "b", temperature=1.0), kd("a", "b", temperature=2.0)), {"kd": "kd", "kd#2": "kd#2"}),
])  # fmt: skip
def test_by_whose_it_is_and_then_by_who_teaches_it(found: Stage, told: dict[str, str]) -> None:
    assert of_members([found]) == told

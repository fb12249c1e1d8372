"""The cascade's numbers: where its levels lie, what its two phases learn from, how its scores move."""

import pytest

from benchmarks import cascade as benchmark
from fxdistill.methods import Recipe
from fxdistill.methods.cascade import arms, checked, spaced
from fxdistill.plan.training import LossTerm, Optimizer, ScoreOptimizer

RECIPE = Recipe(
    (), LossTerm(loss="cross-entropy"), LossTerm(loss="kd", student="student", teacher="teacher"), epochs=80, lr=0.008
)


def test_where_the_levels_lie() -> None:
    assert spaced(0.2, 3) == (0.2, 0.4667, 0.68, 1.0)  # k, 1 + (k - 1) / 1.5, 1 + (k - 1) / 2.5, 1
    assert spaced(0.2, 4, "even") == (0.2, 0.4, 0.6, 0.8, 1.0)
    assert spaced(0.3, 1) == spaced(0.3, 1, "even") == (0.3, 1.0)
    assert spaced(0.3, 0) == spaced(0.3, 0, "even") == (0.3,)
    # what a budget leaves of many channels
    assert spaced(0.123456, 2) == (0.123456, 0.4156, 1.0)
    assert spaced(0.123456, 2, "even") == (0.123456, 0.5617, 1.0)
    assert checked([0.1, 0.4, 1.0]) == (0.1, 0.4, 1.0)


def test_what_the_phases_are() -> None:
    joint, alone = arms(RECIPE, 3)
    (first,), (second,) = joint.stages, alone.stages
    assert (joint.trains, alone.trains) == (["level-0", "level-1", "level-2"], ["student"])
    told = [(t.loss, t.student, t.teacher, t.weight, t.args.get("temperature")) for t in first.losses]
    assert told == [
        term
        for below, above in (("level-0", "level-1"), ("level-1", "level-2"), ("level-2", "teacher"))
        for term in (("cross-entropy", below, None, 1.0, None), ("kd", below, above, 0.4, 15.0))
    ]
    assert [(t.loss, t.student, t.teacher, t.weight) for t in second.losses] == [
        ("cross-entropy", "student", None, 1.0), ("kd", "student", "level-1", 0.4)
    ]  # fmt: skip
    assert second.successors == ["level-2", "teacher"]
    sgd = Optimizer(name="sgd", lr=0.008, momentum=0.9, nesterov=True, weight_decay=4e-4)
    assert [(s.optimizer, s.schedule, s.epochs) for s in (first, second)] == [(sgd, "cosine", 80)] * 2
    assert (first.scores, second.scores) == (ScoreOptimizer(name="rmsprop", lr=0.0003), None)
    assert arms(RECIPE, 1)[1].stages[0].losses[1].teacher == "teacher"


@pytest.mark.parametrize("taught", [0, 1])
def test_a_successor_takes_the_teachers_place(taught: int) -> None:
    stage = arms(RECIPE, 3)[1].stages[0].under(taught)
    assert [t.teacher for t in stage.losses] == [None, ("level-1", "level-2")[taught]]
    assert stage.successors == []


def test_the_benchmark_goes_seed_by_seed_and_compares_in_pairs() -> None:
    order = benchmark.SERIES.wanted(["cifar-vgg-0.2"], seeds=2)
    assert [seed for _, _, seed in order] == [0] * len(benchmark.ARMS) + [1] * len(benchmark.ARMS)
    assert order[0][1] == benchmark.FIRST  # the others are held to its student
    common = {"setting": "cifar-vgg-0.2", "teacher": 0.7, "whole": [100, 1000], "parameters": 10, "macs": 99}
    common |= {"latency": {"student": 1.0}, "seconds": 3}
    reached = {(benchmark.FIRST, 0): 0.5, (benchmark.FIRST, 1): 0.51, ("shrink + kd", 0): 0.6, ("shrink + kd", 1): 0.61}
    rows = [{**common, "arm": arm, "seed": seed, "student": value} for (arm, seed), value in reached.items()]
    text = benchmark.table(rows)
    assert "| cascade, 3 assistants | 50.50 ± 0.71 | -19.50 | 2 | 10 | 99 | 1.000 | 3 | teacher | -19.50" in text
    assert "| cascade, 3 assistants | +10.00" in text

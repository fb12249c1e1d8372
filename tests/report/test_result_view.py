"""What came out, as people read it."""

import copy
from typing import Any

import pytest

from fxdistill.plan.document import Plan
from fxdistill.plan.file import load
from fxdistill.report.page import words
from fxdistill.report.result_view import result_view
from fxdistill.report.show import show
from fxdistill.runtime.run.directory import RunDir
from fxdistill.tasks import TASKS
from tests import runs
from tests.report.drawing import drawn


def test_the_result_names_every_arm() -> None:
    console, text = drawn(terminal=False)
    result = RunDir(runs.finished()).result()
    assert result is not None
    console.print(result_view(load(runs.plan_file()), result))
    assert [line.split("  ")[0] for line in text.getvalue().splitlines()[1:4]] == [
        "teacher", "student, no distillation", "student, distilled",
    ]  # fmt: skip


def test_a_result_that_is_too_wide_for_a_table_is_cut_nowhere() -> None:
    console, text = drawn(terminal=False, width=50)
    result = RunDir(runs.finished()).result()
    assert result is not None
    console.print(result_view(load(runs.plan_file()), result))
    lines = text.getvalue().splitlines()
    assert "…" not in text.getvalue()
    assert max(map(len, lines)) <= 50
    assert [line for line in lines if line != line.rstrip()] == []
    accuracy = result["summary"]["distilled"]["mean"]
    assert f"student, distilled: accuracy {accuracy:.2%}, parameters " in " ".join(text.getvalue().split())


def result() -> dict[str, Any]:
    found = RunDir(runs.finished()).result()
    assert found is not None
    return copy.deepcopy(found)


def said(plan: Plan, found: dict[str, Any]) -> str:
    console, text = drawn(terminal=False)
    console.print(result_view(plan, found))
    return text.getvalue()


def test_without_labels_the_control_has_its_row_too() -> None:
    found = result()
    found |= {"summary": {}, "differences": {}}
    for one in (*found["members"].values(), *found["arms"]):
        one.pop("accuracy")
    rows = [line.split("  ")[0] for line in said(load(runs.plan_file()), found).splitlines()[1:4]]
    assert rows == ["teacher", "student, no distillation", "student, distilled"]


def test_a_member_without_a_latency_has_a_dash() -> None:
    found = result()
    del found["latency"]["teacher"]
    rows = [line.split() for line in said(load(runs.plan_file()), found).splitlines()[1:4]]
    assert [row[-1] for row in rows] == ["-", "ms", "ms"]


@pytest.mark.parametrize(("task", "metric", "shown"), [
    ("classification", "accuracy", "50.00% ± 1.25"), ("regression", "MAE", "0.500 ± 0.013"),
])  # fmt: skip
def test_several_seeds_have_a_spread_in_the_units_of_the_metric(task: str, metric: str, shown: str) -> None:
    found = result()
    found["summary"]["distilled"] = {"mean": 0.5, "deviation": 0.0125}
    found |= {"members": {"teacher": {metric: 0.9}}, "exported_seed": 1}
    text = said(load(runs.plan_file()).changed(task=task, seeds=[1, 0]), found)
    assert f"student, distilled {shown} " in " ".join(text.split())
    assert text.split()[:2] == ["model", metric]
    assert "mean and standard deviation over 2 seeds" in text
    assert "exported: seed 1, the first one" in text
    arm = load(runs.plan_file()).arm("distilled").changed(once=True)
    plan = load(runs.plan_file()).changed(task=task, seeds=[1, 0], arms=[arm], control=None)
    assert "exported" not in said(plan, found | {"exported_seed": 3})


def test_of_several_arms_the_exported_one_is_said() -> None:
    plan, found = load(runs.plan_file()), result()
    assert "exported" not in said(plan, found)
    kd = plan.arm("distilled").changed(name="kd")
    assert "exported: distilled\n" in said(plan.changed(arms=[kd, *plan.arms]), found)


@pytest.mark.parametrize(
    ("task", "metric", "better"), [("classification", "accuracy", 0.6), ("regression", "MAE", 0.4)]
)
def test_a_control_arm_that_is_better_is_told_of_whichever_way_is_better(task: str, metric: str, better: float) -> None:
    plan, found = load(runs.plan_file()).changed(task=task), result()
    found["members"] = {"teacher": {metric: 0.9}}
    worse = 0.5 - better
    for mean, ends, told in (
        (worse, (worse - 0.05, worse + 0.05), "distillation did not help"),
        (worse, (worse - 0.2, worse + 0.2), "not told apart"), (-worse, (-worse - 0.2, -worse + 0.2), "not told apart"),
        (worse, (None, None), "better under this one seed"), (-worse, (None, None), ""), (-worse, (0.01, 0.2), ""),
    ):  # fmt: skip
        seeds = 5 if ends[0] is not None else 1
        difference = {"beside": "control", "mean": mean, "seeds": seeds, "low": ends[0], "high": ends[1]}
        found["differences"] = {"distilled": difference}
        text = " ".join(said(plan, found).split())
        words = ("distillation did not help", "not told apart", "better under this one seed")
        assert [one for one in words if one in text] == ([told] if told else [])


def test_seeds_of_one_difference_tell_no_interval() -> None:
    plan, found = load(runs.plan_file()), result()
    found["differences"] = {"distilled": {"beside": "control", "mean": -0.1, "seeds": 2, "low": None, "high": None}}
    text = " ".join(said(plan, found).split())
    assert "distilled - control: -10.00 points, the same under 2 seeds, which tells no interval" in text
    assert "the student alone is better under these 2 seeds, which may be chance" in text
    verdict = words.verdict(plan, found, TASKS.get("classification"))
    assert (
        "distillation is -10.00 points from training without a teacher (the same under 2 seeds, which tells" in verdict
    )


@pytest.mark.parametrize(("own", "theirs", "macs", "told"), [
    (1.0, 2.0, 0.5, False), (2.0, 2.0, 0.5, True), (3.0, 2.0, 0.5, True), (3.0, 2.0, 1.0, False),
    (3.0, 2.0, 2.0, False),
])  # fmt: skip
def test_less_to_compute_that_takes_as_long_is_told_of(own: float, theirs: float, macs: float, told: bool) -> None:
    plan, found = load(runs.plan_file()), result()
    teacher, student = plan.members["teacher"], plan.members["student"]
    members = {**plan.members, "student": student.changed(macs=round(macs * teacher.macs))}
    found["latency"]["student"]["median_ms"], found["latency"]["teacher"]["median_ms"] = own, theirs
    text = " ".join(said(plan.changed(members=members), found).split())
    assert ("student is no quicker than teacher here, with 50% of its MACs" in text) == told
    del found["latency"]["teacher"]
    assert "no quicker" not in said(plan, found)


def test_show_takes_a_plan_a_file_and_a_run() -> None:
    plan, run = load(runs.plan_file()), runs.finished()
    assert show(plan) == show(runs.plan_file()) == show(str(runs.plan_file()))
    whole = show(run)
    assert whole.startswith(show(plan))
    assert whole.endswith(said(plan, result()))
    assert max(map(len, show(run, width=60).splitlines())) <= 60

"""Several methods under one budget; which seed's student is kept."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import fxdistill
from fxdistill.data.load import load as load_data
from fxdistill.errors import InputError, PlanError, RunDirError
from fxdistill.measure.differences import paired
from fxdistill.report.result_view import result_view
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.run.kept import exported_seed
from fxdistill.tasks import TASKS
from tests import runs

CPU = Settings(device="cpu", allow=runs.ALLOW)


def test_arms_under_one_budget(tmp_path: Path) -> None:
    """The same weights and batches: two names of one method come to the same bits, and another one does not."""
    plan = runs.edited("arms", lambda p: p.update(method="kd"))
    content = json.loads(plan.read_text())
    main = content["arms"][0]["stages"][-1]
    content["arms"][0]["stages"] = [main]
    content["control"] = None
    plan.write_text(json.dumps(content))
    settings = Settings(device="cpu", allow=runs.ALLOW, arms=("supervised", "kd"), seeds=2)
    result = runs.execute(plan, tmp_path / "run", settings)
    assert [(one["seed"], one["name"]) for one in result["arms"]] == [
        (0, "supervised"), (0, "kd"), (1, "supervised"), (1, "kd")
    ]  # fmt: skip
    values: dict[str, dict[int, float]] = {"supervised": {}, "kd": {}}
    for one in result["arms"]:
        values[one["name"]][one["seed"]] = one["accuracy"]
    expected = paired(values["kd"], values["supervised"], beside="supervised")
    assert expected is not None
    assert result["differences"] == {"kd": vars(expected)}
    planned = fxdistill.load_plan(tmp_path / "run" / "plan.json")
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(result_view(planned, result))
    shown = capture.get()
    assert "kd - supervised: " in shown
    alone = runs.execute(plan, tmp_path / "alone", CPU)
    of_kd = [one for one in result["arms"] if (one["seed"], one["name"]) == (0, "kd")]
    assert of_kd[0]["accuracy"] == alone["arms"][0]["accuracy"]
    told = fxdistill.show(tmp_path / "run")
    assert "kd  trains student from teacher, under 2 seeds" in " ".join(told.split("\n"))
    assert "of the cost" not in told  # which nobody has counted
    before = runs.snapshot(tmp_path / "run")
    for path, wrong in ((tmp_path / "run" / "plan.json", {"resume": True}), (plan, {"more_epochs": 1})):
        with pytest.raises(InputError, match="other arms and seeds are for a run that is yet to begin"):
            runs.execute(path, tmp_path / "run", Settings(**{**vars(settings), **wrong}))
    assert runs.snapshot(tmp_path / "run") == before
    again = runs.execute(plan, tmp_path / "run", Settings(**{**vars(settings), "resume": True}))
    assert again == json.loads(json.dumps(result))
    students = [fxdistill.load(tmp_path / name / "student.pt", allow=runs.ALLOW).module for name in ("run", "alone")]
    for one, other in zip(*(m.state_dict().values() for m in students), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("seed", "values", "expected"),
    [("first", (0.5, 0.9), 3), ("best", (0.5, 0.9), 4), ("best", (0.9, 0.5), 3), ("best", (0.7, 0.7), 3)],
)
def test_which_seed_is_exported(seed: Any, values: tuple[float, float], expected: int) -> None:
    plan = fxdistill.load_plan(runs.plan_file())
    val = {"share": 0.25, "seed": 0}
    content = {**plan.model_dump(), "seeds": [3, 4], "export": {**plan.export.model_dump(), "seed": seed}}
    content["data"] = {**content["data"], "val": val}
    plan = type(plan).model_validate(content)
    task = TASKS.get("classification")
    records = [{"name": "distilled", "seed": s, "validated": v} for s, v in zip((3, 4), values, strict=True)]
    records.insert(1, {"name": "control", "seed": 3})
    assert exported_seed(plan, task, records) == expected
    assert exported_seed(plan, task, []) == 3
    unmeasured = [{name: value for name, value in record.items() if name != "validated"} for record in records]
    assert exported_seed(plan, task, unmeasured) == 3
    assert exported_seed(plan, task, [*unmeasured[:2], records[2]]) == (4 if seed == "best" else 3)
    once = plan.changed(seed=7, control=None, arms=[arm.changed(once=True) for arm in plan.arms])
    assert exported_seed(once, task, [{"name": "distilled", "seed": 7, "validated": 0.5}]) == 7
    assert exported_seed(once, task, []) == 7


def test_the_best_seed_is_not_told_without_labels(tmp_path: Path) -> None:
    images, labels = torch.rand(90, 8, 8).numpy(), torch.arange(90).numpy() % 10
    splits = {"train": labels, "test": labels, "val": labels * 0 - 1}
    arrays: dict[str, Any] = {f"{name}_labels": found for name, found in splits.items()}
    arrays |= {f"{name}_images": images for name in splits}
    np.savez(tmp_path / "a.npz", **arrays)
    dataset = load_data(f"npz:{tmp_path / 'a.npz'}")
    plan = fxdistill.load_plan(runs.plan_file())
    preflight.tells_the_best(plan, dataset)
    data = plan.data.changed(val={"share": 0.0, "seed": 0})
    best = plan.changed(data=data, export=plan.export.changed(seed="best"))
    with pytest.raises(PlanError, match="the validation images have no labels"):
        preflight.tells_the_best(best, dataset)


def test_the_best_seeds_student_is_written(tmp_path: Path) -> None:
    """What is kept is the student that the result says, and it is told by the validation images."""

    def change(plan: dict[str, Any]) -> None:
        plan["seeds"] = [0, 1, 2]
        plan["export"]["seed"] = "best"
        plan["data"] |= {"val": {"share": 0.25, "seed": 0}, "train_size": 945}
        plan["control"] = None

    path = runs.edited("best", change)
    result = runs.execute(path, tmp_path / "run", CPU)
    validated = {one["seed"]: one["validated"] for one in result["arms"]}
    lines = runs.metrics(tmp_path / "run")
    assert {line["split"] for line in lines} == {"val"}
    assert validated == {line["seed"]: line["metrics"]["accuracy"] for line in lines if line["metrics"]}
    best = max(validated, key=lambda seed: (validated[seed], -seed))
    assert result["exported_seed"] == best
    (test,) = [one["accuracy"] for one in result["arms"] if one["seed"] == best]
    found = fxdistill.evaluate(tmp_path / "run", allow=runs.ALLOW)
    assert found["accuracy"] == pytest.approx(test)
    shown = tmp_path / "run" / "result.json"
    content = json.loads(shown.read_text())
    for wrong in ("1", 1.5, None):
        shown.write_text(json.dumps({**content, "exported_seed": wrong}))
        with pytest.raises(RunDirError, match=r"result\.json is damaged: exported_seed"):
            fxdistill.show(tmp_path / "run")
    shown.write_text(json.dumps({name: value for name, value in content.items() if name != "exported_seed"}))
    assert "exported: seed" not in fxdistill.show(tmp_path / "run")
    shown.write_text(json.dumps(content))
    assert f"exported: seed {best}" in fxdistill.show(tmp_path / "run")

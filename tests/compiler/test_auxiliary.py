"""The auxiliary teacher: planned, replayed on the teacher's weights, trained first, taught from, resumed exactly."""

import json
from pathlib import Path

import pytest
import torch

from fxdistill import models
from fxdistill.compiler import auxiliary, pipeline
from fxdistill.errors import InputError, PlanError
from fxdistill.modelfiles.load import load as load_model
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load, parse
from fxdistill.runtime.arms import Arm, Observer
from fxdistill.runtime.directory import RunDir
from fxdistill.runtime.execute import Settings
from fxdistill.runtime.loop import Progress
from tests import runs

CPU = Settings(device="cpu", allow=runs.ALLOW, save_seconds=0)
SHAPE = (1, 1, 8, 8)


def compiled(keep: float | None = None) -> tuple[Plan, torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    teacher, student = models.resnet(widths=[16, 32], blocks=1), models.convnet(widths=[4, 8], hidden=8)
    options = pipeline.Options(input_shape=SHAPE, align="shrink", keep=keep, epochs=2)
    return pipeline.compile(teacher, student, options), teacher, student


def test_the_taps_of_the_smaller_teacher_have_the_students_widths() -> None:
    plan, _, _ = compiled()
    assert [(pair.align, pair.teacher.width) for pair in plan.pairs] == [("shrink", 4), ("shrink", 8)]
    assert plan.kept == []
    assert plan.auxiliary is not None
    assert plan.auxiliary.parameters < plan.teacher.parameters


def test_keep_narrows_what_no_tap_decides() -> None:
    wide, narrow = compiled()[0].auxiliary, compiled(keep=0.5)[0].auxiliary
    assert wide is not None
    assert narrow is not None
    assert narrow.macs < wide.macs
    assert "layers.layer1.0.conv1.weight" not in wide.kept
    assert len(narrow.kept["layers.layer1.0.conv1.weight"]) == 8


def test_replay_keeps_the_filters_that_the_plan_names() -> None:
    plan, teacher, _ = compiled()
    assert plan.auxiliary is not None
    made = auxiliary.make(plan.auxiliary, teacher, input_shape=SHAPE)
    kept = plan.auxiliary.kept["stem.0.weight"]
    assert torch.equal(made.get_parameter("stem.0.weight"), teacher.get_parameter("stem.0.weight")[kept])
    assert teacher.get_parameter("stem.0.weight").shape[0] == 16


def test_the_programs_read_the_right_teachers() -> None:
    plan, teacher, student = compiled()
    assert plan.auxiliary is not None
    made = auxiliary.make(plan.auxiliary, teacher, input_shape=SHAPE)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    tuned = pipeline.build_auxiliary(plan, teacher, made)
    assert set(tuned(images, labels)) == {"cross_entropy", "kd"}
    taught = pipeline.build(plan, made, student)
    assert set(taught(images, labels)) == {"mse[block1]", "mse[block2]", "cross_entropy", "kd"}
    with pytest.raises(PlanError):
        pipeline.build(plan, teacher, student)  # whose taps have other shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.pop("auxiliary"), "no auxiliary teacher"),
        (lambda plan: plan["auxiliary"]["stages"][0]["losses"][0].update(pair="block1", loss="mse", args={}), "logits"),
        (lambda plan: plan["auxiliary"].update(kept={"stem.0.weight": [-1]}), "greater than or equal to 0"),
    ],
)
def test_a_plan_with_a_wrong_auxiliary_is_refused(change, message: str) -> None:
    data = json.loads(compiled()[0].to_json())
    change(data)
    with pytest.raises(PlanError, match=message):
        parse(data, where="plan.json")


@pytest.mark.parametrize("kept", [{"stem.7.weight": [0]}, {"stem.0.weight": [99]}, {"classifier.weight": [0]}])
def test_indices_that_are_not_of_this_teacher_are_refused(kept: dict[str, list[int]]) -> None:
    plan, teacher, _ = compiled()
    assert plan.auxiliary is not None
    with pytest.raises(InputError):
        auxiliary.make(plan.auxiliary.model_copy(update={"kept": kept}), teacher, input_shape=SHAPE)


def test_an_interrupted_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole, cut = runs.finished("auxiliary", align="shrink"), tmp_path / "run"
    result = RunDir(whole).result()
    assert result is not None
    assert [arm["name"] for arm in result["arms"]] == ["auxiliary", "distilled", "control"]
    assert result["latency"]["auxiliary"]["median_ms"] > 0
    seen = 0

    def stop(arm: Arm, _progress: Progress, _accuracy: float | None) -> None:
        nonlocal seen
        seen += 1
        if seen in {4, 23}:
            raise KeyboardInterrupt

    plan = runs.plan_file("auxiliary", align="shrink")
    for again in (False, True):  # in the auxiliary arm, then in the one after it
        with pytest.raises(KeyboardInterrupt):
            runs.execute(plan, cut, Settings(**{**vars(CPU), "resume": again}), Observer(on_progress=stop))
    runs.execute(plan, cut, Settings(**{**vars(CPU), "resume": True}))
    for name in ("auxiliary.pt", "student.pt"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_the_auxiliary_was_trained_and_then_taught_from() -> None:
    run = runs.finished("auxiliary", align="shrink")
    plan = load(run / "plan.json")
    assert plan.auxiliary is not None
    teacher = load_model(runs.workshop() / "teacher.pt").module
    start = auxiliary.make(plan.auxiliary, teacher, input_shape=SHAPE).state_dict()
    trained = torch.load(run / "auxiliary.pt", weights_only=True)
    assert trained.keys() == start.keys()
    assert not torch.equal(trained["stem.0.weight"], start["stem.0.weight"])

"""The auxiliary teacher: planned, replayed on the teacher's weights, trained first, taught from, resumed exactly."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fxdistill import models
from fxdistill.compiler import auxiliary, pipeline
from fxdistill.compiler.build import build, build_arm
from fxdistill.compiler.options import Options
from fxdistill.errors import InputError, PlanError
from fxdistill.modelfiles.load import load as load_model
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load, parse
from fxdistill.plan.schema import Shrunken
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Progress
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")

CPU = Settings(device="cpu", allow=runs.ALLOW, save_seconds=0)
SHAPE = (1, 1, 8, 8)


def compiled(keep: float | None = None) -> tuple[Plan, torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    teacher, student = models.resnet(widths=[16, 32], blocks=1), models.convnet(widths=[4, 8], hidden=8)
    options = Options(input_shape=SHAPE, align="shrink", keep=keep, epochs=2)
    return pipeline.compile(teacher, student, options), teacher, student


def shrunken(plan: Plan) -> Shrunken:
    found = plan.members["auxiliary"]
    assert isinstance(found, Shrunken)
    return found


def test_the_taps_of_the_smaller_teacher_have_the_students_widths() -> None:
    plan, _, _ = compiled()
    assert [(pair.align, pair.teacher.width) for pair in plan.pairs] == [("shrink", 4), ("shrink", 8)]
    assert plan.kept == []
    assert shrunken(plan).parameters < plan.given("teacher").parameters
    assert (shrunken(plan).of, shrunken(plan).criterion) == ("teacher", "l1")


def test_keep_narrows_what_no_tap_decides() -> None:
    wide, narrow = shrunken(compiled()[0]), shrunken(compiled(keep=0.5)[0])
    assert narrow.macs < wide.macs
    assert "layers.layer1.0.conv1.weight" not in wide.kept
    assert len(narrow.kept["layers.layer1.0.conv1.weight"]) == 8


def test_a_teacher_whose_layers_compute_their_weights_is_narrowed_too() -> None:
    torch.manual_seed(0)
    teacher, student = (
        nn.Sequential(weight_norm(nn.Conv2d(1, width, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                      nn.Linear(width, 10))
        for width in (16, 4)
    )  # fmt: skip
    plan = pipeline.compile(teacher, student, Options(input_shape=SHAPE, align="shrink", epochs=2))
    assert set(shrunken(plan).widths.values()) == {16}
    made = auxiliary.make(shrunken(plan), teacher, input_shape=SHAPE)
    kept = shrunken(plan).kept["0.parametrizations.weight.original1"]
    whole, left = teacher.get_submodule("0"), made.get_submodule("0")
    assert isinstance(whole, nn.Conv2d)
    assert isinstance(left, nn.Conv2d)
    assert torch.allclose(left.weight, whole.weight[kept])


def test_replay_keeps_the_filters_that_the_plan_names() -> None:
    plan, teacher, _ = compiled()
    made = auxiliary.make(shrunken(plan), teacher, input_shape=SHAPE)
    kept = shrunken(plan).kept["stem.0.weight"]
    assert torch.equal(made.get_parameter("stem.0.weight"), teacher.get_parameter("stem.0.weight")[kept])
    assert teacher.get_parameter("stem.0.weight").shape[0] == 16


def test_the_programs_read_the_right_teachers() -> None:
    plan, teacher, student = compiled()
    made = auxiliary.make(shrunken(plan), teacher, input_shape=SHAPE)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    batch = {"images": images, "labels": labels}
    tuned = build_arm(plan, "auxiliary", {"teacher": teacher, "auxiliary": made})
    assert set(tuned(batch)) == {"cross-entropy", "kd"}
    assert {member.name: member.trained for member in tuned.members} == {"auxiliary": True, "teacher": False}
    taught = build(plan, made, student)
    assert set(taught(batch)) == {"mse[block1]", "mse[block2]", "cross-entropy", "kd"}
    assert {member.name: member.trained for member in taught.members} == {"student": True, "auxiliary": False}
    with pytest.raises(PlanError):
        build(plan, teacher, student)  # whose taps have other shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plan: plan["members"].pop("auxiliary"),
            "the pair 'block1' names the member 'auxiliary', which the plan has not; the pair 'block2' names",
        ),
        (lambda plan: plan["members"].pop("teacher"), "'auxiliary' is made of 'teacher', which the plan does not have"),
        (lambda plan: plan["members"]["auxiliary"].update(of="auxiliary"), "is made of 'auxiliary'"),
        (lambda plan: plan["members"]["auxiliary"].update(kept={"stem.0.weight": [-1]}), "greater than or equal to 0"),
        (
            lambda plan: plan["arms"][0]["stages"][0]["losses"][0].update(pair="block1", loss="mse", args={}),
            "the student of 'mse.block1.' is 'auxiliary', that of its pair 'student'",
        ),
        (
            lambda plan: plan["arms"].reverse(),
            "the arm 'distilled' reads the member 'auxiliary' frozen, which another arm trains after it",
        ),
        (
            lambda plan: plan["arms"][0].update(once=False),
            "the arm 'distilled' reads the member 'auxiliary' frozen, which another arm trains under every seed",
        ),
        (
            lambda plan: plan["control"].update(of="auxiliary"),
            "the control arm stands beside the arm 'auxiliary', which is trained once, for others to read",
        ),
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
    with pytest.raises(InputError):
        auxiliary.make(shrunken(plan).changed(kept=kept), teacher, input_shape=SHAPE)


def test_an_interrupted_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole, cut = runs.finished("auxiliary", align="shrink"), tmp_path / "run"
    result = RunDir(whole).result()
    assert result is not None
    assert [arm["name"] for arm in result["arms"]] == ["auxiliary", "distilled", "control"]
    assert result["latency"]["auxiliary"]["median_ms"] > 0
    seen = 0

    def stop(_trial: Trial, _progress: Progress, _metrics: dict[str, float]) -> None:
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
    teacher = load_model(runs.workshop() / "teacher.pt").module
    start = auxiliary.make(shrunken(plan), teacher, input_shape=SHAPE).state_dict()
    trained = torch.load(run / "auxiliary_state_dict.pt", weights_only=True)
    assert trained.keys() == start.keys()
    assert not torch.equal(trained["stem.0.weight"], start["stem.0.weight"])

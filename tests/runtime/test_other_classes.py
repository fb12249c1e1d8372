"""A teacher of other classes, or of none: its layers teach, its predictions are neither compared nor measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxdistill
from fxdistill.errors import InputError, ModelError
from fxdistill.plan.document import Plan
from fxdistill.runtime.planning import fitting
from tests import jobs, runs

pytestmark = pytest.mark.usefixtures("few_digits")

TEACHER = {"widths": [8, 16], "outputs": 7}


class Net(nn.Module):
    def __init__(self, width: int, classes: int, *, answers: str = "logits") -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.fc, self.answers = nn.Linear(2 * width, classes), answers

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.b(torch.relu(self.a(x))))
        if self.answers == "map":
            return y
        if self.answers == "embedding":
            return y.mean((2, 3))
        if self.answers == "an image each":
            return [{"boxes": one.flatten(), "scores": one.sum()} for one in y]
        return self.fc(y.mean((2, 3)))


def compiled(
    teacher: nn.Module, student: nn.Module | None = None, *, via: nn.Module | None = None, **options: Any
) -> Plan:
    given = fxdistill.Options(input_shape=(1, 1, 8, 8), **options)
    return fxdistill.compile(teacher, student or Net(8, 10), given, via=via)


def losses(plan: Plan, arm: str = "distilled") -> list[list[str]]:
    return [[term.name for term in stage.losses] for stage in plan.arm(arm).stages]


def codes(plan: Plan) -> list[tuple[str, str]]:
    return [(one.code, one.severity) for one in plan.diagnostics if one.code == "other-classes"]


@pytest.mark.parametrize(("classes", "answers"), [(1000, "logits"), (1, "logits"), (10, "map")])
def test_the_layers_teach_and_the_labels_and_that_is_said(classes: int, answers: str) -> None:
    plan = compiled(Net(16, classes, answers=answers))
    assert plan.method == "indistill+supervised"
    *warm_up, main = losses(plan)
    assert warm_up == [[f"mse[{pair.name}]"] for pair in plan.pairs]
    assert warm_up
    assert main == ["cross-entropy"]
    assert losses(plan, "control") == [["cross-entropy"]]
    assert codes(plan) == [("other-classes", "warning")]


def test_equal_classes_are_compared_as_ever() -> None:
    plan = compiled(Net(16, 10))
    assert (plan.method, losses(plan)[-1]) == ("indistill", ["cross-entropy", "kd"])
    assert codes(plan) == []


@pytest.mark.parametrize("method", ["kd", "indistill+kd"])
def test_a_comparison_that_is_asked_for_is_not_dropped(method: str) -> None:
    with pytest.raises(InputError, match="answers with shape") as caught:
        compiled(Net(16, 1000), method=method)
    assert "indistill+supervised" in caught.value.hint


@pytest.mark.parametrize("method", ["attention", "features", "indistill+attention", "indistill+supervised"])
def test_methods_that_compare_no_predictions_stay_as_they_are(method: str) -> None:
    plan = compiled(Net(16, 1000), method=method)
    assert (plan.method, codes(plan)) == (method, [("other-classes", "note")])
    assert "kd" not in {name for stage in losses(plan) for name in stage}


def test_an_auxiliary_teacher_learns_its_own_classes_from_its_teacher_alone() -> None:
    plan = compiled(Net(16, 1000), align="shrink")
    assert losses(plan, "auxiliary") == [["kd"]]
    assert losses(plan)[-1] == ["cross-entropy"]
    assert fitting.answering(plan) == {"student"}
    assert fitting.answering(compiled(Net(16, 10), align="shrink")) == {"student", "auxiliary", "teacher"}


@pytest.mark.parametrize("align", ["slice", "shrink"])
def test_a_whole_run(tmp_path: Path, align: str) -> None:
    spec = jobs.arrays(tmp_path / "data.npz", np.arange(96) % 10)
    plan = jobs.planned(tmp_path, TEACHER, {}, "--data", spec, "--align", align)
    assert plan.method == "indistill+supervised"
    result = jobs.ran(tmp_path)
    assert result["members"] == {"teacher": {}}
    assert [arm["name"] for arm in result["arms"] if "accuracy" in arm] == ["distilled", "control"]
    assert result["parity"]["agreement_name"] == "top-1 agreement"
    shown = jobs.done("show", tmp_path / "run")
    assert "distillation of the predictions is left out" in " ".join(shown.split())


def test_a_student_of_other_classes_is_refused_as_ever(tmp_path: Path) -> None:
    files = [jobs.model(tmp_path / "teacher.pt"), jobs.model(tmp_path / "student.pt", outputs=7)]
    done = jobs.call("plan", *files, *jobs.ALLOW, "--data", "digits", "-o", tmp_path / "plan.json")
    assert done.exit_code == 2
    assert "7 classes, the data has 10 classes where: student, data digits" in " ".join(done.stderr.split())


def test_an_assistant_cannot_learn_predictions_of_another_shape_than_its_own() -> None:
    with pytest.raises(InputError, match=r"the teacher answers with shape \(10,\) an image, the auxiliary with \(7,\)"):
        compiled(Net(16, 10), via=Net(12, 7))
    plan = compiled(Net(16, 10), via=Net(12, 7), via_epochs=0)  # its layers teach
    (remark,) = [one for one in plan.diagnostics if one.code == "other-classes"]
    assert remark.where == "auxiliary"


@pytest.mark.parametrize("labelled", [True, False])
def test_features_are_learnt_with_no_label_and_no_prediction(tmp_path: Path, labelled: bool) -> None:
    spec = jobs.arrays(tmp_path / "data.npz", np.arange(96) % 4 if labelled else np.full(96, -1))
    plan = jobs.planned(tmp_path, TEACHER, {"outputs": 5}, "--data", spec, "--task", "features")
    assert (plan.method, plan.control) == ("indistill+features", None)
    *warm_up, main = losses(plan)
    assert [name for stage in warm_up for name in stage] == main == [f"mse[{pair.name}]" for pair in plan.pairs]
    assert [one.severity for one in plan.diagnostics if one.code == "not-taught"] == ["warning"], "the head"
    result = jobs.ran(tmp_path)
    assert ("mAP" in result["arms"][0]) == labelled
    assert {line["stage"] for line in runs.metrics(tmp_path / "run")} >= {"warm-up-1", "main"}
    assert "features" in jobs.done("show", tmp_path / "run")


@pytest.mark.parametrize("answers", ["map", "embedding"])
def test_features_of_a_backbone_are_learnt_to_the_last_layer(answers: str) -> None:
    """Without a head the last layer is no prediction: nothing of the student stays as it was."""
    plan = compiled(Net(16, 10, answers=answers), Net(8, 10, answers=answers), task="features")
    assert [pair.student.path for pair in plan.pairs] == ["relu", "relu_1"]
    assert losses(plan)[-1] == [f"mse[{pair.name}]" for pair in plan.pairs]
    (remark,) = [one for one in plan.diagnostics if one.code == "not-taught"]
    assert (remark.severity, "'fc'" in remark.why) == ("note", True)
    retrieved = compiled(Net(16, 10, answers="embedding"), Net(8, 10, answers="embedding"), task="retrieval",
                         method="indistill+pkt")  # fmt: skip
    assert [pair.student.path for pair in retrieved.pairs] == ["relu", "relu_1"]  # an embedding is none either


@pytest.mark.parametrize(
    ("task", "answers"), [("classification", "map"), ("multilabel", "map"), ("retrieval", "map"), ("regression", "map"),
                          ("segmentation", "logits"), ("segmentation", "map")],
)  # fmt: skip
def test_a_student_that_answers_for_another_task_is_refused_without_data_too(task: str, answers: str) -> None:
    with pytest.raises(ModelError, match=f"that is no {task}") as caught:
        compiled(Net(16, 10, answers=answers), Net(8, 10, answers=answers), task=task, method="attention")
    assert "--task" in caught.value.hint


def test_features_have_no_predictions_to_compare() -> None:
    with pytest.raises(InputError, match="the method 'kd' has no term for this task") as caught:
        compiled(Net(16, 10), task="features", method="kd")
    assert "features" in caught.value.hint
    with pytest.raises(InputError, match="an auxiliary teacher cannot be fine-tuned in the task 'features'"):
        compiled(Net(16, 10), task="features", align="shrink")


@pytest.mark.parametrize("of", ["teacher", "student"])
@pytest.mark.parametrize("task", ["classification", "features"])
def test_a_detector_is_none_of_the_tasks(of: str, task: str) -> None:
    models = [Net(16, 10, answers="an image each" if of == one else "logits") for one in ("teacher", "student")]
    with pytest.raises(ModelError, match="a list of results, one an image, as detectors do") as caught:
        compiled(models[0], models[1], task=task)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("of", [0, 1])
def test_a_detector_is_refused_with_data_as_well(tmp_path: Path, of: int) -> None:
    files = [jobs.model(tmp_path / f"{n}.pt", answers="an image each" if n == of else "tensor") for n in (0, 1)]
    done = jobs.call("plan", *files, *jobs.ALLOW, "--data", "digits", "-o", tmp_path / "plan.json")
    assert done.exit_code == 2
    assert "as detectors do" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 6

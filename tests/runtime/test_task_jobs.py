"""Other tasks, planned and run end to end on tiny data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests import jobs, runs

pytestmark = pytest.mark.usefixtures("few_digits")

RANDOM = np.random.default_rng(1)
MAPS = {"outputs": 3, "answers": "map"}


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / "plan.json").read_text())
    change(content)
    (folder / "plan.json").write_text(json.dumps(content))


def segmented(folder: Path) -> str:
    """Images whose brightness says the class of each pixel; a border without labels, and two images without any."""
    classes = RANDOM.integers(3, size=(96, 8, 8))
    labels = classes.copy()
    labels[:, 0] = labels[:2] = -100
    return jobs.arrays(folder / "maps.npz", labels, images=(classes / 2).astype(np.float32))


def test_segmentation_with_labels_that_move_along(tmp_path: Path) -> None:
    options = ("--data", segmented(tmp_path), "--task", "segmentation")
    plan = jobs.planned(tmp_path, {"widths": [8, 16], **MAPS}, MAPS, *options)
    assert (plan.task, plan.data.classes) == ("segmentation", ["0", "1", "2"])
    _edit(tmp_path, lambda p: p["data"].update(augmentation=["flip", "crop:2"]))
    result = jobs.ran(tmp_path)
    assert result["metric"] == "mean-IoU"
    assert {arm["name"] for arm in result["arms"]} == {"distilled", "control"}
    for found in (*result["arms"], result["members"]["teacher"]):
        assert 0 <= found["mean-IoU"] <= 1
        assert 0 <= found["pixel-accuracy"] <= 1
    assert result["parity"]["images"] == 32
    losses = [line["losses"] for line in runs.metrics(tmp_path / "run")]
    assert set(losses[-1]) == {"cross-entropy"}
    said = jobs.done("eval", tmp_path / "run", *jobs.ALLOW)
    assert f"mean-IoU {result['arms'][0]['mean-IoU']:.2%} on 32 test images" in said
    assert "mean-IoU" in jobs.done("show", tmp_path / "run")


def test_maps_of_labels_are_not_left_behind_by_another_task(tmp_path: Path) -> None:
    """Classification of maps has one label a pixel as well, and its labels do not move."""
    options = ("--data", segmented(tmp_path), "--task", "segmentation")
    jobs.planned(tmp_path, {"widths": [8, 16], **MAPS}, MAPS, *options)
    _edit(tmp_path, lambda p: p.update(task="classification"))
    done = jobs.call("run", tmp_path / "plan.json", "-o", tmp_path / "run", *jobs.ALLOW, "--device", "cpu")
    assert done.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("numbers", [1, 2])
def test_regression(tmp_path: Path, numbers: int) -> None:
    images = RANDOM.random((96, 8, 8), dtype=np.float32)
    targets = np.stack([images.mean((1, 2)), images[:, 0, 0]], 1)[:, :numbers].squeeze()
    spec = jobs.arrays(tmp_path / "numbers.npz", targets.astype(np.float32), images=images)
    kwargs = {"outputs": numbers}
    options = ("--data", spec, "--task", "regression", "--method", "attention")
    plan = jobs.planned(tmp_path, {"widths": [8, 16], **kwargs}, kwargs, *options)
    assert plan.data.classes == []
    assert [term.loss for term in plan.arm("distilled").stages[0].losses] == ["l1", "attention", "attention"]
    assert [term.loss for term in plan.arm("control").stages[0].losses] == ["l1"]
    result = jobs.ran(tmp_path)
    assert result["metric"] == "MAE"
    assert all(set(arm) >= {"MAE", "R2"} for arm in result["arms"])
    said = jobs.done("show", tmp_path / "run")
    assert f"{result['summary']['distilled']['mean']:.4g}" in said
    assert f"MAE {result['arms'][0]['MAE']:.4g} on 32 test images" in jobs.done("eval", tmp_path / "run", *jobs.ALLOW)
    exported = jobs.done("export", tmp_path / "run", *jobs.ALLOW, "-o", tmp_path / "again.onnx")
    assert "agreement" not in exported  # numbers know none
    assert " on 32 test images" in exported
    assert "outputs prediction" in exported
    own, alone = (result["summary"][name]["mean"] for name in ("distilled", "control"))
    assert ("better under this one seed" in said) == (own > alone)  # of an error, less is better


def test_a_regression_imitates_by_the_squared_error(tmp_path: Path) -> None:
    spec = jobs.arrays(tmp_path / "two.npz", RANDOM.random((96, 2), dtype=np.float32))
    sizes = {"widths": [8, 16], "outputs": 2}, {"outputs": 2}
    plan = jobs.planned(tmp_path, *sizes, "--data", spec, "--task", "regression")
    terms = [(term.loss, term.weight) for term in plan.arm("distilled").stages[-1].losses]
    assert terms == [("l1", 0.1), ("squared-error", 0.9)]


def test_models_that_answer_with_too_few_numbers_are_refused(tmp_path: Path) -> None:
    spec = jobs.arrays(tmp_path / "two.npz", RANDOM.random((96, 2), dtype=np.float32))
    files = [jobs.model(tmp_path / f"{name}.pt", outputs=1) for name in ("teacher", "student")]
    done = jobs.call(
        "plan", *files, *jobs.ALLOW, "--data", spec, "--task", "regression", "--method", "attention",
        "-o", tmp_path / "plan.json",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "the model answers with 1 numbers an image, the data has 2" in done.stderr


@pytest.mark.parametrize("method", ["pkt", "indistill+pkt"])
def test_retrieval_learns_from_the_teacher_alone(tmp_path: Path, method: str) -> None:
    spec = jobs.arrays(tmp_path / "classes.npz", np.arange(96) % 4)
    teacher, student = {"widths": [8, 16], "outputs": 12}, {"outputs": 6}
    plan = jobs.planned(tmp_path, teacher, student, "--data", spec, "--task", "retrieval", "--method", method)
    assert plan.control is None
    assert [arm.name for arm in plan.all_arms] == ["distilled"]
    stages = plan.arm("distilled").stages
    assert [stage.name for stage in stages] == ["warm-up-1", "warm-up-2", "main"][-len(stages) :]
    assert [(term.loss, term.weight) for term in stages[-1].losses] == [("pkt", 1.0)]
    result = jobs.ran(tmp_path)
    assert result["metric"] == "mAP"
    assert result["outputs"] == ["embedding"]
    assert result["forced"]
    assert [one.name for one in onnxruntime.InferenceSession(tmp_path / "run/student.onnx").get_outputs()] == [
        "embedding"
    ]
    assert set(result["arms"][0]) >= {"mAP", "mAP-11", "top-100"}
    assert "distilled" in jobs.done("show", tmp_path / "run")
    assert "mAP" in jobs.done("eval", tmp_path / "run", *jobs.ALLOW)


def test_descriptors_are_not_softened_classes(tmp_path: Path) -> None:
    spec = jobs.arrays(tmp_path / "classes.npz", np.arange(96) % 4)
    teacher, student = {"widths": [8, 16], "outputs": 6}, {"outputs": 6}
    for method in ("kd", "indistill+kd"):
        files = [jobs.model(tmp_path / "teacher.pt", **teacher), jobs.model(tmp_path / "student.pt", **student)]
        done = jobs.call("plan", *files, *jobs.ALLOW, "--data", spec, "--task", "retrieval", "--method", method,
                         *jobs.NOISE, "-o", tmp_path / "plan.json")  # fmt: skip
        assert done.exit_code == 2
        assert "the method 'kd' has no term for this task" in done.stderr
        assert "pkt" in done.stderr


LABELS: dict[str, Any] = {
    "classification": np.arange(96) % 10,
    "multilabel": RANDOM.integers(2, size=(96, 10)).astype(np.float32),
    "regression": RANDOM.random((96, 10), dtype=np.float32),
    "retrieval": np.arange(96) % 4,
    "features": np.full(96, -1),
    "segmentation": RANDOM.integers(3, size=(96, 8, 8)),
}
AGREEMENT = {
    "classification": "top-1 agreement", "multilabel": "agreement of classes", "segmentation": "agreement of pixels",
    "retrieval": "agreement of nearest neighbours", "features": "agreement of nearest neighbours",
}  # fmt: skip

OUTPUT = {"retrieval": "embedding", "features": "features", "regression": "prediction"}


@pytest.mark.parametrize("task", sorted(LABELS))
def test_any_model_is_compared_with_its_file_on_images_of_its_task(tmp_path: Path, task: str) -> None:
    spec = jobs.arrays(tmp_path / "data.npz", LABELS[task])
    kwargs = MAPS if task == "segmentation" else {"answers": "softmax" if task == "classification" else "tensor"}
    file = jobs.model(tmp_path / "model.pt", **kwargs)
    said = jobs.done("export", file, *jobs.ALLOW, "--data", spec, "--task", task, "-o", tmp_path / "model.onnx")
    assert (f"{AGREEMENT[task]} 100.00%" in said) if task in AGREEMENT else ("100.00%" not in said)
    assert "on 32 test images" in said
    assert f"outputs {OUTPUT.get(task, 'logits')}\n" in said


def test_precision_at_a_rank_of_ones_own(tmp_path: Path) -> None:
    spec = jobs.arrays(tmp_path / "classes.npz", np.arange(96) % 4)
    file = jobs.model(tmp_path / "model.pt", outputs=6)
    words = ("eval", file, *jobs.ALLOW, "--data", spec, "--task")
    said = jobs.done(*words, "retrieval", "--at", 1, "--at", 7)
    names = [line.split()[0] for line in said.splitlines()[1:]]
    assert names[-4:] == ["precision@1", "precision@7", "precision@1-L2", "precision@7-L2"]
    assert "precision" not in jobs.done(*words, "retrieval")
    file = jobs.model(tmp_path / "model.pt", outputs=4)
    refused = jobs.call(*words, "classification", "--at", 1)
    assert refused.exit_code == 2
    assert "the task ranks no images" in refused.stderr


def test_embeddings_are_learnt_and_exported_without_a_label(tmp_path: Path) -> None:
    """The gate compares nearest neighbours, which is all that there is to compare."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for index in range(40):
        pixels = RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / ("more" if index % 2 else ".") / f"{index}.png")
    options = ("--data", f"images:{tmp_path / 'photos'}", "--task", "retrieval", "--method", "indistill+pkt")
    plan = jobs.planned(tmp_path, {"widths": [8, 16], "outputs": 4}, {"outputs": 4}, *options)
    assert not plan.data.labelled
    parity = jobs.ran(tmp_path)["parity"]
    assert (parity["agreement"], parity["images"]) == (1.0, 8)
    assert parity["agreement_name"] == "agreement of nearest neighbours"
    assert "agreement of nearest neighbours 100.00%" in " ".join(jobs.done("show", tmp_path / "run").split())

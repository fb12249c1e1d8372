"""Which entry of a structured output is the prediction: one decision, for losses, metrics and ONNX alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from fxdistill.data.batches import batches
from fxdistill.data.load import load as load_data
from fxdistill.ir.views import seen
from fxdistill.modelfiles.bundle import state_of
from fxdistill.modelfiles.factories import build
from fxdistill.plan.file import load
from fxdistill.runtime.deployment import deploy
from tests import jobs, runs

ENTRIES = {"named": "logits", "mapping": "logits", "pair": "1"}


def answers(kind: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features and logits of a run's trained student for its test images, and their labels."""
    student = build(f"{jobs.MODULE}:net", {"answers": kind}, allow=[jobs.MODULE]).eval()
    student.load_state_dict(torch.load(folder / "run" / "student_state_dict.pt", weights_only=True))
    data = load_data("digits")
    view = data.preprocessing.view((8, 8))
    with torch.no_grad():
        found = [(student(seen(b["images"], view)), b["labels"]) for b in batches(data.test, 64)]
    outputs = [list(out.values()) if isinstance(out, dict) else list(out) for out, _ in found]
    features, logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return features, logits, torch.cat([labels for _, labels in found])


@pytest.mark.parametrize("kind", sorted(ENTRIES))
def test_losses_metrics_and_onnx_read_the_logits_wherever_they_stand(tmp_path: Path, kind: str) -> None:
    options = ("--data", "digits", "--method", "kd", "--lr", "0.05")
    plan = jobs.planned(tmp_path, {"widths": [8, 16], "answers": kind}, {"answers": kind}, *options)
    assert [plan.given(name).output for name in ("teacher", "student")] == [ENTRIES[kind]] * 2
    result = jobs.ran(tmp_path)
    _, logits, labels = answers(kind, tmp_path)
    accuracy = logits.argmax(1).eq(labels).float().mean().item()
    reported = {arm["name"]: arm["accuracy"] for arm in result["arms"]}
    assert reported["distilled"] == pytest.approx(accuracy, abs=1e-6)
    assert reported["control"] > 0.3  # ten times as good as features would be, of which there are eight
    data = load_data("digits")
    images = seen(next(batches(data.test, 64))["images"], data.preprocessing.view((8, 8)))
    session = onnxruntime.InferenceSession(tmp_path / "run" / "student.onnx")
    assert session.run(None, {"input": images.numpy()})[0] == pytest.approx(logits[:64].numpy(), abs=1e-4)
    shown = " ".join(jobs.done("show", tmp_path / "run").split())
    assert shown.count(f"predicts with its output '{ENTRIES[kind]}'") == 2


def test_the_losses_are_those_of_the_logits(tmp_path: Path) -> None:
    """One arm on features would have other losses: the same weights give the same numbers, whatever stands first."""
    lines = []
    for kind in ("tensor", "pair"):
        folder = tmp_path / kind
        folder.mkdir()
        jobs.planned(
            folder, {"widths": [8, 16], "answers": kind}, {"answers": kind}, "--data", "digits", "--method", "kd"
        )
        jobs.ran(folder)
        lines.append([line["losses"] for line in runs.metrics(folder / "run")])
    assert lines[0] == lines[1]


def test_the_user_has_the_last_word(tmp_path: Path) -> None:
    # as many features as classes: either entry could be meant
    teacher: dict[str, Any] = {"widths": [12, 10], "answers": "pair"}
    student: dict[str, Any] = {"widths": [4, 10], "answers": "mapping"}
    options = ("--data", "digits", "--method", "kd", "--no-control")
    plan = jobs.planned(tmp_path, teacher, student, *options, "--force")  # its features know nothing
    assert [plan.given(name).output for name in ("teacher", "student")] == ["0", "logits"]
    (remark,) = [remark for remark in plan.diagnostics if remark.code == "which-output"]
    assert (remark.where, remark.hint) == ("teacher", "if it is another one, name it: --teacher-output 1")
    plan = jobs.planned(tmp_path, teacher, student, *options, "--teacher-output", "1", "--student-output", "features")
    assert [plan.given(name).output for name in ("teacher", "student")] == ["1", "features"]
    assert "which-output" not in {remark.code for remark in plan.diagnostics}
    result = jobs.ran(tmp_path)
    module = build(f"{jobs.MODULE}:net", student, allow=[jobs.MODULE]).eval()
    module.load_state_dict(torch.load(tmp_path / "run" / "student_state_dict.pt", weights_only=True))
    before = load(tmp_path / "plan.json").given("student")
    start = state_of(tmp_path / str(before.path))
    assert torch.equal(module.get_parameter("head.weight"), start["head.weight"])  # nothing read it
    assert deploy.evaluate(tmp_path / "run", allow=[jobs.MODULE])["accuracy"] == result["arms"][0]["accuracy"]


@pytest.mark.parametrize(("role", "entries"), [("teacher", "0, 1"), ("student", "features, logits")])
@pytest.mark.parametrize("data", [("--data", "digits"), ("--input", "1x1x8x8")])
def test_a_wrong_name_is_refused_with_those_that_there_are(
    tmp_path: Path, role: str, entries: str, data: tuple[str, str]
) -> None:
    files = jobs.model(tmp_path / "t.pt", answers="pair"), jobs.model(tmp_path / "s.pt", answers="named")
    done = jobs.call("plan", *files, *jobs.ALLOW, *data, "-o", tmp_path / "plan.json", f"--{role}-output", "logit")
    assert done.exit_code == 2
    assert "the model's output has no entry 'logit'" in done.stderr
    assert f"its entries are: {entries}" in done.stderr
    assert not (tmp_path / "plan.json").exists()


def test_a_model_of_several_outputs_is_measured_and_exported_with_a_word_on_them(tmp_path: Path) -> None:
    """Both outputs could be the logits of ten classes: the first is taken, which is said, or the one that is named."""
    file = jobs.model(tmp_path / "pair.pt", answers="pair", widths=[4, 10])
    said = jobs.call("eval", file, *jobs.ALLOW, "--data", "digits")
    assert "its output 0 is taken for the prediction; 1 would do as well" in " ".join(said.stderr.split())
    assert "--output-entry 1" in said.stderr
    named = jobs.call("eval", file, *jobs.ALLOW, "--data", "digits", "--output-entry", "1")
    assert named.stderr == ""
    wrong = jobs.call("eval", file, *jobs.ALLOW, "--data", "digits", "--output-entry", "2")
    assert (wrong.exit_code, "no entry '2'" in wrong.stderr) == (2, True)
    exported = jobs.done("export", file, *jobs.ALLOW, "-o", tmp_path / "all.onnx")
    assert "outputs output_0, output_1" in exported
    assert "agreement" not in exported, "nothing says which of them is the prediction"
    exported = jobs.done("export", file, *jobs.ALLOW, "-o", tmp_path / "one.onnx", "--output-entry", "1",
                         "--only-output", "1")  # fmt: skip
    assert "outputs output_1; left out: 0" in exported
    assert "top-1 agreement" in exported


def test_a_run_exports_all_outputs_of_its_student(tmp_path: Path) -> None:
    jobs.planned(tmp_path, {"widths": [8, 16]}, {"answers": "named"}, "--data", "digits", "--method", "kd")
    result = jobs.ran(tmp_path, "--precision", "32-true")
    assert result["outputs"] == ["logits", "features"]
    assert set(result["parity"]["others"]) == {"features"}
    names = [one.name for one in onnxruntime.InferenceSession(tmp_path / "run" / "student.onnx").get_outputs()]
    assert names == ["logits", "features"]


def test_a_plan_may_say_which_outputs_its_student_has(tmp_path: Path) -> None:
    jobs.planned(tmp_path, {"widths": [8, 16]}, {"answers": "named"}, "--data", "digits", "--method", "kd")
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["export"]["outputs"] == []
    for wanted, found in ((["logits"], "outputs logits; left out: features"), (["features"], "outputs features")):
        content["export"]["outputs"] = wanted
        (tmp_path / "plan.json").write_text(json.dumps(content))
        result = jobs.ran(tmp_path, "--precision", "32-true")
        assert result["outputs"] == wanted
        assert found in jobs.done("export", tmp_path / "run", *jobs.ALLOW, "-o", tmp_path / "again.onnx")
        assert "parity" in jobs.done("show", tmp_path / "run")
        shutil.rmtree(tmp_path / "run")
    content["export"]["outputs"] = ["scores"]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    done = jobs.call("run", tmp_path / "plan.json", "-o", tmp_path / "run", *jobs.ALLOW, "--device", "cpu")
    assert (done.exit_code, (tmp_path / "run").exists()) == (2, False)
    assert "has no output 'scores'" in done.stderr

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from typer.testing import CliRunner

from fxdistill import models
from fxdistill.cli.commands import app
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.data.load import load as load_data
from fxdistill.errors import InputError
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.load import load
from fxdistill.runtime.deployment import deploy, finding
from fxdistill.runtime.planning.make_plan import make_plan
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.smaller import shrinking
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


def test_a_run_is_exported_with_its_provenance(tmp_path: Path) -> None:
    _, parity = deploy.export(runs.finished(), tmp_path / "s.onnx", allow=runs.ALLOW)
    assert parity.images == len(load_data("digits").test)
    keys = {entry.key for entry in onnx.load(tmp_path / "s.onnx").metadata_props}
    assert "fxdistill.plan_sha256" in keys


def test_a_file_is_compared_on_noise_without_data(tmp_path: Path) -> None:
    runs.plan_file()
    found = finding.find(str(runs.workshop() / "teacher.pt"))
    assert found.dataset is None
    assert found.input_shape == (1, 1, 8, 8)
    _, parity = deploy.export(runs.workshop() / "teacher.pt", tmp_path / "t.onnx")
    assert parity.images == 32


def test_the_trained_weights_are_found() -> None:
    found = finding.find(str(runs.finished()), allow=runs.ALLOW)
    state = torch.load(runs.finished() / "student_state_dict.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in found.module.state_dict().items())


NAMES = ("teacher", "student")
STUDENT: tuple[str, dict[str, Any]] = ("fxdistill.models:convnet", {"widths": [8, 16], "hidden": 8})


@pytest.fixture
def shrunken_student(tmp_path: Path) -> Path:
    """A run directory whose student came out of a bundle of a shrunken model."""
    small = shrink_model(build(*STUDENT), input_shape=(1, 1, 8, 8), keep=0.5)
    save(small.module, tmp_path / "small.pt", input_shape=(1, 1, 8, 8))
    found, teacher = load(tmp_path / "small.pt"), runs.workshop() / "teacher.pt"
    plan = make_plan(teacher, tmp_path / "small.pt", tmp_path / "plan.json", data="digits", epochs=2)
    with RunDir.opened(tmp_path / "run", plan, origin=tmp_path / "plan.json", resume=False) as run:
        with torch.no_grad():
            found.module.get_parameter("classifier.bias").fill_(3)
        save(found.module, run.bundle_path("student"), input_shape=(1, 1, 8, 8))
    return tmp_path


def test_a_student_that_was_shrunken_is_found(shrunken_student: Path) -> None:
    found = finding.find(str(shrunken_student / "run"))
    assert found.module.get_parameter("block1.conv.weight").shape[0] == 4
    assert torch.equal(found.module.get_parameter("classifier.bias"), torch.full((10,), 3.0))
    assert not found.module.training


def test_a_run_needs_no_file_that_was_planned(shrunken_student: Path) -> None:
    (shrunken_student / "small.pt").unlink()
    assert finding.find(str(shrunken_student / "run")).module.get_parameter("block1.conv.weight").shape[0] == 4


def test_prune_distil_prune_again(tmp_path: Path) -> None:
    """What comes out goes in: a run directory is a model wherever one is asked for."""
    first = shrinking.shrink(runs.workshop() / "teacher.pt", tmp_path / "small.pt", keep=0.5)
    content = CliRunner().invoke(app, [
        "plan", str(runs.workshop() / "teacher.pt"), str(tmp_path / "small.pt"), "--data", "digits", "--epochs", "1",
        "--no-control", "--method", "kd", "-o", str(tmp_path / "plan.json"),
    ])  # fmt: skip
    assert content.exit_code == 0, content.output
    runs.execute(tmp_path / "plan.json", tmp_path / "run", Settings(device="cpu"))
    trained, start = load(tmp_path / "run").module, load(tmp_path / "small.pt").module
    assert not torch.equal(next(trained.parameters()), next(start.parameters()))
    assert deploy.evaluate(tmp_path / "run").keys() >= {"accuracy"}
    again = shrinking.shrink(tmp_path / "run", tmp_path / "smaller.pt", keep=0.5)
    assert again.before.parameters == first.after.parameters > again.after.parameters
    assert load(tmp_path / "smaller.pt").input_shape == (1, 1, 8, 8)


def test_a_run_that_has_trained_nothing_yet_is_no_model(shrunken_student: Path) -> None:
    (shrunken_student / "run" / "student.pt").unlink()
    for use in (load, deploy.evaluate):
        with pytest.raises(InputError, match="no student yet") as caught:
            use(shrunken_student / "run")
        assert "--resume" in caught.value.hint


def test_a_folder_with_a_plan_and_a_model_of_that_name_is_no_run(shrunken_student: Path, tmp_path: Path) -> None:
    """So the demo's folder looks, and that of ``compress``: the model beside the plan is not what came of it."""
    apart = tmp_path / "apart"
    apart.mkdir()
    for name in ("plan.json", "student.pt"):
        shutil.copy(shrunken_student / "run" / name, apart)
    for use in (load, deploy.evaluate):
        with pytest.raises(InputError, match=r"no run directory|origin.json is missing"):
            use(apart)
    with pytest.raises(InputError) as caught:
        load(apart)
    assert caught.value.hint == "name the file of the model in it"
    shutil.copytree(shrunken_student / "run", apart / "run")
    with pytest.raises(InputError) as caught:
        load(apart)
    assert f"name the run {apart / 'run'}" in caught.value.hint


def test_how_a_model_was_loaded_is_said(tmp_path: Path) -> None:
    weights = models.convnet(widths=[4], hidden=4, image_size=8).state_dict()
    torch.save({"state_dict": weights, "state_dict_ema": weights}, tmp_path / "x.pth")
    factory: dict[str, Any] = {
        "factory": "fxdistill.models:convnet", "args": ["widths=[4]", "hidden=4", "image_size=8"],
        "input_shape": (1, 1, 8, 8),
    }  # fmt: skip
    for data in (None, "digits"):
        found = finding.find(tmp_path / "x.pth", data=data, **factory)
        assert "checkpoint-entry" in [remark.code for remark in found.remarks]
    made = shrinking.shrink(tmp_path / "x.pth", keep=0.5, **factory)
    assert "checkpoint-entry" in [remark.code for remark in made.diagnostics]


def test_data_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="7 classes"):
        finding.find("fxdistill.models:convnet?widths=[4,8]&classes=7", data="digits")


def test_a_made_member_is_found_and_exported(tmp_path: Path) -> None:
    """An auxiliary teacher is made again from the planned teacher, and gets its trained weights."""
    content = json.loads(runs.plan_file("auxiliary", align="shrink").read_text())
    content["export"].update(member="auxiliary", arm="auxiliary")
    plan = runs.workshop() / "export-auxiliary.json"
    plan.write_text(json.dumps(content))
    runs.execute(plan, tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW))
    found = finding.find(str(tmp_path / "run"), allow=runs.ALLOW)
    state = torch.load(tmp_path / "run" / "auxiliary_state_dict.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in found.module.state_dict().items())
    _, parity = deploy.export(tmp_path / "run", tmp_path / "a.onnx", allow=runs.ALLOW)
    assert (parity.images, parity.agreement_name) == (len(load_data("digits").test), "top-1 agreement")


@pytest.mark.parametrize(
    "given", [{"task": "regression"}, {"factory": "a.b:c"}, {"args": ["a=1"]}, {"trust_code": True}]
)
def test_a_run_says_itself_what_its_models_are(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a run says itself what its models are"):
        deploy.evaluate(runs.finished(), allow=runs.ALLOW, **given)

"""BatchNorm statistics that lag behind the weights, and students that say the same of everything: found and said."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset
from fxdistill.data.load import load as load_data
from fxdistill.diagnostics import Diagnostic
from fxdistill.measure.model import metrics
from fxdistill.modelfiles.factories import build
from fxdistill.plan.document import Plan
from fxdistill.plan.training import Recalibration
from fxdistill.runtime.run import arms
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training import norms
from fxdistill.tasks import TASKS
from tests import jobs
from tests.tiny_models import planned

TASK = TASKS.get("classification")


@pytest.fixture(scope="module")
def lagging() -> nn.Module:
    """A well-trained model whose running statistics have hardly moved from where they began."""
    jobs.models()
    data = load_data("digits")
    module: nn.Module = build(f"{jobs.MODULE}:net", {"widths": [8, 16], "momentum": 1e-4}, seed=0, allow=[jobs.MODULE])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for epoch in range(20):
        for batch in batches(data.train, 256, shuffle=True, epoch=epoch):
            loss = nn.functional.cross_entropy(
                module.train()((batch["images"] - data.mean[0]) / data.std[0]), batch["labels"]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module.eval()


class Unread:
    """A split that nobody may read."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test split was read: {name}")

    def __len__(self) -> int:
        raise AssertionError


def data_of(*, labelled: bool = True) -> Dataset:
    found: Any = replace(load_data("digits"), test=Unread())
    if not labelled:
        found = replace(found, train=found.train.relabelled(torch.full_like(found.train.labels, -100)))
    dataset: Dataset = found
    return dataset


def settled(
    module: nn.Module, wanted: Recalibration | None, *, labelled: bool = True
) -> tuple[nn.Module, list[Diagnostic]]:
    own = copy.deepcopy(module)
    plan: Plan = planned("a", "b", (1, 4, 8, 8), (1, 4, 8, 8)).changed(recalibration=wanted)
    return own, list(norms.settle(plan, "student", own, dataset=data_of(labelled=labelled), task=TASK))


def accuracy(module: nn.Module) -> float:
    return metrics(module, load_data("digits"), TASK)["accuracy"]


def statistics(module: nn.Module) -> list[Tensor]:
    return [value for name, value in module.named_buffers() if "running" in name]


@pytest.mark.parametrize("labelled", [True, False])
def test_statistics_that_lag_behind_are_estimated_anew(lagging: nn.Module, labelled: bool) -> None:
    assert accuracy(lagging) < 0.5
    module, (remark,) = settled(lagging, Recalibration(), labelled=labelled)
    assert accuracy(module) > 0.85
    assert (remark.code, remark.severity) == ("batch-norm-statistics", "note")
    how = "accuracy" if labelled else "top-1 agreement"
    assert f"on 1260 training images {how} " in remark.why
    assert ("% by running" in remark.why, "% between running" in remark.why) == (labelled, not labelled)
    assert all(torch.equal(one, two) for one, two in zip(lagging.parameters(), module.parameters(), strict=True))
    assert not module.training
    assert {part.momentum for part in module.modules() if isinstance(part, nn.BatchNorm2d)} == {1e-4}
    again, _ = settled(lagging, Recalibration(), labelled=labelled)
    assert all(torch.equal(one, two) for one, two in zip(statistics(module), statistics(again), strict=True))


def test_without_leave_it_is_offered(lagging: nn.Module) -> None:
    module, (remark,) = settled(lagging, None)
    assert all(torch.equal(one, two) for one, two in zip(statistics(lagging), statistics(module), strict=True))
    assert remark.severity == "warning"
    assert "--recalibrate-bn" in remark.hint
    running, batch = (float(part.split("%")[0].split()[-1]) for part in remark.why.split(" by ")[:2])
    assert running < 50 < 85 < batch


def test_statistics_that_serve_are_left_alone_unless_asked_for(lagging: nn.Module) -> None:
    mended, _ = settled(lagging, Recalibration())
    module, said = settled(mended, Recalibration())
    assert said == []
    assert all(torch.equal(one, two) for one, two in zip(statistics(mended), statistics(module), strict=True))
    module, (remark,) = settled(mended, Recalibration(when="always", images=256))
    assert "on 256 training images" in remark.why
    assert any(not torch.equal(one, two) for one, two in zip(statistics(mended), statistics(module), strict=True))


def test_frozen_norms_and_models_without_any_are_left_alone(lagging: nn.Module) -> None:
    frozen = copy.deepcopy(lagging).requires_grad_(requires_grad=False)
    for module in (frozen, build("fxdistill.models:convnet", {"widths": [4, 8]}, seed=0).eval()):
        before = [value.clone() for value in module.buffers()]
        if module is not frozen:
            module = nn.Sequential(*(nn.Flatten(), nn.Linear(64, 10)))  # noqa: PLW2901
            before = []
        found, said = settled(module, Recalibration(when="always"))
        assert said == []
        assert all(torch.equal(one, two) for one, two in zip(before, found.buffers(), strict=True))


OPTIONS = ("--data", "digits", "--method", "kd", "--lr", "0.05", "--epochs", 8, "--batch-size", 128, "--no-control")


def test_a_run_ends_with_statistics_that_serve_and_goes_on_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = {"widths": [8, 16], "momentum": 1e-4}
    plan = jobs.planned(tmp_path, {"widths": [8, 16]}, student, *OPTIONS)
    assert plan.recalibration == Recalibration()
    result = jobs.ran(tmp_path)
    (arm,) = result["arms"]
    assert [(remark["code"], remark["where"]) for remark in arm["remarks"]] == [
        ("batch-norm-statistics", "student, arm 'distilled', seed 0")
    ]
    assert "estimated anew" in " ".join(jobs.done("show", tmp_path / "run").split())
    weights = torch.load(tmp_path / "run" / "student_state_dict.pt", weights_only=True)

    # interrupted when all is trained and nothing is mended yet
    with monkeypatch.context() as patch:
        patch.setattr(norms, "settle", _interrupt)
        command = ("run", tmp_path / "plan.json", "-o", tmp_path / "again", *jobs.ALLOW, "--device", "cpu")
        assert jobs.call(*command).exit_code == 130
    jobs.done(*command, "--resume")
    resumed = torch.load(tmp_path / "again" / "student_state_dict.pt", weights_only=True)
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())

    assert arm["accuracy"] > 0.5


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_number_of_images_or_a_word(tmp_path: Path) -> None:
    plan = jobs.planned(tmp_path, {"widths": [8, 16]}, {}, *OPTIONS, "--recalibrate-bn", "500")
    assert plan.recalibration == Recalibration(when="always", images=500)
    assert jobs.planned(tmp_path, {}, {}, *OPTIONS, "--recalibrate-bn", "off").recalibration is None
    files = [jobs.model(tmp_path / "teacher.pt"), jobs.model(tmp_path / "student.pt")]
    for wrong in ("sometimes", "0", "-3"):
        done = jobs.call("plan", *files, *jobs.ALLOW, *OPTIONS, "-o", tmp_path / "p.json", f"--recalibrate-bn={wrong}")
        assert (done.exit_code, "--recalibrate-bn" in done.stderr) == (2, True)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_student_that_says_the_same_of_everything_is_a_loud_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Its head is set to zero when it is trained, as a learning rate that is too high may leave it."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(96) % 10 if task == "classification" else torch.rand(96, generator=generator)).numpy()
    outputs = {"outputs": 10 if task == "classification" else 1}
    spec = jobs.arrays(tmp_path / "data.npz", labels)
    jobs.planned(tmp_path, outputs, outputs, "--data", spec, "--task", task, "--method", "kd", "--no-control")
    check = arms._check_finite

    def dying(trained: nn.Module, trial: Trial, **options: Any) -> None:
        check(trained, trial, **options)
        for name, parameter in trained.named_parameters():
            if name.startswith("head"):
                parameter.data.zero_()

    monkeypatch.setattr(arms, "_check_finite", dying)
    settle = norms.settle

    def emptied(plan: Plan, member: str, module: nn.Module, **rest: Any) -> list[Diagnostic]:
        for name, parameter in module.named_parameters():
            if name.startswith("head"):
                parameter.data.zero_()
        return list(settle(plan, member, module, **rest))

    monkeypatch.setattr(norms, "settle", emptied)
    done = jobs.call("run", tmp_path / "plan.json", "-o", tmp_path / "run", *jobs.ALLOW, *jobs.NOISE, "--device", "cpu")
    assert done.exit_code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    codes = [remark["code"] for remark in result["arms"][0]["remarks"]]
    same = "one class for every image" if task == "classification" else "the same numbers for every image"
    assert codes == ["collapsed", "student-near-chance"]
    assert result["parity"]["vacuous"] == same
    for shown in (done.stdout, jobs.done("show", tmp_path / "run")):
        assert f"which says nothing: {same}" in " ".join(shown.split())
        assert "collapsed" in shown
    assert f"it says {same}" in " ".join(done.stderr.split())

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from torch import Tensor, nn
from torch._inductor.exc import InvalidCxxCompiler

import fxdistill
from fxdistill.compiler.build import specialize
from fxdistill.data import places
from fxdistill.data.load import load as load_data
from fxdistill.errors import DataError, InputError, ModelError, ParityError, PlanError, RunDirError, TrainingError
from fxdistill.files import file_sha256
from fxdistill.losses import LOSSES
from fxdistill.measure.model import metrics
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.plan.file import load
from fxdistill.plan.training import Stage
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.deployment import deploy
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.processes import devices
from fxdistill.runtime.run import checkpoint
from fxdistill.runtime.run.checkpoint import load as load_checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.run.result import summary
from fxdistill.runtime.run.trials import Trial, trials_of
from fxdistill.runtime.training import loop, optimizers
from fxdistill.tasks import TASKS
from tests import runs
from tests.plugins import Add
from tests.runs import execute

CPU = Settings(device="cpu", allow=runs.ALLOW)


def main_stage_only(plan: dict[str, Any]) -> None:
    """Leave the main stage of one arm, without control."""
    plan["arms"][0]["stages"] = plan["arms"][0]["stages"][-1:]
    plan["control"] = None


def test_a_finished_run_holds_everything() -> None:
    run = runs.finished()
    names = {path.name for path in run.iterdir()}
    assert names == {
        ".lock", "plan.json", "origin.json", "metrics.jsonl", "tensorboard", "student.pt", "student_state_dict.pt",
        "student.onnx", "result.json", "trained_distilled-seed0.pt", "trained_control-seed0.pt",
    }  # fmt: skip
    plan, result = load(run / "plan.json"), RunDir(run).result()
    assert result is not None
    assert result["plan"] == plan.sha256
    assert [(arm["name"], arm["seed"]) for arm in result["arms"]] == [("distilled", 0), ("control", 0)]
    assert result["parity"]["images"] == 537
    assert result["parity"]["max_abs_error"] <= 1e-4
    assert result["latency"]["student"]["median_ms"] > 0


def test_the_accuracy_in_the_result_is_that_of_the_file() -> None:
    run, dataset = runs.finished(), load_data("digits")
    student = build(*runs.STUDENT, allow=runs.ALLOW)
    student.load_state_dict(torch.load(run / "student_state_dict.pt", weights_only=True))
    result = RunDir(run).result()
    assert result is not None
    found = metrics(
        student, dataset, TASKS.get("classification"), view=dataset.preprocessing.view((8, 8)), batch_size=64
    )
    assert result["arms"][0]["accuracy"] == found["accuracy"]


def test_training_changes_the_student_and_not_the_teacher() -> None:
    before = fxdistill.load(fxdistill.parse_source(str(runs.workshop() / "student.pt"), allow=runs.ALLOW)).module
    after = torch.load(runs.finished() / "student_state_dict.pt", weights_only=True)
    assert list(after) == list(before.state_dict())
    assert not torch.equal(after["conv1.weight"], before.state_dict()["conv1.weight"])
    assert int(after["bn1.num_batches_tracked"]) == 5 * (1 + 1 + 2)


def test_metrics_have_one_line_an_epoch() -> None:
    lines = runs.metrics(runs.finished())
    places = [(line["name"], line["stage"], line["epoch"]) for line in lines]
    assert places == [
        ("distilled", "warm-up-1", 1), ("distilled", "warm-up-2", 1), ("distilled", "main", 1),
        ("distilled", "main", 2),
        *(("control", "control", epoch) for epoch in (1, 2, 3, 4)),
    ]  # fmt: skip
    assert [set(line["metrics"]) for line in lines] == [set(), set(), *[{"accuracy"}] * 6]


def test_tensorboard_shows_the_same() -> None:
    found = EventAccumulator(str(runs.finished() / "tensorboard" / "distilled-seed0"))
    found.Reload()
    lines = [line for line in runs.metrics(runs.finished()) if line["name"] == "distilled"]
    kd = [(event.step, round(event.value, 4)) for event in found.Scalars("main/kd")]
    assert kd == [(step, round(lines[step - 1]["losses"]["kd"], 4)) for step in (3, 4)]
    assert [event.step for event in found.Scalars("accuracy")] == [3, 4]
    rates = [event.value for event in found.Scalars("learning_rate")]
    assert rates == pytest.approx([line["learning_rate"] for line in lines])
    # constant in the warm-ups; half a cosine over 10 steps, of which those before the last of an epoch are 4 and 9
    assert [rate / rates[0] for rate in rates] == pytest.approx(
        [1, 1, *(0.5 * (1 + math.cos(math.pi * done / 10)) for done in (4, 9))]
    )


def test_onnx_says_where_it_comes_from() -> None:
    model = onnx.load(runs.finished() / "student.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props}
    plan = load(runs.plan_file())
    assert found["fxdistill.plan_sha256"] == plan.sha256 == file_sha256(runs.plan_file())
    assert json.loads(found["fxdistill.classes"]) == [str(n) for n in range(10)]
    assert Preprocessing.model_validate_json(found["fxdistill.preprocessing"]) == plan.preprocessing_of("student")
    assert "torch" in json.loads(found["fxdistill.versions"])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_a_finished_run_gives_its_result_again() -> None:
    before = runs.snapshot(runs.finished())
    again = execute(runs.plan_file(), runs.finished(), Settings(resume=True))
    assert again == RunDir(runs.finished()).result()
    assert fxdistill.run(str(runs.plan_file()), str(runs.finished()), resume=True) == again
    assert runs.snapshot(runs.finished()) == before


def test_a_failed_gate_leaves_no_onnx(tmp_path: Path) -> None:
    plan = runs.edited("strict", lambda p: p["export"].update(tolerance=1e-12))
    with pytest.raises(ParityError) as failure:
        execute(plan, tmp_path / "run", CPU)
    assert failure.value.exit_code == 1
    assert not (tmp_path / "run" / "student.onnx").exists()
    assert not (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "run" / "student.pt").read_bytes() == (runs.finished() / "student.pt").read_bytes()
    with pytest.raises(ParityError):
        execute(plan, tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW, resume=True))


def hot(monkeypatch: pytest.MonkeyPatch, name: str, factor: float) -> None:
    """One stage at a rate that no plan may say."""
    rate = optimizers.set_rate

    def higher(optimizer: torch.optim.Optimizer, stage: Stage, step: int, steps: int) -> None:
        rate(optimizer, stage, step, steps)
        for group in optimizer.param_groups:
            group["lr"] *= factor if stage.name == name else 1.0

    monkeypatch.setattr(loop, "set_rate", higher)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = runs.plan_file()
    hot(monkeypatch, "warm-up-2", 1e33)
    with pytest.raises(TrainingError) as failure:
        execute(plan, tmp_path / "run", CPU)
    pair = load(plan).arm("distilled").stages[1].losses[0].pair
    assert f"'{pair}'" in failure.value.what
    assert "stage 'warm-up-2', epoch 1, batch 2" in failure.value.where
    assert failure.value.exit_code == 1
    assert load_checkpoint(RunDir(tmp_path / "run")).position.stage == 1


def test_weights_that_end_as_no_numbers_are_no_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(plan: dict[str, Any]) -> None:
        main_stage_only(plan)
        plan["arms"][0]["stages"][0].update(epochs=1)
        plan["arms"][0]["stages"][0]["optimizer"].update(name="sgd", lr=100.0, weight_decay=100.0)
        plan["data"]["batch_size"] = 2000

    hot(monkeypatch, "main", 1e36)
    with pytest.raises(TrainingError, match="not finite"):
        execute(runs.edited("last-step", change), tmp_path / "run", CPU)
    assert not (tmp_path / "run" / "student.pt").exists()


def _untaught(name: str) -> Path:
    """The plan with a teacher that nobody has trained, in a file that does not say so."""
    path = runs.workshop() / "untaught.pt"
    save(build(*runs.TEACHER, seed=3), path, factory=runs.TEACHER[0], kwargs=runs.TEACHER[1], input_shape=(1, 1, 8, 8))
    return runs.edited(name, lambda p: p["members"]["teacher"].update(path=path.name, sha256=file_sha256(path)))


def _begin(*_: object, **__: object) -> None:
    raise RuntimeError("it trains")


def test_a_teacher_at_chance_is_refused_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    observer = Observer(on_diagnostic=lambda remark: said.append(remark.code))
    monkeypatch.setattr("fxdistill.runtime.run.execute.train", _begin)
    plan = _untaught("at-chance")
    with pytest.raises(ModelError, match=r"hardly anything to teach.*where chance is") as refusal:
        execute(plan, tmp_path / "run", CPU, observer)
    assert all(reason in refusal.value.hint for reason in ("normalisation", "labels", "output", "--force"))
    assert not (tmp_path / "run").exists()
    assert not said
    with pytest.raises(RuntimeError, match="it trains"):
        execute(plan, tmp_path / "run", replace(CPU, force=True), observer)
    assert said == ["teacher-near-chance", "layout"]
    with pytest.raises(ModelError, match="hardly anything to teach"):  # whoever goes on has to say so again
        execute(tmp_path / "run" / "plan.json", tmp_path / "run", replace(CPU, resume=True))


NO_TARGETS = torch.zeros(0)


@pytest.mark.parametrize(
    ("value", "classes", "near", "at"),
    [(0.9, 10, 0, 0), (0.19, 10, 1, 1), (0.21, 10, 0, 0), (0.02, 10, 1, 1), (0.8, 2, 0, 0), (0.59, 2, 1, 0),
     (0.7, 2, 0, 0), (0.54, 2, 1, 1), (0.3, 2, 1, 1), (0.45, 3, 1, 0), (0.5, 3, 0, 0), (0.0015, 1000, 1, 1),
     (0.05, 1000, 0, 0)],
)  # fmt: skip
def test_how_far_from_chance_a_teacher_is(value: float, classes: int, near: int, at: int) -> None:
    task, found = TASKS.get("classification"), {"accuracy": value}
    assert len(preflight.near_chance("teacher", found, task, NO_TARGETS, classes=classes)) == near
    assert task.at_chance(found, classes, NO_TARGETS) == bool(at)


def test_a_regression_no_better_than_the_mean_teaches_nothing() -> None:
    task = TASKS.get("regression")
    for r2, nothing in ((0.05, False), (0.0, True), (-3.0, True), (float("nan"), True)):
        assert task.at_chance({"MAE": 1.0, "R2": r2}, 0, NO_TARGETS) == nothing


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_precision_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, said = runs.edited("kd", main_stage_only), list[logging.LogRecord]()
    monkeypatch.setattr(logging.getLogger("lightning_fabric"), "level", logging.INFO)
    monkeypatch.setattr(logging.StreamHandler, "emit", lambda _handler, record: said.append(record))
    execute(plan, tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW, precision="bf16-mixed"))
    assert not said
    execute(plan, tmp_path / "full", CPU)
    mixed, full = (torch.load(tmp_path / name / "student_state_dict.pt", weights_only=True) for name in ("run", "full"))
    assert mixed["fc.weight"].dtype == torch.float32
    assert not torch.equal(mixed["fc.weight"], full["fc.weight"])
    fabric, _ = devices.started("cpu", "bf16-mixed")
    batch = {"images": torch.tensor([0.1]), "labels": torch.tensor([1234.5])}
    assert fabric.setup_module(nn.Identity(), _reapply_compile=False)(batch) == batch  # bfloat16 would make 1232 of it
    with pytest.raises(InputError, match="CUDA"):
        preflight.accelerator("cpu", "16-mixed")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiling takes a minute of one CPU core")
@pytest.mark.filterwarnings("ignore")
def test_through_the_compiler(tmp_path: Path) -> None:
    plan = runs.edited("kd", main_stage_only)
    execute(plan, tmp_path / "run", Settings(device="cuda", allow=runs.ALLOW, compile=True))
    assert (tmp_path / "run" / "student.onnx").exists()


def test_each_training_scales_its_losses_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run that goes on there: what 16-bit training has found out of a scale is of one training."""
    found, begun = list[float](), devices.started

    def scaling(*given: Any) -> Any:
        fabric, crew = begun(*given)
        precision: Any = fabric.strategy.precision
        precision.scaler = torch.amp.GradScaler("cpu")
        return fabric, crew

    def train(self: loop.Loop, *_: object) -> None:
        precision: Any = self.fabric.strategy.precision
        found.append(precision.state_dict()["scale"])
        precision.load_state_dict({**precision.state_dict(), "scale": 2.0})

    monkeypatch.setattr("fxdistill.runtime.run.execute.started", scaling)
    monkeypatch.setattr(loop.Loop, "run", train)
    execute(runs.plan_file(), tmp_path / "run", replace(CPU, precision="bf16-mixed", trials=2))
    assert found == [65536.0, 65536.0]


@pytest.mark.parametrize("becomes", [1.0, math.nan])
def test_a_mask_is_infinite_and_a_trained_weight_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: float
) -> None:
    load_model = preflight.load_model

    def masked(*given: Any, **options: Any) -> nn.Module:
        module = load_model(*given, **options)
        module.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
        return module

    def train(self: loop.Loop, *_: object) -> None:
        self.program.get_parameter("student.conv1.weight").data.fill_(becomes)

    monkeypatch.setattr(preflight, "load_model", masked)
    monkeypatch.setattr(loop.Loop, "run", train)
    wrong = pytest.raises(TrainingError, match=r"the trained weight 'conv1\.weight' is not finite")
    with wrong if math.isnan(becomes) else nullcontext():
        execute(runs.plan_file(), tmp_path / "run", replace(CPU, trials=1))


@pytest.mark.filterwarnings("ignore")
def test_no_compiler_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> nn.Module:
        class Broken(nn.Module):
            def forward(self, *_: Tensor) -> Tensor:
                raise InvalidCxxCompiler

        return Broken()

    monkeypatch.setattr("fxdistill.runtime.training.loop.compiled", broken)
    with pytest.raises(InputError, match=r"torch\.compile"):
        execute(runs.plan_file(), tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW, compile=True))


def test_trials() -> None:
    plan = load(runs.plan_file()).changed(seeds=[3, 4])
    both = [Trial(3, "distilled"), Trial(3, "control"), Trial(4, "distilled"), Trial(4, "control")]
    assert trials_of(plan) == both
    assert trials_of(plan.changed(control=None)) == both[::2]
    shrunken = load(runs.plan_file("auxiliary", align="shrink")).changed(seeds=[3, 4])
    assert trials_of(shrunken) == [Trial(shrunken.seed, "auxiliary"), *both]


def test_summary_is_mean_and_sample_deviation() -> None:
    found = summary([{"name": "control", "accuracy": value} for value in (0.5, 0.7)], "accuracy")
    assert found["control"]["mean"] == pytest.approx(0.6)
    assert found["control"]["deviation"] == pytest.approx(0.02**0.5)


def test_the_student_needs_no_fxdistill(tmp_path: Path) -> None:
    """A run on the user's own class; its file is loaded where fxdistill cannot be imported."""
    program = """
import sys
sys.modules["fxdistill"] = None
sys.path.insert(0, sys.argv[1])
import torch, fxdistill_test_models
model = fxdistill_test_models.with_dropout()
model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
print(model.eval()(torch.zeros(1, 1, 8, 8)).shape[1])
"""
    student = runs.finished() / "student_state_dict.pt"
    done = subprocess.run(
        [sys.executable, "-c", program, str(runs.workshop()), str(student)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "10", done.stderr


def test_the_user_keeps_the_loop() -> None:
    teacher, student = build(*runs.TEACHER, seed=3), build(*runs.STUDENT, seed=4, allow=runs.ALLOW)
    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=(4, 1, 8, 8), epochs=1))
    program = fxdistill.build(plan, teacher, student)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    batch = {"images": images, "labels": labels}
    losses = program(batch)
    stages = plan.arm("distilled").stages
    assert set(losses) == {term.key for stage in stages for term in specialize(program, stage.name).terms}
    warm_up = specialize(program, "warm-up-1")
    optimizer = torch.optim.SGD([p for p in warm_up.parameters() if p.requires_grad], lr=0.1)
    before = student.get_parameter("conv1.weight").clone()
    only = warm_up(batch)
    assert len(only) == 1
    torch.autograd.backward(warm_up.total(only))
    optimizer.step()
    assert not torch.equal(before, student.get_parameter("conv1.weight"))


def test_places_are_relative_to_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan, models and run are moved together, and used from anywhere."""
    assert places.relative_data("npz:a/b.npz", Path("plans/plan.json")) == "npz:../a/b.npz"
    assert places.relative_data("npz:/a/b.npz", Path("plan.json")) == "npz:/a/b.npz"
    assert places.relative_data("digits", Path("plan.json")) == "digits"
    assert places.relative_data("my.module:factory", Path("plan.json")) == "my.module:factory"
    assert places.relative_data("npz:~no-such-user/b.npz", Path("plan.json")) == "npz:~no-such-user/b.npz"
    assert places.resolved_data("npz:~no-such-user/b.npz", Path("/x")) == "npz:/x/~no-such-user/b.npz"
    assert places.resolved_data("npz:../a/b.npz", Path("/x/plans")) == "npz:/x/a/b.npz"
    assert places.resolved_data("npz:../a/b.npz", Path("plans")) == "npz:a/b.npz"
    found = runs.finished()
    monkeypatch.chdir(tmp_path)
    assert RunDir(found).base == runs.plan_file().parent.resolve()
    result = RunDir(found).result()
    assert result is not None
    assert deploy.evaluate(found, allow=runs.ALLOW)["accuracy"] == result["arms"][0]["accuracy"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("fxdistill.measure.onnx_file.export_checked", _interrupt)
        interrupted = pytest.raises(KeyboardInterrupt)
        with interrupted:
            execute(runs.plan_file(), run, Settings(device="cuda", allow=runs.ALLOW, save_seconds=0))
    result = execute(runs.plan_file(), run, Settings(device="cuda", allow=runs.ALLOW, resume=True))
    assert result["device"].startswith("cuda")
    assert (run / "student.onnx").exists()


def test_a_run_goes_on_as_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = runs.edited("kd", main_stage_only)
    begun = Settings(device="cpu", allow=runs.ALLOW, precision="bf16-mixed", save_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr("fxdistill.runtime.run.arms.checkpoint.save", _saved_once(checkpoint.save))
        with pytest.raises(KeyboardInterrupt):
            execute(plan, tmp_path / "run", begun)
    before = runs.snapshot(tmp_path / "run")
    with pytest.raises(
        RunDirError, match="begun with precision bf16-mixed, compile False, channels_last False, and would go on"
    ):
        execute(plan, tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW, resume=True))
    assert runs.snapshot(tmp_path / "run") == before
    again = Settings(device="cpu", allow=runs.ALLOW, resume=True, precision="bf16-mixed")
    assert execute(plan, tmp_path / "run", again)["precision"] == "bf16-mixed"


def _saved_once(save: Callable[..., None]) -> Callable[..., None]:
    def once(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        raise KeyboardInterrupt

    return once


def test_data_that_has_grown_is_refused(tmp_path: Path) -> None:
    plan = runs.edited("grown", lambda p: p["data"].update(train_size=p["data"]["train_size"] + 1))
    with pytest.raises(DataError, match="made for 1261 training images, the data has 1260"):
        execute(plan, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_losses_that_cannot_be_computed_are_found_before_training(tmp_path: Path, add: Add) -> None:
    source = "from fxdistill.losses import Loss\nLOSS = Loss(reads=('student.logits', 'labels'), function=FUNCTION)\n"
    add(LOSSES, "mismatch", source.replace("FUNCTION", "lambda s, y: (s - y).mean()"))
    add(LOSSES, "several", source.replace("FUNCTION", "lambda s, y: s.mean(1)"))
    add(LOSSES, "nowhere", source.replace("FUNCTION", "lambda s, y: (s - s).mean() / 0"))

    def ending_with(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda plan: plan["arms"][0]["stages"][-1]["losses"][0].update(loss=name, args={})

    for name, message in (("mismatch", "the losses of this stage cannot be computed: RuntimeError"),
                          ("several", "the loss 'several' gives 2 numbers of two images, not one"),
                          ("nowhere", "the loss 'nowhere' is not a number before anything is trained")):  # fmt: skip
        plan = runs.edited(name, ending_with(name))
        with pytest.raises(PlanError, match=message) as caught:
            execute(plan, tmp_path / "run", CPU)
        assert caught.value.where == "arm 'distilled', stage 'main'"
        assert not (tmp_path / "run" / "metrics.jsonl").exists()

"""Whether training is right: every step, laid beside a loop written by hand, and what comes out in the end."""

import copy
import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler import pipeline
from fxdistill.compiler.auxiliary import make
from fxdistill.compiler.build import build_arm, specialize
from fxdistill.compiler.options import Options
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Split
from fxdistill.data.load import defaults
from fxdistill.files import file_sha256, write_text
from fxdistill.ir import views
from fxdistill.measure import onnx_file
from fxdistill.measure.model import metrics
from fxdistill.modelfiles.factories import build
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef, Shrunken
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Position, Progress
from fxdistill.runtime.training.optimizers import make_optimizer
from fxdistill.tasks import TASKS
from tests import by_hand, recorded
from tests.by_hand import SEEDS, STAGES
from tests.recorded import Step

ARMS = ("distilled", "control")
CONVNET = "fxdistill.models:convnet"


def trained(seed: int, arm: str) -> dict[str, Tensor]:
    """The student's weights at the end of a trial: those after the last step, or their running mean."""
    if arm == "control":
        return recorded.finished().of(seed, arm)[-1].weights
    mean = recorded.finished().of(seed, "warm-up-2")[-1].weights
    for step in recorded.finished().of(seed, "main"):
        mean = by_hand.averaged(mean, {n: t for n, t in step.weights.items() if n in mean}, by_hand.EMA)
    return mean


def compiled(name: str, kwargs: dict[str, Any], *, batch: int = 64, **options: Any) -> Plan:
    """Write the compiler's plan for the teacher and a convolutional student."""
    teacher, folder = by_hand.trained_teacher(), by_hand.folder()
    data = defaults("digits", dataset=by_hand.digits(), batch_size=batch)
    both = dict.fromkeys(("teacher", "student"), by_hand.digits().preprocessing)
    decided = Options(input_shape=by_hand.SHAPE, lr=4e-3, data=data, preprocessing=both, **options)
    plan = pipeline.compile(
        teacher, build(CONVNET, kwargs, seed=0), decided,
        teacher_ref=ModelRef(path="teacher.pt", sha256=file_sha256(folder / "teacher.pt"), factory=by_hand.TEACHER[0],
                             kwargs=by_hand.TEACHER[1]),
        student_ref=ModelRef(path=None, sha256=None, factory=CONVNET, kwargs=kwargs),
    )  # fmt: skip
    write_text(folder / f"{name}.json", plan.to_json())
    return plan


def carried_out(name: str, observer: Observer | None = None, *, resume: bool = False) -> Path:
    """Run a plan that was written; where the run lies."""
    folder = by_hand.folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
        execute(folder / f"{name}.json", folder / name, dataclasses.replace(by_hand.CPU, resume=resume), observer)
    return folder / name


# Every step


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("arm", ARMS)
def test_every_step_is_that_of_a_loop_written_by_hand(arm: str, seed: int) -> None:
    recorded.compare(recorded.finished(), seed, arm)


def steps(seed: int) -> dict[str, list[Step]]:
    return {stage: recorded.finished().of(seed, stage) for stage in STAGES}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_learning_rate_follows_the_schedule_of_its_stage(seed: int) -> None:
    rates = {stage: [step.rate for step in found] for stage, found in steps(seed).items()}
    assert rates["warm-up-1"] == pytest.approx([4e-3 / 3, 8e-3 / 3, *[4e-3] * 8])  # the first three of five steps
    assert set(rates["warm-up-2"]) == {0.1}
    for stage, highest in (("main", 4e-3), ("control", 3e-3)):
        found, count = rates[stage], len(rates[stage])
        assert found[0] == highest
        assert all(one > other for one, other in itertools.pairwise(found))
        # half a cosine is odd about its middle
        assert found[count // 2] + found[-(count // 2)] == pytest.approx(highest)
        assert 0 < found[-1] < highest * 3 / count**2


@pytest.mark.parametrize("seed", SEEDS)
def test_the_optimiser_is_fresh_in_each_stage_and_there_alone(seed: int) -> None:
    for name, found in steps(seed).items():
        wanted = [True] + [False] * (len(found) - 1)
        if name == "warm-up-1":  # which says that it starts afresh with every epoch
            wanted[by_hand.STEPS] = True
        assert [step.fresh for step in found] == wanted, name


def test_the_control_starts_where_the_distilled_arm_does_and_takes_as_many_steps() -> None:
    record = recorded.finished()
    for seed in SEEDS:
        one, other = (record.starts[Trial(seed, arm)] for arm in ARMS)
        assert all(torch.equal(one[name], other[name]) for name in one)
        found = steps(seed)
        assert len(found["control"]) == sum(len(found[stage]) for stage in STAGES[:3]) == 6 * 5
    one, other = (record.starts[Trial(seed, "distilled")] for seed in SEEDS)
    assert not any(torch.equal(one[name], other[name]) for name in ("conv1.weight", "conv2.weight", "fc.weight"))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_loss_of_the_control_is_that_of_a_fresh_student(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = by_hand.Student().train()
        torch.manual_seed(by_hand.step_seed(seed, 0, 0))
        batch = next(by_hand.training_batches(seed, 0))
        loss = nn.functional.cross_entropy(student(batch["images"]), batch["labels"])
    assert recorded.finished().of(seed, "control")[0].losses == {"cross-entropy": pytest.approx(loss.item(), rel=1e-5)}


# Who is trained, and who is not


def test_the_teacher_stays_as_it_was_to_the_bit() -> None:
    before, after = by_hand.trained_teacher().state_dict(), recorded.finished().members["teacher"].state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_teacher_is_in_eval_mode_and_out_of_reach() -> None:
    members = {"teacher": build(*by_hand.TEACHER).train(), "student": by_hand.student()}
    program = build_arm(by_hand.plan(), "distilled", members)
    for stage in program.stages:
        part = specialize(program, stage.name).train().requires_grad_(True)
        teacher = part.get_submodule("teacher")
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        held = {id(p) for group in make_optimizer(stage, part).param_groups for p in group["params"]}
        assert held.isdisjoint(id(p) for p in (*teacher.parameters(), *members["teacher"].parameters()))
        named = {id(p): name for name, p in part.named_parameters()}
        assert {named[one].partition(".")[0] for one in held} <= {"student", "adapters"}
        assert all(module.training for module in part.get_submodule("student").modules())


@pytest.mark.parametrize("arm", ARMS)
def test_running_statistics_of_the_student_move_once_a_step(arm: str) -> None:
    found = trained(SEEDS[0], arm)
    reached = {"bn1": 30, "bn2": 20 if arm == "distilled" else 30}  # the first warm-up does not reach the second
    assert {name: int(found[f"{name}.num_batches_tracked"]) for name in reached} == reached
    assert not torch.allclose(found["bn1.running_mean"], torch.zeros(4), atol=1e-3)
    assert not torch.allclose(found["bn2.running_var"], torch.ones(8), atol=1e-2)


# What is read


@pytest.mark.parametrize("augment", [["flip"], ["crop:2"], ["crop:1", "flip"]])
def test_labels_stay_with_their_images(augment: list[str]) -> None:
    """Each image has a value of its own, which tells its label wherever the pixels move."""
    values = torch.arange(1, 61)
    split = Split((values / 64).reshape(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous(), values % 7)
    orders = []
    for epoch in range(2):
        found = batches(split, 16, epoch=epoch, shuffle=True, augment=augment)
        read = torch.cat([torch.cat([b["images"].amax((1, 2, 3)) * 64, b["labels"], b["index"]]) for b in found])
        orders.append([part.tolist() for part in _thirds(read)])
    for told, labels, index in orders:
        assert sorted(told) == values.tolist()
        assert labels == [value % 7 for value in told]
        assert index == [value - 1 for value in told]
    assert orders[0] != orders[1]


def test_order_and_augmentation_are_drawn_anew_for_each_seed_and_epoch_and_augmentation_for_each_step() -> None:
    same = torch.arange(36).reshape(1, 1, 6, 6).expand(48, -1, -1, -1) / 36
    orders: set[tuple[int, ...]] = set()
    drawn: set[tuple[float, ...]] = set()
    for seed, epoch in itertools.product(range(2), range(2)):
        found = list(batches(Split(same, torch.arange(48)), 16, seed=seed, epoch=epoch,
                             shuffle=True, augment=["crop:2"]))  # fmt: skip
        orders.add(tuple(torch.cat([batch["index"] for batch in found]).tolist()))
        drawn.update(tuple(batch["images"].flatten().tolist()) for batch in found)
    assert len(orders) == 4
    assert len(drawn) == 4 * 3


def _thirds(read: Tensor) -> list[Tensor]:
    """Value, label and index of each image, out of four batches of 15."""
    parts = [part.reshape(3, -1) for part in read.split(45)]
    return list(torch.cat(parts, dim=1))


# What comes out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("arm", ARMS)
def test_the_metrics_are_those_of_the_trained_student_on_the_test_images(arm: str, seed: int) -> None:
    student = by_hand.student()
    student.load_state_dict({n: v for n, v in trained(seed, arm).items() if not n.startswith("projection")})
    wanted, result = by_hand.accuracy(student), recorded.finished().result
    (found,) = (one["accuracy"] for one in result["arms"] if (one["name"], one["seed"]) == (arm, seed))
    assert found == pytest.approx(wanted, abs=1e-6)
    lines = [json.loads(line) for line in (recorded.finished().out / "metrics.jsonl").read_text().splitlines()]
    last = [line["metrics"]["accuracy"] for line in lines if (line["name"], line["seed"]) == (arm, seed)
            and line["stage"] in ("main", "control")][-1]  # fmt: skip
    assert last == found
    taught = result["members"]["teacher"]["accuracy"]
    assert taught == pytest.approx(by_hand.accuracy(by_hand.trained_teacher()), abs=1e-6)


def test_the_student_that_is_kept_is_the_distilled_one_of_the_first_seed() -> None:
    found = torch.load(recorded.finished().out / "student_state_dict.pt", weights_only=True)
    wanted = {n: v for n, v in trained(SEEDS[0], "distilled").items() if not n.startswith("projection")}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
    last = recorded.finished().of(SEEDS[0], "main")[-1].weights
    assert not torch.allclose(found["conv1.weight"], last["conv1.weight"], atol=1e-4)


def test_a_run_that_was_stopped_takes_the_steps_that_were_left(tmp_path: Path) -> None:
    """Bit for bit, dropout and the optimiser's moments included; stopped in the middle of a stage's second epoch."""
    settings = Settings(device="cpu", allow=by_hand.ALLOW, save_seconds=0)
    place = Position(stage=2, epoch=1, step=4)
    recorded.run(tmp_path / "run", settings, stop=lambda now: (now.stage.name, now.position) == ("main", place))
    torch.rand(5)
    again = recorded.run(tmp_path / "run", Settings(device="cpu", allow=by_hand.ALLOW, resume=True))
    whole = recorded.finished()
    taken, found = whole.of(SEEDS[0], "main")[by_hand.STEPS + 3 :], again.of(SEEDS[0], "main")
    assert len(found) == len(taken)
    for one, other in zip(found, taken, strict=True):
        assert (one.rate, one.losses) == (other.rate, other.losses)
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights)
    assert (tmp_path / "run" / "student.pt").read_bytes() == (whole.out / "student.pt").read_bytes()
    assert again.result["arms"] == [{**arm, "seconds": pytest.approx(arm["seconds"], abs=60)} for arm in
                                    whole.result["arms"]]  # fmt: skip


def test_the_exported_file_answers_as_the_kept_student_does() -> None:
    """The gate compares it with the module that was exported, whichever that is."""
    student = by_hand.student().eval()
    student.load_state_dict(torch.load(recorded.finished().out / "student_state_dict.pt", weights_only=True))
    session = onnxruntime.InferenceSession(recorded.finished().out / "student.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(7, *by_hand.SHAPE[1:], generator=torch.Generator().manual_seed(0))
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), student(images).detach(), rtol=1e-4, atol=1e-4)


def test_the_student_learns_from_the_auxiliary_as_its_training_left_it() -> None:
    """In one go, and in a run that is stopped in between and loads it again."""
    kwargs: dict[str, Any] = {"widths": [4, 8], "hidden": 16}
    seen: list[float] = []

    def watch(trial: Trial, now: Progress, _metrics: dict[str, float]) -> None:
        if (trial.name, now.position) == ("distilled", Position(0, 0, 1)):
            seen.append(now.losses["kd"])
            if len(seen) == 1:
                raise KeyboardInterrupt

    made = compiled("auxiliary", kwargs, method="kd", align="shrink", epochs=1, batch=256).members["auxiliary"]
    with pytest.raises(KeyboardInterrupt):
        carried_out("auxiliary", Observer(on_progress=watch))
    out = carried_out("auxiliary", Observer(on_progress=watch), resume=True)
    assert isinstance(made, Shrunken)
    auxiliary = make(made, by_hand.trained_teacher(), input_shape=by_hand.SHAPE)
    before, student = copy.deepcopy(auxiliary.state_dict()), build(CONVNET, kwargs, seed=0)
    auxiliary.load_state_dict(torch.load(out / "auxiliary_state_dict.pt", weights_only=True))
    assert not torch.equal(before["classifier.weight"], auxiliary.state_dict()["classifier.weight"])
    data = by_hand.digits()
    images = views.seen(next(batches(data.train, 256, shuffle=True))["images"], data.preprocessing.view((8, 8)))
    with torch.no_grad():
        p, q = ((m(images) / 4.0).softmax(1) for m in (auxiliary.eval(), student.train()))
    assert seen == pytest.approx([16 * (p * (p / q).log()).sum(1).mean().item()] * 2, rel=1e-4)


# Whether anything is learned


@functools.cache
def learned() -> Path:
    """A run for a few epochs."""
    compiled("learned", {"widths": [8, 16], "hidden": 32}, epochs=8)
    return carried_out("learned")


def test_a_teacher_is_trained() -> None:
    data, task = by_hand.digits(), TASKS.get("classification")
    assert metrics(by_hand.trained_teacher(), data, task, view=data.preprocessing.view((8, 8)))["accuracy"] > 0.9


def test_a_student_is_distilled() -> None:
    result = json.loads((learned() / "result.json").read_text())
    reached = {arm["name"]: arm["accuracy"] for arm in result["arms"]}
    assert reached["distilled"] > 0.8
    assert reached["control"] > 0.8


def test_every_loss_falls() -> None:
    lines = [json.loads(line) for line in (learned() / "metrics.jsonl").read_text().splitlines()]
    stages: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        stages.setdefault(line["stage"], []).append(line["losses"])
    assert list(stages)[-2:] == ["main", "control"]
    assert len(stages) > 2
    for stage, epochs in stages.items():
        assert all(epochs[-1][key] < epochs[0][key] for key in epochs[0]), stage

"""A cascade in a run: shared weights, scores that move, a student cut out and trained on, a run that goes on."""

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdistill
from fxdistill.compiler import pipeline
from fxdistill.compiler.build import build_arm, specialize
from fxdistill.compiler.levels import masked_members
from fxdistill.compiler.options import Options
from fxdistill.data.batches import batches, first_batch
from fxdistill.data.load import defaults, load
from fxdistill.errors import ModelError, ParityError, TrainingError
from fxdistill.files import write_text
from fxdistill.ir import masks
from fxdistill.ir.program import Program
from fxdistill.methods.cascade import Cascade, Threshold
from fxdistill.modelfiles import bundle
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.passes.mask import kept_of
from fxdistill.passes.schedule.curriculum import Curriculum
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Masked
from fxdistill.plan.schema import ModelRef
from fxdistill.plan.training import Plateau, Stage
from fxdistill.report.result_view import result_view
from fxdistill.runtime.run import checkpoint, hardening
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Execution, Settings
from fxdistill.runtime.run.hardening import harden_all
from fxdistill.runtime.training.average import Average
from fxdistill.runtime.training.course import Means, Position
from fxdistill.runtime.training.epoch import Epoch
from fxdistill.runtime.training.optimizers import make_optimizer
from fxdistill.tasks import TASKS
from tests import runs
from tests.report.drawing import drawn
from tests.runs import execute

pytestmark = pytest.mark.usefixtures("few_digits")

TEACHER: tuple[str, dict[str, Any]] = (
    "fxdistill.models:vgg",
    {"widths": [6, "M", 8, "M", 10], "hidden": 8, "in_channels": 1, "image_size": 8},
)
CPU, EVERY_STEP = Settings(device="cpu", force=True), Settings(device="cpu", force=True, save_seconds=0)
AGAIN = Settings(device="cpu", force=True, resume=True, save_seconds=0)


@functools.cache
def teacher() -> nn.Module:
    return build(*TEACHER, seed=5)


@runs.once
def planned(
    assistants: int = 2, repeats: int = 1, *, val: float = 0.2, nested: bool = False, hints: float = 0.0,
    hints_alone: float = 0.0, method: str = "cascade", curriculum: Curriculum | None = None,
    threshold: Threshold = "global", centred: bool = False,
) -> Plan:  # fmt: skip
    folder, digits = runs.workshop(), load("digits")
    if not (folder / "vgg.pt").exists():
        save(teacher(), folder / "vgg.pt", factory=TEACHER[0], kwargs=TEACHER[1], input_shape=(1, 1, 8, 8))
    ref = ModelRef(
        path="vgg.pt", factory=TEACHER[0], kwargs=TEACHER[1], sha256=fxdistill.files.file_sha256(folder / "vgg.pt")
    )
    options = Options(
        input_shape=(1, 1, 8, 8), method=method, epochs=2, lr=0.05, repeats=repeats, recalibrate=None,
        cascade=Cascade(
            keep=0.4, assistants=assistants, nested=nested, threshold=threshold, centred=centred, hints=hints,
            hints_alone=hints_alone,
        ),
        curriculum=curriculum or Curriculum(),
        preprocessing={"teacher": digits.preprocessing},
        data=defaults("digits", dataset=digits, batch_size=runs.BATCH, val=val),
    )  # fmt: skip
    return pipeline.compile(teacher(), None, options, teacher_ref=ref)


def written(plan: Plan, name: str) -> Path:
    path = runs.workshop() / f"{name}.json"
    write_text(path, plan.to_json())
    return path


@runs.once
def finished() -> Path:
    path = written(planned(), "cascade")
    execute(path, path.parent / "run-cascade", CPU)
    return path.parent / "run-cascade"


def joint(plan: Plan, modules: dict[str, nn.Module]) -> Program:
    return specialize(build_arm(plan, "joint", modules), "joint").train()


def made(plan: Plan) -> dict[str, nn.Module]:
    return {"teacher": teacher(), **masked_members(plan, teacher())}


def test_levels_share_their_convolutions_and_have_the_rest_for_themselves() -> None:
    modules = made(planned())
    one, two = (dict(modules[name].named_parameters()) for name in ("level-0", "level-1"))
    shared = {name for name, tensor in one.items() if tensor is two.get(name)}
    assert shared == {f"features.{number}.{what}" for number in (4, 8) for what in ("weight", "bias")}
    assert one["masks.scores"] is two["masks.riding"]
    assert one["masks.scores"] is not two["masks.scores"]
    own = planned().members["level-0"]
    assert isinstance(own, Masked)
    assert {name for name in one if not name.startswith("masks.")} == shared | set(own.own)
    program = joint(planned(), modules)
    held = [id(p) for group in make_optimizer(program.stages[0], program).param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert not any(p is q for p in teacher().parameters() for q in program.parameters() if q.requires_grad)


def test_each_levels_scores_move_by_the_gradient_of_the_level_above_it_alone() -> None:
    """Equation 5 in a program: what reaches the scores of level 0 is dL_1/dY_1 * A_1, measured at level 1's gates."""
    plan = planned()
    modules = made(plan)
    program, batch = joint(plan, modules), first_batch(load("digits"))
    seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"level-0": [], "level-1": [], "level-2": []}
    gate = masks.gate

    def watched(value: Tensor, factors: Tensor, index: Tensor, dim: int) -> Tensor:
        made = gate(value, factors, index, dim)
        made.retain_grad()
        level = next(name for name in seen if len(seen[name]) < 2)  # two gates a level, level after level
        seen[level].append((value, made, index))
        return made

    for node in program.graph.nodes:
        if node.target is masks.gate:
            node.target = watched
    program.recompile()
    torch.manual_seed(0)
    losses = program(batch)
    program.total(losses).backward()
    for below, above in (("level-0", "level-1"), ("level-1", "level-2")):
        expected = torch.zeros(18)
        for value, gated, index in seen[above]:
            assert gated.grad is not None
            moved = (gated.grad * value).sum([d for d in range(value.dim()) if d != 1])
            expected.index_add_(0, index, moved.detach())
        found = modules[below].get_parameter("masks.scores").grad
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        masked = kept_of(modules[below]) * kept_of(modules[above]) if above != "level-2" else kept_of(modules[below])
        assert bool((found[masked == 0] != 0).any())  # what nobody uses moves too


def test_who_teaches_is_not_taught_by_the_level_below() -> None:
    plan = planned()
    heads = []
    for only in (None, "level-1"):
        modules = made(plan)
        program, batch = joint(plan, modules), first_batch(load("digits"))
        losses = program(batch)
        terms = [t for t in program.terms if only in (None, t.loss.student)]
        torch.stack([t.loss.weight * losses[t.key] for t in terms]).sum().backward()
        heads.append(modules["level-1"].get_parameter("classifier.2.weight").grad)
    assert heads[0] is not None
    assert heads[1] is not None
    torch.testing.assert_close(heads[0], heads[1])


def test_without_assistants_the_student_moves_by_its_own_gradient() -> None:
    plan = planned(assistants=0)
    modules = made(plan)
    program = joint(plan, modules)
    program.total(program(first_batch(load("digits")))).backward()
    moved = modules["level-0"].get_parameter("masks.scores").grad
    assert moved is not None
    assert bool((moved[kept_of(modules["level-0"]) == 0] != 0).any())


def test_hints_reconstruct_what_the_level_above_hands_on_and_teach_it_nothing() -> None:
    plan = planned(hints=0.5)
    assert [pair.name for pair in plan.pairs] == [
        f"level-{number}, {path}" for number in range(3) for path in ("features.7", "flatten")
    ]
    last = plan.pairs[-1]
    assert (last.student.path, last.teacher.member, last.teacher.path) == ("gate_1", "teacher", "flatten")
    modules = made(plan)
    program, batch = joint(plan, modules), first_batch(load("digits"))
    losses = program(batch)
    key = "mse[level-0, features.7]"
    assert {t.loss.weight for t in program.terms if t.loss.loss == "mse"} == {0.5}
    losses[key].backward()
    assert modules["level-0"].get_parameter("features.1.weight").grad is not None
    assert modules["level-1"].get_parameter("features.1.weight").grad is None
    assert len(list(program.get_submodule("adapters").parameters())) > 0


def test_nested_masks_lie_inside_of_each_other() -> None:
    plan = planned(assistants=3, nested=True)
    modules = made(plan)
    torch.manual_seed(3)
    for name in ("level-0", "level-1", "level-2"):
        modules[name].get_parameter("masks.scores").data.uniform_()
    kept = [kept_of(modules[f"level-{number}"]) for number in range(3)]
    assert [int(one.sum()) for one in kept] == [7, 11, 14]
    assert bool((kept[0] <= kept[1]).all())
    assert bool((kept[1] <= kept[2]).all())


def test_with_a_threshold_a_layer_nested_masks_lie_inside_of_each_other_and_layers_keep_their_shares() -> None:
    plan = planned(assistants=3, nested=True, threshold="layer")
    modules = made(plan)
    torch.manual_seed(3)
    for name in ("level-0", "level-1", "level-2"):
        scores = modules[name].get_parameter("masks.scores")
        scores.data.uniform_()
        scores.data[:8] += 1.0  # all of the first layer's are better than any of the second's
    kept = [kept_of(modules[f"level-{number}"]) for number in range(3)]
    assert [[int(part.sum()) for part in one.split([8, 10])] for one in kept] == [[3, 4], [5, 6], [6, 8]]
    assert bool((kept[0] <= kept[1]).all())
    assert bool((kept[1] <= kept[2]).all())


def test_a_run_ends_with_a_smaller_student() -> None:
    run, plan = finished(), planned()
    result = json.loads((run / "result.json").read_text())
    assert [arm["name"] for arm in result["arms"]] == ["joint", "distilled"]
    assert result["differences"] == {}  # one comes after the other: there is nothing to compare
    lines = [line for line in runs.metrics(run) if line["name"] == "joint"]
    assert [set(line["kept"]) for line in lines] == [{"level-0", "level-1"}] * 2
    assert [sum(line["kept"]["level-0"].values()) for line in lines] == [7, 7]
    assert not any("kept" in line for line in runs.metrics(run) if line["name"] == "distilled")
    assert set(result["latency"]) == {"teacher", "student"}
    assert plan.control is None
    kept = lines[-1]["kept"]["level-0"]
    state = torch.load(run / "student_state_dict.pt")
    assert [state[f"{name}.weight"].shape[0] for name in kept] == list(kept.values())
    assert fxdistill.evaluate(run)["accuracy"] == result["arms"][1]["accuracy"]
    counted = {name: result["arms"][1][name] for name in ("parameters", "macs")}
    assert counted["parameters"] == sum(value.numel() for name, value in state.items() if "running" not in name) - 3
    console, text = drawn(terminal=False)
    console.print(result_view(plan, result))
    assert f"{counted['parameters']}" in text.getvalue().split("student, distilled")[1].split("\n")[0].replace(",", "")


def test_the_student_answers_as_the_masked_level_and_what_does_not_is_refused() -> None:
    plan, digits = planned(), load("digits")
    modules = made(plan)
    torch.manual_seed(1)
    modules["level-0"].get_parameter("masks.scores").data.uniform_()
    small = harden_all(plan, modules)["student"].module
    task = TASKS.get("classification")
    worst = hardening.compare(plan, "student", small, modules["level-0"], dataset=digits, task=task)
    assert worst <= 1e-5
    small.get_parameter("classifier.2.bias").data[0] += 0.01
    with pytest.raises(ParityError, match="does not answer as the masked"):
        hardening.compare(plan, "student", small, modules["level-0"], dataset=digits, task=task)


class _Always(nn.Module):
    """Answers every image alike."""

    def __init__(self, row: list[float]) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.tensor(row))

    def forward(self, images: Tensor) -> Tensor:
        return self.row.expand(len(images), -1)


@pytest.mark.parametrize(
    ("one", "other", "wrong"),
    [
        ([0.5, 0.5 + 1e-7], [0.5 + 1e-7, 0.5], ""),  # a tie to rounding, as a few of millions of pixels are
        ([0.5, 0.502], [0.502, 0.5], "4.0e-03 of the largest entry, 133 of 133 disagree"),
        ([0.5, 0.6], [0.5, math.nan], "predictions differ by nan"),
        ([0.5, math.nan], [0.5, math.nan], "predictions differ by nan"),
    ],
)
def test_answers_that_tie_are_the_same_and_what_is_no_number_never_is(
    one: list[float], other: list[float], wrong: str
) -> None:
    masked, small = (_Always(row) for row in (one, other))
    compare = functools.partial(hardening.compare, planned(), "student", small, masked, dataset=load("digits"))
    if not wrong:
        assert 0 < compare(task=TASKS.get("classification")) < 1e-6
        return
    with pytest.raises(ParityError, match=wrong):
        compare(task=TASKS.get("classification"))


def test_training_the_small_student_is_training_the_masked_one() -> None:
    """Ten steps of SGD either way, with momentum and weight decay, mask frozen: the same answers."""
    plan, digits = planned(), load("digits")
    modules = made(plan)
    masked, small = modules["level-0"].train(), harden_all(plan, modules)["student"].module.train()
    for module in (masked, small):
        trained = [p for name, p in module.named_parameters() if not name.startswith("masks.")]
        optimizer = torch.optim.SGD(trained, 0.05, momentum=0.9, nesterov=True, weight_decay=4e-4)
        for batch in itertools.islice(batches(digits.train, 64, seed=1, shuffle=True), 10):
            loss = nn.functional.cross_entropy(module(batch["images"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        module.eval()
    images = first_batch(digits)["images"]
    torch.testing.assert_close(small(images), masked(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"), [(math.nan, "the logits of level-1"), (1e9, "'cross-entropy#2' of level-1")]
)
def test_a_loss_that_is_not_a_number_or_diverges_names_its_level_alone(wrong: float, said: str) -> None:
    program = joint(planned(assistants=2), made(planned(assistants=2)))
    running = Epoch(program.stages[0], program, Means(), Average(program, 0.0), every=1)
    losses = {one.key: torch.tensor(wrong if "level-1" in one.loss.members else 1.0) for one in program.terms}

    def an_epoch() -> None:
        running.add(losses, Position(0, 0, 1), 8)
        running.check(dict.fromkeys(losses, 1.0), Position())

    with pytest.raises(TrainingError) as caught:
        an_epoch()
    assert said in caught.value.what
    assert "level-0" not in caught.value.what
    assert "level-2" not in caught.value.what


@pytest.mark.parametrize(("val", "better", "taught"), [(0.2, True, [0, 1]), (0.2, False, [0, 0]), (0.0, True, [0, 0])])
def test_the_teacher_is_replaced_when_its_student_is_better_on_validation_images(
    val: float, better: bool, taught: list[int], tmp_path: Path
) -> None:
    plan, seen = planned(assistants=1, val=val), list[int]()
    measured = Execution.measured

    def counted(run: Execution, member: str, *, on: str = "test") -> dict[str, float]:
        found = measured(run, member, on=on)
        if member != "student":
            asked.append((member, on))
            return {**found, "accuracy": 0.0 if better else 1.0}
        return {**found, "accuracy": 0.5}

    asked: list[tuple[str, str]] = []
    saved = checkpoint.save

    def noted(run: RunDir, at: checkpoint.Checkpoint) -> None:
        if at.arm == 1 and at.position.stage == 0 and at.position.step == 1:
            seen.append(at.position.taught)
        saved(run, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "measured", counted)
        patch.setattr(checkpoint, "save", noted)
        execute(written(plan, f"cascade-{val}"), tmp_path / "run", EVERY_STEP)
    assert seen == taught
    keys = [set(line["losses"]) for line in runs.metrics(tmp_path / "run") if line["name"] == "distilled"]
    assert keys == [{"cross-entropy", "kd"}, {"cross-entropy", "kd#2" if taught[1] else "kd"}]
    assert ("level-1", "val") in asked or not val


def test_a_plateau_is_of_one_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is replaced after the first epoch; the loss by the next one is not held against that by the first."""
    plan, measured = planned(assistants=1), Execution.measured
    arm = plan.arm("distilled")
    plateau = Plateau(share=0.99, epochs=1)  # no epoch falls by so much
    first, main = arm.stages[-1].changed(name="first", epochs=5, plateau=plateau), arm.stages[-1].changed(successors=[])
    arms = [one.changed(stages=[first, main]) if one.name == arm.name else one for one in plan.arms]
    monkeypatch.setattr(
        Execution, "measured", lambda run, member, *, on="test": {
            **measured(run, member, on=on), "accuracy": 0.5 if member == "student" else 0.4
        },
    )  # fmt: skip
    result = execute(written(plan.changed(arms=arms), "cascade-plateau"), tmp_path / "run", CPU)
    assert result["arms"][-1]["epochs"] == {"first": 3, "main": main.epochs + 2}


def test_assistants_are_exported_as_well_if_the_plan_says_so(tmp_path: Path) -> None:
    plan = planned().changed(export=planned().export.changed(levels=True))
    with runs.onnx_files() as made:
        execute(written(plan, "cascade-all"), tmp_path / "run", CPU)
    assert made == ["trial", "student", "level-1", "teacher"]  # each once, whatever it is then measured for
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["levels"]) == {"level-1"}  # the last one keeps all
    said, lines = result["levels"]["level-1"], runs.metrics(tmp_path / "run")
    kept = next(line["kept"]["level-1"] for line in reversed(lines) if "kept" in line)
    state = torch.load(tmp_path / "run" / "level-1_state_dict.pt")
    assert [state[f"{name}.weight"].shape[0] for name in kept] == list(kept.values())
    assert said["parameters"] == sum(value.numel() for name, value in state.items() if "running" not in name) - 3
    for name in ("level-1.pt", "level-1.onnx"):
        assert fxdistill.evaluate(tmp_path / "run" / name, "digits")["accuracy"] == said["accuracy"]
    assert set(result["latency"]) == {"teacher", "student", "level-1"}
    assert (tmp_path / "run" / "student.pt").read_bytes() == (finished() / "student.pt").read_bytes()
    console, text = drawn(terminal=False)
    console.print(result_view(plan, result))
    assert "level-1, cut out" in text.getvalue()


@pytest.mark.parametrize("whole", [True, False])
def test_a_plan_of_several_seeds_exports_the_student_of_its_seed(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no file holds more of it than its weights."""

    def fails(*_: object, **__: object) -> None:
        raise ModelError("there is an operation that no file holds")

    plan = planned(assistants=0, repeats=2)
    arms = [arm.changed(stages=[quick(stage) for stage in arm.stages]) for arm in plan.arms]
    if not whole:
        monkeypatch.setattr(bundle, "_graph", fails)
    execute(written(plan.changed(seeds=[4, 3], arms=arms), "cascade-seeds"), tmp_path / "run", CPU)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [(arm["seed"], arm["name"]) for arm in result["arms"]] == [
        (4, "joint"), (4, "distilled"), (3, "joint"), (3, "distilled")
    ]  # fmt: skip
    assert result["arms"][1]["macs"] != result["arms"][3]["macs"]
    student = tmp_path / "run" / ("student.pt" if whole else "student.onnx")
    assert fxdistill.evaluate(student, data="digits")["accuracy"] == result["arms"][1]["accuracy"]


def quick(stage: Stage) -> Stage:
    """With scores that move far."""
    return stage if stage.scores is None else stage.changed(scores=stage.scores.changed(lr=0.02))


def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path: Path) -> None:
    path = written(planned(), "cascade")
    for settings, number in ((EVERY_STEP, 3), (AGAIN, 6), (AGAIN, 2)):  # after the third, ninth, eleventh checkpoint
        runs.interrupted(path, tmp_path / "run", settings, after=number)
    execute(path, tmp_path / "run", AGAIN)
    assert (tmp_path / "run" / "student.pt").read_bytes() == (finished() / "student.pt").read_bytes()
    assert runs.metrics(tmp_path / "run") == runs.metrics(finished())

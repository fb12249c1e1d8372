"""Programs: modes, gradients, precision, copies and compilation."""

import copy
import io

import pytest
import torch
from torch import nn

from fxdistill.compiler import pipeline
from fxdistill.ir.program import Program
from tests import tiny_models
from tests.tiny_models import SHAPE, awake, planned

IMAGES, LABELS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3])


def build(align: str = "slice") -> tuple[Program, nn.Module, nn.Module]:
    teacher, student = awake(tiny_models.residual().eval(), 1), awake(tiny_models.plain(3), 2)
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8), align="project" if align == "project" else "slice")
    return pipeline.build(plan, teacher, student), teacher, student


@pytest.mark.parametrize("stage", [None, "warm-up-1", "main"])
def test_the_teacher_stays_frozen_whatever_is_called(stage: str | None) -> None:
    program, _, student = build()
    program = program.stage(stage) if stage else program
    assert program.train(False).train().requires_grad_(False).requires_grad_(True) is program
    inside = program.get_submodule("teacher")
    assert not any(m.training for m in inside.modules())
    assert not any(p.requires_grad for p in inside.parameters())
    own = {id(p) for p in student.parameters()}
    assert {id(p) for p in program.parameters() if p.requires_grad} <= own
    program.eval()
    assert not student.get_submodule("body.0.1").training  # one mode for both


def test_training_the_program_trains_the_module() -> None:
    program, _, student = build()
    before = {n: p.clone() for n, p in student.named_parameters()}
    statistics = student.get_buffer("body.0.1.running_mean").clone()
    stage = program.stage("main")
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], 0.1)
    torch.autograd.backward(stage.total(stage(IMAGES, LABELS)))
    optimizer.step()
    changed = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    before_norm = {"body.0.0.bias", "body.1.0.bias"}  # batch statistics take them away again
    assert changed | before_norm == set(before)
    assert not torch.equal(student.get_buffer("body.0.1.running_mean"), statistics)


def test_the_total_is_the_weighted_sum() -> None:
    program, *_ = build()
    stage = program.stage("main")
    losses = stage(IMAGES, LABELS)
    expected = 0.1 * losses["cross_entropy"].item() + 0.9 * losses["kd"].item()
    assert stage.total(losses).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stage", [None, "warm-up-1", "main"])
@pytest.mark.parametrize("how", ["deepcopy", "copy", "save"])
def test_a_copy_is_a_program(how: str, stage: str | None) -> None:
    program, *_ = build("project")
    program = program.stage(stage) if stage else program
    program.eval()
    if how == "save":
        file = io.BytesIO()
        torch.save(program, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copy.deepcopy(program) if how == "deepcopy" else copy.copy(program)
    assert isinstance(twin, Program)
    assert (twin.stages, twin.terms) == (program.stages, program.terms)
    shared = {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in program.parameters()}
    assert bool(shared) == (how == "copy")
    expected = program(IMAGES, LABELS)
    found = twin(IMAGES, LABELS)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert set(twin.stage(twin.stages[0].name)(IMAGES, LABELS)) <= set(expected)
    twin.train()
    assert not any(m.training for m in twin.get_submodule("teacher").modules())


@pytest.mark.parametrize("stage", ["warm-up-1", "main"])
def test_compiles_without_breaks(stage: str) -> None:
    program, *_ = build()
    program = program.stage(stage)
    program.eval()
    expected = program(IMAGES, LABELS)
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    found = compiled(IMAGES, LABELS)
    for key, value in expected.items():
        assert found[key].item() == pytest.approx(value.item(), rel=1e-5)
    torch.autograd.backward(program.total(found))


def test_double_precision() -> None:
    program, teacher, student = build("project")
    program.double()
    assert student.get_buffer("body.0.1.running_mean").dtype == torch.float64  # moved with the program
    assert teacher.get_submodule("head").get_parameter("weight").dtype == torch.float32  # the user's stays
    for stage in program.stages:
        losses = program.stage(stage.name)(IMAGES.double(), LABELS)
        assert all(value.isfinite() for value in losses.values())
    running = student.get_buffer("body.0.1.running_mean").clone()
    program(IMAGES.double(), LABELS)
    assert not torch.equal(student.get_buffer("body.0.1.running_mean"), running)


def test_moving_keeps_buffers_common_to_graph_and_module() -> None:
    """An exported student's statistics are attributes of the graph, not of a shared layer."""
    student = awake(tiny_models.Steered())
    plan = planned("conv", "conv", (2, 8, 8, 8), (2, 8, 8, 8)).model_copy(update={"pairs": [], "kept": []})
    plan = plan.model_copy(update={"stages": plan.stages[1:]})
    program = pipeline.build(plan, awake(tiny_models.plain()).eval(), student).double()
    before = student.get_buffer("norm.running_mean").clone()
    program(IMAGES.double(), LABELS)
    assert before.dtype == torch.float64
    assert not torch.equal(student.get_buffer("norm.running_mean"), before)
    program.stage("main")(IMAGES.double(), LABELS)
    assert student.get_buffer("norm.num_batches_tracked") > 0


def test_a_stage_leaves_alone_what_it_does_not_reach() -> None:
    """Later BatchNorms must not learn statistics of features that are not trained yet."""
    teacher, student = tiny_models.plain(8), tiny_models.plain(3)
    plan = planned("body.0", "body.0", (2, 8, 8, 8), (2, 3, 8, 8))
    pipeline.build(plan, teacher, student).stage("warm-up-1")(IMAGES, LABELS)
    assert student.get_buffer("body.0.1.num_batches_tracked") == 1
    assert student.get_buffer("body.1.1.num_batches_tracked") == 0


def test_roles() -> None:
    program, *_ = build()
    assert [node.meta["key"] for node in program.nodes("loss")] == ["mse[pair]", "cross_entropy", "kd"]
    assert [node.name for node in program.nodes("input")] == ["x", "y"]
    roles = {node.meta.get("role") for node in program.graph.nodes if node.op != "output"}
    assert roles == {"input", "teacher", "student", "tap", "adapter", "loss"}

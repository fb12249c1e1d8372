"""Programs: modes, gradients, precision, copies and compilation."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.compiler.build import build, specialize
from fxdistill.ir.program import Program
from tests import tiny_models
from tests.tiny_models import SHAPE, awake, planned, restaged

IMAGES, LABELS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3])
BATCH = {"images": IMAGES, "labels": LABELS}
DOUBLE = {"images": IMAGES.double(), "labels": LABELS}


def built(align: str = "slice") -> tuple[Program, nn.Module, nn.Module]:
    teacher, student = awake(tiny_models.residual().eval(), 1), awake(tiny_models.plain(3), 2)
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8), align="project" if align == "project" else "slice")
    return build(plan, teacher, student), teacher, student


@pytest.mark.parametrize("stage", [None, "warm-up-1", "main"])
def test_the_teacher_stays_frozen_whatever_is_called(stage: str | None) -> None:
    program, _, student = built()
    program = specialize(program, stage) if stage else program
    assert program.train(False).train().requires_grad_(False).requires_grad_(True) is program
    inside = program.get_submodule("teacher")
    assert not any(m.training for m in inside.modules())
    assert not any(p.requires_grad for p in inside.parameters())
    own = {id(p) for p in student.parameters()}
    assert {id(p) for p in program.parameters() if p.requires_grad} <= own
    program.eval()
    assert not student.get_submodule("body.0.1").training  # one mode for both


def test_training_the_program_trains_the_module() -> None:
    program, _, student = built()
    before = {n: p.clone() for n, p in student.named_parameters()}
    statistics = student.get_buffer("body.0.1.running_mean").clone()
    stage = specialize(program, "main")
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], 0.1)
    torch.autograd.backward(stage.total(stage(BATCH)))
    optimizer.step()
    changed = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    before_norm = {"body.0.0.bias", "body.1.0.bias"}  # batch statistics take them away again
    assert changed | before_norm == set(before)
    assert not torch.equal(student.get_buffer("body.0.1.running_mean"), statistics)


def test_the_total_is_the_weighted_sum() -> None:
    program, *_ = built()
    stage = specialize(program, "main")
    losses = stage(BATCH)
    expected = 0.1 * losses["cross-entropy"].item() + 0.9 * losses["kd"].item()
    assert stage.total(losses).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stage", [None, "warm-up-1", "main"])
@pytest.mark.parametrize("how", ["deepcopy", "copy", "save"])
def test_a_copy_is_a_program(how: str, stage: str | None) -> None:
    program, *_ = built("project")
    program = specialize(program, stage) if stage else program
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
    expected = program(BATCH)
    found = twin(BATCH)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert set(specialize(twin, twin.stages[0].name)(BATCH)) <= set(expected)
    twin.train()
    assert not any(m.training for m in twin.get_submodule("teacher").modules())


@pytest.mark.parametrize("stage", ["warm-up-1", "main"])
def test_compiles_without_breaks(stage: str) -> None:
    program, *_ = built()
    program = specialize(program, stage)
    program.eval()
    expected = program(BATCH)
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    found = compiled(BATCH)
    for key, value in expected.items():
        assert found[key].item() == pytest.approx(value.item(), rel=1e-5)
    torch.autograd.backward(program.total(found))


def test_double_precision() -> None:
    program, teacher, student = built("project")
    program.double()
    assert student.get_buffer("body.0.1.running_mean").dtype == torch.float64  # moved with the program
    assert teacher.get_submodule("head").get_parameter("weight").dtype == torch.float32  # the user's stays
    for stage in program.stages:
        losses = specialize(program, stage.name)(DOUBLE)
        assert all(value.isfinite() for value in losses.values())
    running = student.get_buffer("body.0.1.running_mean").clone()
    program(DOUBLE)
    assert not torch.equal(student.get_buffer("body.0.1.running_mean"), running)


def test_moving_keeps_buffers_common_to_graph_and_module() -> None:
    """An exported student's statistics are attributes of the graph, not of a shared layer."""
    student = awake(tiny_models.Steered())
    plan = planned("conv", "conv", (2, 8, 8, 8), (2, 8, 8, 8))
    plan = restaged(plan, *plan.arms[0].stages[1:], pairs=[], kept=[])
    program = build(plan, awake(tiny_models.plain()).eval(), student).double()
    before = student.get_buffer("norm.running_mean").clone()
    program(DOUBLE)
    assert before.dtype == torch.float64
    assert not torch.equal(student.get_buffer("norm.running_mean"), before)
    specialize(program, "main")(DOUBLE)
    assert student.get_buffer("norm.num_batches_tracked") > 0


def test_a_stage_leaves_alone_what_it_does_not_reach() -> None:
    """Later BatchNorms must not learn statistics of features that are not trained yet."""
    teacher, student = tiny_models.plain(8), tiny_models.plain(3)
    plan = planned("body.0", "body.0", (2, 8, 8, 8), (2, 3, 8, 8))
    specialize(build(plan, teacher, student), "warm-up-1")(BATCH)
    assert student.get_buffer("body.0.1.num_batches_tracked") == 1
    assert student.get_buffer("body.1.1.num_batches_tracked") == 0


def test_roles() -> None:
    program, *_ = built()
    assert [node.meta["key"] for node in program.nodes("loss")] == ["mse[pair]", "cross-entropy", "kd"]
    assert [node.name for node in program.nodes("input")] == ["batch", "images", "labels"]
    assert program.inputs == ("images", "labels")
    inner = [node for node in program.graph.nodes if node.op != "output"]
    assert {node.meta.get("role") for node in inner} == {"input", "model", "tap", "adapter", "loss"}
    owned = [node for node in inner if node.meta["role"] in ("model", "tap")]
    assert {(node.meta["member"], node.meta["frozen"]) for node in owned} == {("teacher", True), ("student", False)}


def test_a_stage_says_which_fields_it_reads() -> None:
    program, *_ = built()
    warm_up = specialize(program, "warm-up-1")
    assert warm_up.inputs == ("images",)
    assert torch.isfinite(warm_up({"images": IMAGES})["mse[pair]"])


def test_only_what_is_trained_is_in_a_checkpoint() -> None:
    program, _, student = built("project")
    state = program.trainable_state()
    assert set(state) == {
        *(f"student.{name}" for name in student.state_dict()), "adapters.project_pair.weight.weight",
    }  # fmt: skip
    trained = {name for name, p in program.named_parameters() if p.requires_grad}
    assert trained == {name for name in state if "running" not in name and "num_batches" not in name}


# What a program computes, for a term of one's own


def by_hooks(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What ``body`` gives, and the answer; statistics and the mode stay as they are."""
    module, seen = copy.deepcopy(module), []
    module.get_submodule("body").register_forward_hook(lambda *call: seen.append(call[2].clone()))
    return module(images.clone()), seen[0]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("stage", [None, "warm-up-1", "main"])
def test_outputs_are_those_of_the_models(stage: str | None, double: bool) -> None:
    program, teacher, student = built()
    program = (specialize(program, stage) if stage else program).eval()
    batch = BATCH
    if double:
        program.outputs(batch)  # what was made for one type serves the other
        program.to(torch.float64)
        student.double()  # a stage holds a part of it
        teacher, batch = copy.deepcopy(teacher).double(), DOUBLE
    learned, studied = by_hooks(student, batch["images"])
    known, taught = by_hooks(teacher.eval(), batch["images"])
    outputs = program.outputs(batch)
    assert outputs.losses.keys() == program(batch).keys() == {term.key for term in program.terms}
    if stage != "main":
        assert torch.equal(outputs.taps["pair"]["student"], studied)
        torch.testing.assert_close(outputs.taps["pair"]["teacher"], taught[:, :3], rtol=1e-5, atol=1e-5)
    if stage != "warm-up-1":
        assert torch.equal(outputs.logits["student"], learned)
        torch.testing.assert_close(outputs.logits["teacher"], known, rtol=1e-5, atol=1e-5)
        assert outputs.losses["cross-entropy"].item() == pytest.approx(
            F.cross_entropy(learned.float(), LABELS).item(), rel=1e-6
        )
    assert set(outputs.taps) == (set() if stage == "main" else {"pair"})
    assert set(outputs.logits) == (set() if stage == "warm-up-1" else {"teacher", "student"})


def test_a_term_of_ones_own_trains_the_student() -> None:
    program, _, student = built()
    stage = specialize(program, "main")
    images = IMAGES.clone()
    outputs = stage.outputs({"images": images, "labels": LABELS})
    assert torch.equal(images, IMAGES)
    own = outputs.logits["student"].square().mean()
    (stage.total(outputs.losses) + own).backward()
    both = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    outputs = stage.outputs(BATCH)
    stage.total(outputs.losses).backward()
    alone = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    stage.outputs(BATCH).logits["student"].square().mean().backward()
    mine = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    assert len(both) == len(alone) == len(mine) == len(list(student.parameters()))
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in mine)
    for together, one, other in zip(both, alone, mine, strict=True):
        torch.testing.assert_close(together, one + other)
    assert not outputs.logits["teacher"].requires_grad


def test_outputs_and_copies_do_not_disturb_the_program() -> None:
    """Calling for outputs leaves modules, parameters, state and copies what they were."""
    program, *_ = built("project")
    names = [name for name, _ in program.named_modules()], list(program.state_dict())
    before = program.eval().outputs(BATCH)
    assert ([name for name, _ in program.named_modules()], list(program.state_dict())) == names
    twin = copy.deepcopy(program)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    after = program.outputs(BATCH)
    assert torch.equal(before.taps["pair"]["student"], after.taps["pair"]["student"])
    assert not torch.equal(twin.outputs(BATCH).logits["student"], after.logits["student"])
    stage = specialize(program, "main")
    assert set(stage.outputs(BATCH).losses) == {"cross-entropy", "kd"}

"""Instrument: taps, adapters and losses as nodes, and no output changed."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxdistill.compiler.build import build, build_arm
from fxdistill.errors import InvariantError, PairingError, PassError, PlanError
from fxdistill.ir.contract import PassManager
from fxdistill.ir.program import Program, tap_copy
from fxdistill.passes.instrument import Instrument, Joint
from fxdistill.passes.instrument.builder import frozen
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import Pair, Tap
from fxdistill.plan.training import LossTerm
from tests import tiny_models
from tests.tiny_models import BODIES, SHAPE, Body, Classifier, awake, conv_norm, planned, with_losses


def holds(step: Instrument, source: Joint, value: Program) -> None:
    """Everything that a pass promises of its result."""
    step.ensures(source, value)
    step.proves(source, value)


def tapped(program: Program, member: str) -> list[Any]:
    return [node.target for node in program.nodes("tap") if node.meta["member"] == member]


def test_graph_text() -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 4, 8, 8), kept=[0, 2, 4, 6])
    program = build(plan, tiny_models.plain(8).eval(), tiny_models.plain(4))
    text = str(program.graph)
    rows = [row.split(" = ", 1)[0].split(" : ")[0].strip() for row in text.strip().splitlines()[1:-1]]
    assert rows == [
        "%batch", "%images", "%labels",
        "%student_body_0_0", "%student_body_0_1", "%student_body_0_2",
        "%student_body_1_0", "%student_body_1_1", "%student_body_1_2", "%tap_1", "%student_mean", "%student_head",
        "%teacher_body_0_0", "%teacher_body_0_1", "%teacher_body_0_2",
        "%teacher_body_1_0", "%teacher_body_1_1", "%teacher_body_1_2", "%tap", "%teacher_mean", "%teacher_head",
        "%adapters_keep_pair", "%index_select", "%mse", "%cross_entropy", "%kd",
    ]  # fmt: skip
    assert text.strip().endswith("return {'mse[pair]': mse, 'cross-entropy': cross_entropy, 'kd': kd}")


@pytest.mark.parametrize("student", BODIES)
@pytest.mark.parametrize("teacher", ["residual", "overwriting_input", "overwriting_a_view", "ignoring_a_result"])
def test_losses_are_those_of_the_two_models(teacher: str, student: str) -> None:
    """By hand: the taps of the models themselves, in their modes, compared with the formula."""
    one, other = awake(BODIES[teacher](8).eval(), 1), awake(BODIES[student](8), 2)
    shape = (2, 8, 4, 4) if student == "dense" else (2, 8, 8, 8)
    program = build(planned("body", "body", (2, 8, 8, 8), shape, kept=list(range(8))), one, other)
    images, labels = torch.randn(SHAPE), torch.tensor([1, 4])
    original, before = images.clone(), {n: b.clone() for n, b in other.named_buffers()}
    torch.manual_seed(5)
    losses = program({"images": images, "labels": labels})
    assert torch.equal(images, original)  # the user's batch is the user's
    other.load_state_dict({**other.state_dict(), **before})
    values: dict[str, Tensor] = {}
    for name, module in (("teacher", one.eval()), ("student", other.train())):
        hook = module.get_submodule("body").register_forward_hook(
            lambda *call, name=name: values.update({name: call[2].clone()})
        )
        torch.manual_seed(5)
        values[f"{name} logits"] = module(images.clone())
        hook.remove()
    teacher_tap = F.adaptive_avg_pool2d(values["teacher"], shape[2:])
    assert torch.equal(losses["mse[pair]"], F.mse_loss(values["student"], teacher_tap))
    assert torch.equal(losses["cross-entropy"], F.cross_entropy(values["student logits"], labels))


@pytest.mark.parametrize(
    ("path", "copied"),
    [("body.conv", True), ("body.identity", True), ("body.view", True), ("body.relu", False), ("body.mul_", False)],
)
def test_a_tap_on_memory_that_is_written_later_takes_a_copy(path: str, copied: bool) -> None:
    teacher = tiny_models.overwriting_a_view().eval()
    shape = (2, 8 * 64) if path in ("body.view", "body.mul_") else (2, 8, 8, 8)
    plan = planned("body", "body", (2, 8, 8, 8), (2, 8, 8, 8))
    taps = {
        member: Tap(member=member, path=path, shape=list(shape), channel_dim=1, width=shape[1],
                    layout="nchw" if len(shape) == 4 else "features")
        for member in ("teacher", "student")
    }  # fmt: skip
    if len(shape) == 2:
        plan = plan.changed(pairs=[plan.pairs[0].changed(**taps, align="project")], kept=[])
    else:
        plan = plan.changed(pairs=[plan.pairs[0].changed(**taps)], kept=[plan.kept[0].changed(path=path)])
    program = build(plan, teacher, tiny_models.overwriting_a_view())
    assert [target is tap_copy for target in tapped(program, "teacher")] == [copied]
    assert [target is tap_copy for target in tapped(program, "student")] == [copied]


def test_the_users_teacher_is_left_alone() -> None:
    teacher = awake(tiny_models.residual())
    shared = nn.ModuleList([teacher])  # part of something else that trains
    program = build(planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8)), teacher, tiny_models.plain(3))
    assert all(m.training for m in shared.modules())
    assert all(p.requires_grad for p in shared.parameters())
    inside = program.get_submodule("teacher.body.stem.0")
    weight = teacher.get_submodule("body.stem.0").get_parameter("weight")
    assert inside.get_parameter("weight").data_ptr() == weight.data_ptr()  # not twice in memory
    program.double()
    assert weight.dtype == torch.float32


def test_a_student_that_is_its_own_teacher_trains() -> None:
    """Self-distillation, and a teacher that shares a part with the student."""
    module = tiny_models.plain(8)
    program = build(planned("body", "body", (2, 8, 8, 8), (2, 8, 8, 8)), module, module)
    losses = program({"images": torch.randn(SHAPE), "labels": torch.tensor([0, 1])})
    losses["cross-entropy"].backward()
    assert all(p.grad is not None for p in module.parameters())


def test_frozen_layers_share_weights_whatever_they_are() -> None:
    norm = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(nn.Linear(3, 3))
    root = nn.Sequential(norm, old, nn.Sequential(nn.BatchNorm1d(3)))
    root.register_buffer("own", torch.ones(1))
    images = torch.randn(4, 3)
    copied = frozen(root.eval())
    assert not any(p.requires_grad for p in copied.parameters())
    assert {n: b.data_ptr() for n, b in copied.named_buffers()} == {n: b.data_ptr() for n, b in root.named_buffers()}
    value = images
    for layer in copied.children():
        value = layer(value)
    assert torch.equal(value, root(images))


def project(student: Tap, teacher: Tap) -> Plan:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 8, 8, 8), align="project")
    pair = Pair(
        name="a.b", teacher=teacher.changed(member="teacher"), student=student, score=1.0, runner_up=None, why=[],
        align="project",
    )  # fmt: skip
    return with_losses(plan, LossTerm(loss="mse", pair="a.b"), pairs=[pair])


class Tokens(nn.Module):
    """(N, 1 + 16, width) tokens with a class token, or (N, 4, 4, width)."""

    def __init__(self, width: int, *, grid: bool = False) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Conv2d(3, width, 2, 2), nn.LayerNorm(width), nn.Linear(width, 5)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.grid:
            return self.head(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))  # type: ignore[no-any-return]
        x = x.flatten(2).transpose(1, 2)
        x = self.norm(torch.cat([x.mean(1, keepdim=True), x], 1))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


def test_layouts_and_sizes_are_adapted() -> None:
    tokens = Tap(
        member="student", path="norm", shape=[2, 17, 6], channel_dim=2, width=6, layout="tokens", class_token=True
    )
    grid = Tap(member="student", path="norm", shape=[2, 4, 4, 6], channel_dim=3, width=6, layout="nhwc")
    map_ = Tap(member="student", path="body", shape=[2, 6, 8, 8], channel_dim=1, width=6, layout="nchw")
    models = {"tokens": Tokens(6), "nhwc": Tokens(6, grid=True), "nchw": tiny_models.plain(6)}
    images = torch.randn(SHAPE)
    maps: dict[str, Tensor] = {}
    for name, module in models.items():
        layer = module.get_submodule("norm" if name != "nchw" else "body")
        hook = layer.register_forward_hook(lambda *call, name=name: maps.update({name: call[2]}))
        awake(module).eval()(images)
        hook.remove()
    maps["tokens"] = maps["tokens"][:, 1:].transpose(1, 2).reshape(2, 6, 4, 4)
    maps["nhwc"] = maps["nhwc"].permute(0, 3, 1, 2)
    maps["nchw"] = F.avg_pool2d(maps["nchw"], 2)
    for teacher in (tokens, grid, map_):
        for student in (tokens, grid, map_):
            program = build(project(student, teacher), models[teacher.layout].eval(), models[student.layout])
            with torch.no_grad():
                program.get_submodule("adapters.project_a_b.weight").get_parameter("weight").copy_(torch.eye(6))
                program.eval()
                (value,) = program({"images": images}).values()
            if teacher.layout != student.layout:
                expected = F.mse_loss(maps[student.layout], maps[teacher.layout])
                assert value.item() == pytest.approx(expected.item(), rel=1e-5)
            else:
                assert value.item() == pytest.approx(0.0, abs=1e-6)


def test_pairs_of_like_names_keep_their_own_channels() -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8), kept=[0, 1, 2])
    pair, kept = plan.pairs[0], plan.kept[0]
    second = {role: getattr(pair, role).changed(path="body.1") for role in ("teacher", "student")}
    pairs = [pair.changed(name="a.b"), pair.changed(name="a_b", **second)]
    keeps = [kept.changed(pair="a.b"), kept.changed(pair="a_b", path="body.1", channels=[5, 6, 7])]
    losses = [LossTerm(loss="mse", pair=name) for name in ("a.b", "a_b")]
    both = with_losses(plan, *losses, pairs=pairs, kept=keeps)
    program = build(both, tiny_models.plain(8), tiny_models.plain(3))
    indices = [program.get_buffer(str(node.args[2].target)).tolist() for node in program.graph.nodes
               if node.target is torch.index_select]  # fmt: skip
    assert sorted(indices) == [[0, 1, 2], [5, 6, 7]]


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    models = tiny_models.plain(8), tiny_models.random_layers(3)
    before = torch.get_rng_state()
    build(plan, *models)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_node_that_is_not_there_is_the_plans_fault() -> None:
    plan = planned("bdy", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    with pytest.raises(PairingError, match="no node or module has the path 'bdy'") as caught:
        build(plan, tiny_models.plain(8), tiny_models.plain(3))
    assert "did you mean body" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_node_of_another_shape_is_the_plans_fault() -> None:
    plan = planned("body", "body", (2, 9, 8, 8), (2, 3, 8, 8))
    with pytest.raises(PlanError, match=r"the teacher's node has shape \[2, 8, 8, 8\], the plan says \[2, 9, 8, 8\]"):
        build(plan, tiny_models.plain(8), tiny_models.plain(3))


def test_models_of_other_classes_are_refused() -> None:
    teacher = Classifier(conv_norm(3, 8), 8)
    teacher.head = nn.Linear(8, 7)
    with pytest.raises(PairingError, match=r"answers with shape \(7,\) an image, the student with \(5,\)"):
        build(planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8)), teacher, tiny_models.plain(3))


def joint(plan: Plan, **modules: nn.Module) -> Joint:
    """The members, the student in training mode."""
    return Joint({name: Trace(SHAPE, training=name == "student")(module).value for name, module in modules.items()})


def test_what_a_program_needs_is_asked_for() -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    teacher, student = tiny_models.plain(8), tiny_models.plain(3)
    training = Joint({name: Trace(SHAPE, training=True)(module).value
                      for name, module in (("student", student), ("teacher", teacher))})  # fmt: skip
    with pytest.raises(PassError, match="the frozen member 'teacher' was traced in training mode"):
        PassManager().run(Instrument(plan), training)
    with pytest.raises(PlanError, match="the arm 'distilled' needs the member 'teacher'"):
        PassManager().run(Instrument(plan), joint(plan, student=student))
    with pytest.raises(PlanError, match="the arm 'distilled' needs the member 'teacher'"):
        build_arm(plan, "distilled", {"student": student})
    with pytest.raises(PlanError, match="the plan has no arm 'auxiliary'") as caught:
        PassManager().run(Instrument(plan, "auxiliary"), joint(plan, student=student))
    assert "distilled, control" in caught.value.hint
    small = Trace((2, 3, 4, 4))(teacher).value
    sides = {"student": joint(plan, student=student).members["student"], "teacher": small}
    with pytest.raises(PairingError, match="'teacher' reads 3x4x4 images, the plan gives it 3x8x8"):
        PassManager().run(Instrument(plan), Joint(sides))


def test_the_control_arm_has_no_teacher() -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    program = build_arm(plan, "control", {"teacher": tiny_models.plain(8), "student": tiny_models.plain(3)})
    assert [member.name for member in program.members] == ["student"]
    assert not any("teacher" in str(node) for node in program.graph.nodes)
    assert [(stage.name, stage.epochs) for stage in program.stages] == [("control", 2)]


@pytest.mark.parametrize("ready", [torch.clone, torch.sqrt])  # roots of noise are NaN, which equals NaN
def test_a_changed_output_is_caught(ready: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxdistill.passes.instrument.builder.tap", lambda value, name: value.mul_(2))
    body = Body({"conv": nn.Conv2d(3, 8, 3, padding=1)}, lambda m, x: m.conv(ready(x)))
    plan = planned("body", "body", (2, 8, 8, 8), (2, 8, 8, 8))
    with pytest.raises(PassError, match="instrumenting changed the output of the student") as caught:
        build(plan, tiny_models.plain(8), Classifier(body, 8))
    assert isinstance(caught.value.__cause__, InvariantError)
    assert "after: trace, trace" in caught.value.where


# Wrong results


def node_of(program: Program, name: str) -> fx.Node:
    found: fx.Node = next(node for node in program.graph.nodes if node.name == name)
    return found


def writing_tap(member: str) -> Callable[[Program], None]:
    """A tap that writes into what the member reads afterwards."""

    def change(program: Program) -> None:
        (tap,) = (node for node in program.nodes("tap") if node.meta["member"] == member)
        tap.target = lambda value, name: value.mul_(1.5)

    return change


def other_weights(member: str) -> Callable[[Program], None]:
    def change(program: Program) -> None:
        copied = copy.deepcopy(program.get_submodule(f"{member}.head"))
        with torch.no_grad():
            copied.get_parameter("bias").add_(1e-6)
        program.set_submodule(f"{member}.head", copied)

    return change


def without_prediction(program: Program) -> None:
    del node_of(program, "teacher_head").meta["prediction"]


def in_training_mode(program: Program) -> None:
    """The teacher normalises by the batch."""
    member = next(member for member in program.members if member.name == "teacher")
    others = [one for one in program.members if one is not member]
    program.meta["members"] = (*others, replace(member, training=True))
    program.get_submodule("teacher").train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (writing_tap("teacher"), "instrumenting changed the output of the teacher"),
        (writing_tap("student"), "instrumenting changed the output of the student"),
        (other_weights("teacher"), "instrumenting changed the output of the teacher"),
        (other_weights("student"), "instrumenting changed the output of the student"),
        (without_prediction, "the program lost the prediction of the teacher"),
        (in_training_mode, "the member 'teacher' is not in the mode that it was traced in"),
    ],
)
def test_a_wrong_result_is_refused(change: Callable[[Program], None], message: str) -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    # bare convolutions: what a layer writes into the tap's memory is read by the mean
    modules = {
        name: awake(Classifier(Body({"conv": nn.Conv2d(3, width, 3, padding=1), "norm": nn.BatchNorm2d(width)},
                                    lambda m, x: m.norm(m.conv(x))), width))
        for name, width in (("student", 3), ("teacher", 8))
    }  # fmt: skip
    source = joint(plan, **modules)
    program = Instrument(plan).run(source).value
    holds(Instrument(plan), source, program)
    change(program)
    with pytest.raises(InvariantError, match=message):
        holds(Instrument(plan), source, program)


def test_a_lost_loss_is_refused() -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    source = joint(plan, student=tiny_models.plain(3), teacher=tiny_models.plain(8))
    program = Instrument(plan).run(source).value
    other = Instrument(with_losses(plan, LossTerm(loss="kd"))).run(source).value
    with pytest.raises(InvariantError, match="the program has the losses kd, the arm has"):
        holds(Instrument(plan), source, other)
    program.meta["members"] = tuple(replace(member, trained=True) for member in program.members)
    with pytest.raises(InvariantError, match="the program does not train what the arm trains"):
        holds(Instrument(plan), source, program)

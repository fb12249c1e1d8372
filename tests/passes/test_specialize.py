"""Specialize: the slice sinks as far as it may, and what the losses read stays what it was."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxdistill.compiler.build import build, specialize
from fxdistill.errors import InvariantError, PassError, PlanError
from fxdistill.ir.operators import is_a
from fxdistill.ir.program import Program, Term
from fxdistill.passes.specialize import Specialize, frozen_values, restricted, sink
from tests import tiny_models
from tests.tiny_models import BODIES, SHAPE, Body, Classifier, awake, conv_norm, planned

FULL = {"dense": (2, 8, 4, 4)}


def holds(step: Specialize, source: Program, value: Program) -> None:
    """Everything that a pass promises of its result."""
    step.ensures(source, value)
    step.proves(source, value)


def program_of(teacher: nn.Module, kept: list[int], *, shape: tuple[int, ...] = (2, 8, 8, 8)) -> Program:
    """Teacher and a student of as many channels as are kept, in float64, tapped at their bodies."""
    body = nn.Sequential(conv_norm(3, len(kept)), conv_norm(len(kept), len(kept)), nn.MaxPool2d(8 // shape[2]))
    student = Classifier(body, len(kept))
    plan = planned("body", "body", shape, (shape[0], len(kept), *shape[2:]), kept=kept)
    return build(plan, awake(teacher.eval()).double(), awake(student).double())


def teacher_text(program: Program) -> list[str]:
    """The teacher's side, a line a node: what is called on what."""
    rows = []
    for node in program.graph.nodes:
        if node.meta.get("member") == "teacher" or (node.meta.get("role") == "adapter" and not node.meta.get("member")):
            target = getattr(node.target, "__name__", node.target)
            rows.append(f"{target}({', '.join(str(source) for source in node.all_input_nodes)})")
    return rows


def test_graph_text_of_a_residual_network() -> None:
    program = program_of(tiny_models.residual(), [1, 4, 6])
    assert teacher_text(specialize(program, "warm-up-1")) == [
        "adapters.keep_pair()",
        "teacher.body.stem.0_folded(images)",
        "teacher.body.stem.2(teacher_body_stem_0)",
        "teacher.body.first(teacher_body_stem_2)",
        "relu(teacher_body_first)",
        "teacher.body.second.0_folded_kept_3(teacher_relu)",
        "index_select(teacher_body_stem_2, adapters_keep_pair)",
        "add_(teacher_body_second_0, index_select_4)",
        "relu(teacher_add)",
        "tap(teacher_relu_1)",
    ]


def test_graph_text_of_a_concatenation_that_keeps_one_part() -> None:
    program = program_of(tiny_models.dense(), [5, 7], shape=(2, 8, 4, 4))
    text = teacher_text(specialize(program, "warm-up-1"))
    assert text == [
        "teacher.body.one.0_folded(images)",
        "teacher.body.one.2(teacher_body_one_0)",
        "teacher.body.two.0_folded_kept_2(teacher_body_one_2)",
        "teacher.body.two.2(teacher_body_two_0)",
        "cat(teacher_body_two_2)",
        "teacher.body.pool(teacher_cat)",
        "tap(teacher_body_pool)",
    ]


def test_graph_text_of_a_concatenation_that_keeps_of_both_parts() -> None:
    program = program_of(tiny_models.dense(), [1, 5, 7], shape=(2, 8, 4, 4))
    assert teacher_text(specialize(program, "warm-up-1"))[-6:] == [
        "teacher.body.two.0_folded_kept_2(teacher_body_one_2)",
        "teacher.body.two.2(teacher_body_two_0)",
        "index_select(teacher_body_one_2, adapters_keep_part_1)",
        "cat(index_select_3, teacher_body_two_2)",
        "teacher.body.pool(teacher_cat)",
        "tap(teacher_body_pool)",
    ]


@pytest.mark.parametrize(
    ("name", "keep"),
    [*itertools.product(BODIES, ([1, 4, 6], [5, 7])), *itertools.product(("residual", "dense"), ([0], [*range(8)]))],
)
def test_the_narrowed_tap_is_the_slice_of_the_full_feature(name: str, keep: list[int]) -> None:
    teacher = BODIES[name](8)
    program = program_of(teacher, keep, shape=FULL.get(name, (2, 8, 8, 8)))
    features: list[Tensor] = []
    hook = teacher.get_submodule("body").register_forward_hook(lambda *call: features.append(call[2].clone()))
    images = torch.randn(SHAPE, dtype=torch.float64)
    teacher.eval()(images.clone())
    hook.remove()
    (value,) = frozen_values(specialize(program, "warm-up-1"), images.clone()).values()
    assert value.dtype == torch.float64
    assert torch.allclose(value, features[0][:, keep], rtol=1e-12, atol=1e-12)
    logits = frozen_values(specialize(program, "main"), images.clone())["kd teacher.logits"]
    assert torch.allclose(logits, teacher(images.clone()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", sorted(set(BODIES) - {"random_layers"}))
def test_losses_and_gradients_are_those_of_the_full_program(name: str) -> None:
    program = program_of(BODIES[name](8), [0, 3, 5], shape=FULL.get(name, (2, 8, 8, 8)))
    images, labels = torch.randn(SHAPE, dtype=torch.float64), torch.tensor([0, 3])
    full = program({"images": images.clone(), "labels": labels})
    for stage in program.stages:
        cut = specialize(program, stage.name)
        losses = cut({"images": images.clone(), "labels": labels})
        assert set(losses) <= set(full)
        for key, value in losses.items():
            assert value.item() == pytest.approx(full[key].item(), rel=1e-6)
        trained = [p for p in cut.parameters() if p.requires_grad]
        for gradient in torch.autograd.grad(cut.total(losses), trained):  # every parameter is used
            assert gradient.isfinite().all()


def test_costs_shrink_with_the_stage_and_the_slice() -> None:
    program = program_of(tiny_models.plain(), [2, 3])
    student = 2 * 64 * 9 * (3 * 2 + 2 * 2)
    assert specialize(program, "warm-up-1").macs == student + 2 * 64 * 9 * (3 * 8 + 8 * 2)
    assert specialize(program, "main").macs == student + 2 * 64 * 9 * (3 * 8 + 8 * 8) + 2 * 5 * (8 + 2)


def layer_of(name: str, width: int = 8) -> nn.Module:
    """Layers at which a slice must stop or be right: each is not what its class alone says, or not per channel."""
    conv = nn.Conv2d(width, width, 3, padding=1)

    class Doubling(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input) * torch.arange(1.0, 9.0, dtype=input.dtype).view(1, 8, 1, 1)

    if name == "subclass":
        return Doubling(width, width, 1)
    if name == "weight norm":
        made: nn.Module = nn.utils.parametrizations.weight_norm(conv)
        return made
    if name == "hook":
        conv.register_forward_hook(lambda *call: call[2] * 2)
        return conv
    if name == "patched":
        conv.forward = F.relu  # type: ignore[method-assign]
        return conv
    if name == "grouped":
        return nn.Conv2d(width, width, 1, groups=2)
    others: dict[str, Callable[[], nn.Module]] = {
        "transposed": lambda: nn.ConvTranspose2d(width, width, 1), "group norm": lambda: nn.GroupNorm(2, width),
        "plain norm": lambda: nn.BatchNorm2d(width, affine=False), "softmax": lambda: nn.Softmax(1),
        "no statistics": lambda: nn.BatchNorm2d(width, track_running_stats=False), "prelu": lambda: nn.PReLU(width),
        "circular": lambda: nn.Conv2d(width, width, 3, padding=1, padding_mode="circular", bias=False),
        "shuffle": lambda: nn.ChannelShuffle(2), "instance norm": lambda: nn.InstanceNorm2d(width, affine=True),
        "response norm": lambda: nn.LocalResponseNorm(3),
    }  # fmt: skip
    return others[name]()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    "name", ["subclass", "weight norm", "hook", "patched", "grouped", "transposed", "group norm", "plain norm",
             "softmax", "no statistics", "prelu", "circular", "shuffle", "instance norm", "response norm"],
)  # fmt: skip
def test_layers_that_are_not_what_they_seem_stay_right(name: str, before: bool) -> None:
    layer = layer_of(name)
    body = nn.Sequential(conv_norm(3, 8), *((layer, nn.BatchNorm2d(8)) if before else (layer,)))
    teacher = Classifier(body, 8)
    program = program_of(teacher, [1, 2, 7])
    images = torch.randn(SHAPE, dtype=torch.float64)
    (value,) = frozen_values(specialize(program, "warm-up-1"), images).values()
    expected = teacher.body(images)[:, [1, 2, 7]]
    assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.cat([m.a(x)] * 2, 1)[:, :8],  # a part twice
        lambda m, x: torch.pow(m.b(x).abs(), m.b(x)),
        lambda m, x: torch.add(m.b(x), other=m.b(x), alpha=2),
        lambda m, x: F.relu(input=m.b(x)),
        lambda m, x: torch.cat(tensors=[m.a(x), m.a(x)], dim=-3),
        lambda m, x: m.b(x) + torch.ones(8, 1, 1, dtype=x.dtype),
        lambda m, x: m.b(x) * m.b(x).mean((2, 3), keepdim=True) * m.b(x).mean(1, keepdim=True),
        lambda m, x: m.b(x).permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
        lambda m, x: torch.index_select(m.b(x), 1, m.order),
        lambda m, x: m.b(m.b(x)[:, :3]),
        lambda m, x: torch.maximum(m.b(x), torch.zeros((), dtype=x.dtype)).clamp(max=1),
        lambda m, x: torch.where(m.b(x) > m.b(x).mean((2, 3), keepdim=True), m.b(x), m.b(x).exp()),
        lambda m, x: m.b(x).masked_fill_(m.b(x) < 0, 0.5).square(),
        lambda m, x: torch.lerp(m.b(x), m.b(x) * 2, m.b(x).mean(1, keepdim=True)),
        lambda m, x: torch.addcmul(m.b(x), m.b(x), torch.ones(8, 1, 1, dtype=x.dtype)),
        lambda m, x: m.b(x).float().double().detach(),
        lambda m, x: F.lp_pool2d(m.b(x).abs(), 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3),
        lambda m, x: F.max_pool3d(m.b(x).abs(), (3, 1, 1), 1, (1, 0, 0)),  # over neighbouring channels
    ],
)
def test_ways_of_writing_things_stay_right(forward: Callable[[Any, Tensor], Any]) -> None:
    body = Body({"a": conv_norm(3, 4), "b": nn.Conv2d(3, 8, 3, padding=1)}, forward)
    body.register_buffer("order", torch.arange(7, -1, -1))
    teacher = Classifier(body, 8)
    program = program_of(teacher, [0, 5, 6])
    images = torch.randn(SHAPE, dtype=torch.float64)
    (value,) = frozen_values(specialize(program, "warm-up-1"), images).values()
    assert torch.allclose(value, body(images)[:, [0, 5, 6]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.pow(m.a(x).exp(), m.b(x).tan()),
        lambda m, x: torch.lerp(m.a(x), m.b(x), 0.5).square(),
        lambda m, x: torch.addcmul(m.a(x).square(), m.b(x).clip(0, 1), m.c(x).float().double()),
    ],
)
def test_a_slice_sinks_through_whatever_works_on_each_value(forward: Callable[[Any, Tensor], Any]) -> None:
    body = Body({name: nn.Conv2d(3, 8, 3, padding=1) for name in "abc"}, forward)
    text = "\n".join(teacher_text(specialize(program_of(Classifier(body, 8), [0, 5]), "warm-up-1")))
    assert "index_select" not in text
    assert "teacher.body.b_kept_2" in text


def test_roots_of_noise_do_not_hide_a_wrong_value() -> None:
    """They are NaN, which equals NaN."""
    body = Body({"conv": nn.Conv2d(3, 8, 3, padding=1)}, lambda m, x: m.conv(x.sqrt()))
    program = program_of(Classifier(body, 8), [0, 5])
    step = Specialize("warm-up-1")
    value = step(program).value
    holds(step, program, value)
    with torch.no_grad():
        value.get_parameter("teacher.body.conv_kept_2.weight")[0] *= 1.05
    with pytest.raises(InvariantError, match="changed what"):
        step.proves(program, value)


def test_memory_that_others_look_at_is_not_sliced_away() -> None:
    """relu_ writes through a view of what the sum reads; without the write the sum would differ."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.conv(x)
        activated = m.identity(x).relu_()
        return activated * 1 + x

    teacher = Classifier(Body({"conv": nn.Conv2d(3, 8, 3), "identity": nn.Identity()}, forward), 8)
    student = Classifier(nn.Conv2d(3, 2, 3), 2)
    plan = planned("body", "body", (2, 8, 6, 6), (2, 2, 6, 6), kept=[0, 5])
    made = build(plan, awake(teacher.eval()).double(), student.double())
    images = torch.randn(SHAPE, dtype=torch.float64)
    (value,) = frozen_values(specialize(made, "warm-up-1"), images).values()
    assert torch.allclose(value, teacher.body(images)[:, [0, 5]], rtol=1e-12, atol=1e-12)


class Centred(nn.Module):
    """It takes away what a mean of earlier calls says, and learns that afterwards."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        value = x - self.mean
        self.mean.mul_(0.9).add_(x.detach().mean((0, 2, 3), keepdim=True), alpha=0.1)
        return value


@pytest.mark.parametrize("centre", [0, 1])
def test_a_buffer_that_is_read_in_front_of_what_writes_into_it_goes_on_learning(centre: int) -> None:
    parts = [nn.Conv2d(3, 2, 3), nn.ReLU()]
    parts.insert(1 + centre, Centred())
    plan = planned("body", "body", (2, 8, 6, 6), (2, 2, 6, 6), kept=[0, 5])
    made = build(plan, awake(Classifier(nn.Conv2d(3, 8, 3), 8).eval()), awake(Classifier(nn.Sequential(*parts), 2)))
    program = specialize(made, "warm-up-1").train()
    before = [buffer.clone() for name, buffer in program.named_buffers() if name.endswith("mean")]
    program({"images": torch.rand(SHAPE)})
    after = [buffer for name, buffer in program.named_buffers() if name.endswith("mean")]
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [False]


@pytest.mark.parametrize("how", ["dropout", "count"])
def test_a_teacher_that_is_another_one_in_every_call_is_compared_with_itself(how: str) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.conv(x)
        if how == "dropout":
            return F.dropout(x, 0.5, training=True)
        value = x * (m.calls + 1)
        m.calls.add_(1)
        return value

    body = Body({"conv": nn.Conv2d(3, 8, 3)}, forward)
    body.register_buffer("calls", torch.zeros(()))
    plan = planned("body", "body", (2, 8, 6, 6), (2, 2, 6, 6), kept=[0, 5])
    made = build(plan, awake(Classifier(body, 8).eval()), awake(Classifier(nn.Conv2d(3, 2, 3), 2)))
    drawn, calls = torch.random.get_rng_state(), [buffer.clone() for buffer in made.buffers()]
    specialize(made, "main")
    assert all(map(torch.equal, calls, made.buffers()))
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_a_member_that_casts_its_images_to_another_precision_stands_beside_one_that_does_not() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.conv(x.double()).float()

    plan = planned("body", "body", (2, 8, 6, 6), (2, 2, 6, 6), kept=[0, 5])
    student = Classifier(Body({"conv": nn.Conv2d(3, 2, 3).double()}, forward), 2)
    made = build(plan, awake(Classifier(nn.Conv2d(3, 8, 3), 8).eval()), student)
    program = specialize(made, "main").train()
    assert program({"images": torch.rand(SHAPE), "labels": torch.arange(2)})["kd"].isfinite()


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, list[int]]:
    """A random network of 3 to 6 operations on 6 channels, some of them residual, and the channels to keep."""
    kinds = draw(
        st.lists(st.sampled_from(["conv", "depthwise", "add", "cat", "norm", "relu", "gate"]), min_size=3, max_size=6)
    )
    parts: dict[str, nn.Module] = {"stem": nn.Conv2d(3, 6, 3, padding=1)}
    for number, kind in enumerate(kinds):
        made: dict[str, Callable[[], nn.Module]] = {
            "conv": lambda: nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
            "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), "norm": lambda: nn.BatchNorm2d(6),
            "relu": lambda: nn.ReLU(inplace=True), "cat": lambda: nn.Conv2d(6, 2, 1), "add": nn.Identity,
            "gate": lambda: nn.Conv2d(6, 6, 1),
        }  # fmt: skip
        parts[f"{kind}{number}"] = made[kind]()
    skips = [draw(st.integers(0, 3)) for _ in kinds]

    def forward(m: Any, x: Tensor) -> Any:
        values = [m.stem(x)]
        for number, (kind, skip) in enumerate(zip(kinds, skips, strict=True)):
            last, earlier = values[-1], values[max(0, len(values) - 1 - skip)]
            layer = getattr(m, f"{kind}{number}")
            if kind == "add":
                values.append(last + earlier)
            elif kind == "cat":
                values.append(torch.cat([earlier[:, :4], layer(last)], 1))
            elif kind == "gate":
                values.append(earlier * torch.sigmoid(layer(F.adaptive_avg_pool2d(last, 1))))
            else:
                values.append(layer(last))
        return values[-1]

    keep = sorted(draw(st.sets(st.integers(0, 5), min_size=1, max_size=6)))
    return Classifier(Body(parts, forward), 6), keep


@settings(max_examples=24, deadline=None, derandomize=True)
@given(networks())
def test_any_network_keeps_its_losses(drawn: tuple[nn.Module, list[int]]) -> None:
    teacher, keep = drawn
    program = program_of(teacher, keep, shape=(2, 6, 8, 8))
    images = torch.randn(SHAPE, dtype=torch.float64)
    for stage in program.stages:
        before = frozen_values(restricted(program, stage), images)
        after = frozen_values(specialize(program, stage.name), images)
        for key, value in before.items():
            scale = float(value.abs().max())
            assert float((after[key] - value).abs().max()) <= 1e-11 * max(scale, 1.0)


def test_user_modules_stay_as_they_are() -> None:
    teacher, student = awake(tiny_models.residual().eval()), awake(tiny_models.plain(3))
    before = [t.clone() for m in (teacher, student) for t in m.state_dict().values()]
    kinds = [type(m) for m in (*teacher.modules(), *student.modules())]
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    program = build(plan, teacher, student)
    text = str(program.graph)
    result = Specialize("warm-up-1")(program)
    assert result.modified
    assert str(program.graph) == text
    assert kinds == [type(m) for m in (*teacher.modules(), *student.modules())]
    assert all(map(torch.equal, (t for m in (teacher, student) for t in m.state_dict().values()), before))
    assert all(p.requires_grad for p in teacher.parameters())


def test_a_specialized_program_can_be_specialized_again() -> None:
    program = program_of(tiny_models.residual(), [0, 1, 2])
    once = specialize(program, "warm-up-1")
    assert teacher_text(specialize(once, "warm-up-1")) == teacher_text(once)
    assert not Specialize("warm-up-1")(once).modified


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(PlanError, match="no stage is named 'warm-up-9'") as caught:
        specialize(program_of(tiny_models.plain(), [0]), "warm-up-9")
    assert "warm-up-1, main" in caught.value.hint


# Wrong results


def stage_of(name: str = "main") -> tuple[Program, Program]:
    """A program, and that of one of its stages, to be spoilt."""
    program = program_of(tiny_models.residual(), [0, 5])
    return program, specialize(program, name)


def at(program: Program, name: str) -> fx.Node:
    found: fx.Node = next(node for node in program.graph.nodes if node.name == name)
    return found


def loss_of(program: Program, key: str) -> fx.Node:
    return next(node for node in program.nodes("loss") if node.meta["key"] == key)


def scaled(program: Program) -> None:
    """The distillation reads logits that are larger by a thousandth."""
    head = at(program, "teacher_head")
    with program.graph.inserting_after(head):
        larger = program.graph.call_function(torch.mul, (head, 1.001))
    larger.meta = dict(head.meta)
    loss_of(program, "kd").replace_input_with(head, larger)


def swapped(program: Program) -> None:
    """The teacher learns from the student."""
    loss = loss_of(program, "kd")
    loss.args = loss.args[::-1]


def own_teacher(program: Program) -> None:
    """The student learns from itself: no frozen value is read any more."""
    loss = loss_of(program, "kd")
    loss.args = (loss.args[0], loss.args[0])


def other_student(program: Program) -> None:
    """The labels are compared with what is in front of the student's head."""
    loss = loss_of(program, "cross-entropy")
    loss.replace_input_with(at(program, "student_head"), at(program, "student_mean"))


def other_field(program: Program) -> None:
    """The labels are compared with the images."""
    loss = loss_of(program, "cross-entropy")
    loss.replace_input_with(at(program, "labels"), at(program, "images"))


def cooled(program: Program) -> None:
    loss_of(program, "kd").kwargs = {"temperature": 1.0}


def another_loss(program: Program) -> None:
    loss_of(program, "kd").target = F.mse_loss


def lost(*keys: str) -> Callable[[Program], None]:
    def change(program: Program) -> None:
        output = next(iter(reversed(program.graph.nodes)))
        values = output.args[0]
        assert isinstance(values, dict)
        output.args = ({key: value for key, value in values.items() if key not in keys},)
        for key in keys:
            program.graph.erase_node(loss_of(program, key))

    return change


def heavier(program: Program) -> None:
    """The weights of the terms are not those of the stage."""
    term = program.terms[0]
    program.meta["terms"] = (Term(term.key, term.loss.changed(weight=7.0)), *program.terms[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled, r"changed what 'kd teacher.logits' reads, by 1.0e-03 of its largest value"),
        (swapped, "changed what 'kd' reads at student.logits"),
        (own_teacher, "changed which losses read from frozen members"),
        (other_student, "changed what 'cross-entropy' reads at student.logits"),
        (other_field, "changed what 'cross-entropy' reads at labels"),
        (cooled, "changed the loss 'kd'"),
        (another_loss, "changed the loss 'kd'"),
        (lost("kd"), "changed which losses there are"),
        (lost("cross-entropy"), "changed which losses there are"),
        (heavier, "changed which losses there are"),
    ],
)
def test_a_wrong_result_is_refused(change: Callable[[Program], None], message: str) -> None:
    program, stage = stage_of()
    holds(Specialize("main"), program, stage)
    change(stage)
    with pytest.raises(InvariantError, match=message):
        holds(Specialize("main"), program, stage)


def test_another_stage_and_other_channels_are_refused() -> None:
    program, warm_up = stage_of("warm-up-1")
    with pytest.raises(InvariantError, match="changed which losses there are"):
        holds(Specialize("main"), program, warm_up)
    other = specialize(program_of(tiny_models.residual(), [0, 6]), "warm-up-1")
    with pytest.raises(InvariantError, match=r"changed what 'mse\[pair\] teacher.tap' reads"):
        holds(Specialize("warm-up-1"), program, other)


def test_a_wrong_rewrite_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that takes softmax over the channels for a function of each channel alone."""
    program = program_of(Classifier(nn.Sequential(conv_norm(3, 8), nn.Softmax(1)), 8), [0, 5])
    known = is_a
    monkeypatch.setattr(sink, "is_a", lambda name, trait: name == "softmax" or known(name, trait))
    with pytest.raises(PassError, match=r"specializing changed what 'mse\[pair\] teacher.tap' reads, by"):
        specialize(program, "warm-up-1")


@pytest.mark.parametrize("bias", [False, True])
def test_folding_without_values_gives_the_shapes(bias: bool) -> None:
    pair = nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6)).eval().requires_grad_(False).double()
    found = []
    for conv, norm in (pair, copy.deepcopy(pair).to("meta")):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        made = sink.fused(conv, norm)
        assert (conv.bias is not None) == bias
        found.append([(name, p.shape, p.dtype, p.requires_grad) for name, p in made.named_parameters()])
    assert found[0] == found[1]
    assert [name for name, *_ in found[0]] == ["weight", "bias"]

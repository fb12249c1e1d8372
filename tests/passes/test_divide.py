"""Divide: two halves that are the stage, bit for bit; what is no function of one image stays in the rest."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.compiler.build import build, build_arm, specialize
from fxdistill.errors import InvariantError
from fxdistill.ir.program import Program
from fxdistill.passes.divide import Divide, Divided
from fxdistill.passes.specialize import restricted
from fxdistill.plan.training import Comparison
from tests import tiny_models
from tests.tiny_models import SHAPE, Body, Classifier, awake, conv_norm, planned

IMAGES = torch.rand(8, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
BATCH = {"images": IMAGES, "labels": torch.arange(8) % 5, "index": torch.arange(8)}


def student(width: int = 4, size: int = 8) -> nn.Module:
    body = nn.Sequential(conv_norm(3, width), nn.Dropout(0.3), conv_norm(width, width), nn.MaxPool2d(8 // size))
    return Classifier(body, width)


def program_of(teacher: nn.Module, *, size: int = 8, width: int = 8, compare: Comparison = "raw") -> Program:
    """Teacher and a student with dropout, tapped at their bodies, which have maps of other sizes."""
    plan = planned("body", "body", (2, width, 8, 8), (2, 4, size, size), kept=[1, 2, 5, 6])
    if compare != "raw":
        (arm,) = plan.arms
        first, main = arm.stages
        first = first.changed(losses=[first.losses[0].changed(compare=compare)])
        plan = plan.changed(arms=[arm.changed(stages=[first, main])])
    return build(plan, awake(teacher).eval(), awake(student(size=size)))


def divided(program: Program, stage: str, **batch: Tensor) -> Divided:
    return Divide({**BATCH, **batch})(specialize(program, stage).train()).value


def names(divided: Divided) -> list[str]:
    return [name.removeprefix("cached.") for name in divided.fields]


@pytest.mark.parametrize("teacher", [tiny_models.residual, tiny_models.dense, tiny_models.excited, tiny_models.shared])
@pytest.mark.parametrize("stage", ["warm-up-1", "main"])
def test_losses_gradients_and_statistics_are_those_of_the_stage(teacher: Callable[[], nn.Module], stage: str) -> None:
    size = 4 if teacher is tiny_models.dense else 8
    plan = planned("body", "body", (2, 8, size, size), (2, 4, size, size), kept=[1, 2, 5, 6])
    whole = specialize(build(plan, awake(teacher()).eval(), awake(student(size=size))), stage).train()
    halves = Divide(BATCH)(whole).value
    assert halves.frozen is not None
    assert len(halves.fields) == 1
    found: list[dict[str, Tensor]] = []
    for program in (whole, halves.rest):
        state = copy.deepcopy(whole.state_dict())
        torch.manual_seed(3)
        with torch.no_grad():
            crossed = {} if program is whole else halves.frozen(BATCH)
        losses = program({**BATCH, **crossed})
        program.total(losses).backward()
        own = {name: p.grad.clone() for name, p in whole.named_parameters() if p.grad is not None}
        found.append({**losses, **own, **{name: b.clone() for name, b in whole.named_buffers()}})
        whole.zero_grad()
        whole.load_state_dict(state)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any("teacher" in name for name, _ in halves.rest.named_parameters())
    assert not any("student" in name for name, _ in halves.frozen.named_parameters())


def test_what_crosses_is_the_narrow_pooled_tap_and_the_logits() -> None:
    program = program_of(tiny_models.residual(), size=4)
    halves = divided(program, "warm-up-1")
    assert halves.frozen is not None
    (rows,) = halves.frozen(BATCH).values()
    assert rows.shape == (8, 4, 4, 4)  # of 8 channels at 8x8
    assert names(halves) == ["adaptive_avg_pool2d"]
    halves = divided(program, "main")
    assert names(halves) == ["teacher_head"]


def test_of_equal_cuts_the_last_one_leaves_least_to_the_rest() -> None:
    halves = divided(program_of(tiny_models.residual()), "warm-up-1")
    assert halves.fields == ("cached.tap",)
    assert [node.op for node in halves.rest.graph.nodes if "teacher" in node.name] == []


class Upscaled(nn.Module):
    """Its answer is scaled up to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_norm(3, 8, stride=4)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.body(x)), scale_factor=4.0)


def test_an_answer_crosses_before_it_is_scaled_up() -> None:
    plan = planned("body", "body", (2, 8, 2, 2), (2, 8, 2, 2))
    program = build(plan, awake(Upscaled()).eval(), awake(Upscaled()))
    halves = divided(program, "main", labels=torch.zeros(8, 8, 8, dtype=torch.long))
    assert names(halves) == ["teacher_head"]


@pytest.mark.parametrize(("compare", "scaled"), [("standardized", True), ("released", True), ("normalized", False)])
def test_what_looks_at_the_whole_batch_stays_in_the_rest(compare: Comparison, scaled: bool) -> None:
    halves = divided(program_of(tiny_models.plain(), compare=compare), "warm-up-1")
    assert halves.frozen is not None
    targets = [getattr(node.target, "__name__", "") for node in halves.frozen.graph.nodes]
    assert ("standardized" in targets, "batch_normalized" in targets) == (False, False)
    assert ("normalized" in targets) is (not scaled)
    one, other = (halves.frozen({"images": images}) for images in (IMAGES, IMAGES[:3]))
    for name in halves.fields:
        torch.testing.assert_close(one[name][:3], other[name])


class Odd(nn.Module):
    """A layer that is no function of one image: what it does is not told by its class."""

    calls: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "mean":
            return x - x.mean(0, keepdim=True)
        if self.how == "neighbour":
            return x + x.roll(1, 0)
        if self.how == "first":
            return x - x[:1]
        if self.how == "before":
            return x.cumsum(0)
        if self.how == "largest":
            return x / x.amax()
        if self.how == "noise":
            return x + torch.rand_like(x)
        if self.how == "dropout":
            return F.dropout(x, 0.5, training=True)
        if self.how == "count":
            self.calls += 1
            return x
        return x - x.flatten(1).mean(1)[:, None, None, None]


@pytest.mark.parametrize("how", ["mean", "neighbour", "first", "before", "noise", "dropout"])
def test_layers_that_are_no_function_of_one_image_end_the_frozen_half(how: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.last(self.odd(self.first(x)))  # type: ignore[no-any-return]

    body = Body({"first": conv_norm(3, 8), "odd": Odd(how), "last": conv_norm(8, 8)}, forward)
    program = program_of(Classifier(body, 8))
    halves = Divide(BATCH)(restricted(program, program.find_stage("main"))).value
    assert halves.frozen is not None
    assert not [node for node in halves.frozen.graph.nodes if "last" in node.name or "head" in node.name]
    torch.testing.assert_close(*(halves.frozen(BATCH)[halves.fields[0]] for _ in range(2)), rtol=0, atol=0)


@pytest.mark.parametrize("brightest", [0, 4, 7])
def test_the_image_that_a_batch_is_scaled_by_may_be_any(brightest: int) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.odd(self.first(x))  # type: ignore[no-any-return]

    images = IMAGES.clone()
    images[brightest] *= 9
    program = program_of(Classifier(Body({"first": conv_norm(3, 8), "odd": Odd("largest")}, forward), 8))
    drawn = torch.random.get_rng_state()
    assert "teacher_head" not in names(divided(program, "main", images=images))
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_a_layer_that_looks_at_one_image_is_divided() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.odd(self.first(x))  # type: ignore[no-any-return]

    body = Body({"first": conv_norm(3, 8), "odd": Odd("image")}, forward)
    assert names(divided(program_of(Classifier(body, 8)), "main")) == ["teacher_head"]


def test_norms_by_the_batch_end_the_frozen_half() -> None:
    teacher = Classifier(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, track_running_stats=False)), 8)
    halves = divided(program_of(teacher), "main")
    assert halves.frozen is not None
    assert not [node for node in halves.frozen.graph.nodes if node.target == "teacher.head"]
    assert halves.rest.graph.find_nodes(op="call_module", target="teacher.head")


def test_a_stage_without_a_teacher_is_not_divided() -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 4, 8, 8), kept=[1, 2, 5, 6])
    program = build_arm(plan, "control", {"student": awake(student())})
    halves = divided(program, "control")
    assert halves.frozen is None
    assert "nothing of frozen members" in halves.why


def test_weights_that_training_writes_to_are_not_fixed_though_a_frozen_member_holds_them() -> None:
    """As members that share weights do: a frozen one is a copy over the same memory."""
    shared = awake(tiny_models.plain())
    learning = copy.deepcopy(shared)
    learning.body, learning.head = shared.body, shared.head
    plan = planned("body", "body", (2, 8, 8, 8), (2, 8, 8, 8))
    program = build(plan, shared.eval(), learning)
    assert Divide(BATCH)(restricted(program, program.find_stage("main"))).value.frozen is None


def test_a_frozen_half_leaves_the_images_as_they_are() -> None:
    before = IMAGES.clone()
    halves = divided(program_of(tiny_models.overwriting_input()), "main")
    assert halves.frozen is not None
    halves.frozen(BATCH)
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("teacher", [tiny_models.overwriting_a_view, tiny_models.depthwise])
def test_memory_that_is_written_to_later(teacher: Callable[[], nn.Module]) -> None:
    halves = divided(program_of(teacher()), "main")
    assert halves.frozen is not None


def test_the_contract_refuses_wrong_halves() -> None:
    whole = specialize(program_of(tiny_models.residual()), "main").train()
    step = Divide(BATCH)
    halves = step(whole).value
    assert halves.frozen is not None

    swapped = copy.deepcopy(halves.frozen)
    output = next(iter(swapped.graph.find_nodes(op="output")))
    with swapped.graph.inserting_before(output):
        ((field, rows),) = output.args[0].items()  # the neighbour's rows
        output.args = ({field: swapped.graph.call_function(torch.roll, (rows, 1, 0))},)
    swapped.recompile()
    with pytest.raises(InvariantError, match="changed the loss 'kd'"):
        step.ensures(whole, replace(halves, frozen=swapped))
    with pytest.raises(InvariantError, match="is not what the rest reads"):
        step.ensures(whole, replace(halves, rest=whole))
    with pytest.raises(InvariantError, match="holds what the stage trains"):
        step.ensures(whole, replace(halves, frozen=whole))
    with pytest.raises(InvariantError, match="does not train"):
        step.ensures(whole, replace(halves, rest=halves.frozen))  # type: ignore[arg-type]
    with pytest.raises(InvariantError, match="not the program"):
        step.ensures(whole, Divided(halves.rest))

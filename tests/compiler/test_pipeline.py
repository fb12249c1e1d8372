"""Two models in, a plan out; a plan and its models in, a program out."""

import dataclasses
import time
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fxdistill import models
from fxdistill.compiler import pipeline
from fxdistill.compiler.build import build, build_arm, specialize
from fxdistill.compiler.options import Options
from fxdistill.errors import InputError, PairingError, PassError, PlanError
from fxdistill.ir.contract import PassManager
from fxdistill.methods.cascade import Cascade
from fxdistill.passes.instrument import builder
from fxdistill.passes.specialize import sink
from fxdistill.plan.document import Plan
from fxdistill.plan.file import parse
from tests.tiny_models import Classifier, awake, conv_norm

DIGITS = (1, 1, 8, 8)


def digits() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return awake(models.convnet(widths=[16, 32, 64])), models.convnet(widths=[8, 16, 32])


def compiled(**options: Any) -> Plan:
    return pipeline.compile(*digits(), Options(**{"input_shape": DIGITS, **options}))


def test_the_same_inputs_and_seed_give_the_same_bytes() -> None:
    first = compiled(seed=3)
    torch.manual_seed(99)
    assert compiled(seed=3).to_json() == first.to_json() != compiled(seed=4).to_json()
    assert parse(first.model_dump(mode="json"), where="p") == first


@pytest.mark.parametrize("align", ["slice", "project"])
@pytest.mark.parametrize("method", ["indistill", "kd"])
def test_every_stage_of_the_plan_runs_and_costs_what_it_says(method: str, align: str) -> None:
    teacher, student = digits()
    plan = compiled(method=method, align=align)
    program = build(plan, teacher, student)
    batch = {"images": torch.randn(4, *DIGITS[1:]), "labels": torch.tensor([0, 1, 2, 3])}
    whole = plan.given("teacher").macs + plan.given("student").macs
    stages = plan.arm("distilled").stages
    for stage in stages:
        cut = specialize(program, stage.name)
        assert cut.total(cut(batch)).isfinite()
        assert stage.cost == pytest.approx(cut.macs / whole, abs=1e-4)
    costs = [stage.cost for stage in stages]
    assert costs == sorted(costs)
    arm = specialize(build_arm(plan, "control", {"student": student}), "control")
    assert set(arm(batch)) == {"cross-entropy"}
    assert plan.control is not None
    with pytest.raises(PlanError, match="the student has"):  # without pairs as well
        build(plan, student, teacher)
    assert plan.control.cost == pytest.approx(plan.given("student").macs / whole, abs=1e-4)
    assert not hasattr(arm, "teacher")


def test_neither_model_is_changed() -> None:
    pair = digits()
    for module in pair:
        module.get_submodule("block1.norm").eval()  # a mode that its user chose
    before = [[t.clone() for t in module.state_dict().values()] for module in pair]
    modes = [[m.training for m in module.modules()] for module in pair]
    generator = torch.get_rng_state()
    pipeline.compile(*pair, Options(input_shape=DIGITS, align="project"))
    assert torch.equal(torch.get_rng_state(), generator)
    assert [[m.training for m in module.modules()] for module in pair] == modes
    assert all(p.requires_grad for module in pair for p in module.parameters())
    for module, old in zip(pair, before, strict=True):
        assert all(map(torch.equal, module.state_dict().values(), old))


def test_pins_and_seeds_are_in_the_plan() -> None:
    plan = compiled(pins=(("block2", "block2"),), forbid=(("block1", "block1"),), repeats=3, seed=5)
    assert ("block2.pool", "block2.pool") in [(p.teacher.path, p.student.path) for p in plan.pairs]
    assert plan.seeds == [5, 6, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pins": (("block9", "block1"),)}, "block9"),
        ({"input_shape": (1, 3, 8, 8)}, "does not run on an input of shape 1x3x8x8"),
        ({"epochs": 0}, "epochs is 0"),
        ({"repeats": 0}, "0 is no whole number from 1 to 1,000"),
        ({"seed": -1}, "seed"),
        ({"precision": "8-bit"}, "'8-bit' is no precision"),
        ({"align": "slices"}, "'slices' is no align"),
        ({"keep": 0.5}, "--keep is about an auxiliary teacher"),
        ({"keep": 1.5, "align": "shrink"}, "1.5 is no share of channels"),
        ({"criterion": "l3"}, "no criterion named 'l3'"),
    ],
)
def test_bad_options_are_the_users(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        compiled(**options)
    assert caught.value.exit_code == 2


def test_models_of_other_classes_do_not_fit() -> None:
    teacher, _ = digits()
    with pytest.raises(PairingError, match="the student with"):
        pipeline.compile(teacher, models.convnet(classes=7), Options(input_shape=DIGITS, method="kd"))


def test_the_passes_are_timed_in_order() -> None:
    manager = PassManager()
    pipeline.compile(*digits(), Options(input_shape=DIGITS), passes=manager)
    names = [record.name for record in manager.records]
    assert names[:9] == ["trace"] * 3 + ["couple"] * 2 + ["match", "prune", "schedule", "instrument"]
    assert set(names[9:]) == {"specialize"}


@pytest.mark.parametrize("align", ["slice", "shrink"])
def test_a_plan_is_the_same_whether_its_programs_are_proved_or_not(align: Any) -> None:
    options = Options(input_shape=(1, 3, 96, 96), align=align)
    teacher, student = (
        awake(Classifier(nn.Sequential(conv_norm(3, w), nn.MaxPool2d(2), conv_norm(w, 2 * w)), 2 * w)) for w in (8, 4)
    )
    managers = (None, PassManager(prove=False), PassManager(prove=True))
    plans = {pipeline.compile(teacher, student, options, passes=passes).to_json() for passes in managers}
    assert len(plans) == 1


def test_what_a_plan_leaves_unproved_is_proved_before_anything_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewrites that change what the teacher says pass by a plan, which looks at programs alone, and stop a build."""

    def wrong(module: nn.Module, keep: Tensor) -> nn.Module:
        return narrowed(module, (keep + 1) % len(next(module.parameters())))

    teacher, student = digits()
    plan = compiled()
    narrowed = sink.narrowed
    monkeypatch.setattr(sink, "narrowed", wrong)
    assert compiled().to_json() == plan.to_json()
    with pytest.raises(PassError, match="specializing changed what"):
        specialize(build(plan, teacher, student), plan.arm("distilled").stages[0].name)
    monkeypatch.undo()
    monkeypatch.setattr(builder, "tap_copy", lambda value, name: value.clone() + 1)
    monkeypatch.setattr(builder, "tap", lambda value, name: value.mul_(2))
    assert compiled().pairs == plan.pairs
    with pytest.raises(PassError, match="instrumenting changed the output"):
        build(plan, teacher, student)


def test_resnet50_to_resnet18_takes_seconds() -> None:
    teacher, student = torchvision.models.resnet50(), torchvision.models.resnet18()
    start = time.perf_counter()
    plan = pipeline.compile(teacher, student, Options(input_shape=(1, 3, 224, 224)))
    print(f"resnet50 to resnet18: planned in {time.perf_counter() - start:.1f} s")  # noqa: T201
    assert [pair.student.path for pair in plan.pairs] == [f"layer{n}.1.relu_1" for n in (1, 2, 3, 4)]
    assert [len(kept.channels) for kept in plan.kept] == [64, 128, 256, 512]
    assert (plan.given("teacher").macs, plan.given("student").macs) == (
        4_089_184_256,
        1_814_073_344,
    )  # as torchvision publishes them


@pytest.mark.parametrize("method", ["indistill", "cascade"])
def test_what_a_member_costs_is_that_of_an_image(method: str) -> None:
    teacher, student = models.convnet(), None if method == "cascade" else models.convnet()
    how = Cascade(budget=("macs", 20_000), assistants=1) if student is None else None
    one, other = (
        pipeline.compile(teacher, student, Options(input_shape=(n, 1, 8, 8), method=method, cascade=how))
        for n in (1, 4)
    )
    assert {name: member.macs for name, member in one.members.items()} == {
        name: member.macs for name, member in other.members.items()
    }
    assert [stage.cost for arm in one.arms for stage in arm.stages] == [
        stage.cost for arm in other.arms for stage in arm.stages
    ]


def test_dense_prediction() -> None:
    """Segmentation answers with a dict; labels are then one a pixel."""
    make = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    teacher, student = make(weights_backbone=None, num_classes=4), make(weights_backbone=None, num_classes=4)
    plan = pipeline.compile(teacher, student, Options(input_shape=(2, 3, 64, 64), task="segmentation"))
    program = build(plan, teacher, student)
    losses = program({"images": torch.randn(2, 3, 64, 64), "labels": torch.zeros(2, 64, 64, dtype=torch.int64)})
    assert all(value.isfinite() for value in losses.values())


def test_kd_does_without_pairs_where_there_are_none() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(x.flatten(1))
            return out

    teacher, student = models.convnet(widths=[8, 16]), Flat()
    options = Options(input_shape=DIGITS, epochs=1)
    with pytest.raises(PairingError):
        pipeline.compile(teacher, student, options)
    plan = pipeline.compile(teacher, student, dataclasses.replace(options, method="kd"))
    assert plan.pairs == []
    assert [remark.code for remark in plan.diagnostics] == ["no-pairs"]
    losses = build(plan, teacher, student)({"images": torch.randn(2, 1, 8, 8), "labels": torch.tensor([1, 2])})
    assert set(losses) == {"cross-entropy", "kd"}

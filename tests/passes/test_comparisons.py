"""What a loss compares of two taps: raw, standardized, normalized, or as InDistill's released code does."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.build import build, build_arm, specialize
from fxdistill.compiler.options import Options
from fxdistill.compiler.pipeline import compile as compile_plan
from fxdistill.compiler.tap_statistics import measure_taps
from fxdistill.errors import PairingError, PassError, PlanError
from fxdistill.ir.adapters import normalized, standardized
from fxdistill.ir.program import Program
from fxdistill.ir.running import example
from fxdistill.models import convnet, resnet
from fxdistill.passes.specialize import frozen_values, restricted
from fxdistill.passes.specialize.sink import Sinker
from fxdistill.plan.document import Plan
from fxdistill.plan.training import Comparison, LossTerm

SHAPE = (6, 1, 8, 8)
IMAGES = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def comparing(plan: Plan, how: Comparison) -> Plan:
    (arm,) = plan.arms
    stages = [
        stage.changed(losses=[term.changed(compare=how) if term.pair else term for term in stage.losses])
        for stage in arm.stages
    ]
    return plan.changed(arms=[arm.changed(stages=stages)])


def trained(module: nn.Module, seed: int) -> nn.Module:
    """With BatchNorm layers of their own kind each."""
    chance = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=chance) / 4
            part.running_var = torch.rand(part.num_features, generator=chance) + 0.5
            part.weight.data = torch.randn(part.num_features, generator=chance)
            part.bias.data = torch.randn(part.num_features, generator=chance)
    return module.eval()


def taps(module: nn.Module, paths: list[str]) -> list[Tensor]:
    found = dict[str, Tensor]()
    for path in paths:
        module.get_submodule(path).register_forward_hook(
            lambda _m, _i, value, path=path: found.__setitem__(path, value.detach().clone())
        )
    with torch.no_grad():
        module(IMAGES)
    return [found[path] for path in paths]


def test_the_warm_up_compares_standardized_taps() -> None:
    plan = compile_plan(resnet(widths=[8, 16]), convnet(widths=[4, 8]), Options(input_shape=SHAPE, method="indistill"))
    terms = [term for stage in plan.arms[0].stages[:-1] for term in stage.losses]
    assert terms
    assert {(term.loss, term.compare) for term in terms} == {("mse", "standardized")}


def test_standardized_by_hand() -> None:
    tap = torch.randn(5, 3, 4, 4) * torch.tensor([1.0, 100.0, 0.1]).view(3, 1, 1) + 7
    found = standardized(tap)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var((0, 2, 3), unbiased=False), torch.ones(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(standardized(tap * 50 - 3), found, atol=1e-2, rtol=1e-2)  # whatever scale and offset
    assert standardized(tap.half()).dtype == torch.float32
    assert standardized(torch.randn(5, 3, 7)).shape == (5, 3, 7)


def test_standardized_where_there_is_nothing_to_divide_by() -> None:
    one = torch.randn(1, 3, requires_grad=True)
    assert standardized(one).abs().max() == 0
    standardized(one).sum().backward()
    assert one.grad is not None
    assert one.grad.isfinite().all()
    dead = torch.zeros(4, 2, 3, 3, requires_grad=True)
    standardized(dead).square().sum().backward()
    assert dead.grad is not None
    assert dead.grad.isfinite().all()


def test_normalized_by_hand() -> None:
    tap = torch.randn(5, 3, 4, 4) * torch.arange(1, 6).view(5, 1, 1, 1)
    found = normalized(tap)
    torch.testing.assert_close(found.square().mean((1, 2, 3)), torch.ones(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[2], tap[2] / tap[2].square().mean().sqrt(), atol=1e-4, rtol=1e-4)
    assert normalized(torch.zeros(2, 3)).isfinite().all()


def released_by_hand(teacher: nn.Module, kept: list[int]) -> Tensor:
    """The first block of a convnet as the released code has it: pruned, beta 0, any bias, in training mode."""
    block = copy.deepcopy(teacher.get_submodule("block1"))
    conv, norm = block.get_submodule("conv"), block.get_submodule("norm")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    narrow, own = nn.Conv2d(1, len(kept), 3, padding=1), nn.BatchNorm2d(len(kept))
    narrow.weight.data, own.weight.data = conv.weight[kept], norm.weight[kept]
    own.bias.data.zero_()
    with torch.no_grad():
        return nn.functional.max_pool2d(own.train()(narrow(IMAGES)).relu(), 2)


@pytest.mark.parametrize("how", ["raw", "standardized", "normalized", "released"])
def test_what_is_compared_by_hand(how: Comparison) -> None:
    teacher, student = trained(convnet(widths=[8, 16]), 1), convnet(widths=[4, 8])
    plan = comparing(compile_plan(teacher, student, Options(input_shape=SHAPE, method="indistill")), how)
    program = build(plan, teacher, student).train()
    stage = specialize(program, "warm-up-1").train()
    kept = plan.kept[0].channels
    assert len(kept) == 4
    before = copy.deepcopy(teacher.state_dict())
    batch = {"images": IMAGES, "labels": torch.zeros(6, dtype=torch.long)}
    (own,) = taps(copy.deepcopy(student).train(), ["block1"])
    (full,) = taps(copy.deepcopy(teacher), ["block1"])
    wanted = full[:, kept] if how != "released" else released_by_hand(teacher, kept)
    scale = {"standardized": standardized, "normalized": normalized}.get(how, lambda value: value)
    expected = (scale(own) - scale(wanted)).square().mean()
    for one in (program, stage):
        torch.testing.assert_close(one(batch)["mse[block1]"], expected, atol=1e-5, rtol=1e-4)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_normalized_is_the_cosine() -> None:
    one, other = torch.randn(5, 3, 4, 4), 7 * torch.randn(5, 3, 4, 4)
    cosine = nn.functional.cosine_similarity(one.flatten(1), other.flatten(1)).mean()
    found = (normalized(one) - normalized(other)).square().mean()
    torch.testing.assert_close(found, 2 - 2 * cosine, atol=1e-5, rtol=1e-4)


MORE = torch.randn((9, 1, 8, 8), generator=torch.Generator().manual_seed(2)) + 1
LABELS = torch.zeros(6, dtype=torch.long)


def running(teacher: nn.Module, student: nn.Module) -> tuple[Plan, Program]:
    plan = comparing(compile_plan(teacher, student, Options(input_shape=SHAPE, method="indistill")), "running")
    return plan, build(plan, teacher, student).train()


def test_running_by_hand() -> None:
    """The teacher's taps by the statistics of all images that were shown, the student's by those of the batch."""
    teacher, student = trained(convnet(widths=[8, 16]), 1), convnet(widths=[4, 8])
    plan, program = running(teacher, student)
    batch = {"images": IMAGES, "labels": LABELS}
    assert program(batch)["mse[block1]"].isnan()  # until it is measured
    before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
    assert measure_taps(program, [{"images": IMAGES}, {"images": MORE}]) is program
    for held, module in zip(before, (teacher, student), strict=True):
        assert all(torch.equal(held[name], value) for name, value in module.state_dict().items())
    (own,) = taps(copy.deepcopy(student).train(), ["block1"])
    (seen,) = taps(copy.deepcopy(teacher), ["block1"])
    with torch.no_grad():
        shown = teacher.get_submodule("block1")(torch.cat([IMAGES, MORE]))[:, plan.kept[0].channels]
    mean, variance = shown.mean((0, 2, 3)).view(1, -1, 1, 1), shown.var((0, 2, 3), correction=0).view(1, -1, 1, 1)
    wanted = (seen[:, plan.kept[0].channels] - mean) / (variance + 1e-5).sqrt()
    expected = (standardized(own) - wanted).square().mean()
    for one in (program, specialize(program, "warm-up-1").train()):
        torch.testing.assert_close(one(batch)["mse[block1]"], expected, atol=1e-5, rtol=1e-4)
    assert {name.rpartition(".")[2] for name in program.trainable_state() if "scale_" in name} == {"mean", "deviation"}
    assert not any("scale_" in name for name, _ in program.named_parameters())


def test_running_on_the_batch_alone_is_standardized() -> None:
    teacher, student = trained(resnet(widths=[8, 16]), 1), convnet(widths=[4, 8])
    plan, program = running(teacher, student)
    measure_taps(program, [{"images": IMAGES}])
    other = build(comparing(plan, "standardized"), teacher, student).train()
    batch = {"images": IMAGES, "labels": LABELS}
    for pair in plan.pairs:
        name = f"mse[{pair.name}]"
        torch.testing.assert_close(program(batch)[name], other(batch)[name], atol=1e-4, rtol=1e-4)
    assert measure_taps(other, [{"images": IMAGES}]) is other  # nothing is measured, and nothing run


def test_running_tells_of_an_image_the_same_whatever_is_beside_it() -> None:
    _, program = running(trained(convnet(widths=[8, 16]), 1), convnet(widths=[4, 8]))
    measure_taps(program, [{"images": MORE}])
    both = [program.outputs({"images": images, "labels": LABELS[: len(images)]}) for images in (IMAGES, IMAGES[:3])]
    one, other = (found.taps["block1"]["teacher"][:3] for found in both)
    torch.testing.assert_close(one, other)


def test_running_is_of_a_teacher_that_stays() -> None:
    teacher, student = convnet(widths=[8, 16]), convnet(widths=[4, 8])
    plan = comparing(compile_plan(teacher, student, Options(input_shape=SHAPE, method="indistill")), "running")
    plan = plan.changed(arms=[plan.arms[0].changed(trains=["student", "teacher"])])
    with pytest.raises(PlanError, match="the teacher is trained"):
        build_arm(plan, "distilled", {"teacher": teacher, "student": student})


def test_released_in_a_residual_teacher_keeps_the_shortcut() -> None:
    """The last convolution of the stage is normalised by the batch; what it is added to stays as it is."""
    teacher, student = trained(resnet(widths=[8, 16], blocks=2), 2), convnet(widths=[4, 8])
    plan = comparing(compile_plan(teacher, student, Options(input_shape=SHAPE, method="indistill")), "released")
    pair = plan.pairs[0]
    assert pair.teacher.path == "layers.layer1.1.relu_1"
    stage = specialize(build(plan, teacher, student), "warm-up-1").train()
    conv, shortcut = taps(copy.deepcopy(teacher), ["layers.layer1.1.conv2", "layers.layer1.0"])
    norm = teacher.get_submodule("layers.layer1.1.bn2")
    assert isinstance(norm, nn.BatchNorm2d)
    branch = nn.functional.batch_norm(conv, None, None, norm.weight, None, training=True) + shortcut
    wanted = nn.functional.adaptive_avg_pool2d(branch.relu()[:, plan.kept[0].channels], 4)
    (own,) = taps(copy.deepcopy(student).train(), ["block1"])
    found = stage({"images": IMAGES, "labels": torch.zeros(6, dtype=torch.long)})["mse[block1]"]
    torch.testing.assert_close(found, (own - wanted).square().mean(), atol=1e-5, rtol=1e-4)


def test_released_needs_a_batch_norm() -> None:
    teacher = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip
    student = convnet(widths=[4, 8])
    plan = comparing(compile_plan(teacher, student, Options(input_shape=SHAPE, method="indistill")), "released")
    with pytest.raises(PairingError, match="no BatchNorm stands right before the teacher's tap"):
        build(plan, teacher, student)


def test_two_comparisons_of_one_pair_in_one_stage() -> None:
    teacher, student = trained(convnet(widths=[8, 16]), 1), convnet(widths=[4, 8])
    plan = compile_plan(teacher, student, Options(input_shape=SHAPE, method="indistill"))
    (arm,) = plan.arms
    one = arm.stages[0]
    ways: tuple[Comparison, ...] = ("raw", "standardized")
    both = one.changed(losses=[one.losses[0].changed(compare=how) for how in ways])
    plan = plan.changed(arms=[arm.changed(stages=[both, *arm.stages[1:]])])
    stage = specialize(build(plan, teacher, student), "warm-up-1").train()
    found = stage({"images": IMAGES, "labels": torch.zeros(6, dtype=torch.long)})
    assert sorted(found) == ["mse[block1]", "mse[block1]#2"]
    assert found["mse[block1]"] != found["mse[block1]#2"]


def test_what_reads_no_pair_compares_none() -> None:
    with pytest.raises(ValueError, match="the loss 'kd' reads no pair"):
        LossTerm(loss="kd", compare="standardized")
    for name in ("mse", "attention", "vid"):
        with pytest.raises(ValueError, match=f"the loss '{name}' needs a pair"):
            LossTerm(loss=name)
    assert LossTerm(loss="pkt").members == ("student", "teacher")  # of two embeddings, of whatever width


def test_weights_decay_with_the_epochs() -> None:
    teacher, student = convnet(widths=[8, 16]).eval(), convnet(widths=[4, 8])
    plan = compile_plan(teacher, student, Options(input_shape=SHAPE, method="kd"))
    (arm,) = plan.arms
    (main,) = arm.stages
    terms = [main.losses[0].changed(weight=2.0), main.losses[1].changed(weight=8.0, decay=0.5)]
    program = build(plan.changed(arms=[arm.changed(stages=[main.changed(losses=terms)])]), teacher, student)
    stage = specialize(program, "main")
    losses = {"cross-entropy": torch.tensor(1.0), "kd": torch.tensor(10.0)}
    assert [float(stage.total(losses, epoch)) for epoch in range(3)] == [82.0, 42.0, 22.0]


def hardly_varying() -> tuple[Plan, nn.Module, nn.Module]:
    """A teacher one of whose channels is constant but for what rounding does to it."""
    plan = compile_plan(convnet(widths=[8, 16]), convnet(widths=[4, 8]), Options(input_shape=SHAPE, method="indistill"))
    teacher = trained(convnet(widths=[8, 16]), 0)
    with torch.no_grad():
        for part in teacher.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight[:] = 1e-3
                part.bias[:] = 500.0
    return plan, teacher, convnet(widths=[4, 8])


def test_rounding_in_a_channel_that_hardly_varies_is_no_change() -> None:
    """Over a deviation of 1e-3 around 500 the folding of BatchNorm is seen, and nothing is wrong."""
    plan, teacher, student = hardly_varying()
    program = build(plan, teacher, student)
    images = example(program, program.meta["input_shape"])
    values = frozen_values(specialize(program, "warm-up-1"), images)
    assert [key.partition(" ")[2] for key in values] == ["teacher.tap, standardized"]
    whole = frozen_values(restricted(program, program.find_stage("warm-up-1")), images)
    (one,), (other,) = values.values(), whole.values()
    assert float((one - other).abs().max()) < 1e-5 * float(one.abs().max())
    assert float((standardized(one) - standardized(other)).abs().max()) > 1e-4 * float(standardized(one).abs().max())


def test_a_scale_that_is_lost_on_the_frozen_side_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, teacher, student = hardly_varying()
    program = build(plan, teacher, student)
    plain = Sinker.run

    def losing(self: Sinker) -> int:
        for node in list(self.program.graph.nodes):
            if node.target is standardized and node.args[0].meta.get("member") != "student":
                node.replace_all_uses_with(node.args[0])
                break
        return plain(self)

    monkeypatch.setattr(Sinker, "run", losing)
    with pytest.raises(PassError, match="changed which losses read from frozen members"):
        specialize(program, "warm-up-1")

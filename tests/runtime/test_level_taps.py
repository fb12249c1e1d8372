"""What is tapped of a cascade's levels: a warm-up before the joint phase, hints while the student is alone."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.build import build_arm, specialize
from fxdistill.compiler.levels import masked_members
from fxdistill.compiler.options import Options
from fxdistill.compiler.pipeline import compile as compile_plan
from fxdistill.data.batches import batches
from fxdistill.data.load import load
from fxdistill.errors import InputError, PlanError
from fxdistill.methods.cascade import Cascade
from fxdistill.models import vgg
from fxdistill.passes.mask import kept_of
from fxdistill.passes.schedule.curriculum import Curriculum
from fxdistill.plan.document import Plan
from fxdistill.runtime.run.hardening import harden_all
from fxdistill.runtime.training.optimizers import make_optimizer
from tests import runs
from tests.passes.test_mask import MODELS
from tests.runs import execute
from tests.runtime.test_cascade import AGAIN, CPU, EVERY_STEP, made, planned, teacher, written
from tests.tiny_models import SHAPE


@runs.once
def warmed() -> Plan:
    return planned(assistants=1, hints_alone=0.5, method="indistill+cascade")


def test_a_warm_up_is_of_all_levels_resolution_by_resolution() -> None:
    net = vgg(widths=[6, 8, 10, "M", 12, 12], hidden=8, in_channels=1, image_size=8).eval()
    options = Options(
        input_shape=(1, 1, 8, 8),
        method="indistill+cascade",
        epochs=20,
        lr=0.05,
        cascade=Cascade(keep=0.4, assistants=1),
    )
    plan = compile_plan(net, None, options)
    first, second, joint = plan.arm("joint").stages
    assert [(s.name, s.epochs, s.optimizer.name, s.optimizer.lr, s.scores) for s in (first, second)] == [
        ("warm-up-1", 3, "adam", 1e-3, None), ("warm-up-2", 4, "adam", 1e-3, None)
    ]  # fmt: skip
    assert (joint.name, joint.optimizer.lr) == ("joint", 0.05)
    for stage, path in ((first, "features.5"), (second, "flatten")):  # not what comes before, or in between
        assert [(t.loss, t.compare, t.student, t.teacher, t.pair) for t in stage.losses] == [
            ("mse", "standardized", level, "teacher", f"{level} warms up, {path}") for level in ("level-0", "level-1")
        ]
    places = {pair.name: (pair.student.path, pair.teacher.path) for pair in plan.pairs}
    assert places["level-0 warms up, features.5"] == ("gate", "features.5")
    assert places["level-1 warms up, flatten"] == ("flatten", "flatten")
    half = compile_plan(net, None, replace(options, curriculum=Curriculum(share=0.5)))
    assert [stage.epochs for stage in half.arm("joint").stages] == [9, 11, 20]


def test_a_warm_up_moves_weights_and_no_mask_and_what_is_masked_learns_nothing_from_its_level() -> None:
    modules = made(warmed())
    program = specialize(build_arm(warmed(), "joint", modules), "warm-up-1").train()
    scores, kept = modules["level-0"].get_parameter("masks.scores"), kept_of(modules["level-0"])
    weight, before = modules["level-0"].get_parameter("features.8.weight"), scores.detach().clone()
    optimizer, found = make_optimizer(program.stages[0], program), []
    for batch in itertools.islice(batches(load("digits").train, 64, seed=0, shuffle=True), 12):
        losses = program(batch)
        own = torch.autograd.grad(losses["mse[level-0 warms up, flatten]"], weight, retain_graph=True)[0]
        assert own[kept[8:] == 0].abs().sum() == 0
        assert bool((own[kept[8:] > 0].abs().sum((1, 2, 3)) > 0).all())
        found.append([float(loss.detach()) for loss in losses.values()])
        optimizer.zero_grad()
        program.total(losses).backward()
        optimizer.step()
    assert torch.equal(scores.detach(), before)
    hidden = float((kept[8:] == 0).float().mean())  # an unlearnt channel that is standardized has a mean square of 1
    assert found[-1][0] < found[0][0]
    assert all(row[0] > hidden * 0.9 for row in found)
    assert found[-1][1] < found[0][1]


def standardized(value: Tensor) -> Tensor:
    over = [dim for dim in range(value.dim()) if dim != 1]
    mean, variance = value.mean(over, keepdim=True), value.var(over, unbiased=False, keepdim=True)
    return (value - mean) / (variance + 1e-5).sqrt()


def test_hints_alone_compare_what_is_left_with_the_same_channels_of_the_teacher() -> None:
    plan = warmed()
    modules = made(plan)
    torch.manual_seed(3)
    modules["level-0"].get_parameter("masks.scores").data.uniform_()
    kept = kept_of(modules["level-0"])
    modules["student"] = small = harden_all(plan, modules)["student"].module
    program = specialize(build_arm(plan, "distilled", modules), "main").train()
    batch = next(iter(batches(load("digits").train, 16)))
    losses = program(batch)
    shown, values = (batch["images"] - load("digits").mean[0]) / load("digits").std[0], dict[str, Tensor]()
    frozen = teacher().eval()
    for name, net in (("small", small.train()), ("teacher", frozen)):
        hooks = [
            net.get_submodule("features.7").register_forward_hook(
                lambda _m, _i, value, name=name: values.update({f"{name}, features.7": value})
            ),
            net.get_submodule("classifier.0").register_forward_pre_hook(
                lambda _m, args, name=name: values.update({f"{name}, flatten": args[0]})
            ),
        ]
        net(shown)
        for hook in hooks:
            hook.remove()
    channels = {
        "features.7": kept[:8].nonzero().flatten(),
        "flatten": kept[8:].repeat_interleave(4).nonzero().flatten(),
    }
    for path, left in channels.items():
        one, other = standardized(values[f"small, {path}"]), standardized(values[f"teacher, {path}"][:, left])
        torch.testing.assert_close(losses[f"mse[student, {path}]"], (one - other).square().mean(), rtol=1e-4, atol=1e-5)
    stage = plan.arm("distilled").stages[0]
    assert {t.weight for t in stage.losses if t.pair} == {0.5}
    under = stage.under(1)
    assert [(t.teacher, t.pair is None) for t in under.losses] == [
        (None, True), ("teacher", True), ("teacher", False), ("teacher", False)
    ]  # fmt: skip
    with pytest.raises(PlanError, match=r"no mask lies behind 'features.7'"):
        build_arm(plan, "distilled", {name: module for name, module in modules.items() if name != "level-0"})


@pytest.mark.parametrize("name", MODELS)
def test_whatever_can_be_masked_can_be_tapped(name: str) -> None:
    torch.manual_seed(0)
    model: Callable[[], nn.Module] = MODELS[name][0]
    net = model().eval()
    options = Cascade(keep=0.5, assistants=1, hints=0.1, hints_alone=0.1)
    plan = compile_plan(net, None, Options(input_shape=SHAPE, method="indistill+cascade", epochs=2, cascade=options))
    modules: dict[str, nn.Module] = {"teacher": net, **masked_members(plan, net)}
    modules["level-0"].get_parameter("masks.scores").data.uniform_()
    modules["student"] = harden_all(plan, modules)["student"].module
    batch = {"images": torch.randn(4, *SHAPE[1:]), "labels": torch.arange(4), "index": torch.arange(4)}
    for arm in plan.arms:
        program = build_arm(plan, arm.name, modules)
        for stage in arm.stages:
            losses = specialize(program, stage.name).train()(batch)
            assert len(losses) == len(stage.losses)
            assert all(bool(loss.isfinite()) for loss in losses.values())


def test_a_run_with_both_goes_on_where_it_stopped(tmp_path: Path) -> None:
    plan = warmed()
    short = [arm.changed(stages=[stage.changed(epochs=1) for stage in arm.stages]) for arm in plan.arms]
    path = written(plan.changed(arms=short), "taps")
    whole = path.parent / "run-taps"
    execute(path, whole, CPU)
    lines = runs.metrics(whole)
    kept = [line["kept"]["level-0"] for line in lines if line["name"] == "joint"]
    layers = plan.members["level-0"].layers  # type: ignore[union-attr]
    assert [line["stage"] for line in lines] == ["warm-up-1", "joint", "main"]
    assert kept[0] == {layer.name: layer.kept for layer in layers}
    assert set(lines[-1]["losses"]) == {"cross-entropy", "kd", "mse[student, features.7]", "mse[student, flatten]"}

    for settings, number in ((EVERY_STEP, 2), (AGAIN, 10)):
        runs.interrupted(path, tmp_path / "run", settings, after=number)
    execute(path, tmp_path / "run", AGAIN)
    assert (tmp_path / "run" / "student.pt").read_bytes() == (whole / "student.pt").read_bytes()


def test_what_is_no_pair_of_a_student_that_is_cut_out_is_refused() -> None:
    told: dict[str, Any] = warmed().model_dump(mode="json")
    pair = next(pair for pair in told["pairs"] if pair["align"] == "kept")
    pair["student"]["member"] = "level-0"
    with pytest.raises(ValueError, match="'kept', and its student is not cut out of another member"):
        Plan.model_validate(told)
    with pytest.raises(InputError, match="the method has no warm-up"):
        planned(assistants=1, curriculum=Curriculum(share=0.5))
    with pytest.raises(InputError, match="'cascade' has no warm-up"):
        planned(assistants=1, method="cascade+indistill")

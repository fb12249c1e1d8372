"""A cascade's plan: what it says is what a run makes of it."""

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.build import build_arm, specialize
from fxdistill.compiler.levels import harden, kept_counts, masked_members
from fxdistill.compiler.options import Options
from fxdistill.compiler.pipeline import compile as compile_plan
from fxdistill.errors import InputError, PlanError
from fxdistill.ir import masks
from fxdistill.methods.cascade import Cascade
from fxdistill.passes.mask import kept_of
from fxdistill.plan.document import Plan, edited
from fxdistill.plan.members import Masked
from fxdistill.plan.schema import DataPlan, Division
from tests import tiny_models
from tests.tiny_models import SHAPE, Body, Classifier, conv_norm


def planned(model: nn.Module, **options: Any) -> Plan:
    return compile_plan(
        model.eval(), None, Options(input_shape=SHAPE, method="cascade", epochs=2, cascade=Cascade(**options))
    )


@functools.cache
def residual() -> nn.Module:
    return tiny_models.residual()


def test_what_the_passes_remark_stands_in_the_plan() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.two(torch.fft.fft2(m.one(m.stem(x))).real)

    layers: dict[str, nn.Module] = {
        name: conv_norm(inputs, 8) for name, inputs in (("stem", 3), ("one", 8), ("two", 8))
    }
    said = planned(Classifier(Body(layers, forward), 8), keep=0.7).diagnostics
    assert any(d.code == "opaque-node" and "'fft_fft2'" in d.why for d in said), said
    assert any(d.code == "not-masked" and d.where == "body.one.0" for d in said)


@pytest.mark.parametrize(
    ("share", "labelled", "told"),
    [(0.1, True, ""), (None, True, "without validation images nobody"), (0.1, False, "without labels nobody")],
)
def test_where_nobody_can_say_that_the_student_is_better_that_is_said(
    share: float | None, labelled: bool, told: str
) -> None:
    val = None if share is None else Division(share=share, seed=0)
    data = DataPlan(spec="x", labelled=labelled, val=val, classes=list("abcde") if labelled else [])
    options = Options(input_shape=SHAPE, method="cascade", cascade=Cascade(keep=0.5, assistants=1), data=data)
    said = [d.why for d in compile_plan(residual().eval(), None, options).diagnostics if d.code == "no-validation"]
    assert len(said) == bool(told)
    assert all(one.startswith(told) for one in said)


@pytest.mark.parametrize(
    ("field", "value", "stale"),
    [("keep", 0.6, True), ("threshold", "layer", True), ("macs", 5, False), ("parameters", 5, False)],
)
def test_costs_go_stale_with_what_a_level_keeps(field: str, value: Any, stale: bool) -> None:
    plan = planned(residual(), keep=0.5, assistants=1)
    assert list(edited(plan)) == []
    members = {**plan.members, "level-0": plan.members["level-0"].changed(**{field: value})}
    assert bool(list(edited(plan.changed(members=members)))) == stale


def test_a_budgets_share_is_as_exact_as_channels_are_many() -> None:
    for count, channels in ((49, 26_560), (26_559, 26_560), (123_457, 400_000)):
        (share,) = Cascade(budget=("macs", 1), assistants=0).shares(count / channels)
        assert round(share * channels) == count
        assert share < 1


def test_a_nested_mask_under_a_budget_lies_inside_of_the_level_above_whatever_it_may_cost() -> None:
    whole = planned(residual(), keep=0.5, assistants=0).members["teacher"]
    plan = planned(residual(), budget=("parameters", whole.parameters // 2), assistants=2, nested=True)
    plan = plan.changed(members={
        name: member.changed(budget={"parameters": whole.parameters - 1}) if name == "level-0" else member
        for name, member in plan.members.items()
    })  # fmt: skip
    levels = masked_members(plan, residual())
    torch.manual_seed(0)
    for name in ("level-0", "level-1"):
        levels[name].get_parameter("masks.scores").data.uniform_()
    below, above = kept_of(levels["level-0"]), kept_of(levels["level-1"])
    assert bool((below <= above).all())
    member = plan.members["level-1"]
    assert isinstance(member, Masked)
    assert int(below.sum()) == int(above.sum()) == sum(kept_counts(levels["level-1"], member).values())


def test_with_a_threshold_a_layer_a_budget_is_the_same_share_of_all_layers() -> None:
    body = nn.Sequential(conv_norm(3, 8), conv_norm(8, 16), conv_norm(16, 32))
    whole = planned(Classifier(body, 32), keep=0.5, assistants=0)
    most = next(one.macs for one in whole.members.values() if isinstance(one, Masked))
    plan = planned(Classifier(body, 32), budget=("macs", most), assistants=2, threshold="layer")
    first, second, last = (plan.members[f"level-{number}"] for number in range(3))
    for member in (first, second):
        assert isinstance(member, Masked)
        assert member.threshold == "layer"
        assert [one.channels for one in member.layers] == [8, 16, 32]
        for one, other in pairwise(member.layers):
            near = 1 / 2 / one.channels + 1 / 2 / other.channels
            assert abs(one.kept / one.channels - other.kept / other.channels) <= near
    assert isinstance(last, Masked)
    assert last.threshold == "global"
    assert isinstance(first, Masked)
    assert first.macs <= most
    levels = masked_members(plan, Classifier(body, 32).eval())
    scores = levels["level-0"].get_parameter("masks.scores")
    scores.data = torch.linspace(2.0, 0.0, 56)  # one layer is better than the other, throughout
    assert kept_counts(levels["level-0"], first) == {one.name: one.kept for one in first.layers}


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("method", "alone"), [("cascade", 0.1), ("cascade", 0.0), ("indistill+cascade", 0.0)])
def test_a_stage_costs_what_its_program_computes(method: str, alone: float, images: int) -> None:
    """Hints of the student alone as much as if all of the teacher's channels were left of it."""
    model = tiny_models.residual().eval()
    cascade = Cascade(keep=0.5, assistants=1, hints=0.1, hints_alone=alone)
    shape = (images, *SHAPE[1:])
    plan = compile_plan(model, None, Options(input_shape=shape, method=method, epochs=2, cascade=cascade))
    levels = masked_members(plan, model)
    (first,) = (one for one in plan.members.values() if isinstance(one, Masked) and one.is_masked)
    models = {"teacher": model, **levels, "student": harden(levels["level-0"], first, input_shape=shape).module}
    whole = plan.given("teacher").macs * images
    for arm in plan.arms:
        program = build_arm(plan, arm.name, models)
        for stage in arm.stages:
            cost = specialize(program, stage.name).macs / whole
            if alone and stage.name == "main":
                assert 2 < cost <= stage.cost < 3
            else:
                assert stage.cost == pytest.approx(cost, abs=1e-4), stage.name
    assert (plan.arms[0].stages[0].cost < 3) == (method != "cascade")


@pytest.mark.parametrize(
    ("options", "masked"),
    [({"keep": 0.5}, False), ({"keep": 0.5, "mask_first": True}, True), ({"budget": ("parameters", 3_000)}, True),
     ({"budget": ("parameters", 3_000), "mask_first": False}, False)],
)  # fmt: skip
def test_the_first_convolution_competes_under_a_budget_or_where_that_is_wanted(
    options: dict[str, Any], masked: bool
) -> None:
    model = Classifier(nn.Sequential(conv_norm(3, 8), conv_norm(8, 16), conv_norm(16, 12)), 12).eval()
    plan = planned(model, **options, assistants=1)
    member = plan.members["level-0"]
    assert isinstance(member, Masked)
    assert ("body.0.0" in [layer.name for layer in member.layers]) == masked
    assert any("the first convolution, which stays whole" in said.why for said in plan.diagnostics) != masked
    level = masked_members(Plan.model_validate_json(plan.to_json()), model)["level-0"]
    scores = level.get_parameter("masks.scores")
    scores.data = torch.linspace(-1.0, 1.0, len(scores))  # what comes first is the worst
    cut = harden(level, member, input_shape=SHAPE)
    assert (cut.module.get_parameter("body.0.0.weight").shape[0] < 8) == masked


@pytest.mark.parametrize("threshold", ["global", "layer"])
@pytest.mark.parametrize("share", [{"keep": 0.8}, {"budget": ("parameters", 3_000)}])
def test_what_is_cut_out_has_multiples_of_a_number_wherever_scores_move(threshold: str, share: dict[str, Any]) -> None:
    model = Classifier(nn.Sequential(conv_norm(3, 8), conv_norm(8, 16), conv_norm(16, 12)), 12).eval()
    plan = planned(model, **share, assistants=2, nested=True, threshold=threshold, round_to=4)
    levels = masked_members(plan, model)
    for seed in range(3):
        torch.manual_seed(seed)
        for name in ("level-0", "level-1"):
            levels[name].get_parameter("masks.scores").data.uniform_()
        member = plan.members["level-0"]
        assert isinstance(member, Masked)
        assert bool((kept_of(levels["level-0"]) <= kept_of(levels["level-1"])).all())
        cut = harden(levels["level-0"], member, input_shape=SHAPE)
        widths = [len(one) for name, one in cut.module.named_parameters() if one.dim() == 4 and "weight" in name]
        assert (widths[0] == 8) or "budget" in share
        assert all(width % 4 == 0 for width in widths)
        assert sum(widths) < 36
        assert cut.parameters <= 3_000 or "keep" in share


@pytest.mark.parametrize("budget", [("params", 3_000), ("latency", 3), ("macs", 0), ("macs", 1.5)])
def test_a_budget_of_something_else_is_refused(budget: Any) -> None:
    with pytest.raises(InputError, match="is no budget"):
        planned(residual(), budget=budget)


def test_where_no_layer_is_wider_than_the_multiple_there_is_nothing_to_remove() -> None:
    with pytest.raises(InputError, match=r"no layer has more than 8 channels .* multiples of 16 nothing can be rem"):
        planned(residual(), keep=0.5, round_to=16)
    with pytest.raises(InputError, match=r"0\.2 of 8 channels is less than 4 in each of 1 layers"):
        planned(residual(), keep=0.2, round_to=4)


@pytest.mark.parametrize("assistants", [0, 2])
def test_centred_gradients_are_those_of_the_level_above(assistants: int) -> None:
    plan = planned(residual(), keep=0.5, assistants=assistants, centred=True)
    masked = [member for member in plan.members.values() if isinstance(member, Masked)]
    assert [member.centred for member in masked] == [True] * max(assistants, 1) + [False] * bool(assistants)
    levels = masked_members(plan, residual())
    riding = {name: [n for n in level.graph.nodes if n.target is masks.ride] for name, level in levels.items()}
    assert {name: [len(node.args) for node in nodes] for name, nodes in riding.items()} == (
        {"level-0": [], "level-1": [3], "level-2": [3]} if assistants else {"level-0": [3]}
    )


def test_a_level_does_not_lie_inside_of_one_with_another_threshold() -> None:
    plan = planned(residual(), keep=0.5, assistants=2, nested=True)
    members = {**plan.members, "level-0": plan.members["level-0"].changed(threshold="layer")}
    with pytest.raises(ValueError, match="cannot lie inside of 'level-1', whose threshold or multiple is another one"):
        plan.changed(members=members)


@pytest.mark.parametrize(("said", "option"), [({"keep": 0.999}, "--keep"), ({"levels": (0.999,)}, "--levels")])
def test_a_share_that_prunes_nothing_is_refused(said: dict[str, Any], option: str) -> None:
    with pytest.raises(InputError, match=r"0\.999 of \d+ channels is all of them") as caught:
        planned(residual(), **said)
    assert caught.value.where == option
    most = float(str(caught.value.hint).split()[1])
    planned(residual(), keep=most)


@pytest.mark.parametrize(
    ("field", "change"),
    [("layers", lambda member: []), ("layers", lambda member: member.layers[::-1]), ("barriers", lambda member: ["0"])],
)
def test_levels_are_of_one_network_whose_layers_are_in_order(field: str, change: Callable[[Masked], Any]) -> None:
    """Counts are read by the position of a layer: others would be told under a wrong name, or end a run."""
    model = Classifier(nn.Sequential(conv_norm(3, 8), conv_norm(8, 6), conv_norm(6, 8)), 8).eval()
    plan = planned(model, keep=0.5, assistants=2)
    edited = {
        name: member.changed(**{field: change(member)}) if isinstance(member, Masked) else member
        for name, member in plan.members.items()
    }
    with pytest.raises(ValueError, match=f"'level-0' and 'level-1' are masked of one network, and differ in {field}"):
        plan.changed(members={**plan.members, "level-1": edited["level-1"]})
    if field == "layers":
        with pytest.raises(PlanError, match="what can be masked is not what was planned"):
            masked_members(plan.changed(members=edited), model)


@pytest.mark.parametrize("last", ["dense", "convolution"])
def test_each_level_has_a_classifier_of_its_own(last: str) -> None:
    """One of 1x1 convolutions, as SqueezeNet has, is a classifier as well; the convolution in front is shared."""
    body = nn.Sequential(conv_norm(3, 8), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.ReLU())
    ends = {"dense": Classifier(body, 5), "convolution": nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten())}
    member = planned(ends[last], keep=0.5, assistants=1).members["level-0"]
    assert isinstance(member, Masked)
    prefix, classifier = ("body", "head") if last == "dense" else ("0", "0.3")
    norms = [f"{prefix}.0.{part}.{what}" for part in (0, 1) for what in ("weight", "bias")]
    assert member.own == [*norms, f"{classifier}.weight", f"{classifier}.bias"]

"""Optimisers: the fused step is the plain one, also after a checkpoint and in any order of memory; rates of steps."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.build import build, specialize
from fxdistill.plan.training import LossTerm, Optimizer, ScoreOptimizer, Stage
from fxdistill.runtime.training.optimizers import make_optimizer, set_rate, take_up
from tests import tiny_models
from tests.tiny_models import awake, planned

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
BATCH = {"images": IMAGES, "labels": torch.arange(6) % 5, "index": torch.arange(6)}
KINDS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, "adam": {}, "adamw": {"weight_decay": 0.1}
}  # fmt: skip


def trained(name: str, *, fused: bool, channels_last: bool, reloaded: bool) -> dict[str, Tensor]:
    """The weights after four steps; in between the optimiser's state may go through what a file makes of it."""
    plan = planned("body", "body", (2, 8, 8, 8), (2, 8, 8, 8))
    program = build(plan, awake(tiny_models.residual()).eval(), awake(tiny_models.residual(), 1))
    program.double()  # where a gradient is 0 but for rounding, Adam makes much of the rounding
    if channels_last:
        program.to(memory_format=torch.channels_last)
    part = specialize(program, "main").train()
    stage = part.stages[0].changed(optimizer=Optimizer.model_validate({"name": name, "lr": 0.05, **KINDS[name]}))
    optimizer = make_optimizer(stage, part, fused=fused)
    assert bool(optimizer.param_groups[0]["fused"]) is fused
    for step in range(4):
        if step == 2 and reloaded:
            state = copy.deepcopy(optimizer.state_dict())
            for kept in state["state"].values():
                kept.update({name: value.contiguous() for name, value in kept.items() if isinstance(value, Tensor)})
            optimizer = make_optimizer(stage, part, fused=fused)
            take_up(optimizer, state, where="here")
        optimizer.zero_grad()
        part.total(part({**BATCH, "images": IMAGES.double()})).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in part.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_fused_step_is_a_plain_one(name: str, channels_last: bool) -> None:
    plain = trained(name, fused=False, channels_last=False, reloaded=False)
    fused = trained(name, fused=True, channels_last=channels_last, reloaded=False)
    for key, value in plain.items():
        torch.testing.assert_close(fused[key], value, rtol=1e-6, atol=1e-6)
    again = trained(name, fused=True, channels_last=channels_last, reloaded=True)
    assert all(torch.equal(again[key], value) for key, value in fused.items())


@pytest.mark.parametrize("name", KINDS)
def test_a_step_leaves_what_lies_between_a_weights_numbers_alone(name: str) -> None:
    plan = planned("body", "body", (2, 8, 8, 8), (2, 8, 8, 8))
    part = specialize(
        build(plan, awake(tiny_models.residual()).eval(), awake(tiny_models.residual(), 1)), "main"
    ).train()
    owner = next(one for one in part.modules() if isinstance(one, nn.Linear) and one.weight.requires_grad)
    whole = torch.cat([owner.weight.detach(), torch.ones_like(owner.weight)], dim=1)
    before = whole.clone()
    owner.weight = nn.Parameter(whole[:, : owner.in_features])
    stage = part.stages[0].changed(optimizer=Optimizer.model_validate({"name": name, "lr": 0.05, **KINDS[name]}))
    optimizer = make_optimizer(stage, part)
    part.total(part(BATCH)).backward()
    optimizer.step()
    changed = whole != before
    assert changed[:, : owner.in_features].all()
    assert not changed[:, owner.in_features :].any()


def rates(epochs: int, steps: int, schedule: str, **numbers: Any) -> list[float]:
    term = LossTerm(loss="cross-entropy")
    spec = Optimizer(name="sgd", lr=2.0, **numbers)
    stage = Stage.model_validate(
        {"name": "main", "epochs": epochs, "losses": [term], "optimizer": spec, "schedule": schedule}
    )
    optimizer, found = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=7.0), []
    for step in range(epochs * steps + 1):  # one beyond the last
        set_rate(optimizer, stage, step, steps)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("schedule", "numbers", "expected"),
    [
        ("constant", {}, [2, 2, 2, 2, 2]),
        ("cosine", {}, [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5, 0]),
        ("cosine", {"floor": 0.5}, [2, 1.5 + 0.5**1.5, 1.5, 1.5 - 0.5**1.5, 1]),
        ("cosine", {"warm_up": 1.0}, [1, 2, 2, 1, 0]),
        ("cosine", {"warm_up": 0.5, "floor": 0.5}, [2, 2, 1.75, 1.25, 1]),
        ("constant", {"warm_up": 1.5}, [2 / 3, 4 / 3, 2, 2, 2]),
        ("step", {"decay_every": 1, "decay": 0.5}, [2, 2, 1, 1, 0.5]),
        ("step", {"decay_every": 1, "decay": 0.5, "warm_up": 0.5}, [2, 2, 1, 1, 0.5]),
        ("step", {"decay_every": 2}, [2, 2, 2, 2, 0.2]),
    ],
)
def test_the_learning_rate_of_every_step(schedule: str, numbers: dict[str, Any], expected: list[float]) -> None:
    """Two epochs of two steps, and where the stage ends."""
    assert rates(2, 2, schedule, **numbers) == pytest.approx(expected)


@pytest.mark.parametrize(("until", "moving"), [(0.07, 7), (0.29, 29), (0.071, 8), (1.0, 100)])
def test_scores_move_in_their_share_of_the_steps(until: float, moving: int) -> None:
    """0.07 of 100 steps are 7.000000000000001 by rounding."""
    term, spec = LossTerm(loss="cross-entropy"), Optimizer(name="sgd", lr=2.0)
    scores = ScoreOptimizer(name="sgd", lr=3.0, until=until)
    stage = Stage(name="main", epochs=10, losses=[term], optimizer=spec, scores=scores)
    optimizer, found = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "rate": 3.0}], lr=7.0), []
    for step in range(100):
        set_rate(optimizer, stage, step, 10)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [3.0] * moving + [0.0] * (100 - moving)

"""A run of the plan of ``tests.by_hand``, recorded step by step, and laid beside the loop written by hand."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fxdistill.files import write_text
from fxdistill.measure import onnx_file
from fxdistill.plan.schema import ModelRef
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Progress
from tests import by_hand
from tests.by_hand import STAGES, Hand, copied, gradients


class _Stopped(BaseException):
    """As somebody's Ctrl-C would."""


@dataclass(frozen=True)
class Step:
    """What a step of training left behind: losses are means over the epoch so far."""

    trial: Trial
    stage: str
    rate: float
    fresh: bool
    losses: dict[str, float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


@dataclass
class Record:
    """A run in full: its steps, the parameters before the first one of each trial, the members, what came out."""

    out: Path
    steps: list[Step] = field(default_factory=list)
    starts: dict[Trial, dict[str, Tensor]] = field(default_factory=dict)
    members: dict[str, nn.Module] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    def of(self, seed: int, stage: str) -> list[Step]:
        return [step for step in self.steps if (step.trial.seed, step.stage) == (seed, stage)]


def run(out: Path, settings: Settings = by_hand.CPU, *, stop: Callable[[Progress], bool] = lambda _: False) -> Record:
    """Execute the plan, with the quicker of the two exporters; a run that is stopped has no result."""
    plan = by_hand.folder() / "plan.json"
    write_text(plan, by_hand.plan().to_json())
    record, load_model = Record(out), preflight.load_model
    last: dict[str, Any] = {}

    def loaded(ref: ModelRef, *arguments: Any, **options: Any) -> nn.Module:
        module = load_model(ref, *arguments, **options)
        record.members.setdefault("student" if ref.path is None else "teacher", module)
        return module

    def weights(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        module = record.members["student"]
        own = {id(p) for p in module.parameters()}
        other = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
        return copied(module.state_dict()) | copied({f"projection{i}": p for i, p in enumerate(other)})

    def before(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        named = dict(record.members["student"].named_parameters())
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found = gradients({name: p for name, p in named.items() if id(p) in held})
        last.update(fresh=not optimizer.state, gradients=found, before=copied(named))

    def after(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        last.update(rate=optimizer.param_groups[0]["lr"], weights=weights(optimizer))

    def progress(trial: Trial, now: Progress, _metrics: dict[str, float]) -> None:
        if now.position.step:
            record.starts.setdefault(trial, last["before"])
            kept = {name: last[name] for name in ("rate", "fresh", "gradients", "weights")}
            record.steps.append(Step(trial, now.stage.name, losses=now.losses, **kept))
        if stop(now):
            raise _Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
        patch.setattr(preflight, "load_model", loaded)
        hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
        try:
            record.result = execute(plan, out, settings, Observer(on_progress=progress))
        except _Stopped:
            pass
        finally:
            for hook in hooks:
                hook.remove()
    return record


@functools.cache
def finished() -> Record:
    return run(by_hand.folder() / "run")


def compare(record: Record, seed: int, arm: str) -> None:
    """Lay every step of a trial beside the loop written by hand.

    Raises:
        AssertionError: The start, a rate, a loss, a gradient or a weight is another.
        ValueError: One of them takes more steps.
    """
    hand = Hand(seed)
    _close(record.starts[Trial(seed, arm)], hand.weights(), 0, "at the start")
    for stage in STAGES[:3] if arm == "distilled" else STAGES[3:]:
        means: dict[str, float] = {}
        pairs = zip(record.of(seed, stage), hand.train(stage), strict=True)
        for count, (found, (rate, losses, grads, weights)) in enumerate(pairs):
            where, nth = f"{stage}, step {count}", count % by_hand.STEPS
            means = {
                name: (means[name] * nth if nth else 0.0) / (nth + 1) + v / (nth + 1) for name, v in losses.items()
            }
            assert found.rate == pytest.approx(rate, rel=1e-9), f"rate in {where}"
            assert found.losses == pytest.approx(means, rel=1e-5), f"losses in {where}"
            assert found.gradients.keys() == grads.keys(), f"gradients in {where}"
            _close(found.gradients, grads, 1e-5, f"gradient in {where}")
            _close(found.weights, weights, 1e-5, f"weights after {where}")


def _close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float, where: str) -> None:
    for name, value in one.items():
        message = functools.partial("{}, {}: {}".format, where, name)
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance, msg=message)

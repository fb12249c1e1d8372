"""Optimisers as a plan has them: one for the weights of a stage, and one beside it for the scores behind masks.

The learning rate of each is set before every step, by the stage's schedule (:func:`set_rate`).

Where torch has one, the **fused** kernel takes the step: 2 to 5 times as quick on a CPU. It reads the memory of weight,
gradient and moments in parallel and does not look at strides. Gradients of autograd have the strides of their weights,
and moments that come from a file are given them. A weight with others' numbers between its own (a view of a larger
tensor) is stepped without it: the kernel would write to these.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxdistill.errors import RunDirError, TrainingError
from fxdistill.ir import masks
from fxdistill.ir.program import Program
from fxdistill.plan.training import ScoreOptimizer, Stage

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop,
}  # fmt: skip
_FUSED = frozenset(("sgd", "adam", "adamw"))
_RATE = "rate"
"""The field of a group whose learning rate is its own: what the schedule is multiplied with."""
_DIGITS = 6
"""Decimals of a number of steps: 0.07 of 100 steps are 7, and not a rounding error more."""


class Together(torch.optim.Optimizer):
    """Several optimisers that are one: their groups side by side, one state, one step."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__(
            [parameter for part in parts for group in part.param_groups for parameter in group["params"]], {}
        )
        self.parts = list(parts)
        self.param_groups = [group for part in parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        """Give every part its groups and the common state."""
        first = 0
        for part in self.parts:
            part.param_groups = self.param_groups[first : first + len(part.param_groups)]
            part.state = self.state
            first += len(part.param_groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no loss comes of it
        """Let every part take its step."""
        if closure is not None:
            closure()
        for part in self.parts:
            part.step()


def make_optimizer(stage: Stage, program: Program, *, fused: bool = True) -> torch.optim.Optimizer:
    """A fresh optimiser over the parameters that the stage's program uses and trains.

    Args:
        stage: The stage.
        program: Its program.
        fused: Whether it may take its steps in a fused kernel; not where losses are scaled, and gradients clipped.

    Raises:
        TrainingError: There are none.
    """
    scores = {id(scored): scored for scored in masks.scores_in(program, program.graph) if scored.requires_grad}
    parameters = [p for p in program.parameters() if p.requires_grad and id(p) not in scores]
    if not parameters:
        raise TrainingError(
            "nothing in this stage can be trained: its losses depend on no parameter that is trained",
            where=f"stage '{stage.name}'", hint="give the stage another loss in the plan",
        )  # fmt: skip
    spec = stage.optimizer
    arguments: dict[str, float] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.name == "sgd":
        arguments |= {"momentum": spec.momentum, "nesterov": spec.nesterov}
    if fused and spec.name in _FUSED and all(map(_fills_its_memory, parameters)):
        arguments |= {"fused": True}
    made = _make(spec.name, parameters, arguments)
    if stage.scores is None or not scores:
        return made
    return Together([made, _for_scores(stage.scores, list(scores.values()))])


def _fills_its_memory(parameter: Tensor) -> bool:
    """Whether a tensor's numbers lie side by side, in any order of its dimensions, with none of others in between."""
    return torch.empty_like(parameter, device="meta").stride() == parameter.stride()


def _for_scores(spec: ScoreOptimizer, scores: list[nn.Parameter]) -> torch.optim.Optimizer:
    made = _make(spec.name, scores, {"lr": spec.lr, "momentum": spec.momentum})
    for group in made.param_groups:
        group[_RATE] = spec.lr
    return made


def _make(name: str, parameters: list[nn.Parameter], arguments: dict[str, float]) -> torch.optim.Optimizer:
    return cast("Callable[..., torch.optim.Optimizer]", _OPTIMIZERS[name])(parameters, **arguments)


def set_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int, steps: int) -> None:
    """Set the learning rate of a step of a stage, at so many steps an epoch.

    It rises in a line, whose first step has a share above zero and whose last one the full rate, and then follows the
    schedule over the steps that are left: constant; half a cosine from the rate to its floor (Loshchilov and Hutter,
    2017); or a factor every few epochs. That of scores is 0 once they stand still.
    """
    spec = stage.optimizer
    rising = round(spec.warm_up * steps)
    if step < rising:
        factor = (step + 1) / rising
    elif stage.schedule == "cosine":
        progress = (step - rising) / (stage.epochs * steps - rising)
        factor = spec.floor + (1 - spec.floor) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        factor = spec.decay ** (step // (steps * spec.decay_every)) if stage.schedule == "step" else 1.0
    moves = stage.scores is not None and step < round(stage.scores.until * stage.epochs * steps, _DIGITS)
    for group in optimizer.param_groups:
        group["lr"] = (group[_RATE] * moves if _RATE in group else spec.lr) * factor


def take_up(optimizer: torch.optim.Optimizer, state: dict[str, object], *, where: str) -> None:
    """Give an optimiser the state that it had.

    Raises:
        RunDirError: It is not one of such an optimiser.
    """
    groups, wanted = _settings(optimizer), _kept(optimizer)
    try:
        optimizer.load_state_dict(state)
        _laid_out(optimizer)
        fits = _settings(optimizer) == groups and all(
            {name: value.shape for name, value in optimizer.state[p].items()}
            in ({}, {name: p.shape if shaped else torch.Size() for name, shaped in kept.items()})
            for group, kept in zip(optimizer.param_groups, wanted, strict=True)
            for p in group["params"]
        )
    except Exception:  # noqa: BLE001  # of a made state, whatever torch makes of it
        fits = False
    if not fits:
        raise RunDirError(
            "the checkpoint is not one of this plan: its optimiser's state is of another one", where=where,
            hint="put the run's own checkpoint back, or run the plan anew elsewhere",
        )  # fmt: skip


def _laid_out(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimiser keeps of a parameter the parameter's order in memory."""
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """What the plan decides of an optimiser; the rate is set anew in every step."""
    return [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def _kept(optimizer: torch.optim.Optimizer) -> list[dict[str, bool]]:
    """What an optimiser keeps of a parameter of each group, by name, and whether it has the parameter's shape."""
    if isinstance(optimizer, Together):
        return [kept for part in optimizer.parts for kept in _kept(part)]
    trial = nn.Parameter(torch.zeros(2))
    trial.grad = torch.zeros(2)
    make = cast("Callable[..., torch.optim.Optimizer]", type(optimizer))
    alike = make([{**optimizer.param_groups[0], "params": [trial]}])
    alike.step()
    found = {name: value.shape == trial.shape for name, value in alike.state[trial].items() if value is not None}
    return [found] * len(optimizer.param_groups)

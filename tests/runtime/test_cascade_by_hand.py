"""The joint phase, step for step, beside a loop in plain torch that shares nothing with the package but the batches."""

import copy
import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxdistill.compiler.build import build_arm, specialize
from fxdistill.compiler.levels import masked_members
from fxdistill.data.batches import Batch, batches
from fxdistill.data.load import load
from fxdistill.methods.cascade import Threshold
from fxdistill.passes.mask import kept_of
from fxdistill.plan.training import ScoreOptimizer
from fxdistill.runtime.training.optimizers import make_optimizer, set_rate
from tests.runtime.test_cascade import planned, teacher

STEPS, SIZES, KEPT = 8, (8, 10), (7, 11, 18)
"""Of the two masked layers, how many channels they have, and the three levels keep of them."""


@dataclass
class Level:
    """A level of the paper's: weights of its own, those that it shares, its scores."""

    net: nn.Sequential
    scores: Tensor
    by_layer: bool = False
    centred: bool = False
    gates: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def mask(self, count: int) -> Tensor:
        """The best of each layer, and then the best of all; or those that stand first in their own layer."""
        order = self.scores.clone()
        if self.by_layer:
            better = [(part[None] > part[:, None]).sum(1) for part in order.split(SIZES)]  # no two are equal here
            order = torch.cat([-(2 * n + 1) / (2 * size) for n, size in zip(better, SIZES, strict=True)])
        for part in order.split(SIZES):
            part[part.argmax()] = math.inf
        return torch.zeros(len(order)).index_fill(0, order.argsort(descending=True, stable=True)[:count], 1.0)

    def forward(self, images: Tensor, count: int) -> Tensor:
        layers, own = self.net.features, self.mask(count).split(SIZES)
        assert isinstance(layers, nn.Sequential)
        self.gates, x = [], images
        x = F.max_pool2d(F.relu(layers[1](layers[0](x))), 2)
        x = self.gate(F.max_pool2d(F.relu(layers[5](layers[4](x))), 2), own[0])
        x = self.gate(F.relu(layers[9](layers[8](x))), own[1]).flatten(1)
        head = self.net.classifier
        assert isinstance(head, nn.Sequential)
        answer: Tensor = head[2](F.relu(head[0](x)))
        return answer

    def gate(self, value: Tensor, mask: Tensor) -> Tensor:
        passed = value * mask.view(-1, 1, 1)
        passed.retain_grad()
        self.gates.append((value.detach(), passed))
        return passed

    def signal(self) -> Tensor:
        """Equation 5: dL/dY times what Y would be unmasked, summed over batch and positions."""
        found = []
        for value, passed in self.gates:
            assert passed.grad is not None
            found.append((passed.grad * value).sum((0, 2, 3)))
            found[-1] -= found[-1].mean() if self.centred else 0.0
        return torch.cat(found)


def by_hand(images: list[Batch], spec: ScoreOptimizer, **options: bool) -> list[Level]:
    """The three levels after so many steps: cross-entropy + 0.4 T² KL at T = 15, losses and gradients summed."""
    frozen, levels = copy.deepcopy(teacher()).eval(), list[Level]()
    norms = [teacher().get_parameter(f"features.{n}.weight").detach().abs().sum((1, 2, 3)) for n in (4, 8)]
    for _ in KEPT:
        net = copy.deepcopy(frozen).train()
        for place in (4, 8):
            net.features[place] = levels[0].net.features[place] if levels else net.features[place]  # type: ignore[index,operator]
        levels.append(Level(net, torch.cat([norm / norm.mean() for norm in norms]), **options))  # type: ignore[arg-type]
    weights = list({id(p): p for level in levels for p in level.net.parameters()}.values())
    moved, squares = [torch.zeros_like(p) for p in weights], [torch.zeros(18) for _ in KEPT]
    for step, batch in enumerate(images):
        falling = (1 + math.cos(math.pi * step / len(images))) / 2
        said = [level.forward(batch["images"], count) for level, count in zip(levels, KEPT, strict=True)]
        with torch.no_grad():
            said.append(frozen(batch["images"]))
        loss = torch.zeros(())
        for one, above in itertools.pairwise(said):
            p, q = (above.detach() / 15).softmax(1), (one / 15).softmax(1)
            loss = loss + F.cross_entropy(one, batch["labels"]) + 0.4 * 225 * (p * (p / q).log()).sum(1).mean()
        for parameter in weights:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for number, parameter in enumerate(weights):
                assert parameter.grad is not None
                gradient = parameter.grad + 4e-4 * parameter
                moved[number] = 0.9 * moved[number] + gradient
                parameter.sub_(0.05 * falling * (gradient + 0.9 * moved[number]))
            for number, (level, above_it) in enumerate(itertools.pairwise(levels)):
                signal = above_it.signal()
                squares[number] = 0.99 * squares[number] + 0.01 * signal.square()
                scale = squares[number].sqrt() + 1e-8 if spec.name == "rmsprop" else 1.0
                if step < spec.until * len(images):
                    level.scores -= spec.lr * falling * signal / scale
    return levels


@pytest.mark.parametrize(("spec", "threshold", "centred"), [
    (ScoreOptimizer(name="sgd", lr=0.3), "global", False),
    (ScoreOptimizer(name="rmsprop", lr=0.001), "global", False),
    (ScoreOptimizer(name="rmsprop", lr=0.001, until=0.4), "global", False),
    (ScoreOptimizer(name="rmsprop", lr=0.001), "layer", False),
    (ScoreOptimizer(name="sgd", lr=0.3), "global", True),
    (ScoreOptimizer(name="rmsprop", lr=0.004), "global", True),
])  # fmt: skip
def test_the_joint_phase_is_the_papers_step_for_step(spec: ScoreOptimizer, threshold: Threshold, centred: bool) -> None:
    plan, digits = planned(threshold=threshold, centred=centred), load("digits")
    images = list(itertools.islice(batches(digits.train, 32, seed=3, shuffle=True), STEPS))
    mean, std = digits.mean[0], digits.std[0]
    levels = by_hand([{**one, "images": (one["images"] - mean) / std} for one in images], spec,
                     by_layer=threshold == "layer", centred=centred)  # fmt: skip
    modules = {"teacher": teacher(), **masked_members(plan, teacher())}
    program = specialize(build_arm(plan, "joint", modules), "joint").train()
    (stage,) = program.stages
    stage = stage.changed(epochs=1, scores=spec)
    optimizer, before = make_optimizer(stage, program), kept_of(modules["level-0"])
    for step, batch in enumerate(images):
        set_rate(optimizer, stage, step, STEPS)
        total = program.total(program(batch))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    for number, (level, count) in enumerate(zip(levels, KEPT, strict=True)):
        module = modules[f"level-{number}"]
        if number < 2:
            scores = module.get_parameter("masks.scores")
            torch.testing.assert_close(scores.detach(), level.scores, rtol=1e-4, atol=1e-5)
            assert kept_of(module).tolist() == level.mask(count).tolist()
        for name, value in level.net.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert kept_of(modules["level-0"]).tolist() != before.tolist(), "no mask moved, so that little was compared"

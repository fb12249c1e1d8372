"""Speed of each stage's program beside a hand-written loop, interleaved step by step in one process.

The hand-written loop is what one writes with care for one's own models: forward hooks on the tapped modules, the
teacher in eval mode without gradients, both models run in full, the same losses, optimiser and batch.

    python benchmarks/stages.py                                # ResNet-34 to ResNet-18, 96 pixels
    python benchmarks/stages.py resnet50 mobilenet_v2 --size 128

Prints, for each stage, the median seconds of a step of both and the ratio of the medians (above 1: the program is
quicker), with the least and the greatest ratio of neighbouring steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision import models

import fxdistill
from fxdistill.plan.schema import Pair, Stage


class HandWritten:
    """A training step as one writes it by hand for one stage."""

    def __init__(self, plan: fxdistill.Plan, stage: Stage, teacher: nn.Module, student: nn.Module) -> None:
        self.teacher, self.student, self.stage = (
            teacher.eval().requires_grad_(requires_grad=False),
            student.train(),
            stage,
        )
        self.optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
        self.seen: dict[str, Tensor] = {}
        wanted = {term.pair for term in stage.losses}
        self.pairs: list[tuple[Pair, list[int]]] = []
        for pair in plan.pairs:
            if pair.name in wanted:
                kept = plan.kept_for(pair.name)
                self.pairs.append((pair, kept.channels if kept is not None else []))
                for role, tap, model in (("t", pair.teacher, teacher), ("s", pair.student, student)):
                    module = model.get_submodule(tap.path.rpartition(".")[0])
                    module.register_forward_hook(self._keep(f"{role} {pair.name}"))

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.seen[name] = output

        return hook

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, loss, backward, step."""
        with torch.no_grad():
            target = self.teacher(images)
        logits = self.student(images)
        total = torch.zeros(())
        for pair, kept in self.pairs:
            one, other = self.seen[f"s {pair.name}"], self.seen[f"t {pair.name}"][:, kept]
            if one.shape[2:] != other.shape[2:]:
                size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
                one, other = F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)
            total = total + F.mse_loss(one, other)
        if not self.pairs:
            soft = F.kl_div(
                F.log_softmax(logits / 4, 1), F.log_softmax(target / 4, 1), reduction="batchmean", log_target=True
            )
            total = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * soft
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


class Staged:
    """The same step with the stage's program."""

    def __init__(self, program: fxdistill.Program, stage: Stage) -> None:
        self.program = fxdistill.specialize(program, stage.name).train()
        self.optimizer = torch.optim.Adam([p for p in self.program.parameters() if p.requires_grad], lr=1e-3)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, loss, backward, step."""
        total = self.program.total(self.program({"images": images, "labels": labels}))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


def seconds(step: Callable[[Tensor, Tensor], None], images: Tensor, labels: Tensor) -> float:
    """The time of one step."""
    start = time.perf_counter()
    step(images, labels)
    return time.perf_counter() - start


def main() -> None:
    """Measure every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["resnet34", "resnet18"], help="teacher and student of torchvision")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=9)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def made() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        return models.get_model(given.names[0], weights=None), models.get_model(given.names[1], weights=None)

    teacher, student = made()
    options = fxdistill.Options(input_shape=(1, 3, given.size, given.size))
    plan = fxdistill.compile(teacher, student, options)
    program = fxdistill.build(plan, teacher, student)
    images, labels = torch.randn(given.batch, 3, given.size, given.size), torch.randint(1000, (given.batch,))
    what = f"{given.size} pixels, batch {given.batch}, one thread, torch {torch.__version__}"
    print(f"{given.names[0]} to {given.names[1]}, {what}")
    for stage in plan.arm("distilled").stages:
        by_hand, ours = HandWritten(plan, stage, *made()), Staged(program, stage)
        times = []
        for turn in range(given.steps + 2):
            pair = seconds(by_hand.step, images, labels), seconds(ours.step, images, labels)
            if turn >= 2:
                times.append(pair)
        hand, own = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = [one / other for one, other in times]
        print(
            f"  {stage.name:<10}  by hand {hand:.3f} s  program {own:.3f} s  {hand / own:.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()

"""Speed of training beside a hand-written loop, interleaved in one process: each stage's step, and a whole recipe.

The hand-written loop is what one writes with care for one's own models: forward hooks on the tapped modules, the
teacher in eval mode without gradients, both models run in full, the same losses, optimiser and batch. The floor is the
student trained alone.

    by hand          as above, with torch's default Adam
    by hand, fused   the same with fused=True, for who knows of it
    program          the stage's program, nothing kept
    kept             its rest, which reads what the frozen half has computed (hashes of pixels compared, as in a run)
    kept, nhwc       the same in channels-last memory
    alone            the student's own cross-entropy: no distillation
    alone, nhwc      the same in channels-last memory

    python -m benchmarks.speed                    # what is not in speed.json yet; then writes speed.md
    python -m benchmarks.speed --only resnet34 --again

Numbers are seconds of processor time on one thread, so that a machine that others use as well can be measured on:
medians of interleaved steps, ratios of these, with the least and the greatest ratio of neighbours. A recipe is three
seeds of the default method in small, each epoch with views of its own; both loops take turns, trial by trial, timed as
a whole; ours lies in memory as a run would choose.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision import models

import fxdistill
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset, Split
from fxdistill.models import convnet, resnet
from fxdistill.passes.divide import Divide
from fxdistill.plan.schema import DataPlan, Pair, Stage
from fxdistill.runtime.course import Position
from fxdistill.runtime.halves import Halves, Looks
from fxdistill.runtime.layouts import chosen, laid_out
from fxdistill.runtime.loop import Loop
from fxdistill.runtime.reuse import Reuse
from fxdistill.runtime.shelf import Memory
from fxdistill.runtime.trials import Trial
from fxdistill.tasks import TASKS

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "speed.json", HERE / "speed.md"
PAIRS: dict[str, tuple[str, str, int, int, int]] = {
    "resnet34 to resnet18": ("resnet34", "resnet18", 96, 16, 256),
    "resnet50 to mobilenet_v2": ("resnet50", "mobilenet_v2", 128, 16, 128),
    "small CIFAR networks": ("small", "small", 32, 128, 1024),
}
"""Teacher and student, pixels, images a batch, images of a recipe."""
AUGMENT, SEEDS = ["flip", "crop:4"], (0, 1, 2)
Step = Callable[[Tensor, Tensor], None]


def made(pair: str) -> tuple[nn.Module, nn.Module]:
    """Teacher and student with the same random weights each time."""
    teacher, student, *_ = PAIRS[pair]
    torch.manual_seed(0)
    if teacher == "small":
        return resnet(blocks=3, in_channels=3), convnet(in_channels=3, image_size=32)
    return models.get_model(teacher, weights=None), models.get_model(student, weights=None)


class HandWritten:
    """A training step as one writes it by hand for one stage."""

    def __init__(
        self, plan: fxdistill.Plan, stage: Stage, teacher: nn.Module, student: nn.Module, *, fused: bool
    ) -> None:
        self.teacher, self.student = teacher.eval().requires_grad_(requires_grad=False), student.train()
        self.optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=fused or None)
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

    def __call__(self, images: Tensor, labels: Tensor) -> None:
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
            one, other = (F.batch_norm(value, None, None, training=True) for value in (one, other))
            total = total + F.mse_loss(one, other)
        if not self.pairs:
            soft = F.kl_div(
                F.log_softmax(logits / 4, 1), F.log_softmax(target / 4, 1), reduction="batchmean", log_target=True
            )
            total = 0.1 * F.cross_entropy(logits, labels) + 0.9 * 16 * soft
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


def alone(student: nn.Module, *, nhwc: bool = False) -> Step:
    """A step of the student without a teacher."""
    student.train().to(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(student(images), labels).backward()
        optimizer.step()

    return step


def ours(plan: fxdistill.Plan, stage: Stage, pair: str, *, kept: bool, nhwc: bool = False) -> Step:
    """A step of the stage's program, or of its rest."""
    program = fxdistill.build(plan, *made(pair))
    if nhwc:
        program.to(memory_format=torch.channels_last)
    part = fxdistill.specialize(program, stage.name).train()
    optimizer = torch.optim.Adam([p for p in part.parameters() if p.requires_grad], lr=1e-3, fused=True)
    chosen = torch.arange(PAIRS[pair][3])
    halves = _filled(part, pair) if kept else None
    forward = part if halves is None else halves.divided.rest.train()

    def step(images: Tensor, labels: Tensor) -> None:
        batch = {"images": images, "labels": labels, "index": chosen}
        batch = batch if halves is None else halves.complete(batch, chosen)
        optimizer.zero_grad()
        part.total(forward(batch)).backward()
        optimizer.step()

    return step


def _filled(part: fxdistill.Program, pair: str) -> Halves:
    """The halves of a stage, all rows computed."""
    looks = Looks(data(pair).train, PAIRS[pair][3], (), None, 0, moves_targets=False, classes=10,
                  device=torch.device("cpu"))  # fmt: skip
    batch = next(looks.batches(0))
    divided = Divide({name: value[:8] for name, value in batch.items()})(part).value
    halves = Halves(divided, looks, Memory(1 << 32), "", frozenset((0,)), Fabric(accelerator="cpu", devices=1))
    halves.tried(batch["images"])
    halves.begin(0, lambda: None)
    return halves


def data(pair: str) -> Dataset:
    """Noise of the pair's size."""
    size, classes = PAIRS[pair][2], 10 if pair.startswith("small") else 1000
    count = PAIRS[pair][4]
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(count) % classes)
    return Dataset(split, split, tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3)


def planned(pair: str) -> fxdistill.Plan:
    """The default plan of a pair for its data, with fewer epochs: one for each warm-up, 8 for the main stage."""
    _, _, size, batch, _ = PAIRS[pair]
    found = data(pair)
    plan = fxdistill.compile(*made(pair), fxdistill.Options(input_shape=(1, 3, size, size)))
    (arm,) = plan.arms
    stages = [*(stage.changed(epochs=1) for stage in arm.stages[:-1]), arm.stages[-1].changed(epochs=8)]
    told = DataPlan(spec=None, batch_size=batch, augmentation=AUGMENT, classes=list(found.classes),
                    train_size=len(found.train))  # fmt: skip
    return plan.changed(arms=[arm.changed(stages=stages)], data=told, seeds=list(SEEDS), control=None)


def measured(contestants: dict[str, Step], batch: dict[str, Tensor], turns: int) -> dict[str, list[float]]:
    """Seconds of each step, the contestants taking turns; the first two turns do not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 2):
        for name, step in contestants.items():
            start = time.process_time()
            step(batch["images"], batch["labels"])
            if turn >= 2:
                times[name].append(time.process_time() - start)
    return times


def steps(pair: str, turns: int, stages: str = "") -> Iterator[tuple[str, dict[str, list[float]]]]:
    """The times of every stage, or of those with a part of the name."""
    plan = planned(pair)
    batch = next(batches(data(pair).train, PAIRS[pair][3]))
    for stage in (one for one in plan.arm("distilled").stages if stages in one.name):
        contestants: dict[str, Step] = {
            "by hand": HandWritten(plan, stage, *made(pair), fused=False),
            "by hand, fused": HandWritten(plan, stage, *made(pair), fused=True),
            "program": ours(plan, stage, pair, kept=False),
            "kept": ours(plan, stage, pair, kept=True),
            "kept, nhwc": ours(plan, stage, pair, kept=True, nhwc=True),
        }
        if all(term.pair is None for term in stage.losses):
            contestants |= {"alone": alone(made(pair)[1]), "alone, nhwc": alone(made(pair)[1], nhwc=True)}
        times = measured(contestants, batch, turns)
        contestants.clear()  # each holds both models
        yield stage.name, times


def recipe(pair: str) -> dict[str, Any]:
    """Seconds of the whole recipe under three seeds, by hand and by us, trial by trial."""
    plan, found = planned(pair), data(pair)
    fabric, task = Fabric(accelerator="cpu", devices=1), TASKS.get("classification")
    reuse = Reuse(plan, task, found.train, fabric, Memory(1 << 32), {})
    taken: dict[str, list[float]] = {"by hand": [], "ours": []}
    said: list[Any] = []
    for seed in SEEDS:
        start = time.process_time()
        teacher, student = made(pair)
        epoch = 0
        for stage in plan.arm("distilled").stages:
            hand = HandWritten(plan, stage, copy.deepcopy(teacher), student, fused=False)
            for _ in range(stage.epochs):
                for batch in batches(
                    found.train, PAIRS[pair][3], seed=seed, epoch=epoch, shuffle=True, augment=AUGMENT
                ):
                    hand(batch["images"], batch["labels"])
                epoch += 1
        taken["by hand"].append(time.process_time() - start)
        start = time.process_time()
        program, trial = fxdistill.build(plan, *made(pair)), Trial(seed, "distilled")
        if seed == SEEDS[0]:
            layout = chosen({"distilled": program}, found, batch_size=plan.data.batch_size, device="cpu")
        if layout.last:
            laid_out(program)
        Loop(
            fabric, program, found, plan.data, task, seed, plan.seed, compiled=False, on_progress=lambda _: None,
            on_save=lambda _: None, halves=partial(reuse.of, trial),
        ).run(Position())  # fmt: skip
        taken["ours"].append(time.process_time() - start)
        said.append(reuse.ended())
    return {**taken, "reuse": said}


def machine() -> dict[str, Any]:
    """What the numbers were made with."""
    return {
        "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine(),
        "threads": torch.get_num_threads(), "shared": True,
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# Speed of training", "", __doc__.split("\n\n    python")[0].strip().partition("\n\n")[2], ""]
    for pair, found in results.items():
        told = found["how"]
        lines += [f"## {pair}", ""]
        where = f"{told['threads']} thread of a shared {told['machine']} machine, torch {told['torch']}"
        lines += [
            f"{PAIRS[pair][2]} px, batch {PAIRS[pair][3]}, {where}; seconds a step, and the ratio to by hand.",
            "",
        ]
        names = list(found["steps"]["main"])
        lines += [f"| stage | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
        for stage, times in found["steps"].items():
            hand = times["by hand"]
            cells = [_cell(times[name], hand) if name in times else "" for name in names]
            lines.append(f"| {stage} | {' | '.join(cells)} |")
        if "recipe" in found:
            one, other = (sum(found["recipe"][name]) for name in ("by hand", "ours"))
            each = [f"{a / b:.2f}" for a, b in zip(found["recipe"]["by hand"], found["recipe"]["ours"], strict=True)]
            said = f"Whole recipe, 3 seeds: by hand {one:.0f} s, ours {other:.0f} s, **{one / other:.2f}x**"
            lines += ["", f"{said} (seed by seed {', '.join(each)})."]
        lines.append("")
    return "\n".join(lines)


def _cell(own: list[float], hand: list[float]) -> str:
    ratios = [a / b for a, b in zip(hand, own, strict=True)]
    ratio = statistics.median(hand) / statistics.median(own)
    return f"{statistics.median(own):.3f}, {ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names of the pairs")
    parser.add_argument("--stages", default="", help="a part of the names of the stages")
    parser.add_argument("--no-recipe", action="store_true", help="measure steps alone")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--again", action="store_true", help="measure what is there as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for pair in PAIRS:
        if given.only not in pair:
            continue
        found = {} if given.again else results.get(pair, {})
        if "steps" not in found:
            found["steps"] = dict(steps(pair, given.turns, given.stages))
            found["how"] = machine()
            results[pair] = found
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        if "recipe" not in found and not given.no_recipe:
            found["recipe"] = recipe(pair)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(table({pair: found}))
    TABLE.write_text(table(results))


if __name__ == "__main__":
    main()

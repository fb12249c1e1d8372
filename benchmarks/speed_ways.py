"""The contestants of :mod:`benchmarks.speed`: the pairs, and each way to take a step of training with one."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision import models

import fxdistill
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset, Split
from fxdistill.ir.running import copied
from fxdistill.models import convnet, resnet
from fxdistill.passes.divide import Divide
from fxdistill.plan.schema import DataPlan, Pair, Precision
from fxdistill.plan.training import Stage
from fxdistill.runtime.training.aside import Aside, collect
from fxdistill.runtime.training.halves import Halves
from fxdistill.runtime.training.looks import Looks
from fxdistill.runtime.training.recording import Recorded
from fxdistill.runtime.training.shelf import Memory

PAIRS: dict[str, tuple[str, str, int, int, int]] = {
    "resnet34 to resnet18": ("resnet34", "resnet18", 96, 16, 256),
    "resnet50 to mobilenet_v2": ("resnet50", "mobilenet_v2", 128, 16, 128),
    "small CIFAR networks": ("small", "small", 32, 128, 1024),
    "ViT-tiny to resnet18": ("vit_tiny_patch16_224", "resnet18", 96, 16, 256),
}
"""Teacher and student, pixels, images a batch, images of a recipe."""
GPU_BATCH, GPU_IMAGES = 128, 50_000
"""Images a batch of all pairs on a GPU, and of a recipe: as many as CIFAR-10 has."""
AUGMENT, SEEDS = ["flip", "crop:4"], (0, 1, 2)


@dataclass(frozen=True)
class Place:
    """Where steps are taken, and in which precision: ``cpu`` or ``cuda``, ``32-true`` or ``bf16-mixed``.

    Attributes:
        aside: The folder in which a run puts the weights aside that no step reads; None where they stay in memory, as
            they do while steps are timed.
    """

    device: str = "cpu"
    precision: Precision = "32-true"
    aside: Path | None = None

    @property
    def fabric(self) -> Fabric:
        """As a run has it."""
        return Fabric(accelerator=self.device, devices=1, precision=self.precision)

    def autocast(self) -> torch.autocast:
        """As one writes it by hand."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision != "32-true")

    def batch_of(self, pair: str) -> int:
        """Images a batch."""
        return PAIRS[pair][3] if self.device == "cpu" else GPU_BATCH


place = Place()
"""That of this process."""
Step = Callable[[Tensor, Tensor], None]


def made(pair: str) -> tuple[nn.Module, nn.Module]:
    """Teacher and student with the same random weights each time, on the device."""
    teacher, student = _made(pair)
    return teacher.to(place.device), student.to(place.device)


def _made(pair: str) -> tuple[nn.Module, nn.Module]:
    teacher, student, *_ = PAIRS[pair]
    torch.manual_seed(0)
    if teacher.startswith("vit"):
        import timm  # noqa: PLC0415  # for this pair alone

        return timm.create_model(teacher, img_size=PAIRS[pair][2]), models.get_model(student, weights=None)
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
        with place.autocast():
            total = self.loss(images, labels)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Both models in full, and what the stage compares."""
        with torch.no_grad():
            target = self.teacher(images)
        logits = self.student(images)
        total = torch.zeros((), device=images.device)
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
        return total


class AsReleased(HandWritten):
    """A warm-up on residual blocks, by what is known of the released code; see the module docstring."""

    def __init__(self, plan: fxdistill.Plan, stage: Stage, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__(plan, stage, teacher, student, fused=False)
        self.blocks: list[tuple[Pair, nn.Conv2d, nn.BatchNorm2d, Tensor]] = []
        for pair, kept in self.pairs:
            block = teacher.get_submodule(pair.teacher.path.rpartition(".")[0])
            block = block[-1] if isinstance(block, nn.Sequential) else block
            number = "3" if hasattr(block, "conv3") else "2"
            conv, norm = block.get_submodule(f"conv{number}"), block.get_submodule(f"bn{number}")
            block.register_forward_pre_hook(lambda _block, given, name=pair.name: self._read(f"i {name}", given))
            conv.register_forward_pre_hook(lambda _conv, given, name=pair.name: self._read(f"c {name}", given))
            self.blocks.append((pair, conv, norm, torch.tensor(kept)))  # type: ignore[arg-type]

    def _read(self, name: str, given: tuple[Tensor, ...]) -> None:
        self.seen[name] = given[0]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Both models in full, and the side branch."""
        del labels
        with torch.no_grad():
            self.teacher(images)
        self.student(images)
        total = torch.zeros((), device=images.device)
        for pair, conv, norm, kept in self.blocks:
            with torch.no_grad():
                maps = F.conv2d(self.seen[f"c {pair.name}"], conv.weight[kept], None, conv.stride, conv.padding)
                maps = F.batch_norm(maps, None, None, norm.weight[kept], training=True)
                target = F.relu(maps + self.seen[f"i {pair.name}"][:, kept])
            total = total + F.mse_loss(self.seen[f"s {pair.name}"], target)
        return total


def by_torchdistill(teacher: nn.Module, student: nn.Module) -> Step:
    """A step of torchdistill's own box: hooks, forward of both, loss, backward, step."""
    from torchdistill.core.distillation import DistillationBox  # noqa: PLC0415  # for this column alone

    paths = {f"{role}_module_{what}": value for role in ("teacher", "student")
             for what, value in (("path", "."), ("io", "output"))}  # fmt: skip
    kd = {"criterion": {"key": "KDLoss", "kwargs": {**paths, "temperature": 4.0, "alpha": 0.1}}, "weight": 1.0}
    config = {
        "num_epochs": 1, "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": kd}}},
        "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
    }  # fmt: skip
    box = DistillationBox(
        teacher, student, {}, config, torch.device(place.device), None, distributed=False, lr_factor=1
    )
    box.teacher_model.eval()
    box.student_model.train()

    def step(images: Tensor, labels: Tensor) -> None:
        with place.autocast():
            found = box.forward_process(images, labels)
        box.post_forward_process(found)

    return step


def alone(student: nn.Module, *, nhwc: bool = False) -> Step:
    """A step of the student without a teacher."""
    student.train().to(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        with place.autocast():
            found = F.cross_entropy(student(images), labels)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()

    return step


def built(plan: fxdistill.Plan, pair: str) -> fxdistill.Program:
    """The pair's program; on a GPU, whose time is dear, a copy of the first one: its memory is not the host's."""
    if place.device == "cpu":
        return fxdistill.build(plan, *made(pair))
    key = pair, place
    if key not in _BUILT:
        _BUILT[key] = fxdistill.build(plan, *_made(pair))
    return copied(_BUILT[key]).to(place.device)


_BUILT: dict[tuple[str, Place], fxdistill.Program] = {}


def ours(
    plan: fxdistill.Plan, stage: Stage, pair: str, *, kept: bool, nhwc: bool = False, compiled: bool = False,
    recorded: bool = False,
) -> Step:  # fmt: skip
    """A step of the stage's program, or of its rest."""
    program = built(plan, pair)
    if nhwc:
        program.to(memory_format=torch.channels_last)
    aside = Aside(place.aside) if place.aside else None
    if aside:  # where a stage begins
        aside.put(parameter for parameter in program.parameters() if not parameter.requires_grad)
        aside.let_go()
        collect(program)
    part = fxdistill.specialize(program, stage.name).train()
    optimizer = torch.optim.Adam([p for p in part.parameters() if p.requires_grad], lr=1e-3, fused=True)
    chosen = torch.arange(place.batch_of(pair))
    halves = _filled(part, pair, aside) if kept else None
    if aside:
        aside.let_go()
    forward: nn.Module = part if halves is None else halves.divided.rest.train()
    forward = cast("nn.Module", torch.compile(forward)) if compiled else forward
    index = chosen.to(place.device)
    if recorded:
        batch = next(batches(data(pair).train, place.batch_of(pair), device=place.device))
        batch = batch if halves is None else halves.complete(batch, chosen)
        forward = Recorded(cast("fxdistill.Program", forward), batch, place.fabric)

    def step(images: Tensor, labels: Tensor) -> None:
        batch = {"images": images, "labels": labels, "index": index}
        batch = batch if halves is None else halves.complete(batch, chosen)
        with place.autocast():
            losses = forward(batch)
        optimizer.zero_grad()
        part.total(losses).backward()
        optimizer.step()

    return step


def _filled(part: fxdistill.Program, pair: str, aside: Aside | None) -> Halves:
    """The halves of a stage, all rows computed."""
    looks = Looks(data(pair).train, place.batch_of(pair), (), None, 0, moves_targets=False, classes=10,
                  device=torch.device(place.device))  # fmt: skip
    batch = next(looks.batches(0))
    divided = Divide({name: value[:8] for name, value in batch.items()})(part).value
    halves = Halves(divided, looks, Memory(1 << 32), "", frozenset((0,)), place.fabric)
    halves.tried(batch["images"])
    if aside and divided.frozen is not None:
        aside.put(divided.frozen.parameters())
        halves.on_read = aside.let_go
    halves.begin(0, lambda: None)
    return halves


def data(pair: str) -> Dataset:
    """Noise of the pair's size."""
    size, classes = PAIRS[pair][2], 10 if pair.startswith("small") else 1000
    count = PAIRS[pair][4] if place.device == "cpu" else GPU_IMAGES if size == 32 else 4 * GPU_BATCH
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(count) % classes)
    return Dataset(split, split, tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3).to(place.device)


def planned(pair: str) -> fxdistill.Plan:
    """The default plan of a pair for its data, with fewer epochs: one for each warm-up, 8 for the main stage."""
    size, batch = PAIRS[pair][2], place.batch_of(pair)
    found = data(pair)
    plan = fxdistill.compile(*_made(pair), fxdistill.Options(input_shape=(1, 3, size, size)))
    (arm,) = plan.arms
    stages = [*(stage.changed(epochs=1) for stage in arm.stages[:-1]), arm.stages[-1].changed(epochs=8)]
    told = DataPlan(spec=None, batch_size=batch, augmentation=AUGMENT, classes=list(found.classes),
                    train_size=len(found.train))  # fmt: skip
    return plan.changed(arms=[arm.changed(stages=stages)], data=told, seeds=list(SEEDS), control=None)


Makers = dict[str, Callable[[], Step]]


def makers(plan: fxdistill.Plan, stage: Stage, pair: str) -> Makers:
    """What makes the contestants of a stage, by name."""
    found: Makers = {
        "by hand": lambda: HandWritten(plan, stage, *made(pair), fused=False),
        "by hand, fused": lambda: HandWritten(plan, stage, *made(pair), fused=True),
        "program": lambda: ours(plan, stage, pair, kept=False),
        "kept": lambda: ours(plan, stage, pair, kept=True),
        "kept, nhwc": lambda: ours(plan, stage, pair, kept=True, nhwc=True),
    }
    if place.device == "cuda":
        found["program, nhwc"] = lambda: ours(plan, stage, pair, kept=False, nhwc=True)
        found["program, recorded"] = lambda: ours(plan, stage, pair, kept=False, recorded=True)
        found["kept, recorded"] = lambda: ours(plan, stage, pair, kept=True, recorded=True)
    if any(term.pair is not None for term in stage.losses):
        return found | (
            {"as released": lambda: AsReleased(plan, stage, *made(pair))} if PAIRS[pair][0].startswith("resnet") else {}
        )
    if importlib.util.find_spec("torchdistill") is not None:
        found["torchdistill"] = lambda: by_torchdistill(*made(pair))
    return found | {"alone": lambda: alone(made(pair)[1]), "alone, nhwc": lambda: alone(made(pair)[1], nhwc=True)}


def compiled_makers(plan: fxdistill.Plan, stage: Stage, pair: str) -> Makers:
    """The two of a stage that are compared in both modes."""

    def by_hand() -> Step:
        hand = HandWritten(plan, stage, *made(pair), fused=True)
        hand.teacher, hand.student = (cast("nn.Module", torch.compile(one)) for one in (hand.teacher, hand.student))
        return hand

    return {
        "by hand": lambda: HandWritten(plan, stage, *made(pair), fused=False), "by hand, compiled": by_hand,
        "program": lambda: ours(plan, stage, pair, kept=False),
        "program, compiled": lambda: ours(plan, stage, pair, kept=False, compiled=True),
        "kept, compiled": lambda: ours(plan, stage, pair, kept=True, compiled=True),
    }  # fmt: skip

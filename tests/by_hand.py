"""A distillation of two small networks on digits, as a plan and again as a loop written by hand in plain torch.

The loop shares with the package the order of the batches and nothing else: it has forward passes, taps, losses,
learning rates and optimisers of its own. What a run of the plan does, step by step, records ``tests.recorded``.
"""

import copy
import functools
import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fxdistill.compiler.build import build_arm
from fxdistill.data.batches import Batch, batches
from fxdistill.data.dataset import Dataset
from fxdistill.data.load import defaults, load
from fxdistill.files import file_sha256
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.plan.document import VERSION, Plan
from fxdistill.plan.schema import ExportPlan, InputSpec, Kept, ModelRef, Pair, Tap
from fxdistill.plan.training import Arm, Control, LossTerm, Optimizer, Stage
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.training.course import Position
from fxdistill.runtime.training.loop import Loop
from fxdistill.tasks import TASKS
from tests import runs

TEACHER: tuple[str, dict[str, Any]] = ("fxdistill.models:resnet", {"widths": [8, 16], "blocks": 1})
STUDENT: tuple[str, dict[str, Any]] = ("tests.by_hand:student", {})
ALLOW = ("tests.by_hand",)
CPU = Settings(device="cpu", allow=ALLOW, force=True)  # a planted fault is told by its steps
SHAPE = (1, 1, 8, 8)
SEEDS = (3, 8)
STAGES = ("warm-up-1", "warm-up-2", "main", "control")
KEPT = [1, 2, 4, 7]  # not the first four
EARLY, LATE = "layers.layer1.0.bn1", "layers.layer2.0.bn1"  # both are overwritten in place by the activation behind
BATCH, STEPS = 256, 5  # steps an epoch
AUGMENTATION, VIEWS, TEMPERATURE = ["crop:1"], 4, 3.0
RISING, EARLY_EMA, CLIP, DECAY, SMOOTHING, EMA = 0.6, 0.7, 0.05, 1e-2, 0.2, 0.8
WEIGHTS = {"late": 0.5, "cross-entropy": 0.9, "kd": 0.1, "early": 0.3}
FADING = 0.5
_TEACHER_EPOCHS = 8


class Student(nn.Module):
    """Two convolutions whose normalised values are tapped, and overwritten in place after that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x).mean((2, 3)))  # type: ignore[no-any-return]


def student() -> nn.Module:
    return Student()


@runs.once
def digits() -> Dataset:
    return load("digits")


@functools.cache
def _holder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="fxdistill-by-hand-")


def folder() -> Path:
    return Path(_holder().name)


# As a plan


@functools.cache
def trained_teacher() -> nn.Module:
    """A small residual network, trained on digits as the package does it; saved as ``teacher.pt``."""
    stage = Stage(
        name="supervised", epochs=_TEACHER_EPOCHS, losses=[LossTerm(loss="cross-entropy", student="teacher")],
        optimizer=Optimizer(name="adam", lr=5e-3), schedule="cosine",
    )  # fmt: skip
    plan = Plan(
        version=VERSION, method="supervised", seed=0, input=InputSpec(shape=list(SHAPE)),
        data=defaults("digits", dataset=digits(), batch_size=64), pairs=[], kept=[], seeds=[0],
        members={"teacher": ModelRef(path=None, sha256=None, factory=None, preprocessing=digits().preprocessing)},
        arms=[Arm(name="supervised", trains=["teacher"], stages=[stage])],
        export=ExportPlan(member="teacher", arm="supervised"),
    )  # fmt: skip
    teacher = build(*TEACHER, seed=0)
    program = build_arm(plan, "supervised", {"teacher": teacher})
    fabric = Fabric(accelerator="cpu", devices=1)
    task = TASKS.get("classification")
    Loop(fabric, program, digits(), plan.data, task, 0, 0, False, lambda _: None, lambda _: None).run(Position())
    save(teacher.eval(), folder() / "teacher.pt", factory=TEACHER[0], kwargs=TEACHER[1], input_shape=SHAPE)
    return teacher


def plan() -> Plan:
    """Two warm-ups, a main stage with three weighted terms, the control arm; every optimiser and what goes with one."""
    adam = Optimizer(name="adam", lr=4e-3)
    late = LossTerm(loss="mse", pair="late", compare="standardized", weight=WEIGHTS["late"])
    sgd = Optimizer(name="sgd", lr=0.1, momentum=0.8, nesterov=True, weight_decay=DECAY, clip=CLIP)
    kd = LossTerm(loss="kd", weight=WEIGHTS["kd"], args={"temperature": TEMPERATURE})
    early = LossTerm(loss="mse", pair="early")
    entropy = LossTerm(loss="cross-entropy", weight=WEIGHTS["cross-entropy"], args={"label_smoothing": SMOOTHING})
    stages = [
        Stage(name="warm-up-1", epochs=2, losses=[early],
              optimizer=adam.changed(warm_up=RISING, ema=EARLY_EMA, restart=True)),
        Stage(name="warm-up-2", epochs=1, losses=[late], optimizer=sgd),
        Stage(name="main", epochs=3, losses=[entropy, kd, early.changed(weight=WEIGHTS["early"], decay=FADING)],
              optimizer=adam.changed(ema=EMA), schedule="cosine"),
    ]  # fmt: skip
    trained_teacher()
    return Plan(
        version=VERSION, method="indistill", seed=SEEDS[0], input=InputSpec(shape=list(SHAPE)),
        data=defaults("digits", dataset=digits(), batch_size=BATCH).changed(augmentation=AUGMENTATION, views=VIEWS),
        members={
            "teacher": ModelRef(path="teacher.pt", sha256=file_sha256(folder() / "teacher.pt"), factory=TEACHER[0],
                                kwargs=TEACHER[1], preprocessing=digits().preprocessing),
            "student": ModelRef(path=None, sha256=None, factory=STUDENT[0], kwargs=STUDENT[1],
                                preprocessing=digits().preprocessing),
        },
        pairs=[_pair("early", EARLY, 8, "bn1", 4, 8, "slice"), _pair("late", LATE, 16, "bn2", 8, 4, "project")],
        kept=[Kept(pair="early", path=EARLY, channels=KEPT, width=8, criterion="l1", coupled=[])],
        arms=[Arm(name="distilled", trains=["student"], stages=stages)], seeds=list(SEEDS),
        control=Control(of="distilled", losses=[LossTerm(loss="cross-entropy")], schedule="cosine",
                        optimizer=Optimizer(name="adamw", lr=3e-3, weight_decay=0.1)),
    )  # fmt: skip


def _pair(name: str, path: str, width: int, own: str, own_width: int, size: int, align: Any) -> Pair:
    teacher, student_ = (
        Tap(member=member, path=where, shape=[1, channels, size, size], channel_dim=1, width=channels, layout="nchw")
        for member, where, channels in (("teacher", path, width), ("student", own, own_width))
    )
    return Pair(name=name, teacher=teacher, student=student_, score=1.0, runner_up=None, why=[], align=align)


# By hand


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def gradients(named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return copied({name: p.grad for name, p in named.items() if p.grad is not None})


def teacher_values(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two taps and the logits of the teacher in eval mode."""
    teacher, taps = copy.deepcopy(trained_teacher()).eval(), []
    for path in (EARLY, LATE):
        teacher.get_submodule(path).register_forward_hook(lambda _m, _i, value: taps.append(value.clone()))
    with torch.no_grad():
        logits = teacher(images)
    return taps[0], taps[1], logits


def standardized(value: Tensor) -> Tensor:
    """Each channel less its mean, over its standard deviation, over batch and positions."""
    mean, variance = value.mean((0, 2, 3), keepdim=True), value.var((0, 2, 3), unbiased=False, keepdim=True)
    return (value - mean) / (variance + 1e-5).sqrt()


def smoothed(labels: Tensor) -> Tensor:
    """Rows of shares: most of each on its label, the rest spread over all classes."""
    if labels.is_floating_point():  # mixed
        return (1 - SMOOTHING) * labels + SMOOTHING / 10
    rows = torch.full((len(labels), 10), SMOOTHING / 10)
    rows[torch.arange(len(labels)), labels] += 1 - SMOOTHING
    return rows


def shortened(parameters: list[nn.Parameter]) -> None:
    """Gradients of one length at most, all together; here they are longer."""
    given = [p.grad for p in parameters if p.grad is not None]
    length = torch.cat([grad.flatten() for grad in given]).norm()
    assert length > CLIP
    for grad in given:
        grad.mul_(CLIP / (length + 1e-6))  # as torch guards against a length of 0


class Hand:
    """The student of one seed, trained by hand, stage after stage."""

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch = seed, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student = Student()
            torch.manual_seed(seed)
            self.projection = nn.Linear(8, 16, bias=False)

    def warm_up_1(self, batch: Batch) -> dict[str, Tensor]:
        s = self.student
        value, wanted = s.bn1(s.conv1(batch["images"])), teacher_values(batch["images"])[0]
        return {"mse[early]": (value - wanted[:, KEPT]).square().mean()}

    def warm_up_2(self, batch: Batch) -> dict[str, Tensor]:
        s = self.student
        value = s.bn2(s.conv2(s.bn1(s.conv1(batch["images"])).relu()))
        projected = torch.einsum("nchw,dc->ndhw", value, self.projection.weight)
        wanted = teacher_values(batch["images"])[1]
        return {"mse[late]": (standardized(projected) - standardized(wanted)).square().mean()}

    def main(self, batch: Batch) -> dict[str, Tensor]:
        s, labels = self.student, batch["labels"]
        early = s.bn1(s.conv1(batch["images"]))
        logits = s.fc(s.drop(s.bn2(s.conv2(early.relu())).relu()).mean((2, 3)))
        wanted, _, taught = teacher_values(batch["images"])
        p, q = (taught / TEMPERATURE).softmax(1), (logits / TEMPERATURE).softmax(1)
        return {
            "cross-entropy": ((logits.logsumexp(1, keepdim=True) - logits) * smoothed(labels)).sum(1).mean(),
            "kd": TEMPERATURE**2 * (p * (p / q).log()).sum(1).mean(),
            "mse[early]": (early - wanted[:, KEPT]).square().mean(),
        }

    def control(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.student(batch["images"])
        return {"cross-entropy": nn.functional.cross_entropy(logits, batch["labels"])}

    def train(self, stage: str) -> Iterator[tuple[float, dict[str, float], dict[str, Tensor], dict[str, Tensor]]]:
        """Rate, losses, gradients and weights of each step of a stage."""
        student, adam = list(self.student.parameters()), torch.optim.Adam
        losses, weights, epochs, rate, cosine, optimizer = {
            "warm-up-1": (self.warm_up_1, [1.0], 2, 4e-3, False, adam(student)),
            "warm-up-2": (self.warm_up_2, [WEIGHTS["late"]], 1, 0.1, False,
                          torch.optim.SGD([*student, *self.projection.parameters()], lr=0.1, momentum=0.8,
                                          nesterov=True, weight_decay=DECAY)),
            "main": (self.main, [WEIGHTS[name] for name in ("cross-entropy", "kd", "early")], 3, 4e-3, True,
                     adam(student)),
            "control": (self.control, [1.0], 6, 3e-3, True, torch.optim.AdamW(student, weight_decay=0.1)),
        }[stage]  # fmt: skip
        self.student.train()
        done, steps, rising = 0, epochs * STEPS, 3 if stage == "warm-up-1" else 0
        share = {"warm-up-1": EARLY_EMA, "main": EMA}.get(stage, 0.0)
        mean = copied(self.student.state_dict())
        for epoch in range(epochs):
            if stage == "warm-up-1":  # moments of the epoch before are forgotten
                optimizer = adam(student)
            faded = [w * (FADING**epoch if number == 2 else 1) for number, w in enumerate(weights)]
            for step, batch in enumerate(training_batches(self.seed, self.epoch)):
                now = rate * (1 + math.cos(math.pi * done / steps)) / 2 if cosine else rate
                now = rate * [1 / 3, 2 / 3, 1][done] if done < rising else now
                optimizer.param_groups[0]["lr"] = now
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(step_seed(self.seed, self.epoch, step))
                    found = losses(batch)
                self.student.zero_grad()
                self.projection.zero_grad()
                sum((w * loss for w, loss in zip(faded, found.values(), strict=True)), torch.zeros(())).backward()
                if stage == "warm-up-2":
                    shortened([*student, *self.projection.parameters()])
                optimizer.step()
                mean = averaged(mean, self.student.state_dict(), share)
                done += 1
                told = {name: float(loss.detach()) for name, loss in found.items()}
                yield now, told, gradients(dict(self.student.named_parameters())), self.weights()
            self.epoch += 1
        self.student.load_state_dict(mean)

    def weights(self) -> dict[str, Tensor]:
        return copied(self.student.state_dict()) | copied({"projection0": self.projection.weight})


def averaged(mean: Mapping[str, Tensor], now: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """A running mean after a step; counters are as they are."""
    return {n: share * mean[n] + (1 - share) * t if t.is_floating_point() else t.clone() for n, t in now.items()}


def training_batches(seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch, normalised by hand."""
    train, mean, std = digits().train, digits().mean[0], digits().std[0]
    plain: dict[str, Any] = {"shuffle": True, "augment": AUGMENTATION, "augment_seed": SEEDS[0], "classes": 10}
    for batch in batches(train, BATCH, seed=seed, epoch=epoch, views=VIEWS, **plain):
        yield {**batch, "images": (batch["images"] - mean) / std}


def step_seed(seed: int, epoch: int, step: int) -> int:
    """What dropout is drawn under: a function of the place, the same in a run that was stopped and resumed."""
    return int.from_bytes(hashlib.sha256(f"step {seed},{epoch},{step}".encode()).digest()[:8], "little") >> 1


def accuracy(module: nn.Module) -> float:
    """On the test images, normalised by hand."""
    data = digits()
    images = torch.cat(list(data.test.read([torch.arange(len(data.test))])))
    with torch.no_grad():
        found = copy.deepcopy(module).eval()((images - data.mean[0]) / data.std[0]).argmax(1)
    return float((found == data.test.labels).float().mean())

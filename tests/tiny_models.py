"""Tiny models: one for each thing that a graph can do to a pass. They read (N, 3, 8, 8) and answer with 5 classes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.inception import InceptionOutputs
from torchvision.ops import stochastic_depth

from fxdistill.plan.document import Plan
from fxdistill.plan.schema import Align, DataPlan, InputSpec, Kept, ModelRef, Pair, Tap
from fxdistill.plan.training import Arm, Control, LossTerm, Optimizer, Stage

SHAPE = (2, 3, 8, 8)
CLASSES = 5


class Classifier(nn.Module):
    """A ``body`` with a head; the body's output is what tests tap."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def conv_norm(inputs: int, outputs: int, *, groups: int = 1, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Body(nn.Module):
    """A named body from a function of its layers and the input."""

    def __init__(self, layers: dict[str, nn.Module], forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self._forward(self, x)
        return value


def plain(width: int = 8) -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(3, width), conv_norm(width, width)), width)


def residual(width: int = 8) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        out: Tensor = m.second(F.relu(m.first(x), inplace=True))
        out += x
        return F.relu(out, inplace=True)

    layers = {"stem": conv_norm(3, width), "first": nn.Conv2d(width, width, 3, padding=1, bias=False),
              "second": nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))}  # fmt: skip
    return Classifier(Body(layers, forward), width)


def dense(width: int = 8) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        one = m.one(x)
        two = m.two(one)
        return m.pool(torch.cat([one, two], 1))

    layers = {
        "one": conv_norm(3, width // 2),
        "two": conv_norm(width // 2, width - width // 2),
        "pool": nn.MaxPool2d(2),
    }
    return Classifier(Body(layers, forward), width)


def depthwise(width: int = 8) -> nn.Module:
    body = nn.Sequential(conv_norm(3, width), conv_norm(width, width, groups=width, padding_mode="reflect"))
    return Classifier(body, width)


def excited(width: int = 8) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        scale: Tensor = m.gate(F.adaptive_avg_pool2d(x, 1))
        return x * scale

    gate = nn.Sequential(nn.Conv2d(width, 2, 1), nn.ReLU(), nn.Conv2d(2, width, 1), nn.Sigmoid())
    return Classifier(Body({"stem": conv_norm(3, width), "gate": gate}, forward), width)


def shared(width: int = 8) -> nn.Module:
    """One convolution, called twice."""

    def forward(m: Any, x: Tensor) -> Any:
        return m.again(F.relu(m.again(m.stem(x))))

    layers = {"stem": conv_norm(3, width), "again": nn.Conv2d(width, width, 3, padding=1)}
    return Classifier(Body(layers, forward), width)


def overwriting_input(width: int = 8) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        x -= 0.5
        return m.conv(x.relu_())

    return Classifier(Body({"conv": conv_norm(3, width)}, forward), width)


def overwriting_a_view(width: int = 8) -> nn.Module:
    """What ``conv`` made is overwritten through a view, and through a layer that gives back what it got."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.conv(x)
        same = m.identity(x)
        same.view(x.shape[0], -1).mul_(2)
        return F.relu(x)

    return Classifier(Body({"conv": nn.Conv2d(3, width, 3, padding=1), "identity": nn.Identity()}, forward), width)


def ignoring_a_result(width: int = 8) -> nn.Module:
    """An in-place activation whose result nobody takes: it counts all the same."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.conv(x)
        m.relu(x)
        return m.last(x)

    layers = {
        "conv": nn.Conv2d(3, width, 3, padding=1),
        "relu": nn.ReLU(inplace=True),
        "last": nn.Conv2d(width, width, 1),
    }
    return Classifier(Body(layers, forward), width)


def random_layers(width: int = 8) -> nn.Module:
    """Dropout as a layer and as a function, and stochastic depth."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.drop(m.conv(x))
        x = F.dropout(x, 0.3, m.training)
        return x + stochastic_depth(x, 0.5, "row", m.training)

    return Classifier(Body({"conv": conv_norm(3, width), "drop": nn.Dropout(0.5)}, forward), width)


class Steered(nn.Module):
    """Control flow on data inside: only as a leaf or by export."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != 8:
            raise ValueError(x.shape)
        x = torch.dropout(F.relu(self.norm(self.conv(x))), 0.25, self.training)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Counting(nn.Module):
    """A buffer that every call changes, in eval mode too."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Auxiliary(nn.Module):
    """A named pair of outputs in training mode, one tensor in eval mode; and a dict where asked for."""

    def __init__(self, *, as_dict: bool = False) -> None:
        super().__init__()
        self.conv, self.main, self.aux = conv_norm(3, 8), nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        self.as_dict = as_dict

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x).mean((2, 3))
        if self.as_dict:
            return {"aux": self.aux(x), "out": self.main(x)}
        return InceptionOutputs(self.main(x), self.aux(x)) if self.training else self.main(x)


BODIES: dict[str, Callable[[int], nn.Module]] = {
    "plain": plain, "residual": residual, "dense": dense, "depthwise": depthwise, "excited": excited, "shared": shared,
    "overwriting_input": overwriting_input, "overwriting_a_view": overwriting_a_view,
    "ignoring_a_result": ignoring_a_result, "random_layers": random_layers,
}  # fmt: skip
"""Models whose node ``body`` has 8 channels by default."""


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with statistics and affine parameters as after training, not as at the start."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                with torch.no_grad():
                    tensor.copy_(noise + 0.5 if isinstance(part, nn.BatchNorm2d) else noise - 0.5)
    return module


def planned(teacher: str, student: str, teacher_shape: tuple[int, ...], student_shape: tuple[int, ...], *,
            kept: list[int] | None = None, align: Align = "slice") -> Plan:  # fmt: skip
    """A plan with one pair of NCHW taps, named ``pair``, a warm-up stage on it and a main stage."""
    taps = [
        Tap(member=member, path=path, shape=list(shape), channel_dim=1, width=shape[1], layout="nchw")
        for member, path, shape in (("teacher", teacher, teacher_shape), ("student", student, student_shape))
    ]
    channels = kept if kept is not None else list(range(student_shape[1]))
    adam, none = Optimizer(name="adam", lr=1e-3), ModelRef(path=None, sha256=None, factory=None)
    main = [LossTerm(loss="cross-entropy", weight=0.1), LossTerm(loss="kd", weight=0.9)]
    stages = [Stage(name="warm-up-1", epochs=1, losses=[LossTerm(loss="mse", pair="pair")], optimizer=adam),
              Stage(name="main", epochs=1, losses=main, optimizer=adam)]  # fmt: skip
    return Plan(
        version=3, method="indistill", seed=0, members={"teacher": none, "student": none},
        input=InputSpec(shape=list(SHAPE)), data=DataPlan(spec=None), seeds=[0],
        pairs=[Pair(name="pair", teacher=taps[0], student=taps[1], score=1.0, runner_up=None, why=[], align=align)],
        kept=[] if align == "project" else [
            Kept(pair="pair", path=teacher, channels=channels, width=teacher_shape[1], criterion="l1", coupled=[])
        ],
        arms=[Arm(name="distilled", trains=["student"], stages=stages)],
        control=Control(of="distilled", losses=main[:1], optimizer=adam, schedule="constant"),
    )  # fmt: skip


def restaged(plan: Plan, *stages: Stage, **update: Any) -> Plan:
    """The plan with other stages in its arm, and other fields."""
    return plan.changed(arms=[plan.arms[0].changed(stages=list(stages))], **update)


def with_losses(plan: Plan, *losses: LossTerm, name: str = "main", **update: Any) -> Plan:
    """The plan with one stage of these losses in its arm, and other fields."""
    return restaged(plan, plan.arms[0].stages[-1].changed(name=name, losses=list(losses)), **update)

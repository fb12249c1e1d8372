"""Trace: one model has one vocabulary of paths, whatever the mode and the rung."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

import fxdistill
from fxdistill import models
from fxdistill.errors import PairingError
from fxdistill.ir.graph import Traced, find, op_name, path_of, shape_of
from fxdistill.passes.couple import Couple
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Rung
from tests import tiny_models
from tests.tiny_models import BODIES, SHAPE, Classifier


def both(module: nn.Module, shape: tuple[int, ...] = SHAPE, **options: Any) -> tuple[Traced, Traced]:
    return Trace(shape, **options)(module).value, Trace(shape, training=True, **options)(module).value


def paths(traced: Traced) -> list[str]:
    return [path_of(node) for node in traced.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]


def assert_every_tap_is_in_both(module: nn.Module, shape: tuple[int, ...]) -> Traced:
    evaluated, trained = both(module, shape)
    taps = [c.tap for stage in Survey(evaluated, Couple()(evaluated).value).stages for c in stage]
    assert taps
    for tap in taps:
        there, here = find(evaluated, tap.path), find(trained, tap.path)
        assert shape_of(here) == tuple(tap.shape), tap.path
        assert op_name(here, trained.module) == op_name(there, evaluated.module), tap.path
    return trained


@pytest.mark.parametrize("name", BODIES)
def test_taps_of_tiny_models(name: str) -> None:
    assert_every_tap_is_in_both(BODIES[name](8), SHAPE)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"])
def test_taps_of_torchvision(name: str) -> None:
    assert_every_tap_is_in_both(torchvision.models.get_model(name, weights=None, num_classes=5), (1, 3, 64, 64))


def test_taps_beside_auxiliary_heads() -> None:
    module = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True, num_classes=7)
    trained = assert_every_tap_is_in_both(module, (1, 3, 96, 96))
    assert shape_of(trained.output) == (1, 7)
    assert path_of(trained.output) == "fc"
    assert any("aux" in path.lower() for path in paths(trained))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "lcnet_050", "convnext_atto", "regnetx_002"])
def test_taps_of_timm(name: str) -> None:
    assert_every_tap_is_in_both(timm.create_model(name, num_classes=5), (1, 3, 64, 64))


def test_taps_of_a_vision_transformer_of_torchvision() -> None:
    module = torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, dropout=0.1, num_classes=5)
    assert_every_tap_is_in_both(module, (1, 3, 32, 32))


def test_taps_of_a_vision_transformer_of_timm() -> None:
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, drop_path_rate=0.1)
    assert_every_tap_is_in_both(module, (1, 3, 32, 32))


def test_norms_that_count_their_batches_trace_alike_in_both_modes() -> None:
    module = timm.create_model("lcnet_050", num_classes=5)
    evaluated, trained = both(module, (2, 3, 32, 32))
    assert (evaluated.rung, trained.rung) == ("symbolic", "symbolic")
    assert set(paths(evaluated)) < set(paths(trained))
    with trained.running() as graph:
        graph(torch.randn(2, 3, 32, 32))
    assert module.get_buffer("blocks.0.0.bn1.num_batches_tracked") == 1


def test_they_can_be_students() -> None:
    torch.manual_seed(0)
    teacher = models.resnet(widths=[8, 16, 32, 64], blocks=1, classes=5, in_channels=3)
    student = timm.create_model("mobilenetv3_small_050", num_classes=5)
    plan = fxdistill.compile(teacher, student, fxdistill.Options(input_shape=(1, 3, 64, 64)))
    program = fxdistill.build(plan, teacher, student)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 4])
    stages = plan.arm("distilled").stages
    main, warm_up = stages[-1].name, stages[0].name
    assert warm_up != main
    last = [name for name, part in student.named_modules() if isinstance(part, BatchNormAct2d)][-1]
    counts = {}
    for stage in (warm_up, main):
        student.zero_grad()
        part = fxdistill.specialize(program, stage)
        part.train()
        loss = part.total(part({"images": images, "labels": labels}))
        loss.backward()
        assert loss.isfinite()
        counts[stage] = sum(bool(p.grad is not None and p.grad.any()) for p in student.parameters())
    assert 0 < counts[warm_up] < counts[main] == len(list(student.parameters()))
    assert student.get_buffer("bn1.num_batches_tracked") == 2  # near the input: both stages compute it
    assert student.get_buffer(f"{last}.num_batches_tracked") == 1  # the main stage alone


class Extra(nn.Module):
    """Training runs one more branch, of the same shape, between two calls of relu."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        extra = F.relu(self.aux(x)) if self.training else x
        logits = self.head(F.relu(self.b(x)).mean((2, 3)))
        return (logits, extra.mean()) if self.training else logits


def test_a_branch_of_the_training_mode_shifts_no_path() -> None:
    evaluated, trained = both(Extra())
    assert paths(evaluated) == ["a", "relu", "b", "relu_1", "mean", "head"]
    assert paths(trained) == ["a", "relu", "aux", "relu_2", "b", "relu_1", "mean", "head", "mean_1"]
    assert find(trained, "relu_1").args == (find(trained, "b"),)


class Noisy(nn.Module):
    """Training multiplies by noise before it multiplies by a learned gate."""

    def __init__(self, *, traceable: bool = True) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.gate, self.traceable = nn.Parameter(torch.ones(8, 1, 1)), traceable

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if self.training and self.traceable:
            x = x * torch.rand_like(x)
        if self.training and not self.traceable:  # a size that symbolic tracing does not know
            x = x * torch.rand(x.shape[0], 1, 1, 1)
        return F.relu(x * self.gate)


@pytest.mark.parametrize(("traceable", "rung"), [(True, "symbolic"), (False, "export")])
def test_what_an_operation_reads_tells_it_from_another(traceable: bool, rung: Rung) -> None:
    evaluated, trained = both(Classifier(Noisy(traceable=traceable), 8))
    assert (evaluated.rung, trained.rung) == ("symbolic", rung)
    assert paths(evaluated) == ["body.conv", "body.norm", "body.mul", "body.relu", "mean", "head"]
    assert set(paths(evaluated)) < set(paths(trained))
    gates = [str(n.target) for n in find(trained, "body.mul").all_input_nodes if n.op == "get_attr"]
    assert gates == ["body.gate"]


def test_a_module_of_many_nodes_there_and_of_one_here() -> None:
    """A norm that averages its statistics over all batches traces as a leaf when it trains."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), BatchNormAct2d(8), nn.Linear(8, 5)
            self.bn.momentum = None

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.bn(self.conv(x)).mean((2, 3)))
            return logits

    module = Net()
    evaluated, trained = both(module)
    assert (evaluated.rung, trained.rung) == ("symbolic", "leaves")
    assert {"bn.batch_norm", "bn.act"} < set(paths(evaluated))
    assert paths(trained) == ["conv", "bn.act", "mean", "head"]
    assert find(trained, "bn") is find(trained, "bn.act")
    with pytest.raises(PairingError, match=r"the path 'bn\.batch_norm' in training mode"):
        find(trained, "bn.batch_norm")


class Sized(nn.Module):
    """Eval mode traces symbolically, training mode does not: it asks for as many numbers as there are images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (torch.rand(x.shape[0], 1, 1, 1) < 2)
        logits: Tensor = self.net(x)
        return logits


def tokens() -> nn.Module:
    """An encoder, one node of a symbolic graph and many of an exported one."""
    encoder = nn.TransformerEncoderLayer(36, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), encoder, nn.Flatten(), nn.Linear(4 * 36, 5))


@pytest.mark.parametrize("name", ["plain", "residual", "shared", "excited", "tokens"])
def test_exported_training_graphs_take_the_paths_of_a_symbolic_one(name: str) -> None:
    evaluated, trained = both(Sized(tokens() if name == "tokens" else BODIES[name](8)))
    assert (evaluated.rung, trained.rung) == ("symbolic", "export")
    for path in paths(evaluated):
        assert shape_of(find(trained, path)) == shape_of(find(evaluated, path)), path
    assert name == "tokens" or set(paths(evaluated)) <= set(paths(trained))


def test_a_model_that_only_trains_has_paths_of_its_own() -> None:
    class TrainsOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("no")
            return F.relu(self.conv(x)).mean((2, 3))

    traced = Trace(SHAPE, training=True)(TrainsOnly()).value
    assert paths(traced) == ["conv", "relu", "mean"]


def test_a_tap_that_training_does_not_have_is_refused_with_the_plan() -> None:
    class Deploying(nn.Module):
        """Another path in each mode, as of models that merge their branches to predict."""

        def __init__(self) -> None:
            super().__init__()
            self.short, self.long = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.long(x)) if self.training else torch.tanh(self.short(x))

    teacher, student = tiny_models.plain(), Classifier(nn.Sequential(Deploying(), nn.Conv2d(8, 8, 1)), 8)
    options = fxdistill.Options(input_shape=SHAPE, pins=(("body.0", "body.0.tanh"),))
    with pytest.raises(
        PairingError, match=r"no node or module has the path 'body\.0\.tanh' in training mode"
    ) as caught:
        fxdistill.compile(teacher, student, options)
    assert caught.value.exit_code == 2


def test_training_mode_is_traced_as_eval_mode_was_where_both_ways_serve() -> None:
    class Asking(nn.Module):
        """Control flow on data, in eval mode alone."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training and x.shape[2] != 8:
                raise ValueError(x.shape)
            return F.relu(self.conv(x)).mean((2, 3))

    evaluated, trained = both(Asking())
    assert (evaluated.rung, trained.rung) == ("export", "export")
    assert paths(trained) == paths(evaluated)

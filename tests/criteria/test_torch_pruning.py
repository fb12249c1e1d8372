"""The criteria ``tp.*``: Torch-Pruning's measures over our couplings, against the same over its own groups."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from fxdistill.criteria import CRITERIA, importance
from fxdistill.errors import InputError
from fxdistill.ir.channels import Channels, Examples
from fxdistill.passes.couple import Couple
from fxdistill.passes.trace import Trace

IMAGE = (2, 3, 32, 32)


def randomised(net: nn.Module) -> nn.Module:
    """No two channels alike, scales of norms included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.5 * torch.rand(parameter.shape, generator=generator))
    return net.eval()


def resnet() -> Any:
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


def mobilenet() -> Any:
    return models.MobileNetV2(num_classes=5, inverted_residual_setting=[[1, 8, 1, 1], [4, 12, 2, 2], [4, 16, 2, 2]])


def vgg() -> Any:
    features = models.vgg.make_layers([8, "M", 12, "M", 16], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 20), nn.ReLU(),
                         nn.Linear(20, 5))  # fmt: skip


def densenet() -> Any:
    return models.DenseNet(8, (2, 2), 16, num_classes=5)


def batch_of(count: int = 4) -> Examples:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, *IMAGE[1:], generator=generator), torch.arange(count) % 5


def channels_of(net: nn.Module, batch: Examples | None = None, seed: int = 0) -> Channels:
    traced = Trace((2, *batch[0].shape[1:]) if batch is not None else IMAGE)(net).value
    return Channels(traced, Couple()(traced).value, batch=batch, seed=seed)


def theirs(net: nn.Module, measure: Any) -> Iterator[tuple[str, Tensor]]:
    """What a measure gives for each group of its own graph, by the layer that the group begins with."""
    graph = torch_pruning.DependencyGraph().build_dependency(net, torch.randn(IMAGE))
    names = {module: name for name, module in net.named_modules()}
    for group in graph.get_all_groups():
        scores = measure(group)
        if scores is not None:
            yield names[group[0].dep.target.module], scores


def compare(net: nn.Module, criterion: str, measure: Any, *, groups: int, batch: Examples | None = None) -> None:
    """Ours and theirs for each group; both divide by the mean of a group, so that nothing is left to normalise."""
    channels = channels_of(net, batch)
    ours, found = importance(criterion, channels), dict(theirs(net, measure))
    for layer, expected in found.items():
        classes = channels.coupling.parameter_labels(f"{layer}.weight")[0].flatten(1)[:, 0]
        assert torch.allclose(ours[classes], expected.double(), rtol=1e-4, atol=1e-6), layer
    assert len(found) == groups


MODELS: list[tuple[Callable[[], nn.Module], int]] = [(resnet, 9), (mobilenet, 10), (vgg, 5), (densenet, 11)]
MEASURES = {
    "tp.magnitude": torch_pruning.importance.MagnitudeImportance, "tp.lamp": torch_pruning.importance.LAMPImportance,
    "tp.fpgm": torch_pruning.importance.FPGMImportance, "tp.bn-scale": torch_pruning.importance.BNScaleImportance,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("criterion", MEASURES)
@pytest.mark.parametrize(("build", "groups"), MODELS)
def test_weights_are_measured_as_by_torch_pruning_itself(
    build: Callable[[], nn.Module], groups: int, criterion: str
) -> None:
    torch.manual_seed(0)
    without_norm = {resnet: 1, mobilenet: 1, vgg: 2, densenet: 1}[build] if criterion == "tp.bn-scale" else 0
    compare(randomised(build()), criterion, MEASURES[criterion](), groups=groups - without_norm)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("build", "groups"), MODELS)
def test_gradients_are_measured_as_by_torch_pruning_itself(build: Callable[[], nn.Module], groups: int) -> None:
    torch.manual_seed(0)
    net, batch = randomised(build()), batch_of()
    torch.autograd.backward(F.cross_entropy(net(batch[0]), batch[1]))
    compare(net, "tp.taylor", torch_pruning.importance.TaylorImportance(), groups=groups, batch=batch)
    squares = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for image, target in zip(*batch, strict=True):
        net.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(image[None]), target[None]))
        for name, p in net.named_parameters():
            assert p.grad is not None
            squares[name] += p.grad**2 / len(batch[0])
    for name, p in net.named_parameters():
        p.grad = squares[name]
    compare(net, "tp.hessian", torch_pruning.importance.HessianImportance(), groups=groups, batch=batch)


@pytest.mark.filterwarnings("ignore")
def test_one_image_is_what_torch_pruning_accumulates_itself() -> None:
    torch.manual_seed(0)
    net, batch, measure = randomised(resnet()), batch_of(1), torch_pruning.importance.HessianImportance()
    torch.autograd.backward(F.cross_entropy(net(batch[0]), batch[1]))
    measure.accumulate_grad(net)
    compare(net, "tp.hessian", measure, groups=9, batch=batch)


@pytest.mark.filterwarnings("ignore")
def test_the_fisher_diagonal_is_the_one_that_torch_pruning_collects_with_hooks() -> None:
    torch.manual_seed(0)
    net, batch = randomised(resnet()), batch_of()
    measure = torch_pruning.importance.OBDCImportance(num_classes=5)  # it cannot measure the last layer, for its bias
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            measure.modules.append(module)
            module.register_forward_pre_hook(measure._save_input)
            module.register_full_backward_hook(measure._save_grad_output)
    torch.autograd.backward(F.cross_entropy(net(batch[0]), batch[1]))
    measure.step()
    compare(net, "tp.obdc", measure, groups=8, batch=batch)


NAMES = [name for name in CRITERIA.names() if name.startswith("tp.")]


def test_all_measures_are_there() -> None:
    assert NAMES == [
        "tp.bn-scale", "tp.fpgm", "tp.hessian", "tp.lamp", "tp.magnitude", "tp.obdc", "tp.random", "tp.taylor"
    ]  # fmt: skip
    assert {name for name in NAMES if CRITERIA.get(name).needs_batch} == {"tp.hessian", "tp.obdc", "tp.taylor"}


class Odd(nn.Module):
    """What Torch-Pruning has no layer for, or another form of: bare weights, groups, halves of one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.groups_up = nn.ConvTranspose2d(6, 9, 2, stride=2, groups=3)
        self.depth = nn.Conv2d(9, 18, 3, groups=9)
        self.weight, self.scale = nn.Parameter(torch.randn(10, 18)), nn.Parameter(torch.randn(10))
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.turned, self.gates, self.head = nn.Parameter(torch.randn(10, 7)), nn.Linear(7, 16), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.grouped(F.relu(self.norm(self.stem(x))))
        x = F.relu(self.depth(self.groups_up(self.up(x)))).mean((2, 3))
        x = torch.relu(F.linear(x, self.weight) * self.scale) @ self.turned
        gates, values = self.gates(x).chunk(2, 1)
        return self.head(torch.sigmoid(gates) * values)


SMALL = (torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 4, 2]))


@pytest.mark.parametrize("criterion", NAMES)
def test_every_measure_reads_every_kind_of_weight(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the groups are to come from our couplings")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", refused)
    monkeypatch.setattr(torch_pruning.DependencyGraph, "get_pruning_group", refused)
    channels, state = channels_of(Odd().eval(), SMALL), torch.get_rng_state()
    scores = importance(criterion, channels)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("stem", "grouped", "up", "groups_up", "gates"):
        labels = channels.coupling.parameter_labels(f"{name}.weight")
        dim = 1 if "up" in name.split("_") else 0
        found = scores[labels[dim].unique()]
        measured = criterion != "tp.bn-scale" or name == "stem"
        assert bool((found > 0).all()) == measured, name
        assert len(found.unique()) > 1 or not measured, name
    assert all(p.grad is None for p in channels.traced.module.parameters())


def squares(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    return weight.detach().square().sum(dims).double()


def test_magnitudes_by_hand() -> None:
    net = Odd().eval()
    channels = channels_of(net, SMALL)
    scores, labels = importance("tp.magnitude", channels), channels.coupling.parameter_labels

    def same(classes: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(scores[classes], expected / expected.mean(), rtol=1e-5, atol=1e-6)

    # a grouped convolution reads channel i of its group with all filters of that group
    read = net.grouped.weight.unflatten(0, (4, 3))
    expected = squares(net.stem.weight, (1, 2, 3)) + squares(net.norm.weight[:, None], (1,))
    same(labels("stem.weight")[0][:, 0, 0, 0], expected + squares(read, (1, 3, 4)).flatten())
    same(
        labels("grouped.weight")[0][:, 0, 0, 0],
        squares(net.grouped.weight, (1, 2, 3)) + squares(net.up.weight, (1, 2, 3)),
    )
    # a bare weight counts as a linear layer, whichever way it is turned; the layer scale does not count
    same(labels("weight")[0][:, 0], squares(net.weight, (1,)) + squares(net.turned, (1,)))
    same(labels("turned")[1][0], squares(net.turned, (0,)) + squares(net.gates.weight, (0,)))
    # both halves of the gates
    halves = squares(net.gates.weight.unflatten(0, (2, 8)), (0, 2))
    same(labels("gates.weight")[0][:8, 0], halves + squares(net.head.weight, (0,)))
    # inputs of a group of a transposed convolution; of its outputs a depthwise one makes two each, and does not count
    same(
        labels("up.weight")[1][0, :, 0, 0], squares(net.up.weight, (0, 2, 3)) + squares(net.groups_up.weight, (1, 2, 3))
    )
    produced = squares(net.groups_up.weight.unflatten(0, (3, 2)), (1, 3, 4)).flatten()
    classes = labels("groups_up.weight")[1].unflatten(0, (3, 2))[:, 0, :, 0, 0].flatten()
    same(classes, produced + squares(net.weight.unflatten(1, (9, 2)), (0, 2)))


def test_where_all_are_alike_nothing_is_said() -> None:
    net = Odd().eval()
    with torch.no_grad():
        for parameter in (net.stem.weight, net.norm.weight, net.grouped.weight):
            parameter.zero_()
    channels = channels_of(net, SMALL)
    classes = channels.coupling.parameter_labels("stem.weight")[0].unique()
    for criterion in ("tp.magnitude", "tp.lamp", "tp.fpgm", "tp.hessian", "tp.obdc"):
        assert not importance(criterion, channels)[classes].any(), criterion


@pytest.mark.parametrize(
    ("criterion", "value"),
    [
        ("tp.fpgm", torch.nan), ("tp.magnitude", torch.nan), ("tp.taylor", torch.inf), ("tp.hessian", torch.inf),
        ("tp.fpgm", 1e25),  # its square is infinite in float32
    ],
)  # fmt: skip
def test_weights_that_are_no_numbers_are_refused_and_not_taken_for_zeros(criterion: str, value: float) -> None:
    net = Odd().eval()
    with torch.no_grad():
        net.stem.weight[1] = value
    with pytest.raises(InputError, match="gives importances that are not numbers"):
        importance(criterion, channels_of(net, SMALL))


def test_the_random_measure_is_seeded() -> None:
    net = Odd().eval()
    one, same, other = (importance("tp.random", channels_of(net, SMALL, seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_small_gradients_do_not_vanish() -> None:
    """Squares of 1e-25 are below what float32 holds, and tell the channels apart all the same."""
    channels = channels_of(Odd().eval(), SMALL)
    tiny = replace(channels, loss=lambda prediction, targets: 1e-25 * F.cross_entropy(prediction, targets))
    expected, found = (importance("tp.hessian", one) for one in (channels, tiny))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_measure_of_what_the_model_does_not_have_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 5)).eval()
    with pytest.raises(InputError, match=r"'tp\.bn-scale' says nothing about any channel of this model"):
        importance("tp.bn-scale", channels_of(net, SMALL))


@pytest.mark.parametrize("criterion", ["tp.hessian", "tp.obdc", "tp.taylor"])
def test_gradients_need_data(criterion: str) -> None:
    with pytest.raises(InputError, match=rf"the criterion '{criterion}' needs"):
        importance(criterion, channels_of(resnet().eval()))

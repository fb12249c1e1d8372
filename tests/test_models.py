"""The package's own networks: the published sizes, traceable, and clear about arguments that cannot work."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from fxdistill import models

CIFAR: dict[str, Any] = {"in_channels": 3, "image_size": 32, "padding": 0}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_networks_of_the_paper_have_the_published_sizes() -> None:
    assert parameters(models.convnet(widths=[16, 32, 64], hidden=128, **CIFAR)) == 57_994
    assert parameters(models.convnet(widths=[8, 16, 32], hidden=64, **CIFAR)) == 15_050
    assert parameters(models.preact_resnet18()) == 11_171_274


def test_the_students_features_have_the_published_sizes() -> None:
    student = models.convnet(**CIFAR)
    x, sizes = torch.zeros(1, 3, 32, 32), []
    for name, block in student.named_children():
        x = block(x)
        if name.startswith("block"):
            sizes.append(x.numel())
    assert sizes == [1800, 576, 128]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (models.convnet(), (2, 1, 8, 8)),
        (models.convnet(**CIFAR, classes=7), (2, 3, 32, 32)),
        (models.resnet(), (2, 1, 8, 8)),
        (models.resnet(widths=[8, 8, 16], blocks=[1, 2, 1], in_channels=3, classes=7), (2, 3, 17, 17)),
        (models.preact_resnet18(classes=7), (2, 3, 32, 32)),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_every_network_is_traced_whole_and_exactly(module: nn.Module, shape: tuple[int, ...], training: bool) -> None:
    module.train(training)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    traced = fx.symbolic_trace(module)
    assert torch.equal(traced(x), module(x))
    assert module(x).shape[0] == 2
    called = {type(traced.get_submodule(str(n.target))) for n in traced.graph.nodes if n.op == "call_module"}
    assert all(kind.__module__.startswith("torch.nn") for kind in called), "a module of ours stayed opaque"


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        (models.convnet, {"padding": 0}, "used up after 2 of 3"),
        (models.convnet, {"widths": []}, "at least one"),
        (models.convnet, {"widths": 8}, "list of numbers"),
        (models.resnet, {"widths": "8"}, "list of numbers"),
        (models.resnet, {"blocks": [1, 2]}, "3 widths"),
        (models.resnet, {"blocks": 0}, "at least one block"),
    ],
)
def test_arguments_that_cannot_work_are_named(factory: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factory(**kwargs)

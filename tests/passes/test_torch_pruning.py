"""Coupling beside Torch-Pruning's dependency graph, on a model of each torchvision family that it can follow."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning
from torch import nn

from fxdistill.ir.coupling import Coupling
from fxdistill.passes.couple import Couple
from fxdistill.passes.shrink import Shrink, ShrinkSource
from fxdistill.passes.thin.kept import removed_of
from fxdistill.passes.trace import Trace

IMAGE = (1, 3, 32, 32)
Groups = dict[tuple[str, str], set[int]]
"""The indices that a group takes from each (module, side)."""


def resnet() -> Any:
    from torchvision import models  # noqa: PLC0415

    return models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5)


def vgg() -> nn.Module:
    from torchvision import models  # noqa: PLC0415

    features = models.vgg.make_layers([8, "M", 12, "M", 16], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(784, 20), nn.ReLU(),
                         nn.Linear(20, 5))  # fmt: skip


def mobilenet() -> Any:
    from torchvision import models  # noqa: PLC0415

    block = models.mobilenetv3.InvertedResidualConfig
    blocks = [
        block(16, 3, 16, 16, use_se=True, activation="RE", stride=2, dilation=1, width_mult=1),
        block(16, 5, 40, 24, use_se=False, activation="HS", stride=2, dilation=1, width_mult=1),
        block(24, 5, 40, 24, use_se=True, activation="HS", stride=1, dilation=1, width_mult=1),
    ]
    return models.MobileNetV3(blocks, 64, num_classes=5)


def densenet() -> Any:
    from torchvision import models  # noqa: PLC0415

    return models.DenseNet(8, (2, 2), 16, num_classes=5)


def vit() -> Any:
    from torchvision import models  # noqa: PLC0415

    return models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=5)


def theirs(net: nn.Module, graph: torch_pruning.DependencyGraph, layer: str, index: int) -> Groups:
    module = net.get_submodule(layer)
    prune = (
        torch_pruning.prune_conv_out_channels
        if isinstance(module, nn.Conv2d)
        else torch_pruning.prune_linear_out_channels
    )
    names = {id(m): name for name, m in net.named_modules()}
    found: Groups = {}
    for dependency, indices in graph.get_pruning_group(module, prune, [index]):
        target = dependency.target.module
        if id(target) in names:
            one_sided = isinstance(target, nn.BatchNorm2d | nn.LayerNorm) or getattr(target, "groups", 1) > 1
            outputs = one_sided or graph.is_out_channel_pruning_fn(dependency.handler)
            found.setdefault((names[id(target)], "out" if outputs else "in"), set()).update(indices)
    return found


def ours(coupling: Coupling, layer: str, index: int) -> Groups:
    class_id = int(coupling.parameter_labels(f"{layer}.weight")[0].flatten(1)[index, 0])
    found: Groups = {}
    for member in coupling.slices(class_id):
        if member.parameter.endswith("weight"):
            side = "in" if member.kind == "in" else "out"
            found.setdefault((member.path, side), set()).update(member.indices)
    return found


def producers(net: nn.Module) -> list[str]:
    """Layers whose outputs are their own to remove: a depthwise convolution's are its inputs'."""
    kinds = (nn.Conv2d, nn.Linear)
    return [
        name
        for name, m in net.named_modules()
        if isinstance(m, kinds) and getattr(m, "groups", 1) == 1 and "self_attention" not in name
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [resnet, vgg, mobilenet, densenet])
def test_groups_agree_on_every_layer(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = build().eval()
    graph = torch_pruning.DependencyGraph().build_dependency(net, torch.randn(IMAGE))
    coupling = Couple()(Trace(IMAGE)(net).value).value
    layers = producers(net)
    assert len(layers) >= 5
    for layer in layers:
        for index in (1, net.get_parameter(f"{layer}.weight").shape[0] - 1):
            assert ours(coupling, layer, index) == theirs(net, graph, layer, index), (layer, index)


@pytest.mark.filterwarnings("ignore")
def test_groups_agree_on_a_vit_but_for_its_attention() -> None:
    """Torch-Pruning takes an attention for one layer of one width: with channel i of the residual stream go the
    queries, keys and values i, though nothing couples these. Here they stay, and the proof shows that they may.
    """
    torch.manual_seed(0)
    net = vit().eval()
    graph = torch_pruning.DependencyGraph().build_dependency(net, torch.randn(IMAGE))
    traced = Trace(IMAGE, rungs=("export",))(net).value
    coupling = Couple()(traced).value
    for layer in producers(net):
        one, other = ours(coupling, layer, 1), theirs(net, graph, layer, 1)
        plain = [{key: found for key, found in groups.items() if "attention" not in key[0]} for groups in (one, other)]
        assert plain[0] == plain[1], layer
        if any("attention" in path for path, _ in one):
            assert {path for path, _ in one} - {path for path, _ in other} == {
                f"encoder.layers.encoder_layer_{i}.self_attention.out_proj" for i in (0, 1)
            }
    kept = [i for i in range(16) if i != 1]
    removed = removed_of(coupling, {"conv_proj.weight": kept})
    small = Shrink()(ShrinkSource(traced, coupling, removed)).value.module
    for index in (0, 1):
        block = f"encoder.layers.encoder_layer_{index}.self_attention"
        assert small.get_parameter(f"{block}.in_proj_weight").shape == (48, 15)
        assert small.get_parameter(f"{block}.out_proj.weight").shape == (15, 16)

"""Match: the pairs that a practitioner would choose, on real architectures of different families."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill import models
from fxdistill.coupling import Coupling
from fxdistill.errors import PairingError
from fxdistill.graph import Traced, find, path_of
from fxdistill.passbase import PassResult
from fxdistill.passes.couple import Couple
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.trace import Trace
from fxdistill.plan import Pair

Prepared = tuple[Traced, Coupling]


def prepare(module: nn.Module, shape: tuple[int, ...]) -> Prepared:
    traced = Trace(input_shape=shape)(module.eval()).value
    return traced, Couple()(traced).value


def small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=224, patch_size=16, num_layers=6, num_heads=6, hidden_dim=384, mlp_dim=1536)


@functools.cache
def torchvision_model(name: str, batch: int = 1) -> Prepared:
    import torchvision

    torch.manual_seed(0)
    if name == "small_vit":
        module = small_vit()
    else:
        slow_to_initialise = ("vgg", "inception", "googlenet")
        kwargs: dict[str, Any] = {"init_weights": False} if name.startswith(slow_to_initialise) else {}
        module = getattr(torchvision.models, name)(**kwargs)
    return prepare(module, (batch, 3, 224, 224))


def match(teacher: Prepared, student: Prepared, **options: Any) -> PassResult[tuple[Pair, ...]]:
    return Match(**options)(MatchSource(teacher[0], student[0], teacher[1], student[1]))


def paths(result: PassResult[tuple[Pair, ...]]) -> list[tuple[str, str]]:
    return [(pair.teacher.path, pair.student.path) for pair in result.value]


# What a person would choose, written down before the matcher existed. A module's path stands for its output. The common
# ground is that of feature pyramids: the output of the last block at strides 4, 8, 16 and 32, one pair a resolution.
BY_HAND: dict[tuple[str, str], list[tuple[str, str]]] = {
    # the textbook case: stage with stage
    ("resnet50", "resnet18"): [(f"layer{i}", f"layer{i}") for i in (1, 2, 3, 4)],
    # MobileNetV2 by its narrow bottlenecks, the last one at each resolution (24, 32, 96 and 320 channels); features.18
    # is a 1x1 convolution that only widens for the classifier, the head and not a block
    ("resnet50", "mobilenet_v2"): [
        ("layer1", "features.3"), ("layer2", "features.6"), ("layer3", "features.13"), ("layer4", "features.17"),
    ],
    # VGG has no blocks: relu3_3, relu4_3, relu5_3, the names of the perceptual-loss literature; only pool5 is as small
    # as layer4
    ("vgg16_bn", "resnet18"): [
        ("features.22", "layer1"), ("features.32", "layer2"), ("features.42", "layer3"), ("features.43", "layer4"),
    ],
    # whole dense blocks, before the transition halves channels and resolution
    ("densenet121", "resnet18"): [(f"features.denseblock{i}", f"layer{i}") for i in (1, 2, 3, 4)],
    # EfficientNet's stages 2, 3, 5 and 7 end strides 4 to 32 (24, 40, 112, 320); features.8 and features.12 are heads
    ("efficientnet_b0", "mobilenet_v3_small"): [
        ("features.2", "features.1"), ("features.3", "features.3"), ("features.5", "features.8"),
        ("features.7", "features.11"),
    ],
    # ShuffleNet has nothing but a stem at stride 4, so RegNet's first stage stays alone; conv5 is a head
    ("regnet_y_1_6gf", "shufflenet_v2_x0_5"): [
        ("trunk_output.block2", "stage2"), ("trunk_output.block3", "stage3"), ("trunk_output.block4", "stage4"),
    ],
    # ConvNeXt's stages are the odd features; the even ones are downsampling layers
    ("convnext_tiny", "resnet18"): [(f"features.{2 * i - 1}", f"layer{i}") for i in (1, 2, 3, 4)],
    # as ConvNeXt, channels last
    ("swin_t", "mobilenet_v2"): [
        ("features.1", "features.3"), ("features.3", "features.6"), ("features.5", "features.13"),
        ("features.7", "features.17"),
    ],
    # one resolution: four layers spread over the student's six, each with the teacher's layer at the same share of depth
    ("vit_b_16", "small_vit"): [
        (f"encoder.layers.encoder_layer_{2 * i + 1}", f"encoder.layers.encoder_layer_{i}") for i in (1, 2, 4, 5)
    ],
    # Conv2d_4a_3x3 is what Inception has at stride 4 (as in published feature pyramids of it); unpadded convolutions
    # make 52, 25, 12 and 5 pixels of what is 56, 28, 14 and 7 in MNASNet
    ("inception_v3", "mnasnet0_5"): [
        ("Conv2d_4a_3x3", "layers.8"), ("Mixed_5d", "layers.9"), ("Mixed_6e", "layers.11"), ("Mixed_7c", "layers.13"),
    ],
    # SqueezeNet classifies at stride 16, so inception5b stays alone
    ("googlenet", "squeezenet1_1"): [
        ("conv3", "features.4"), ("inception3b", "features.7"), ("inception4e", "features.12"),
    ],
    ("resnet101", "efficientnet_b0"): [
        ("layer1", "features.2"), ("layer2", "features.3"), ("layer3", "features.5"), ("layer4", "features.7"),
    ],
    ("wide_resnet50_2", "googlenet"): [
        ("layer1", "conv3"), ("layer2", "inception3b"), ("layer3", "inception4e"), ("layer4", "inception5b"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("teacher", "student"), BY_HAND, ids="->".join)
def test_the_pairs_are_those_that_a_person_would_choose(teacher: str, student: str) -> None:
    t, s = torchvision_model(teacher), torchvision_model(student)
    expected = [(path_of(find(t[0], a)), path_of(find(s[0], b))) for a, b in BY_HAND[teacher, student]]
    result = match(t, s)
    assert paths(result) == expected
    positions = [[path_of(n) for n in m[0].graph.nodes] for m in (t, s)]
    order = [(positions[0].index(a), positions[1].index(b)) for a, b in paths(result)]
    assert order == sorted(order)

"""Match: the pairs that a practitioner would choose, on real architectures of different families."""

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxdistill import models
from fxdistill.compiler import pipeline
from fxdistill.compiler.build import build
from fxdistill.compiler.options import Options
from fxdistill.errors import InvariantError, PairingError
from fxdistill.ir.contract import PassResult, graph_states
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced, find, path_of
from fxdistill.passes.couple import Couple
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Pair

Prepared = tuple[Traced, Coupling]
SIZE = 96  # pixels a side: the pairs of 224 pixels, in less time


def prepare(module: nn.Module, shape: tuple[int, ...]) -> Prepared:
    traced = Trace(input_shape=shape)(module.eval()).value
    return traced, Couple()(traced).value


def small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer  # noqa: PLC0415 - slow to import

    model: nn.Module = VisionTransformer(
        image_size=SIZE, patch_size=16, num_layers=6, num_heads=6, hidden_dim=384, mlp_dim=1536
    )
    return model


@pytest.fixture(autouse=True, scope="module")
def models_are_let_go() -> Iterator[None]:
    yield
    torchvision_model.cache_clear()


def constant(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
    del args, kwargs
    with torch.no_grad():
        return tensor.fill_(0.01)


RANDOM = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_")


@functools.cache
def torchvision_model(name: str) -> Prepared:
    import torchvision  # noqa: PLC0415 - slow to import

    kwargs: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    kwargs |= {"image_size": SIZE} if name.startswith("vit") else {}
    constants: dict[str, Any] = dict.fromkeys(RANDOM, constant)
    with mock.patch.multiple(torch.nn.init, **constants):  # the pairs do not depend on the weights
        module = small_vit() if name == "small_vit" else getattr(torchvision.models, name)(**kwargs)
    return prepare(module, (1, 3, SIZE, SIZE))


def match(teacher: Prepared, student: Prepared, **options: Any) -> PassResult[tuple[Pair, ...]]:
    return Match(**options)(MatchSource(Survey(*teacher), Survey(*student, "student")))


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
    # one resolution: four layers spread over the student's six, each with the teacher's at the same share of depth
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
    # one resolution and four stages of two blocks, which end at a quarter, half, three quarters and all of the depth
    ("vit_b_16", "resnet18"): [(f"encoder.layers.encoder_layer_{3 * i - 1}", f"layer{i}") for i in (1, 2, 3, 4)],
    # 3, 7, 13 and 16 of ResNet-50's 16 blocks are 1.1, 2.6, 4.9 and 6 of six layers: the first, third, fifth and sixth
    ("resnet50", "small_vit"): [
        ("layer1", "encoder.layers.encoder_layer_0"), ("layer2", "encoder.layers.encoder_layer_2"),
        ("layer3", "encoder.layers.encoder_layer_4"), ("layer4", "encoder.layers.encoder_layer_5"),
    ],
    # 2, 4, 10 and 12 blocks of twelve
    ("swin_t", "vit_b_16"): [
        ("features.1", "encoder.layers.encoder_layer_1"), ("features.3", "encoder.layers.encoder_layer_3"),
        ("features.5", "encoder.layers.encoder_layer_9"), ("features.7", "encoder.layers.encoder_layer_11"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("teacher", "student"), BY_HAND, ids=lambda name: name)
def test_the_pairs_are_those_that_a_person_would_choose(teacher: str, student: str) -> None:
    t, s = torchvision_model(teacher), torchvision_model(student)
    expected = [(path_of(find(t[0], a)), path_of(find(s[0], b))) for a, b in BY_HAND[teacher, student]]
    result = match(t, s)
    assert paths(result) == expected
    positions = [[path_of(n) for n in m[0].graph.nodes] for m in (t, s)]
    order = [(positions[0].index(a), positions[1].index(b)) for a, b in paths(result)]
    assert order == sorted(order)


CIFAR: dict[str, Any] = {"in_channels": 3, "image_size": 32, "padding": 0}
AUXILIARY = functools.partial(models.convnet, widths=[16, 32, 64], hidden=128, **CIFAR)
STUDENT = functools.partial(models.convnet, **CIFAR)
BLOCKS = [(f"block{i}.pool", f"block{i}.pool") for i in (1, 2, 3)]


def flat_convnet(*widths: int, padding: int = 0) -> nn.Module:
    """The convnet as one Sequential, without a module around each block."""
    layers: list[nn.Module] = []
    channels, size = 3, 32
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=padding), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels, size = width, (size + 2 * padding - 2) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, 10))


def small(
    teacher: nn.Module, student: nn.Module, shape: tuple[int, ...], **options: Any
) -> PassResult[tuple[Pair, ...]]:
    return match(prepare(teacher, shape), prepare(student, shape), **options)


def cifar(teacher: nn.Module, student: nn.Module, batch: int = 1, **options: Any) -> PassResult[tuple[Pair, ...]]:
    return small(teacher, student, (batch, 3, 32, 32), **options)


def test_indistills_networks_are_paired_as_in_the_paper() -> None:
    result = cifar(AUXILIARY(), STUDENT())
    assert paths(result) == BLOCKS  # after BatchNorm, ReLU and pooling
    assert [pair.name for pair in result.value] == ["block1", "block2", "block3"]
    assert [tuple(pair.student.shape) for pair in result.value] == [(1, 8, 15, 15), (1, 16, 6, 6), (1, 32, 2, 2)]
    assert all(pair.align == "slice" and pair.student.layout == "nchw" for pair in result.value)
    assert result.diagnostics == ()


def test_its_teacher_is_paired_where_the_sizes_are_nearest() -> None:
    # 16, 8 and 4 pixels with 15, 6 and 2; layer1 works on all 32 and the student on less from its first block on
    result = cifar(models.preact_resnet18(), STUDENT())
    ends = [("layer2.1.add", "block1.pool"), ("layer3.1.add", "block2.pool"), ("layer4.1.add", "block3.pool")]
    assert paths(result) == ends
    assert [(d.code, d.where) for d in result.diagnostics] == [("unpaired-stage", "layer1.1.add")]


@pytest.mark.parametrize("padding", [0, 1])
def test_blocks_without_modules_are_told_by_their_pooling(padding: int) -> None:
    pools = [("3", "3"), ("7", "7"), ("11", "11")]
    assert paths(cifar(flat_convnet(16, 32, 64, padding=padding), flat_convnet(8, 16, 32, padding=padding))) == pools
    # the same with the other network's padding: 16, 8 and 4 pixels with 15, 6 and 2
    mixed = cifar(flat_convnet(16, 32, 64, padding=padding), STUDENT())
    assert paths(mixed) == [("3", "block1.pool"), ("7", "block2.pool"), ("11", "block3.pool")]


def test_digits_networks_of_eight_pixels() -> None:
    shape = (1, 1, 8, 8)
    assert paths(small(models.convnet(widths=[32, 64, 128]), models.convnet(), shape)) == BLOCKS
    residual = small(models.resnet(widths=[32, 64, 128], blocks=3), models.resnet(blocks=1), shape)
    assert paths(residual) == [(f"layers.layer{i}.2.relu_1", f"layers.layer{i}.0.relu_1") for i in (1, 2, 3)]
    # three stages each, the student's half as large throughout: stage with stage
    crossed = small(models.resnet(), models.convnet(), shape)
    assert paths(crossed) == [(f"layers.layer{i}.1.relu_1", f"block{i}.pool") for i in (1, 2, 3)]


def test_a_model_of_vectors_is_paired_by_depth() -> None:
    def perceptron(*widths: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip((64, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 10))

    result = small(perceptron(128, 128, 64, 64), perceptron(32, 16), (1, 1, 8, 8))
    assert [pair.student.path for pair in result.value] == ["2", "4"]
    assert {pair.student.layout for pair in result.value} == {"features"}


def test_layouts_come_from_the_channel_labels() -> None:
    swin = match(torchvision_model("swin_t"), torchvision_model("mobilenet_v2")).value
    assert [(p.teacher.layout, p.teacher.channel_dim, p.student.layout) for p in swin] == [("nhwc", 3, "nchw")] * 4
    vit = match(torchvision_model("vit_b_16"), torchvision_model("small_vit")).value
    assert all(p.teacher.layout == "tokens" and p.teacher.class_token and p.teacher.width == 768 for p in vit)


def test_the_limit_is_for_models_of_one_resolution() -> None:
    result = match(torchvision_model("vit_b_16"), torchvision_model("small_vit"), limit=2)
    layers = [("encoder.layers.encoder_layer_5", 2), ("encoder.layers.encoder_layer_11", 5)]
    assert paths(result) == [(f"{t}.add_1", f"encoder.layers.encoder_layer_{s}.add_1") for t, s in layers]
    assert len(match(torchvision_model("resnet50"), torchvision_model("resnet18"), limit=2).value) == 4


def test_every_pair_carries_its_evidence() -> None:
    result = match(torchvision_model("resnet50"), torchvision_model("mobilenet_v2"))
    for pair in result.value:
        assert 0 < pair.score <= 1
        assert pair.runner_up is not None
        assert pair.runner_up.teacher != pair.teacher.path
        assert pair.runner_up.score < pair.score
        assert any("end a stage at" in reason for reason in pair.why)
    first = result.value[0]
    assert first.name == "features.3"
    assert first.runner_up is not None
    assert first.runner_up.teacher == "layer1.1.relu_2"
    assert "outputs of the blocks 'layer1' and 'features.3'" in first.why
    assert "both end a stage at 24x24" in first.why
    assert "after an activation and after an addition" in first.why


def test_what_has_no_counterpart_is_said() -> None:
    result = match(torchvision_model("regnet_y_1_6gf"), torchvision_model("shufflenet_v2_x0_5"))
    assert [(d.code, d.severity) for d in result.diagnostics] == [("unpaired-stage", "note")]
    assert "teacher's stage at 24x24" in result.diagnostics[0].why
    reverse = match(torchvision_model("shufflenet_v2_x0_5"), torchvision_model("regnet_y_1_6gf"))
    said = [d.why for d in reverse.diagnostics if d.code == "unpaired-stage"]
    assert len(said) == 1
    assert "student's stage at 24x24" in said[0]


def test_a_narrower_teacher_is_projected_and_said() -> None:
    result = small(models.convnet(widths=[4, 32, 64]), models.convnet(), (1, 1, 8, 8))
    assert [pair.align for pair in result.value] == ["project", "slice", "slice"]
    (remark,) = result.diagnostics
    assert remark.code == "teacher-narrower"
    assert "4 channels" in remark.why
    assert "8" in remark.why
    projected = small(models.convnet(widths=[4, 32, 64]), models.convnet(), (1, 1, 8, 8), align="project")
    assert {pair.align for pair in projected.value} == {"project"}
    assert projected.diagnostics == ()


def test_a_pin_replaces_its_stage_and_leaves_the_others() -> None:
    result = cifar(AUXILIARY(), STUDENT(), pins=(("block2.relu", "block2.norm"),))
    assert paths(result) == [BLOCKS[0], ("block2.relu", "block2.norm"), BLOCKS[2]]
    pinned = result.value[1]
    assert pinned.why[0] == "pinned by the user"
    assert 0 < pinned.score < result.value[0].score
    assert pinned.name == "block2.norm"
    assert cifar(AUXILIARY(), STUDENT(), pins=(("block2.relu", "block2.norm"),) * 2) == result


def test_a_pinned_vector_comes_on_top() -> None:
    result = cifar(AUXILIARY(), STUDENT(), pins=(("hidden", "hidden"),))
    assert paths(result) == [*BLOCKS, ("hidden.relu", "hidden.relu")]
    assert result.value[-1].student.layout == "features"


def test_a_pin_behind_a_stage_with_nothing_in_between_stands_for_it() -> None:
    teacher, student = models.resnet(widths=[8, 8, 8], blocks=[2, 2, 2]), models.resnet(widths=[4] * 3, blocks=[1] * 3)
    pins = (("layers.layer1.0", "layers.layer1"), ("pool", "pool"))
    result = small(teacher, student, (1, 1, 8, 8), pins=pins)
    inner, stage = [f"layers.layer{i}.{b}.relu_1" for i, b in ((1, 0), (2, 1))], "layers.layer2.0.relu_1"
    # no inner block of the teacher's layer3 is taken in place of its end
    assert paths(result) == [(inner[0], inner[0]), (inner[1], stage), ("pool", "pool")]
    pinned = result.value[0]
    assert pinned.runner_up is not None
    assert pinned.runner_up.score > pinned.score
    assert "the runner-up" not in " ".join(pinned.why)  # the reason is that the user said so


def test_a_pin_bounds_what_is_chosen_around_it() -> None:
    pins = (("layer3", "features.3"),)
    result = match(torchvision_model("resnet50"), torchvision_model("mobilenet_v2"), pins=pins)
    assert [p for p in paths(result) if "layer3" in p[0]] == [("layer3.5.relu_2", "features.3.add")]
    assert paths(result)[-1][0] == "layer4.2.relu_2"


def test_a_forbidden_pair_is_not_chosen() -> None:
    teacher, student = torchvision_model("resnet50"), torchvision_model("resnet18")
    result = match(teacher, student, forbid=(("layer2", "layer2"),))
    assert ("layer2.3.relu_2", "layer2.1.relu_1") not in paths(result)
    assert len(result.value) == 4  # the next choice of the stage takes its place
    only = cifar(AUXILIARY(), STUDENT(), forbid=(("block2", "block2"),))
    assert paths(only) == [BLOCKS[0], BLOCKS[2]]
    assert {d.where for d in only.diagnostics} == {"block2.pool"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pins": (("blok2", "block2"),)}, "no node or module has the path 'blok2'"),
        ({"forbid": (("block2", "block9"),)}, "no node or module has the path 'block9'"),
        ({"pins": (("block1", "block2"), ("block2", "block1"))}, "two pinned pairs cross"),
        ({"pins": (("block1", "block2"), ("block1", "block3"))}, "two pinned pairs cross"),
        ({"pins": (("block1", "block1"),), "forbid": (("block1", "block1"),)}, "pinned and forbidden"),
        ({"forbid": tuple((f"block{i}", f"block{j}") for i in (1, 2, 3) for j in (1, 2, 3))}, "no teacher node can"),
        ({"limit": 0}, "the limit of pairs is 0"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_had_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PairingError, match=message) as caught:
        cifar(AUXILIARY(), STUDENT(), **options)
    assert caught.value.where
    assert caught.value.hint


def test_an_unknown_path_is_answered_with_near_names() -> None:
    with pytest.raises(PairingError) as caught:
        cifar(AUXILIARY(), STUDENT(), pins=(("block2.rellu", "block2"),))
    assert "block2.relu" in caught.value.hint
    with pytest.raises(PairingError, match="no node or module has the path 'input'") as caught:
        cifar(AUXILIARY(), STUDENT(), pins=(("input", "block2"),))
    assert "input" not in caught.value.hint  # what was not found is not what was meant


def test_models_of_different_inputs_are_refused() -> None:
    student = prepare(models.convnet(), (1, 1, 8, 8))
    with pytest.raises(PairingError, match="the teacher reads 3 x 32 x 32, the student 1 x 8 x 8"):
        match(prepare(AUXILIARY(), (1, 3, 32, 32)), student)


def test_a_model_that_is_one_layer_cannot_be_paired() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(PairingError, match="no teacher node can be paired"):
        small(linear, models.convnet(), (1, 1, 8, 8))


def test_neither_the_run_nor_the_batch_size_changes_the_pairs() -> None:
    first, second = cifar(AUXILIARY(), STUDENT()), cifar(AUXILIARY(), STUDENT())
    assert first == second
    batched = cifar(AUXILIARY(), STUDENT(), batch=3)
    assert [(p.score, p.runner_up, p.why) for p in batched.value] == [
        (p.score, p.runner_up, p.why) for p in first.value
    ]
    assert paths(batched) == paths(first)
    assert batched.value[0].student.shape[0] == 3


def transformer(layers: int, width: int) -> nn.Module:
    from torchvision.models import VisionTransformer  # noqa: PLC0415 - slow to import

    model: nn.Module = VisionTransformer(32, 8, layers, 2, width, 2 * width, num_classes=10)
    return model


def test_the_batch_size_does_not_change_the_pairs_of_transformers() -> None:
    one, three = (cifar(transformer(4, 32), transformer(2, 16), batch) for batch in (1, 3))
    assert paths(one) == paths(three)
    # two layers for two, each with the teacher's at the same share of depth
    blocks = [("encoder_layer_1", "encoder_layer_0"), ("encoder_layer_3", "encoder_layer_1")]
    assert paths(one) == [(f"encoder.layers.{t}.add_1", f"encoder.layers.{s}.add_1") for t, s in blocks]


@settings(max_examples=10, deadline=None)
@given(
    teacher=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    student=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    residual=st.booleans(),
)
def test_pairs_keep_the_order_of_both_models(teacher: list[int], student: list[int], residual: bool) -> None:
    one = models.resnet(widths=[8] * len(teacher), blocks=teacher)
    other = (
        models.resnet(widths=[4] * len(student), blocks=student)
        if residual
        else models.convnet(widths=[4] * len(student))
    )
    prepared = prepare(one, (1, 1, 8, 8)), prepare(other, (1, 1, 8, 8))
    result = match(*prepared)
    for model, chosen in zip(prepared, zip(*paths(result), strict=True), strict=True):
        order = [path_of(node) for node in model[0].graph.nodes if path_of(node) in chosen]
        assert list(chosen) == order
    assert 1 < len(result.value) <= min(len(teacher), len(student))
    assert len({pair.name for pair in result.value}) == len(result.value)


class Sealed(nn.Module):
    """A vision transformer in torch's own encoder, whose layers are not to be seen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, width, 8, 8), nn.Linear(width, 10)
        self.mark, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 2, width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.mark.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        logits: torch.Tensor = self.head(self.encoder(tokens + self.places)[:, 0])
        return logits


def test_no_value_is_paired_twice_in_a_model_of_one_resolution() -> None:
    sealed, stages = prepare(Sealed(8), (1, 3, 32, 32)), prepare(STUDENT(padding=1), (1, 3, 32, 32))
    assert paths(match(sealed, sealed)) == [("add", "add"), ("encoder", "encoder")]  # not patches with their transpose
    for pairs in (match(sealed, stages).value, match(stages, sealed).value):
        assert len(pairs) == 2
    pinned = match(sealed, stages, pins=(("transpose", "block3"),))
    assert paths(pinned) == [("transpose", "block3.pool")]
    with pytest.raises(PairingError, match="its value does not depend on the image"):
        match(sealed, sealed, pins=(("expand", "expand"),))


def registered(layers: int, width: int, extra: int = 4) -> nn.Module:
    """A vision transformer whose tokens have ``extra`` register tokens behind them, which the head leaves out."""
    from torchvision.models.vision_transformer import EncoderBlock  # noqa: PLC0415 - slow to import

    class Registered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, width, 8, 8)
            self.registers = nn.Parameter(torch.zeros(1, extra, width))
            blocks = [EncoderBlock(2, width, 2 * width, 0.0, 0.0) for _ in range(layers)]
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(width, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            tokens = torch.cat([tokens, self.registers.expand(tokens.shape[0], -1, -1)], dim=1)
            logits: torch.Tensor = self.head(self.blocks(tokens)[:, 0])
            return logits

    return Registered()


def test_different_grids_lower_the_score_and_are_said() -> None:
    there, back = cifar(transformer(4, 32), STUDENT(padding=1)), cifar(STUDENT(padding=1), transformer(4, 32))
    assert [(b, a) for a, b in paths(there)] == paths(back)
    assert [s for _, s in paths(there)] == ["block1.pool", "block2.pool", "block3.pool"]
    assert [pair.why[1] for pair in there.value] == [
        "grids 4x4 and 16x16: pooled to the smaller", "grids 4x4 and 8x8: pooled to the smaller",
        "of size 17 tokens and 4x4",
    ]  # fmt: skip
    scores = [pair.score for pair in there.value]
    assert scores == sorted(scores)
    assert scores[0] < 0.7 < scores[-1]


def test_a_stage_more_than_the_limit_is_left_alone_and_said() -> None:
    result = cifar(models.preact_resnet18(), transformer(4, 32), limit=2)
    # 8x8 and 4x4 are the nearest to 4x4
    assert [t for t, _ in paths(result)] == ["layer3.1.add", "layer4.1.add"]
    assert [d.where for d in result.diagnostics if d.code == "unpaired-stage"] == ["layer1.1.add", "layer2.1.add"]


def test_tokens_without_a_grid_are_compared_with_as_many_tokens_only() -> None:
    same = cifar(registered(4, 32), registered(2, 16))
    assert [s for _, s in paths(same)] == ["blocks.0.add_1", "blocks.1.add_1"]
    for teacher, student, role in (
        (registered(4, 32), STUDENT(), "teacher"), (STUDENT(), registered(4, 32), "student"),
        (transformer(4, 32), registered(2, 16), "student"),
    ):  # fmt: skip
        with pytest.raises(PairingError, match=f"the {role}'s 20 tokens form no square grid"):
            cifar(teacher, student)
    with pytest.raises(PairingError, match="pinned and cannot be compared: the teacher's 20 tokens"):
        cifar(registered(4, 32), STUDENT(), pins=(("blocks.0", "block1"),))
    with pytest.raises(PairingError, match="one is a vector"):
        cifar(AUXILIARY(), STUDENT(), pins=(("hidden", "block3"),))


class Mixed(nn.Module):
    """Feature maps first, then tokens with registers behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.tail = registered(2, 16)
        self.tail.patches = nn.Conv2d(16, 16, 2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.tail(self.block1(images))
        return logits


@pytest.mark.parametrize("turned", [False, True])
def test_what_of_a_model_has_no_grid_is_said(turned: bool) -> None:
    models_ = (STUDENT(), Mixed()) if turned else (Mixed(), STUDENT())
    result = cifar(*models_)
    assert all("tail.blocks" not in path for pair in paths(result) for path in pair)
    (remark,) = (d for d in result.diagnostics if d.code == "no-token-grid")
    assert remark.severity == "warning"
    assert "20 tokens form no square grid" in remark.why


class Sequence(nn.Module):
    """Feature maps first, then a sequence with its channels before its places."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.block2, self.head = nn.Sequential(nn.Conv1d(16, 32, 3), nn.ReLU(), nn.Conv1d(32, 32, 3)), nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.block2(self.block1(images).flatten(2)).mean(2))
        return logits


def test_layers_whose_values_are_no_taps_are_said() -> None:
    result = cifar(Sequence(), STUDENT())
    (remark,) = (d for d in result.diagnostics if d.code == "no-tap")
    assert remark.where == "block2.0"
    assert "2 of the teacher's layers make, here 1x32x62, is none of (N, C, H, W)" in remark.why


@pytest.mark.parametrize(("wide", "narrow"), [("vit", "cnn"), ("cnn", "vit")])
def test_programs_across_layouts_are_built_and_run(wide: str, narrow: str) -> None:
    sizes = {"vit": (transformer(4, 64), transformer(3, 16)),
             "cnn": (models.resnet(widths=[32, 64, 128], in_channels=3), STUDENT(padding=1))}  # fmt: skip
    teacher, student = sizes[wide][0], sizes[narrow][1]
    plan = pipeline.compile(teacher, student, Options(input_shape=(2, 3, 32, 32)))
    assert len(plan.pairs) == 3
    assert {pair.align for pair in plan.pairs} == {"slice"}
    assert all(pair.student.width < pair.teacher.width for pair in plan.pairs)
    assert {pair.teacher.layout for pair in plan.pairs} != {pair.student.layout for pair in plan.pairs}
    values = build(plan, teacher, student)({"images": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])})
    assert {f"mse[{pair.name}]" for pair in plan.pairs} <= set(values)
    assert all(torch.isfinite(value) for value in values.values())
    sum(values.values()).backward()
    assert any(p.grad is not None for p in student.parameters())


def elsewhere(role: str, path: str) -> Callable[[list[Pair]], list[Pair]]:
    """The second pair's tap at another node."""

    def change(pairs: list[Pair]) -> list[Pair]:
        tap = getattr(pairs[1], role).changed(path=path)
        return [pairs[0], pairs[1].changed(**{role: tap}), pairs[2]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pairs: pairs[::-1], "the pairs are not in the order of both models"),
        (elsewhere("teacher", "block3.relu"), None),
        (elsewhere("teacher", "block1.conv"), "the pairs are not in the order of both models"),
        (elsewhere("student", "block1.conv"), "the pairs are not in the order of both models"),
        (elsewhere("student", "block1.pool"), "the pairs are not in the order of both models"),
        (elsewhere("student", "block9"), "a pair names 'block9', which is no node of the student"),
        (lambda pairs: [pair.changed(name="same") for pair in pairs], "two pairs have the same name"),
    ],
)
def test_a_wrong_result_is_refused(change: Callable[[list[Pair]], list[Pair]], message: str | None) -> None:
    teacher, student = (prepare(module, (1, 3, 32, 32)) for module in (AUXILIARY(), STUDENT()))
    source = MatchSource(Survey(*teacher), Survey(*student, "student"))
    value = tuple(change(list(match(teacher, student).value)))
    if message is None:  # another choice, but no broken promise
        Match().ensures(source, value)
        return
    with pytest.raises(InvariantError, match=message):
        Match().ensures(source, value)


def test_a_survey_is_kept_and_both_of_its_graphs_are_watched() -> None:
    source = MatchSource(*(Survey(*prepare(module, (1, 3, 32, 32))) for module in (AUXILIARY(), STUDENT())))
    graphs = [source.teacher.traced.graph, source.student.traced.graph]
    first, stages = Match()(source).value, source.teacher.stages
    assert Match()(source).value == first
    assert source.teacher.stages is stages
    assert graph_states(source) == graph_states(graphs)

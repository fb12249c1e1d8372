"""Small reference networks, named as ``fxdistill.models:FUNCTION`` wherever a factory is expected.

Every keyword argument is a JSON value, so that ``fxdistill.models:convnet?widths=[16,32,64]&hidden=128`` can
stand on a command line and in a plan. The networks are plain modules that ``torch.fx.symbolic_trace`` follows
entirely.

:func:`convnet` and :func:`preact_resnet18` are the networks of InDistill's released CIFAR-10 experiment. With
``in_channels=3, image_size=32, padding=0``, the auxiliary teacher is ``widths=[16, 32, 64], hidden=128``
(57,994 parameters) and the student is ``widths=[8, 16, 32], hidden=64`` (15,050 parameters).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models.resnet import BasicBlock

Width = TypeVar("Width")


def convnet(
    *,
    widths: Sequence[int] = (8, 16, 32),
    hidden: int = 64,
    classes: int = 10,
    in_channels: int = 1,
    image_size: int = 8,
    padding: int = 1,
) -> nn.Module:
    """Blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling, then two fully connected layers.

    Args:
        widths: Output channels of each block.
        hidden: Width of the penultimate layer.
        classes: Number of logits.
        in_channels: Channels of the input.
        image_size: Height and width of the input in pixels.
        padding: Zero padding of every convolution.

    Returns:
        A module from (N, in_channels, image_size, image_size) to logits (N, classes).

    Raises:
        ValueError: The image is too small for so many blocks.
    """
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    size, channels = image_size, in_channels
    for index, width in enumerate(_widths(widths), start=1):
        blocks[f"block{index}"] = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(channels, width, kernel_size=3, padding=padding),
                norm=nn.BatchNorm2d(width),
                relu=nn.ReLU(),
                pool=nn.MaxPool2d(2),
            )
        )
        size, channels = (size + 2 * padding - 2) // 2, width
        if size < 1:
            raise ValueError(f"an image of {image_size} pixels is used up after {index} of {len(widths)} blocks")
    blocks["flatten"] = nn.Flatten()
    blocks["hidden"] = nn.Sequential(OrderedDict(linear=nn.Linear(channels * size * size, hidden), relu=nn.ReLU()))
    blocks["classifier"] = nn.Linear(hidden, classes)
    return nn.Sequential(blocks)


_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg(
    *,
    widths: Sequence[int | str] = _VGG16,
    hidden: int = 512,
    classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
) -> nn.Module:
    """A VGG with BatchNorm for small images: 3x3 convolutions, 2x2 max-pooling, two fully connected layers.

    The defaults make the VGG16 of the literature on CIFAR-10: 313,463,808 multiply-accumulates, and 14,982,474
    parameters beside the 8,448 of BatchNorm.

    Args:
        widths: Output channels of each convolution; ``"M"`` for a pooling.
        hidden: Width of the penultimate layer.
        classes: Number of logits.
        in_channels: Channels of the input.
        image_size: Height and width of the input in pixels.

    Returns:
        A module from (N, in_channels, image_size, image_size) to logits (N, classes).

    Raises:
        ValueError: A width is neither a number nor ``"M"``, or the image is too small for so many poolings.
    """
    layers: list[nn.Module] = []
    channels, size = in_channels, image_size
    _widths(widths)
    for width in widths:
        if isinstance(width, int):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        elif width == "M":
            layers.append(nn.MaxPool2d(2))
            size //= 2
        else:
            raise ValueError(f"a width is a number, or 'M' for a pooling, and not {width!r}")
    if size < 1:
        raise ValueError(f"an image of {image_size} pixels is too small for {widths.count('M')} poolings")
    head = nn.Sequential(nn.Linear(channels * size * size, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, classes))
    parts = OrderedDict[str, nn.Module](features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=head)
    return nn.Sequential(parts)


class _ResNet(nn.Module):
    """A 3x3 stem, one ``layerN`` of basic blocks per width, global average pooling, a linear classifier."""

    def __init__(self, *, widths: Sequence[int], blocks: Sequence[int], classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv3x3(in_channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.layers = nn.Sequential()
        channels = widths[0]
        for index, (width, depth) in enumerate(zip(widths, blocks, strict=True), start=1):
            layer = nn.Sequential()
            for position in range(depth):
                stride = 2 if index > 1 and position == 0 else 1
                shortcut = None
                if stride != 1 or channels != width:
                    shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                layer.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            self.layers.add_module(f"layer{index}", layer)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        features = self.layers(self.stem(images))
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits


def resnet(
    *, widths: Sequence[int] = (16, 32, 64), blocks: int | Sequence[int] = 2, classes: int = 10, in_channels: int = 1
) -> nn.Module:
    """A residual network for small images: 3x3 stem, basic blocks, the image halved by each later layer.

    Args:
        widths: Channels of each layer.
        blocks: Basic blocks of each layer, one number for all or one each.
        classes: Number of logits.
        in_channels: Channels of the input.

    Returns:
        A module from (N, in_channels, H, W), of any size, to logits (N, classes).

    Raises:
        ValueError: ``widths`` and ``blocks`` do not go together.
    """
    depths = [blocks] * len(_widths(widths)) if isinstance(blocks, int) else list(blocks)
    if len(depths) != len(widths) or min(depths) < 1:
        raise ValueError(f"blocks={blocks!r} does not give each of the {len(widths)} widths at least one block")
    return _ResNet(widths=widths, blocks=depths, classes=classes, in_channels=in_channels)


class _PreactBlock(nn.Module):
    """BatchNorm and ReLU before each 3x3 convolution; the shortcut, where needed, is a 1x1 convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = _conv3x3(channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        result: Tensor = out + residual
        return result


class _PreactResNet(nn.Module):
    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for index, width in enumerate((64, 128, 256, 512), start=1):
            stride = 1 if index == 1 else 2
            layer = nn.Sequential(_PreactBlock(channels, width, stride), _PreactBlock(width, width, 1))
            self.add_module(f"layer{index}", layer)
            channels = width
        self.linear = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        logits: Tensor = self.linear(torch.flatten(F.avg_pool2d(x, 4), 1))
        return logits


def preact_resnet18(*, classes: int = 10) -> nn.Module:
    """The pre-activation ResNet-18 with a 3x3 stem that is the teacher of InDistill's CIFAR-10 experiment.

    Args:
        classes: Number of logits; ten classes make 11,171,274 parameters.

    Returns:
        A module from (N, 3, 32, 32) to logits (N, classes).
    """
    return _PreactResNet(classes=classes)


def _conv3x3(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)


def _widths(widths: Sequence[Width]) -> Sequence[Width]:
    if isinstance(widths, str | int) or not widths:
        raise ValueError(f"widths must be a list of numbers, at least one, and not {widths!r}")
    return widths

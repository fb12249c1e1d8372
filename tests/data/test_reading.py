"""Image files as models read them: to the pixel what the pipelines of torchvision and timm give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import EfficientNet_B1_Weights, ResNet18_Weights, ResNet50_Weights

from fxdistill.data.load import load
from fxdistill.data.sources._images import fitted, pixels
from fxdistill.ir.views import seen
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.presets import preset
from fxdistill.preprocessing import Preprocessing, Reading, View

SIZES = [(300, 200), (200, 300), (231, 257), (224, 224), (100, 60), (517, 388), (33, 500)]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(width * height)
    coarse = Image.fromarray(generator.integers(0, 255, (9, 7, 3), dtype=np.uint8))
    fine = Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height), Image.Resampling.BICUBIC), fine, 0.3).convert(mode)


def as_read(image: Image.Image, found: Preprocessing) -> torch.Tensor:
    """Pixels, then the view: what the model gets."""
    channels = len(found.mean)
    batch = pixels(fitted(image, found.reading(channels)))[None].float() / 255
    return seen(batch, found.view(batch.shape[2:]))[0]


@pytest.mark.parametrize(
    ("name", "weights"),
    [("resnet18", ResNet18_Weights.IMAGENET1K_V1), ("resnet50", ResNet50_Weights.IMAGENET1K_V2),
     ("efficientnet_b1", EfficientNet_B1_Weights.IMAGENET1K_V2)],
)  # fmt: skip
def test_images_are_read_as_torchvisions_weights_read_them(name: str, weights: Any) -> None:
    factory = f"torchvision.models:{name}"
    found = preset(torch.nn.Identity(), factory, {}, channels=3)
    assert found is not None
    assert found.source.geometry.startswith("torchvision's ")
    transforms = weights.transforms()
    assert found.resize == list(transforms.resize_size) * 2
    for size in SIZES:
        expected = transforms(picture(*size))
        assert torch.allclose(as_read(picture(*size), found), expected, atol=1e-6), size


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"crop_pct": 0.95, "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        {"crop_mode": "squash", "crop_pct": 0.9, "interpolation": "bicubic"},
        {"crop_mode": "squash", "crop_pct": 1.0, "input_size": (3, 96, 128)},
        {"crop_mode": "border", "crop_pct": 0.875},
        {"crop_mode": "border", "crop_pct": 1.0, "input_size": (3, 65, 65), "interpolation": "nearest"},
        {"input_size": (3, 128, 96), "crop_pct": 0.9},
        {"interpolation": "lanczos", "input_size": (3, 61, 61)},
    ],
)
def test_images_are_read_as_timms_transforms_read_them(config: dict[str, Any]) -> None:
    timm_data = pytest.importorskip("timm.data")
    model = torch.nn.Identity()
    model.pretrained_cfg = {"input_size": (3, 224, 224), **config}  # type: ignore[assignment]
    found = preset(model, None, {}, channels=3)
    assert found is not None
    transforms = timm_data.create_transform(
        **timm_data.resolve_data_config(pretrained_cfg=model.pretrained_cfg), is_training=False
    )
    for size in SIZES:
        expected = transforms(picture(*size))
        assert torch.allclose(as_read(picture(*size), found), expected, atol=1e-6), size


def test_a_preset_is_for_the_channels_that_it_has_numbers_for() -> None:
    timm = pytest.importorskip("timm")
    gray = timm.create_model("resnet10t", in_chans=1, num_classes=3)
    assert (found := preset(gray, "timm:resnet10t", {"in_chans": 1}, channels=1)) is not None
    assert (found.mean, found.size) == ([], [176, 176])
    assert preset(torch.nn.Identity(), "fxdistill.models:resnet", {}, channels=3) is None
    assert preset(torch.nn.Identity(), "my.module:net", {}, channels=3) is None
    small = preset(torch.nn.Identity(), "torchvision.models:vit_b_16", {"image_size": 64}, channels=3)
    assert small is not None
    assert (small.size, small.resize) == ([64, 64], [73, 73])  # the share of before
    assert build("torchvision.models:resnet18", {}) is not None


@pytest.mark.parametrize(("channels", "range_"), [("rgb", 1), ("bgr", 1), ("bgr", 255), ("rgb", 255)])
def test_order_and_range_of_channels(channels: Any, range_: Any) -> None:
    images = torch.rand(2, 3, 4, 5)
    found = Preprocessing(size=[4, 5], mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0], channels=channels, range=range_)
    x = images.numpy()[:, ::-1] if channels == "bgr" else images.numpy()
    expected = (x * range_ - np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / np.array([1, 2, 3]).reshape(3, 1, 1)
    np.testing.assert_allclose(seen(images, found.view((4, 5))).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(seen(images, View(None)), images)
    assert seen(images, found.view((8, 10))).shape == (2, 3, 4, 5)


def test_a_folder_is_read_for_the_model_and_not_as_its_first_file(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for index, size in enumerate(SIZES[:3]):
                picture(*size).save(tmp_path / part / name / f"{index}.png")
    reading = Reading((48, 48), (55, 55), interpolation="bicubic")
    found = load(f"imagefolder:{tmp_path}", reading=reading)
    assert found.image_shape == (3, 48, 48)
    (images,) = found.test.read([torch.tensor([1])])
    assert torch.equal(images[0], pixels(fitted(picture(*SIZES[1]), reading)))


@pytest.mark.parametrize(("size", "resize"), [(46, 60), (320, 424), (384, 450)])
def test_the_same_size_is_resized_as_before(size: int, resize: int) -> None:
    """A share of two whole numbers is none that a float holds: its inverse may be a pixel short."""
    known = Preprocessing(size=[size, size], resize=[resize, resize])
    assert known.sized([size, size], "--size").resize == [resize, resize]
    assert known.sized([2 * size, size], "--size").resize == [2 * resize, resize]
    other = Preprocessing(size=[size, 160], resize=[resize, 256], fit="squash")
    assert other.sized([size, 160], "--size").resize == [resize, 256]

"""An ONNX file by itself: what it says is all that is needed, for the script of the documentation and for ``eval``."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from fxdistill.errors import InputError
from fxdistill.measure import onnx_file
from fxdistill.measure.onnx_model import as_pixels
from fxdistill.modelfiles.bundle import save
from fxdistill.preprocessing import Preprocessing, Wishes
from fxdistill.runtime.deployment import deploy, finding

ROOT = Path(__file__).parents[2]
OWN = Preprocessing(
    size=[24, 24], resize=[32, 32], interpolation="bicubic", mean=[0.4, 0.5, 0.3], std=[0.2, 0.1, 0.3]
)  # fmt: skip
CLASSES = ("cat", "dog", "owl", "pig")
FACTORY, ALLOW = "tests.runtime.test_onnx_alone:net", ("tests.runtime.test_onnx_alone",)


class Net(nn.Module):
    """Tells noise apart, by features that hang on every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 5, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return logits


def net() -> nn.Module:
    return Net()


def trained(files: list[Path]) -> nn.Module:
    """The model, trained for a moment on what its own pipeline makes of files."""
    pipeline = ImageClassification(
        crop_size=24, resize_size=32, mean=tuple(OWN.mean), std=tuple(OWN.std), interpolation=InterpolationMode.BICUBIC
    )
    images = torch.stack([pipeline(Image.open(file)) for file in files])
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    torch.manual_seed(1)
    module = net()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    return module


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of mixed sizes, and a model in a bundle that says its preprocessing."""
    folder = tmp_path_factory.mktemp("alone")
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            (folder / "own" / part / name).mkdir(parents=True)
            for index in range(8):
                height, width = generator.integers(30, 90, 2)
                noise = generator.integers(0, 60 + 60 * label, (height, width, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / "own" / part / name / f"{index}.png")
    module = trained(sorted((folder / "own" / "train").rglob("*.png")))
    save(module, folder / "model.pt", factory=FACTORY, input_shape=(1, 3, 24, 24), preprocessing=OWN)
    return folder


def script() -> str:
    (found,) = re.findall(
        r"^:caption: answer.py\n\n(.*?)```", (ROOT / "docs" / "deploying.md").read_text(), re.S | re.M
    )
    return str(found)


def by_script(model: Path, files: list[Path]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script(), str(model), *map(str, files)], capture_output=True, text=True, check=True
    )
    return [line.rpartition(" ")[2] for line in done.stdout.splitlines()]


def test_the_script_needs_the_file_alone(place: Path) -> None:
    """Its answers are those of the model's own pipeline, and their share of right ones is what eval says."""
    data = f"imagefolder:{place / 'own'}"
    deploy.export(place / "model.pt", place / "model.onnx", data=data, allow=ALLOW)
    files = sorted((place / "own" / "test").rglob("*.png"))
    said = by_script(place / "model.onnx", files)
    right = np.mean([answer == file.parent.name for answer, file in zip(said, files, strict=True)])
    assert right > 0.5
    assert len(set(said)) > 1
    for model in ("model.pt", "model.onnx"):
        assert deploy.evaluate(place / model, data, allow=ALLOW)["accuracy"] == pytest.approx(right, abs=1e-6)
    other = deploy.evaluate(place / "model.onnx", data, preprocessing=Wishes(mean=(0.0,) * 3, std=(1.0,) * 3))
    assert other["accuracy"] < right  # an option is heard


def test_what_every_file_says(place: Path) -> None:
    deploy.export(place / "model.pt", place / "bare.onnx", allow=ALLOW)
    found = {entry.key: entry.value for entry in onnx.load(place / "bare.onnx").metadata_props}
    said = Preprocessing.model_validate_json(found["fxdistill.preprocessing"])
    assert said.changed(source=OWN.source) == OWN
    assert (found["fxdistill.task"], json.loads(found["fxdistill.classes"])) == ("classification", [])
    assert "torch" in json.loads(found["fxdistill.versions"])
    assert deploy.unsaid(finding.find(place / "model.pt", allow=ALLOW), where="x") == ()
    (remark,) = deploy.unsaid(finding.find("fxdistill.models:convnet", input_shape=(1, 1, 8, 8)), where="x")
    assert remark.code == "no-normalisation"
    with pytest.raises(InputError, match="an ONNX file already"):
        deploy.export(place / "bare.onnx", place / "again.onnx")


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_the_normalisation_can_be_inside(
    place: Path, monkeypatch: pytest.MonkeyPatch, channels: Any, exporter: str
) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", (exporter,))
    data, own = f"imagefolder:{place / 'own'}", OWN.changed(channels=channels)
    path = place / "embedded.onnx"
    _, parity = deploy.export(place / "model.pt", path, data=data, allow=ALLOW, preprocessing=own, embed=True)
    assert parity.images == 32
    (given,) = onnxruntime.InferenceSession(path).get_inputs()
    assert (given.type, given.shape[1:]) == ("tensor(uint8)", [24, 24, 3])
    pixels = torch.randint(256, (2, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = pixels.numpy().astype(np.float32).transpose(0, 3, 1, 2) / 255
    x = x[:, ::-1] if channels == "bgr" else x
    x = (x - np.array(own.mean, np.float32).reshape(3, 1, 1)) / np.array(own.std, np.float32).reshape(3, 1, 1)
    module = finding.find(place / "model.pt", allow=ALLOW).module
    with torch.no_grad():
        expected = module(torch.from_numpy(np.ascontiguousarray(x)))
    (answer,) = onnxruntime.InferenceSession(path).run(None, {"input": pixels.numpy()})
    np.testing.assert_allclose(answer, expected.numpy(), atol=1e-4)
    outside = deploy.evaluate(place / "model.pt", data, allow=ALLOW, preprocessing=own)
    assert deploy.evaluate(path, data) == outside
    with pytest.raises(InputError, match="normalises images itself"):
        deploy.evaluate(path, data, preprocessing=Wishes(mean=(0.5,) * 3, std=(0.5,) * 3))


def test_pixels_come_back_from_images() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(as_pixels(pixels.permute(0, 3, 1, 2).float() / 255), pixels)

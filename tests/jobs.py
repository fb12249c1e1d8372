"""Whole jobs through the command line, plan and then run, on tiny data and with models of the user's own."""

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fxdistill.cli.commands import app
from fxdistill.data.load import load as load_data
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load
from fxdistill.runtime.run import details
from tests import runs

MODULE = "fxdistill_test_jobs"
ALLOW = ("--allow-factory", MODULE)
SHAPE = (1, 1, 8, 8)
NOISE = ("--force",)
"""Of images that say nothing of their labels no teacher knows more than chance."""

_SOURCE = '''
from typing import NamedTuple
import torch
import torch.nn.functional as F
from torch import Tensor, nn

class Answer(NamedTuple):
    features: Tensor
    logits: Tensor

class Net(nn.Module):
    """Two stages, then a head; what it answers with is up to ``answers``."""

    def __init__(self, widths, outputs, answers, momentum):
        super().__init__()
        first, second = widths
        self.conv1, self.bn1 = nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first, momentum=momentum)
        self.conv2, self.bn2 = nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second, momentum=momentum)
        self.head = nn.Conv2d(second, outputs, 1) if answers == "map" else nn.Linear(second, outputs)
        self.answers = answers

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.bn2(self.conv2(x)))
        if self.answers == "map":
            return F.interpolate(self.head(x), scale_factor=2.0)
        x = x.mean((2, 3))
        logits = self.head(x)
        if self.answers == "strange":
            return logits * torch.special.i0e(x.mean(1, keepdim=True))
        if self.answers == "an image each":
            return [{"scores": one} for one in logits]
        if self.answers == "softmax":
            return logits.softmax(1)
        if self.answers == "named":
            return Answer(features=x, logits=logits)
        if self.answers == "mapping":
            return {"features": x, "logits": logits}
        return (x, logits) if self.answers == "pair" else logits

def net(widths=(4, 8), outputs=10, answers="tensor", momentum=0.1):
    return Net(widths, outputs, answers, momentum)
'''


@functools.cache
def _holder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="fxdistill-jobs-")


@functools.cache
def models() -> Path:
    """A folder with the user's module, importable here."""
    folder = Path(_holder().name)
    (folder / f"{MODULE}.py").write_text(_SOURCE)
    sys.path.insert(0, str(folder))
    return folder


def model(path: Path, *, taught: Any = False, **kwargs: Any) -> str:
    """A bundle of one of the user's models, one that knows digits where it is taught; its name."""
    models()
    factory = f"{MODULE}:net"
    made = build(factory, kwargs, seed=7, allow=[MODULE])
    made = runs.taught_head(made, "head", load_data("digits")) if taught else made
    save(made, path, factory=factory, kwargs=kwargs, input_shape=SHAPE)
    return str(path)


def arrays(path: Path, labels: Any, *, images: Any = None) -> str:
    """Data of 64 training and 32 test images 8x8 with these 96 labels; its spec."""
    images = np.random.default_rng(0).random((96, 8, 8), dtype=np.float32) if images is None else images
    np.savez(path, train_images=images[:64], train_labels=labels[:64], test_images=images[64:], test_labels=labels[64:])
    return f"npz:{path}"


def call(*args: object) -> Result:
    """Call fxdistill as :func:`tests.runs.execute` executes: what is left out has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
        patch.setattr(details, "write", lambda *_, **__: None)
        return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args: object) -> str:
    """Call fxdistill, which has to succeed; what it prints."""
    result = call(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def planned(folder: Path, teacher: dict[str, Any], student: dict[str, Any], *options: object) -> Plan:
    """Plan two of the user's models in ``plan.json``."""
    taught = "digits" in options and teacher.get("outputs", 10) == 10
    files = model(folder / "teacher.pt", taught=taught, **teacher), model(folder / "student.pt", **student)
    forced = () if taught else NOISE
    usual = {"--batch-size": 32, "--epochs": 1}
    small = [word for name, value in usual.items() if name not in options for word in (name, value)]
    done("plan", *files, *ALLOW, "-o", folder / "plan.json", *small, *forced, *options)
    return load(folder / "plan.json")


def ran(folder: Path, *options: object) -> dict[str, Any]:
    """Run ``plan.json`` in ``run``; its result."""
    forced = () if load(folder / "plan.json").data.spec == "digits" else NOISE
    done("run", folder / "plan.json", "-o", folder / "run", *ALLOW, "--device", "cpu", *forced, *options)
    result: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text())
    return result

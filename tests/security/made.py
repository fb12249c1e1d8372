"""What attacks are made of: objects that run code when they are unpickled, models, bundles, archives."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

import fxdistill
from fxdistill import container
from fxdistill.modelfiles.bundle import KIND, save
from fxdistill.modelfiles.load import load

MARK = "fxdistill_was_here"
TOUCH = f"open({MARK!r}, 'w').close()"
SHAPE = (1, 1, 8, 8)
Make = Callable[[Path], Path]
Read = Callable[[Path], object]
Content = dict[str, Any]


class Attack(NamedTuple):
    """A file or folder that somebody made, how it is read, and how the answer begins."""

    make: Make
    read: Read
    said: str = "refused (2): "


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, (TOUCH,)


EVIL = pickle.dumps(Evil())


def network() -> nn.Module:
    """A small classifier of digits."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


def file(name: str, content: bytes | Callable[[], bytes]) -> Make:
    """A file of some bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())
        return folder / name

    return make


def zipped(parts: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED, before: bytes = b"") -> bytes:
    """An archive."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return before + held.getvalue()


def bundle_with(change: Callable[[Content], object], *, factory: bool = False) -> Make:
    """A bundle whose content is another, sealed anew."""

    def make(folder: Path) -> Path:
        path = folder / "a.pt"
        if factory:
            kwargs = {"widths": [4], "classes": 10}
            model = fxdistill.load("fxdistill.models:convnet", kwargs=kwargs).module
            save(model, path, factory="fxdistill.models:convnet", kwargs=kwargs, input_shape=SHAPE)
        else:
            save(network(), path, input_shape=SHAPE)
        _, content = container.read(path, kinds=(KIND,))
        change(content)
        container.write(path, KIND, content)
        return path

    return make


@cache
def plan() -> str:
    """A plan of two small networks."""
    options = fxdistill.Options(input_shape=SHAPE, method="kd")
    return fxdistill.compile(network(), network(), options).to_json()


def plan_with(change: Callable[[Content], object]) -> Make:
    """A plan with a change."""

    def make(folder: Path) -> Path:
        content = json.loads(plan())
        change(content)
        (folder / "plan.json").write_text(json.dumps(content))
        return folder / "plan.json"

    return make


def weights(path: Path) -> object:
    """The file as weights of a registered model."""
    return load(path, factory="fxdistill.models:convnet", kwargs={"widths": [4], "classes": 10})

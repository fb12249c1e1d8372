"""A process that reads what a stranger made, under an audit hook, and says what happened besides.

Run as ``python hostile.py FOLDER``: every attack of :data:`ATTACKS` is made in the folder, then read. The report is
one JSON line: for each attack the error, and the events that no reading of data has a reason for.
"""

import base64
import contextlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import fxdistill
from fxdistill import container
from fxdistill.data.load import load as load_data
from fxdistill.errors import FxdistillError
from fxdistill.modelfiles import factories, graphs
from fxdistill.modelfiles.bundle import KIND, save
from fxdistill.modelfiles.load import load
from fxdistill.plan.file import load as load_plan
from fxdistill.report.show import show

MARK = "fxdistill_was_here"
TOUCH = f"open({MARK!r}, 'w').close()"
Read = Callable[[Path], object]


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, (TOUCH,)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


def bundle_with(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save(network(), folder / "a.pt", input_shape=(1, 1, 8, 8))
        _, content = container.read(folder / "a.pt", kinds=(KIND,))
        change(content)
        container.write(folder / "a.pt", KIND, content)
        return folder / "a.pt"

    return make


def node(op: str, target: str, *args: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        made = {"op": op, "name": "new", "target": target, "scope": "", "args": args, "kwargs": {"dict": []}}
        content["graph"]["nodes"].insert(1, made)

    return change


def pickled(folder: Path) -> Path:
    torch.save(Evil(), folder / "a.pt")
    return folder / "a.pt"


def beside(folder: Path) -> Path:
    torch.save({"state_dict": network().state_dict(), "evil": Evil()}, folder / "a.pt")
    return folder / "a.pt"


def legacy(folder: Path) -> Path:
    torch.save(Evil(), folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def exported(folder: Path) -> Path:
    program = torch.export.export(network(), (torch.randn(1, 1, 8, 8),))
    torch.export.save(program, folder / "a.pt2")
    with zipfile.ZipFile(folder / "a.pt2", "a") as archive:
        archive.writestr("a/data/weights/evil.pt", pickle.dumps(Evil()))
    return folder / "a.pt2"


def two_directories(folder: Path) -> Path:
    first, second = io.BytesIO(), io.BytesIO()
    for file, name in ((first, "archive/data.pkl"), (second, "archive/archive_format")):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, pickle.dumps(Evil()))
    (folder / "a.pt").write_bytes(second.getvalue() + first.getvalue())
    return folder / "a.pt"


def factory(name: str, **kwargs: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        evil = folder / "evil.pth"
        evil.write_bytes(pickle.dumps(Evil()))
        (folder / "a.json").write_text(json.dumps([name, {k: str(evil) if v is ... else v for k, v in kwargs.items()}]))
        return folder / "a.json"

    return make


def built(path: Path) -> object:
    name, kwargs = json.loads(path.read_text())
    return factories.build(name, kwargs)


def eps(folder: Path) -> Path:
    for part in ("train", "val"):
        for kind in ("x", "y"):
            (folder / part / kind).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / part / kind / "a.png", "EPS")
    return folder


def objects(folder: Path) -> Path:
    np.savez(folder / "a.npz", train_images=np.array([Evil()], dtype=object), train_labels=np.zeros(1),
             test_images=np.zeros((1, 8, 8)), test_labels=np.zeros(1))  # fmt: skip
    return folder / "a.npz"


def huge_label(folder: Path) -> Path:
    images, labels = np.zeros((2, 8, 8), np.uint8), np.array([0, 2**62])
    np.savez(folder / "a.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return folder / "a.npz"


def run_directory(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        net = network()
        plan = fxdistill.compile(net, network(), fxdistill.Options(input_shape=(1, 1, 8, 8), method="kd"))
        (folder / "plan.json").write_text(plan.to_json())
        (folder / name).write_text(content)
        return folder

    return make


def plan_with(**change: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        plan = fxdistill.compile(network(), network(), fxdistill.Options(input_shape=(1, 1, 8, 8), method="kd"))
        (folder / "plan.json").write_text(json.dumps({**json.loads(plan.to_json()), **change}))
        return folder / "plan.json"

    return make


def imagefolder(path: Path) -> object:
    return load_data(f"imagefolder:{path}")


def npz(path: Path) -> object:
    return load_data(f"npz:{path}")


def weights(path: Path) -> object:
    return load(path, factory="fxdistill.models:convnet")


ATTACKS: dict[str, tuple[Callable[[Path], Path], Read]] = {
    "pickle": (pickled, load),
    "pickle of the old layout": (legacy, load),
    "pickle beside weights": (beside, weights),
    "torch.export": (exported, load),
    "archive with two tables of contents": (two_directories, load),
    "graph: eval": (bundle_with(node("call_function", "builtins.eval", TOUCH)), load),
    "graph: from_file": (bundle_with(node("call_function", "aten.from_file.default", MARK)), load),
    "graph: write_file": (bundle_with(node("call_function", "image.write_file.default", MARK)), load),
    "graph: code in a method": (bundle_with(node("call_method", f"relu(), exec({TOUCH!r})")), load),
    "graph: code in an attribute": (bundle_with(node("get_attr", f"a'), exec({TOUCH!r}), ('")), load),
    "bundle: factory of os": (bundle_with(lambda c: c.update(factory="os:system", kwargs={"command": "id"})), load),
    "timm: unpickles": (factory("timm.models._hub:load_state_dict_from_path", path=...), built),
    "timm: appends": (factory("timm.utils:update_summary", epoch=1), built),
    "timm: fetches": (factory("timm.models._hub:download_cached_file", url="http://localhost:1/"), built),
    "timm: imports": (factory("timm.models._builder:_import_class", class_string="antigravity"), built),
    "timm: checkpoint of a model": (factory("timm:resnet18", checkpoint_path=...), built),
    "torchvision: weights": (factory("torchvision.models:resnet18", weights="DEFAULT"), built),
    "EPS named png": (eps, imagefolder),
    "npz of objects": (objects, npz),
    "npz of a huge label": (huge_label, npz),
    "run: name that leaves the folder": (run_directory("result.json", '{"metric": "../../x"}'), show),
    "run: garbage": (run_directory("result.json", "\x00garbage"), show),
    "plan: too many epochs": (plan_with(seeds=[10**30]), load_plan),
    "plan: member that is a path": (plan_with(members={"../x": {}}), load_plan),
    "plan: lone surrogate": (plan_with(method="\ud800"), load_plan),
}


SUSPICIOUS = frozenset((
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo",
    "shutil.rmtree", "os.remove", "os.rename", "os.mkdir", "webbrowser.open", "pickle.find_class",
))  # fmt: skip


def watched(read: Read, path: Path, home: Path, events: list[str]) -> str:
    """What reading says; events are noted by the hook while it reads."""
    os.chdir(home)
    events.clear()
    try:
        read(path)
    except FxdistillError as error:
        return f"refused ({error.exit_code}): {error.what}"
    except BaseException as error:  # noqa: BLE001  # a raw one is what is looked for
        return f"RAW {type(error).__name__}: {error}"
    return "read"


def main() -> None:
    """Make every attack, then read them all under the hook."""
    root = Path(sys.argv[1])
    home = root / "home"
    home.mkdir()
    made = {}
    for number, (name, (make, read)) in enumerate(ATTACKS.items()):
        folder = root / str(number)
        folder.mkdir()
        made[name] = (make(folder), read)
    with contextlib.suppress(FxdistillError):  # imports what any reading imports
        load_data("digits")
    save(network(), root / "warm.pt", input_shape=(1, 1, 8, 8))
    load(root / "warm.pt").module(torch.zeros(1, 1, 8, 8))
    factories.build("timm:resnet18", {})
    factories.build("torchvision.models:resnet18", {})
    graphs.of_model(network(), input_shape=(1, 1, 8, 8), where="")
    with contextlib.suppress(FxdistillError):
        weights(root / "warm.pt")
    for name in ("EPS named png", "npz of a huge label", "run: garbage", "pickle beside weights", "torch.export"):
        with contextlib.suppress(Exception):
            made[name][1](made[name][0])
    events: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in SUSPICIOUS:
            events.append(f"{event} {arguments!r}"[:200])
        elif event == "exec" and "<eval_with_key>" not in str(getattr(arguments[0], "co_filename", "")):
            events.append(f"exec {getattr(arguments[0], 'co_filename', '')}")
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            events.append(f"open {arguments[:2]!r}")
        elif event == "import":
            events.append(f"import {arguments[0]}")

    sys.addaudithook(hook)
    report = {}
    for name, (path, read) in made.items():
        said = watched(read, path, home, events)
        report[name] = [said, list(events), sorted(entry.name for entry in home.iterdir())]
    sys.stdout.write("\n" + base64.b64encode(json.dumps(report).encode()).decode() + "\n")


if __name__ == "__main__":
    main()

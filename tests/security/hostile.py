"""A process that reads what a stranger made, under an audit hook, and says what happened besides.

Every attack is made in a folder, then read. The report is the last line that :func:`main` writes: for each attack the
answer, the events that no reading of data has a reason for, the files that are there besides, and how far memory rose.
"""

import base64
import contextlib
import encodings
import importlib
import json
import os
import pickle
import pkgutil
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import fxdistill
from fxdistill.data.load import load as load_data
from fxdistill.errors import FxdistillError
from fxdistill.modelfiles import factories
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.load import load
from fxdistill.runtime.deployment import deploy
from tests.security import data, graphs, onnx_files, pickles, runs
from tests.security.made import EVIL, SHAPE, Attack, Read, file, network, weights

ATTACKS: dict[str, Attack] = {
    **pickles.ATTACKS, **graphs.ATTACKS, **onnx_files.ATTACKS, **data.ATTACKS, **runs.ATTACKS,
}  # fmt: skip
WARM = (
    "torch.export", "image, EPS", "image, a TIFF in itself", "npz, a label of 2**62", "npz of code for a header",
    "graph used, a layer with text", "onnx, garbage", "onnx, no answer", "factory, timm: weights of terabytes",
    "factory, transformers: a pipeline", "CIFAR-10 of pickles", "Fashion-MNIST that says more", "masks of colours",
    "plan, crop:100000",
)  # fmt: skip
PLANTED = "a reader that unpickles"
"""Not one of ours: the hook has to notice it."""
SUSPICIOUS = frozenset((
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.putenv", "os.kill",
    "socket.connect", "socket.getaddrinfo", "socket.bind", "shutil.rmtree", "shutil.move", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "webbrowser.open", "ctypes.dlopen",
    "marshal.loads", "code.__new__", "tempfile.mkdtemp", "tempfile.mkstemp",
    "pickle.find_class",
))  # fmt: skip
_DRIVER = "libnvidia-ml.so.1"
_ROOM = 6 << 30  # bytes beyond what the process has: an attack on memory is to fail here, and not to take the machine


def noted(event: str, arguments: tuple[Any, ...]) -> str:
    """What to say of an event; '' for what reading data has a reason for."""
    if event == "ctypes.dlopen" and arguments == (_DRIVER,):
        return ""  # torch counts the machine's devices
    if event == "open":
        path, mode = arguments[:2]
        return f"open {path!r} {mode}" if isinstance(mode, str) and set(mode) & set("wax+") else ""
    if event == "exec":
        name = str(getattr(arguments[0], "co_filename", ""))
        return "" if "<eval_with_key>" in name else f"exec {name}"  # what torch.fx writes of a graph of ours
    if event == "import":
        return f"import {arguments[0]}"
    return f"{event} {arguments!r}"[:200] if event in SUSPICIOUS else ""


def peak(*, reset: bool = False) -> int:
    """Bytes of memory that the process held at most since this was reset; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return 0


def answer(read: Read, path: Path) -> str:
    """What reading says."""
    try:
        read(path)
    except FxdistillError as error:
        return f"refused ({error.exit_code}): {error.what}"
    except BaseException as error:  # noqa: BLE001  # a raw one is what is looked for
        return f"RAW {type(error).__name__}: {error}"
    return "read"


def unsafe(path: Path) -> object:
    """A reader as it should not be."""
    with path.open("rb") as held:
        return pickle.load(held)


def warm(root: Path) -> None:
    """Import what any reading imports."""
    for package in (fxdistill, encodings):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(("__main__", ".mbcs", ".oem", "fxdistill.passes.passes")):
                importlib.import_module(found.name)
    save(network(), root / "warm.pt", input_shape=SHAPE)
    load(root / "warm.pt").module(torch.zeros(SHAPE))
    deploy.evaluate(str(root / "warm.pt"), data="digits")
    factories.build("timm:resnet18", {})
    factories.build("torchvision.models:resnet18", {})
    with contextlib.suppress(FxdistillError):
        factories.build("transformers:ViTForImageClassification", {"hidden_size": 12, "num_attention_heads": 2})
    with contextlib.suppress(FxdistillError):
        weights(root / "warm.pt")
    with contextlib.suppress(FxdistillError):
        load_data("digits")


def made(root: Path, attacks: dict[str, Attack]) -> Iterator[tuple[str, Read, Path, Path]]:
    """Every attack in a folder of its own; where it is read is an empty one beside it."""
    for number, (name, attack) in enumerate(attacks.items()):
        folder, home = root / str(number), root / f"home-{number}"
        folder.mkdir()
        home.mkdir()
        yield name, attack.read, attack.make(folder), home


def size_of(path: Path) -> int:
    held = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    return sum(entry.stat().st_size for entry in held)


def main(root: Path) -> None:
    """Make every attack in a folder, then read them all under the hook."""
    warnings.simplefilter("ignore")
    warm(root)
    ready = list(made(root, {**ATTACKS, PLANTED: Attack(file("a.pkl", EVIL), unsafe)}))
    for name in WARM:  # what libraries import on the way to an error
        _, read, path, home = next(entry for entry in ready if entry[0] == name)
        os.chdir(home)
        answer(read, path)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if peak() else 0
    resource.setrlimit(resource.RLIMIT_AS, (held + _ROOM if held else resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    events: list[str] = []
    watching = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and (said := noted(event, arguments)):
            events.append(said)

    sys.addaudithook(hook)
    report = {}
    for name, read, path, home in ready:
        os.chdir(home)
        size, before = size_of(path), peak(reset=True)
        events.clear()
        watching = True
        said = answer(read, path)
        watching = False
        report[name] = [said, list(events), sorted(entry.name for entry in home.iterdir()), size, peak() - before]
    sys.stdout.write("\n" + base64.b64encode(json.dumps(report).encode()).decode() + "\n")

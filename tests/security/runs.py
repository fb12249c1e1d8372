"""Plans and run directories: numbers that nobody means, names that leave the folder, links, text that is no JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fxdistill import container
from fxdistill.plan.file import load
from fxdistill.report.show import show
from fxdistill.runtime.run import execute, execution
from tests.security.made import EVIL, Attack, Content, Make, file, plan, plan_with

Change = Callable[[Content], object]


def stage(**change: Any) -> Change:
    return lambda content: content["arms"][0]["stages"][0].update(change)


def optimizer(**change: Any) -> Change:
    return lambda content: content["arms"][0]["stages"][0]["optimizer"].update(change)


def teacher(**change: Any) -> Change:
    return lambda content: content["members"]["teacher"].update(change)


def data(**change: Any) -> Change:
    return lambda content: content["data"].update(change)


def renamed(content: Content) -> None:
    content["arms"][0]["name"] = content["export"]["arm"] = "../x"


PLANS: dict[str, Change] = {
    "epochs of 1e18": stage(epochs=10**18), "epochs of -1": stage(epochs=-1), "epochs of 1e400": stage(epochs=10**400),
    "a rate of 1e308": optimizer(lr=1e308), "a rate of 0": optimizer(lr=0), "a momentum of 2": optimizer(momentum=2.0),
    "a decay of -1": optimizer(weight_decay=-1.0), "a warm-up of 1e18": optimizer(warm_up=1e18),
    "a batch of 2**40": data(batch_size=2**40), "a batch of 0": data(batch_size=0),
    "crop:100000": data(augmentation=["crop:100000"]), "crop:-1": data(augmentation=["crop:-1"]),
    "an augmentation that is code": data(augmentation=["__import__('os')"]),
    "an augmentation in a path": data(augmentation=["../../evil"]),
    "classes twice": data(classes=["a", "a"]), "a class of a terminal": data(classes=["\x1b]0;x\x07"]),
    "a size of 2**40": lambda p: p["input"].update(shape=[1, 1, 2**40, 8]),
    "a size of nothing": lambda p: p["input"].update(shape=[1, 1, 0, 8]),
    "a seed of 10**30": lambda p: p.update(seeds=[10**30]), "a seed of -1": lambda p: p.update(seeds=[-1]),
    "no seed": lambda p: p.update(seeds=[]), "a member that is a path": lambda p: p.update(members={"../x": {}}),
    "a member that is absolute": lambda p: p.update(members={"/tmp/x": p["members"]["teacher"]}),
    "a member with a NUL": lambda p: p["members"].update({"a\0b": p["members"]["teacher"]}),
    "a member called plan": lambda p: p["members"].update(plan=p["members"]["teacher"]),
    "an arm that leaves the folder": renamed, "a stage without a name": stage(name=""),
    "half a character": lambda p: p.update(method="\ud800"),
    "a loss that is code": stage(losses=[{"loss": "os.system"}]),
    "weights of 0": lambda p: [term.update(weight=0.0) for term in p["arms"][0]["stages"][0]["losses"]],
    "a weight of 1e300": lambda p: [term.update(weight=1e300) for term in p["arms"][0]["stages"][0]["losses"]],
    "an export that leaves the folder": lambda p: p["export"].update(member="../../x"),
    "an opset of 2**70": lambda p: p["export"].update(opset=-(2**70)),
    "a tolerance of 0": lambda p: p["export"].update(tolerance=0),
    "preprocessing of NaN": teacher(preprocessing={"mean": ["nan"]}),
    "a plug-in that is an option": lambda p: p.update(
        plugins=[{"kind": "loss", "name": "x", "distribution": "--index-url=http://localhost:1/", "version": "1"}]
    ),
    "a plug-in of a terminal": lambda p: p.update(
        plugins=[{"kind": "loss", "name": "x", "distribution": "a; rm -rf /", "version": "1"}]
    ),
    "a version of tomorrow": lambda p: p.update(version=10**30), "a version of text": lambda p: p.update(version="3"),
    "a field that is not": lambda p: p.update(on_load="code"),
}  # fmt: skip
TEXTS: dict[str, bytes] = {
    "deep": b"[" * 100_000, "NaN": b'{"version": NaN}', "a field twice": b'{"version": 3, "version": 3}',
    "bytes": bytes(range(256)), "nothing": b"", "a pickle": EVIL, "a number of many digits": b"9" * 5000,
    "60 MB of lists": b"[" + b"[]," * 20_000_000 + b"[]]",
}  # fmt: skip


def ran(path: Path) -> object:
    """The plan run, beside it."""
    return execute.execute(path, path.parent / "run")


def directory(change: Callable[[Path], object]) -> Make:
    """A run directory that was just begun, with a change."""

    def make(folder: Path) -> Path:
        (folder / "plan.json").write_text(plan())
        (folder / "origin.json").write_text(json.dumps({"plan": "plan.json", "sha256": []}))
        change(folder)
        return folder

    return make


def holding(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def link(name: str, target: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def checkpoint(**change: Any) -> Callable[[Path], object]:
    fresh: Content = {
        "format": 3, "arm": 0, "state": None, "optimizer": None, "scaler": {}, "metrics_size": 0, "seconds": 0.0,
        "finished": [], "how": {}, "average": None, "position": {"stage": 0, "epoch": 0, "step": 0},
        "means": {"count": 0, "values": {}},
    }  # fmt: skip
    return lambda folder: container.write(folder / "checkpoint.pt", "checkpoint", {**fresh, **change})


LINE = '{"seed": 0, "name": "NAME", "stage": "main", "epoch": 1, "losses": {}, "metrics": {}, "time": 1, '
LINE += '"images_per_second": 1}\n'
RUNS: dict[str, Callable[[Path], object]] = {
    "a result that leaves the folder": holding("result.json", '{"metric": "../../x"}'),
    "a result of garbage": holding("result.json", b"\x00garbage"),
    "a deep result": holding("result.json", "[" * 100_000),
    "a result of NaN": holding("result.json", '{"metric": NaN}'),
    "an origin of garbage": holding("origin.json", "{"),
    "an origin with a NUL": holding("origin.json", '{"plan": "a\\u0000b"}'),
    "an origin of numbers": holding("origin.json", '{"plan": 5, "sha256": 5}'),
    "metrics of garbage": holding("metrics.jsonl", b"\xff\x00\n" * 9),
    "metrics that leave the folder": holding("metrics.jsonl", LINE.replace("NAME", "../../x")),
    "metrics that are absolute": holding("metrics.jsonl", LINE.replace("NAME", "/tmp/x")),
    "metrics with a NUL": holding("metrics.jsonl", LINE.replace("NAME", "a\\u0000b")),
    "metrics of the epoch 2**70": holding("metrics.jsonl", LINE.replace('"epoch": 1', '"epoch": 9' + "9" * 30)),
    "metrics of a line of 60 MB": holding("metrics.jsonl", b"[" + b"[]," * 20_000_000 + b"[]]\n"),
    "a result of 60 MB": holding("result.json", b"[" + b"[]," * 20_000_000 + b"[]]\n"),
    "an origin of 60 MB": holding("origin.json", b"[" + b"[]," * 20_000_000 + b"[]]\n"),
    "a checkpoint that is a pickle": holding("checkpoint.pt", EVIL),
    "a checkpoint of garbage": holding("checkpoint.pt", b"garbage" * 99),
    "a checkpoint of another format": checkpoint(format=99),
    "a checkpoint of another format in text": checkpoint(format=["x"]),
    "a checkpoint of the arm 10**9": checkpoint(arm=10**9),
    "a checkpoint of the arm -1": checkpoint(arm=-1),
    "a checkpoint of the epoch 2**62": checkpoint(position={"stage": 0, "epoch": 2**62, "step": 0}, state={}),
    "a checkpoint without a place": checkpoint(position=None),
    "a checkpoint with more": checkpoint(evil=1),
    "a checkpoint of metrics that are not": checkpoint(metrics_size=2**62),
    "a checkpoint of a training that is not": checkpoint(finished=[{"name": "../x", "seed": 0}]),
    "a checkpoint that is a link": link("checkpoint.pt", "/etc/hostname"),
    "a plan that is a link": link("plan.json", "/etc/hostname"),
    "metrics that are a link": link("metrics.jsonl", "home/x"),
    "a lock that is a link": link(".lock", "home/x"),
    "a tensorboard that is a link": link("tensorboard", "/tmp"),
    "seeds' runs that are a link": link("jobs", "/tmp"),
    "a student that is a link": link("student.pt", "home/x"),
    "a file of before that is a link": link(".plan.json.abcdefgh", "/tmp"),
}
ATTACKS: dict[str, Attack] = {
    **{f"plan, {name}": Attack(plan_with(change), load) for name, change in PLANS.items()},
    **{f"plan of {name}": Attack(file("plan.json", text), load) for name, text in TEXTS.items()},
    "plan, a model that is not there": Attack(plan_with(teacher(path="/etc/hostname", sha256="0" * 64)), ran),
    "plan, data in a path": Attack(plan_with(data(spec="imagefolder:/etc")), ran),
    "plan, data that is code": Attack(plan_with(data(spec="os.path:exists")), ran),
    **{f"run, {name}": Attack(directory(change), show) for name, change in RUNS.items()},
    **{
        f"run again, {name}": Attack(
            directory(change), lambda path: execute.execute(path / "plan.json", path, execution.Settings(resume=True))
        )
        for name, change in RUNS.items()
        if "link" in name or "leave" in name or "checkpoint" in name
    },
}

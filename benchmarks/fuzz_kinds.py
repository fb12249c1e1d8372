"""What is fuzzed: kinds of files, how a mutant of each is made, and how the product reads it.

A mutant is some files, made from the originals and a random state alone. Reading gives what is to be held against it
afterwards: that what was read can be written and read again to the same, and that a model that was read can be used.
"""

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

import fxdistill
from benchmarks import fuzz_archives as archives
from benchmarks import fuzz_changes as change
from benchmarks import fuzz_containers as containers
from benchmarks.fuzz_originals import ARGUMENTS, FACTORY, SHAPE
from fxdistill import container
from fxdistill.data import classmap
from fxdistill.data.load import load as load_data
from fxdistill.modelfiles import bundle, graphs
from fxdistill.modelfiles.load import load
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.file import parse
from fxdistill.preprocessing import Reading
from fxdistill.report.show import show
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.processes.crew import Crew
from fxdistill.runtime.run import beginning, checkpoint, execute, execution
from fxdistill.tasks import TASKS

Files = dict[str, bytes]
Use = Callable[[], object]
_LOAD = execute._load  # noqa: SLF001  # replaced where what is loaded is always the same
_READING = Reading((8, 8), (8, 8))
_IMAGE = 700 << 20  # the largest image has 67 million pixels
_ENDED = ("trained_distilled-seed0.pt", "trained_control-seed0.pt")
_BUNDLES = ("graph.pt", "recurrent.pt", "factory.pt", "weights.pt")


class Unsound(Exception):  # noqa: N818  # a finding, not an error
    """What was read is not what it should be."""


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        make: A mutant's files by name, from the folder of originals.
        read: Reads what lies in a folder; gives what to do with it afterwards.
        most: Bytes that reading may take beside three times the files.
        broken: Whether every mutant is damage to a file with checksums: it is refused, or reads as the original does.
        writes: Whether reading may write in that folder, as a run that goes on does.
    """

    make: Callable[[Random, Path], Files]
    read: Callable[[Path], Use | None]
    most: int = 64 << 20
    broken: bool = False
    writes: bool = False


@functools.cache
def original(folder: Path, name: str) -> bytes:
    """An original's bytes."""
    return (folder / name).read_bytes()


@functools.cache
def tree(folder: Path, name: str) -> Mapping[str, bytes]:
    """All files of an original folder."""
    root = folder / name
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def one(name: str, *sources: str, by: change.Change) -> Callable[[Random, Path], Files]:
    """A mutant that is one file, made from one of several originals."""

    def make(random: Random, originals: Path) -> Files:
        return {name: by(random, original(originals, random.choice(sources)))}

    return make


# --- plans and runs


def _plan(random: Random, originals: Path) -> Files:
    other = tree(originals, "run")["result.json"]
    return {"plan.json": change.json_file(random, original(originals, "plan.json"), (other,))}


def _gentle(random: Random, originals: Path) -> Files:
    names = ("data.npz", "teacher.pt", "student.pt")
    return {
        "plan.json": change.gentle(random, original(originals, "plan.json")),
        **{name: original(originals, name) for name in names},
    }


def _printable(*texts: str) -> None:
    for text in texts:
        if odd := next((character for character in text if not character.isprintable() and character != "\n"), ""):
            raise Unsound(f"what is shown holds {odd!r}")


def _show_plan(folder: Path) -> Use:
    plan = load_plan(folder / "plan.json")
    _printable(show(folder / "plan.json"))

    def again() -> None:
        if parse(json.loads(plan.to_json()), where="again") != plan:
            raise Unsound("the plan that was read is written as another one")

    return again


def _edited(random: Random, files: dict[str, bytes], name: str) -> None:
    raw = files[name]
    if name.endswith(".json"):
        files[name] = change.json_file(random, raw)
    elif name.endswith(".jsonl"):
        files[name] = change.lines_file(random, raw)
    elif name.endswith("state_dict.pt"):
        files[name] = archives.zip_parts(random, raw, archives.pickled)
    elif name.endswith(".pt") and random.random() < 0.9:
        files[name] = containers.resealed(
            random, raw, tuple(v for k, v in files.items() if k.endswith(".pt") and "dict" not in k)
        )
    else:
        files[name] = change.damaged(random, raw)


def _run(folder: str, weights: Mapping[str, int]) -> Callable[[Random, Path], Files]:
    def make(random: Random, originals: Path) -> Files:
        files = dict(tree(originals, folder))
        (name,) = random.choices(list(weights), list(weights.values()))
        if random.random() < 0.06:  # a file that is not there, or another one
            if random.random() < 0.5:
                del files[name]
            else:
                files[name] = random.choice(list(files.values()))
        else:
            _edited(random, files, name)
        return files

    return make


def _show_run(folder: Path) -> Use:
    _printable(show(folder))
    load(folder)
    return lambda: fxdistill.evaluate(folder)


def _run_plan(folder: Path) -> None:
    execute._load = _LOAD  # noqa: SLF001
    execute.execute(folder / "plan.json", folder / "run", execution.Settings(device="cpu", force=True))


@functools.cache
def _parts(plan: Path) -> Any:
    """What a plan names, loaded once: neither reads what the mutants are about."""
    found = load_plan(plan)
    begun = beginning.Begun(found, found, plan, {"channels_last": None})
    return execute._load(begun, execution.Settings(device="cpu"), "cpu", Crew())  # noqa: SLF001


def prepare(originals: Path) -> None:
    """Load what every resumed run needs, and put that, and nothing, for loading and exporting."""
    preflight.exports = lambda *_: None
    parts = _parts(originals / "plan.json")
    for name, function in (("_load", lambda *_, **__: copy.deepcopy(parts)), ("finish", lambda *_, **__: {})):
        setattr(execute, name, function)


def _resume(folder: Path) -> None:
    execute.execute(folder / "plan.json", folder, execution.Settings(device="cpu", resume=True, force=True))


def _extend(folder: Path) -> None:
    execute.execute(folder / "plan.json", folder, execution.Settings(device="cpu", more_epochs=1, force=True))


# --- models


def _use_model(path: Path, **how: Any) -> Use:
    found = load(path, **how)
    _printable(*(text for one in found.diagnostics for text in (one.where, one.why, one.hint)))
    given: dict[str, Any] = {
        "factory": FACTORY,
        "args": [f"{name}={json.dumps(value)}" for name, value in ARGUMENTS.items()],
    }
    return lambda: fxdistill.evaluate(path, "npz:../data.npz", **(given if how else {}))


def _bundle(random: Random, originals: Path) -> Files:
    name = random.choice(("graph.pt", "graph.pt", "recurrent.pt"))
    others = tuple(original(originals, other) for other in _BUNDLES)
    return {"model.pt": containers.resealed(random, original(originals, name), others)}


def _read_graph(folder: Path) -> Use:
    found = bundle.read(folder / "model.pt")
    evaluate, module = _use_model(folder / "model.pt"), load(folder / "model.pt").module

    def use() -> None:
        content = {"state": dict(found.state), "graph": found.graph, "metadata": found.metadata}
        written = container.to_bytes("model", content, where="again")
        if not _same(container.from_bytes(written, where="again", kinds=("model",))[1], content):
            raise Unsound("the bundle that was read is written as another one")
        evaluate()
        if isinstance(module, torch.fx.GraphModule):
            twice = graphs.from_data(graphs.to_data(module, where="again"), where="again").eval()
            image = torch.rand(SHAPE)
            with torch.no_grad():
                first, second = (_answer(model, image) for model in (module, twice))
            if not _same(first, second):
                raise Unsound("the graph that was read is written as another one")

    return use


def _answer(model: nn.Module, image: Tensor) -> Any:
    torch.manual_seed(0)
    return model(image.clone())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or one != one  # noqa: PLR0124  # NaN


def _load_model(folder: Path) -> Use:
    return _use_model(folder / "model.pt")


def _load_weights(folder: Path) -> Use:
    (path,) = folder.iterdir()
    return _use_model(path, factory=FACTORY, kwargs=ARGUMENTS)


def _damaged(random: Random, originals: Path) -> Files:
    name = random.choice((*_BUNDLES, "begun/checkpoint.pt", "run/trained_control-seed0.pt"))
    raw, other = original(originals, name), original(originals, random.choice(_BUNDLES))
    made = change.spliced(random, raw, other) if random.random() < 0.1 else change.damaged(random, raw)
    return {Path(name).name: made if made != raw else raw[:-1]}


def _read_sealed(folder: Path) -> None:
    (path,) = folder.iterdir()
    container.read(path, kinds=("model", "checkpoint"))
    raise Unsound("a damaged file was read")


def _damaged_zip(random: Random, originals: Path) -> Files:
    raw = original(originals, random.choice(("state.pt", "training.pt")))
    at = random.randrange(len(raw))
    made = bytearray(raw)
    made[at] ^= 1 << random.randrange(8)
    return {"model.pt": bytes(made) if random.random() < 0.8 else raw[:at]}


def _read_zip(originals: Path) -> Callable[[Path], Use | None]:
    def read(folder: Path) -> None:
        found = load(folder / "model.pt", factory=FACTORY, kwargs=ARGUMENTS).module.state_dict()
        if not _same(dict(found), dict(load(originals / "factory.pt").module.state_dict())):
            raise Unsound("a damaged archive was read as other weights")

    return read


def _read_checkpoint(folder: Path) -> Use:
    found = checkpoint.load_from(folder / "checkpoint.pt")

    def again() -> None:
        checkpoint.save_to(folder / "again.pt", found)
        if not _same(vars(checkpoint.load_from(folder / "again.pt")), vars(found)):
            raise Unsound("the checkpoint that was read is written as another one")

    return again


# --- data


def _data(spec: str, *, task: str = "classification") -> Callable[[Path], Use]:
    def read(folder: Path) -> Use:
        found = load_data(spec.format(folder), task=task, reading=_READING)

        def use() -> None:
            for split in (found.train, found.test):
                images = next(iter(split.read([torch.arange(min(2, len(split)))])))
                if images.shape[1:] != found.image_shape or len(split.labels) != len(split):
                    raise Unsound("a data set whose splits are not what it says")

        return use

    return read


def _zip_of_arrays(random: Random, raw: bytes) -> bytes:
    if random.random() < 0.25:
        return archives.zip_fields(random, raw) if random.random() < 0.5 else change.damaged(random, raw)
    return archives.zip_parts(random, raw, archives.npy)


def _picture(random: Random, originals: Path) -> tuple[str, bytes]:
    every = tree(originals, "images")
    name, raw = random.choice(list(every.items()))
    chance = random.random()
    if name.endswith(".png") and chance < 0.7:
        raw = archives.png(random, raw)
    elif chance < 0.9:
        raw = change.damaged(random, raw)
    else:
        raw = change.spliced(random, raw, random.choice(list(every.values())))
    return random.choice((Path(name).suffix, Path(name).suffix, ".png", ".jpg", ".tif")), raw


def _pictures(random: Random, originals: Path) -> Files:
    suffix, raw = _picture(random, originals)
    whole = tree(originals, "images")["02.png"]
    return {f"train/cat/a{suffix}": raw, "train/dog/a.png": whole, "test/dog/a.png": whole}


def _masks(random: Random, originals: Path) -> Files:
    suffix, raw = _picture(random, originals)
    mask, image = tree(originals, "images")["01.jpg"], tree(originals, "images")["02.png"]
    pair = {f"test/images/a{suffix}": raw, "test/masks/a.png": mask}
    return pair if random.random() < 0.3 else {"test/images/a.png": image, f"test/masks/a{suffix}": raw}


def _idx(random: Random, originals: Path) -> Files:
    files = {f"FashionMNIST/{name}": raw for name, raw in tree(originals, "FashionMNIST").items()}
    name = random.choice(list(files))
    files[name] = (
        change.damaged(random, files[name][:16]) + files[name][16:]
        if random.random() < 0.7
        else change.damaged(random, files[name])
    )
    return files


def _map(random: Random, originals: Path) -> Files:
    name = random.choice(("classes0.json", "classes1.json", "classes2.json", "classes.txt"))
    raw = original(originals, name)
    return {name: change.json_file(random, raw) if name.endswith(".json") else change.damaged(random, raw)}


def _read_map(folder: Path) -> Use:
    (path,) = folder.iterdir()
    names = classmap.read(path)
    if not names or not all(isinstance(name, str) for name in names):
        raise Unsound("a class map of what are no names")
    data = load_data("npz:../data.npz")
    return lambda: classmap.mapped(data, names, task=TASKS.get("classification"), where=str(path))


def kinds(originals: Path) -> dict[str, tuple[int, Kind]]:
    """Every kind by name, and its share of the mutants."""
    zipped = functools.partial(archives.zip_parts, change=archives.pickled)
    maps = functools.partial(_data, task="segmentation")
    in_bundle, in_arrays = functools.partial(one, "model.pt"), functools.partial(one, "data.npz", by=_zip_of_arrays)
    states = ("state.pt", "training.pt", "run/student_state_dict.pt")
    kept = one("checkpoint.pt", "begun/checkpoint.pt", by=containers.resealed)
    begun = _run("begun", {"checkpoint.pt": 8, "metrics.jsonl": 4, "origin.json": 2, "plan.json": 1, "student.pt": 1})
    shown = _run("run", {"plan.json": 3, "result.json": 6, "origin.json": 2, "student.pt": 4, "metrics.jsonl": 1})
    longer = _run("run", {_ENDED[0]: 4, _ENDED[1]: 3, "result.json": 3, "metrics.jsonl": 2, "plan.json": 1})
    foreign = one("model.safetensors", "state.safetensors", by=containers.safetensors_file)
    older = in_bundle("old.pt", "training_old.pt", by=archives.old_layout)
    return {
        "plan": (5, Kind(_plan, _show_plan)),
        "bundle of a graph": (8, Kind(_bundle, _read_graph)),
        "bundle of a factory": (3, Kind(in_bundle("factory.pt", by=containers.resealed), _load_model)),
        "bundle of weights alone": (2, Kind(in_bundle("weights.pt", by=containers.resealed), _load_model)),
        "weights alone and a factory": (2, Kind(in_bundle("weights.pt", by=containers.resealed), _load_weights)),
        "container, damaged": (4, Kind(_damaged, _read_sealed, broken=True)),
        "state dict, zip": (5, Kind(in_bundle(*states, by=zipped), _load_weights)),
        "state dict, records of the zip": (2, Kind(in_bundle(*states[:2], by=archives.zip_fields), _load_weights)),
        "state dict, damaged": (3, Kind(_damaged_zip, _read_zip(originals), broken=True)),
        "state dict, old layout": (4, Kind(older, _load_weights)),
        "safetensors": (3, Kind(foreign, _load_weights)),
        "npz": (4, Kind(in_arrays("data.npz"), _data("npz:{}/data.npz"))),
        "npz of encoded images": (2, Kind(in_arrays("blob.npz"), _data("npz:{}/data.npz"), most=_IMAGE)),
        "npz of maps": (2, Kind(in_arrays("maps.npz"), maps("npz:{}/data.npz"))),
        "folder of images": (6, Kind(_pictures, _data("imagefolder:{}"), most=_IMAGE)),
        "images and masks": (2, Kind(_masks, maps("masks:{}"), most=_IMAGE)),
        "idx files": (1, Kind(_idx, _data("fashion-mnist:{}"))),
        "class map": (2, Kind(_map, _read_map)),
        "checkpoint of a run": (3, Kind(kept, _read_checkpoint)),
        "plan that is run": (1, Kind(_gentle, _run_plan, writes=True)),
        "run that is resumed": (3, Kind(begun, _resume, writes=True)),
        "run that is extended": (1, Kind(longer, _extend, writes=True)),
        "run that is shown and loaded": (5, Kind(shown, _show_run)),
    }  # fmt: skip

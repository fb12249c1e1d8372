"""InDistill: what the warm-up is worth, beside the methods that it comes before.

    python -m benchmarks.indistill --cifar cifar10_jpeg.npz --fashion ROOT --work WORK
    python -m benchmarks.indistill … --only cifar-retrieval --only fashion-classification/kd --seeds 5 --hours 2
    python -m benchmarks.indistill --table

Every arm is a plan, made and run by the package; all arms of a setting train the same number of epochs on the same
images in the same order, and a seed gives them the same initial weights. What an arm has of its own stands in
``ARMS``. 10,000 random training images and 2,000 random test images (of 50,000 or 60,000, and 10,000); teachers are
trained on all training images. Metrics are those of the last epoch on the test images; nothing is chosen by them.
Warm-ups keep the channels with the largest filters, as in the paper and as was the default when most rows were made;
where they keep others, the arm says which.

A finished run is one line of ``indistill.jsonl``, with its seed, versions and machine, so that an interrupted series
goes on where it stopped and several may add to it; ``--table`` writes ``indistill.md``.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

import fxdistill
from benchmarks import materials, series
from benchmarks.materials import Work
from benchmarks.series import Row, Series
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.training import LossTerm, Optimizer, Stage
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Settings

TEACHER_EPOCHS, RESNET_EPOCHS, TAUGHT_EPOCHS, RATE = 40, 15, 12, 1e-3
EPOCHS = {"retrieval": 70, "classification": 60}
PRIMARY = {"retrieval": "mAP", "classification": "accuracy"}
Edit = Callable[[Plan], Plan]


@dataclass(frozen=True)
class Model:
    """A factory of :mod:`fxdistill.models` and its arguments; the image's size and channels are the data's."""

    factory: str
    kwargs: dict[str, Any]
    taught_by: "Model | None" = None
    """Whose embedding it learns by PKT, once it is trained by cross-entropy; None for none."""

    @property
    def name(self) -> str:
        """Of its file, without the data's."""
        return "-".join([self.factory, *map(str, self.kwargs["widths"]), *(["taught"] if self.taught_by else [])])

    def arguments(self, data: str) -> dict[str, Any]:
        """All arguments, those of the data among them."""
        channels, size = (3, 32) if data == "cifar" else (1, 28)
        sized = {"image_size": size, "padding": 0} if self.factory == "convnet" else {}
        return {**self.kwargs, **sized, "in_channels": channels}


_AUXILIARY = Model("convnet", {"widths": [16, 32, 64], "hidden": 128})
_RESNET, _SMALL = (Model("resnet", {"widths": [w, 2 * w, 4 * w], "blocks": n}) for w, n in ((16, 3), (8, 1)))
_RELEASED_STUDENT = Model("convnet", {"widths": [8, 16, 32], "hidden": 64})
PAIRS = {
    "released": (_AUXILIARY, _RELEASED_STUDENT),
    "taught": (replace(_AUXILIARY, taught_by=_RESNET), _RELEASED_STUDENT),
    "again": (replace(_AUXILIARY, taught_by=_RESNET), _RELEASED_STUDENT),
    "direct": (_RESNET, _RELEASED_STUDENT),
    "resnet": (_RESNET, _SMALL),
    "cross": (_AUXILIARY, _SMALL),
}
"""Teacher and student: InDistill's released experiment from its auxiliary on, which has seen labels alone, or has
learnt from a larger network afterwards, as the released one has, and the same with a larger network that was trained
anew; that larger network itself, with no auxiliary between; ResNet-20 and a small one; across."""


def _stages(plan: Plan, change: Callable[[list[Stage]], list[Stage]]) -> Plan:
    (arm,) = plan.arms
    return plan.changed(arms=[arm.changed(stages=change(list(arm.stages)))])


def _comparing(how: str) -> Edit:
    """The warm-ups compare something else of the taps."""

    def stage(one: Stage) -> Stage:
        return one.changed(losses=[t.changed(compare=how) if t.pair else t for t in one.losses])

    return lambda plan: _stages(plan, lambda stages: [*map(stage, stages[:-1]), stages[-1]])


def _together(plan: Plan) -> Plan:
    """All pairs at once, for as many epochs as one after the other."""

    def change(stages: list[Stage]) -> list[Stage]:
        *warm, main = stages
        terms = [term for stage in warm for term in stage.losses]
        return [warm[0].changed(epochs=sum(s.epochs for s in warm), losses=terms), main]

    return _stages(plan, change)


def _share(share: float) -> Edit:
    """The warm-ups take a share of all epochs, divided among them as they were."""

    def change(stages: list[Stage]) -> list[Stage]:
        *warm, main = stages
        total, before = sum(s.epochs for s in stages), sum(s.epochs for s in warm)
        new = [s.changed(epochs=max(1, round(share * total * s.epochs / before))) for s in warm]
        return [*new, main.changed(epochs=total - sum(s.epochs for s in new))]

    return lambda plan: _stages(plan, change)


def _as_released(plan: Plan) -> Plan:
    """The released recipe: a fresh Adam every epoch, a constant rate, and the last 10 epochs at a tenth of it."""

    def change(stages: list[Stage]) -> list[Stage]:
        rate = stages[-1].optimizer.lr
        adam = Optimizer(name="adam", lr=rate, restart=True)
        *warm, main = [s.changed(optimizer=adam, schedule="constant") for s in stages]
        fine = main.changed(name="fine", epochs=10, optimizer=adam.changed(lr=rate / 10))
        return [*warm, main.changed(epochs=main.epochs - 10), fine]

    return _stages(plan, change)


def _predecessor(plan: Plan) -> Plan:
    """PKT at all layers at once, with weights (w, w, w, 1), w = 100 * 0.7 ** epoch (Passalis et al., CVPR 2020)."""
    pairs = [
        LossTerm(loss="pkt", pair=pair.name, weight=100.0, decay=0.7, student="student", teacher="teacher")
        for pair in plan.pairs
    ]
    return _stages(plan, lambda stages: [stages[-1].changed(losses=[*pairs, *stages[-1].losses])])


def _all(*edits: Edit) -> Edit:
    def edit(plan: Plan) -> Plan:
        for one in edits:
            plan = one(plan)
        return plan

    return edit


def _views(count: int) -> Edit:
    """Each image has so many views, which come again in turn; every epoch has one of its own otherwise."""
    return lambda plan: plan.changed(data=plan.data.changed(views=count) if plan.data else None)


def _same(plan: Plan) -> Plan:
    return plan


@dataclass(frozen=True)
class Arm:
    """A method, further options of ``fxdistill plan``, and what is changed in the plan before it is run."""

    method: str
    options: tuple[str, ...] = ()
    edit: Edit = _same
    task: str = ""
    settings: tuple[str, ...] = ()
    """The settings in which it is run; empty for all of the task."""
    beside: str | tuple[str, ...] = ()
    """The arms that it is compared with, seed by seed."""
    times: int = 1
    """How many times the setting's epochs it trains, warm-ups as they are."""

    @property
    def slices(self) -> bool:
        """Whether it keeps channels by a criterion that it does not name."""
        return self.method.startswith("indistill") and not {"--criterion", "--align"} & {*self.options}


ASKED = ("cifar-retrieval-again",)
"""What is run only where it is named: in a folder of its own it has the teachers of another setting."""
_ABLATIONS = ("cifar-retrieval", "cifar-classification")


def _ablations(method: str) -> dict[str, Arm]:
    """What could be done otherwise in the warm-up, each before the same main stage."""
    ways: dict[str, tuple[tuple[str, ...], Edit]] = {
        "normalized": ((), _comparing("normalized")),
        "running": ((), _comparing("running")),
        "earlier pairs kept": (("--keep-earlier", "0.7"), _same),
        "at most 30%, until a plateau": (("--plateau", "0.02:2"), _share(0.3)),
        "lengths by a probe": (("--probe", "lengths"), _same),
        "order by a probe": (("--probe", "order"), _same),
        "all pairs at once": ((), _together),
        "projection": (("--align", "project"), _same),
        "random channels": (("--criterion", "random"), _same),
        "fpgm channels": (("--criterion", "fpgm"), _same),
        **{f"warm-up {share:.0%}": ((), _share(share)) for share in (0.05, 0.1, 0.3, 0.5)},
    }
    return {
        f"{method}, {name}": Arm(method, options, edit, settings=_ABLATIONS, beside=method)
        for name, (options, edit) in ways.items()
    }


def _planned(method: str, *options: str, beside: tuple[str, ...]) -> Arm:
    """As it is planned where there is data and no criterion is named."""
    return Arm(method, ("--criterion", "interpolative", *options), beside=beside)


_RELEASED = _comparing("released")
_FASTER, _FAST = ("--lr", "0.003"), ("--lr", "0.01")
"""Learning rates that were better than the released one, on training images that were set aside."""
ARMS: dict[str, dict[str, Arm]] = {
    "retrieval": {
        "pkt": Arm("pkt"),
        "indistill+pkt": Arm("indistill+pkt", beside="pkt"),
        "indistill+pkt, interpolative channels": _planned("indistill+pkt", beside=("pkt", "indistill+pkt")),
        "indistill+pkt, raw": Arm("indistill+pkt", edit=_comparing("raw"), beside="pkt"),
        "indistill+pkt, released": Arm("indistill+pkt", edit=_RELEASED, beside="pkt"),
        "pkt, as released": Arm("pkt", edit=_as_released, beside="pkt"),
        "indistill+pkt, as released": Arm(
            "indistill+pkt", edit=_all(_RELEASED, _as_released), beside="pkt, as released"
        ),
        "indistill+pkt, the recipe as released": Arm("indistill+pkt", edit=_as_released, beside="pkt, as released"),
        "pkt, rate 0.003": Arm("pkt", _FASTER),
        "indistill+pkt, rate 0.003": Arm("indistill+pkt", _FASTER, beside="pkt, rate 0.003"),
        "pkt, rate 0.01": Arm("pkt", _FAST),
        "indistill+pkt, rate 0.01": Arm("indistill+pkt", _FAST, beside="pkt, rate 0.01"),
        "indistill+pkt, interpolative channels, rate 0.01": _planned(
            "indistill+pkt", *_FAST, beside=("pkt, rate 0.01", "indistill+pkt, as released")
        ),
        "indistill+pkt, as released, rate 0.01": Arm(
            "indistill+pkt", _FAST, _all(_RELEASED, _as_released), settings=ASKED, beside="pkt, rate 0.01"
        ),
        "pkt, three times the epochs": Arm("pkt", times=3),
        "indistill+pkt, three times the epochs": Arm("indistill+pkt", beside="pkt, three times the epochs", times=3),
        "predecessor": Arm("pkt", edit=_predecessor, beside="pkt"),
        "cross-entropy": Arm("supervised", task="classification", beside="pkt"),
        **_ablations("indistill+pkt"),
    },
    "classification": {
        "plain": Arm("supervised"),
        "kd": Arm("kd", beside="plain"),
        "indistill+kd": Arm("indistill+kd", beside="kd"),
        "indistill+kd, interpolative channels": _planned("indistill+kd", beside=("kd", "indistill+kd")),
        "kd-standardized": Arm("kd-standardized", beside="kd"),
        "indistill+kd-standardized": Arm("indistill+kd-standardized", beside="kd-standardized"),
        "indistill+kd-standardized, interpolative channels": _planned(
            "indistill+kd-standardized", beside=("kd-standardized", "indistill+kd-standardized")
        ),
        "dkd": Arm("dkd", beside="kd"),
        "indistill+dkd": Arm("indistill+dkd", beside="dkd"),
        "indistill+dkd, interpolative channels": _planned("indistill+dkd", beside=("dkd", "indistill+dkd")),
        "indistill+kd, raw": Arm("indistill+kd", edit=_comparing("raw"), beside="kd"),
        "kd, rate 0.01": Arm("kd", _FAST),
        "indistill+kd, rate 0.01": Arm("indistill+kd", _FAST, beside="kd, rate 0.01"),
        "kd, three times the epochs": Arm("kd", times=3),
        "indistill+kd, three times the epochs": Arm("indistill+kd", beside="kd, three times the epochs", times=3),
        "indistill+kd, interpolative channels, three times the epochs": replace(
            _planned("indistill+kd", beside=("kd, three times the epochs",)), times=3
        ),
        "indistill+supervised": Arm("indistill+supervised", beside="plain"),
        **{f"kd, {n} views": Arm("kd", edit=_views(n), beside="kd") for n in (2, 4, 8, 16)},
        **_ablations("indistill+kd"),
    },
}


def _teacher(work: Work, data: str, model: Model) -> Path:
    """A teacher's file, trained on all images: by their labels, and by its own teacher's embedding if it has one."""
    path = work.root / f"{data}-{model.name}.pt"
    if path.is_file():
        return path
    if model.taught_by is not None:
        first, above = _teacher(work, data, replace(model, taught_by=None)), _teacher(work, data, model.taught_by)
        return _taught(work, data, (above, first), path)
    residual = model.factory == "resnet"
    return materials.teacher(
        path, model.factory, model.arguments(data), lambda: work.whole(data),
        _sgd if residual else lambda made: torch.optim.Adam(made.parameters(), lr=RATE),
        epochs=RESNET_EPOCHS if residual else TEACHER_EPOCHS, device=work.device,
    )  # fmt: skip


def _sgd(made: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _taught(work: Work, data: str, models: tuple[Path, Path], path: Path) -> Path:
    """The second model's file after PKT from the first one, on all images."""

    def all_images(unfinished: Path) -> None:
        arrays: dict[str, Any] = work.whole(data)
        np.savez(unfinished, **arrays, classes=np.array([str(n) for n in range(10)]))

    def make(unfinished: Path) -> None:
        images = materials.once(work.root / f"{data}-whole.npz", all_images)
        folder = work.folder / "taught"
        folder.mkdir()
        series.plan(
            *map(str, models), "-o", str(folder / "plan.json"), "--data", f"npz:{images}", "--task", "retrieval",
            "--method", "pkt", "--epochs", str(TAUGHT_EPOCHS), "--lr", str(RATE), "--no-control", "--no-measure",
            "--augment", "flip,crop:4",
        )  # fmt: skip
        execute(folder / "plan.json", folder / "run", _settings(work))
        shutil.move(folder / "run" / "student.pt", unfinished)

    return materials.once(path, make)


def _settings(work: Work) -> Settings:
    return Settings(device=work.device, evaluate_every=10_000, channels_last=True)


def measure(setting: str, name: str, seed: int, work: Work) -> Row:
    """One run: planned, trained, measured."""
    data, task, pair = _parts(setting)
    arm = ARMS[task][name]
    trained_for, epochs = arm.task or task, arm.times * EPOCHS[task]
    student = PAIRS[pair][1]
    folder, teacher, spec = work.folder, _teacher(work, data, PAIRS[pair][0]), f"npz:{work.part(data)}"
    query = "&".join(f"{k}={json.dumps(v).replace(' ', '')}" for k, v in student.arguments(data).items())
    words = [
        str(teacher), f"fxdistill.models:{student.factory}?{query}", "-o", str(folder / "plan.json"), "--data",
        spec, "--task", trained_for, "--method", arm.method, "--epochs", str(epochs),
        *(() if "--lr" in arm.options else ("--lr", str(RATE))),
        *(("--criterion", "l1") if arm.slices else ()), "--seed", str(seed), "--no-control", "--no-measure",
        "--augment", "flip,crop:4", *arm.options,
    ]  # fmt: skip
    series.plan(*words)
    plan = arm.edit(_in_all(load_plan(folder / "plan.json"), epochs))
    (folder / "plan.json").write_text(plan.to_json())
    started = time.monotonic()
    result = execute(folder / "plan.json", folder / "run", _settings(work))
    seconds = time.monotonic() - started
    found = {k: v for k, v in result["arms"][0].items() if isinstance(v, float) and k != "seconds"}
    if trained_for != task:
        found = fxdistill.evaluate(folder / "run" / "student.pt", spec, task=task)  # the classifier's embedding
    return {
        "setting": _named(setting, work), "arm": name, "seed": seed,
        "metrics": {k: round(v, 5) for k, v in found.items()},
        "epochs": [s.epochs for s in plan.arms[0].stages], "seconds": round(seconds),
        **series.provenance(work.device), "torchvision": torchvision.__version__,
    }  # fmt: skip


def _in_all(plan: Plan, total: int) -> Plan:
    """The main stage gets what the warm-ups leave of the epochs."""

    def change(stages: list[Stage]) -> list[Stage]:
        *warm, main = stages
        return [*warm, main.changed(epochs=total - sum(stage.epochs for stage in warm))]

    return _stages(plan, change)


def _named(setting: str, work: Work) -> str:
    """What it is called in rows: rounding differs by the kind of machine, and starts of seeds are far apart soon."""
    return setting + (series.ON_GPU if work.device == "cuda" else "")


def _parts(setting: str) -> tuple[str, str, str]:
    data, task, pair = [*setting.split("-"), "released"][:3]
    return data, task, pair


SETTINGS = (
    "cifar-retrieval-taught", "cifar-retrieval", "cifar-classification", "fashion-retrieval", "fashion-classification",
    "cifar-classification-resnet", "cifar-classification-cross", "cifar-retrieval-resnet", "cifar-retrieval-cross",
    "cifar-retrieval-direct", "cifar-classification-direct", "fashion-retrieval-taught",
)  # fmt: skip


def _arms(setting: str) -> list[str]:
    arms = ARMS[_parts(setting)[1]]
    return [name for name, arm in arms.items() if not arm.settings or setting in arm.settings]


_ABOUT = """# InDistill: what the warm-up is worth

Made by `python -m benchmarks.indistill`: all arms of a setting train equally many epochs (70 for retrieval, 60 for
classification, warm-ups included; three times as many where the arm says so) on 10,000 random training images, with
the same initial weights and batches under a seed; measured on 2,000 random test images after the last epoch. Teachers
saw all training images. The difference is that of the seeds that both arms have, with its 95 % interval by Student's
t: over two or three seeds it says little.
Each run, with its versions and machine, is a line of `indistill.jsonl`.

**Taught**: the teacher, a small network, learnt the embedding of a ResNet-20 by PKT after it was trained by labels, as
the auxiliary of the released experiment has learnt from a ResNet-18; elsewhere labels alone have trained it. **Again**:
the same, after another ResNet-20 of the kind, which has 84.4 % on test images where the first one has 84.1.
**Direct**: the ResNet-20 itself is the teacher, with no auxiliary between. **ResNet**: a ResNet-20 teaches a narrow
ResNet with one block a stage. **Cross**: the small network teaches that ResNet.
**Channels**: a warm-up teaches the channels with the largest filters, as in the paper, unless the arm says which;
**interpolative channels** are what a plan keeps where it has data and no criterion is named.
**Seeds from 5 up** have another teacher, which the same training gave on another processor (under **taught** after a
third ResNet-20, 84.05 %). Arms are compared within seeds,
so that both have the same one; their means are over all seeds that they have.

**On a GPU**: an H100; elsewhere one thread of an x86-64 processor. Runs are compared with their like. On the GPU
`taught` and `classification-resnet` have the teachers of **again**; of Fashion-MNIST the ResNet-20 has 93.6 % on test
images, and the small network's embedding 73.5 mAP before it is taught and 80.6 after.

**Uneven batches**: runs of before the batches of an epoch had one size. Each epoch ended with a batch of 16 images
after 78 of 128. For PKT that batch weighed eight times as much, which cost PKT about 3 points of mAP wherever Adam
keeps its moments from epoch to epoch (found on set-aside images), and the warm-up made up for a part of it."""


def table(rows: list[Row]) -> str:
    """For each setting its arms: mean, deviation and each seed; and the difference to the method alone, paired."""
    lines = [_ABOUT, ""]
    for setting in series.told((*SETTINGS[:1], *ASKED, *SETTINGS[1:])):
        mine = [row for row in rows if row["setting"] == setting]
        if not mine:
            continue
        task = _parts(series.plain(setting))[1]
        metric = PRIMARY[task]
        lines += [
            f"## {setting}, {metric} in %",
            "",
            "| arm | mean | deviation | seeds | difference to | paired, 95 % |",
        ]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        values = {
            name: {row["seed"]: 100 * row["metrics"][metric] for row in mine if row["arm"] == name}
            for name in ARMS[task]
        }
        for name, found in values.items():
            if found:
                lines += _told(name, ARMS[task][name].beside, found, values)
        lines.append("")
    return "\n".join(lines) + "\n"


def _told(
    name: str, beside: str | tuple[str, ...], found: dict[int, float], values: dict[str, dict[int, float]]
) -> list[str]:
    """The lines of an arm: one for each arm that it has seeds in common with."""
    mean = statistics.fmean(found.values())
    deviation = f"{statistics.stdev(found.values()):.2f}" if len(found) > 1 else ""
    each = " ".join(f"{found[seed]:.2f}" for seed in sorted(found))
    others = (beside,) if isinstance(beside, str) else beside
    differences = {one: series.difference(found, values.get(one, {}), beside=one) for one in others}
    ends = [f"{one} | {said} |" for one, said in differences.items() if said] or [" |  |"]
    return [f"| {name} | {mean:.2f} | {deviation} | {each} | {ends[0]}", *(f"|  |  |  |  | {end}" for end in ends[1:])]


SERIES = Series(
    "indistill", str(__doc__), SETTINGS, _arms, measure, table, seeds=5, devices=("cpu", "cuda"), asked=ASKED,
    named=_named,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(SERIES.main())

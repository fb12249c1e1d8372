"""The main job on bundled data: scikit-learn's digits, a small residual teacher, a tiny convolutional student.

Trains the teacher, writes ``teacher.pt`` and ``student.pt``, then calls ``fxdistill plan`` and ``fxdistill run`` as a
user would.
"""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lightning_fabric import Fabric

from fxdistill.compiler.build import build_arm
from fxdistill.data.load import defaults, load
from fxdistill.errors import FxdistillError, RunDirError
from fxdistill.measure.model import metrics
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.plan.document import VERSION, Plan
from fxdistill.plan.schema import DataPlan, ExportPlan, InputSpec, ModelRef
from fxdistill.plan.training import Arm, LossTerm, Optimizer, Stage
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.training.course import Position
from fxdistill.runtime.training.loop import Loop
from fxdistill.tasks import TASKS

TEACHER = ("fxdistill.models:resnet", {"widths": [32, 64, 128], "blocks": 1})
STUDENT = ("fxdistill.models:convnet", {"widths": [8, 16, 32], "hidden": 32})
_EPOCHS, _SEED = 20, 0
_OPTIONS = "--data digits --epochs 48 --batch-size 64"


def run(folder: Path, *, repeats: int, say: Callable[[str], None]) -> None:
    """Do the whole job in a folder.

    Args:
        folder: New or empty.
        repeats: How many seeds to run.
        say: Prints a line.

    Raises:
        RunDirError: The folder holds something.
        FxdistillError: A command failed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirError(
            "the demo's folder is not empty", where=str(folder), hint="remove it, or choose another with -o"
        )
    folder.mkdir(parents=True, exist_ok=True)
    say(f"training a teacher on digits, {_EPOCHS} epochs")
    accuracy = train_teacher(folder / "teacher.pt")
    student = build(*STUDENT, seed=_SEED)
    save(student, folder / "student.pt", factory=STUDENT[0], kwargs=STUDENT[1], input_shape=(1, 1, 8, 8))
    say(f"wrote {folder / 'teacher.pt'} (accuracy {accuracy:.2%}) and {folder / 'student.pt'} (untrained)")
    commands = [
        f"fxdistill plan teacher.pt student.pt {_OPTIONS} --repeats {repeats}",
        "fxdistill run plan.json -o run",
    ]
    for command in commands:
        say(f"\n$ {command}")
        _call(command, folder)
    onnx, page = (folder / "run" / name for name in ("student.onnx", "report.html"))
    say(f"\neverything lies in {folder}; the student is {onnx}, its report {page}")


def train_teacher(path: Path) -> float:
    """Train the demo's teacher, save it as a bundle, return its accuracy on the test images."""
    dataset, task = load("digits"), TASKS.get("classification")
    own = dataset.preprocessing
    plan = supervised_plan(defaults("digits", dataset=dataset, batch_size=64), own, epochs=_EPOCHS)
    teacher = build(*TEACHER, seed=_SEED)
    loop = Loop(
        Fabric(accelerator="cpu", devices=1), build_arm(plan, "supervised", {"teacher": teacher}), dataset, plan.data,
        task, _SEED, plan.seed, compiled=False, on_progress=lambda _: None, on_save=lambda *_: None,
    )  # fmt: skip
    loop.run(Position(), None)
    save(teacher, path, factory=TEACHER[0], kwargs=TEACHER[1], input_shape=(1, 1, 8, 8), preprocessing=own)
    return metrics(teacher, dataset, task, view=own.view((8, 8)))[task.primary]


def supervised_plan(data: DataPlan, preprocessing: Preprocessing, *, epochs: int) -> Plan:
    """A plan without a teacher: cross-entropy, Adam at 1e-3, cosine to zero."""
    stage = Stage(
        name="supervised", epochs=epochs, losses=[LossTerm(loss="cross-entropy", student="teacher")],
        optimizer=Optimizer(name="adam", lr=1e-3), schedule="cosine",
    )  # fmt: skip
    return Plan(
        version=VERSION, method="supervised", seed=_SEED, data=data,
        input=InputSpec(shape=[1, len(preprocessing.mean), *preprocessing.size]), pairs=[], kept=[],
        members={"teacher": ModelRef(path=None, sha256=None, factory=None, preprocessing=preprocessing)},
        arms=[Arm(name="supervised", trains=["teacher"], stages=[stage])], seeds=[_SEED],
        export=ExportPlan(member="teacher", arm="supervised"),
    )  # fmt: skip


def _call(command: str, folder: Path) -> None:
    arguments = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(arguments, cwd=folder, check=False)  # noqa: S603  # our own command, without a shell
    if done.returncode:
        raise FxdistillError(f"`{command}` ended with exit code {done.returncode}", where=str(folder))

"""Small runs on digits, made once and shared by the tests of the runtime."""

import functools
import itertools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

import pytest
import torch
from torch import nn

from fxdistill.compiler import pipeline
from fxdistill.compiler.options import Options
from fxdistill.data import places
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset
from fxdistill.data.load import defaults, load
from fxdistill.data.sources import digits
from fxdistill.files import file_sha256, write_text
from fxdistill.ir.views import seen
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef
from fxdistill.runtime.run import checkpoint, details
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execute import execute as slow_execute
from fxdistill.runtime.run.execution import Observer, Settings

P = ParamSpec("P")
Made = TypeVar("Made")
TEACHER = ("fxdistill.models:resnet", {"widths": [8, 16], "blocks": 1})
STUDENT = ("fxdistill_test_models:with_dropout", {"widths": [4, 8]})
ALLOW = ("fxdistill_test_models",)
CPU = Settings(device="cpu", allow=ALLOW)
TIMES = ("images_per_second", "time")
BATCH = 256  # five steps an epoch

_SOURCE = '''
"""A user's own module."""
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, widths):
        super().__init__()
        first, second = widths
        self.conv1 = nn.Conv2d(1, first, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(second)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(second, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.dropout(x, 0.1, training=self.training)
        return self.fc(self.drop(x.mean((2, 3))))

def with_dropout(widths=(4, 8)):
    return Net(widths)
'''


_HOLDERS: list["tempfile.TemporaryDirectory[str]"] = []
_MADE, _FEW = [dict[Any, Any]()], dict[Any, Any]()
"""What was made of the digits that there are now is the last of them."""


@contextmanager
def few_digits() -> Iterator[None]:
    """Every fourth digit, in as many steps; what is made inside is shared by all who come here, and by nobody else."""
    source: Any = digits
    found = source.load_digits()
    few = SimpleNamespace(images=found.images[::4], target=found.target[::4])
    _MADE.append(_FEW)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source, "load_digits", lambda: few)
            patch.setattr(sys.modules[__name__], "BATCH", BATCH // 4)
            yield
    finally:
        _MADE.pop()


def once(make: Callable[P, Made]) -> Callable[P, Made]:
    """``functools.cache``, of the digits that there are now."""

    @functools.wraps(make)
    def kept(*args: P.args, **kwargs: P.kwargs) -> Made:
        key, made = (make, args, *kwargs.items()), _MADE[-1]
        if key not in made:
            made[key] = make(*args, **kwargs)
        found: Made = made[key]
        return found

    return kept


@once
def workshop() -> Path:
    """A folder with ``teacher.pt``, ``student.pt`` and a module of the user's own, importable here."""
    _HOLDERS.append(tempfile.TemporaryDirectory(prefix="fxdistill-tests-"))
    folder = Path(_HOLDERS[-1].name)
    (folder / "fxdistill_test_models.py").write_text(_SOURCE)
    sys.path.insert(0, str(folder))
    teacher = taught_head(build(*TEACHER, seed=3), "classifier", load("digits"))
    save(teacher, folder / "teacher.pt", factory=TEACHER[0], kwargs=TEACHER[1], input_shape=(1, 1, 8, 8))
    student = build(*STUDENT, seed=4, allow=ALLOW)
    save(student, folder / "student.pt", factory=STUDENT[0], kwargs=STUDENT[1], input_shape=(1, 1, 8, 8))
    return folder


def taught_head(model: nn.Module, head: str, data: Dataset) -> nn.Module:
    """The model with a last layer by ridge regression on its own features: above chance, and trained in no time."""
    layer, read = model.get_submodule(head), list[torch.Tensor]()
    assert isinstance(layer, nn.Linear)
    hook = layer.register_forward_pre_hook(lambda _layer, given: read.append(given[0].flatten(1).double()))
    with torch.no_grad():
        (batch,) = batches(data.train, len(data.train))
        model.eval()(seen(batch["images"], data.preprocessing.view(data.image_shape[1:])))
        hook.remove()
        features = torch.cat([read[0], torch.ones(len(read[0]), 1)], 1)
        targets = torch.nn.functional.one_hot(batch["labels"], layer.out_features).double()
        weights = torch.linalg.solve(features.T @ features + 1e-3 * torch.eye(features.shape[1]), features.T @ targets)
        layer.weight.copy_(10 * weights[:-1].T)
        layer.bias.copy_(10 * weights[-1])
    return model


@once
def plan_file(
    name: str = "plan", *, from_file: bool = True, repeats: int = 1, align: Any = "slice", method: str = "indistill"
) -> Path:
    """A plan of few epochs: two warm-ups, the main stage of two epochs, the control of four."""
    folder = workshop()
    path = folder / f"{name}.json"
    data = load("digits")
    options = Options(
        input_shape=(1, 1, 8, 8), epochs=2, repeats=repeats, align=align, method=method,
        data=defaults("digits", dataset=data, batch_size=BATCH),
        preprocessing={"teacher": data.preprocessing, "student": data.preprocessing},
    )  # fmt: skip
    student = build(*STUDENT, seed=4, allow=ALLOW)
    made = pipeline.compile(
        build(*TEACHER, seed=3), student, options, teacher_ref=_ref(TEACHER, folder / "teacher.pt", path),
        student_ref=_ref(STUDENT, folder / "student.pt" if from_file else None, path),
    )  # fmt: skip
    write_text(path, shortened(made).to_json())
    return path


def shortened(plan: Plan) -> Plan:
    """The plan with warm-ups of one epoch; the control arm follows."""
    return plan.changed(
        arms=[
            arm.changed(stages=[stage if stage.name == "main" else stage.changed(epochs=1) for stage in arm.stages])
            if arm.name == "distilled" else arm
            for arm in plan.arms
        ]
    )  # fmt: skip


def _ref(factory: tuple[str, dict[str, Any]], file: Path | None, plan: Path) -> ModelRef:
    return ModelRef(
        path=None if file is None else places.relative(file, plan), factory=factory[0], kwargs=factory[1],
        sha256=None if file is None else file_sha256(file),
    )  # fmt: skip


def execute(
    plan: Path, out: Path, settings: Settings, observer: Observer | None = None, *, detailed: bool = False
) -> dict[str, Any]:
    """Execute with the quicker of the two exporters, and without details for a report: what is left out has tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
        if not detailed:
            patch.setattr(details, "write", lambda *_, **__: None)
        return slow_execute(plan, out, settings, observer)


def interrupted(plan: Path, out: Path, settings: Settings, *, after: int) -> None:
    """Execute until so many checkpoints are taken."""
    count, save_ = itertools.count(1), checkpoint.save

    def counting(run: RunDir, at: checkpoint.Checkpoint) -> None:
        save_(run, at)
        if next(count) == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", counting)
        with pytest.raises(KeyboardInterrupt):
            execute(plan, out, settings)


@contextmanager
def onnx_files() -> Iterator[list[str]]:
    """The names of the ONNX files that are made inside, in order."""
    made, write = list[str](), onnx_file._write

    def noted(module: nn.Module, draft: Path, path: Path, **how: Any) -> onnx_file.Exported:
        made.append(path.stem)
        return write(module, draft, path, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "_write", noted)
        yield made


@once
def finished(name: str = "plan", *, from_file: bool = True, repeats: int = 1, align: Any = "slice") -> Path:
    """The run directory of an undisturbed run."""
    path = plan_file(name, from_file=from_file, repeats=repeats, align=align)
    execute(path, path.parent / f"run-{name}", Settings(device="cpu", allow=ALLOW))
    return path.parent / f"run-{name}"


@once
def detailed() -> Path:
    """The run directory of a run of two seeds that has details for its report."""
    path = plan_file("detailed", repeats=2)
    execute(path, path.parent / "run-detailed", Settings(device="cpu", allow=ALLOW), detailed=True)
    return path.parent / "run-detailed"


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """The plan, edited by hand."""
    content = json.loads(plan_file().read_text())
    change(content)
    path = workshop() / f"edited-{name}.json"
    path.write_text(json.dumps(content))
    return path


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics without what is a matter of time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def in_child(work: Callable[[], object]) -> int:
    """Do something in a forked process; returns its wait status. The child has all imports of this process already."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        work()
    except BaseException:  # noqa: BLE001  # a forked child must not fall back into pytest
        traceback.print_exc()
        os._exit(99)
    os._exit(0)

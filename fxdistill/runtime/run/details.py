"""What a run says for its report beside the result, ``details.json``: measured once, when everything is at hand.

    outline       the members' layers, and what of them runs in which stage
    similarity    how alike the taps of each pair see a fixed choice of images, before and after (linear CKA)
    classes       what the teacher and the exported member reach on each class
    apart         the test images on which these two differ most, as small pictures
    data          a fingerprint of the test images

The run is complete without it: what cannot be made is left out, and said. The file may come from others, so that it is
read against this form, and its pictures are PNG or nothing.
"""

import base64
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import torch
from PIL import Image
from pydantic import Field, FiniteFloat, TypeAdapter
from torch import Tensor, nn

from fxdistill.compiler.build import tracing
from fxdistill.compiler.outline import Outline, outline
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Images
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import FxdistillError
from fxdistill.files import write_text
from fxdistill.ir.contract import PassManager
from fxdistill.ir.running import copied, load_whole_state
from fxdistill.ir.views import seen
from fxdistill.measure.comparison import Looking, compared
from fxdistill.measure.similarity import Reading, cka
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.schema import Pair, Tap
from fxdistill.runtime.run import forms
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Execution
from fxdistill.runtime.run.log import write_event
from fxdistill.runtime.run.trials import Trial

Value = TypeVar("Value")
_IMAGES, _BATCH = 256, 32
_PICTURES, _SIDE = 12, 96
_PNG, _LARGEST = r"^[A-Za-z0-9+/]*={0,2}$", 200_000


@dataclass(frozen=True)
class Similarity:
    """How alike the taps of a pair see the same images.

    Attributes:
        pair: Its name.
        before: Before the student was trained; None where it was made in training.
        after: As the run ended.
    """

    pair: str
    before: FiniteFloat | None
    after: FiniteFloat | None


@dataclass(frozen=True)
class OfClass:
    """What two models reach on a class of so many test images, or pixels; None where nothing tells of it."""

    name: str
    count: int
    teacher: FiniteFloat | None
    student: FiniteFloat | None


@dataclass(frozen=True)
class Shown:
    """A test image: its number, file, label, what both say of it, how far apart they are; a PNG in base64."""

    index: int
    file: str
    label: str
    says: tuple[str, str] | None
    distance: float
    png: Annotated[str, Field(pattern=_PNG, max_length=_LARGEST)]


@dataclass(frozen=True)
class Beside:
    """Two members beside each other on the test images: the share of equal answers, classes, images that differ.

    ``unmeasured`` says why nothing is known of the classes.
    """

    teacher: str
    student: str
    images: int
    agreement: float | None
    of_class: str
    class_counts: str
    classes: list[OfClass] = field(default_factory=list)
    apart: list[Shown] = field(default_factory=list)
    unmeasured: str = ""


@dataclass(frozen=True)
class Details:
    """See the module docstring.

    Attributes:
        plan: The hash of the plan that was run.
        outline: The members in outline.
        similarity: Pair by pair.
        on: How many images of which split that was measured on.
        beside: Teacher and exported member; None where they do not answer alike.
        fingerprint: Of the data, in words.
    """

    plan: str
    outline: Outline = field(default_factory=Outline)
    similarity: list[Similarity] = field(default_factory=list)
    on: str = ""
    beside: Beside | None = None
    fingerprint: str = ""


_FORM = TypeAdapter(Details)


def write(run: Execution, module: nn.Module, *, seed: int) -> None:
    """Measure and write the details of a run that is about to be complete; a part that fails is said and left out.

    Args:
        run: The execution, everything trained.
        module: The exported member, as it was exported.
        seed: Under which seed.
    """
    layers = _part(run, lambda: outline(run.plan, {name: one.cpu() for name, one in run.modules.items()}), Outline())
    none: tuple[list[Similarity], str] = [], ""
    similarity, on = _part(run, lambda: _similarities(run, module, seed), none)
    beside = _part(run, lambda: _beside(run, module), None)
    prints = _part(run, lambda: _fingerprint(run.dataset.test), "")
    found = Details(run.plan.sha256, layers, similarity, on, beside, prints)
    text = json.dumps(_FORM.dump_python(found, mode="json")) + "\n"
    _part(run, lambda: write_text(run.rundir.details_path, text), None)
    _part(run, lambda: _on_board(run, found), None)


def _on_board(run: Execution, found: Details) -> None:
    """The same for TensorBoard: similarity before and after so many epochs, and the images that differ."""
    folder, apart = run.rundir.tensorboard_path / "details", [] if found.beside is None else found.beside.apart
    epochs = sum(stage.epochs for stage in run.plan.arm(run.plan.export.arm).stages)
    for step, when in ((0, "before"), (epochs, "after")):
        alike = {f"similarity/{one.pair}": getattr(one, when) for one in found.similarity}
        known = {tag: value for tag, value in alike.items() if value is not None}
        pictures = {f"apart/{_caption(n, one)}": base64.b64decode(one.png) for n, one in enumerate(apart, 1) if one.png}
        write_event(folder, step=step, seconds=time.time(), values=known, pictures=pictures if step else {})


def _caption(number: int, shown: Shown) -> str:
    says = "" if shown.says is None else f", teacher {shown.says[0]}, student {shown.says[1]}"
    return f"{number:02} image {shown.index}{f' of {shown.label}' if shown.label else ''}{says}"


def _part(run: Execution, make: Callable[[], Value], without: Value) -> Value:
    """A part of the details; where it fails, that is said, and the others are made."""
    try:
        return make()
    except Exception as cause:  # noqa: BLE001  # whatever it is, the run is complete without it
        said = cause.what if isinstance(cause, FxdistillError) else f"{type(cause).__name__}: {cause}"
        run.observer.on_diagnostic(
            Diagnostic(
                code="no-details", severity="warning", where=run.rundir.details_path.name,
                why=f"something that the report shows beside the result could not be made: {said}",
                hint=cause.hint if isinstance(cause, FxdistillError) else "",
            )
        )  # fmt: skip
        return without


def read(rundir: RunDir, plan: Plan) -> Details | None:
    """The details of a run; None where there are none, or they are of a plan that the run had before.

    Raises:
        RunDirError: The file is damaged.
    """
    path = rundir.details_path
    if not path.exists():
        return None
    found = forms.read(_FORM, path, hint="remove it, or run the plan anew", odd=lambda found: _odd(found, plan))
    return found if found.plan == plan.sha256 else None


def _odd(found: Details, plan: Plan) -> str:
    if found.plan != plan.sha256:
        return ""
    pairs, members = {pair.name for pair in plan.pairs}, set(plan.members)
    if odd := {one.pair for one in found.similarity} - pairs:
        return f"it names the pair '{min(odd)}', which the plan has not"
    named = {*found.outline.layers, *(name for one in found.outline.runs for name in one.layers)}
    if odd := named - members:
        return f"it names the member '{min(odd)}', which the plan has not"
    return ""


def _similarities(run: Execution, module: nn.Module, seed: int) -> tuple[list[Similarity], str]:
    """Of each pair whose members have layers of their own, before and after."""
    pairs = [pair for pair in run.plan.pairs if not isinstance(run.plan.members[pair.student.member], Masked)]
    count = min(_IMAGES, len(run.dataset.split("val")))
    now = {**run.modules, run.plan.export.member: module}
    tapped = dict.fromkeys(tap.member for pair in pairs for tap in (pair.teacher, pair.student))
    names = [name for name in tapped if not isinstance(run.plan.members[name], Masked)]
    after = {name: _read(run, name, now[name], pairs, count) for name in names}
    started = {name: _started(run, name, now[name], seed) for name in dict.fromkeys(p.student.member for p in pairs)}
    before = {name: _read(run, name, one, pairs, count) for name, one in started.items() if one is not None}
    found = [
        Similarity(pair.name, _cka(after, before, pair), _cka(after, after, pair))
        for pair in pairs if pair.teacher.member in after
    ]  # fmt: skip
    split = "validation" if run.dataset.val is not None else "test"
    return found, f"{count} evenly spaced {split} images" if found else ""


def _cka(teachers: dict[str, dict[str, Tensor]], students: dict[str, dict[str, Tensor]], pair: Pair) -> float | None:
    one = teachers.get(pair.teacher.member, {}).get(pair.teacher.path)
    other = students.get(pair.student.member, {}).get(pair.student.path)
    return None if one is None or other is None else cka(one, other)


def _started(run: Execution, name: str, module: nn.Module, seed: int) -> nn.Module | None:
    """A member as its training began; None where it was cut out of another one."""
    if isinstance(run.plan.members[name], Hardened):
        return None
    arms = [arm for arm in run.plan.arms if name in arm.trains]
    arm = next((arm for arm in arms if arm.name == run.plan.export.arm), arms[0] if arms else None)
    if arm is None:
        return None
    state = run.initial(Trial(run.plan.seed if arm.once else seed, arm.name)).get(name)
    if state is None:
        return None
    made = copied(module.cpu())
    load_whole_state(made, state)
    return made


def _read(run: Execution, name: str, module: nn.Module, pairs: list[Pair], count: int) -> dict[str, Tensor]:
    """What the taps of a member say of the images, by path."""
    taps: dict[str, Tap] = {
        tap.path: tap for pair in pairs for tap in (pair.teacher, pair.student) if tap.member == name
    }
    traced = PassManager(prove=False).run(tracing(run.plan, name, training=False, quick=True), module.cpu())
    dataset, view = run.seen_by(name)
    split = dataset.split("val")
    chosen = split.at(torch.linspace(0, len(split) - 1, count).round().long())
    with traced.running() as graph:
        graph.to(run.fabric.device)
        reading = Reading(traced, {path: tap.layout for path, tap in taps.items()})
        found = batches(chosen, _BATCH, device=run.fabric.device)
        values = reading.read(seen(batch["images"], view) for batch in found)
        graph.cpu()
    return values


def _beside(run: Execution, module: nn.Module) -> Beside | None:
    """The exported member beside the first teacher that answers as it does."""
    plan, exported = run.plan, run.plan.export.member
    trained = {name for arm in plan.arms for name in arm.trains}
    taught = [name for name in plan.arm(plan.export.arm).members if name not in trained]
    taught += [name for name in plan.members if name not in trained]
    teacher = next((name for name in taught if name not in run.strangers), None)
    if teacher is None or exported in run.strangers:
        return None
    both = {teacher: run.modules[teacher], exported: module}
    first, second = (
        Looking(one.to(run.fabric.device), *run.seen_by(name), run.plan.entry_of(name)) for name, one in both.items()
    )
    found = compared(first, second, run.task, most=_PICTURES, batch_size=plan.data.batch_size)
    for one in both.values():
        one.cpu()
    task = run.task
    return Beside(
        teacher, exported, found.images, found.agreement, task.of_class, task.class_counts,
        [OfClass(one.name, one.count, *map(_number, one.values)) for one in found.classes],
        [
            Shown(one.index, one.file, one.label, one.says, one.distance, _picture(run.dataset.test, one.index))
            for one in found.widest
        ],
        found.unmeasured,
    )  # fmt: skip


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pixels(split: Images, positions: Tensor) -> Iterator[Tensor]:
    for batch in batches(split.at(positions), _BATCH):
        yield (batch["images"] * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _picture(split: Images, index: int) -> str:
    """A small PNG of a test image, in base64; '' of what is no picture."""
    (pixels,) = _pixels(split, torch.tensor([index]))
    channels = pixels.shape[1]
    if channels not in (1, 3):
        return ""
    plain = pixels[0, 0].numpy() if channels == 1 else pixels[0].permute(1, 2, 0).numpy()
    picture, file = Image.fromarray(plain), io.BytesIO()
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _fingerprint(split: Images) -> str:
    """What tells other test images from these: some of their pixels, and all labels."""
    found, count = hashlib.sha256(), min(_IMAGES, len(split))
    for pixels in _pixels(split, torch.linspace(0, len(split) - 1, count).round().long()):
        found.update(pixels.numpy().tobytes())
    found.update(split.labels.cpu().numpy().tobytes())
    return f"sha256 {found.hexdigest()} of {count} evenly spaced test images of {len(split):,} and all their labels"


def is_picture(png: str) -> bool:
    """Whether a text is a PNG in base64, and nothing else."""
    try:
        return base64.b64decode(png, validate=True).startswith(b"\x89PNG\r\n\x1a\n")
    except ValueError:
        return False

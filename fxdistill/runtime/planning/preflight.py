"""What is checked before a run writes anything: the plan's models, data, losses and device."""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fxdistill.data import places
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset, Images
from fxdistill.data.load import check_input
from fxdistill.data.load import load as load_dataset
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ChanceError, DataError, InputError, ModelError, PlanError
from fxdistill.files import file_sha256
from fxdistill.ir.program import Program
from fxdistill.ir.running import attributes_kept, buffers_kept, seeded
from fxdistill.measure import onnx_file
from fxdistill.measure.model import metrics
from fxdistill.modelfiles import heads
from fxdistill.modelfiles.load import load
from fxdistill.modelfiles.source import ModelSource
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef
from fxdistill.preprocessing import Reading, View
from fxdistill.registry import GROUPS, origin
from fxdistill.tasks import TASKS, Task

_MEASURED = 2048
"""Images that a teacher is measured on before anything is planned."""
_PAIRS = 8
"""Pairs of images that losses are tried on."""
_REASONS = (
    "its normalisation (--mean, --std), the size of its images (--size), the order of the labels (--class-map), which "
    "output is its prediction (--teacher-output), and the checkpoint"
)
"""Why a teacher that was trained answers at random, in the order of how often it is that."""


def runnable(plan: Plan, where: Path) -> None:
    """Refuse a plan that names no data or no trained teacher, or that could not be exported in the end.

    Raises:
        PlanError: It is such a plan.
    """
    onnx_file.check_opset(plan.export.opset)  # hours before the export itself would say so
    if plan.data.spec is None:
        raise PlanError(
            "the plan has no data, so it cannot be run", where=f"{where}, data.spec",
            hint="write it anew with --data, e.g. --data digits",
        )  # fmt: skip
    trained = {member for arm in plan.arms for member in arm.trains}
    for name, member in plan.members.items():
        if isinstance(member, ModelRef) and member.preprocessing is None:
            raise PlanError(
                f"the plan does not say how the {name} preprocesses images",
                where=f"{where}, members.{name}.preprocessing",
                hint="give its size, mean and std, or write the plan anew with `fxdistill plan`",
            )  # fmt: skip
        if isinstance(member, ModelRef) and name not in trained and member.path is None:
            raise _random_teacher(f"{where}, members.{name}.path")


def _random_teacher(where: str) -> PlanError:
    return PlanError(
        "the plan's teacher has random weights, so there is nothing to learn from it",
        where=where, hint="plan with a file that holds a trained teacher",
    )  # fmt: skip


def load_model(
    ref: ModelRef, base: Path, *, seed: int, allow: Sequence[str] = (), trust_code: bool = False,
    trained: bool = False,
) -> nn.Module:  # fmt: skip
    """Load a plan's model and check that its file is the one that was planned.

    Args:
        ref: The plan's reference.
        base: The folder of the plan.
        seed: Seed of the weights of a factory alone.
        allow: Modules whose factories may be called.
        trust_code: Whether a file that the plan says to unpickle may be.
        trained: Whether the weights have to be trained ones.

    Raises:
        PlanError: The file's hash is not the plan's, or it says that its weights are random and may not be.
        ModelError: The file cannot be loaded.
    """
    path = None if ref.path is None else (base / ref.path)
    if path is not None:
        _same_file(path, ref)
    # a bundle says itself what builds it; the plan's copy of that is for its reader
    source = ModelSource(
        path=path, factory=ref.factory, kwargs=dict(ref.kwargs), trust_code=ref.trusted and trust_code,
        allow=tuple(allow), entry=ref.entry or None,
    )  # fmt: skip
    loaded = load(source, seed=seed)
    if loaded.entry != ref.entry:
        raise PlanError(
            f"the plan takes the weights from the entry '{ref.entry}', the file gives those of '{loaded.entry}'",
            where=f"{path}, entry", hint="correct the entry in the plan, or write it anew with `fxdistill plan`",
        )  # fmt: skip
    if trained and loaded.random_weights:
        raise _random_teacher(str(path))
    if ref.head:
        heads.without(loaded.module, ref.head, where=f"{path or ref.factory}, head")
    return loaded.module


def _same_file(path: Path, ref: ModelRef) -> None:
    if not path.is_file():
        raise ModelError(
            "the plan's model file is missing", where=str(path), hint="put it back, or write the plan anew"
        )
    found = file_sha256(path)
    if found != ref.sha256:
        raise PlanError(
            f"the model file is not the one that was planned: its sha256 is {found}, the plan says {ref.sha256}",
            where=str(path), hint="write the plan anew with `fxdistill plan`",
        )  # fmt: skip


def load_data(plan: Plan, base: Path, *, member: str | None = None, allow: Sequence[str] = ()) -> Dataset:
    """Load a plan's data, image files as they are read for training, or as a member reads them.

    Raises:
        DataError: It is missing, damaged or not what the plan says.
    """
    reading = plan.reading if member is None else plan.reading_of(member)
    found = plan.data.changed(spec=places.resolved_data(plan.data.spec, base))
    dataset = load_dataset(found, task=plan.task, reading=reading, allow=tuple(allow))
    if member is None:
        check_input(dataset, plan.input.shape)
    enough(dataset, plan.data.batch_size)
    return dataset


def enough(dataset: Dataset, batch_size: int) -> None:
    """Refuse data, or a size of batches, that leaves less than two images for a step.

    Raises:
        DataError: It is so.
    """
    if min(batch_size, len(dataset.train)) < 2:
        few = len(dataset.train) < 2
        raise DataError(
            "training takes batches of two images or more", where="data" if few else "data.batch_size",
            hint="give data with more training images" if few else "use --batch-size 2 or more",
        )  # fmt: skip


def own_data(plan: Plan, base: Path, dataset: Dataset, *, allow: Sequence[str] = ()) -> dict[str, Dataset]:
    """The data again for each member that reads image files in another way than training does: to measure it on.

    Data of a size of its own is the same for all.
    """
    read = {name: plan.reading_of(name) for name in plan.members}
    if plan.reading is None or dataset.image_shape != plan.reading.shape:
        return {}
    found: dict[Reading, Dataset] = {}
    for name, reading in read.items():
        if reading is not None and reading != plan.reading and reading not in found:
            found[reading] = load_data(plan, base, member=name, allow=allow)
    return {name: found[reading] for name, reading in read.items() if reading in found}


def taught(
    member: str,
    module: nn.Module,
    dataset: Dataset,
    task: Task,
    *,
    view: View,
    entry: str,
    force: bool = False,
    otherwise: str = "",
) -> tuple[str, list[Diagnostic]]:
    """What a member that teaches reaches on some of the data, in words, and a warning where that is near chance.

    Args:
        member: Its name.
        module: It.
        dataset: The data, as it reads it; up to 2,048 images a split are taken, evenly spaced.
        task: What is measured.
        view: How it looks at them.
        entry: Which entry of its output is the prediction.
        force: Whether to go on where it knows nothing of the data.
        otherwise: Options with which it knows more, if any are known.

    Raises:
        ChanceError: It knows nothing of the data.
    """
    few = replace(dataset, train=some(dataset.train), test=some(dataset.split("val")), val=None)
    if not few.has_labels("test") or (task.ranks_train and dataset.is_one):
        return "", []
    found = metrics(module, few, task, view=view, entry=entry)
    what = "validation" if dataset.val is not None else "test"
    said = f"{task.primary} {task.shown(found[task.primary])} on {len(few.test):,} {what} images"
    if not force:
        knows(member, found, task, few.test.labels, classes=len(dataset.classes), otherwise=otherwise)
    return said, near_chance(member, found, task, few.test.labels, classes=len(dataset.classes))


def some(split: Images) -> Images:
    """Up to 2,048 images of a split, evenly spaced: enough to measure on."""
    count = min(len(split), _MEASURED)
    return split if count == len(split) else split.at(torch.linspace(0, len(split) - 1, count).round().long())


def exports(plan: Plan, module: nn.Module) -> None:
    """Export a member once as it is, so that one that cannot be exported is found before it is trained.

    Raises:
        ModelError: It cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        onnx_file.export_onnx(
            module, Path(folder) / "trial.onnx", input_shape=plan.shape_of(plan.export.member), opset=plan.export.opset,
            entry=plan.entry_of(plan.export.member), only=plan.export.outputs,
            prediction_name=TASKS.get(plan.task).output_name,
        )  # fmt: skip


def tells_the_best(plan: Plan, dataset: Dataset) -> None:
    """Check that the best seed can be told, where it is to be exported.

    Raises:
        PlanError: The validation images have no labels.
    """
    if plan.export.seed == "best" and not dataset.has_labels("val"):
        raise PlanError(
            "the best seed is to be exported, and the validation images have no labels to tell it by",
            where="export.seed", hint="export the first one, or give data with labels",
        )  # fmt: skip


def dry_step(program: Program, dataset: Dataset, *, where: str) -> dict[str, float]:
    """Compute a stage's losses on two real images, so that what cannot be computed is found before training.

    Two images may happen to have no labels: of a few such pairs one has to do.

    Returns:
        The losses by their keys, before anything is trained.

    Raises:
        PlanError: They cannot be computed, or one of them is several numbers, or not a number.
    """
    wrong, several = list[str](), list[str]()
    try:
        for batch in itertools.islice(batches(dataset.train, 2), _PAIRS):
            with torch.no_grad(), attributes_kept(program), buffers_kept(program), seeded(torch.device("cpu")):
                losses = program.train()(batch)
            several = [name for name, value in losses.items() if value.numel() != 1]
            wrong = [name for name, value in losses.items() if not bool(value.isfinite().all())]
            if several:
                break
            if not wrong:
                return {name: float(value) for name, value in losses.items()}
    except InputError:
        raise
    except Exception as cause:
        first = next(iter(str(cause).splitlines()), "")
        if "view size is not compatible" in first:
            raise PlanError(
                "a model views a feature map as another shape, which channels-last memory does not allow", where=where,
                hint="run with --channels-last auto or off",
            ) from cause  # fmt: skip
        raise PlanError(
            f"the losses of this stage cannot be computed: {type(cause).__name__}: {first}", where=where,
            hint="the loss does not go with the task, the labels or the taps: choose another one",
        ) from cause  # fmt: skip
    if several:
        raise PlanError(
            f"the loss '{several[0]}' gives {losses[several[0]].numel()} numbers of two images, not one", where=where,
            hint="a loss is a scalar: take the mean",
        )  # fmt: skip
    raise PlanError(
        f"the loss '{wrong[0]}' is not a number before anything is trained", where=where,
        hint="check the teacher's weights, and its normalisation in the plan (members.teacher.preprocessing)",
    )  # fmt: skip


def other_versions(plan: Plan) -> Iterator[Diagnostic]:
    """A note for each name of the plan that comes from another version of its distribution than the plan says."""
    for plugin in plan.plugins:
        found = origin(GROUPS[plugin.kind], plugin.name) if plugin.kind in GROUPS else None
        if found is not None and (found.distribution, found.version) != (plugin.distribution, plugin.version):
            yield Diagnostic(
                code="other-version", severity="warning", where=f"{plugin.kind} {plugin.name}",
                why=f"it comes from {found.distribution} {found.version}; the plan was written with "
                f"{plugin.distribution} {plugin.version}",
            )  # fmt: skip


def accelerator(device: str, precision: str) -> str:
    """Lightning's name of the device to use.

    Raises:
        InputError: There is no such device here, or it does not train in that precision.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available", where="--device cuda", hint="use --device auto or cpu")
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if chosen == "cpu" and precision == "16-mixed":
        raise InputError(
            "16-mixed precision needs a CUDA device", where="precision", hint="use --precision bf16-mixed or 32-true"
        )
    return chosen


def near_chance(
    member: str, found: Mapping[str, float], task: Task, targets: Tensor, *, classes: int
) -> list[Diagnostic]:
    """A warning where a member that teaches knows hardly more than chance of what these targets are about."""
    if not found or not (poor := task.near_chance(found, classes, targets)):
        return []
    why = f"what the {member} reaches on this data is {poor}"
    return [Diagnostic(code="teacher-near-chance", severity="warning", where=member, why=why, hint=f"check {_REASONS}")]


def knows(
    member: str, found: Mapping[str, float], task: Task, targets: Tensor, *, classes: int, otherwise: str = ""
) -> None:  # fmt: skip
    """Refuse a member that is to teach and knows nothing of what these targets are about.

    Raises:
        ChanceError: It is at chance.
    """
    if found and task.at_chance(found, classes, targets):
        poor, check = task.near_chance(found, classes, targets), f"check {_REASONS}; --force goes on all the same"
        raise ChanceError(
            f"the {member} has hardly anything to teach on this data: {poor}", where=member,
            hint=f"give {otherwise}, with which it knows more" if otherwise else check,
        )  # fmt: skip

"""Plans for models and data as they are found: what ``fxdistill plan`` does with its arguments."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from fxdistill.compiler import gap, pipeline
from fxdistill.compiler.compilation import AUXILIARY, STUDENT, TEACHER
from fxdistill.compiler.options import EPOCHS, Options
from fxdistill.compiler.probe import AT_ONCE, IMAGES
from fxdistill.criteria import CRITERIA
from fxdistill.data import division, places
from fxdistill.data.batches import batches, drawable, first_batch
from fxdistill.data.dataset import Dataset
from fxdistill.data.load import defaults
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError
from fxdistill.ir import views
from fxdistill.ir.contract import PassManager
from fxdistill.ir.program import Batch
from fxdistill.ir.running import copied
from fxdistill.methods import composed
from fxdistill.modelfiles import heads
from fxdistill.modelfiles.load import LoadedModel
from fxdistill.passes.schedule.curriculum import Curriculum
from fxdistill.plan.document import Plan
from fxdistill.plan.file import check_writable, invalid
from fxdistill.plan.schema import DataPlan, ModelRef
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.planning import fitting, normalised, preflight, preprocess
from fxdistill.runtime.planning.preprocess import Wish
from fxdistill.tasks import TASKS


@dataclass(frozen=True)
class Seen:
    """What the models and the data say.

    Attributes:
        data: The data's part of the plan.
        shape: Shape of a batch of pixels.
        preprocessing: What the models do to an image before they look at it, by name.
        entries: Of each model which entry of a structured output is the prediction; '' where it is not known.
        batch: Images as the model takes them that teaches the student, and labels, where the criterion reads data and
            there is some.
        sample: Batches to measure the difficulty of pairs on, where that is wanted and there is data.
        remarks: What there is to say about that.
        reached: What the teacher reaches on the data, in words; '' where it was not measured.
        heads: The layers that were left away of the models, by name, where the task is about embeddings.
    """

    data: DataPlan
    shape: tuple[int, ...]
    preprocessing: Mapping[str, Preprocessing]
    entries: Mapping[str, str]
    batch: tuple[Tensor, Tensor] | None = None
    sample: tuple[Batch, ...] = ()
    remarks: tuple[Diagnostic, ...] = ()
    reached: str = ""
    heads: Mapping[str, str] = field(default_factory=dict)


def look(
    spec: str | None, plan: Path, wanted: tuple[int, ...] | None, models: Mapping[str, LoadedModel], *, task: str,
    batch_size: int, allow: Sequence[str], entries: Mapping[str, str | None], criterion: str,
    wishes: Mapping[str, Wish], val: float = 0.0, seed: int = 0, class_map: Path | None = None, measure: bool = False,
    force: bool = False, probe: bool = False, augment: str | None = None,
    embedding: Mapping[str, str] = MappingProxyType({}),
) -> Seen:  # fmt: skip
    """Look at the data as the models read it, and at what they answer.

    Args:
        spec: The data; None for a structural plan.
        plan: The plan's file.
        wanted: The shape that was asked for, where one was.
        models: Teacher, what stands between, and student, by name, as far as there are; the last one has to fit the
            data.
        task: The task's name.
        batch_size: Images a training step at most; see :mod:`fxdistill.data.batches`.
        allow: Modules whose factories may be called.
        entries: Of each model which entry of its output the user names; None to find it.
        criterion: The criterion, which may read data.
        wishes: What the user says of each model's preprocessing.
        val: The share of the training images to watch the training by.
        seed: What is set aside is drawn under it.
        class_map: A file with the models' classes, for data that has some of them.
        measure: Whether to measure the teacher.
        force: Whether to plan although that is at chance.
        probe: Whether the difficulty of pairs is to be measured.
        augment: Names of augmentations, with commas; None for those that are usual for the data.
        embedding: Of each model what its embedding is, in a task that is about these: see
            :mod:`fxdistill.modelfiles.heads`. The models are changed.

    Raises:
        DataError: The data is not there, or not what the models read.
        ModelError: A model does not fit the data, or the teacher is at chance.
    """
    seen = preprocess.look(models, spec, task=TASKS.get(task), wishes=wishes, shape=wanted, allow=allow)
    dataset, left = seen.dataset, _embedding(models, embedding, seen, task=task)
    if spec is None or dataset is None:
        named = {name: entries.get(name) or "" for name in models}
        return Seen(DataPlan(spec=None, batch_size=batch_size), seen.shape, seen.preprocessing, named, heads=left)
    first, classes = next(iter(models)), dataset.classes
    dataset = fitting.mapped(
        dataset, class_map, models[first].module, TASKS.get(task), spec=spec, entry=entries.get(first),
        input_shape=(1, seen.shape[1], *seen.preprocessing[first].size), own=models[first].metadata.get("classes"),
    )  # fmt: skip
    planned = defaults(spec, dataset=dataset, task=task, batch_size=batch_size, val=val, seed=seed)
    mapped = class_map is not None or dataset.classes != classes
    planned = _augmented(planned.changed(mapped=mapped), augment, dataset, task)
    said = (*division.remarks(dataset, planned), *seen.remarks)
    dataset = division.divided(dataset, planned)
    preflight.enough(dataset, batch_size)
    *teach, last = models
    found = {  # of a teacher with other classes the compiler says whether its predictions are compared
        name: fitting.fits(
            loaded.module, dataset, TASKS.get(task), spec=spec, entry=entries.get(name),
            input_shape=(*seen.shape[:2], *seen.preprocessing[name].size), must=name == last, member=name,
        )
        for name, loaded in models.items()
    }  # fmt: skip
    batch = first_batch(dataset) if CRITERIA.get(criterion).needs_batch else None
    view = seen.preprocessing[[first, *teach][-1]].view(seen.shape[2:])
    examples = (views.seen(batch["images"], view), batch["labels"]) if batch is not None else None
    undecided = (remark for name, one in found.items() for remark in fitting.undecided(name, one, f"--{name}-output"))
    reached, poor = "", list[Diagnostic]()
    if measure and not models[first].random_weights and not found[first].wrong:
        own = preprocess.read_for(seen, first, dataset=dataset, data=planned, task=TASKS.get(task), allow=allow)
        taken, entry = seen.preprocessing[first], found[first].entry
        better = normalised.better(first, models[first].module, own, TASKS.get(task), taken=taken, entry=entry)
        reached, poor = preflight.taught(
            first, models[first].module, own, TASKS.get(task), view=taken.view(own.image_shape[1:]), entry=entry,
            force=force, otherwise="" if better is None else better.options,
        )  # fmt: skip
        poor += [] if better is None else [better.remark]
    sample = tuple(itertools.islice(batches(dataset.train, AT_ONCE, shuffle=True), IMAGES // AT_ONCE)) if probe else ()
    return Seen(
        planned.changed(spec=places.relative_data(spec, plan)), seen.shape, seen.preprocessing,
        {name: one.entry for name, one in found.items()}, examples, sample, (*said, *undecided, *poor), reached, left,
    )  # fmt: skip


def _augmented(data: DataPlan, names: str | None, dataset: Dataset, task: str) -> DataPlan:
    """The data with the augmentations that are named, with commas or as ``none``; None for those that it has."""
    if names is None:
        return data
    wanted = [] if names == "none" else [name.strip() for name in names.split(",")]
    drawable(dataset.train, wanted, moves_targets=TASKS.get(task).moves_targets)
    return data.changed(augmentation=wanted)


def _embedding(
    models: Mapping[str, LoadedModel], wishes: Mapping[str, str], seen: preprocess.Seen, *, task: str
) -> dict[str, str]:
    """Make models answer with their embeddings, where the task is about these; the layers that were left away."""
    if not TASKS.get(task).embeds:
        if wishes:
            raise heads.about_another_task(task)
        return {}
    return {
        name: heads.embedding(
            loaded.module, wishes.get(name, heads.usual(loaded.metadata, task)), where=f"--embedding, {name}",
            input_shape=(1, seen.shape[1], *seen.preprocessing[name].size),
        )
        for name, loaded in models.items()
    }  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A plan as it was made.

    Attributes:
        plan: The plan.
        passes: What made it.
        reached: What the teacher reaches on the data, in words; '' where it was not measured.
        modules: The given members as the plan means them, by name: without their heads, where it leaves these away.
    """

    plan: Plan
    passes: PassManager
    reached: str
    modules: Mapping[str, nn.Module]


def planned(
    output: Path, models: Mapping[str, LoadedModel], *, data: str | None, method: str, task: str,
    input_shape: tuple[int, ...] | None, wishes: Mapping[str, Wish], entries: Mapping[str, str | None],
    criterion: str | None = None, curriculum: Curriculum | None = None, seed: int = 0, epochs: int = EPOCHS,
    via_epochs: int | None = None, batch_size: int = 128, val: float = 0.0, augment: str | None = None,
    class_map: Path | None = None, measure: bool = False, force: bool = False, allow: Sequence[str] = (),
    embedding: Mapping[str, str] = MappingProxyType({}),
    after: Callable[[str, Callable[[], str]], None] = lambda _step, _text: None,
    edit: Callable[[Plan], Plan] = lambda made: made, **decisions: Any,
) -> Planned:  # fmt: skip
    """The plan for a file, which is not written: of :class:`Options`, with what models and data say.

    Args:
        output: The file.
        models: Teacher, what stands between, and student, by name, as far as there are.
        data: As for :func:`look`.
        method: A method's name.
        task: The task's name.
        input_shape: The shape that was asked for, where one was.
        wishes: As for :func:`look`.
        entries: As for :func:`look`.
        criterion: A criterion's name; None for the method's own.
        curriculum: What is said of the method's warm-ups.
        seed: Everything random comes from it, what is set aside of the data as well.
        epochs: Epochs of the main stage.
        via_epochs: For how many an assistant that is given learns from the teacher; None for none where it is trained,
            and for as many as the main stage has otherwise.
        batch_size: As for :func:`look`.
        val: As for :func:`look`.
        augment: As for :func:`look`.
        class_map: As for :func:`look`.
        measure: As for :func:`look`.
        force: As for :func:`look`.
        allow: As for :func:`look`.
        embedding: As for :func:`look`.
        after: Is told of each step of the pipeline, with its result as text.
        edit: What is changed of the plan in the end.
        decisions: The other fields of :class:`Options`.

    Raises:
        InputError: Models, data and options do not fit each other.
    """
    curriculum = curriculum or Curriculum()
    if TASKS.get(task).embeds:  # heads are left away in the plan's models, and not in the caller's
        models = {name: replace(loaded, module=copied(loaded.module)) for name, loaded in models.items()}
    if AUXILIARY in models:
        via_epochs = _via_epochs(via_epochs, models[AUXILIARY], epochs=epochs)
    try:
        seen = look(
            data, output, input_shape, models, task=task, wishes=wishes, measure=measure, force=force, allow=allow,
            probe=curriculum.probe is not None, batch_size=batch_size, val=val, seed=seed, class_map=class_map,
            augment=augment, embedding=embedding, entries=entries, criterion=criterion or composed(method).on_data,
        )  # fmt: skip
    except ValidationError as cause:  # numbers that the command line's parser would have refused
        raise invalid(cause, where="the options", hint="give other numbers") from cause
    options = Options(
        input_shape=seen.shape, method=method, task=task, criterion=criterion, curriculum=curriculum, seed=seed,
        epochs=epochs, via_epochs=via_epochs, data=seen.data, preprocessing=seen.preprocessing, **decisions,
    )  # fmt: skip
    passes = PassManager(prove=False)  # `run` proves what it runs
    student, via = models.get(STUDENT), models.get(AUXILIARY)
    refs = {
        name: reference(loaded, output).changed(output=seen.entries[name], head=seen.heads.get(name, ""))
        for name, loaded in models.items()
    }
    found = pipeline.compile(
        models[TEACHER].module, None if student is None else student.module, options, passes=passes,
        after=after, batch=seen.batch, sample=seen.sample, teacher_ref=refs[TEACHER],
        student_ref=refs.get(STUDENT), via=None if via is None else via.module,
        via_ref=refs.get(AUXILIARY),
    )  # fmt: skip
    told = [*remarks(models), *seen.remarks, *found.diagnostics]
    if AUXILIARY in models and models[AUXILIARY].random_weights and found.kept:
        told.append(gap.chosen_early())
    plan = edit(found.changed(diagnostics=told))
    check_writable(plan)
    return Planned(plan, passes, seen.reached, {name: loaded.module for name, loaded in models.items()})


def _via_epochs(said: int | None, assistant: LoadedModel, *, epochs: int) -> int:
    """For how many epochs an assistant learns from the teacher before it teaches: one that is trained for none.

    Raises:
        InputError: It has random weights, and is to teach as it is.
    """
    found = (epochs if assistant.random_weights else 0) if said is None else said
    if not found and assistant.random_weights:
        raise InputError(
            "the assistant has random weights, so it has nothing to teach yet", where="--via-epochs",
            hint="let it learn from the teacher first, or give a file that holds a trained one",
        )  # fmt: skip
    return found


def reference(found: LoadedModel, plan: Path) -> ModelRef:
    """How the plan in a file refers to a model."""
    return ModelRef(
        path=None if found.path is None else places.relative(found.path, plan), sha256=found.sha256,
        factory=found.factory, kwargs=found.kwargs, entry=found.entry, trusted=found.trusted,
    )  # fmt: skip


def remarks(models: Mapping[str, LoadedModel]) -> list[Diagnostic]:
    """What there is to say about how the models were loaded, the teacher first."""
    found = [remark for loaded in models.values() for remark in loaded.diagnostics]
    if models[TEACHER].random_weights:
        found.append(
            Diagnostic(
                code="random-teacher", severity="warning", where="teacher",
                why="the teacher has random weights: this plan can be reviewed, not run",
                hint="give a file that holds a trained teacher",
            )
        )  # fmt: skip
    return found

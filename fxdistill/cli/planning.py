"""What ``fxdistill plan`` does with its arguments: models and data in, a plan's file out."""

from collections.abc import Sequence
from pathlib import Path

from fxdistill.cli import values
from fxdistill.compiler import pipeline
from fxdistill.data import batches as data_module
from fxdistill.diagnostics import Diagnostic
from fxdistill.files import write_text
from fxdistill.ir.contract import PassManager
from fxdistill.modelfiles.load import LoadedModel
from fxdistill.plan import places
from fxdistill.plan.schema import DataPlan, ModelRef, Plan
from fxdistill.runtime import preflight


def data(
    spec: str | None, plan: Path, wanted: tuple[int, ...] | None, models: Sequence[LoadedModel], *, batch_size: int,
    allow: Sequence[str],
) -> tuple[DataPlan, tuple[int, ...]]:  # fmt: skip
    """The data's part of the plan in a file, and the shape of a batch.

    Args:
        spec: The data; None for a structural plan.
        plan: The plan's file.
        wanted: The shape that was asked for, where one was.
        models: Their files may say the shape; they have to fit the data.
        batch_size: Images a training step.
        allow: Modules whose factories may be called.

    Raises:
        DataError: The data is not there, or not of that shape.
        ModelError: A model does not fit the data.
    """
    shapes = [loaded.input_shape for loaded in models]
    if spec is None:
        return DataPlan(spec=None, batch_size=batch_size), values.first_shape(wanted, *shapes)
    known = next((shape for shape in (wanted, *shapes) if shape), None)
    dataset = data_module.load(spec, input_shape=known, allow=allow)
    if known is not None:
        data_module.check_input(dataset, known)
    made = data_module.defaults(spec, dataset=dataset, batch_size=batch_size)
    shape = values.first_shape(wanted, (1, *dataset.image_shape))
    for loaded in models:
        preflight.classes_fit(loaded.module, dataset, input_shape=shape, spec=spec)
    return made.model_copy(update={"spec": places.relative_data(spec, plan)}), shape


def write(output: Path, models: tuple[LoadedModel, LoadedModel], options: pipeline.Options) -> tuple[Plan, PassManager]:
    """Plan and write the file; also the passes that did it.

    Raises:
        InputError: The models, or the options, do not fit each other; the file cannot be written.
    """
    teacher, student = models
    passes = PassManager()
    made = pipeline.compile(
        teacher.module, student.module, options, passes=passes, teacher_ref=reference(teacher, output),
        student_ref=reference(student, output),
    )  # fmt: skip
    made = made.model_copy(update={"diagnostics": [*remarks(teacher, student), *made.diagnostics]})
    write_text(output, made.to_json())
    return made, passes


def reference(found: LoadedModel, plan: Path) -> ModelRef:
    """How the plan in a file refers to a model."""
    return ModelRef(
        path=None if found.path is None else places.relative(found.path, plan), sha256=found.sha256,
        factory=found.factory, kwargs=found.kwargs, entry=found.entry, trusted=found.trusted,
    )  # fmt: skip


def remarks(teacher: LoadedModel, student: LoadedModel) -> list[Diagnostic]:
    """What there is to say about how the models were loaded."""
    found = [*teacher.diagnostics, *student.diagnostics]
    if teacher.random_weights:
        found.append(
            Diagnostic(
                code="random-teacher", severity="warning", where="teacher",
                why="the teacher has random weights: this plan can be reviewed, not run",
                hint="give a file that holds a trained teacher",
            )
        )  # fmt: skip
    return found

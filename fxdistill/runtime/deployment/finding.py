"""A model by itself, found: a run's student, a file, a factory or an ONNX file, with the data to look at it with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fxdistill.data import classmap, places
from fxdistill.data.dataset import Dataset
from fxdistill.data.load import load as load_data
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, ModelError, RunDirError
from fxdistill.files import file_sha256, is_folder
from fxdistill.measure.onnx_model import OnnxModel, described
from fxdistill.modelfiles import heads
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.modelfiles.source import ModelSource, parse_source
from fxdistill.plan.schema import DataPlan
from fxdistill.preprocessing import NOTHING, Preprocessing, Source, View, Wishes, in_words
from fxdistill.runtime.planning import fitting, preprocess
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.result import provenance
from fxdistill.tasks import TASKS, Task

MODEL = "model"
"""What a model by itself is called."""


@dataclass(frozen=True)
class Found:
    """A model, the data to look at it with, and what its ONNX file shall say.

    Attributes:
        module: The model, on the CPU in eval mode.
        task: What its predictions are.
        dataset: Test images; None without data.
        input_shape: Shape of a batch of one as the model reads it.
        preprocessing: What it does to an image before it looks at it.
        entry: Which entry of a structured output is the prediction.
        metadata: For the ONNX file.
        prediction_name: What the prediction is called in an ONNX file; '' for the name of its place in the output.
        remarks: What there is to say about it.
        outputs: The outputs to export where nobody says which; empty for all.
    """

    module: nn.Module
    task: Task
    dataset: Dataset | None
    input_shape: tuple[int, ...]
    preprocessing: Preprocessing
    entry: str
    metadata: dict[str, str]
    prediction_name: str = ""
    remarks: tuple[Diagnostic, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def reads(self) -> str:
        """How the model reads images, in words."""
        return in_words(self.preprocessing)

    @property
    def view(self) -> View:
        """How the model looks at the images of the data."""
        size = self.input_shape[2:] if self.dataset is None else self.dataset.image_shape[1:]
        return self.preprocessing.view(size)


def as_loaded(
    model: str | Path | nn.Module, *, factory: str | None, args: Sequence[str], seed: int = 0, allow: Sequence[str],
    trust_code: bool, entry: str | None, option: str = "--factory",
) -> LoadedModel:  # fmt: skip
    """A model that is no run: loaded, or as it was given; ``option`` names its factory, for hints."""
    if isinstance(model, nn.Module):
        return LoadedModel(model, None, None, None)
    source = parse_source(
        str(model), factory=factory, args=args, trust_code=trust_code, allow=allow, option=option, entry=entry
    )
    return load(source, seed=seed)


def find(
    model: str | Path | nn.Module, *, data: DataPlan | str | Path | None = None, task: str | None = None,
    input_shape: tuple[int, ...] | None = None, preprocessing: Preprocessing | Wishes = NOTHING,
    factory: str | None = None, args: Sequence[str] = (), allow: Sequence[str] = (), trust_code: bool = False,
    entry: str | None = None, class_map: str | Path | None = None, checkpoint_entry: str | None = None,
    embedding: str | None = None, option: str = "--factory",
) -> Found:  # fmt: skip
    """The model that an argument names: a run's student, a file or a factory; see :func:`fxdistill.evaluate`.

    A model that is no run can be measured on the data of a plan, divided as the plan divides it. ``option`` is how the
    command line names a file's factory, for hints.

    Raises:
        InputError: It cannot be found or loaded, or does not fit the data.
    """
    names = None if class_map is None else Path(class_map)
    data = data if data is None or isinstance(data, DataPlan) else str(data)
    if not isinstance(model, nn.Module) and is_folder(model):
        if any((task, factory, args, trust_code, embedding, entry is not None, checkpoint_entry is not None)):
            raise InputError(
                "a run says itself what its models are", where=str(model),
                hint="leave out --task, --factory, --factory-arg, --entry, --embedding, --output-entry and "
                "--trust-code, or give a file",
            )  # fmt: skip
        spec = data.spec if isinstance(data, DataPlan) else data
        return _of_run(Path(model), spec, preprocess.at_size(preprocessing, input_shape), allow, names)
    if not isinstance(model, nn.Module) and Path(model).suffix.lower() == ".onnx":
        given, said_task, preprocessing = _of_onnx(Path(model), preprocessing)
    else:
        given = as_loaded(
            model, factory=factory, args=args, allow=allow, trust_code=trust_code, entry=checkpoint_entry, option=option
        )
        said_task = None
    task = task or said_task or "classification"
    wanted = TASKS.get(task, where="--task")
    if entry is None and isinstance(given.module, OnnxModel):
        entry = given.module.called(wanted.output_name)
    read = preprocess.look(
        {MODEL: given}, data, task=wanted, wishes={MODEL: preprocessing}, shape=input_shape, allow=allow
    )
    own = read.preprocessing[MODEL]
    shape = (read.shape[0], read.shape[1], *own.size)
    _as_embedding(given, model, embedding, task, input_shape=shape)
    if read.dataset is None:
        classes = given.metadata.get("classes", [])
        metadata = described(task=task, preprocessing=own, classes=classes if isinstance(classes, list) else [])
        return Found(given.module, wanted, None, shape, own, entry or "", metadata, remarks=given.diagnostics)
    spec = str(data.spec if isinstance(data, DataPlan) else data)
    dataset = fitting.mapped(
        read.dataset, names, given.module, wanted, spec=spec, entry=entry, input_shape=shape,
        own=given.metadata.get("classes"),
    )  # fmt: skip
    fit = fitting.fits(given.module, dataset, wanted, input_shape=shape, spec=spec, entry=entry)
    remarks = fitting.undecided(str(model) if isinstance(model, str | Path) else "model", fit, "--output-entry")
    said = (*given.diagnostics, *dataset.remarks, *read.remarks, *remarks)
    metadata = described(task=task, preprocessing=own, classes=dataset.classes)
    return Found(given.module, wanted, dataset, shape, own, fit.entry, metadata, remarks=said)


@contextmanager
def told_of(model: str) -> Iterator[None]:
    """Make an error say which of several models it is about."""
    try:
        yield
    except InputError as error:
        error.where = error.where if model in error.where else ", ".join(filter(None, (model, error.where)))
        raise


def data_of(found: Found, *, where: str) -> Dataset:
    """The data to measure a model on.

    Raises:
        InputError: There is none.
    """
    if found.dataset is None:
        raise InputError("there is no data to evaluate on", where=where, hint="give --data, e.g. --data digits")
    return found.dataset


def _as_embedding(
    given: LoadedModel, model: str | Path | nn.Module, wish: str | None, task: str, *, input_shape: tuple[int, ...]
) -> None:
    """Make a file's model answer with its embedding, in a task about these."""
    if not TASKS.get(task).embeds:
        if wish is not None:
            raise heads.about_another_task(task)
    elif not isinstance(model, nn.Module) and not isinstance(given.module, OnnxModel):
        heads.embedding(
            given.module, wish or heads.usual(given.metadata, task), input_shape=input_shape, where="--embedding"
        )
    elif wish is not None:
        raise InputError(
            "this model is taken as it is", where="--embedding", hint="leave it out, or give a file of weights"
        )


def _of_onnx(path: Path, wishes: Preprocessing | Wishes) -> tuple[LoadedModel, str | None, Preprocessing | Wishes]:
    """An ONNX file as a model, its task, and what is to be other than it says."""
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path), hint="check the path")
    module = OnnxModel(path)
    said = module.description
    loaded = LoadedModel(
        module, path, file_sha256(path), None, input_shape=module.input_shape, preprocessing=said.preprocessing,
        metadata={"classes": list(said.classes)},
    )  # fmt: skip
    if said.embedded and said.preprocessing is not None:
        if isinstance(wishes, Wishes) and wishes.mean is not None:
            raise InputError("the file normalises images itself", where=str(path), hint="leave out --mean and --std")
        inside = Source(geometry=said.preprocessing.source.geometry, normalisation="inside the file")
        channels = "rgb" if said.preprocessing.channels == "bgr" else said.preprocessing.channels
        plain = said.preprocessing.changed(mean=[], std=[], range=1, channels=channels, source=inside)
        return loaded, said.task, preprocess.overridden(plain, wishes)
    return loaded, said.task, wishes


def _of_run(
    path: Path, spec: str | None, wishes: Preprocessing | Wishes, allow: Sequence[str], class_map: Path | None
) -> Found:
    rundir = RunDir.existing(path)
    plan = rundir.plan()
    name = plan.export.member
    module = load(ModelSource(path=rundir.path, factory=None, kwargs={}, allow=tuple(allow))).module
    shape = plan.shape_of(name)
    data = plan.data
    if class_map is not None:
        names = classmap.read(class_map)
        if spec is None or len(names) > len(data.classes):
            raise RunDirError(
                f"the class map has {len(names)} classes, the run's {name} has {len(data.classes)}" if spec is not None
                else "a run says itself which classes its data has", where=str(class_map),
                hint="give the map of this model, with other --data",
            )  # fmt: skip
        data = data.changed(classes=list(classmap.filled(names, len(data.classes))), mapped=True)
    planned = plan.preprocessing_of(name) or Preprocessing(size=list(shape[2:]))
    own = preprocess.overridden(planned, wishes)
    elsewhere = spec is not None
    where = data.changed(spec=spec if elsewhere else places.resolved_data(data.spec, rundir.base))
    dataset = load_data(where, task=plan.task, reading=own.reading(shape[1]), allow=allow, whole=elsewhere)
    shape, entry, task = (*shape[:2], *own.size), plan.entry_of(name), TASKS.get(plan.task)
    return Found(
        module, task, dataset, shape, own, entry, provenance(plan, name), task.output_name,
        outputs=tuple(plan.export.outputs),
    )  # fmt: skip

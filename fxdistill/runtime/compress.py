"""A model compressed in one go: made smaller, and taught by what it was made of.

    FOLDER/smaller.pt   the smaller model, on the weights that are left of the original
    FOLDER/plan.json    an ordinary plan: the original teaches the smaller model
    FOLDER/run          the run of that plan

Called again, it goes on: a smaller model that is there is taken if it was made of the same model by the same request,
and a plan that is there has to be the one that would be written. One that was changed is run by ``fxdistill run``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fxdistill.compiler.compilation import STUDENT, TEACHER
from fxdistill.compiler.options import Options
from fxdistill.compiler.shrink_model import ShrunkResult
from fxdistill.errors import FxdistillError, InputError, RunDirError
from fxdistill.files import write_text
from fxdistill.ir.contract import PassManager
from fxdistill.ir.cost import limits_of
from fxdistill.methods import composed
from fxdistill.modelfiles import bundle
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.modelfiles.source import parse_source
from fxdistill.passes.thin.search import Ranking
from fxdistill.plan import difference
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.schema import Precision, Recalibration
from fxdistill.preprocessing import Wishes
from fxdistill.runtime import planning, shrinking
from fxdistill.runtime.execute import execute
from fxdistill.runtime.execution import Observer, Settings
from fxdistill.runtime.shrinking import Reading, Wish

SMALLER, PLAN, RUN = "smaller.pt", "plan.json", "run"
METHOD, EPOCHS = "kd", 30
_ASKED = "asked"
"""The metadata of a smaller model that says what was asked for."""
_OTHER = "choose another folder with -o"


@dataclass(frozen=True)
class Teaching:
    """How the smaller model is taught; what is not said here is as ``fxdistill plan`` has it.

    Attributes:
        data: A data spec.
        method: A method's name.
        task: What is predicted.
        epochs: Epochs of the main stage.
        lr: Learning rate; None for the method's own.
        batch_size: Images a training step at most.
        val: The share of the training images to watch the training by.
        augment: Names of augmentations, with commas; None for those that are usual for the data.
        class_map: A file with the models' classes, for data that has some of them.
        seed: Everything random comes from it.
        repeats: How many seeds to run.
        control: Whether to train the smaller model for as long without the original as well.
        precision: The training precision.
        recalibrate: Whether BatchNorm statistics are estimated anew.
        input_shape: Shape of one batch; None for that of the file or the data.
        wishes: What is to be other than model and data say of the preprocessing.
        entry: Which entry of the output is the prediction; None to find it.
        edit: What is changed of the plan before it is written.
        allow: Modules whose factories may be called.
    """

    data: str
    method: str = METHOD
    task: str = "classification"
    epochs: int = EPOCHS
    lr: float | None = None
    batch_size: int = 128
    val: float = 0.0
    augment: str | None = None
    class_map: Path | None = None
    seed: int = 0
    repeats: int = 1
    control: bool = False
    precision: Precision = "32-true"
    recalibrate: Recalibration | None = field(default_factory=Recalibration)
    input_shape: tuple[int, ...] | None = None
    wishes: Wishes = field(default_factory=Wishes)
    entry: str | None = None
    edit: Callable[[Plan], Plan] = lambda plan: plan
    allow: tuple[str, ...] = ()

    @property
    def reading(self) -> Reading:
        """What a model is looked at with when it is made smaller."""
        return Reading(self.data, self.task, self.input_shape, self.wishes, self.allow)


class Prepared(NamedTuple):
    """What there is to run.

    Attributes:
        plan: The plan.
        shrunk: How the model was made smaller; None where that was there already.
    """

    plan: Plan
    shrunk: ShrunkResult | None


def compress(
    model: str | Path, folder: str | Path, *, data: str, keep: float | None = None, macs: float | None = None,
    params: float | None = None, ranking: Ranking | None = None, floor: float | None = None,
    scopes: Mapping[str, float] = MappingProxyType({}), by: str = "l1", round_to: int = 1,
    protect: Sequence[str] = (), only: Sequence[str] = (), factory: str | None = None, args: Sequence[str] = (),
    checkpoint_entry: str | None = None, settings: Settings | None = None, observer: Observer | None = None,
    **teaching: Any,
) -> dict[str, Any]:  # fmt: skip
    """Make a model smaller, distil it from the original, check and export it; what came out, as ``result.json`` has it.

    Args:
        model: A file, or a file's factory and arguments; the weights have to be trained.
        folder: Where everything is written: new, or one to go on in.
        data: A data spec.
        keep: As for :func:`fxdistill.shrink`, as all up to ``only``.
        macs: A budget.
        params: A budget.
        ranking: What competes.
        floor: The least share of a layer.
        scopes: Parts with a share of their own.
        by: Importance of a channel, by name.
        round_to: Widths become multiples of this.
        protect: Paths whose channels stay.
        only: Paths of the modules to prune.
        factory: The factory of a file that is a state dict.
        args: Arguments of that factory, ``key=value``.
        checkpoint_entry: The entry of a checkpoint that holds the weights.
        settings: The user's decisions about the run; whether to resume is found out.
        observer: Who watches.
        teaching: The fields of :class:`Teaching`.

    Raises:
        InputError: Something does not fit; nothing was written.
        RunDirError: The folder holds something else.
        ParityError: The exported model is not the trained one.
    """
    settings, how = settings or Settings(), Teaching(data, **teaching)
    how = replace(how, allow=(*how.allow, *settings.allow))
    wish = Wish(
        keep=keep, limits=limits_of(macs=macs, parameters=params), ranking=ranking, floor=floor,
        scopes=tuple(scopes.items()), by=by, round_to=round_to, protect=tuple(protect), only=tuple(only), seed=how.seed,
    )  # fmt: skip
    source = parse_source(
        str(model), factory=factory, args=args, trust_code=settings.trust_code, allow=how.allow, option="--factory",
        entry=checkpoint_entry,
    )  # fmt: skip
    prepare(load(source), Path(folder), wish, how)
    return carry_out(Path(folder), settings, observer)


def prepare(
    found: LoadedModel, folder: Path, wish: Wish, teaching: Teaching, *, passes: PassManager | None = None
) -> Prepared:
    """Make a model smaller and write the plan to teach it, where that is not done yet.

    Raises:
        InputError: Something does not fit; nothing was written.
        RunDirError: The folder holds something else.
    """
    if found.random_weights:
        raise InputError(
            "these are random weights: there is nothing to teach", where="MODEL", hint="give a file of a trained model"
        )
    if composed(teaching.method).alone:
        raise InputError(
            f"the method '{teaching.method}' makes its student by itself", where="--method",
            hint=f"use `fxdistill plan MODEL --method {teaching.method}`, or another method here",
        )  # fmt: skip
    _check(folder)
    new = [place for place in (folder, folder / SMALLER) if not place.exists()]
    smaller, shrunk = _smaller(found, folder / SMALLER, wish, teaching.reading, passes)
    try:
        return Prepared(_planned(found, smaller, folder / PLAN, teaching), shrunk)
    except FxdistillError:
        _undo(new)
        raise


def carry_out(folder: Path, settings: Settings, observer: Observer | None = None) -> dict[str, Any]:
    """Run the plan of a folder, or go on with its run; see :func:`fxdistill.run`."""
    return execute(folder / PLAN, folder / RUN, settings_for(folder, settings), observer)


def settings_for(folder: Path, settings: Settings) -> Settings:
    """The settings with which the run of a folder begins or goes on."""
    return replace(settings, resume=(folder / RUN / PLAN).exists())


def _check(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise RunDirError("there is a file of this name", where=str(folder), hint=_OTHER)
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if held and SMALLER not in held:
        raise RunDirError(
            f"the folder is not empty and was not begun by this command: it holds '{held[0]}'", where=str(folder),
            hint=_OTHER,
        )  # fmt: skip


def _undo(new: Sequence[Path]) -> None:
    """Take away what was written for a request that turned out to be wrong."""
    for place in reversed(new):
        if place.is_file():
            place.unlink()
        elif place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _smaller(
    found: LoadedModel, path: Path, wish: Wish, reading: Reading, passes: PassManager | None
) -> tuple[LoadedModel, ShrunkResult | None]:
    """The smaller model in a file, which is made if it is not there."""
    asked = json.loads(json.dumps({"of": _identity(found), **asdict(wish), **_said(reading)}))
    if path.exists():
        held = bundle.read(path).metadata.get(_ASKED)
        differing = sorted(key for key in asked if not isinstance(held, dict) or held.get(key) != asked[key])
        if differing:
            raise RunDirError(
                f"the folder holds a model that was made smaller in another way: {', '.join(differing)}",
                where=str(path), hint=f"ask for the same, or {_OTHER}",
            )  # fmt: skip
        return load(path), None
    made, preprocessing = shrinking.shrunk(found, wish, reading, passes=passes)
    path.parent.mkdir(parents=True, exist_ok=True)
    shrinking.write(made, path, preprocessing=preprocessing, metadata={_ASKED: asked})
    return load(path), made


def _identity(found: LoadedModel) -> dict[str, Any]:
    return {"sha256": found.sha256, "factory": found.factory, "kwargs": found.kwargs, "entry": found.entry}


def _said(reading: Reading) -> dict[str, Any]:
    """What decides beside the wish itself how a model is made smaller."""
    return {"data": reading.data, "task": reading.task, "input": reading.input_shape, "size": reading.wishes.size}


def _planned(teacher: LoadedModel, student: LoadedModel, path: Path, teaching: Teaching) -> Plan:
    """The plan in a file, which is written if it is not there.

    Raises:
        RunDirError: Another plan is there.
    """
    plan = plan_for(teacher, student, path, teaching)
    if not path.exists():
        write_text(path, plan.to_json())
    elif (there := load_plan(path)) != plan:
        run = path.parent / RUN
        raise RunDirError(
            f"the plan that is there is not the one of this command: it differs in {difference.told(there, plan)}",
            where=str(path), hint=f"run it as it is: fxdistill run {path} -o {run}"
            f"{' --resume' if (run / PLAN).exists() else ''}; or {_OTHER}",
        )  # fmt: skip
    return plan


def plan_for(teacher: LoadedModel, student: LoadedModel, path: Path, teaching: Teaching) -> Plan:
    """The plan for a file in which one model teaches another; it is not written."""
    models, method = {TEACHER: teacher, STUDENT: student}, composed(teaching.method)
    seen = planning.look(
        teaching.data, path, teaching.input_shape, models, task=teaching.task, batch_size=teaching.batch_size,
        allow=teaching.allow, entries=dict.fromkeys(models, teaching.entry), criterion=method.criterion,
        wishes=dict.fromkeys(models, teaching.wishes), val=teaching.val, seed=teaching.seed,
        class_map=teaching.class_map, augment=teaching.augment,
    )  # fmt: skip
    options = Options(
        input_shape=seen.shape, method=teaching.method, task=teaching.task, epochs=teaching.epochs,
        lr=method.lr if teaching.lr is None else teaching.lr, seed=teaching.seed, repeats=teaching.repeats,
        control=teaching.control, data=seen.data, precision=teaching.precision, recalibrate=teaching.recalibrate,
        preprocessing=seen.preprocessing,
    )  # fmt: skip
    return planning.made(path, models, options, seen, edit=teaching.edit)[0]

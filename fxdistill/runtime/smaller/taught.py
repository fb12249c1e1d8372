"""A smaller model in its folder, with the plan that teaches it what the original knows, and the run of that plan.

A model says in its file what was asked for, so that a command that is given again goes on where it stopped, and one
that asks for something else is refused.
"""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fxdistill.compiler.compilation import STUDENT, TEACHER
from fxdistill.compiler.shrink_model import ShrunkResult
from fxdistill.errors import RunDirError
from fxdistill.files import write_text
from fxdistill.ir.running import copied
from fxdistill.methods import DEFAULT_CRITERION
from fxdistill.modelfiles import bundle
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.plan import difference
from fxdistill.plan.document import Plan
from fxdistill.plan.file import invalid
from fxdistill.plan.file import load as load_plan
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.planning import planner, preflight
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.smaller import shrunken
from fxdistill.runtime.smaller.shrunken import Wish
from fxdistill.runtime.smaller.teaching import Teaching
from fxdistill.tasks import TASKS

SMALLER, PLAN, RUN = "smaller.pt", "plan.json", "run"
"""What a folder holds: a smaller model, the plan to teach it, and the run of that plan."""
OTHER = "choose another place with -o"
_ASKED = "asked"
"""The metadata of a smaller model that says what was asked for."""


def check_folder(folder: Path) -> None:
    """Refuse a place where a file is in the way of a folder.

    Raises:
        RunDirError: It is so.
    """
    if (there := next((place for place in (folder, *folder.parents) if place.exists()), folder)).is_file():
        raise RunDirError("there is a file of this name", where=str(there), hint=OTHER)


def ready(found: LoadedModel, path: Path, teaching: Teaching, settings: Settings) -> None:
    """Check, before anything is made, what the run of a plan in a file will check: its device, its data, its teacher.

    Raises:
        InputError: There is no such device, the data is not there, or too small, or the model knows nothing of it.
    """
    preflight.accelerator(settings.device, settings.precision or teaching.precision)
    if TASKS.get(teaching.task).embeds:  # its head is left away
        found = replace(found, module=copied(found.module))
    try:
        planner.look(
            teaching.data, path, teaching.input_shape, {TEACHER: found}, task=teaching.task, allow=teaching.allow,
            batch_size=teaching.batch_size, entries={TEACHER: teaching.entry}, wishes={TEACHER: teaching.wishes},
            criterion=DEFAULT_CRITERION, val=teaching.val, seed=teaching.seed, class_map=teaching.table,
            augment=teaching.augment, measure=True, force=settings.force,
        )  # fmt: skip
    except ValidationError as cause:  # numbers that the command line's parser would have refused
        raise invalid(cause, where="the options", hint="give other numbers") from cause


def request(found: LoadedModel, wish: Wish, teaching: Teaching, steps: dict[str, Any] | None = None) -> dict[str, Any]:
    """What decides about a smaller model, as its file has it."""
    identity = {"sha256": found.sha256, "factory": found.factory, "kwargs": found.kwargs, "entry": found.entry}
    read = {"data": teaching.data, "task": teaching.task, "input": teaching.input_shape, "class_map": teaching.classes}
    read["output"] = teaching.entry
    read |= {name: value for name, value in asdict(teaching.wishes).items() if name != "where"}
    asked = {
        "model": identity,
        **asdict(wish),
        **read,
        "val": teaching.val,
        "steps": steps,
    }
    plain: dict[str, Any] = json.loads(json.dumps(asked))
    return plain


def held(path: Path, asked: dict[str, Any]) -> LoadedModel:
    """The smaller model in a file, which has to be the one that is asked for.

    Raises:
        RunDirError: It is another one.
    """
    found = bundle.read(path).metadata.get(_ASKED)
    differing = sorted(key for key in asked if not isinstance(found, dict) or found.get(key) != asked[key])
    if differing:
        raise RunDirError(
            f"there is a model that was made smaller in another way: {', '.join(differing)}", where=str(path),
            hint=f"ask for the same, or {OTHER}",
        )  # fmt: skip
    return load(path)


def put(
    made: ShrunkResult, path: Path, preprocessing: Preprocessing | None, asked: dict[str, Any], *, of: LoadedModel
) -> LoadedModel:  # fmt: skip
    """Write a smaller model, which then says what was asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shrunken.write(made, path, of=of, preprocessing=preprocessing, metadata={_ASKED: asked})
    return load(path)


def planned(teacher: LoadedModel, student: LoadedModel, path: Path, teaching: Teaching) -> Plan:
    """The plan in a file, which is written if it is not there.

    Raises:
        RunDirError: Another plan is there.
    """
    plan = plan_for(teacher, student, path, teaching)
    if not path.exists():
        write_text(path, plan.to_json())
    elif (there := load_plan(path)) != plan:
        run = path.parent / RUN
        how = ["--resume"] if (run / PLAN).exists() else []
        how += [word for module in dict.fromkeys(teaching.allow) for word in ("--allow-factory", module)]
        how += ["--trust-code"] if teacher.trusted else []
        again = shlex.join(["fxdistill", "run", str(path), "-o", str(run), *how])
        raise RunDirError(
            f"the plan that is there is not the one of this command: it differs in {difference.told(there, plan)}",
            where=str(path), hint=f"run it as it is: {again}; or {OTHER}",
        )  # fmt: skip
    return plan


def foresee(
    teacher: LoadedModel, made: ShrunkResult, preprocessing: Preprocessing | None, path: Path, teaching: Teaching
) -> None:
    """Plan to teach a model that is in no file yet: mistakes are told before anything is written."""
    draft = LoadedModel(made.module, None, None, None, input_shape=made.input_shape, preprocessing=preprocessing)
    plan_for(teacher, draft, path, teaching)


def plan_for(teacher: LoadedModel, student: LoadedModel, path: Path, teaching: Teaching) -> Plan:
    """The plan for a file in which one model teaches another; it is not written."""
    models = {TEACHER: teacher, STUDENT: student}
    return planner.planned(
        path, models, data=teaching.data, input_shape=teaching.input_shape, task=teaching.task, method=teaching.method,
        batch_size=teaching.batch_size, allow=teaching.allow, entries=dict.fromkeys(models, teaching.entry),
        wishes=dict.fromkeys(models, teaching.wishes), val=teaching.val, seed=teaching.seed,
        class_map=teaching.table, augment=teaching.augment, epochs=teaching.epochs, lr=teaching.lr,
        repeats=teaching.repeats, control=teaching.control, precision=teaching.precision,
        recalibrate=teaching.recalibrate, edit=teaching.edit,
    ).plan  # fmt: skip


def carry_out(folder: Path, settings: Settings, observer: Observer | None = None) -> dict[str, Any]:
    """Run the plan of a folder, or go on with its run; see :func:`fxdistill.run`."""
    return execute(folder / PLAN, folder / RUN, settings_for(folder, settings), observer)


def settings_for(folder: Path, settings: Settings) -> Settings:
    """The settings with which the run of a folder begins or goes on."""
    return replace(settings, resume=(folder / RUN / PLAN).exists())

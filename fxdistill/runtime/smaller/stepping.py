"""A model made smaller in steps: a part of the way, trained a little with the original as teacher, and further.

    budget of step i of N  =  own · (budget / own)^(i / N)      shares of single parts, and of the time: share^(i / N)

Each training is the run of an ordinary plan, in a folder of its own:

    FOLDER/step-1/smaller.pt, plan.json, run …

The last step trains nothing: what is done with the model that meets the budget is not said here. Floors, and shares of
single parts, are of the original's widths. Called again with the same request, steps that are there are taken as they
are, and a run that was interrupted goes on.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fxdistill.compiler.compilation import STUDENT, TEACHER
from fxdistill.compiler.shrink_model import ShrunkResult
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import BudgetError, InputError, RunDirError
from fxdistill.files import write_text
from fxdistill.ir.budget import Limit, Size
from fxdistill.ir.contract import PassManager
from fxdistill.ir.running import copied
from fxdistill.methods import DEFAULT_CRITERION
from fxdistill.modelfiles import bundle
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.passes.thin.search import TOLERANCE
from fxdistill.plan import difference
from fxdistill.plan.document import Plan
from fxdistill.plan.file import invalid
from fxdistill.plan.file import load as load_plan
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.planning import planner, preflight
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.smaller import shrunken
from fxdistill.runtime.smaller.latency_search import Clock
from fxdistill.runtime.smaller.shrunken import Wish
from fxdistill.runtime.smaller.teaching import Teaching
from fxdistill.tasks import TASKS

SMALLER, PLAN, RUN = "smaller.pt", "plan.json", "run"
"""What a folder holds: a smaller model, the plan to teach it, and the run of that plan."""
OTHER = "choose another place with -o"
_ASKED = "asked"
"""The metadata of a smaller model that says what was asked for."""
_MOST = 100

Runs = Callable[[Path], object]
"""What runs the plan of a folder, or goes on with its run."""
Says = Callable[[int, ShrunkResult], None]
"""What is told of a step by its number."""


@dataclass(frozen=True)
class Steps:
    """In how many steps a model is made smaller, and how it is taught between them.

    Attributes:
        count: How many there are, the last one included.
        teaching: That between two steps, see :meth:`Teaching.briefly`.
    """

    count: int
    teaching: Teaching

    def check(self, wish: Wish, found: LoadedModel) -> None:
        """Refuse numbers that make no sense, a request that is no budget, and a model that has nothing to teach.

        Raises:
            InputError: It is so.
        """
        if not 1 < self.count <= _MOST:
            raise InputError(
                f"{self.count} are no steps", where="--steps", hint=f"give a number from 2 to {_MOST}, or leave it out"
            )
        if not wish.goes_on or wish.keep is not None:
            raise InputError(
                "steps go towards a budget", where="--steps", hint="give --macs 0.5, say, or --latency 0.6"
            )
        if found.random_weights or found.sha256 is None:
            raise nothing_to_teach()

    @classmethod
    def of(cls, count: int, recover: int, teaching: Teaching) -> "Steps":
        """So many steps, with so many epochs between them."""
        return cls(count, teaching.briefly(recover))

    @property
    def asked(self) -> dict[str, Any]:
        """What decides about the models that come out."""
        how = {name: value for name, value in asdict(self.teaching).items() if name not in ("edit", "allow")}
        recalibrate = self.teaching.recalibrate
        how["recalibrate"] = None if recalibrate is None else recalibrate.model_dump()
        return {"steps": self.count, **how, "class_map": self.teaching.classes}


def nothing_to_teach() -> InputError:
    """The error for a model without trained weights in a file."""
    return InputError(
        "these are no trained weights in a file: there is nothing to teach", where="MODEL",
        hint="give a file of a trained model",
    )  # fmt: skip


def folder_for(path: str | Path | None) -> Path:
    """Where the steps towards a file are written.

    Raises:
        InputError: There is no file.
        RunDirError: There can be no such folder.
    """
    if path is None:
        raise InputError("steps are written beside a file", where="path", hint="give the file to write")
    folder = Path(path).with_name(f"{Path(path).stem}-steps")
    check_folder(folder)
    return folder


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


def carry_out(folder: Path, settings: Settings, observer: Observer | None = None) -> dict[str, Any]:
    """Run the plan of a folder, or go on with its run; see :func:`fxdistill.run`."""
    return execute(folder / PLAN, folder / RUN, settings_for(folder, settings), observer)


def settings_for(folder: Path, settings: Settings) -> Settings:
    """The settings with which the run of a folder begins or goes on."""
    return replace(settings, resume=(folder / RUN / PLAN).exists())


def in_steps(
    found: LoadedModel, folder: Path, wish: Wish, steps: Steps, at_once: ShrunkResult, *, run: Runs,
    clock: Clock | None = None, say: Says = lambda _number, _made: None, passes: PassManager | None = None,
) -> tuple[ShrunkResult, Preprocessing | None, LoadedModel]:  # fmt: skip
    """A model made smaller in steps, what it does to an image before it looks at it, and what the last one was made of.

    The last one is not written.

    Its sizes and widths are beside those of the original, its proof and kept indices beside the step before.

    Args:
        found: The original.
        folder: Where the steps are written.
        wish: What is wanted of the original.
        steps: How many there are, and the teaching between them.
        at_once: What the wish makes of the original in one step: it says that the wish can be met.
        run: Runs the plan of a step.
        clock: What says how long models take, where a latency is wanted.
        say: Is told of each step but the last that is made.
        passes: A manager to run the passes of the last one in.

    Raises:
        InputError: The last one has nothing to do.
        RunDirError: The folder holds other steps.
    """
    asked = request(found, wish, steps.teaching, steps)
    reading = replace(steps.teaching.reading, batch=at_once.input_shape[0])  # whatever files of runs say of it
    current, size = found, at_once.before
    wish = replace(wish, before=tuple((path, before) for path, (before, _) in at_once.widths.items()))
    left_out = list(range(1, steps.count))
    for number in range(1, steps.count):
        part = _part(wish, at_once.before, number / steps.count, size, clock)
        if not part.goes_on:  # the step before went as far
            continue
        place = folder / f"step-{number}"
        this = {**asked, "step": number}
        if not (place / SMALLER).exists():
            try:
                made, preprocessing = shrunken.shrunk(current, part, reading, clock=clock)
            except BudgetError:  # no widths come near to this part of the way: the next step goes further
                continue
            if _goes_all_the_way(made, wish, at_once.before, clock):
                break
            foresee(found, made, preprocessing, place / PLAN, steps.teaching)
            put(made, place / SMALLER, preprocessing, this, of=current)
            say(number, made)
        planned(found, held(place / SMALLER, this), place / PLAN, steps.teaching)
        run(place)
        left_out.remove(number)
        current = load(place / RUN)
        size, clock = shrunken.size_of(current, reading), shrunken.since(clock, current, reading)
    last = _part(wish, at_once.before, 1.0, size, clock)
    if not last.goes_on:
        raise InputError(
            "the last step has nothing to do: the one before it meets the budget", where="--steps",
            hint="take fewer steps",
        )  # fmt: skip
    if last.latency is None:  # what was trained is not given up where no widths of it come near
        last = replace(last, roughly=True)
    made, preprocessing = shrunken.shrunk(current, last, reading, clock=clock, passes=passes)
    widths = {path: (dict(wish.before).get(path, before), after) for path, (before, after) in made.widths.items()}
    said = (*_left_out(left_out, steps.count), *made.diagnostics)
    return replace(made, before=at_once.before, widths=widths, diagnostics=said), preprocessing, current


def _left_out(numbers: Sequence[int], count: int) -> Iterator[Diagnostic]:
    """A warning about steps that were not made."""
    if numbers:
        which = f"step {numbers[0]} was" if len(numbers) == 1 else f"steps {', '.join(map(str, numbers))} were"
        untaught = ": nothing was trained in between" if len(numbers) == count - 1 else ""
        yield Diagnostic(
            code="steps-left-out", severity="warning", where="--steps",
            why=f"{which} left out of {count}, for widths are too coarse{untaught}",
            hint="take fewer steps, or widths in smaller multiples (--round-to)",
        )  # fmt: skip


def _goes_all_the_way(made: ShrunkResult, wish: Wish, own: Size, clock: Clock | None) -> bool:
    """Whether a model that is a part of the way meets the whole budget: widths are coarse, and times roughly met."""
    then = clock if clock is None or made.confirmed is None else replace(clock, at=made.confirmed.share)
    return not _part(wish, own, 1.0, made.after, then).goes_on


def _part(wish: Wish, own: Size, way: float, size: Size, clock: Clock | None) -> Wish:
    """What is wanted a part of the way; without the budgets that a model of some size, and time, keeps to."""
    limits = []
    for limit in wish.limits:
        whole, end = getattr(own, limit.what), limit.most(own)
        most = end if way == 1 else int(whole * (end / whole) ** way)
        if getattr(size, limit.what) > most:
            limits.append(Limit(limit.what, most, limit.option))
    latency = None
    if wish.latency is not None and clock is not None:
        own_ms = clock.compare.own_ms
        part = wish.latency.part(way, own_ms)
        latency = part if clock.at > part.share(own_ms) * (1 + TOLERANCE) else None
    return replace(
        wish, limits=tuple(limits), latency=latency, scopes=tuple((path, share**way) for path, share in wish.scopes)
    )


def request(found: LoadedModel, wish: Wish, teaching: Teaching, steps: Steps | None = None) -> dict[str, Any]:
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
        "steps": None if steps is None else steps.asked,
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

"""A model made smaller in steps: a part of the way, trained a little with the original as teacher, and further.

    budget of step i of N  =  own · (budget / own)^(i / N)      shares of single parts, and of the time: share^(i / N)

Each training is the run of an ordinary plan, in a folder of its own:

    FOLDER/step-1/smaller.pt, plan.json, run …

The last step trains nothing: what is done with the model that meets the budget is not said here. Floors, and shares of
single parts, are of the original's widths. Called again with the same request, steps that are there are taken as they
are, and a run that was interrupted goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fxdistill.compiler.shrink_model import ShrunkResult
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import BudgetError, InputError
from fxdistill.ir.budget import Limit, Size
from fxdistill.ir.contract import PassManager
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.passes.thin.search import TOLERANCE
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.smaller import shrunken, taught
from fxdistill.runtime.smaller.latency_search import Clock
from fxdistill.runtime.smaller.shrunken import Wish
from fxdistill.runtime.smaller.teaching import Teaching

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
    taught.check_folder(folder)
    return folder


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
    asked = taught.request(found, wish, steps.teaching, steps.asked)
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
        if not (place / taught.SMALLER).exists():
            try:
                made, preprocessing = shrunken.shrunk(current, part, reading, clock=clock)
            except BudgetError:  # no widths come near to this part of the way: the next step goes further
                continue
            if _goes_all_the_way(made, wish, at_once.before, clock):
                break
            taught.foresee(found, made, preprocessing, place / taught.PLAN, steps.teaching)
            taught.put(made, place / taught.SMALLER, preprocessing, this, of=current)
            say(number, made)
        taught.planned(found, taught.held(place / taught.SMALLER, this), place / taught.PLAN, steps.teaching)
        run(place)
        left_out.remove(number)
        current = load(place / taught.RUN)
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

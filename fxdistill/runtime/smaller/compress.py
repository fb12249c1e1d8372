"""A model compressed in one go: made smaller, and taught by what it was made of.

    FOLDER/smaller.pt   the smaller model, on the weights that are left of the original
    FOLDER/plan.json    an ordinary plan: the original teaches the smaller model
    FOLDER/run          the run of that plan
    FOLDER/step-1 …     the same of steps before, see :mod:`fxdistill.runtime.smaller.stepping`

Called again, it goes on: a smaller model that is there is taken if it was made of the same model by the same request,
and a plan that is there has to be the one that would be written. One that was changed is run by ``fxdistill run``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxdistill import checking
from fxdistill.compiler.shrink_model import ShrunkResult
from fxdistill.errors import InputError, RunDirError
from fxdistill.methods import composed
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.modelfiles.source import parse_source
from fxdistill.passes.thin.search import Ranking
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.smaller import shrunken, stepping, taught
from fxdistill.runtime.smaller.shrunken import Wish, wished
from fxdistill.runtime.smaller.stepping import Runs, Says, Steps
from fxdistill.runtime.smaller.taught import OTHER, PLAN, SMALLER
from fxdistill.runtime.smaller.teaching import Teaching


@checking.checked()
def compress(
    model: str | Path, folder: str | Path, *, data: str | Path, keep: float | None = None, macs: float | None = None,
    params: float | None = None, latency: float | str | None = None, on: str = "cpu",
    latency_table: str | Path | None = None, ranking: Ranking | None = None, floor: float | None = None,
    scopes: Mapping[str, float] = MappingProxyType({}), by: str | None = None, round_to: int | None = None,
    protect: Sequence[str] = (), only: Sequence[str] = (), factory: str | None = None, args: Sequence[str] = (),
    checkpoint_entry: str | None = None, steps: int = 1, recover: int = 1, settings: Settings | None = None,
    observer: Observer | None = None, **teaching: Any,
) -> dict[str, Any]:  # fmt: skip
    """Make a model smaller, distil it from the original, check and export it; what came out, as ``result.json`` has it.

    Args:
        model: A file, or a file's factory and arguments; the weights have to be trained.
        folder: Where everything is written: new, or one to go on in.
        data: A data spec.
        keep: As for :func:`fxdistill.shrink`, as all up to ``only``.
        macs: A budget.
        params: A budget.
        latency: Time in ONNX Runtime that it may take: a share of the model's own below 1, or as ``"3ms"``. Within 2 %,
            as the whole was measured, or refused.
        on: What that is measured on: ``cpu`` or ``cuda``.
        latency_table: A file with times of layers on this machine, which gets those that are measured; None for none.
        ranking: What competes.
        floor: The least share of a layer.
        scopes: Parts with a share of their own.
        by: Importance of a channel, by name; as ``NAME+NAME`` by the first layers compete for widths, by the second the
            channels of a layer. None for ``l1``, with data ``l1+interpolative``, and under a budget, if the data has
            labels, ``taylor+interpolative``.
        round_to: Widths become multiples of this; None for 1 with ``keep``, 8 with a latency, and with a budget 8, or
            4, 2 or 1 where layers are narrow or no such widths meet it.
        protect: Paths whose channels stay.
        only: Paths of the modules to prune.
        factory: The factory of a file that is a state dict.
        args: Arguments of that factory, ``key=value``.
        checkpoint_entry: The entry of a checkpoint that holds the weights.
        steps: In how many steps towards the budget it is made smaller.
        recover: Epochs in which it is taught between two of them.
        settings: The user's decisions about the run; whether to resume is found out.
        observer: Who watches.
        teaching: The fields of :class:`Teaching`.

    Raises:
        InputError: Something does not fit; nothing was written.
        RunDirError: The folder holds something else.
        ParityError: The exported model is not the trained one.
    """
    checking.keywords(teaching, Teaching)
    settings, how = settings or Settings(), Teaching(str(data), **teaching)
    how = replace(how, allow=(*how.allow, *settings.allow))
    wish = wished(
        keep=keep, macs=macs, params=params, latency=latency, on=on, ranking=ranking, floor=floor, scopes=scopes, by=by,
        round_to=round_to, protect=protect, only=only, seed=how.seed,
    )  # fmt: skip
    source = parse_source(
        str(model), factory=factory, args=args, trust_code=settings.trust_code, allow=how.allow, option="--factory",
        entry=checkpoint_entry,
    )  # fmt: skip

    def run(place: Path) -> dict[str, Any]:
        return taught.carry_out(place, settings, observer)

    in_steps = None if steps == 1 else Steps.of(steps, recover, how)
    table = None if latency_table is None else Path(latency_table)
    prepare(load(source), Path(folder), wish, how, settings=settings, run=run, steps=in_steps, table=table)
    return run(Path(folder))


def prepare(
    found: LoadedModel, folder: Path, wish: Wish, teaching: Teaching, *, settings: Settings, run: Runs,
    steps: Steps | None = None, table: Path | None = None, say: Says = lambda _number, _made: None,
) -> ShrunkResult | None:  # fmt: skip
    """Make a model smaller and write the plan to teach it, as far as that is not done yet.

    Returns:
        How the model was made smaller; None where that was there already.

    Args:
        found: The original.
        folder: Where everything is written.
        wish: How much of it is to stay.
        teaching: How what is left is taught.
        settings: The user's decisions about the run that follows.
        run: Runs the plan of a step.
        steps: The steps in which it is made smaller; None for one.
        table: A file with times of layers, where a latency is wanted.
        say: Is told of each step before the last one that is made.

    Raises:
        InputError: Something does not fit; nothing was written.
        RunDirError: The folder holds something else.
    """
    _check(found, teaching)
    if steps is not None:
        steps.check(wish, found)
    _check_folder(folder)
    asked, path = taught.request(found, wish, teaching, None if steps is None else steps.asked), folder / SMALLER
    if path.exists():
        taught.planned(found, taught.held(path, asked), folder / PLAN, teaching)
        return None
    taught.ready(found, folder / PLAN, teaching, settings)
    with shrunken.timed(found, wish, teaching.reading, table) as clock:
        at_once, preprocessing = shrunken.shrunk(found, wish, teaching.reading, clock=clock)
        taught.foresee(found, at_once, preprocessing, folder / PLAN, teaching)
        made_of = found
        if steps is not None:
            at_once, preprocessing, made_of = stepping.in_steps(
                found, folder, wish, steps, at_once, run=run, clock=clock, say=say
            )
    smaller = taught.put(at_once, path, preprocessing, asked, of=made_of)
    taught.planned(found, smaller, folder / PLAN, teaching)
    return at_once


def _check(found: LoadedModel, teaching: Teaching) -> None:
    """Refuse a model that has nothing to teach, and a method that takes no student."""
    if found.random_weights:
        raise stepping.nothing_to_teach()
    if composed(teaching.method).alone:
        raise InputError(
            f"the method '{teaching.method}' makes its student by itself", where="--method",
            hint=f"use `fxdistill plan MODEL --method {teaching.method}`, or another method here",
        )  # fmt: skip


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    taught.check_folder(folder)
    unfinished = f".{SMALLER}."  # what a writer that was killed leaves
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    held = [name for name in held if not name.startswith(unfinished)]
    if held and not any(name == SMALLER or name.startswith("step-") for name in held):  # the first one may be left out
        raise RunDirError(
            f"the folder is not empty and was not begun by this command: it holds '{held[0]}'", where=str(folder),
            hint=OTHER,
        )  # fmt: skip

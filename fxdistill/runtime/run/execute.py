"""Execute a plan: load, check, train every arm, measure, export, write what came out.

Everything that can be wrong with the input is found before the run directory is touched: the programs of the arms are
built, and cut down to each stage, and the student is exported once as it is, before anything is trained.
"""

import copy
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from fxdistill import checking
from fxdistill.compiler.build import specialize
from fxdistill.compiler.tap_statistics import measure_taps
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError
from fxdistill.ir.graph import Traced
from fxdistill.ir.program import Program
from fxdistill.ir.running import whole_state
from fxdistill.plan.document import Plan, edited
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.schema import ModelRef, Shrunken
from fxdistill.runtime.planning import fitting, preflight
from fxdistill.runtime.processes import spread
from fxdistill.runtime.processes.crew import Crew, Standing
from fxdistill.runtime.processes.devices import started
from fxdistill.runtime.run import beginning, extension
from fxdistill.runtime.run.arms import build_program, take_up, train
from fxdistill.runtime.run.bench import Bench
from fxdistill.runtime.run.derived import derived
from fxdistill.runtime.run.execution import Execution, Losses, Observer, Settings, State
from fxdistill.runtime.run.log import Metrics, Untold
from fxdistill.runtime.run.result import finish
from fxdistill.runtime.run.reuse import Reuse
from fxdistill.runtime.run.trials import Trial, teaching, trials_of
from fxdistill.runtime.training import memory
from fxdistill.runtime.training.aside import Aside, collect
from fxdistill.runtime.training.layouts import Layout, chosen, laid_out
from fxdistill.runtime.training.shelf import Folder, Memory, Shelf
from fxdistill.tasks import TASKS


@dataclass(frozen=True)
class _Parts:
    """What a plan names, loaded, checked and found to fit."""

    modules: dict[str, nn.Module]
    dataset: Dataset
    initial: dict[Trial, Mapping[str, State]]
    programs: dict[Trial, Program]
    strangers: frozenset[str]
    own_data: dict[str, Dataset]
    before: Losses
    layout: Layout


@checking.checked()
def execute(
    plan_path: str | Path, out: str | Path, settings: Settings | None = None, observer: Observer | None = None,
    **decisions: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run a plan and return what came out, as ``result.json`` has it; nothing where it stops before the end.

    Args:
        plan_path: The plan; the places in it are relative to its folder. A run's copy serves as the plan itself.
        out: The run directory, new or empty, or one to resume.
        settings: The user's decisions.
        observer: Who watches.
        decisions: Fields of :class:`Settings`, instead of those there: ``seeds=5``.

    Raises:
        InputError: Plan, models, data or run directory do not fit; nothing was written.
        TrainingError: A loss is not a number; the last checkpoint stays.
        ParityError: The exported student is not the trained one.
    """
    plan_path, out = Path(plan_path), Path(out)
    checking.keywords(decisions, Settings)
    settings, observer = replace(settings or Settings(), **decisions), observer or Observer()
    planned = load_plan(plan_path)
    fabric, crew = _started(planned, settings)
    observer = observer if crew.is_first else Observer()
    begun = crew.first(lambda: beginning.begun(planned, plan_path, out, settings, crew))
    if begun.result is not None:
        return begun.result
    plan, how = begun.plan, begun.how
    observer.on_phase("loading")
    parts = _load(begun, settings, fabric.device.type, crew)
    how["channels_last"] = parts.layout.last
    own = {name: found.to(fabric.device) for name, found in parts.own_data.items()}
    dataset, task = parts.dataset.to(fabric.device), TASKS.get(plan.task)
    bench = Bench(plan, task, dataset, parts.modules, fabric, parts.strangers, own, crew=crew)
    poor = _taught(bench, force=settings.force)
    with beginning.opened(out, begun, crew, resume=settings.resume or settings.more_epochs > 0) as rundir:
        at = crew.first(lambda: beginning.taken_up(rundir, begun, dataset))
        run = Execution(
            plan, task, dataset, parts.modules, fabric, parts.strangers, own, rundir, parts.initial.__getitem__,
            observer, compiled=settings.compile, records=settings.records(fabric), save_seconds=settings.save_seconds,
            metrics=Metrics(rundir, size=at.metrics_size, plan=plan) if crew.is_first else Untold(), checkpoint=at,
            reuse=reusing(plan, dataset, fabric, settings, observer, how=how), aside=Aside(rundir.path),
            programs=parts.programs, asides=settings.asides,
            evaluate_every=settings.evaluate_every, before=parts.before, profile=settings.profile,
            chosen=dict(at.compiled), layout=parts.layout, crew=crew, known=bench.known,
        )  # fmt: skip
        run.put_aside(_unread(run, parts))
        if settings.channels_last == "auto":
            poor.append(Diagnostic(code="layout", severity="note", where="feature maps", why=parts.layout.why))
        return _train(run, poor, until=settings.trials)


def _started(plan: Plan, settings: Settings) -> tuple[Fabric, Crew]:
    """The device, and the processes of this run.

    Raises:
        InputError: There is no such device, or what the user wants goes with one process alone.
    """
    alone = {"--compile": settings.compile, "--profile": settings.profile, "--cache": isinstance(settings.cache, Path)}
    several = Standing.here().count > 1
    if several and (wrong := next((option for option, wanted in alone.items() if wanted), "")):
        raise InputError(
            "this is for a run in one process", where=wrong, hint=f"leave {wrong} away, or --devices and torchrun"
        )
    precision = settings.precision or plan.precision
    return started(preflight.accelerator(settings.device, precision), precision, settings.devices)


def reusing(
    plan: Plan, dataset: Dataset, fabric: Fabric, settings: Settings, observer: Observer, *, how: dict[str, Any]
) -> Reuse:
    """What the trials of a run keep of what frozen members compute, where the user wants it kept."""

    def say(where: str, why: str) -> None:
        observer.on_diagnostic(Diagnostic(code="cache", severity="warning", where=where, why=why))

    shelf: Shelf | None = None
    if isinstance(settings.cache, Path):
        shelf = Folder(settings.cache, settings.cache_size)
    elif settings.cache == "auto":
        shelf = Memory(min(settings.cache_size, (memory.available("cpu") or settings.cache_size) // 4))
    how = {**how, "device": fabric.device.type}
    return Reuse(
        plan, TASKS.get(plan.task), dataset.train, fabric, shelf, how, half=settings.cache_half, say=say,
        recorded=settings.records(fabric) and settings.compile is not True,
    )  # fmt: skip


def _unread(run: Execution, parts: _Parts) -> Iterator[Tensor]:
    """What a step of training does not read: members that only teach, as they are given, and what is started from."""
    for name in teaching(run.plan):
        yield from run.modules[name].parameters()
    for initial in parts.initial.values():
        for state in initial.values():
            yield from state.values()


def _taught(bench: Bench, *, force: bool) -> list[Diagnostic]:
    """Refuse a teacher that is at chance, unless forced; a warning for each that is near."""
    remarks, classes = list[Diagnostic](), len(bench.dataset.classes)
    targets = bench.dataset.split("val").labels
    for name in teaching(bench.plan):
        found = bench.measured(name, on="val")
        bench.modules[name].cpu()  # programs hold frozen copies of their own
        if not force:
            preflight.knows(name, found, bench.task, targets, classes=classes)
        remarks += preflight.near_chance(name, found, bench.task, targets, classes=classes)
    return remarks


def _train(run: Execution, remarks: Sequence[Diagnostic], *, until: int | None) -> dict[str, Any]:
    trials = trials_of(run.plan)
    run.observer.on_begin(run.plan, trials)
    known = (*preflight.other_versions(run.plan), *edited(run.plan), *extension.remarks(run.plan), *remarks)
    for remark in known:
        run.observer.on_diagnostic(remark)
    for index, trial in enumerate(trials[:until]):
        if index >= run.checkpoint.arm:
            train(run, index, trial)
        else:
            take_up(run, trial)
    if until is not None:
        run.save(run.checkpoint)
        return {}
    measured = {name: run.measured(name) for name in teaching(run.plan)}
    return run.crew.first(lambda: finish(run, measured=measured))


def _load(begun: beginning.Begun, settings: Settings, device: str, crew: Crew) -> _Parts:
    plan, base = begun.plan, begun.origin.resolve().parent

    def load(name: str, seed: int) -> nn.Module:
        return preflight.load_model(
            plan.given(name), base, seed=seed, allow=settings.allow, trust_code=settings.trust_code,
            trained=name not in trained,
        )  # fmt: skip

    trained = {member for arm in plan.arms for member in arm.trains}
    dataset = preflight.load_data(plan, base, allow=settings.allow)
    preflight.tells_the_best(plan, dataset)
    given = [name for name, member in plan.members.items() if isinstance(member, ModelRef)]
    modules = {name: load(name, plan.seed) for name in given}
    strangers = {
        name for name, module in modules.items() if not fitting.fits_data(module, dataset, plan=plan, member=name)
    }
    for name, member in plan.members.items():
        if isinstance(member, Shrunken | Masked) and member.of in strangers:
            strangers.add(name)
    modules |= derived(plan, modules)
    if not begun.goes_on:
        crew.first(lambda: preflight.exports(plan, modules[plan.export.member]))
        collect(modules[plan.export.member])

    @functools.cache
    def start(name: str, seed: int) -> State:
        """The weights that a member starts from; a file holds the same ones whatever the seed."""
        return copy.deepcopy(whole_state(load(name, seed) if seed != plan.seed else modules[name]))

    def first(name: str, seed: int) -> State:
        ref = plan.members[name]
        return start(name, seed if isinstance(ref, ModelRef) and ref.path is None else plan.seed)

    initial: dict[Trial, Mapping[str, State]] = {
        trial: {
            name: first(name, trial.seed)
            for name in plan.arm(trial.name).trains
            if not isinstance(plan.members[name], Hardened)
        }
        for trial in trials_of(plan)
    }
    own, last = preflight.own_data(plan, base, dataset, allow=settings.allow), begun.how["channels_last"]
    programs, before, layout = _programs(plan, modules, dataset, settings, device, crew=crew, last=last)
    return _Parts(modules, dataset, initial, programs, frozenset(strangers), own, before, layout)


def _programs(
    plan: Plan,
    modules: Mapping[str, nn.Module],
    dataset: Dataset,
    settings: Settings,
    device: str,
    *,
    crew: Crew,
    last: bool | None,
) -> tuple[dict[Trial, Program], Losses, Layout]:
    """Build a program of each arm, and of their stages, to find what does not fit; keep what serves.

    Their losses before anything is trained come with them, and how they lie in memory.
    """
    before: Losses = {}
    one_each = [one for one in trials_of(plan) if one.seed == plan.seeds[0] or plan.arm(one.name).once]
    traced: dict[tuple[str, bool], Traced] = {}
    programs = {trial: build_program(plan, trial, modules, traced) for trial in one_each}
    for program in programs.values():
        measure_taps(program, itertools.islice(batches(dataset.train, 2), 1))  # for a try; a training measures many
    layout = Layout(bool(last), "as it was asked for")
    if settings.channels_last == "auto":
        named = {trial.name: program for trial, program in programs.items()}
        found = crew.first(lambda: chosen(named, dataset, batch_size=plan.data.batch_size, device=device))
        layout = found if last in (None, found.last) else Layout(bool(last), "as the run was begun")
    for trial, program in programs.items():
        collect(program)
        if layout.last:
            laid_out(program)
        if not settings.force:
            size = -(-plan.data.batch_size // (crew.count if device == "cuda" else 1))  # a CPU's memory is one
            memory.check(program, size, device=device, where=f"arm '{trial.name}', data.batch_size")
        for stage in program.stages:
            where, one = f"arm '{trial.name}', stage '{stage.name}'", specialize(program, stage.name)
            before[trial.name, stage.name] = preflight.dry_step(one, dataset, where=where)
            collect(one)
            if crew.is_several:
                spread.check(one, next(batches(dataset.train, 2 * crew.count + 1)), crew, where=where)
    # a program keeps its frozen members as they were: those that an arm before trains are yet to change
    early = {member for arm in plan.arms for member in arm.trains}
    frozen = {arm.name: set(arm.members) - set(arm.trains) for arm in plan.all_arms}
    cut = {arm.name for arm in plan.all_arms if any(isinstance(plan.members[one], Hardened) for one in arm.trains)}
    return (
        {
            trial: program
            for trial, program in programs.items()
            if not early & frozen[trial.name] and trial.name not in cut
        },
        before,
        layout,
    )

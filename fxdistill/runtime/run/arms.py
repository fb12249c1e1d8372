"""The arms of a run: what is trained, from which start, and when a checkpoint is taken.

A **trial** is one training of an arm of the plan under one seed: its members start from their initial weights and are
trained stage by stage. Members that come from a factory alone start from fresh weights under each seed; those that come
from a file start from that file's, and the seeds vary the order of the images and dropout; what an image looks like in
an epoch is the same in all trials. An arm that is trained once (the auxiliary teacher) comes first, and what it trained
then teaches. The control arm stands beside its arm.
"""

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxdistill.compiler.build import build_arm
from fxdistill.compiler.tap_statistics import measure_taps
from fxdistill.data.batches import batches
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import RunDirError, TrainingError
from fxdistill.ir.graph import Traced
from fxdistill.ir.program import Program
from fxdistill.ir.running import load_whole_state
from fxdistill.modelfiles import bundle
from fxdistill.passes.strip import Strip, Trained
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.training import Arm
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.processes import stopping
from fxdistill.runtime.run import checkpoint, inspection, kept
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.execution import Execution
from fxdistill.runtime.run.hardening import compare, harden_all, hardened_members
from fxdistill.runtime.run.trials import Trial, teaching
from fxdistill.runtime.run.watch import Watch
from fxdistill.runtime.training import norms
from fxdistill.runtime.training.course import Moment, Position
from fxdistill.runtime.training.layouts import laid_out
from fxdistill.runtime.training.loop import Loop

_RIGHT = 0.99


def build_program(
    plan: Plan, trial: Trial, modules: Mapping[str, nn.Module], traced: dict[tuple[str, bool], Traced] | None = None
) -> Program:
    """The program of a trial; what is new in it (adapters, losses) is drawn under the trial's seed.

    Raises:
        PlanError: The plan does not fit the models.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        return build_arm(plan, trial.name, modules, traced=traced)


def train(run: Execution, index: int, trial: Trial) -> None:
    """Carry a trial out from where the checkpoint is, write what it is for, and note it as finished.

    What is written: the member that the plan exports, under the seed that the plan says, and the members of an arm that
    is trained once, which the arms after it read.

    Raises:
        TrainingError: A loss, or a trained weight, is not a number.
    """
    arm = run.plan.arm(trial.name)
    run.checkpoint = at = _start(run, index, trial)
    cut(run, arm)
    given = {name: set(_not_finite(run.modules[name])) for name in arm.trains}  # a mask may be infinite
    program = _restored(run, trial, arm)
    with stopping.deferred() as request:
        watch = Watch(run, program, index, trial, request)
        loop = Loop(
            run.fabric, program, run.dataset, run.plan.data, run.task, seed=trial.seed, augment_seed=run.plan.seed,
            compiled=run.choice(trial), on_progress=watch.progress, on_save=watch.save,
            before={stage: found for (name, stage), found in run.before.items() if name == trial.name},
            course=replace(at.course), on_teacher=watch.succession.is_due, on_made=run.put_aside,
            on_read=run.aside.let_go,
            halves=functools.partial(run.reuse.of, trial), clock=run.clock(trial), crew=run.crew,
            recorder=run.recorder(trial),
        )  # fmt: skip
        run.reuse.reports = dict(at.reuse)
        loop.run(at.position, at.optimizer, at.means, at.average)
    last = Moment(Position(len(program.stages)), course=loop.course)
    ended = replace(watch.at(last), finished=[])  # for an extension to go on from
    if run.crew.is_first:
        checkpoint.save_to(run.rundir.trained_path(trial.name, trial.seed), ended)
    remarks = _settled(run, arm, trial)
    trained = {name: Strip()(Trained(program, run.modules[name], name)).value for name in arm.trains}
    for name, module in trained.items():
        _check_finite(module, trial, but=given[name])
    record: dict[str, Any] = asdict(trial)
    if run.plan.export.seed == "best" and trial.name == run.plan.export.arm:
        reached = run.measured(run.plan.export.member, on="val")
        record |= {kept.VALIDATED: reached[run.task.primary]} if reached else {}
    for member, module in trained.items():
        if run.crew.is_first and kept.is_kept(run.plan, run.task, trial, member, [*at.finished, record]):
            remarks += kept.keep(run.plan, run.rundir, member, module)
    found = run.measured(arm.trains[0])
    remarks += knows_nothing(run, trial, arm.trains[0], found)
    record |= {**found, "seconds": round(watch.seconds, 1), **run.sizes.get(arm.trains[0], {})}
    if any(stage.plateau for stage in arm.stages):
        names = (stage.name for stage in arm.stages)
        record["epochs"] = dict(zip(names, loop.course.taken, strict=True))
    if reused := run.reuse.ended():
        record["reuse"] = reused
    if remarks:
        record["remarks"] = [remark.model_dump() for remark in remarks]
    for remark in remarks:
        run.observer.on_diagnostic(remark)
    run.checkpoint = Checkpoint(
        arm=index + 1, metrics_size=run.metrics.size, finished=[*at.finished, record], how=at.how,
        compiled=dict(run.chosen),
    )  # fmt: skip
    run.save(run.checkpoint)


def _settled(run: Execution, arm: Arm, trial: Trial) -> list[Diagnostic]:
    def settled() -> tuple[list[Diagnostic], dict[str, dict[str, Tensor]]]:
        found = [
            remark.model_copy(update={"where": _place(trial, member)})
            for member in arm.trains
            for remark in norms.settle(
                run.plan, member, run.modules[member], dataset=run.dataset, task=run.task,
                answers=member not in run.strangers,
            )
        ]  # fmt: skip
        named = {member: run.modules[member].named_buffers() for member in arm.trains}
        return found, {member: {name: value.cpu() for name, value in own} for member, own in named.items()}

    remarks, buffers = run.crew.first(settled)
    for member, values in buffers.items() if not run.crew.is_first else ():
        for name, value in values.items():
            run.modules[member].get_buffer(name).copy_(value)
    return remarks


def cut(run: Execution, arm: Arm) -> None:
    """Make the members that an arm trains and that are cut out of others, of these as they are now.

    Raises:
        ParityError: They do not answer alike.
    """
    if any(isinstance(run.plan.members[name], Hardened) for name in arm.trains):
        run.observer.on_phase("hardening")
        cuts = harden_all(run.plan, run.modules)
        for name, of, _ in hardened_members(run.plan):
            compare(run.plan, name, cuts[name].module, run.modules[of], dataset=run.dataset, task=run.task)
            run.modules[name] = cuts[name].module
        run.sizes |= {name: {"parameters": one.parameters, "macs": one.macs} for name, one in cuts.items()}


def _place(trial: Trial, member: str) -> str:
    """Where a trained member stands among those of other arms and seeds."""
    return f"{member}, arm '{trial.name}', seed {trial.seed}"


def knows_nothing(run: Execution, trial: Trial, member: str, found: Mapping[str, float]) -> list[Diagnostic]:
    """A warning where a trained member says the same of every test image, or knows hardly more than chance."""
    if run.task.is_share and found.get(run.task.primary, 0.0) >= _RIGHT:
        return []  # of one class, say, the same answer is the right one
    where, hint = _place(trial, member), "see the losses in metrics.jsonl"
    remarks = []
    if same := run.same_for_all(member):
        why = f"the trained model is of no use: it says {same} of the test split"
        remarks.append(Diagnostic(code="collapsed", severity="warning", where=where, why=why, hint=hint))
    if found and (poor := run.task.near_chance(found, len(run.dataset.classes), run.dataset.test.labels)):
        why = f"what the trained model reaches is {poor}"
        remarks.append(Diagnostic(code="student-near-chance", severity="warning", where=where, why=why, hint=hint))
    return remarks


def take_up(run: Execution, trial: Trial) -> None:
    """Load what a trial that is finished has written, where trials after it read it."""
    arm = run.plan.arm(trial.name)
    for member in arm.trains if arm.once else ():
        read = functools.partial(bundle.state_of, run.rundir.bundle_path(member))
        load_whole_state(run.modules[member], run.crew.first(read))
    if arm.once or not any(isinstance(run.plan.members[member], Masked) for member in arm.trains):
        return
    path = run.rundir.trained_path(trial.name, trial.seed)
    ended = run.crew.first(lambda: checkpoint.load_from(path, how=run.checkpoint.how))
    for member in arm.trains:
        own = {name.partition(".")[2]: value for name, value in (ended.state or {}).items() if _of(name) == member}
        load_whole_state(run.modules[member].to(run.fabric.device), own)
    _settled(run, arm, trial)


def _of(name: str) -> str:
    """The member that a tensor of a program belongs to."""
    return name.partition(".")[0]


def _start(run: Execution, index: int, trial: Trial) -> Checkpoint:
    """Where a trial goes on from: the checkpoint; in an extended run the state that the trial ended in before."""
    at, path = run.checkpoint, run.rundir.trained_path(trial.name, trial.seed)
    extended = any(stage.extends for arm in run.plan.arms for stage in arm.stages)

    def ended() -> Checkpoint:
        if not path.is_file():
            return at
        found = checkpoint.load_from(path, how=at.how)
        found = replace(found, arm=index, metrics_size=at.metrics_size, finished=at.finished)
        inspection.check(found, run.plan, where=str(path))
        return found

    return at if at.state is not None or not extended else run.crew.first(ended)


def _restored(run: Execution, trial: Trial, arm: Arm) -> Program:
    """The trial's program on the device, with the weights of the checkpoint, or those of the start."""
    initial = run.initial(trial)
    for module in run.modules.values():
        module.cpu()  # a program is put together on one device, whatever an arm before has trained on another one
    for member in arm.trains:
        if member in initial:
            load_whole_state(run.modules[member], initial[member])
    program = run.programs.pop(trial, None) or build_program(run.plan, trial, run.modules)
    program.to(run.fabric.device)
    if run.layout.last:
        laid_out(program)
    still = teaching(run.plan)
    run.put_aside(parameter for name, parameter in program.named_parameters() if _of(name) in still)
    for member in arm.trains:
        run.modules[member].to(run.fabric.device)
        share_buffers(run.modules[member], program, member)
    at = run.checkpoint
    if at.state is not None:
        own = program.trainable_state()
        for state in filter(None, (at.state, at.average)):
            # a mean is kept of what its stage trains
            wrong = state.keys() - own.keys() if state is at.average else state.keys() ^ own.keys()
            wrong = wrong or {name for name in state if own[name].shape != state[name].shape}
            if wrong:
                raise RunDirError(
                    f"the checkpoint is not one of this plan: its '{min(wrong)}' is not what the members have",
                    where=str(run.rundir.checkpoint_path), hint="put the run's own checkpoint back",
                )  # fmt: skip
        load_whole_state(program, at.state)
    else:
        few = preflight.some(run.dataset.train)
        measure_taps(program, batches(few, run.plan.data.batch_size, device=run.fabric.device))
    precision = run.fabric.strategy.precision
    fresh = torch.amp.GradScaler(run.fabric.device.type).state_dict() if precision.state_dict() else {}
    precision.load_state_dict(at.scaler or fresh)  # each trial scales its losses as if it were the only one
    return program


def share_buffers(module: nn.Module, program: Program, member: str) -> None:
    """Make the program's buffers the module's own again after a move to a device.

    Moving keeps parameters what they are and replaces buffers; a graph of ``torch.export`` holds its own references.
    """
    inside = program.get_submodule(member)
    own = dict(module.named_buffers(remove_duplicate=False))
    for name, _ in list(inside.named_buffers(remove_duplicate=False)):
        if name in own:
            scope, _, leaf = name.rpartition(".")
            inside.get_submodule(scope)._buffers[leaf] = own[name]  # noqa: SLF001  # register_buffer would do the same


def _check_finite(trained: nn.Module, trial: Trial, *, but: Collection[str]) -> None:
    """The last step's losses say nothing of what that step made of the weights."""
    if wrong := next((name for name in _not_finite(trained) if name not in but), ""):
        raise TrainingError(
            f"the trained weight '{wrong}' is not finite", where=f"arm '{trial.name}', seed {trial.seed}",
            hint="lower the learning rate in the plan",
        )  # fmt: skip


def _not_finite(module: nn.Module) -> Iterator[str]:
    """The names of what in a module is infinite, or not a number."""
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield name

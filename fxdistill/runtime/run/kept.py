"""What a run keeps of what it trains: which members, under which seed, in which files.

The member that the plan exports, under the first seed or, where the plan says so, under the one that is best on the
validation images; and the members of an arm that is trained once, which the arms after it read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fxdistill.diagnostics import Diagnostic
from fxdistill.files import write_bytes
from fxdistill.modelfiles import bundle
from fxdistill.modelfiles.statedict import state_dict_bytes
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.trials import Trial
from fxdistill.tasks import Task

VALIDATED = "validated"
"""The field of a record with the primary metric on the validation images, by which the best seed is told."""


def exported_seed(plan: Plan, task: Task, records: Sequence[Mapping[str, Any]]) -> int:
    """The seed whose member is exported, of the trainings so far; of equals the earlier one.

    An arm that is trained once has one, the plan's own. Where it is to be the best and none could be measured, it is
    the first.
    """
    if plan.arm(plan.export.arm).once:
        return plan.seed
    own = [record for record in records if record["name"] == plan.export.arm and VALIDATED in record]
    if plan.export.seed == "first" or not own:
        return plan.seeds[0]
    sign = 1 if task.higher_is_better else -1
    return int(max(own, key=lambda record: sign * record[VALIDATED])["seed"])


def is_kept(plan: Plan, task: Task, trial: Trial, member: str, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what a trial made of a member is written; the records are those of all trials up to this one."""
    if plan.arm(trial.name).once:
        return True
    exported = (plan.export.arm, plan.export.member) == (trial.name, member)
    return exported and trial.seed == exported_seed(plan, task, records)


def keep(plan: Plan, rundir: RunDir, member: str, trained: nn.Module) -> list[Diagnostic]:
    """Write a trained member, as a bundle and as a plain state dict."""
    ref = plan.members[member]
    whole = isinstance(ref, ModelRef) and not ref.head  # a factory builds the head as well
    factory, kwargs = (ref.factory, ref.kwargs) if isinstance(ref, ModelRef) and whole else (None, {})
    why = bundle.save_trained(
        trained, rundir.bundle_path(member), factory=factory, kwargs=dict(kwargs), input_shape=plan.shape_of(member),
        preprocessing=plan.preprocessing_of(member), metadata={"task": plan.task, "classes": list(plan.data.classes)},
    )  # fmt: skip
    write_bytes(rundir.state_dict_path(member), state_dict_bytes(trained))
    if not why:
        return []
    hint = f"load {rundir.state_dict_path(member).name} into your own class"
    return [Diagnostic(code="weights-alone", severity="warning", where=member, why=why, hint=hint)]

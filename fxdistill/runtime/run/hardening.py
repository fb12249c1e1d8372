"""Levels in a run: what they keep, who teaches next, and how one becomes a member that is really smaller.

The masked member and what is cut out of it answer alike: that is proved node by node on noise (``shrink``), and here on
test images, before what was cut out is trained on. Nothing is chosen by them.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import fx, nn

from fxdistill.compiler.levels import Cut, harden, kept_counts
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset
from fxdistill.errors import InvariantError, ParityError
from fxdistill.ir.outputs import prediction
from fxdistill.ir.running import full_precision, in_mode
from fxdistill.ir.views import seen
from fxdistill.measure.model import device_of
from fxdistill.measure.parity import scale
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.training import Arm, Stage
from fxdistill.runtime.run.bench import Bench
from fxdistill.tasks import Task

TOLERANCE = 1e-4
"""Largest difference of two entries of a prediction, relative to its :func:`fxdistill.measure.parity.scale`."""
_IMAGES = 1024


def hardened_members(plan: Plan) -> Iterator[tuple[str, str, Masked]]:
    """The members of a plan that are cut out of others: their names, those of the others, and these."""
    for name, member in plan.members.items():
        source = plan.members[member.of] if isinstance(member, Hardened) else None
        if isinstance(member, Hardened) and isinstance(source, Masked):
            yield name, member.of, source


def kept_in(plan: Plan, arm: Arm, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, int]]:
    """How many channels the masked members that an arm trains keep of each layer now."""
    members = {name: plan.members[name] for name in arm.trains}
    return {
        name: kept_counts(modules[name], member)
        for name, member in members.items() if isinstance(member, Masked) and member.is_masked
    }  # fmt: skip


class Succession:
    """Whether what is trained is better than its teacher, so that the teacher's successor takes its place.

    It is told by the validation images alone: without these it never is.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.reached: dict[str, float] = {}
        self._teachers: dict[str, float] = {}

    def is_due(self, stage: Stage, taught: int) -> bool:
        """Whether it is, after an epoch in which the metrics that were ``reached`` were measured."""
        teacher = next(str(term.teacher) for term in stage.under(taught).losses if term.is_succeeded)
        metric = self.bench.task.primary
        if self.bench.plan.data.val is None or metric not in self.reached:
            return False
        if teacher not in self._teachers:
            self._teachers[teacher] = self.bench.measured(teacher, on="val").get(metric, math.nan)
        one, other = self.reached[metric], self._teachers[teacher]
        return one > other if self.bench.task.higher_is_better else one < other


def harden_all(plan: Plan, modules: Mapping[str, nn.Module]) -> dict[str, Cut]:
    """What is cut out of the masked members as they are now, by name; nothing is looked at yet."""
    found = {}
    for name, of, member in hardened_members(plan):
        found[name] = harden(as_graph(modules[of], of), member, input_shape=plan.shape_of(of))
    return found


def as_graph(module: nn.Module, name: str) -> fx.GraphModule:
    """A masked member as the graph that it is.

    Raises:
        InvariantError: It is none.
    """
    if not isinstance(module, fx.GraphModule):
        raise InvariantError("a masked member is no graph", where=name)
    return module


def compare(plan: Plan, name: str, small: nn.Module, masked: nn.Module, *, dataset: Dataset, task: Task) -> float:
    """Compare what was cut out with the masked member that it was cut out of, on up to 1,024 test images.

    Returns:
        The largest difference of two entries of a prediction, relative to its scale.

    Raises:
        ParityError: It is too large, or predictions disagree by more than a tie to within it.
    """
    device, view = device_of(masked), plan.view_of(name)
    entry, worst, widest, total, apart = plan.entry_of(name), 0.0, 0.0, 0, 0
    test = dataset.test.at(torch.arange(min(_IMAGES, len(dataset.test))))
    small.to(device)
    with in_mode(small, training=False), in_mode(masked, training=False), torch.no_grad(), full_precision(device):
        for batch in batches(test, plan.data.batch_size, device=device):
            images = seen(batch["images"], view)
            one, other = (prediction(model(images.clone()), entry).float() for model in (masked, small))
            size, found = scale(float(one.abs().max())), task.agreement(one, other)
            # np.maximum, unlike max, keeps a NaN
            worst = float(np.maximum(worst, float((one - other).abs().max()) / size))
            widest = float(np.maximum(widest, found.widest / size))  # of many pixels, some tie to rounding
            total, apart = total + int(found.total), apart + int(found.total - found.agreeing)
    if not (worst <= TOLERANCE and widest <= TOLERANCE):
        raise ParityError(
            f"what was cut out does not answer as the masked {plan.members[name].kind} member: predictions differ by "
            f"{worst:.1e} of the largest entry, {apart} of {total} disagree",
            where=name, hint="this is a fault of fxdistill; report it with the plan",
        )  # fmt: skip
    return worst

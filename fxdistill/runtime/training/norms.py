"""BatchNorm at the end of training: whether its running statistics are those of the weights that came out.

In training a BatchNorm normalises by the statistics of the batch, in evaluation by running means of them. With a small
momentum, few steps or weights that still move, the means lag behind, and a well-trained model answers at random. Both
figures are therefore measured on training images, unaugmented, in an order drawn under the plan's seed; where they
disagree clearly the statistics are estimated anew, as the plan says, by torch's own
:func:`torch.optim.swa_utils.update_bn`: over as many training images as the plan says, everything else in eval mode.
The test split has no part in it.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset
from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.outputs import prediction
from fxdistill.ir.running import buffers_kept, in_mode
from fxdistill.ir.views import seen
from fxdistill.measure.model import device_of
from fxdistill.plan.document import Plan
from fxdistill.plan.training import Recalibration
from fxdistill.tasks import Task, labelled

_POINTS, _FACTOR = 0.05, 1.2
"""A clear disagreement: of shares by so much, of errors by this factor."""


class _Norms(nn.Module):
    """A model in eval mode, whose BatchNorms alone follow ``train()``; frozen ones stay as they are."""

    def __init__(self, model: nn.Module, entry: str) -> None:
        super().__init__()
        self.model, self.entry = model, entry
        self.norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and _follows(part)]

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:  # noqa: ARG002, FBT001, FBT002
        """What is estimated anew."""
        return iter(self.norms)

    def train(self, mode: bool = True) -> "_Norms":  # noqa: FBT001, FBT002  # torch's signature
        """Set the mode of the norms."""
        self.training = mode
        for norm in self.norms:
            norm.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        return prediction(self.model(images), self.entry)


def _follows(norm: _BatchNorm) -> bool:
    return norm.running_mean is not None and (norm.weight is None or norm.weight.requires_grad)


def settle(
    plan: Plan, member: str, module: nn.Module, *, dataset: Dataset, task: Task, answers: bool = True
) -> Iterator[Diagnostic]:
    """Look at the BatchNorms of a trained member, and estimate their statistics anew where the plan says so.

    Args:
        plan: What is done, and with how many images.
        member: The member's name.
        module: The member; its buffers change where its statistics are estimated anew, and nothing else of it.
        dataset: Its training images are read.
        task: By whose primary metric the two modes are compared; without labels by how far predictions agree.
        answers: Whether its prediction is one for the data, and can be held against labels.
    """
    wanted = plan.recalibration
    limit = Recalibration().images if wanted is None else wanted.images
    with in_mode(module, training=False), torch.no_grad():
        look = _Look(plan, member, module, dataset=dataset, task=task, limit=limit)
        look.has_labels &= answers
        if not look.model.norms:
            return
        running, batch = look.figures()
        apart, always = look.is_better(batch, running), wanted is not None and wanted.when == "always"
        if not apart and not always:
            return
        anew = look.estimated(keep=lambda found: always or look.is_at_least(found, running)) if wanted else None
        yield look.remark(running, batch, anew)


class _Look:
    """A member and the training images that it is looked at with."""

    def __init__(self, plan: Plan, member: str, module: nn.Module, *, dataset: Dataset, task: Task, limit: int) -> None:
        self.plan, self.member, self.task, self.dataset = plan, member, task, dataset
        self.model, self.device = _Norms(module, plan.entry_of(member)), device_of(module)
        order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(plan.seed))
        self.images = min(limit, len(order))
        self.sample = dataset.train.at(order[: self.images].sort().values)
        self.has_labels = bool(labelled(self.sample.labels).any())

    def read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as the member takes them and labels, batch after batch."""
        found = batches(self.sample, self.plan.data.batch_size, seed=self.plan.seed, shuffle=True, device=self.device)
        view = self.plan.view_of(self.member)
        return ((seen(batch["images"], view), batch["labels"]) for batch in found)

    def figures(self) -> tuple[float, float]:
        """What the member reaches by its running statistics, and by those of each batch."""
        if not self.has_labels:
            return self._agreement(), 1.0
        return self._reached(training=False), self._reached(training=True)

    def estimated(self, *, keep: Callable[[float], bool]) -> float | None:
        """Estimate the statistics anew; what the member then reaches, None where they were put back."""
        before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in self.model.norms]
        update_bn((images for images, _ in self.read()), self.model)
        found, _ = self.figures()
        if keep(found):
            return found
        for norm, buffers in zip(self.model.norms, before, strict=True):
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
        return None

    def _reached(self, *, training: bool) -> float:
        def predict(_split: str) -> Iterator[tuple[Tensor, Tensor]]:
            return ((self._answer(images, training=training), labels) for images, labels in self.read())

        return self.task.evaluate(predict, len(self.dataset.classes), self.device)[self.task.primary]

    def _agreement(self) -> float:
        """How far predictions by either statistics agree."""
        pairs = ((self._answer(x, training=False), self._answer(x, training=True)) for x, _ in self.read())
        found = [self.task.agreement(*pair) for pair in pairs]
        total = sum(one.total for one in found)
        return sum(one.agreeing for one in found) / total if total else 1.0  # of numbers nothing is known

    def _answer(self, images: Tensor, *, training: bool) -> Tensor:
        with buffers_kept(self.model.model):
            self.model.train(training)
            answer: Tensor = self.model(images.clone())
            self.model.eval()
        return answer

    def is_better(self, one: float, other: float) -> bool:
        """Whether a figure is clearly better than another one."""
        if not self.has_labels or (self.task.is_share and self.task.higher_is_better):
            return one >= other + _POINTS
        return one > other + abs(other) * (_FACTOR - 1) if self.task.higher_is_better else one * _FACTOR < other

    def is_at_least(self, one: float, other: float) -> bool:
        """Whether a figure is as good as another one."""
        return one >= other if self.task.higher_is_better or not self.has_labels else one <= other

    def remark(self, running: float, batch: float, anew: float | None = None) -> Diagnostic:
        """The figures in words."""
        shown = [f"{value:.2%}" if not self.has_labels else self.task.shown(value) for value in (running, batch)]
        name = self.task.primary if self.has_labels else self.task.agreement_name
        how = f"by running BatchNorm statistics, {shown[1]} by" if self.has_labels else (
            "between running BatchNorm statistics and"
        )  # fmt: skip
        found = f"on {self.images} training images {name} {shown[0]} {how} those of each batch"
        if anew is None:
            return Diagnostic(
                code="batch-norm-statistics", severity="warning", where=self.member,
                why=f"{found}: the running ones lag behind the weights",
                hint="plan with --recalibrate-bn auto, or give the layers a larger momentum",
            )  # fmt: skip
        shown_anew = f"{anew:.2%}" if not self.has_labels else self.task.shown(anew)
        return Diagnostic(
            code="batch-norm-statistics", severity="note", where=self.member,
            why=f"{found}; estimated anew over these images, the running ones reach {shown_anew}",
        )  # fmt: skip

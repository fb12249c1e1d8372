"""Whether a model and data go together: its input, which entry of its output is the prediction, and the classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fxdistill.compiler.remarks import takes_logits
from fxdistill.data import classmap
from fxdistill.data.dataset import Dataset
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import DataError, InputError, ModelError
from fxdistill.ir import outputs
from fxdistill.losses import LOSSES
from fxdistill.measure.model import device_of, evaluating, other_precisions
from fxdistill.plan.document import Plan
from fxdistill.tasks import TASKS, Task


def fits_data(module: nn.Module, dataset: Dataset, *, plan: Plan, member: str) -> bool:
    """Whether a member's prediction is one for the data; that of a member of which only layers are learnt need not be.

    Raises:
        ModelError: It does not take the plan's input, or its prediction has to be one for the data and is not.
    """
    found = fits(
        module, dataset, TASKS.get(plan.task), input_shape=plan.shape_of(member), spec=str(plan.data.spec),
        entry=plan.entry_of(member), must=member in answering(plan), member=member,
    )  # fmt: skip
    return not found.wrong


def answering(plan: Plan) -> set[str]:
    """The members whose predictions have to be for the data.

    These are the one that is exported, those whose predictions a loss holds against labels, and those whose predictions
    are compared with one of theirs.
    """
    terms = [(term, LOSSES.get(term.loss)) for arm in plan.all_arms for stage in arm.stages for term in stage.losses]
    read = [({str(getattr(term, role)) for role in loss.predicting}, "labels" in loss.reads) for term, loss in terms]
    found = {plan.export.member}.union(*(members for members, labelled in read if labelled))
    while more := {name for members, _ in read if members & found for name in members - found}:
        found |= more
    return found


@dataclass(frozen=True)
class Fit:
    """How a model fits data.

    Attributes:
        entry: The entry of its output that is the prediction; '' for an output that is none other.
        rivals: Entries that would do as well, where nobody decided between them.
        wrong: Why the prediction is none for the data; '' where it is one.
    """

    entry: str
    rivals: tuple[str, ...] = ()
    wrong: str = ""


def fits(
    module: nn.Module, dataset: Dataset, task: Task, *, input_shape: Sequence[int], spec: str, entry: str | None = None,
    must: bool = True, member: str = "",
) -> Fit:  # fmt: skip
    """Check that a model takes an input, and that its prediction is one for the data; which entry that is.

    Args:
        module: The model.
        dataset: The data.
        task: What its predictions have to be.
        input_shape: Shape of one batch.
        spec: The data's name, for messages.
        entry: Which entry of a structured output is the prediction; None to find the one that fits.
        must: Whether the prediction has to be one for the data.
        member: Which one it is, where there are several, for messages.

    Raises:
        ModelError: It does not take the input, or no prediction of it fits and one has to.
    """
    where = f"{member}, data {spec}" if member else f"data {spec}"
    try:
        with evaluating(module):
            output = module(torch.zeros(tuple(input_shape), device=device_of(module)))
    except InputError:
        raise
    except Exception as cause:
        shape, hint = "x".join(map(str, input_shape)), "use data of the size and channels that the model was made for"
        if others := other_precisions(module):
            hint = f"images are float32 and weights of it {others}: write it anew, fxdistill.save(model.float(), …)"
        raise ModelError(f"the model cannot take a batch of {shape}: {cause}", where=where, hint=hint) from cause

    outputs.refuse_lists(output, where=f"{type(module).__name__}, {where}")

    def wrong(value: Tensor) -> str:
        shape = tuple(dataset.train.labels.shape[1:]) if dataset.has_labels("train") else None
        return task.wrong_output(value, dataset.image_shape, len(dataset.classes), shape)

    def right(value: Tensor) -> bool:
        return not wrong(value)

    chosen = outputs.choose(output, right) if entry is None else entry
    if entry is None and takes_logits(task):
        chosen = outputs.before_softmax(output, chosen)
    reason = wrong(outputs.prediction(output, chosen))
    if reason and must:
        raise ModelError(
            reason, where=where, hint="build teacher and student for the data, with its number of classes "
            "and maps of its size; where it has some of the model's classes, say which: --class-map; an embedding is "
            "measured by --task retrieval",
        )  # fmt: skip
    rivals = outputs.rivals(output, chosen, right) if entry is None else ()
    return Fit(chosen, tuple(one for one in rivals if outputs.before_softmax(output, one) == one), reason)


def mapped(
    dataset: Dataset, class_map: Path | None, module: nn.Module, task: Task, *, input_shape: Sequence[int], spec: str,
    entry: str | None = None, own: object = None,
) -> Dataset:  # fmt: skip
    """The data with a model's numbers for its classes, as a class map says, or the model's file of the same names.

    Args:
        dataset: The data.
        class_map: The user's file; None for none.
        module: The model.
        task: What the data is for.
        input_shape: Shape of one batch of images.
        spec: The data's name, for messages.
        entry: Which entry of a structured output is the prediction.
        own: The names of classes in the order of the outputs, as the model's file has them; no list where it has none.

    Raises:
        DataError: The map cannot be read, has more classes than the model, or lacks one of the data.
    """
    if class_map is None:
        return _in_order(dataset, own, task, spec)
    names = classmap.read(class_map)
    try:
        with evaluating(module):
            output = outputs.prediction(module(torch.zeros(tuple(input_shape), device=device_of(module))), entry or "")
    except Exception:  # noqa: BLE001  # whether the model takes the data is said by what checks that
        return classmap.mapped(dataset, names, task=task, where=spec)
    count = output.shape[1] if output.ndim > 1 else 0
    if len(names) > count:
        raise DataError(
            f"the class map has {len(names)} classes, the model answers with {count}", where=str(class_map),
            hint="give the map of this model",
        )  # fmt: skip
    return classmap.mapped(dataset, classmap.filled(names, count), task=task, where=spec)


def _in_order(dataset: Dataset, own: object, task: Task, spec: str) -> Dataset:
    """The data with the numbers of the model's own classes, where these are the data's in another order."""
    names = dataset.classes
    if not isinstance(own, list) or task.embeds or own == list(names) or not all(isinstance(one, str) for one in own):
        return dataset
    if sorted(own) != sorted(names):
        return dataset
    at = next(number for number, name in enumerate(names) if own[number] != name)
    remark = Diagnostic(
        code="class-order", severity="note", where=spec,
        why=f"the model's file has the data's classes in another order, and labels get its numbers: '{names[at]}' is "
        f"{own.index(names[at])}, not {at}", hint="if the labels have them already, say so by --class-map",
    )  # fmt: skip
    found = classmap.mapped(dataset, own, task=task, where=spec)
    return replace(found, remarks=(*found.remarks, remark))


def undecided(where: str, found: Fit, option: str) -> tuple[Diagnostic, ...]:
    """A warning where nothing but the order of several outputs tells which of them is the prediction."""
    if not found.rivals:
        return ()
    return (
        Diagnostic(
            code="which-output", severity="warning", where=where,
            why=f"its output {found.entry} is taken for the prediction; {', '.join(found.rivals)} would do as well",
            hint=f"if it is another one, name it: {option} {found.rivals[0]}",
        ),
    )  # fmt: skip

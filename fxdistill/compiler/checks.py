"""What is refused of two models when they are traced, whatever the data is."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fxdistill.compiler.options import Options
from fxdistill.errors import InputError, ModelError, PairingError
from fxdistill.ir import outputs
from fxdistill.ir.graph import Traced, shape_of
from fxdistill.losses import LOSSES
from fxdistill.methods import Composed
from fxdistill.plan.training import LossTerm
from fxdistill.tasks import TASKS, Task


def is_for_task(student: Traced, task: Task, *, name: str, classes: int, member: str = "student") -> None:
    """Refuse a student whose prediction does not fit the task; a teacher's need not.

    Args:
        student: The student in eval mode.
        task: The task.
        name: Its name.
        classes: Number of classes of the data; 0 where it is not known.
        member: What it is called.

    Raises:
        ModelError: It is none.
    """
    prediction = torch.empty(shape_of(student.output) or (), device="meta")
    if wrong := task.wrong_output(prediction, student.input_shape[1:], classes):
        raise ModelError(
            f"{wrong}: that is no {name}", where=member,
            hint=f"name the task with --task, or the output that is the prediction with --{member}-output; tasks are: "
            f"{', '.join(TASKS.names())}",
        )  # fmt: skip


def are_of_one_precision(models: Mapping[str, nn.Module]) -> None:
    """Refuse weights in half precision, and those of another one than another model's: both read the same images.

    Raises:
        InputError: They are.
    """
    found = {name: {p.dtype for p in model.parameters() if p.is_floating_point()} for name, model in models.items()}
    own = {name: dtypes for name, dtypes in found.items() if dtypes and torch.float32 not in dtypes}
    for name, dtypes in own.items():
        if own.keys() != found.keys() or torch.float64 not in dtypes:
            raise InputError(
                f"the weights of the {name} are {str(min(dtypes, key=str)).removeprefix('torch.')}", where=name,
                hint="give model.float(); a plan's precision says how it trains",
            )  # fmt: skip


def is_batch(images: Tensor, labels: Tensor) -> None:
    """Refuse images and labels that do not go together.

    Raises:
        InputError: They do not.
    """
    if images.ndim != 4 or not labels.ndim or len(images) != len(labels):
        shapes = " and ".join(str(tuple(one.shape)) for one in (images, labels))
        raise InputError(
            f"images and labels of shape {shapes} are no batch", where="batch",
            hint="give images (N, C, H, W) as the teacher takes them, and a label for each",
        )  # fmt: skip


def is_for_method(options: Options, method: Composed) -> None:
    """Refuse what is said of a cascade for another method, and of a student that is given for a cascade.

    Args:
        options: The user's decisions.
        method: The method, read.

    Raises:
        InputError: It would do nothing.
    """
    if not method.alone:
        idle = ["cascade"] if options.cascade is not None else []
    else:
        said = {
            "align": options.align != "slice", "pins": options.pins, "forbid": options.forbid, "via": options.via,
            "curriculum.probe": options.curriculum.probe, "via_epochs": options.via_epochs is not None,
        }  # fmt: skip
        idle = [name for name, value in said.items() if value]
    if idle:
        raise InputError(f"the method '{method.name}' has no use for '{idle[0]}'", where=idle[0], hint="leave it out")


def has_entries(name: str, traced: Sequence[Traced]) -> None:
    """Refuse a named entry of an output that is a single tensor in every mode.

    Raises:
        ModelError: There is no such entry.
    """
    entry = traced[0].entry
    if entry and all([place for place, _ in outputs.entries(one.output_value)] == [""] for one in traced):
        raise ModelError(
            f"the {name} returns one tensor, and no entry '{entry}'", where=f"entry {entry}",
            hint=f"leave out --{name}-output",
        )  # fmt: skip


def answer_alike(teacher: Traced, auxiliary: Traced, losses: Sequence[LossTerm]) -> None:
    """Refuse an auxiliary that is to learn predictions of another shape than its own.

    Raises:
        PairingError: It is.
    """
    one, other = ((shape_of(traced.output) or ())[1:] for traced in (teacher, auxiliary))
    compared = any(term.teacher is not None and LOSSES.get(term.loss).same_shapes for term in losses)
    if compared and one != other:
        raise PairingError(
            f"the teacher answers with shape {one} an image, the auxiliary with {other}", where="--via",
            hint="give one with the teacher's classes, or a trained one that teaches as it is: --via-epochs 0",
        )  # fmt: skip

"""Tasks, one file each: what data must hold, what an output must look like, and what is measured.

A task knows its supervised term (or that it has none), its metrics and which of them is the primary one, what chance
is, whether targets move with the images under augmentation, and what it means that two models agree.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fxdistill.errors import DataError, InputError
from fxdistill.figures import figure
from fxdistill.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torchmetrics import Metric

    from fxdistill.tasks._tallies import Tally

_SAME = 1e-4
"""What differs by less, as a share of the largest value, counts as the same."""
_NOTHING = 0.1
"""Who is no further than this from chance, as a share of the way from there to knowing all, knows nothing."""
_SLIGHT = 0.2
"""The same for who knows hardly more: what Landis and Koch (Biometrics 33, 1977) call slight, of Cohen's kappa."""
NO_LABEL = -100
"""What says in class numbers that an image, or a place, has no label: torch's ``ignore_index``."""


@dataclass(frozen=True)
class Agreement:
    """How far two predictions of the same images say the same.

    Attributes:
        agreeing: How many of them.
        total: Of how many; 0 where there is no choice to agree on.
        widest: Over those that differ, the reference's largest gap between its own choice and the other's, in units of
            the output; 0 where all agree.
    """

    agreeing: int
    total: int
    widest: float = 0.0

    @property
    def share(self) -> float | None:
        """Which share of them; None where there is no choice to agree on."""
        return self.agreeing / self.total if self.total else None


class Task(ABC):
    """A task. Instances have no state.

    Attributes:
        summary: One line for help.
        supervised: The loss that the labels alone give, by name; None for a task that has none.
        imitation: The loss by which a prediction imitates another one, by name; None where there is no use in that.
        default_main: The method of the main stage where a method's name names none; None for that method's own choice.
        agreement_name: What it is called that two models agree; '' where answers are numbers, which do not.
        output_name: What the prediction is called in an ONNX file.
        primary: The metric that runs are compared by, one of those that :meth:`evaluate` returns.
        higher_is_better: Whether more of it is better.
        is_share: Whether it is a share of 1, to be shown as a percentage.
        has_predictions: Whether an output is a prediction of something; else it is a feature like others.
        embeds: Whether an output is an embedding, of which it counts how it lies to others.
        has_classes: Whether labels are numbers of classes that have names.
        of_class: What a class reaches by itself; '' for a task in which nothing is measured class by class.
        class_counts: What is counted of a class: images, or pixels.
        no_label: What stands for no label in a target: -100, or not a number in targets that are not whole.
        relates: Whether what is said of an image is how it lies to the others: two models agree on all of them at once.
        ranks_train: Whether the metrics compare the test split with the training split.
        collapsed: What is said of a model whose answer is the same for every image.
        moves_targets: Whether targets are maps (B, H, W) that move with the images under augmentation. What comes in at
            a border has no label.
    """

    summary: ClassVar[str]
    supervised: ClassVar[str | None]
    imitation: ClassVar[str | None] = "kd"
    default_main: ClassVar[str | None] = None
    agreement_name: ClassVar[str] = "agreement"
    output_name: ClassVar[str] = "logits"
    primary: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    is_share: ClassVar[bool] = True
    has_predictions: ClassVar[bool] = True
    embeds: ClassVar[bool] = False
    has_classes: ClassVar[bool] = True
    of_class: ClassVar[str] = ""
    class_counts: ClassVar[str] = "images"
    no_label: ClassVar[float] = NO_LABEL
    relates: ClassVar[bool] = False
    ranks_train: ClassVar[bool] = False
    collapsed: ClassVar[str] = "the same answer for every image"
    moves_targets: ClassVar[bool] = False

    def typed(self, targets: "Tensor") -> "Tensor":
        """Targets in the type that batches have them in, -1 (no label in many data sets) as -100.

        Whole numbers become int64 where the task has classes; all others float32.
        """
        if not self.has_classes or targets.is_floating_point():
            return targets.float()
        whole = targets.long()
        return whole.masked_fill(whole == -1, NO_LABEL)

    def count_classes(self, targets: "Tensor") -> int:
        """How many classes a split's targets tell of; 0 where none has a label."""
        return max(0, int(targets.max()) + 1)

    @abstractmethod
    def wrong_targets(self, targets: "Tensor", image_shape: Sequence[int], classes: int) -> str:
        """What is wrong with a split's targets, '' where nothing is.

        Args:
            targets: (N, ...), those of a whole split, at least one that has a label; int64, or float32 where they are
                not whole or the task has no classes.
            image_shape: Channels, height and width of an image.
            classes: Number of class names; 0 where the data has none.
        """

    @abstractmethod
    def wrong_output(
        self, output: "Tensor", image_shape: Sequence[int], classes: int, target_shape: Sequence[int] | None = None
    ) -> str:
        """What is wrong with a model's prediction for a batch, '' where nothing is.

        Args:
            output: The prediction.
            image_shape: As above.
            classes: As above.
            target_shape: Shape of one image's target; None where there is no data yet.
        """

    @abstractmethod
    def metrics(self, classes: int) -> "Mapping[str, Metric]":
        """Fresh metrics by name, each updated with (prediction, targets)."""

    def evaluate(
        self, predict: "Callable[[str], Iterable[tuple[Tensor, Tensor]]]", classes: int, device: "torch.device | str"
    ) -> dict[str, float]:
        """All metrics of a model, over what has a label.

        Args:
            predict: For ``train`` or ``test`` the predictions and targets of that split, batch after batch, unaugmented
                and in order.
            classes: Number of classes.
            device: Where they are.

        Raises:
            DataError: There are none, or none that has a label.
        """
        metrics = {name: metric.to(device) for name, metric in self.metrics(classes).items()}
        for metric in metrics.values():
            metric.distributed_available_fn = _nowhere  # it is told of all images wherever there are processes
        images = labels = 0
        for output, targets in predict("test"):
            images += len(targets)
            labels += int(labelled(targets).sum())
            for metric in metrics.values():
                metric.update(output, targets)
        if not labels:
            raise no_labels("test") if images else no_images("test")
        return {name: float(metric.compute()) for name, metric in metrics.items()}

    def precise_at(self, ranks: Sequence[int]) -> "Task":
        """The same task with the precision at these ranks among its metrics.

        Raises:
            InputError: It ranks nothing.
        """
        raise InputError(
            "the task ranks no images, so that there is no precision at a rank", where=f"--at {ranks[0]}",
            hint="it is for --task retrieval",
        )  # fmt: skip

    def with_top(self, tops: Sequence[int], classes: int) -> "Task":
        """The same task with the share of images whose class is among the first so many answers among its metrics.

        Raises:
            InputError: It chooses no class, or there are no more classes than that.
        """
        raise InputError(
            "the task chooses no class of an image, so that there are no first ones", where=f"--top {tops[0]}",
            hint="it is for --task classification",
        )  # fmt: skip

    @property
    def tells_images(self) -> bool:
        """Whether it says what a model reaches image by image: both :meth:`kept` and :meth:`tally` are its own."""
        return type(self).kept is not Task.kept and type(self).tally is not Task.tally

    def kept(self, output: "Tensor", targets: "Tensor", classes: int) -> "tuple[Tensor, ...]":
        """What :meth:`tally` needs of a batch, each (B, ...); its images have a label.

        Raises:
            InputError: The task does not say what a model reaches image by image.
        """
        raise not_by_image(self)

    def tally(self, kept: "Sequence[Tensor]", train: "Callable[[], Iterable[tuple[Tensor, Tensor]]]") -> "Tally":
        """What a model reaches image by image, (N, ...): its metric under all weights 1 is the primary one.

        Args:
            kept: What was kept of all batches.
            train: For tasks that compare with the training split, its predictions and targets.

        Raises:
            InputError: The task does not say what a model reaches image by image.
        """
        raise not_by_image(self)

    def distance(self, ours: "Tensor", theirs: "Tensor") -> "Tensor":
        """How far two predictions lie apart, image by image: (B,), 0 where they are the same."""
        return (ours.float() - theirs.float()).abs().flatten(1).mean(1)

    def chance(self, classes: int, targets: "Tensor") -> float | None:
        """What the primary metric is without any knowledge of the images; None where that is not known.

        Args:
            classes: Number of classes.
            targets: (N, ...), those that are measured on.
        """
        return None

    @abstractmethod
    def agreement(self, ours: "Tensor", theirs: "Tensor") -> Agreement:
        """How far two predictions for one batch say the same; ``ours`` is the reference."""

    def says(self, output: "Tensor") -> "Tensor":
        """What a prediction says, (N, ...): of a model that says the same of everything all rows are the same."""
        return output

    def near_chance(self, found: Mapping[str, float], classes: int, targets: "Tensor") -> str:
        """A remark on a model whose metrics are hardly better than chance; '' where they are better.

        Of many classes nobody who is right twice as often as by chance is near it; of few ones less is enough, since
        it is a large part of what can be known. That a model is right less often than one that always says the most
        frequent class is no reason: it may well tell the rare ones.
        """
        chance, value = self.chance(classes, targets), found[self.primary]
        if chance is None or value >= 2 * chance or value > chance + _SLIGHT * (1 - chance):
            return ""
        return f"{self.primary} {self.shown(value)}, where chance is {self.shown(chance)}"

    def at_chance(self, found: Mapping[str, float], classes: int, targets: "Tensor") -> bool:
        """Whether a model knows nothing, by its metrics: with few classes it takes less than to be near chance."""
        if not self.near_chance(found, classes, targets):
            return False
        chance = self.chance(classes, targets)
        return chance is None or found[self.primary] <= chance + _NOTHING * (1 - chance)

    def shown(self, value: float) -> str:
        """A value of the primary metric for people."""
        return f"{value:.2%}" if self.is_share else figure(value, 4)


class Said:
    """What a model says of many images, batch after batch: whether it is the same of all."""

    def __init__(self, task: Task) -> None:
        self.task, self.images = task, 0
        self._lowest: Tensor | None = None
        self._highest: Tensor | None = None

    def add(self, output: "Tensor") -> None:
        """Take in the predictions for a batch."""
        said = self.task.says(output).detach()
        low, high = said.amin(0), said.amax(0)
        self._lowest = low if self._lowest is None else self._lowest.minimum(low)
        self._highest = high if self._highest is None else self._highest.maximum(high)
        self.images += len(output)

    def collapsed(self) -> str:
        """What is wrong where all answers are the same (to 1e-4 of the largest), '' where they differ."""
        if self._lowest is None or self._highest is None or self.images < 2:
            return ""
        low, high = self._lowest.double(), self._highest.double()
        size = float(high.abs().maximum(low.abs()).max()) if self._lowest.is_floating_point() else 0.0
        return self.task.collapsed if float((high - low).max()) <= _SAME * size else ""


def no_images(split: str) -> DataError:
    """The error for a split that has no images to evaluate on."""
    return DataError("there are no images to evaluate on", where=f"the {split} split", hint="check the data spec")


def no_labels(split: str) -> DataError:
    """The error for a split that has images and no labels to evaluate by."""
    return DataError(
        "the images have no labels, so that nothing can be measured on them", where=f"the {split} split",
        hint="give data with labels",
    )  # fmt: skip


def not_by_image(task: Task) -> InputError:
    """The error for a task that does not say what a model reaches image by image."""
    return InputError(
        "the task does not say what a model reaches image by image", where=f"task '{type(task).__name__}'",
        hint="it must have the methods kept and tally of fxdistill.tasks.Task",
    )  # fmt: skip


def labels_of(targets: "Tensor") -> "Tensor":
    """How many labels each image has, as many as places or classes that are known: (N,)."""
    known = ~targets.isnan() if targets.is_floating_point() else targets != NO_LABEL
    return known.reshape(len(targets), -1).sum(1)


def labelled(targets: "Tensor") -> "Tensor":
    """Which images have a label, at least at one place: (N,), bool."""
    return labels_of(targets) > 0


def _nowhere() -> bool:
    return False


TASKS: Registry[Task] = Registry("task", __name__, "TASK", Task)

"""What is kept of a model image by image: the primary metric follows from it, of all images and of any sample."""

from math import nan
from typing import Any

import pytest
import torch
from torch import Tensor

from fxdistill.errors import InputError
from fxdistill.tasks import NO_LABEL, TASKS, Task
from fxdistill.tasks._tallies import Means, Rankings, Ratios, Tally

NAMES = TASKS.names()
CLASSES = 6


def example(name: str, images: int = 40) -> tuple[Tensor, Tensor]:
    """Predictions with ties and targets of which some are missing, also the last class."""
    chance = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance)

    def numbers(*shape: int) -> Tensor:
        found = torch.randint(CLASSES - 1, shape, generator=chance)
        return torch.where(torch.rand(shape, generator=chance) < 0.2, NO_LABEL, found)

    if name == "segmentation":
        return normal(images, CLASSES, 3, 5)[:, :CLASSES], numbers(images, 3, 5)
    if name == "regression":
        return normal(images, 2), normal(images, 2)
    if name == "multilabel":
        has = (torch.rand(images, CLASSES, generator=chance) < 0.3).float()
        has[:, -1] = 0  # nobody has the last one
        return normal(images, CLASSES).round(), has.masked_fill(
            torch.rand(images, CLASSES, generator=chance) < 0.2, nan
        )
    return normal(images, CLASSES).round(decimals=1), numbers(images)


def tallied(task: Task, outputs: Tensor, targets: Tensor, database: tuple[Tensor, Tensor] | None = None) -> Tally:
    parts = [task.kept(*batch, CLASSES) for batch in zip(outputs.split(16), targets.split(16), strict=True)]
    train = database or (outputs, targets)
    return task.tally([torch.cat(one) for one in zip(*parts, strict=True)], lambda: iter([train]))


def labelled_rows(name: str) -> tuple[Tensor, Tensor]:
    outputs, targets = example(name)
    known = (targets != NO_LABEL) if name != "multilabel" and not targets.is_floating_point() else ~targets.isnan()
    rows = known.reshape(len(targets), -1).any(1)
    return outputs[rows], targets[rows]


@pytest.mark.parametrize("name", NAMES)
def test_the_metric_of_a_sample_is_what_the_task_measures_on_the_sample(name: str) -> None:
    task, (outputs, targets) = TASKS.get(name), labelled_rows(name)
    tally = tallied(task, outputs, targets)
    assert tally.images == len(outputs)
    chance = torch.Generator().manual_seed(1)
    samples = [
        torch.arange(len(outputs)),
        *(torch.randint(len(outputs), (len(outputs),), generator=chance) for _ in "ab"),
    ]
    weights = torch.stack([chosen.bincount(minlength=len(outputs)) for chosen in samples])
    for value, chosen in zip(tally.metric(weights).tolist(), samples, strict=True):

        def predict(split: str, chosen: Tensor = chosen) -> Any:
            return iter([(outputs, targets) if split == "train" else (outputs[chosen], targets[chosen])])

        assert value == pytest.approx(task.evaluate(predict, CLASSES, "cpu")[task.primary], rel=1e-5)


def test_classes_by_hand() -> None:
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1])]
    values, counts = tallied(TASKS.get("classification"), logits, torch.tensor([0, 1, 1, 1])).by_class(3)
    assert values[:2].tolist() == pytest.approx([1, 2 / 3])
    assert values[2].isnan()
    assert counts.tolist() == [1, 3, 0]


def test_classes_of_pixels_by_hand() -> None:
    chosen, labels = torch.tensor([[[0, 0, 1]], [[1, 2, 2]]]), torch.tensor([[[0, 1, 1]], [[1, NO_LABEL, 1]]])
    outputs = torch.nn.functional.one_hot(chosen, 4).permute(0, 3, 1, 2).float()
    values, counts = (
        TASKS.get("segmentation").tally(TASKS.get("segmentation").kept(outputs, labels, 4), list).by_class(4)
    )
    assert values[:3].tolist() == [1 / 2, 2 / 4, 0]  # the pixel without a label is in no union
    assert values[3].isnan()
    assert counts.tolist() == [1, 4, 0, 0]


def test_classes_of_several_an_image_by_hand() -> None:
    outputs = torch.tensor([[3.0, 0], [2, 0], [1, 0], [0, 0]])
    targets = torch.tensor([[1.0, 1], [0, 0], [1, nan], [0, 0]])
    values, counts = tallied(TASKS.get("multilabel"), outputs, targets).by_class(2)
    assert values.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 3])  # the second: one rank for all that are known
    assert counts.tolist() == [2, 1]


def test_classes_that_nothing_tells_of_are_left_out_of_means() -> None:
    none = torch.tensor([[1, 0], [0, 1]])
    ratios = Ratios(torch.tensor([[1, 0], [1, 0]]), torch.tensor([[2, 0], [2, 0]]), torch.ones(2, 2))
    assert ratios.metric(none).tolist() == [0.5, 0.5]
    rankings = Rankings(torch.tensor([[1.0, 1], [0, 0]]), torch.tensor([[1, -1], [0, 1]]))
    assert rankings.metric(none).tolist() == [1, 1]
    assert rankings.by_class(2)[1].tolist() == [1, 1]
    assert Means(torch.tensor([1.0, 0]), torch.tensor([0, 0])).metric(none).tolist() == [1, 0]


@pytest.mark.parametrize("name", NAMES)
def test_distances_are_of_images_and_nothing_where_two_say_the_same(name: str) -> None:
    task, (outputs, _) = TASKS.get(name), example(name)
    assert not task.distance(outputs, outputs.clone()).any()
    other = outputs.clone()
    other[3] = outputs[3].flip(0) + torch.arange(outputs[3].numel()).reshape(outputs[3].shape)
    found = task.distance(outputs, other)
    assert found.shape == (len(outputs),)
    assert int(found.argmax()) == 3
    if name in ("classification", "multilabel", "regression", "segmentation"):
        assert found.nonzero().flatten().tolist() == [3]


def test_embeddings_of_two_widths_are_compared() -> None:
    ours = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    task = TASKS.get("retrieval")
    assert task.distance(ours, torch.cat([ours, torch.zeros(5, 3)], 1)).max() < 1e-6
    assert task.distance(ours, ours[:, :2]).min() > 0


@pytest.mark.parametrize(("top", "what"), [(1, "the accuracy itself"), (6, "says nothing"), (9, "says nothing")])
def test_first_answers_that_say_nothing_are_refused(top: int, what: str) -> None:
    with pytest.raises(InputError, match=what):
        TASKS.get("classification").with_top([2, top], CLASSES)


def test_first_answers() -> None:
    outputs = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0]])
    task = TASKS.get("classification").with_top([2, 3], 4)
    found = task.evaluate(lambda _: iter([(outputs, torch.tensor([0, 1, 2, NO_LABEL]))]), 4, "cpu")
    assert found == {"accuracy": pytest.approx(1 / 3), "top-2": pytest.approx(2 / 3), "top-3": pytest.approx(1)}
    for name in set(NAMES) - {"classification"}:
        with pytest.raises(InputError, match="chooses no class"):
            TASKS.get(name).with_top([2], 4)


def test_a_task_that_lacks_them_is_told_what_it_lacks() -> None:
    task = TASKS.get("classification")
    for call in (lambda: Task.kept(task, torch.eye(2), torch.tensor([0, 1]), 2), lambda: Task.tally(task, [], list)):
        with pytest.raises(InputError, match="image by image") as caught:
            call()
        assert "kept and tally" in caught.value.hint

"""Tasks: metrics are those computed by hand; targets and outputs that are not the task's are refused."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from math import nan
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from fxdistill.errors import DataError
from fxdistill.tasks import TASKS, Agreement, Said, labelled, retrieval

NAMES = ("classification", "features", "multilabel", "regression", "retrieval", "segmentation")
Predict = Callable[[str], Iterator[tuple[Tensor, Tensor]]]


def predicting(outputs: Tensor, targets: Tensor, size: int = 2) -> Predict:
    """Both splits hold the same, in batches of ``size``."""
    return lambda _: zip(outputs.split(size), targets.split(size), strict=True)


def one_hot(chosen: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(chosen), classes).float()


def test_the_names_and_that_listing_them_imports_nothing() -> None:
    assert TASKS.names() == NAMES
    code = (
        "import sys; from fxdistill.tasks import TASKS; TASKS.names();"
        "print([m for m in ('torch', 'torchmetrics') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_what_every_task_says(name: str) -> None:
    task = TASKS.get(name)
    outputs = torch.rand(4, 12, 3, 5) if name == "segmentation" else torch.rand(4, 1 if name == "regression" else 12)
    targets = {
        "segmentation": torch.randint(12, (4, 3, 5)), "regression": torch.rand(4), "multilabel": torch.eye(12)[:4],
    }.get(name, torch.tensor([0, 1, 11, 0]))  # fmt: skip
    shape = (3, 3, 5)
    assert task.summary
    assert task.wrong_targets(targets, shape, 12) == ""
    assert task.wrong_output(outputs, shape, 12, targets.shape[1:]) == ""
    found = task.evaluate(predicting(outputs, targets), 12, "cpu")
    assert task.primary in found
    assert all(isinstance(value, float) for value in found.values())
    assert task.agreement(outputs, outputs.clone()).widest == 0
    same = task.agreement(outputs, outputs.clone())
    assert same.agreeing == same.total
    assert bool(same.total) == bool(task.agreement_name)  # numbers have no choices to agree in
    with pytest.raises(DataError, match="no images to evaluate on"):
        task.evaluate(lambda _: iter(()), 12, "cpu")
    others = () if name == "features" else (torch.rand(4, 12, 3), torch.rand(4, 12, 5, 3))
    for wrong in (torch.rand(()), *others):
        assert "the model answers with" in task.wrong_output(wrong, shape, 12, targets.shape[1:])


@pytest.mark.parametrize(
    ("name", "targets", "chance", "shown"),
    [
        ("classification", [0, 0, 0, 3], 0.25, "12.35%"),
        ("multilabel", [[1, 0, 0.6, 0], [0, 0, 1, 0], [nan, 0, 0, 0.4]], (1 / 2 + 2 / 3) / 2, "12.35%"),
        ("multilabel", [[0, 0], [nan, 0]], None, "12.35%"),
        ("retrieval", [0, 0, 0, 3], 0.25, "12.35%"),
        ("segmentation", [[[0, 0, 2]], [[-100, 0, 2]]], 3 / 5 / 2, "12.35%"),
        ("segmentation", [[[-100, -100]]], None, "12.35%"),
        ("regression", [0.5, 1.5], None, "0.1235"),
    ],
)
def test_chance_and_what_people_read(name: str, targets: list[Any], chance: float | None, shown: str) -> None:
    task = TASKS.get(name)
    found = task.chance(4, torch.tensor(targets))
    assert found == (chance if chance is None else pytest.approx(chance))
    assert task.shown(0.12345) == shown


# Classification


def test_accuracy_by_hand() -> None:
    outputs, targets = one_hot([0, 1, 2, 2, 1], 3), torch.tensor([0, 1, 2, 1, 1])
    assert TASKS.get("classification").evaluate(predicting(outputs, targets), 3, "cpu") == {
        "accuracy": pytest.approx(4 / 5)
    }


def test_top_5_by_hand() -> None:
    """The five largest logits are those of classes 7 to 11: the labels 11 (the first), 7 and 9 are among them."""
    outputs, targets = torch.arange(12.0).repeat(4, 1), torch.tensor([11, 7, 6, 9])
    found = TASKS.get("classification").evaluate(predicting(outputs, targets), 12, "cpu")
    assert found == {"accuracy": pytest.approx(1 / 4), "top-5": pytest.approx(3 / 4)}


def test_one_class_alone_is_always_right() -> None:
    found = TASKS.get("classification").evaluate(predicting(torch.rand(4, 1), torch.zeros(4).long()), 1, "cpu")
    assert found == {"accuracy": 1.0}


def test_images_without_a_label_are_not_measured() -> None:
    """Of five images two have a label, and one of these is right; the others would all be right, or all be wrong."""
    outputs = one_hot([0, 1, 2, 2, 1], 3)
    for other in (0, 2):
        targets = torch.tensor([0, -100, -100, other, -100])
        found = TASKS.get("classification").evaluate(predicting(outputs, targets), 3, "cpu")
        assert found == {"accuracy": 1.0 if other == 2 else 0.5}
    features = torch.eye(3)[[0, 1, 0, 1]]
    targets = torch.tensor([0, -100, 0, 1])
    # with the second image in it, the database's nearest to the last one would be of another class
    assert TASKS.get("retrieval").evaluate(predicting(features, targets), 2, "cpu")["mAP"] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_nobody_knows_measure_nothing(name: str) -> None:
    task = TASKS.get(name)
    shape = {"segmentation": (4, 2, 2), "multilabel": (4, 3)}.get(name, (4,))
    outputs = {"segmentation": torch.rand(4, 3, 2, 2), "regression": torch.rand(4)}.get(name, torch.rand(4, 3))
    targets = task.typed(torch.full(shape, task.no_label))
    targets = targets if name in ("regression", "multilabel") else targets.long()
    assert not labelled(targets).any()
    with pytest.raises(DataError, match="the images have no labels, so that nothing can be measured"):
        task.evaluate(predicting(outputs, targets), 3, "cpu")


@pytest.mark.parametrize("name", ["classification", "retrieval", "segmentation"])
def test_minus_one_means_no_label(name: str) -> None:
    task = TASKS.get(name)
    found = task.typed(torch.tensor([3, -1, -100, 0], dtype=torch.int8))
    assert found.dtype == torch.int64
    assert found.tolist() == [3, -100, -100, 0]
    assert task.count_classes(found) == 4
    assert task.count_classes(found[1:3]) == 0
    assert TASKS.get("regression").typed(torch.tensor([3, -1])).tolist() == [3.0, -1.0]


# Several classes an image


def test_mean_average_precision_and_f1_by_hand() -> None:
    """Class 0 ranks yes, no, yes: AP = (1 + 2/3) / 2, at a half all three are yes: F1 = 4/5. Class 1 ranks no, yes: AP
    1/2, F1 = 0, for its only yes has a negative logit. Nobody is of class 2, and the unknown entry counts nowhere."""
    outputs = torch.tensor([[3.0, 1.0, 9.0], [2.0, -1.0, 9.0], [1.0, 8.0, -9.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, torch.nan, 0.0]])
    for size in (1, 3):
        found = TASKS.get("multilabel").evaluate(predicting(outputs, targets, size), 3, "cpu")
        assert found == {"mAP": pytest.approx((5 / 6 + 1 / 2) / 2), "F1": pytest.approx((4 / 5 + 0) / 2)}


def test_mean_average_precision_is_that_of_scikit_learn() -> None:
    """With ties, entries that are not known, and a class that nobody has."""
    chance = torch.Generator().manual_seed(3)
    outputs = torch.randn(60, 4, generator=chance).round(decimals=1)
    targets = (torch.rand(60, 4, generator=chance) < 0.3).float().masked_fill(outputs > 1.5, torch.nan)
    targets[:, 3] = 0
    known = [~targets[:, k].isnan() for k in range(3)]
    expected = [average_precision_score(targets[where, k], outputs[where, k]) for k, where in enumerate(known)]
    found = TASKS.get("multilabel").evaluate(predicting(outputs, targets), 4, "cpu")
    assert found["mAP"] == pytest.approx(sum(expected) / 3, abs=1e-9)


def test_logits_of_sure_predictions_are_ranked_too() -> None:
    """Their probabilities are all 1 in float32, one rank with AP = 1/3. A fourth image ties with the first."""
    outputs, targets = torch.tensor([[40.0], [30.0], [20.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    task = TASKS.get("multilabel")
    assert task.evaluate(predicting(outputs, targets), 1, "cpu")["mAP"] == 1.0
    assert float(task.tally(task.kept(outputs, targets, 1), list).metric(torch.ones(1, 3))) == 1.0
    outputs, targets = torch.cat([outputs, outputs[:1]]), torch.cat([targets, targets[1:2]])
    assert task.evaluate(predicting(outputs, targets), 1, "cpu")["mAP"] == 0.5


def test_small_logits_are_logits_too() -> None:
    """All lie in 0 … 1, where a metric that guesses would take them for probabilities and say no to the lower half."""
    outputs, targets = torch.tensor([[0.1], [0.2], [0.9]]), torch.ones(3, 1)
    assert TASKS.get("multilabel").evaluate(predicting(outputs, targets), 1, "cpu")["F1"] == 1.0


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[0, 1, 1], [-1, -100, 0]]), ""),
        (torch.tensor([[0.2, 1, 0]]), ""),
        (torch.tensor([[0, 0, 0], [0, -1, 0]]), "no image has any class"),
        (torch.tensor([0, 1]), "give a row of 0 and 1 an image"),
        (torch.tensor([[0, 1]]), "2 columns, there are 3 classes"),
        (torch.tensor([[0, 1, 2]]), "labels lie in 0 … 2"),
        (torch.tensor([[0, 1, -7]]), "labels lie in -7 … 1"),
    ],
)
def test_rows_of_yes_and_no(targets: Tensor, message: str) -> None:
    task = TASKS.get("multilabel")
    found = task.wrong_targets(task.typed(targets), (1, 2, 2), 3)
    assert message in found
    assert bool(found) is bool(message)


def test_agreement_of_yes_and_no_by_hand() -> None:
    ours, theirs = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[0.2, 1.0], [-0.1, 1.0]])
    assert TASKS.get("multilabel").agreement(ours, theirs) == Agreement(2, 4, 2.0)


def test_agreement_of_choices_by_hand() -> None:
    ours = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.5], [0.0, 1.0, 4.0]])
    theirs = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 9.0], [5.0, 1.0, 4.0]])
    # the second is 1.5 where ours is 2, the third 0 where ours is 4
    assert TASKS.get("classification").agreement(ours, theirs) == Agreement(1, 3, 4.0)
    maps = [values.T.reshape(1, 3, 3, 1) for values in (ours, theirs)]
    assert TASKS.get("segmentation").agreement(*maps) == Agreement(1, 3, 4.0)


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        (torch.rand(4), 3, "one whole number an image"),
        (torch.zeros(4, 1).long(), 3, "one whole number an image"),
        (torch.tensor([0, -7]), 3, "-7 is negative"),
        (torch.tensor([0, -100]), 3, ""),
        (torch.tensor([3, -100]), 3, "the label 3 has no name"),
        (torch.tensor([0, 3]), 3, "the label 3 has no name; there are 3 classes"),
        (torch.tensor([0, 3]), 4, ""),
    ],
)
@pytest.mark.parametrize("name", ["classification", "retrieval"])
def test_class_numbers(name: str, targets: Tensor, classes: int, message: str) -> None:
    assert message in TASKS.get(name).wrong_targets(targets, (1, 2, 2), classes)
    assert bool(TASKS.get(name).wrong_targets(targets, (1, 2, 2), classes)) is bool(message)


@pytest.mark.parametrize("name", ["classification", "segmentation", "multilabel"])
def test_logits_for_other_classes(name: str) -> None:
    shape = (4, 7, 2, 2) if name == "segmentation" else (4, 7)
    found = TASKS.get(name).wrong_output(torch.rand(shape), (1, 2, 2), 5)
    assert found == "the model answers with 7 classes, the data has 5 classes"
    assert TASKS.get(name).wrong_output(torch.rand(shape), (1, 2, 2), 0) == ""


# Segmentation


def test_mean_iou_and_pixel_accuracy_by_hand() -> None:
    """Class 3 is neither predicted nor labelled; a pixel without a label counts nowhere, whatever is predicted.

    labelled    0 0 1 1 2 . | 0 1        class 0: 2 of 3    class 1: 1 of 4    class 2: 1 of 2 are in both
    predicted   0 0 1 2 2 3 | 1 0                 -> 2/4            1/4               1/2
    """
    targets = torch.tensor([[0, 0, 1, 1, 2, -100, 0, 1]]).reshape(2, 2, 2)
    outputs = one_hot([0, 0, 1, 2, 2, 3, 1, 0], 4).reshape(2, 2, 2, 4).permute(0, 3, 1, 2)
    for size in (1, 2):
        found = TASKS.get("segmentation").evaluate(predicting(outputs, targets, size), 4, "cpu")
        assert found == {"mean-IoU": pytest.approx((2 / 4 + 1 / 4 + 1 / 2) / 3), "pixel-accuracy": pytest.approx(4 / 7)}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(2, 3, 4).long(), ""),
        (torch.full((2, 3, 4), 4), ""),
        (torch.full((2, 3, 4), 5), "the label 5 has no name; there are 5 classes; -100 says that a pixel has no label"),
        (torch.full((2, 3, 4), 255), "255 has no name"),
        (torch.full((2, 3, 4), -2), "-2 is negative"),
        (torch.zeros(2, 4, 3).long(), "(2, 3, 4)"),
        (torch.zeros(2, 1, 3, 4).long(), "(2, 3, 4)"),
        (torch.zeros(2, 3, 4), "whole number a pixel"),
    ],
)
def test_maps_of_classes(targets: Tensor, message: str) -> None:
    found = TASKS.get("segmentation").wrong_targets(targets, (1, 3, 4), 5)
    assert message in found
    assert bool(found) is bool(message)


# Regression


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_error_and_r2_by_hand(shape: tuple[int, ...]) -> None:
    """Errors 1, 0, 1, 2; squared 6 in all; the targets' squared distances from 2.5 are 5 in all."""
    outputs, targets = torch.tensor([2.0, 2.0, 2.0, 6.0]).reshape(shape), torch.tensor([1.0, 2.0, 3.0, 4.0])
    for size in (4, 3, 1):
        found = TASKS.get("regression").evaluate(predicting(outputs, targets, size), 0, "cpu")
        assert found == {"MAE": pytest.approx(1.0), "R2": pytest.approx(1 - 6 / 5)}


def test_r2_is_the_mean_over_the_numbers_of_an_image() -> None:
    targets = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]])
    outputs = targets + torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 20.0]])
    found = TASKS.get("regression").evaluate(predicting(outputs, targets), 0, "cpu")
    assert found == {"MAE": pytest.approx(21 / 6), "R2": pytest.approx((1 - 1 / 2 + 1 - 400 / 1400) / 2)}


def test_less_error_is_better() -> None:
    task = TASKS.get("regression")
    assert (task.primary, task.higher_is_better, task.has_classes, task.supervised) == ("MAE", False, False, "l1")
    assert task.agreement(torch.zeros(3, 2), torch.ones(3, 2)) == Agreement(0, 0)


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        ((4,), (), ""),
        ((4, 1), (), ""),
        ((4,), (1,), ""),
        ((4, 3), (3,), ""),
        ((4, 3), None, ""),
        ((4, 2), (3,), "2 numbers an image, the data has 3"),
        ((4,), (3,), "1 numbers an image, the data has 3"),
        ((4, 2), (), "2 numbers an image, the data has 1"),
        ((4, 3, 1), (3,), "(4, 3, 1)"),
    ],
)
def test_as_many_numbers_as_targets(output: tuple[int, ...], target: tuple[int, ...] | None, message: str) -> None:
    found = TASKS.get("regression").wrong_output(torch.zeros(output), (1, 2, 2), 0, target)
    assert message in found
    assert bool(found) is bool(message)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(2), ""),
        (torch.zeros(2, 5), ""),
        (torch.zeros(2).long(), "give numbers"),
        (torch.zeros(2, 3, 4), "give numbers"),
        (torch.zeros(1), "give two at least"),
        (torch.tensor([0, torch.nan]), "not a number"),
        (torch.tensor([0, torch.inf]), "infinite"),
    ],
)
def test_numbers(targets: Tensor, message: str) -> None:
    found = TASKS.get("regression").wrong_targets(targets, (1, 2, 2), 0)
    assert message in found
    assert bool(found) is bool(message)


# Retrieval


def test_the_training_split_is_ranked_for_each_test_image() -> None:
    """By cosine: for the query at 0 degrees the order is 10 (a), 20 (b), 90 (a); for that at 90 it is 90, 20, 10.

    The first is an a: precision 1, 1/2, 2/3, AP = (1 + 2/3) / 2. The second is a b: AP = 1/2.
    11 points: the first reads P = 1 for recalls 0 to 0.7 and 2/3 for 0.8 to 1. The second has one hit: P(1) = 0 for
    recalls 0 to 0.5, P(2) = 1/2 for 0.6 to 1. Of fewer than 100, all are the first 100: 2/3 and 1/3.
    By distance lengths count: the orders are a, a, b (AP = 1) and a, a, b for the second as well (AP = 1/3).
    """
    angles = torch.deg2rad(torch.tensor([10.0, 20.0, 90.0]))
    lengths = torch.tensor([[1.0], [100.0], [0.1]])
    splits = {
        "train": (lengths * torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 1, 0])),
        "test": (torch.tensor([[3.0, 0.0], [0.0, 0.2]]), torch.tensor([0, 1])),
    }
    for size in (1, 3):
        found = TASKS.get("retrieval").evaluate(lambda split: predicting(*splits[split], size)(""), 2, "cpu")  # noqa: B023
        assert found == {
            "mAP": pytest.approx((5 / 6 + 1 / 2) / 2),
            "mAP-11": pytest.approx(((8 + 3 * 2 / 3) / 11 + 5 / 2 / 11) / 2),
            "top-100": pytest.approx(1 / 2),
            "mAP-L2": pytest.approx((1 + 1 / 3) / 2),
            "mAP-11-L2": pytest.approx((1 + 5 / 11 / 3) / 2),
            "top-100-L2": pytest.approx(1 / 2),
        }
    assert TASKS.get("retrieval").supervised is None


def test_agreement_of_neighbours_by_hand() -> None:
    """The third image's neighbour becomes the first (cosine 0.6) instead of the second (0.8)."""
    ours = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    theirs = torch.tensor([[5.0, 0.0], [0.0, 5.0], [8.0, 6.0]])
    found = TASKS.get("retrieval").agreement(ours, theirs)
    assert (found.agreeing, found.total) == (2, 3)
    assert found.widest == pytest.approx(0.2)
    longer = ours * torch.tensor([[9.0], [1.0], [1.0]])
    assert TASKS.get("retrieval").agreement(longer, ours) == Agreement(3, 3)
    assert TASKS.get("retrieval").agreement(ours[:1], ours[1:2]) == Agreement(1, 1)


def test_similarities_are_those_to_all_images_however_many_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, task = torch.Generator().manual_seed(0), TASKS.get("retrieval")
    ours, theirs = torch.randn(50, 4, generator=generator), torch.randn(50, 6, generator=generator)
    whole = task.agreement(ours, theirs), task.distance(ours, theirs)
    both = [torch.nn.functional.normalize(one) @ torch.nn.functional.normalize(one).t() for one in (ours, theirs)]
    torch.testing.assert_close(whole[1], (both[0] - both[1]).abs().sum(1) / 49)
    monkeypatch.setattr(retrieval, "_MOST_SIMILARITIES", 7 * 50)
    parted = task.agreement(ours, theirs), task.distance(ours, theirs)
    assert parted[0].agreeing == whole[0].agreeing < 50
    assert parted[0].widest == pytest.approx(whole[0].widest)
    torch.testing.assert_close(parted[1], whole[1])
    assert bool(task.distance(ours, theirs * torch.nan).isnan().all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_metrics_on_the_device(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (8, 3, 4, 4) if name == "segmentation" else (8,) if name == "regression" else (8, 3)
    outputs = torch.rand(shape, generator=generator)
    targets = outputs + 1 if name == "regression" else outputs.argmax(1).flip(0)
    targets = torch.nn.functional.one_hot(targets, 3).float() if name == "multilabel" else targets
    here = TASKS.get(name).evaluate(predicting(outputs, targets), 3, "cpu")
    there = TASKS.get(name).evaluate(predicting(outputs.cuda(), targets.cuda()), 3, "cuda")
    assert there == pytest.approx(here, abs=1e-5)


def _answers(task: str, *, collapsed: bool) -> list[torch.Tensor]:
    """Two batches of predictions, of a model that looks at its images or of one that does not."""
    generator = torch.Generator().manual_seed(0)
    shape = {"segmentation": (6, 5, 4, 4), "regression": (6, 2)}.get(task, (6, 5))
    noise = torch.randn(2, *shape, generator=generator)
    if collapsed and TASKS.get(task).has_classes and task != "retrieval":
        noise += 100 * torch.eye(5)[3].reshape(5, *([1] * (len(shape) - 2)))  # scores differ, what they say does not
        noise[:, :, [k for k in range(5) if k != 3]] -= 100
    elif collapsed:
        noise = torch.full_like(noise, 3.0) + 1e-5 * noise
    return list(noise)


@pytest.mark.parametrize("task", ["classification", "segmentation", "regression", "retrieval", "multilabel"])
def test_one_answer_for_everything_is_told_from_answers(task: str) -> None:
    for collapsed in (True, False):
        said = Said(TASKS.get(task))
        for batch in _answers(task, collapsed=collapsed):
            said.add(batch)
        assert said.collapsed() == (TASKS.get(task).collapsed if collapsed else "")


def test_one_image_says_nothing_of_a_collapse_and_embeddings_differ_by_direction_alone() -> None:
    one = Said(TASKS.get("classification"))
    one.add(torch.randn(1, 5))
    assert one.collapsed() == ""
    scaled = Said(TASKS.get("retrieval"))
    scaled.add(torch.tensor([[1.0, 2.0], [10.0, 20.0]]))
    assert scaled.collapsed() == "the same embedding for every image"
    far = Said(TASKS.get("classification"))  # of very many classes two neighbours are not the same
    far.add(torch.eye(21_843)[[21_840, 21_841]])
    assert far.collapsed() == ""


def test_a_regression_near_chance_is_no_better_than_the_mean() -> None:
    task = TASKS.get("regression")
    assert task.near_chance({"MAE": 3.0, "R2": 0.2}, 0, torch.zeros(2)) == ""
    assert "no better than the mean" in task.near_chance({"MAE": 3.0, "R2": 0.0}, 0, torch.zeros(2))
    assert "no better than the mean" in task.near_chance({"MAE": 3.0, "R2": float("nan")}, 0, torch.zeros(2))

"""Published losses: held against torchdistill's values, the equations in NumPy, and their laws."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from torch import Tensor

from fxdistill.losses.attention import attention
from fxdistill.losses.dist import dist
from fxdistill.losses.dkd import dkd
from fxdistill.losses.kd import kd
from fxdistill.losses.kd_standardized import kd_standardized
from fxdistill.losses.sp import sp
from tests.losses import golden

GOLDEN: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    **{f"kd {t:g}": ("logits", partial(kd, temperature=t)) for t in (1.0, 4.0)},
    **{f"kd-standardized {t:g}": ("logits", partial(kd_standardized, temperature=t)) for t in (1.0, 4.0)},
    **{f"dist {t:g}": ("logits", partial(dist, beta=1.0, gamma=2.0, temperature=t)) for t in (1.0, 4.0)},
    "attention": ("widths", attention),
}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", golden.known())
def test_values_and_slopes_are_those_of_torchdistill(name: str) -> None:
    kind, function = GOLDEN[name]
    student, teacher, direction = (x.float() for x in golden.inputs(kind))
    value = function(student.requires_grad_(), teacher)
    (gradient,) = torch.autograd.grad(value, student)
    wanted = golden.known()[name]
    assert abs(wanted["slope"]) > 1e-5
    assert value.item() == pytest.approx(wanted["value"], rel=1e-5)
    assert (gradient * direction).sum().item() == pytest.approx(wanted["slope"], rel=1e-3)


def test_all_of_torchdistills_cases_are_held() -> None:
    assert golden.known().keys() == GOLDEN.keys()


# DKD


def numpy_dkd(s: np.ndarray, t: np.ndarray, y: np.ndarray, *, alpha: float, beta: float, temperature: float) -> float:
    total = 0.0
    for one, other, label in zip(s / temperature, t / temperature, y, strict=True):
        p, q, rest = softmax(one), softmax(other), np.arange(len(one)) != label
        label_part = q[label] * np.log(q[label] / p[label]) + (1 - q[label]) * np.log((1 - q[label]) / (1 - p[label]))
        others = softmax(other[rest]) * (log_softmax(other[rest]) - log_softmax(one[rest]))
        total += alpha * label_part + beta * others.sum()
    return float(temperature**2 * total / len(y))


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.0), (0.0, 1.0, 4.0)])
def test_dkd_by_hand(alpha: float, beta: float, temperature: float) -> None:
    student, teacher, _ = golden.inputs("logits")
    labels = torch.arange(golden.BATCH) % golden.CLASSES
    arguments = {"alpha": alpha, "beta": beta, "temperature": temperature}
    expected = numpy_dkd(student.numpy(), teacher.numpy(), labels.numpy(), **arguments)
    assert dkd(student, teacher, labels, **arguments).item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), label=st.integers(0, 4), temperature=st.floats(0.5, 10))
def test_plain_distillation_is_what_dkd_decouples(seed: int, label: int, temperature: float) -> None:
    """KD = KL(b(t) ‖ b(s)) + (1 - p_y(t)) KL(q(t) ‖ q(s)), gradients too."""
    student, teacher = randn(2, 1, 5, seed=seed).unbind()
    rest = 1 - float((teacher / temperature).softmax(1)[0, label])
    found, wanted = student.clone().requires_grad_(), student.clone().requires_grad_()
    ours = dkd(found, teacher, torch.tensor([label]), alpha=1.0, beta=rest, temperature=temperature)
    plain = kd(wanted, teacher, temperature=temperature)
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
    gradients = [torch.autograd.grad(value, leaf)[0] for value, leaf in ((ours, found), (plain, wanted))]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_what_has_no_label_takes_no_part_in_dkd() -> None:
    student, teacher = randn(2, 6, 5, seed=0).unbind()
    labels = torch.tensor([1, -100, 3, 0, -100, 4])
    known = labels >= 0
    torch.testing.assert_close(dkd(student, teacher, labels), dkd(student[known], teacher[known], labels[known]))
    leaf = student.clone().requires_grad_()
    value = dkd(leaf, teacher, torch.full((6,), -100))
    assert value == 0
    assert not torch.autograd.grad(value, leaf)[0].any()


# Dense predictions are positions of a batch


@pytest.mark.parametrize("function", [kd_standardized, dist])
def test_positions_are_rows(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = randn(2, 2, 5, 3, 4, seed=1).unbind()
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher)]
    torch.testing.assert_close(function(student, teacher), function(*rows))


def test_positions_have_their_own_labels_in_dkd() -> None:
    student, teacher = randn(2, 2, 5, 3, 4, seed=1).unbind()
    labels = torch.arange(24).reshape(2, 3, 4) % 6 % 5
    one, other = (x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher))
    torch.testing.assert_close(dkd(student, teacher, labels), dkd(one, other, labels.flatten()))


# Laws


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10), shift=st.floats(-10, 10))
def test_standardised_logits_have_neither_size_nor_place(seed: int, factor: float, shift: float) -> None:
    student, teacher = randn(2, 5, 7, seed=seed).unbind()
    value = kd_standardized(student, teacher).item()
    assert value > 1e-3
    assert kd_standardized(factor * student + shift, teacher).item() == pytest.approx(value, rel=1e-3)
    assert kd_standardized(factor * teacher + shift, teacher).item() == pytest.approx(0, abs=1e-5)
    assert kd_standardized(-teacher, teacher).item() > value / 100


def test_dist_weighs_images_and_classes() -> None:
    student, teacher = randn(2, 9, 4, seed=3).unbind()
    p, q = student.softmax(1).double().numpy(), teacher.softmax(1).double().numpy()
    rows = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    classes = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert dist(student, teacher, beta=1.0, gamma=0.0).item() == pytest.approx(rows, rel=1e-4)
    assert dist(student, teacher, beta=0.0, gamma=3.0).item() == pytest.approx(3 * classes, rel=1e-4)
    assert dist(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_sp_by_hand() -> None:
    taps = [x.flatten(1).numpy() for x in golden.inputs("widths")[:2]]
    products = [x @ x.T for x in taps]
    unit = [g / np.sqrt((g**2).sum(1, keepdims=True)) for g in products]
    expected = ((unit[0] - unit[1]) ** 2).sum() / golden.BATCH**2
    assert sp(*golden.inputs("widths")[:2]).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_sp_has_no_size_and_no_width(scale: float) -> None:
    student, teacher = randn(6, 4, 3, seed=4), randn(6, 20, seed=5)
    rotated = student.flatten(1) @ torch.linalg.qr(randn(12, 12, seed=6))[0]
    value = sp(student, teacher)
    torch.testing.assert_close(sp(scale * rotated, teacher / scale), value)
    assert value > 1e-3
    assert sp(scale * teacher, teacher).item() == pytest.approx(0, abs=1e-12)

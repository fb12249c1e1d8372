"""Published losses: held against torchdistill's values, the equations in NumPy, and their laws."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from torch import Tensor

from fxdistill.errors import PlanError
from fxdistill.losses import LOSSES, Context
from fxdistill.losses.attention import attention
from fxdistill.losses.crd import CRD, CRDArguments
from fxdistill.losses.cwd import cwd
from fxdistill.losses.dist import dist
from fxdistill.losses.dkd import dkd
from fxdistill.losses.kd import kd
from fxdistill.losses.kd_standardized import kd_standardized
from fxdistill.losses.rkd import rkd
from fxdistill.losses.sp import sp
from fxdistill.losses.vid import VID, VIDArguments
from tests.losses import golden

WIDTHS = (4, 6)


def vid(student: Tensor, teacher: Tensor) -> Tensor:
    loss = VID(*WIDTHS, VIDArguments())
    with torch.no_grad():
        for layer, weight in zip((loss.first, loss.second, loss.third), golden.vid_layers(), strict=True):
            layer.weight.copy_(weight)
        loss.scale.copy_((golden.vid_variances() - loss.eps).expm1().log())
    value: Tensor = loss(student, teacher)
    return value


def remembering(momentum: float = 0.5) -> CRD:
    """The contrastive loss of 40 images in the state of the golden values; it draws every image outside the batch."""
    weights, biases, memory, drawn = golden.crd_state()
    loss = CRD(WIDTHS, 40, CRDArguments(dim=16, negatives=len(drawn), momentum=momentum))
    with torch.no_grad():
        for layer, weight, bias in zip((loss.student, loss.teacher), weights, biases, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        loss.memory.copy_(memory)
    loss.drawn = drawn.to  # type: ignore[method-assign]
    return loss


def crd(student: Tensor, teacher: Tensor) -> Tensor:
    loss, index = remembering(), torch.arange(golden.BATCH)
    loss(student.detach(), teacher.flip(0), index)
    value: Tensor = loss(student, teacher, index)
    return value


GOLDEN: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    **{f"kd {t:g}": ("logits", partial(kd, temperature=t)) for t in (1.0, 4.0)},
    **{f"kd-standardized {t:g}": ("logits", partial(kd_standardized, temperature=t)) for t in (1.0, 4.0)},
    **{f"dist {t:g}": ("logits", partial(dist, beta=1.0, gamma=2.0, temperature=t)) for t in (1.0, 4.0)},
    "attention": ("widths", attention),
    "rkd": ("widths", rkd),
    "vid": ("widths", vid),
    "crd": ("widths", crd),
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


# CWD


def test_cwd_by_hand() -> None:
    student, teacher, _ = golden.inputs("taps")
    total = 0.0
    for one, other in zip(student.flatten(2).numpy() / 3, teacher.flatten(2).numpy() / 3, strict=True):
        total += sum((softmax(b) * (log_softmax(b) - log_softmax(a))).sum() for a, b in zip(one, other, strict=True))
    expected = 9 * total / (golden.BATCH * 4)
    assert cwd(student, teacher, temperature=3.0).item() == pytest.approx(expected, rel=1e-5)
    shift = randn(golden.BATCH, 4, 1, 1, seed=0)
    assert cwd(teacher + shift, teacher).item() == pytest.approx(0, abs=1e-6)
    assert cwd(student.flatten(2), teacher.flatten(2)) == cwd(student, teacher)
    assert cwd(student[..., 0, 0], teacher[..., 0, 0]) == 0  # one position


# CRD


def test_a_memory_moves_for_the_images_of_a_batch_in_training_alone() -> None:
    loss, before = remembering(momentum=0.2), remembering().memory
    student, teacher = (x.float() for x in golden.inputs("widths")[:2])
    index = torch.tensor([3, 1, 0, 7, 30, 5, 6, 2])
    loss.eval()
    loss(student, teacher, index)
    assert torch.equal(loss.memory, before)
    assert not loss.scale.any()
    loss.train()
    loss(student, teacher, index)
    others = torch.ones(40, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(loss.memory[:, others], before[:, others])
    for role, tap in enumerate((student, teacher)):
        embedded = torch.nn.functional.normalize((loss.student, loss.teacher)[role](tap.mean((2, 3))), dim=1)
        moved = torch.nn.functional.normalize(0.2 * before[role, index] + 0.8 * embedded, dim=1)
        torch.testing.assert_close(loss.memory[role, index], moved)
    assert (loss.scale > 0).all()
    scale = loss.scale.clone()
    loss(2 * student, teacher, index)
    assert torch.equal(loss.scale, scale)  # of the first batch


def test_an_image_is_not_told_from_itself() -> None:
    """A drawn image that is the batch's own is none of the others: the sum by hand, of one image."""
    student, teacher = (x.float()[:1] for x in golden.inputs("widths")[:2])
    drawn = torch.tensor([5, 0, 9, 0, 31])
    loss, memory = remembering(), remembering().memory
    loss.scale.fill_(50.0)
    loss.drawn = drawn.to  # type: ignore[method-assign]
    expected = 0.0
    for role, (layer, tap) in enumerate(((loss.student, student), (loss.teacher, teacher))):
        embedded = torch.nn.functional.normalize(layer(tap.mean((2, 3))), dim=1)[0].detach()
        p = (memory[1 - role].double() @ embedded.double() / 0.07).exp() / 50
        chance = len(drawn) / 40
        expected -= float((p[0] / (p[0] + chance)).log())
        expected -= sum(float((chance / (p[k] + chance)).log()) for k in (5, 9, 31))
    assert loss(student, teacher, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-5)


def test_the_lowest_temperature_stays_finite() -> None:
    """Probabilities of e^50 and e^-50 over Z leave float32, their logarithms do not."""
    loss = CRD((4, 4), 16, CRDArguments(temperature=0.02, negatives=8, dim=4))
    with torch.no_grad():
        loss.memory.copy_(torch.tensor([1.0, 0, 0, 0]).expand(2, 16, 4))
        for layer in (loss.student, loss.teacher):
            layer.weight.copy_(torch.eye(4))
            layer.bias.zero_()
    same = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    tap = same.requires_grad_()
    loss.scale.fill_(1e24)
    value = loss(tap, same.detach(), torch.tensor([0, 1]))
    value.backward()
    assert value.isfinite()
    assert tap.grad is not None
    assert tap.grad.isfinite().all()


def test_what_is_drawn_comes_from_torchs_generator() -> None:
    loss = CRD(WIDTHS, 1000, CRDArguments(negatives=64))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(loss.drawn(torch.device("cpu")))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].max() < 1000


def test_crd_needs_the_number_of_images() -> None:
    build = LOSSES.get("crd").build
    assert build is not None
    with pytest.raises(PlanError, match="remembers every training image") as caught:
        build(Context({"student.tap": (2, 3), "teacher.tap": (2, 4)}), CRDArguments())
    assert "--data" in caught.value.hint


@pytest.mark.parametrize("made", [lambda: VID(*WIDTHS, VIDArguments()), remembering], ids=["vid", "crd"])
def test_all_of_what_is_built_learns(made: Callable[[], Any]) -> None:
    loss = made()
    student, teacher = (x.float().requires_grad_() for x in golden.inputs("widths")[:2])
    rest = [torch.arange(golden.BATCH)] * isinstance(loss, CRD)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        value = loss(student, teacher.detach(), *rest)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert student.grad is not None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())


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


@pytest.mark.parametrize("loss", [dist, kd_standardized])
@pytest.mark.parametrize("student", [torch.zeros(4, 5), torch.full((4, 5), 0.3), torch.full((1, 5), 70.1)])
def test_constant_predictions_teach_nothing(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor) -> None:
    """Those of a classifier that starts from 0: a slope of 1e7 would throw it away."""
    teacher, leaf = randn(len(student), 5, seed=1), student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, teacher), leaf)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(loss(leaf := teacher.requires_grad_(), student), leaf)
    assert gradient.abs().max() < 10


def test_equal_rows_correlate_with_nothing_within_classes() -> None:
    student, teacher = randn(1, 5, seed=0).repeat(6, 1), randn(6, 5, seed=1)
    assert dist(student, teacher, beta=0.0).item() == pytest.approx(1, abs=1e-6)
    leaf = student.requires_grad_()
    (gradient,) = torch.autograd.grad(dist(leaf, teacher, beta=0.0), leaf)
    assert not gradient.any()


def test_sp_by_hand() -> None:
    taps = [x.flatten(1).numpy() for x in golden.inputs("widths")[:2]]
    products = [x @ x.T for x in taps]
    unit = [g / np.sqrt((g**2).sum(1, keepdims=True)) for g in products]
    expected = ((unit[0] - unit[1]) ** 2).sum() / golden.BATCH**2
    assert sp(*golden.inputs("widths")[:2]).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rkd_sees_neither_place_nor_size_nor_turn(scale: float) -> None:
    student, teacher = randn(6, 4, 3, seed=4), randn(6, 20, seed=5)
    moved = student.flatten(1) @ torch.linalg.qr(randn(12, 12, seed=6))[0] + 2
    value = rkd(student, teacher)
    torch.testing.assert_close(rkd(scale * moved, teacher / scale - 3 / scale), value, rtol=1e-4, atol=1e-4)
    assert value > 1
    assert rkd(scale * teacher + 3 * scale, teacher).item() == pytest.approx(0, abs=1e-6)


def test_rkd_far_from_the_origin_and_with_a_twin() -> None:
    """Products of rows as they are would cancel; two equal rows have no direction, and none to leave in."""
    student, teacher = randn(6, 12, seed=4), randn(6, 20, seed=5)
    torch.testing.assert_close(rkd(student + 300, teacher), rkd(student, teacher), rtol=1e-3, atol=1e-3)
    student[1] = student[0]
    leaf = student.requires_grad_()
    (gradient,) = torch.autograd.grad(rkd(leaf, teacher), leaf)
    assert gradient.norm(dim=1).max() < 5


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_sp_has_no_size_and_no_width(scale: float) -> None:
    student, teacher = randn(6, 4, 3, seed=4), randn(6, 20, seed=5)
    rotated = student.flatten(1) @ torch.linalg.qr(randn(12, 12, seed=6))[0]
    value = sp(student, teacher)
    torch.testing.assert_close(sp(scale * rotated, teacher / scale), value)
    assert value > 1e-3
    assert sp(scale * teacher, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["pkt", "sp"])
def test_an_image_whose_tap_is_zero_is_not_thrown_far(name: str) -> None:
    """It has no direction, so that the slope of one would be 1 over what keeps the quotient finite."""
    student, teacher = randn(6, 12, seed=4), randn(6, 20, seed=5)
    student[1] = 0
    function = LOSSES.get(name).function
    assert function is not None
    leaf = student.requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf, teacher), leaf)
    assert gradient.abs().max() < 1
    assert gradient[0].any()


def test_attention_of_one_position_tells_nothing() -> None:
    assert attention(randn(4, 5, seed=0), randn(4, 7, seed=1)) == 0

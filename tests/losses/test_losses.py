"""Losses against independent float64 numpy versions, pinned numbers and their laws."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import fx, nn

from fxdistill.errors import InputError
from fxdistill.losses import LOSSES, Context, Loss
from fxdistill.losses.attention import attention
from fxdistill.losses.binary_cross_entropy import binary_cross_entropy
from fxdistill.losses.binary_kd import binary_kd
from fxdistill.losses.cross_entropy import cross_entropy
from fxdistill.losses.kd import kd
from fxdistill.losses.l1 import l1
from fxdistill.losses.mse import mse
from fxdistill.losses.pkt import pkt

STUDENT = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [2.0, 2.0, 2.0], [-4.0, 1.0, 0.0]])
TEACHER = torch.tensor([[3.0, 1.0, 0.0], [0.5, -2.0, 4.0], [1.0, 0.0, -1.0], [-3.0, 2.5, 1.0]])
LABELS = torch.tensor([0, 2, 1, 1])
WIDE = torch.tensor([
    [0.2, -1.0, 3.0, 0.4, 1.0], [1.0, 0.0, 0.5, -2.0, 0.1],
    [2.0, 1.0, 0.0, 0.3, -0.7], [0.0, 1.5, 1.0, 1.0, 2.0],
])  # fmt: skip
VALUES = {"student.logits": STUDENT, "teacher.logits": TEACHER, "labels": LABELS, "index": torch.tensor([3, 0, 1, 2]),
          "student.tap": STUDENT.reshape(2, 3, 2, 1), "teacher.tap": TEACHER.reshape(2, 3, 2, 1)}  # fmt: skip
OWN = {
    "l1": {"labels": TEACHER},
    "binary-cross-entropy": {"labels": (TEACHER > 0).float()},
    "pkt": {"student.tap": STUDENT, "teacher.tap": WIDE},
    "cwd": {"student.tap": STUDENT.reshape(1, 3, 2, 2), "teacher.tap": TEACHER.reshape(1, 3, 2, 2)},
    "crd": {"index": torch.tensor([3, 0])},
}
"""What a loss reads that is not what most read."""

PURE = [name for name in LOSSES.names() if LOSSES.get(name).function is not None]


def inputs(name: str) -> list[torch.Tensor]:
    """Values for the ports that a loss reads: any loss of one file is tested by these."""
    return [OWN.get(name, {}).get(port, VALUES.get(port, torch.ones(4))) for port in LOSSES.get(name).reads]


def function_of(name: str) -> Callable[..., torch.Tensor]:
    """The loss as a function of what it reads, with its default arguments."""
    loss = LOSSES.get(name)
    arguments = loss.arguments() if loss.arguments is not None else None
    if loss.function is not None:
        return functools.partial(loss.function, **(arguments.model_dump() if arguments is not None else {}))
    assert loss.build is not None
    shapes = {port: tuple(value.shape) for port, value in zip(loss.reads, inputs(name), strict=True)}
    return loss.build(Context(shapes, classes=3, train_size=4), arguments)


def numpy_kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    s, t = log_softmax(student / temperature, axis=1), log_softmax(teacher / temperature, axis=1)
    return float(temperature**2 * (np.exp(t) * (t - s)).sum() / len(s))


def numpy_pkt(student: np.ndarray, teacher: np.ndarray, eps: float) -> float:
    def cosine(x: np.ndarray) -> np.ndarray:
        norms = [math.sqrt((row**2).sum()) + eps for row in x]
        return np.array(
            [[(a @ b / (m * n) + 1) / 2 for b, n in zip(x, norms, strict=True)] for a, m in zip(x, norms, strict=True)]
        )

    def student_t(x: np.ndarray) -> np.ndarray:
        return np.array([[1 / (1 + math.sqrt(((a - b) ** 2).sum() + eps)) for b in x] for a in x])

    total = 0.0
    for kernel in (cosine, student_t):
        p, q = kernel(teacher), kernel(student)
        p, q = p / p.sum(1)[:, None], q / q.sum(1)[:, None]
        total += ((p - q) * (np.log(p) - np.log(q))).mean()
    return float(total)


def numpy_attention(student: np.ndarray, teacher: np.ndarray) -> float:
    maps = []
    for tap in (student, teacher):
        q = (tap**2).mean(axis=1).reshape(len(tap), -1)
        maps.append(q / np.linalg.norm(q, axis=1, keepdims=True))
    return float(((maps[0] - maps[1]) ** 2).mean())


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def test_cross_entropy_by_hand() -> None:
    # -log(e^s_y / Σ e^s) of each row
    rows = [
        math.log(math.e + math.e**2 + math.e**0.5) - 1,
        math.log(1 + math.e**-1 + math.e**3) - 3,
        math.log(3),
        math.log(math.e**-4 + math.e + 1) - 1,
    ]
    assert cross_entropy(STUDENT, LABELS).item() == pytest.approx(sum(rows) / 4, rel=1e-6)
    assert sum(rows) / 4 == pytest.approx(0.736760, abs=1e-6)


def test_what_has_no_label_takes_no_part_in_cross_entropy() -> None:
    some = torch.tensor([0, -100, 1, -100])
    for smoothing in (0.0, 0.1):
        expected = cross_entropy(STUDENT[::2], LABELS[::2], label_smoothing=smoothing)
        assert cross_entropy(STUDENT, some, label_smoothing=smoothing).item() == pytest.approx(expected.item())
    none = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(none, torch.full((4,), -100)), none)
    assert not gradient.any()
    assert cross_entropy(none, torch.full((4,), -100)).item() == 0


def test_binary_cross_entropy_by_hand() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.25], [torch.nan, 1.0, torch.nan], [0.0, 0.0, 1.0], [torch.nan] * 3])
    p, y = 1 / (1 + np.exp(-double(STUDENT))), double(labels)
    each = -y * np.log(p) - (1 - y) * np.log(1 - p)
    assert binary_cross_entropy(STUDENT, labels).item() == pytest.approx(np.nansum(each) / 7, rel=1e-6)
    assert binary_cross_entropy(STUDENT[3:], labels[3:]).item() == 0


@pytest.mark.parametrize("unknown", [-1, -100])
def test_a_row_of_whole_numbers_says_in_them_what_is_not_known(unknown: int) -> None:
    rows = torch.tensor([[1, unknown, 0], [unknown, 1, 0], [0, 0, 1], [unknown] * 3])
    expected = binary_cross_entropy(STUDENT, torch.where(rows < 0, torch.nan, rows))
    assert binary_cross_entropy(STUDENT, rows).item() == pytest.approx(expected.item())


def test_binary_kd_by_hand() -> None:
    p, q = (1 / (1 + np.exp(-double(logits))) for logits in (STUDENT, TEACHER))
    expected = (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean()
    assert binary_kd(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)
    assert binary_kd(TEACHER, TEACHER).item() == 0
    assert binary_kd(STUDENT, TEACHER + 1).item() != pytest.approx(expected, rel=1e-2)  # no shift is free here


def test_label_smoothing_spreads_its_share() -> None:
    log_p = log_softmax(double(STUDENT), axis=1)
    hard, even = -log_p[range(4), LABELS.numpy()].mean(), -log_p.mean()
    assert cross_entropy(STUDENT, LABELS, label_smoothing=0.1).item() == pytest.approx(
        0.9 * hard + 0.1 * even, rel=1e-6
    )


@pytest.mark.parametrize(("temperature", "pinned"), [(1.0, 0.287072), (4.0, 0.391356), (15.0, 0.399300)])
def test_kd_is_scaled_kl(temperature: float, pinned: float) -> None:
    value = kd(STUDENT, TEACHER, temperature=temperature).item()
    assert value == pytest.approx(numpy_kd(double(STUDENT), double(TEACHER), temperature), rel=5e-5)
    assert value == pytest.approx(pinned, abs=1e-5)


def test_pkt_matches_loops_over_pairs() -> None:
    value = pkt(STUDENT, WIDE).item()
    assert value == pytest.approx(numpy_pkt(double(STUDENT), double(WIDE), 1e-6), rel=1e-6)
    assert value == pytest.approx(0.0454133103, abs=1e-8)


def test_attention_and_mse() -> None:
    student, teacher = STUDENT.reshape(1, 3, 2, 2), TEACHER.reshape(1, 3, 2, 2)
    assert attention(student, teacher).item() == pytest.approx(
        numpy_attention(double(student), double(teacher)), rel=1e-5
    )
    assert mse(STUDENT, TEACHER).item() == pytest.approx(((double(STUDENT) - double(TEACHER)) ** 2).mean(), rel=1e-6)
    assert mse(STUDENT, TEACHER).item() == pytest.approx(25.75 / 12)


def test_pkt_gradient_is_the_difference_quotient() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(6, 5, generator=generator, requires_grad=True)
    teacher, direction = torch.randn(6, 9, generator=generator), torch.randn(6, 5, generator=generator)
    (gradient,) = torch.autograd.grad(pkt(student, teacher), student)
    step = 1e-5 * double(direction)
    ahead, behind = (numpy_pkt(double(student.detach()) + d, double(teacher), 1e-6) for d in (step, -step))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50), temperature=st.floats(0.5, 20))
def test_kd_ignores_shifts_and_is_positive(seed: int, shift: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 7, generator=generator)
    assert kd(teacher + shift, teacher, temperature=temperature).item() == pytest.approx(0, abs=1e-3)
    assert kd(student, teacher, temperature=temperature).item() > 1e-3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_pkt_laws(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(8, 3, 2, generator=generator), scale * torch.randn(8, 10, generator=generator))
    order = torch.randperm(8, generator=generator)
    value = pkt(student, teacher).item()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    assert value > 0
    assert pkt(student[order], teacher[order]).item() == pytest.approx(value, rel=1e-5)
    assert pkt(student[order], teacher).item() != pytest.approx(value, rel=1e-5)
    assert pkt(student.flatten(1) @ rotation, teacher).item() == pytest.approx(value, rel=1e-4)
    assert pkt(student, torch.cat([student.flatten(1), torch.zeros(8, 2)], 1)).item() == pytest.approx(0, abs=1e-12)


def test_attention_ignores_width_and_scale() -> None:
    student, teacher = torch.randn(2, 4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    value = attention(student, teacher).item()
    assert attention(3 * student, teacher.repeat(1, 2, 1, 1)).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("student", [
    torch.zeros(4, 3), torch.ones(4, 3), 1e4 * STUDENT, 1e-8 * STUDENT,
    torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0], [0, 1, 0]]),
], ids=["zeros", "equal", "large", "tiny", "opposite"])  # fmt: skip
@pytest.mark.parametrize("name", LOSSES.names())
def test_values_and_gradients_are_finite(name: str, student: torch.Tensor) -> None:
    read = inputs(name)
    leaf = student.clone().requires_grad_()
    place = next(i for i, port in enumerate(LOSSES.get(name).reads) if port.startswith("student."))
    value = function_of(name)(*read[:place], leaf.reshape(read[place].shape), *read[place + 1 :])
    (gradient,) = torch.autograd.grad(value, leaf)
    assert value.isfinite()
    assert value.shape == ()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_batch_of_one_is_finite(name: str) -> None:
    read = [value[:1] for value in inputs(name)]
    leaves = [v.clone().requires_grad_() if p.startswith("student") else v
              for p, v in zip(LOSSES.get(name).reads, read, strict=True)]  # fmt: skip
    value = function_of(name)(*leaves)
    (gradient,) = torch.autograd.grad(value, [leaf for leaf in leaves if leaf.requires_grad], allow_unused=True)
    assert value.isfinite()
    assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", [name for name in LOSSES.names() if "teacher.logits" in LOSSES.get(name).reads])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_predictions_that_agree_cost_nothing_whatever_their_size(name: str, scale: float) -> None:
    read = inputs(name)
    read[0] = read[1] = scale * TEACHER
    leaf = read[0].clone().requires_grad_()
    value = function_of(name)(leaf, *read[1:])
    (gradient,) = torch.autograd.grad(value, leaf)
    assert value.item() == pytest.approx(0, abs=1e-3)
    assert gradient.abs().max() < 1e-3 * max(1, 1 / scale)


@pytest.mark.parametrize("name", LOSSES.names())
def test_autocast_and_bfloat16_change_nothing_but_the_input(name: str) -> None:
    def afresh(read: list[torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)  # of what is built
        return function_of(name)(*read)

    plain = afresh(inputs(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = afresh(inputs(name))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)
    for half in (torch.bfloat16, torch.float16):
        rounded = [value.to(half) if value.is_floating_point() else value for value in inputs(name)]
        value = afresh(rounded)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(plain.item(), rel=0.05)


@pytest.mark.parametrize("name", LOSSES.names())
def test_losses_write_nothing_and_hold_no_state(name: str) -> None:
    function, read = function_of(name), inputs(name)
    before = [value.clone() for value in read]
    first = function(*read)
    assert all(map(torch.equal, read, before))
    if LOSSES.get(name).function is not None:
        assert torch.equal(function(*read), first)


class Criterion(nn.Module):
    """A loss of the port values ``x0``, ``x1`` …: as a node of a graph, and traced into."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function, self.count = function_of(name), len(inputs(name))

    def forward(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.function(*(values[f"x{n}"] for n in range(self.count)))


@pytest.mark.parametrize("name", PURE)
def test_losses_are_traceable(name: str) -> None:
    values = {f"x{n}": value for n, value in enumerate(inputs(name))}
    graph = fx.symbolic_trace(Criterion(name))
    assert torch.equal(graph(values), function_of(name)(*inputs(name)))


@pytest.mark.parametrize("name", PURE)
def test_losses_compile_without_breaks(name: str) -> None:
    torch.compiler.reset()  # of all losses together it would give up, for too many kinds of one function
    function, read = function_of(name), inputs(name)
    together = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(together(*read), function(*read))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(together(*read), function(*read))


def test_l1_is_the_mean_absolute_difference() -> None:
    assert l1(STUDENT, TEACHER).item() == pytest.approx(np.abs(double(STUDENT) - double(TEACHER)).mean(), rel=1e-6)
    column, flat = STUDENT[:, :1], TEACHER[:, 0]
    assert l1(column, flat).item() == pytest.approx(
        np.abs(double(column)[:, 0] - double(flat)).mean(), rel=1e-6
    )  # without the reshape (4, 1) and (4,) would broadcast to (4, 4)
    assert l1(column, LABELS).item() == pytest.approx(np.abs(double(column)[:, 0] - LABELS.numpy()).mean(), rel=1e-6)


def test_dense_predictions_are_positions_of_a_batch() -> None:
    student = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40).reshape(2, 4, 5) % 3
    labels[0, 0, 0] = -100
    rows = student.permute(0, 2, 3, 1).reshape(-1, 3)
    assert cross_entropy(student, labels).item() == pytest.approx(
        cross_entropy(rows[1:], labels.flatten()[1:]).item(), rel=1e-6
    )
    each = [numpy_kd(double(student[i].flatten(1).t()), double(teacher[i].flatten(1).t()), 4.0) for i in (0, 1)]
    assert kd(student, teacher).item() == pytest.approx(sum(each) / 2, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_says_what_it_reads_and_takes(name: str) -> None:
    loss = LOSSES.get(name)
    assert isinstance(loss, Loss)
    assert (loss.function is None) != (loss.build is None)
    assert loss.reads
    for port in loss.reads:
        role, dot, value = port.partition(".")
        assert not dot or (role in ("student", "teacher") and value in ("logits", "tap"))
    if loss.function is not None:
        defaults = dict(getattr(loss.function, "__kwdefaults__", None) or {})
        assert defaults == (loss.arguments().model_dump() if loss.arguments is not None else {})


def test_ports_tell_taps_and_roles() -> None:
    told = {name: (LOSSES.get(name).roles, LOSSES.get(name).reads_taps) for name in ("kd", "mse", "cross-entropy")}
    both = ("student", "teacher")
    assert told == {"kd": (both, False), "mse": (both, True), "cross-entropy": (("student",), False)}
    assert Loss(reads=("teacher.tap", "index"), function=kd).roles == ("teacher",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reads": ("labels",), "function": kd}, {"reads": ("student.logit",), "function": kd},
        {"reads": ("student.tap",)}, {"reads": ("student.tap",), "function": kd, "build": lambda *_: kd},
    ],
)  # fmt: skip
def test_a_loss_that_no_term_can_use_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Loss(**wrong)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_rows_of_shares(smoothing: float) -> None:
    """Whole rows are the labels themselves; mixed ones give the mixture of the two losses."""
    function = LOSSES.get("cross-entropy").function
    assert function is not None
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    one, other = torch.tensor([0, 1, 2, 3, -100, 1]), torch.tensor([1, 2, 3, 0, -100, 1])
    hard = [function(logits, labels, label_smoothing=smoothing) for labels in (one, other)]
    first, second = ((labels[:, None] == torch.arange(4)).float() for labels in (one, other))
    torch.testing.assert_close(function(logits, first, label_smoothing=smoothing), hard[0])
    found = function(logits, 0.3 * first + 0.7 * second, label_smoothing=smoothing)
    torch.testing.assert_close(found, 0.3 * hard[0] + 0.7 * hard[1])
    assert function(logits, torch.zeros(6, 4), label_smoothing=smoothing) == 0

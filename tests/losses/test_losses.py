"""Losses against independent float64 numpy versions, pinned numbers and their laws."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import fx, nn

from fxdistill.errors import PlanError
from fxdistill.losses import old

STUDENT = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [2.0, 2.0, 2.0], [-4.0, 1.0, 0.0]])
TEACHER = torch.tensor([[3.0, 1.0, 0.0], [0.5, -2.0, 4.0], [1.0, 0.0, -1.0], [-3.0, 2.5, 1.0]])
LABELS = torch.tensor([0, 2, 1, 1])
WIDE = torch.tensor([
    [0.2, -1.0, 3.0, 0.4, 1.0], [1.0, 0.0, 0.5, -2.0, 0.1],
    [2.0, 1.0, 0.0, 0.3, -0.7], [0.0, 1.5, 1.0, 1.0, 2.0],
])  # fmt: skip
CALLS = {
    "cross_entropy": (STUDENT, LABELS),
    "kd": (STUDENT, TEACHER),
    "mse": (STUDENT, TEACHER),
    "attention": (STUDENT.reshape(1, 3, 2, 2), TEACHER.reshape(1, 3, 2, 2)),
    "pkt": (STUDENT, WIDE),
}


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
    assert old.cross_entropy(STUDENT, LABELS).item() == pytest.approx(sum(rows) / 4, rel=1e-6)
    assert sum(rows) / 4 == pytest.approx(0.736760, abs=1e-6)


def test_label_smoothing_spreads_its_share() -> None:
    log_p = log_softmax(double(STUDENT), axis=1)
    hard, even = -log_p[range(4), LABELS.numpy()].mean(), -log_p.mean()
    assert old.cross_entropy(STUDENT, LABELS, label_smoothing=0.1).item() == pytest.approx(
        0.9 * hard + 0.1 * even, rel=1e-6
    )


@pytest.mark.parametrize(("temperature", "pinned"), [(1.0, 0.287072), (4.0, 0.391356), (15.0, 0.399300)])
def test_kd_is_scaled_kl(temperature: float, pinned: float) -> None:
    value = old.kd(STUDENT, TEACHER, temperature=temperature).item()
    assert value == pytest.approx(numpy_kd(double(STUDENT), double(TEACHER), temperature), rel=5e-5)
    assert value == pytest.approx(pinned, abs=1e-5)


def test_pkt_matches_loops_over_pairs() -> None:
    value = old.pkt(STUDENT, WIDE).item()
    assert value == pytest.approx(numpy_pkt(double(STUDENT), double(WIDE), 1e-6), rel=1e-6)
    assert value == pytest.approx(0.0454133103, abs=1e-8)


def test_attention_and_mse() -> None:
    student, teacher = CALLS["attention"]
    assert old.attention(student, teacher).item() == pytest.approx(
        numpy_attention(double(student), double(teacher)), rel=1e-5
    )
    assert old.mse(STUDENT, TEACHER).item() == pytest.approx(
        ((double(STUDENT) - double(TEACHER)) ** 2).mean(), rel=1e-6
    )
    assert old.mse(STUDENT, TEACHER).item() == pytest.approx(25.75 / 12)


def test_pkt_gradient_is_the_difference_quotient() -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(6, 5, generator=generator, requires_grad=True)
    teacher, direction = torch.randn(6, 9, generator=generator), torch.randn(6, 5, generator=generator)
    (gradient,) = torch.autograd.grad(old.pkt(student, teacher), student)
    step = 1e-5 * double(direction)
    ahead, behind = (numpy_pkt(double(student.detach()) + d, double(teacher), 1e-6) for d in (step, -step))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50), temperature=st.floats(0.5, 20))
def test_kd_ignores_shifts_and_is_positive(seed: int, shift: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 7, generator=generator)
    assert old.kd(teacher + shift, teacher, temperature=temperature).item() == pytest.approx(0, abs=1e-3)
    assert old.kd(student, teacher, temperature=temperature).item() > 1e-3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_pkt_laws(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(8, 3, 2, generator=generator),
        scale * torch.randn(8, 10, generator=generator),
    )
    order = torch.randperm(8, generator=generator)
    value = old.pkt(student, teacher).item()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    assert value > 0
    assert old.pkt(student[order], teacher[order]).item() == pytest.approx(value, rel=1e-5)
    assert old.pkt(student[order], teacher).item() != pytest.approx(value, rel=1e-5)
    assert old.pkt(student.flatten(1) @ rotation, teacher).item() == pytest.approx(value, rel=1e-4)
    assert old.pkt(student, torch.cat([student.flatten(1), torch.zeros(8, 2)], 1)).item() == pytest.approx(0, abs=1e-12)


def test_attention_ignores_width_and_scale() -> None:
    student, teacher = torch.randn(2, 4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    value = old.attention(student, teacher).item()
    assert old.attention(3 * student, teacher.repeat(1, 2, 1, 1)).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("student", [
    torch.zeros(4, 3), torch.ones(4, 3), 1e4 * STUDENT, 1e-8 * STUDENT,
    torch.tensor([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0], [0, 1, 0]]),
], ids=["zeros", "equal", "large", "tiny", "opposite"])  # fmt: skip
@pytest.mark.parametrize("name", old.names())
def test_values_and_gradients_are_finite(name: str, student: torch.Tensor) -> None:
    other = CALLS[name][1]
    leaf = student.clone().requires_grad_()
    value = old.get(name).function(leaf.reshape(1, 3, 2, 2) if name == "attention" else leaf, other)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", old.names())
def test_autocast_and_bfloat16_change_nothing_but_the_input(name: str) -> None:
    loss = old.get(name)
    student, other = CALLS[name]
    plain = loss.function(student, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss.function(student, other)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)
    assert loss.function(student.bfloat16(), other).dtype == torch.float32


class Criterion(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, student: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return old.get(self.name).function(student, other, **old.arguments(self.name, {}))


@pytest.mark.parametrize("name", old.names())
def test_losses_are_traceable(name: str) -> None:
    student, other = CALLS[name]
    graph = fx.symbolic_trace(Criterion(name))
    assert torch.equal(graph(student, other), old.get(name).function(student, other))


def test_losses_compile_without_breaks() -> None:
    student, other = CALLS["pkt"]
    together = torch.compile(
        lambda s, w, t, y: old.pkt(s, w) + old.kd(s, t) + old.cross_entropy(s, y) + old.mse(s, t),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    expected = (
        old.pkt(student, other)
        + old.kd(STUDENT, TEACHER)
        + old.cross_entropy(STUDENT, LABELS)
        + old.mse(STUDENT, TEACHER)
    )
    torch.testing.assert_close(together(student, other, TEACHER, LABELS), expected)


def test_arguments_are_completed_and_passed() -> None:
    assert old.arguments("kd", {}) == {"temperature": 4.0}
    assert old.arguments("kd", {"temperature": 2}) == {"temperature": 2}
    assert old.get("kd").function(STUDENT, TEACHER) == old.kd(STUDENT, TEACHER, **old.arguments("kd", {}))


@pytest.mark.parametrize("name", old.names())
def test_registry_defaults_are_those_of_the_function(name: str) -> None:
    loss = old.get(name)
    assert loss.name == name
    assert (loss.function.__kwdefaults__ or {}) == dict(loss.arguments)
    assert set(loss.bounds) == set(loss.arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: old.get("ptk"),
            "no loss named 'ptk'(.|\n)*did you mean 'pkt'(.|\n)*cross_entropy, kd, mse",
        ),
        (lambda: old.arguments("focal", {}), "no loss named 'focal'"),
        (
            lambda: old.arguments("kd", {"temprature": 4}),
            "no argument 'temprature'(.|\n)*did you mean 'temperature'",
        ),
        (lambda: old.arguments("mse", {"eps": 1}), "no argument 'eps'(.|\n)*leave it out"),
        (
            lambda: old.arguments("kd", {"temperature": 0.0}),
            "temperature = 0.0 is out of range(.|\n)*0.01 to 1000",
        ),
        (lambda: old.arguments("kd", {"temperature": float("nan")}), "out of range"),
    ],
)
def test_errors_say_what_where_and_what_to_do(call: Callable[[], object], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        call()
    assert caught.value.where
    assert caught.value.hint

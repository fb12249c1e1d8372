"""Losses as pure tensor functions, and the registry by which a plan names them.

With s the student's and t the teacher's logits or taps, z / T a division by the temperature:

    cross_entropy  -log softmax(s)[label]                                          mean over the batch
    kd             T² · KL(softmax(t / T) ‖ softmax(s / T))                        mean over the batch
    mse            (s - t)²                                                        mean over all entries
    attention      (q(s) - q(t))²,  q(x) = flat(mean_c x²) / ‖flat(mean_c x²)‖     mean over all entries
    pkt            J(P_cos(t), P_cos(s)) + J(P_t(t), P_t(s))                       mean over the B x B entries

PKT compares how the samples of one batch lie to each other, so that widths need not agree. Per sample pair it
takes the cosine kernel (cos(x_i, x_j) + 1) / 2 and the Student-t kernel 1 / (1 + ‖x_i - x_j‖), divides each
row by its sum to get probabilities P. J(p, q) = (p - q)(log p - log q) is an entry of Jeffreys divergence.

The functions hold no state, no branches on data and no in-place writes: they are nodes of FX graphs and
compile without breaks. All work in float32 at least, whatever autocast says; PKT's Gram matrices are taken in
float64, because distances cancel and because autocast and TF32 would round float32 products.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from fxdistill.errors import PlanError

Reads = Literal["taps", "logits", "labels"]


def cross_entropy(student_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels.

    Args:
        student_logits: (B, C), or (B, C, ...) for dense prediction.
        labels: (B,) class indices, or (B, ...).
        label_smoothing: Share of the target spread evenly over all classes, 0 to 1.

    Returns:
        A float32 scalar, in nats.
    """
    return F.cross_entropy(student_logits.float(), labels, label_smoothing=label_smoothing)


def kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Distillation of softened predictions; T² keeps the size of its gradient when T changes.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: What logits are divided by; above 0.

    Returns:
        A float32 scalar, in nats times T²; 0 where the logits are equal up to a shift of each row.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def mse(student_tap: Tensor, teacher_tap: Tensor) -> Tensor:
    """Mean squared difference of two taps of the same shape.

    Returns:
        A float32 scalar, in squared units of the taps.
    """
    return F.mse_loss(student_tap.float(), teacher_tap.float())


def attention(student_tap: Tensor, teacher_tap: Tensor) -> Tensor:
    """Attention transfer: compares where taps are active, not in which channel.

    Args:
        student_tap: (B, C, H, W); with the teacher's H and W, of any width.
        teacher_tap: (B, C', H, W).

    Returns:
        A float32 scalar, at most 4 / (H W).

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, equation 2 with
    p = 2; as in the authors' code, the square is averaged over the entries and carries no factor.
    """
    return F.mse_loss(_attention_map(student_tap), _attention_map(teacher_tap))


def pkt(student: Tensor, teacher: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Probabilistic knowledge transfer with the cosine and the Student-t kernel together.

    Args:
        student: (B, ...); flattened for each sample.
        teacher: (B, ...); its further shape may differ.
        eps: Added to norms and to squared distances, and the least value of the cosine kernel.

    Returns:
        A float32 scalar; 0 where both have the same kernels, and always for B = 1.

    Source: Passalis, Tzelepi, Tefas, "Heterogeneous Knowledge Distillation Using Information Flow Modeling",
    CVPR 2020, the variant that InDistill (arXiv 2205.10003) trains with; eps is that of its code.
    """
    student, teacher = student.flatten(1).double(), teacher.flatten(1).double()
    cosine = _jeffreys(_cosine_kernel(teacher, eps), _cosine_kernel(student, eps))
    student_t = _jeffreys(_student_t_kernel(teacher, eps), _student_t_kernel(student, eps))
    return (cosine + student_t).float()


def _attention_map(tap: Tensor) -> Tensor:
    return F.normalize(tap.float().square().mean(1).flatten(1), dim=1)


def _cosine_kernel(features: Tensor, eps: float) -> Tensor:
    unit = features / (features.norm(dim=1, keepdim=True) + eps)
    kernel: Tensor = (unit @ unit.t() + 1) / 2
    return kernel.clamp_min(eps)  # opposite samples have kernel 0, whose logarithm is not finite


def _student_t_kernel(features: Tensor, eps: float) -> Tensor:
    products = features @ features.t()
    squared_norm: Tensor = products.diagonal()
    squared = squared_norm.unsqueeze(0) + squared_norm.unsqueeze(1) - 2 * products
    distance: Tensor = (squared.clamp_min(0) + eps).sqrt()  # eps keeps the root's slope finite on the diagonal
    return 1 / (1 + distance)


def _jeffreys(teacher_kernel: Tensor, student_kernel: Tensor) -> Tensor:
    teacher = teacher_kernel / teacher_kernel.sum(1, keepdim=True)
    student = student_kernel / student_kernel.sum(1, keepdim=True)
    return ((teacher - student) * (teacher.log() - student.log())).mean()


@dataclass(frozen=True)
class Loss:
    """One entry of the registry.

    Attributes:
        name: What a plan calls it.
        function: Takes the student's tensor first.
        reads: What it is called with: ``taps`` (student tap, teacher tap), ``logits`` (student logits,
            teacher logits) or ``labels`` (student logits, labels); the arguments follow as keywords.
        arguments: The keyword arguments with their defaults.
        bounds: Lowest and highest value of each argument, both allowed.
    """

    name: str
    function: Callable[..., Tensor]
    reads: Reads
    arguments: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)


_SHARE, _TEMPERATURE, _EPS = (0.0, 1.0), (0.01, 1000.0), (1e-12, 1e-2)
_REGISTRY: Mapping[str, Loss] = MappingProxyType({
    loss.name: loss
    for loss in (
        Loss(
            "cross_entropy", cross_entropy, "labels", {"label_smoothing": 0.0}, {"label_smoothing": _SHARE}
        ),
        Loss("kd", kd, "logits", {"temperature": 4.0}, {"temperature": _TEMPERATURE}),
        Loss("mse", mse, "taps"),
        Loss("attention", attention, "taps"),
        Loss("pkt", pkt, "taps", {"eps": 1e-6}, {"eps": _EPS}),
    )
})  # fmt: skip


def names() -> tuple[str, ...]:
    """The names of all losses."""
    return tuple(_REGISTRY)


def get(name: str) -> Loss:
    """The loss of this name.

    Raises:
        PlanError: There is none; the known ones are listed.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    raise PlanError(
        f"there is no loss named '{name}'",
        where=f"loss '{name}'",
        hint=_suggestion(name, names(), "the losses are"),
    )


def arguments(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """All arguments of a loss: what was given, and the defaults of the rest.

    Raises:
        PlanError: The loss or an argument is unknown, or a value is out of range.
    """
    loss = get(name)
    for argument, value in given.items():
        where = f"loss '{name}', argument '{argument}'"
        if argument not in loss.arguments:
            hint = (
                _suggestion(argument, tuple(loss.arguments), "its arguments are") if loss.arguments else "leave it out"
            )
            raise PlanError(f"the loss '{name}' has no argument '{argument}'", where=where, hint=hint)
        low, high = loss.bounds[argument]
        if not low <= value <= high:
            raise PlanError(
                f"{argument} = {value} is out of range", where=where, hint=f"use a value from {low} to {high}"
            )
    return {**loss.arguments, **given}


def _suggestion(wrong: str, known: tuple[str, ...], introduction: str) -> str:
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    question = f"did you mean '{near[0]}'? " if near else ""
    return f"{question}{introduction} {', '.join(known)}"

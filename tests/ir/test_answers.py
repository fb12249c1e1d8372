"""What a prediction is: found whatever way it is written, and never where a softmax only weighs something inside."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.ir import answers
from fxdistill.ir.graph import LADDER, Traced
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Rung


class Net(nn.Module):
    def __init__(self, end: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.end, self.conv, self.last = end, nn.Conv2d(3, 5, 3), nn.Sequential(nn.Linear(5, 5), nn.Softmax(1))
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.end(self, self.conv(x).mean((2, 3)))


def share(y: Tensor) -> Tensor:
    powers = (y - y.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def tokens(m: Any, y: Tensor) -> Tensor:
    found: Tensor = m.attention(y[:, None], y[:, None], y[:, None])[0]
    return found.flatten(1)


PROBABILITIES: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "softmax": (lambda _, y: y.softmax(-1), "softmax"),
    "a module": (lambda m, y: m.last(y), "softmax"),
    "sigmoid": (lambda _, y: torch.sigmoid(y), "sigmoid"),
    "hard sigmoid": (lambda _, y: F.hardsigmoid(y), "hardsigmoid"),
    "at a temperature": (lambda _, y: (y / 3).softmax(1), "softmax"),
    "clamped": (lambda _, y: y.softmax(1).clamp(1e-6, 1), "softmax"),
    "in another form": (lambda _, y: y.softmax(1).view(-1, 5, 1).squeeze(2).contiguous(), "softmax"),
    "of the logarithm": (lambda _, y: torch.exp(F.log_softmax(y, 1)), "exp"),
    "by hand": (lambda _, y: share(y), "share of a sum"),
    "the mean of two": (lambda m, y: (y.softmax(1) + m.last(y)) / 2, "softmax"),
    "of no": (lambda _, y: 1 - y.sigmoid(), "sigmoid"),
}
OTHER: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "logits": (lambda _, y: y, ""),
    "divided logits": (lambda _, y: y / 3, ""),
    "a gate": (lambda _, y: y * y.sigmoid(), ""),
    "weights of a sum": (lambda _, y: y.softmax(1) @ torch.ones(5, 5), ""),
    "attention": (tokens, ""),
    "log-softmax": (lambda _, y: y.log_softmax(1), "logarithms"),
    "the logarithm": (lambda _, y: torch.log(y.softmax(1) + 1e-6), "logarithms"),
}


def traced(end: Callable[[Any, Tensor], Any], rungs: tuple[Rung, ...] = LADDER) -> Traced:
    torch.manual_seed(0)
    return Trace((2, 3, 8, 8), rungs=rungs)(Net(end).eval()).value


@pytest.mark.parametrize("end", sorted(PROBABILITIES))
def test_probabilities_are_told(end: str) -> None:
    function, operation = PROBABILITIES[end]
    found = answers.origin(traced(function))
    assert found is not None
    assert (found.kind, found.operation) == ("probabilities", operation)


@pytest.mark.parametrize("end", ["softmax", "a module", "by hand", "of the logarithm"])
def test_probabilities_are_told_in_an_exported_graph(end: str) -> None:
    found = answers.origin(traced(PROBABILITIES[end][0], ("export",)))
    assert found is not None
    assert found.kind == "probabilities"


@pytest.mark.parametrize("end", sorted(OTHER))
def test_what_is_none_is_not_taken_for_probabilities(end: str) -> None:
    function, kind = OTHER[end]
    found = answers.origin(traced(function))
    assert ("" if found is None else found.kind) == kind


@pytest.mark.parametrize(
    ("end", "entry"),
    [
        (lambda _, y: (y.softmax(1), y), "1"),
        (lambda _, y: (y.softmax(1).flatten(1), y * 2, y.contiguous()), "2"),
        (lambda _, y: (y.sigmoid(), y * 2), ""),
        (lambda _, y: (y, y.softmax(1)), ""),
        (lambda _, y: {"p": y.softmax(1), "raw": {"y": y}}, "raw.y"),
    ],
)
def test_the_logits_beside_probabilities_are_found(end: Callable[[Any, Tensor], Any], entry: str) -> None:
    assert answers.logits_entry(traced(end)) == entry

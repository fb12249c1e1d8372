"""Overwriting: sums take the memory of an operand where nobody else reads it, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.compiler.build import build
from fxdistill.ir.program import Program
from fxdistill.passes import specialize as passes
from fxdistill.passes.specialize import Specialize
from fxdistill.passes.specialize.overwrite import add_
from tests.tiny_models import Body, Classifier, awake, conv_norm, planned

WIDTH, SHAPE = 6, (2, 6, 8, 8)
Sum = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of two results of convolutions, and of an activation that is read elsewhere as well."""


def summing(form: Sum) -> Body:
    """Three layers, and a sum of what they give: (N, 3, H, W) to (N, WIDTH, H, W)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return F.relu(form(self.one(x), self.two(x), x))

    layers = {"stem": conv_norm(3, WIDTH), **{name: nn.Conv2d(WIDTH, WIDTH, 1) for name in ("one", "two")}}
    return Body(layers, forward)


def both(form: Sum, monkeypatch: pytest.MonkeyPatch) -> tuple[Program, Program]:
    """The program of a warm-up, teacher and student of the same form, with sums overwriting and without."""
    plan = planned("body", "body", SHAPE, SHAPE, kept=list(range(WIDTH)))
    models = (awake(Classifier(summing(form), WIDTH)).double() for _ in range(2))
    teacher, student = next(models).eval(), next(models)
    program = build(plan, teacher, student)
    step = Specialize("warm-up-1")
    ours = step(program).value
    with monkeypatch.context() as patch:
        patch.setattr(passes, "overwrite", lambda _program: 0)
        plain = step(program).value
    return ours, plain


def written(program: Program) -> int:
    return sum(node.target is add_ for node in program.graph.nodes)


def losses_and_gradients(program: Program) -> tuple[dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    losses: dict[str, Tensor] = program.train()({"images": images, "labels": torch.zeros(2, dtype=torch.int64)})
    learnt = [p for p in program.parameters() if p.requires_grad]
    return losses, list(torch.autograd.grad(torch.stack(list(losses.values())).sum(), learnt))


@pytest.mark.parametrize(
    ("sums", "form"),
    [
        (1, lambda one, _two, x: one + x),
        (1, lambda one, _two, x: x + one),
        (1, lambda one, _two, x: torch.add(one, x)),
        (2, lambda one, two, x: one + two + x),
        (0, lambda one, two, _x: one * two + two),  # the product needs it again
        (0, lambda one, two, _x: (one + two) * one * two),  # both are read afterwards
        (0, lambda one, _two, _x: one + one),
        (0, lambda one, _two, _x: one + 1),
        (0, lambda one, _two, x: torch.add(one, x, alpha=2)),
        (0, lambda one, _two, x: F.relu(one) + x),  # what ReLU gives is read by its backward pass
        (0, lambda one, two, x: one.view(2, -1).sigmoid().view_as(one) * two.mul_(2) + x),
    ],
)
def test_sums_are_written_over_what_nothing_else_reads(sums: int, form: Sum, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = both(form, monkeypatch)
    assert (written(ours), written(plain)) == (2 * sums, 0)  # the teacher's and the student's
    (losses, slopes), (wanted, others) = losses_and_gradients(ours), losses_and_gradients(plain)
    assert losses.keys() == wanted.keys()
    assert all(torch.equal(losses[key], wanted[key]) for key in wanted)
    assert all(torch.equal(one, other) for one, other in zip(slopes, others, strict=True))


@pytest.mark.parametrize(
    ("first", "second", "over"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), True),
        (torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, 3), False),  # as autocast leaves them
        (torch.ones(1, 3), torch.ones(2, 3), False),
    ],
)
def test_a_sum_of_another_type_or_shape_has_memory_of_its_own(first: Tensor, second: Tensor, *, over: bool) -> None:
    wanted = first + second
    found = add_(first, second)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)
    assert (found is first) == over

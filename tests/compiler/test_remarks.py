"""What is said of two models at plan: probabilities taken for logits, and what no loss reaches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdistill
from fxdistill.diagnostics import Diagnostic
from fxdistill.plan.document import Plan

SHAPE = (1, 1, 8, 8)


class Net(nn.Module):
    """Two convolutions and a head, with parts beside that an ``end`` may use."""

    def __init__(self, width: int = 8, end: Callable[[Any, Tensor], Any] | None = None, **parts: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.head, self.end = nn.Linear(2 * width, 10), end
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))
        return self.head(y) if self.end is None else self.end(self, y)


def planned(teacher: nn.Module | None = None, student: nn.Module | None = None, **options: Any) -> Plan:
    torch.manual_seed(0)
    given = fxdistill.Options(**{"input_shape": SHAPE, "method": "kd", **options})
    return fxdistill.compile(teacher or Net(16), student or Net(8), given)


def said(plan: Plan, code: str) -> list[Diagnostic]:
    return [remark for remark in plan.diagnostics if remark.code == code]


def softened(m: Any, y: Tensor) -> Any:
    return m.head(y).softmax(1)


def both(m: Any, y: Tensor) -> Any:
    y = m.head(y)
    return y.softmax(1), y


def ultralytics(m: Any, y: Tensor) -> Any:
    """Logits while training, (probabilities, logits) else."""
    y = m.head(y)
    return y if m.training else (y.softmax(1), y)


def test_probabilities_are_a_warning_where_a_loss_takes_them_for_logits() -> None:
    assert said(planned(), "probabilities") == []
    (remark,) = said(planned(Net(16, softened)), "probabilities")
    assert (remark.severity, remark.where) == ("warning", "teacher")
    assert "softmax" in remark.why
    assert [one.where for one in said(planned(Net(16, softened), Net(8, softened)), "probabilities")] == [
        "teacher", "student",
    ]  # fmt: skip
    # the teacher's prediction is not read: where its layers are active is
    assert said(planned(Net(16, softened), method="attention"), "probabilities") == []
    (remark,) = said(planned(None, Net(8, softened), method="attention"), "probabilities")
    assert remark.where == "student"


def test_a_shrunken_teacher_answers_as_the_one_that_it_is_made_from() -> None:
    plan = planned(Net(16, softened), align="shrink", method="indistill")
    assert [one.where for one in said(plan, "probabilities")] == ["teacher"]


def test_numbers_in_0_to_1_are_no_probabilities_in_a_regression() -> None:
    sigmoid = Net(16, lambda m, y: m.head(y).sigmoid())
    assert said(planned(sigmoid, task="regression"), "probabilities") == []


@pytest.mark.parametrize("end", [both, ultralytics])
def test_of_probabilities_and_logits_the_logits_are_taken(end: Callable[[Any, Tensor], Any]) -> None:
    plan = planned(Net(16, end), Net(8, end))
    assert [plan.given(name).output for name in ("teacher", "student")] == ["1", "1"]
    assert said(plan, "probabilities") == said(plan, "which-output") == []
    program = fxdistill.build(plan, teacher := Net(16, end), Net(8, end))
    images = torch.randn(4, *SHAPE[1:])
    found = program.outputs({"images": images, "labels": torch.arange(4)})
    assert torch.equal(found.logits["teacher"], teacher.eval()(images)[1])


def averaged(m: Any, y: Tensor) -> Any:
    """Two heads while training, their mean else: that of DeiT."""
    return (m.head(y), m.other(y)) if m.training else (m.head(y) + m.other(y)) / 2


def auxiliary(m: Any, y: Tensor) -> Any:
    return (m.head(y), m.other(y)) if m.training else m.head(y)


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))


UNTAUGHT: dict[str, tuple[Callable[[Any, Tensor], Any] | None, list[tuple[str, str]]]] = {
    "taught in full": (lambda m, y: m.other(y), [("note", "'head'")]),
    "a second head": (averaged, [("warning", "'other'")]),
    "an auxiliary head": (auxiliary, [("note", "'other'")]),
    "an unused part": (None, [("note", "'other'")]),
    "behind a detach": (lambda m, y: m.head(y) + m.other(y).detach(), [("warning", "'other'")]),
    "a part of a part": (lambda m, y: m.head(y) + m.other[0](y).sum(), [("note", "'other.1', 'other.2'")]),
}


@pytest.mark.parametrize("kind", sorted(UNTAUGHT))
def test_what_no_loss_reaches_is_named(kind: str) -> None:
    end, expected = UNTAUGHT[kind]
    found = said(planned(None, student := Net(8, end, other=head())), "not-taught")
    assert [(one.severity, one.where) for one in found] == [(severity, "student") for severity, _ in expected]
    assert all(f"reaches {names}" in one.why for one, (_, names) in zip(found, expected, strict=True))
    # what gets a gradient is what is not named
    plan = planned(None, student)
    stage = fxdistill.specialize(fxdistill.build(plan, Net(16), student), "main").train()
    stage.total(stage({"images": torch.randn(8, *SHAPE[1:]), "labels": torch.arange(8)})).backward()
    dead = {name for name, parameter in student.named_parameters() if parameter.grad is None}
    named = {part for _, names in expected for part in names.replace("'", "").split(", ")}
    assert {name for name in dead if not any(name.startswith(f"{part}.") for part in named)} == set()
    assert dead


def test_nothing_is_said_where_all_is_taught() -> None:
    for method in ("kd", "indistill", "attention"):
        assert said(planned(method=method), "not-taught") == []
    assert said(planned(method="indistill", align="project"), "not-taught") == []


def test_in_retrieval_the_embedding_is_compared_with_all_that_makes_it() -> None:
    plan = planned(method="indistill+pkt", task="retrieval")
    assert said(plan, "not-taught") == []
    assert [term.pair for term in plan.arms[0].stages[-1].losses] == [None]
    assert planned(method="indistill", task="retrieval").arms[0].stages == plan.arms[0].stages  # without a word


def test_frozen_parameters_are_another_remark() -> None:
    student = Net(8)
    student.a.requires_grad_(False)
    plan = planned(None, student)
    assert said(plan, "not-taught") == []
    (remark,) = said(plan, "frozen-parameters")
    assert (remark.severity, remark.where) == ("note", "student")
    assert "'a'" in remark.why

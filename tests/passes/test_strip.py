"""Strip: the student as its user made it, with what was trained."""

import pytest
import torch

from fxdistill.compiler import pipeline
from fxdistill.errors import InvariantError
from fxdistill.ir.program import Program
from fxdistill.passes.strip import Strip, Trained
from tests import tiny_models
from tests.tiny_models import SHAPE, planned


def trained() -> Trained:
    student = tiny_models.plain(3)
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    program = pipeline.build(plan, tiny_models.plain(8), student)
    stage = program.stage("main")
    torch.autograd.backward(stage.total(stage(torch.randn(SHAPE), torch.tensor([0, 1]))))
    torch.optim.SGD(student.parameters(), 0.1).step()
    return Trained(program, student)


def test_it_is_the_users_class_with_the_trained_weights() -> None:
    source = trained()
    stripped = Strip()(source).value
    assert type(stripped) is type(source.student)
    assert stripped is not source.student
    assert not any(m.training for m in stripped.modules())
    assert all(p.grad is None for p in stripped.parameters())
    fresh = tiny_models.plain(3)
    fresh.load_state_dict(stripped.state_dict())
    images = torch.randn(SHAPE)
    assert torch.equal(fresh.eval()(images), source.student.eval()(images))


def test_another_student_than_the_trained_one_is_caught() -> None:
    with pytest.raises(InvariantError, match=r"'body.0.0.weight' of the stripped student is not what was trained"):
        Strip()(Trained(trained().program, tiny_models.plain(3)))


def test_a_program_inside_the_student_is_caught() -> None:
    source = trained()
    student = torch.nn.Sequential(source.program)
    assert isinstance(student[0], Program)
    with pytest.raises(InvariantError, match="still holds a"):
        Strip()(Trained(source.program, student))

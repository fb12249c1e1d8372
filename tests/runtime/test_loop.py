import pytest
import torch

from fxdistill.compiler.build import build as build_program
from fxdistill.compiler.build import specialize
from fxdistill.errors import TrainingError
from fxdistill.modelfiles.factories import build
from fxdistill.plan.file import load
from fxdistill.runtime.training.average import Average
from fxdistill.runtime.training.course import Means, Position
from fxdistill.runtime.training.epoch import Epoch
from fxdistill.runtime.training.loop import step_seeded
from fxdistill.runtime.training.optimizers import make_optimizer
from tests import runs

CPU = torch.device("cpu")


def test_random_numbers_depend_on_the_place_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    drawn = []
    for place in ((0, 1, 2), (0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2)):
        with step_seeded(*place, device=CPU):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert len({tuple(row.tolist()) for row in drawn}) == 4
    assert torch.equal(torch.rand(3), expected)  # what is outside goes on as if nothing had been


def test_a_checkpoint_leaves_the_teacher_out() -> None:
    program = build_program(
        load(runs.plan_file()), build(*runs.TEACHER, seed=3), build(*runs.STUDENT, seed=4, allow=runs.ALLOW)
    )
    names = set(program.trainable_state())
    assert names
    assert not any(name.startswith("teacher.") for name in names)
    stage = program.stages[0]
    trained = make_optimizer(stage, program).param_groups[0]["params"]
    assert not {id(p) for p in program.get_submodule("teacher").parameters()} & {id(p) for p in trained}
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing in this stage"):
        make_optimizer(stage, program)


def test_losses_are_looked_at_every_few_steps_and_named_when_not_finite() -> None:
    whole = build_program(
        load(runs.plan_file()), build(*runs.TEACHER, seed=3), build(*runs.STUDENT, seed=4, allow=runs.ALLOW)
    )
    program = specialize(whole, "warm-up-1")
    program.get_submodule("student").register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    mean = Average(program, 0.5)
    mean.update()
    assert torch.equal(mean.values["student.mask"], torch.tensor([0.0, -torch.inf]))
    key = program.terms[0].key
    running = Epoch(program.stages[0], program, Means(), Average(program, 0.0), every=3)
    looked = [running.add({key: torch.tensor(float(n))}, Position(0, 0, n), 8) for n in (1, 2, 3)]
    assert looked == [False, False, True]
    assert running.means == Means(3, {key: 2.0})
    running.add({key: torch.tensor(float("nan"))}, Position(0, 0, 4), 8)
    with pytest.raises(TrainingError) as failure:
        running.flush()
    assert "batch 4" in failure.value.where
    assert str(program.terms[0].loss.pair) in failure.value.what

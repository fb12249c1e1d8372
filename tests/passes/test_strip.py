"""Strip: a trained member as its user made it, with what was trained."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxdistill.compiler.build import build, specialize
from fxdistill.errors import InvariantError, PassError
from fxdistill.ir.adapters import Projection
from fxdistill.ir.contract import PassManager
from fxdistill.ir.program import Program
from fxdistill.passes.strip import Strip, Trained
from tests import tiny_models
from tests.tiny_models import SHAPE, planned

BATCH = {"images": torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), "labels": torch.tensor([0, 1])}


def trained(student: nn.Module | None = None) -> Trained:
    student = student if student is not None else tiny_models.plain(3)
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    program = build(plan, tiny_models.plain(8), student)
    stage = specialize(program, "main")
    torch.autograd.backward(stage.total(stage(BATCH)))
    torch.optim.SGD(student.parameters(), 0.1).step()
    return Trained(program, student)


def test_it_is_the_users_class_with_the_trained_weights() -> None:
    source = trained()
    stripped = Strip()(source).value
    assert type(stripped) is type(source.module)
    assert stripped is not source.module
    assert not any(m.training for m in stripped.modules())
    assert all(p.grad is None for p in stripped.parameters())
    assert all(p.grad is not None for p in source.module.parameters())  # the user's stay
    assert source.module.training
    fresh = tiny_models.plain(3)
    fresh.load_state_dict(stripped.state_dict())
    assert torch.equal(fresh.eval()(BATCH["images"]), source.module.eval()(BATCH["images"]))


def test_a_graph_is_stripped_as_well() -> None:
    """Every graph module has a class of its own."""
    source = trained(torch.fx.symbolic_trace(tiny_models.plain(3)))
    stripped = Strip()(source).value
    assert isinstance(stripped, torch.fx.GraphModule)
    assert torch.equal(stripped(BATCH["images"]), source.module.eval()(BATCH["images"]))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_stripped_of_scripted_parts_trains_again() -> None:
    student = nn.Sequential(nn.Conv2d(3, 3, 1), torch.jit.script(nn.Conv2d(3, 3, 1)))
    stripped = Strip()(trained(tiny_models.Classifier(student, 3))).value
    assert all(parameter.is_leaf for parameter in stripped.parameters())


def test_another_student_than_the_trained_one_is_caught() -> None:
    with pytest.raises(InvariantError, match=r"'body.0.0.weight' of the stripped member is not what was trained"):
        Strip()(Trained(trained().program, tiny_models.plain(3)))


class Twin(nn.Module):
    """Another class with the same tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, child in copy.deepcopy(module).named_children():
            self.add_module(name, child)


def changed(name: str) -> Callable[[nn.Module], nn.Module]:
    """One entry of one tensor is the next number."""

    def change(module: nn.Module) -> nn.Module:
        tensor = module.state_dict()[name].flatten()
        tensor[0] = torch.nextafter(tensor[0], torch.tensor(9.0)) if tensor.is_floating_point() else tensor[0] + 1
        return module

    return change


def without_bias(module: nn.Module) -> nn.Module:
    module.get_submodule("head").bias = None  # type: ignore[assignment]
    return module


def with_more(module: nn.Module) -> nn.Module:
    module.register_buffer("more", torch.zeros(1))
    return module


def narrower(module: nn.Module) -> nn.Module:
    module.head = nn.Linear(3, 4)
    return module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: nn.Linear(3, 3), "the stripped member is a Linear, not what was trained"),
        (lambda _: nn.Sequential(), "the stripped member is a Sequential"),
        (Twin, "the stripped member is a Twin"),
        (lambda _: tiny_models.plain(3).eval(), r"'body\.0\.0\.weight' of the stripped member is not what was trained"),
        (changed("head.weight"), r"'head\.weight' of the stripped member is not what was trained"),
        (changed("body.1.1.running_var"), r"'body\.1\.1\.running_var' of the stripped member is not what was trained"),
        (changed("body.1.1.num_batches_tracked"), r"'body\.1\.1\.num_batches_tracked' of the stripped member"),
        (without_bias, r"the stripped member has other tensors: 'head\.bias'"),
        (with_more, "the stripped member has other tensors: 'more'"),
        (narrower, r"'head\.weight' of the stripped member is not what was trained"),
    ],
)
def test_a_wrong_result_is_refused(change: Callable[[nn.Module], nn.Module], message: str) -> None:
    source = trained()
    right = Strip()(source).value
    Strip().ensures(source, right)
    with pytest.raises(InvariantError, match=message):
        Strip().ensures(source, change(right))


def test_parts_of_the_program_inside_are_refused() -> None:
    source = trained()
    tap = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8)).pairs[0].student
    for part in (source.program, Projection(tap, 8)):
        right = Strip()(source).value
        right.add_module("extra", part)
        with pytest.raises(InvariantError, match="still holds a part of the program: 'extra'"):
            Strip().ensures(source, right)
    student = nn.Sequential(source.program)
    assert isinstance(student[0], Program)
    with pytest.raises(InvariantError, match="still holds a part of the program: '0'"):
        Strip()(Trained(source.program, student))


def test_a_member_that_the_program_has_not_is_refused() -> None:
    source = trained()
    with pytest.raises(PassError, match="the program has no member 'pupil'"):
        PassManager().run(Strip(), Trained(source.program, source.module, "pupil"))
    with pytest.raises(PassError, match="the member 'teacher' was not trained"):
        PassManager().run(Strip(), Trained(source.program, source.module, "teacher"))

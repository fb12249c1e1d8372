"""Programs of more than two members: who is trained, who is frozen, what is shared."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.compiler.build import build, build_arm, specialize
from fxdistill.errors import PlanError
from fxdistill.ir.program import Program
from fxdistill.losses.kd import kd
from fxdistill.passes.instrument import Instrument, Joint
from fxdistill.passes.strip import Strip, Trained
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.training import Arm, LossTerm
from tests import tiny_models
from tests.tiny_models import CLASSES, SHAPE, awake, planned

BATCH = {"images": torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), "labels": torch.tensor([0, 3])}
OWN = LossTerm(loss="cross-entropy")


def plan_of(*losses: LossTerm, trains: tuple[str, ...] = ("student",), more: tuple[str, ...] = ("assistant",),
            pair: str = "teacher") -> Plan:  # fmt: skip
    """A plan with further members, an arm of one stage, and its pair between the student and a member."""
    plan = planned("body", "body", (2, 8, 8, 8), (2, 3, 8, 8))
    stage = plan.arms[0].stages[-1].changed(losses=list(losses))
    return plan.changed(
        members={**plan.members, **dict.fromkeys(more, plan.members["teacher"])},
        arms=[Arm(name="distilled", trains=list(trains), stages=[stage])],
        pairs=[plan.pairs[0].changed(teacher=plan.pairs[0].teacher.changed(member=pair))],
    )


def modules() -> dict[str, nn.Module]:
    """A student and two teachers; one of these was left in training mode."""
    return {
        "student": awake(tiny_models.plain(3), 1), "teacher": awake(tiny_models.residual(8), 2),
        "assistant": awake(tiny_models.dense(8).eval(), 3),
    }  # fmt: skip


def two_teachers() -> tuple[Program, dict[str, nn.Module]]:
    made = modules()
    both = (LossTerm(loss="kd", weight=0.5), LossTerm(loss="kd", teacher="assistant", weight=2.0))
    return build_arm(plan_of(OWN, *both, LossTerm(loss="mse", pair="pair")), "distilled", made), made


def test_a_student_learns_from_two_frozen_teachers() -> None:
    program, made = two_teachers()
    assert [(m.name, m.trained, m.training) for m in program.members] == [
        ("student", True, True), ("teacher", False, False), ("assistant", False, False),
    ]  # fmt: skip
    expected = {name: module.eval()(BATCH["images"]) for name, module in copy.deepcopy(made).items()}
    losses = program.eval()(BATCH)
    assert losses["kd"].item() == pytest.approx(kd(expected["student"], expected["teacher"]).item(), rel=1e-5)
    assert losses["kd#2"].item() == pytest.approx(kd(expected["student"], expected["assistant"]).item(), rel=1e-5)
    total = 0.5 * losses["kd"] + 2.0 * losses["kd#2"] + losses["cross-entropy"] + losses["mse[pair]"]
    assert program.total(losses).item() == pytest.approx(total.item(), rel=1e-6)
    assert set(program.outputs(BATCH).logits) == {"student", "teacher", "assistant"}


@pytest.mark.parametrize("cut", [False, True])
def test_frozen_members_stay_frozen_whatever_is_called(cut: bool) -> None:
    program, made = two_teachers()
    program = specialize(program, "main") if cut else program
    before = {name: copy.deepcopy(module.state_dict()) for name, module in made.items()}
    program.eval().train().requires_grad_(False).requires_grad_()
    for name in ("teacher", "assistant"):
        inside = program.get_submodule(name)
        assert not any(m.training for m in inside.modules())
        assert not any(p.requires_grad for p in inside.parameters())
    assert all(m.training for m in program.get_submodule("student").modules() if isinstance(m, nn.BatchNorm2d))
    optimizer = torch.optim.SGD([p for p in program.parameters() if p.requires_grad], 0.1)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(
        map(id, made["student"].parameters())
    )
    program.total(program(BATCH)).backward()
    optimizer.step()
    for name in ("teacher", "assistant"):
        state = made[name].state_dict()
        assert all(torch.equal(state[key], value) for key, value in before[name].items())
    assert not torch.equal(made["student"].state_dict()["head.weight"], before["student"]["head.weight"])
    assert made["teacher"].training  # the user's own mode, and its gradients
    assert all(p.requires_grad for p in made["teacher"].parameters())
    kept = {name for name in program.trainable_state() if not name.startswith("adapters.")}
    assert kept == {f"student.{name}" for name in before["student"]}


def test_a_member_of_a_longer_name_is_not_taken_for_another() -> None:
    """``student-2`` is frozen, ``student`` is not: names are compared whole."""
    made = {**modules(), "student-2": awake(tiny_models.plain(3), 7)}
    plan = plan_of(OWN, LossTerm(loss="kd", teacher="student-2"), more=("assistant", "student-2"))
    program = build_arm(plan, "distilled", made)
    assert [(m.name, m.trained) for m in program.members] == [("student", True), ("student-2", False)]
    assert all(name.startswith("student.") for name in program.trainable_state())
    program.total(program(BATCH)).backward()
    assert all(p.grad is None for p in made["student-2"].parameters())
    assert all(p.grad is not None for p in made["student"].parameters())


def test_build_wants_one_teacher() -> None:
    plan = plan_of(OWN, LossTerm(loss="kd"), LossTerm(loss="kd", teacher="assistant"))
    with pytest.raises(PlanError, match="has the members student, teacher, assistant, not one teacher") as caught:
        build(plan, modules()["teacher"], modules()["student"])
    assert "build_arm" in caught.value.hint


# Two that are trained


class Head(nn.Module):
    """A head of its own on a body that another member has as well."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


def sharing() -> tuple[Program, dict[str, nn.Module]]:
    """Two trained members over one body, each with a head, and a frozen teacher."""
    student = awake(tiny_models.plain(3), 1)
    twin = awake(Head(student.get_submodule("body"), 3), 4)
    made = {"student": student, "twin": twin, "teacher": awake(tiny_models.residual(8), 2)}
    terms = (OWN, LossTerm(loss="kd"), LossTerm(loss="cross-entropy", student="twin", weight=0.5))
    plan = plan_of(*terms, trains=("student", "twin"), more=("twin",))
    return build_arm(plan, "distilled", made), made


@pytest.mark.parametrize("cut", [False, True])
def test_two_trained_members_share_weights(cut: bool) -> None:
    program, made = sharing()
    program = specialize(program, "main") if cut else program
    trained = [p for p in program.parameters() if p.requires_grad]
    own = {id(p) for name in ("student", "twin") for p in made[name].parameters()}
    assert len(trained) == len(own)  # each once, so that an optimiser takes it
    assert {id(p) for p in trained} == own
    state = program.trainable_state()
    assert set(state) == {f"{name}.{key}" for name in ("student", "twin") for key in made[name].state_dict()}
    assert state["student.body.0.0.weight"].data_ptr() == state["twin.body.0.0.weight"].data_ptr()
    before = copy.deepcopy(made)
    program.total(program(BATCH)).backward()
    expected = copy.deepcopy(before)
    shared = expected["twin"]
    shared.body = expected["student"].get_submodule("body")
    answers = {name: expected[name](BATCH["images"]) for name in ("student", "twin")}
    known = expected["teacher"].eval()(BATCH["images"])
    by_hand = F.cross_entropy(answers["student"], BATCH["labels"]) + kd(answers["student"], known)
    (by_hand + 0.5 * F.cross_entropy(answers["twin"], BATCH["labels"])).backward()
    for name in ("student", "twin"):
        for (key, one), other in zip(made[name].named_parameters(), expected[name].parameters(), strict=True):
            assert one.grad is not None, key
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)
    program.eval()
    norms = [made[name].get_submodule("body.0.1") for name in ("student", "twin")]
    assert not any(norm.training for norm in norms)
    program.train()
    assert all(norm.training for norm in norms)


def test_each_trained_member_is_stripped() -> None:
    program, made = sharing()
    program.total(program(BATCH)).backward()
    torch.optim.SGD([p for p in program.parameters() if p.requires_grad], 0.1).step()
    stripped = {name: Strip()(Trained(program, made[name], name)).value for name in ("student", "twin")}
    for name, module in stripped.items():
        assert type(module) is type(made[name])
        assert torch.equal(module(BATCH["images"]), made[name].eval()(BATCH["images"]))
    assert not torch.equal(stripped["student"](BATCH["images"]), stripped["twin"](BATCH["images"]))


def test_members_that_share_move_together() -> None:
    program, made = sharing()
    program.double()
    batch = {**BATCH, "images": BATCH["images"].double()}
    running = made["twin"].get_buffer("body.0.1.running_mean")
    assert running.dtype == torch.float64
    assert made["student"].get_buffer("body.0.1.running_mean") is running
    before = running.clone()
    program(batch)
    assert not torch.equal(running, before)
    assert made["teacher"].get_parameter("head.weight").dtype == torch.float32  # a frozen one is a copy


def test_a_pair_whose_teacher_is_trained_too() -> None:
    """Mutual learning: both get gradients, each of what it imitates; nothing is folded away."""
    made = {"student": awake(tiny_models.plain(3), 1), "peer": awake(tiny_models.residual(8), 2)}
    terms = (LossTerm(loss="mse", pair="pair", teacher="peer"), LossTerm(loss="kd", student="peer", teacher="student"))
    plan = plan_of(*terms, trains=("student", "peer"), more=("peer",), pair="peer")
    program = build_arm(plan, "distilled", made)
    assert all(member.trained and member.training for member in program.members)
    copies = copy.deepcopy(made)
    taps: dict[str, Tensor] = {}
    for name, module in copies.items():
        module.get_submodule("body").register_forward_hook(lambda *call, name=name: taps.update({name: call[2]}))
    answers = {name: module(BATCH["images"]) for name, module in copies.items()}
    by_hand = F.mse_loss(taps["student"], taps["peer"][:, :3].detach()) + kd(
        answers["peer"], answers["student"].detach()
    )
    by_hand.backward()
    stage = specialize(program, "main")
    losses = stage(BATCH)
    assert stage.total(losses).item() == pytest.approx(by_hand.item(), rel=1e-5)
    stage.total(losses).backward()
    for name, module in made.items():
        assert all(one.grad is not None for one in module.get_submodule("body").parameters())
        for one, other in zip(module.parameters(), copies[name].parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)  # the student's head teaches, and learns nothing from it
            if one.grad is None:
                continue
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_trained_is_not_folded_or_narrowed(training: bool) -> None:
    """A stage that reads the peer's tap alone: of a frozen teacher the convolution would be cut and the norm folded."""
    made = {"student": awake(tiny_models.plain(3), 1), "peer": awake(tiny_models.plain(8), 2)}
    term = LossTerm(loss="mse", pair="pair", teacher="peer")
    plan = plan_of(term, trains=("student", "peer"), more=("peer",), pair="peer")
    traced = {name: Trace(SHAPE, training=training)(module).value for name, module in made.items()}
    program = Instrument(plan)(Joint(traced)).value
    copies = copy.deepcopy(made)
    taps = {name: module.train(training).get_submodule("body")(BATCH["images"]) for name, module in copies.items()}
    F.mse_loss(taps["student"], taps["peer"][:, :3].detach()).backward()  # who teaches learns nothing from it
    stage = specialize(program, "main")
    assert not any("_kept_" in str(node.target) or "_folded" in str(node.target) for node in stage.graph.nodes)
    stage.total(stage(BATCH)).backward()
    for name, module in made.items():
        inner = (one.get_submodule("body").parameters() for one in (module, copies[name]))
        for one, other in zip(*inner, strict=True):
            assert (one.grad is not None, other.grad is not None) == (name == "student", name == "student")
            if name == "student":
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_a_member_that_is_trained_in_eval_mode_keeps_its_statistics() -> None:
    """Traced in eval mode and trained: gradients, and norms that use what they have learned before."""
    made = {"student": awake(tiny_models.plain(3), 1), "teacher": awake(tiny_models.residual(8), 2)}
    traced = {name: Trace(SHAPE)(module).value for name, module in made.items()}
    program = Instrument(plan_of(OWN, LossTerm(loss="kd")))(Joint(traced)).value
    assert not any(member.training for member in program.members)
    before = copy.deepcopy(made["student"].state_dict())
    program.eval().train()
    norms = [m for m in made["student"].modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    program.total(program(BATCH)).backward()
    assert all(p.grad is not None for p in made["student"].parameters())
    assert all(torch.equal(value, before[key]) for key, value in made["student"].state_dict().items())


@pytest.mark.parametrize("name", ["train", "terms", "meta"])
def test_a_member_may_not_be_called_like_what_a_program_has(name: str) -> None:
    plan = plan_of(LossTerm(loss="kd", teacher=name), more=(name,))
    with pytest.raises(PlanError, match=f"a program cannot have a member '{name}'"):
        build_arm(plan, "distilled", {**modules(), name: modules()["assistant"]})

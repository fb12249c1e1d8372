"""Ports: what losses read, and losses that are built: trained along, in the checkpoint, gone at strip."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.compiler.build import build, specialize
from fxdistill.errors import PairingError, PlanError
from fxdistill.ir.program import Program
from fxdistill.losses import LOSSES
from fxdistill.passes.strip import Strip, Trained
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import DataPlan
from fxdistill.plan.training import LossTerm
from tests import tiny_models
from tests.plugins import Add
from tests.tiny_models import SHAPE, awake, planned, restaged, with_losses

BATCH = {
    "images": torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), "labels": torch.tensor([0, 3]),
    "index": torch.tensor([5, 2]),
}  # fmt: skip
HEAD = (
    "import torch\nfrom torch import nn\nfrom fxdistill.arguments import Arguments\nfrom fxdistill.losses import Loss\n"
)
DATA = DataPlan(spec=None, classes=list("abcde"), train_size=7)

SCALE = (
    HEAD
    + '''
class ScaleArguments(Arguments):
    first: float = 2.0

class Scale(nn.Module):
    """A learned scale of the student's tap, one a channel."""
    def __init__(self, context, arguments):
        super().__init__()
        Scale.context = context
        self.scale = nn.Parameter(torch.full((context.shapes["student.tap"][1], 1, 1), arguments.first))
    def forward(self, student, teacher):
        return (student * self.scale - teacher).square().mean()

LOSS = Loss(reads=("student.tap", "teacher.tap"), build=Scale, arguments=ScaleArguments)
'''
)
MEMORY = (
    HEAD
    + '''
class Memory(nn.Module):
    """Remembers the student's logits of every image, and compares with those of the last time."""
    def __init__(self, context, arguments):
        super().__init__()
        Memory.context = context
        self.register_buffer("bank", torch.zeros(context.train_size, context.classes))
    def forward(self, student, index):
        loss = (student - self.bank[index]).square().mean()
        self.bank[index] = student.detach().to(self.bank)
        return loss

LOSS = Loss(reads=("student.logits", "index"), build=Memory)
'''
)


def pair_of(
    plan: Plan, teacher: nn.Module | None = None, student: nn.Module | None = None
) -> tuple[Program, nn.Module]:
    student = student if student is not None else awake(tiny_models.plain(3), 2)
    return build(plan, teacher if teacher is not None else awake(tiny_models.residual(8), 1), student), student


def plan_with(*losses: LossTerm, **options: Any) -> Plan:
    plan = planned("body", "body", (2, 8, 8, 8), options.pop("student", (2, 3, 8, 8)), **options)
    return with_losses(plan, *losses, data=DATA)


def answers(*parts: nn.Module) -> list[Tensor]:
    return [copy.deepcopy(part)(BATCH["images"]) for part in parts]


# Pure functions


@pytest.mark.parametrize(
    ("reads", "code", "inputs"),
    [
        (("student.logits", "index"), "(student_logits.sum(1) * index).mean()", ("images", "index")),
        (("index", "student.logits"), "(student_logits.sum(1) * index).mean()", ("images", "index")),
        (("student.logits", "teacher.logits", "labels"),
         "(student_logits - teacher_logits).gather(1, labels[:, None]).square().mean()", ("images", "labels")),
        (("labels", "student.tap", "teacher.tap"),
         "((student_tap - teacher_tap).square().mean((1, 2, 3)) * labels).sum()", ("images", "labels")),
        (("student.tap", "teacher.logits"), "student_tap.mean() * teacher_logits.square().mean()", ("images",)),
        (("student.logits",), "student_logits.square().mean()", ("images",)),
    ],
)  # fmt: skip
def test_a_loss_gets_what_it_reads_in_its_order(
    add: Add, reads: tuple[str, ...], code: str, inputs: tuple[str, ...]
) -> None:
    names = ", ".join(port.replace(".", "_") for port in reads)
    add(
        LOSSES,
        "mixed",
        HEAD + f"def mixed({names}):\n    return {code}\n\nLOSS = Loss(reads={reads}, function=mixed)\n",
    )
    tapped = any(port.endswith(".tap") for port in reads)
    program, student = pair_of(plan_with(LossTerm(loss="mixed", pair="pair" if tapped else None)))
    key = "mixed[pair]" if tapped else "mixed"
    assert program.inputs == inputs
    teacher = awake(tiny_models.residual(8), 1).eval()
    seen: dict[str, Tensor] = {}
    copies = {"student": copy.deepcopy(student), "teacher": teacher}
    for name, module in copies.items():
        module.get_submodule("body").register_forward_hook(
            lambda *call, name=name: seen.update({name: call[2].clone()})
        )
    values = {f"{name}_logits": module(BATCH["images"]) for name, module in copies.items()}
    values |= {"student_tap": seen["student"], "teacher_tap": seen["teacher"][:, :3]}
    expected = eval(code, {}, {**values, **BATCH})
    wanted = {field: BATCH[field] for field in inputs}
    assert program(wanted)[key].item() == pytest.approx(expected.item(), rel=1e-4)
    stage = specialize(program, "main")
    assert stage.inputs == inputs
    assert stage(wanted)[key].item() == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(KeyError, match=inputs[-1]):
        program({field: BATCH[field] for field in inputs[:-1]})


def test_a_loss_of_one_role_needs_no_other_member(add: Add) -> None:
    add(LOSSES, "small", HEAD + "LOSS = Loss(reads=('student.logits',), function=lambda s: s.square().mean())\n")
    plan = plan_with(LossTerm(loss="small"))
    program, student = pair_of(plan)
    assert [member.name for member in program.members] == ["student"]
    assert program(BATCH)["small"].item() == pytest.approx(answers(student)[0].square().mean().item(), rel=1e-5)


def test_a_loss_without_any_function_is_named(add: Add) -> None:
    add(LOSSES, "nothing", HEAD + "LOSS = Loss(reads=('student.logits',), build=lambda context, arguments: None)\n")
    with pytest.raises(PlanError, match="the loss 'nothing' built a NoneType, which cannot be called"):
        pair_of(plan_with(LossTerm(loss="nothing")))


@pytest.mark.parametrize("form", ["closure", "partial", "callable object", "bound method"])
@pytest.mark.parametrize("build", [True, False])
def test_what_computes_a_loss_may_be_any_callable(add: Add, form: str, *, build: bool) -> None:
    source = (
        HEAD
        + f'''
import functools

def weighted(student, labels, *, weight):
    return nn.functional.cross_entropy(student, labels, weight=weight)

class Callable:
    def __init__(self, weight): self.weight = weight
    def __call__(self, student, labels): return weighted(student, labels, weight=self.weight)

def build(context, arguments):
    weight = torch.arange(1.0, 6.0)
    if "{form}" == "partial":
        return functools.partial(weighted, weight=weight)
    if "{form}" == "closure":
        return lambda student, labels: weighted(student, labels, weight=weight)
    return Callable(weight) if "{form}" == "callable object" else Callable(weight).__call__

LOSS = Loss(reads=("student.logits", "labels"), {"build=build" if build else "function=build(None, None)"})
'''
    )
    add(LOSSES, "weighted", source)
    program, student = pair_of(plan_with(LossTerm(loss="weighted"), LossTerm(loss="kd")))
    expected = F.cross_entropy(answers(student)[0], BATCH["labels"], weight=torch.arange(1.0, 6.0))
    for one in (program, specialize(program, "main"), copy.deepcopy(program)):
        assert one(BATCH)["weighted"].item() == pytest.approx(expected.item(), rel=1e-4)


# Losses with parameters


def test_a_loss_with_parameters_is_trained_along_and_gone_at_strip(add: Add) -> None:
    add(LOSSES, "scale", SCALE)
    program, student = pair_of(plan_with(LossTerm(loss="scale", pair="pair", args={"first": 3.0}), LossTerm(loss="kd")))
    name = "losses.scale_pair_.scale"
    assert [key for key in program.trainable_state() if key.startswith("losses.")] == [name]
    scale = program.get_parameter(name)
    assert scale.shape == (3, 1, 1)
    assert torch.equal(scale, torch.full((3, 1, 1), 3.0))
    assert program.requires_grad_().get_parameter(name).requires_grad
    stage = specialize(program, "main")
    assert stage.get_parameter(name) is scale
    trained = [p for p in stage.parameters() if p.requires_grad]
    assert len(trained) == len(list(student.parameters())) + 1
    stage.total(stage(BATCH)).backward()
    torch.optim.SGD(trained, 0.1).step()
    assert not torch.equal(scale, torch.full((3, 1, 1), 3.0))
    stripped = Strip()(Trained(program, student)).value
    assert set(stripped.state_dict()) == set(tiny_models.plain(3).state_dict())
    assert sum(p.numel() for p in stripped.parameters()) == sum(p.numel() for p in tiny_models.plain(3).parameters())


def test_its_value_and_gradient_are_those_of_the_formula(add: Add) -> None:
    add(LOSSES, "scale", SCALE)
    program, student = pair_of(plan_with(LossTerm(loss="scale", pair="pair")))
    program.eval()
    taps = program.outputs(BATCH).taps["pair"]
    value = program(BATCH)["scale[pair]"]
    assert value.item() == pytest.approx((2 * taps["student"] - taps["teacher"]).square().mean().item(), rel=1e-6)
    value.backward()
    by_hand = ((2 * taps["student"] - taps["teacher"]) * taps["student"]).mean((0, 2, 3)) * 2 / 3
    gradient = program.get_parameter("losses.scale_pair_.scale").grad
    assert gradient is not None
    torch.testing.assert_close(gradient.flatten(), by_hand.detach(), rtol=1e-4, atol=1e-6)
    assert all(p.grad is not None for n, p in student.named_parameters() if not n.startswith("head"))


def test_it_keeps_its_state_between_stages_and_in_a_checkpoint(add: Add) -> None:
    add(LOSSES, "scale", SCALE)
    plan = plan_with(LossTerm(loss="scale", pair="pair"))
    stage = plan.arms[0].stages[0]
    heavier = stage.losses[0].changed(weight=0.25)  # the same loss: one module
    other = stage.losses[0].changed(args={"first": 5.0})  # another one
    plan = restaged(plan, stage.changed(name="one"), stage.changed(name="two", losses=[heavier, other]))
    program, _ = pair_of(plan)
    assert [term.key for term in program.terms] == ["scale[pair]", "scale[pair]#2"]
    names = [name for name in program.trainable_state() if name.startswith("losses.")]
    assert len(names) == 2
    one, two = specialize(program, "one"), specialize(program, "two")
    assert [name for name in one.trainable_state() if name.startswith("losses.")] == names[:1]
    optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], 0.5)
    one.total(one(BATCH)).backward()
    optimizer.step()
    learned = one.get_parameter(names[0]).detach().clone()
    assert not torch.equal(learned, torch.full((3, 1, 1), 2.0))
    assert torch.equal(two.get_parameter(names[0]), learned)
    assert torch.equal(two.get_parameter(names[1]), torch.full((3, 1, 1), 5.0))
    state = copy.deepcopy(program.trainable_state())
    fresh, _ = pair_of(plan)
    assert not fresh.load_state_dict(state, strict=False).unexpected_keys
    for key, value in program.eval()(BATCH).items():
        assert fresh.eval()(BATCH)[key].item() == pytest.approx(value.item(), rel=1e-6)


def test_first_weights_come_from_torchs_seed(add: Add) -> None:
    add(LOSSES, "scale", SCALE.replace("torch.full((context.shapes[\"student.tap\"][1], 1, 1), arguments.first)",
                                       "torch.randn(context.shapes[\"student.tap\"][1], 1, 1)"))  # fmt: skip
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        program, _ = pair_of(plan_with(LossTerm(loss="scale", pair="pair")))
        found.append(program.get_parameter("losses.scale_pair_.scale").detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("what", ["double", "compile", "deepcopy"])
def test_it_goes_where_the_program_goes(add: Add, what: str) -> None:
    add(LOSSES, "scale", SCALE)
    program, _ = pair_of(plan_with(LossTerm(loss="scale", pair="pair")))
    program.eval()
    expected = program(BATCH)["scale[pair]"].item()
    if what == "double":
        program.double()
        assert program.get_parameter("losses.scale_pair_.scale").dtype == torch.float64
        found = program({**BATCH, "images": BATCH["images"].double()})
    elif what == "compile":
        found = torch.compile(program, fullgraph=True, backend="aot_eager")(BATCH)
    else:
        twin = copy.deepcopy(program)
        with torch.no_grad():
            program.get_parameter("losses.scale_pair_.scale").zero_()
        found = twin(BATCH)
    assert found["scale[pair]"].item() == pytest.approx(expected, rel=1e-4)


# The context


@pytest.mark.parametrize(
    ("student", "align", "shapes"),
    [
        (tiny_models.plain(3), "slice", ((2, 3, 8, 8), (2, 3, 8, 8))),
        (tiny_models.dense(4), "slice", ((2, 4, 4, 4), (2, 4, 4, 4))),  # pooled to the smaller
        (tiny_models.plain(3), "project", ((2, 8, 8, 8), (2, 8, 8, 8))),
        (tiny_models.dense(4), "project", ((2, 8, 4, 4), (2, 8, 4, 4))),
    ],
)
def test_its_context_has_the_shapes_that_it_gets(
    add: Add, student: nn.Module, align: Any, shapes: tuple[Any, Any]
) -> None:
    add(LOSSES, "scale", SCALE)
    width = 4 if isinstance(student.get_submodule("body"), tiny_models.Body) else 3
    own = (2, width, 4, 4) if width == 4 else (2, width, 8, 8)
    program, _ = pair_of(plan_with(LossTerm(loss="scale", pair="pair"), student=own, align=align), student=student)
    context = type(program.get_submodule("losses.scale_pair_")).context  # type: ignore[attr-defined]
    assert (context.shapes["student.tap"], context.shapes["teacher.tap"]) == shapes
    assert (context.classes, context.train_size) == (5, 7)
    taps = program.outputs(BATCH).taps["pair"]
    assert (taps["student"].shape, taps["teacher"].shape) == shapes


# Losses with a memory


def test_a_memory_is_kept_by_image(add: Add) -> None:
    add(LOSSES, "memory", MEMORY)
    program, student = pair_of(plan_with(LossTerm(loss="memory"), LossTerm(loss="kd")))
    assert program.get_buffer("losses.memory.bank").shape == (7, 5)
    context = type(program.get_submodule("losses.memory")).context  # type: ignore[attr-defined]
    assert context.shapes["student.logits"] == (2, 5)
    program.eval()
    stage = specialize(program, "main")
    logits = student.eval()(BATCH["images"])
    first = stage(BATCH)["memory"]
    assert first.item() == pytest.approx(logits.square().mean().item(), rel=1e-5)
    first.backward()
    bank = program.trainable_state()["losses.memory.bank"]
    torch.testing.assert_close(bank[[5, 2]], logits.detach())
    assert not bank[[0, 1, 3, 4, 6]].any()
    assert stage(BATCH)["memory"].item() == pytest.approx(0, abs=1e-10)
    assert program(BATCH)["memory"].item() == pytest.approx(0, abs=1e-10)  # one memory for all
    again, _ = pair_of(plan_with(LossTerm(loss="memory"), LossTerm(loss="kd")))
    again.load_state_dict(program.trainable_state(), strict=False)
    assert again.eval()(BATCH)["memory"].item() == pytest.approx(0, abs=1e-10)


def test_building_a_program_leaves_a_memory_empty(add: Add) -> None:
    """The checks of the passes run the members, and no loss."""
    add(LOSSES, "memory", MEMORY)
    program, _ = pair_of(plan_with(LossTerm(loss="memory")))
    specialize(program, "main")
    assert not program.get_buffer("losses.memory.bank").any()


# Errors


def test_answers_that_are_compared_have_one_shape(add: Add) -> None:
    teacher = awake(tiny_models.residual(8), 1)
    teacher.head = nn.Linear(8, 7)
    with pytest.raises(PairingError, match=r"the teacher answers with shape \(7,\) an image, the student with \(5,\)"):
        pair_of(plan_with(LossTerm(loss="kd")), teacher)
    program, _ = pair_of(plan_with(LossTerm(loss="mse", pair="pair")), teacher)  # features may be compared
    assert program(BATCH)["mse[pair]"].isfinite()


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"loss": "mse"}, "the loss 'mse' needs a pair"),
        ({"loss": "kd", "pair": "pair"}, "the loss 'kd' needs no pair"),
        ({"loss": "cross-entropy", "teacher": "teacher"}, "the loss 'cross-entropy' reads nothing of a teacher"),
        ({"loss": "kd", "args": {"temprature": 1.0}}, "has no argument 'temprature'; did you mean 'temperature'"),
        ({"loss": "kd", "args": {"temperature": 0.0}}, "the loss 'kd', temperature = 0.0"),
        ({"loss": "kd", "args": {"temperature": float("nan")}}, "the loss 'kd', temperature = nan"),
        ({"loss": "mse", "pair": "pair", "args": {"eps": 1}}, "the loss 'mse' has no argument 'eps'; there are none"),
        ({"loss": "kdd"}, "there is no loss named 'kdd'; did you mean 'kd'"),
    ],
)
def test_a_term_that_its_loss_does_not_take(term: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossTerm(**term)


def test_a_term_spells_out_what_its_loss_says() -> None:
    assert LossTerm(loss="kd").model_dump() == {
        "loss": "kd", "pair": None, "student": "student", "teacher": "teacher", "weight": 1.0,
        "compare": "raw", "decay": 1.0, "args": {"temperature": 4.0},
    }  # fmt: skip
    assert LossTerm(loss="cross-entropy").members == ("student",)
    assert LossTerm(loss="mse", pair="a").name == "mse[a]"

"""What the compiler has to say about two models beside what its passes say: about what they answer, and what learns."""

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir import answers, outputs, reach
from fxdistill.ir.graph import Traced, shape_of
from fxdistill.ir.program import Program
from fxdistill.losses import LOSSES
from fxdistill.methods import Composed
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import Shrunken
from fxdistill.plan.training import LossTerm
from fxdistill.tasks import Task

_MOST = 6
"""Names in one remark."""


def several_outputs(traced: Mapping[str, Traced]) -> Iterator[Diagnostic]:
    """A remark where a model has several outputs without names, and nobody said which one is the prediction."""
    for name, one in traced.items():
        found = list(outputs.entries(one.output_value))
        if len(found) > 1 and not one.entry and all(place.isdecimal() for place, _ in found):
            yield Diagnostic(
                code="which-output", severity="warning", where=name,
                why=f"it returns {len(found)} values; the first is taken for the prediction",
                hint=f"if it is another one, name it: --{name}-output 1",
            )  # fmt: skip


def not_logits(plan: Plan, traced: Mapping[str, Traced]) -> Iterator[Diagnostic]:
    """A warning for each member whose probabilities a loss takes for logits.

    Args:
        plan: Its losses count.
        traced: The members, each in the mode in which the losses read it.
    """
    softened = {
        getattr(term, role)
        for arm in plan.all_arms
        for stage in arm.stages
        for term in stage.losses
        for role in _softened(term)
    }
    made = {name: member.of for name, member in plan.members.items() if isinstance(member, Shrunken)}
    for name in dict.fromkeys(made.get(member, member) for member in plan.members if member in softened):
        found = answers.origin(traced[name])
        if found is not None and found.kind == "probabilities":
            entry = answers.logits_entry(traced[name])
            yield Diagnostic(
                code="probabilities", severity="warning", where=name,
                why=f"its prediction comes out of a {found.operation} ('{found.path}'), so it holds probabilities; the "
                "losses take them for logits, of which the softmax hardly differs from class to class",
                hint=f"name the output that holds logits: --{name}-output {entry}" if entry
                else "build the model so that it ends with logits; it needs no other weights",
            )  # fmt: skip


def same_answers(teacher: Traced, student: Traced) -> bool:
    """Whether two predictions have one shape an image."""
    return _answer(teacher) == _answer(student)


def _answer(traced: Traced) -> tuple[int, ...]:
    return (shape_of(traced.output) or ())[1:]


def other_classes(member: str, teacher: Traced, student: Traced, method: Composed) -> Diagnostic:
    """A remark where predictions are not compared, because they are about different things."""
    left_out = "distillation of the predictions is left out, " if method.assumed else ""
    return Diagnostic(
        code="other-classes", severity="warning" if method.assumed else "note", where=member,
        why=f"it answers with shape {_answer(teacher)} an image, the student with {_answer(student)}: {left_out}the "
        f"method is {method.name}, and of the {member} only layers are learnt",
        hint="if both should have the same classes, check num_classes of the factories",
    )  # fmt: skip


def takes_logits(task: Task) -> bool:
    """Whether predictions of a task have to be logits, of which losses take the softmax, or the sigmoid, themselves."""
    return any(LOSSES.get(loss).of_logits for loss in (task.supervised, task.imitation) if loss is not None)


def _softened(term: LossTerm) -> Iterator[str]:
    """The roles whose predictions a loss takes for logits."""
    loss = LOSSES.get(term.loss)
    return iter(loss.predicting if loss.of_logits else ())


def untaught(
    member: str, module: nn.Module, programs: Iterable[Program], predicts: Traced
) -> Iterator[Diagnostic]:  # fmt: skip
    """What of a trained member no loss of any stage reaches, and what of it is frozen.

    Args:
        member: The member's name.
        module: Its module.
        programs: The programs of all stages in which it is trained.
        predicts: The member in eval mode: what its prediction reads counts more.
    """
    taught: set[int] = set()
    for program in programs:
        taught |= reach.reached(program, program.graph, program.nodes("loss"))
    parameters = {id(parameter): parameter for parameter in module.parameters()}
    frozen = {key for key, parameter in parameters.items() if not parameter.requires_grad}
    missed = set(parameters) - taught - frozen
    used = reach.reached(predicts.module, predicts.graph, [predicts.output], by_gradients=False)
    if harmful := reach.gathered(module, missed & used):
        yield Diagnostic(
            code="not-taught", severity="warning", where=member,
            why=f"no loss reaches {_listed(harmful)}, which the prediction reads: what is there stays as it is, random "
            "in a new model", hint="train with a loss that reaches it, or build the model without it",
        )  # fmt: skip
    if idle := reach.gathered(module, missed - used):
        yield Diagnostic(
            code="not-taught", severity="note", where=member,
            why=f"no loss reaches {_listed(idle)}, and the prediction does not read it",
        )  # fmt: skip
    if held := reach.gathered(module, frozen):
        yield Diagnostic(
            code="frozen-parameters", severity="note", where=member,
            why=f"{_listed(held)} is not trained: requires_grad is off",
        )  # fmt: skip


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(f"'{name}'" for name in names[:_MOST]) + more

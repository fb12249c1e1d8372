"""The program: one FX graph that holds teacher, student, taps, adapters and losses.

    (x, y) ──▶ teacher ──▶ tap ─▶ slice ─┐
      │                                  ├─▶ loss ──▶ {"mse[layer1]": …, "kd": …}
      └──────▶ student ──▶ tap ─▶ adapt ─┘

A program is an ``nn.Module``: calling it on a batch of images ``x`` (as the plan's input) and labels ``y`` (int64, one an
image) returns the named losses, unweighted scalars. Its student's parameters are the user's own tensors. The teacher is
frozen and stays in eval mode whatever is called on the program. Each node's ``meta["role"]`` says what it is.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import PlanError
from fxdistill.graph import macs_of
from fxdistill.plan import LossTerm, Stage

Role = Literal["input", "teacher", "student", "tap", "adapter", "loss"]


def tap(value: Tensor, name: str) -> Tensor:
    """A tap: the value itself. Its node marks where a graph is read, and ``name`` says for which pair."""
    del name
    return value


def tap_copy(value: Tensor, name: str) -> Tensor:
    """A tap on a value that a later node overwrites in place: a copy, taken before."""
    del name
    return value.clone()


@dataclass(frozen=True)
class Term:
    """A loss of the program: the plan's term, and the key under which its value is returned."""

    key: str
    loss: LossTerm


class Program(fx.GraphModule):
    """See the module docstring. Made by the passes ``instrument`` and ``specialize``.

    Attributes:
        stages: The plan's stages that this program can be cut down to; the one stage after specialization.
        terms: The losses that are computed.
    """

    stages: tuple[Stage, ...]
    terms: tuple[Term, ...]

    @classmethod
    def assemble(cls, root: nn.Module, graph: fx.Graph, *, stages: tuple[Stage, ...], terms: tuple[Term, ...]) -> Self:
        """A program from a module that owns all targets of the graph; tensors are shared, not copied."""
        graph.lint()
        program = cls(root, graph, "Program")
        program.stages, program.terms = stages, terms
        program.freeze_teacher()
        return program

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # the signature of nn.Module
        """Set the mode of student and adapters; the teacher stays in eval mode."""
        super().train(mode)
        return self.freeze_teacher()

    def freeze_teacher(self) -> Self:
        """Teacher in eval mode, without gradients."""
        teacher = getattr(self, "teacher", None)
        if isinstance(teacher, nn.Module):
            teacher.eval().requires_grad_(False)  # noqa: FBT003  # torch's signature
        return self

    def stage(self, name: str) -> "Program":
        """The program of one stage: only its losses, and only what they need.

        Raises:
            PlanError: There is no such stage.
        """
        from fxdistill.passes.specialize import Specialize  # noqa: PLC0415  # nouns do not import verbs at load time

        self.find_stage(name)
        return Specialize(stage=name)(self).value

    def find_stage(self, name: str) -> Stage:
        """A stage by name.

        Raises:
            PlanError: There is no such stage; lists those that there are.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise PlanError(f"no stage is named '{name}'", where=name, hint=f"the stages are: {known}")

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of a stage's losses: sum over terms of weight times value, a scalar."""
        return torch.stack([term.loss.weight * losses[term.key] for term in self.terms]).sum()

    def nodes(self, role: Role) -> list[fx.Node]:
        """The nodes of one role, in order."""
        return [node for node in self.graph.nodes if node.meta.get("role") == role]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of teacher and student in one forward pass at the planned batch size."""
        return sum(macs_of(node) for node in self.graph.nodes)


def inline(
    graph: fx.Graph, source: fx.Graph, arguments: dict[fx.Node, fx.Node], *, role: Role
) -> dict[fx.Node, fx.Node]:
    """Copy a model's nodes into a graph, its targets below ``role``; returns old node to new node.

    Args:
        graph: Where to copy to.
        source: The model's graph.
        arguments: What stands for its placeholders.
        role: ``teacher`` or ``student``.
    """
    new: dict[fx.Node, fx.Node] = dict(arguments)
    for node in source.nodes:
        if node.op in ("placeholder", "output"):
            continue
        target: Any = f"{role}.{node.target}" if node.op in ("call_module", "get_attr") else node.target
        copied = graph.create_node(
            node.op, target, fx.node.map_arg(node.args, new.__getitem__),
            fx.node.map_arg(node.kwargs, new.__getitem__), name=f"{role}_{node.name}",
        )  # fmt: skip
        copied.meta = {k: v for k, v in node.meta.items() if k in ("shape", "macs", "path", "scope")} | {"role": role}
        new[node] = copied
    return new

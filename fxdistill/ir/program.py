"""The program: one FX graph that holds teacher, student, taps, adapters and losses.

    (x, y) ──▶ teacher ──▶ tap ─▶ slice ─┐
      │                                  ├─▶ loss ──▶ {"mse[layer1]": …, "kd": …}
      └──────▶ student ──▶ tap ─▶ adapt ─┘

A program is an ``nn.Module``: calling it on a batch of images ``x`` (as the plan's input) and labels ``y`` (int64, one
an image) returns the named losses, unweighted scalars.

Its student **is** the user's module: the same layers over the same tensors, so that training, modes and moves to a
device are common to both. Its teacher is a frozen copy of the user's, over the same weights until it is moved; it
stays in eval mode and without gradients whatever is called on the program. A node's ``meta["role"]`` says what it is.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import InvariantError, PlanError
from fxdistill.ir.graph import macs_of
from fxdistill.plan.schema import LossTerm, Stage

_FACTS = ("shape", "macs", "path", "scope", "writes", "shares")

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
    """See the module docstring. Made by the passes ``instrument`` and ``specialize``."""

    @classmethod
    def assemble(cls, root: nn.Module, graph: fx.Graph, *, stages: tuple[Stage, ...], terms: tuple[Term, ...]) -> Self:
        """A program from a module that owns all targets of the graph; tensors are shared, not copied."""
        graph.lint()
        program = cls(root, graph, "Program")
        program.meta |= {"stages": stages, "terms": terms}  # torch.fx copies what is in meta, and nothing else
        program.freeze_teacher()
        return program

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The plan's stages that this program can be cut down to; the one stage after specialization."""
        stages: tuple[Stage, ...] = self.meta["stages"]
        return stages

    @property
    def terms(self) -> tuple[Term, ...]:
        """The losses that are computed."""
        terms: tuple[Term, ...] = self.meta["terms"]
        return terms

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

    def requires_grad_(self, requires_grad: bool = True) -> Self:  # noqa: FBT001, FBT002  # the signature of nn.Module
        """Set for student and adapters whether they get gradients; the teacher gets none."""
        super().requires_grad_(requires_grad)
        return self.freeze_teacher()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  # as nn.Module
        """Move or convert: what ``to``, ``cuda``, ``double`` … call.

        ``nn.Module`` keeps parameters what they are and replaces buffers. Buffers stay what they are as well, so that
        running statistics remain common to the program and the user's module.
        """
        places = [(m, name, b) for m in self.modules() for name, b in m.named_buffers(recurse=False)]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, buffer in places:
            moved = getattr(module, name)
            if moved is not buffer:
                buffer.data = moved.data
                setattr(module, name, buffer)
        return self

    def __copy__(self) -> "Program":
        """Another program over the same tensors."""
        twin = Program.assemble(self, copy.deepcopy(self.graph), stages=self.stages, terms=self.terms)
        twin.meta |= self.meta
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle modules and graph with what its nodes mean; ``fx.GraphModule`` would trace its own code anew."""
        root = nn.Module()
        for name, child in self.named_children():
            root.add_module(name, child)
        graph = copy.deepcopy(self.graph)  # one that does not refer back to this module
        return _restored, (root, graph, dict(self.meta), self.training)

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


def _restored(root: nn.Module, graph: fx.Graph, meta: dict[str, Any], training: bool) -> Program:  # noqa: FBT001
    program = Program.assemble(root, graph, stages=meta["stages"], terms=meta["terms"])
    program.meta |= meta
    program.training = training
    return program


def inline(
    graph: fx.Graph, source: fx.Graph, arguments: dict[fx.Node, fx.Node], *, role: Role
) -> dict[fx.Node, fx.Node]:
    """Copy a model's nodes into a graph, its targets below ``role``; returns old node to new node.

    Args:
        graph: Where to copy to.
        source: The model's graph.
        arguments: What stands for its placeholders.
        role: ``teacher`` or ``student``.

    Raises:
        InvariantError: The source has a placeholder that nothing stands for.
    """
    new: dict[fx.Node, fx.Node] = dict(arguments)
    for node in source.nodes:
        if node.op == "placeholder" and node not in arguments:
            raise InvariantError(f"nothing stands for the input '{node.target}'", where=role)
        if node.op in ("placeholder", "output"):
            continue
        target: Any = f"{role}.{node.target}" if node.op in ("call_module", "get_attr") else node.target
        copied = graph.create_node(
            node.op, target, fx.node.map_arg(node.args, new.__getitem__),
            fx.node.map_arg(node.kwargs, new.__getitem__), name=f"{role}_{node.name}",
        )  # fmt: skip
        copied.meta = {k: v for k, v in node.meta.items() if k in _FACTS} | {"role": role}
        new[node] = copied
    return new

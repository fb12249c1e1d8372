"""The program: one FX graph that holds members, taps, adapters and losses.

    batch ─▶ images ─┬─ view ─▶ teacher ──▶ tap ─▶ slice ─┐
                     │                                    ├─▶ loss ──▶ {"mse[layer1]": …, "kd": …}
                     └─ view ─▶ student ──▶ tap ─▶ adapt ─┘

A program is an ``nn.Module``: calling it on a batch, a mapping from the names of fields (``images`` as the plan's
input, pixels in 0 … 1; ``labels``, ``index`` …) to tensors, returns the named losses, unweighted scalars.
:attr:`Program.inputs` says which fields it reads.

A member that is trained **is** the user's module: the same layers over the same tensors, so that training, modes and
moves to a device are common to both. A frozen one is a copy of the user's, over the same weights until it is moved; it
keeps its mode and gets no gradients whatever is called on the program. A node's ``meta["role"]`` says what it is, and
``meta["member"]`` whose.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import InvariantError, PlanError
from fxdistill.ir.graph import macs_of
from fxdistill.ir.running import hold, whole_state
from fxdistill.plan.training import LossTerm, Stage
from fxdistill.preprocessing import PLAIN, View

_FACTS = ("shape", "macs", "path", "scope", "writes", "shares")

Role = Literal["input", "view", "model", "tap", "adapter", "loss"]
Batch = Mapping[str, Tensor]


def tap(value: Tensor, name: str) -> Tensor:
    """A tap: the value itself. Its node marks where a graph is read, and ``name`` says for which pair."""
    del name
    return value


def tap_copy(value: Tensor, name: str) -> Tensor:
    """A tap on a value that a later node overwrites in place: a copy, taken before."""
    del name
    return value.clone()


@dataclass(frozen=True)
class Member:
    """A model in a program.

    Attributes:
        name: Its name, and that of the submodule that holds it.
        trained: Whether its parameters are trained; else it is frozen.
        training: The mode that it is in: a frozen member always, a trained one while the program trains.
        view: How it looks at the batch's images: its share of the preprocessing, as nodes in front of it.
        held: Its modules that are in eval mode whatever mode it is in.
    """

    name: str
    trained: bool
    training: bool
    view: View = PLAIN
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    """A loss of the program: the plan's term, and the key under which its value is returned."""

    key: str
    loss: LossTerm


@dataclass(frozen=True)
class Outputs:
    """What a program computes for one batch.

    Attributes:
        losses: The named losses, unweighted scalars.
        logits: The prediction of each member, as far as a loss reads it.
        taps: For each pair the two values that its losses compare, brought to one shape, by role.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    taps: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def of_role(graph: fx.Graph, role: Role) -> list[fx.Node]:
    """The nodes of one role in a program's graph, in order."""
    return [node for node in graph.nodes if node.meta.get("role") == role]


def fields(graph: fx.Graph) -> tuple[str, ...]:
    """The fields of a batch that a program's graph reads."""
    return tuple(str(node.args[1]) for node in of_role(graph, "input") if node.target is operator.getitem)


class Program(fx.GraphModule):
    """See the module docstring. Made by the passes ``instrument`` and ``specialize``."""

    @classmethod
    def assemble(
        cls, root: nn.Module, graph: fx.Graph, *, members: tuple[Member, ...], stages: tuple[Stage, ...],
        terms: tuple[Term, ...],
    ) -> Self:  # fmt: skip
        """A program from a module that owns all targets of the graph; tensors are shared, not copied."""
        graph.lint()
        program = cls(root, graph, "Program")
        # torch.fx copies what is in meta, and nothing else
        program.meta |= {"members": members, "stages": stages, "terms": terms}
        program.settle()
        return program

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, those that have no part in it any more as well."""
        members: tuple[Member, ...] = self.meta["members"]
        return members

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

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields of a batch that it reads."""
        return fields(self.graph)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # the signature of nn.Module
        """Set the mode of trained members, adapters and losses; a frozen member stays in its own."""
        super().train(mode)
        return self.settle()

    def settle(self) -> Self:
        """Frozen members in their own mode, without gradients; trained ones that are traced in eval mode in that."""
        for member, module in self._inside():
            if not member.trained:
                module.train(member.training).requires_grad_(False)  # noqa: FBT003  # torch's signature
            elif not member.training:
                module.eval()
            else:
                hold(module, member.held)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:  # noqa: FBT001, FBT002  # the signature of nn.Module
        """Set whether trained members, adapters and losses get gradients; frozen members get none."""
        super().requires_grad_(requires_grad)
        return self.settle()

    def _inside(self) -> Iterator[tuple[Member, nn.Module]]:
        """The members that have a part in the program, with their modules."""
        for member in self.meta.get("members", ()):
            module = self._modules.get(member.name)
            if module is not None:
                yield member, module

    def is_frozen(self, name: str) -> bool:
        """Whether a parameter or buffer, by its name in the program, belongs to a frozen member."""
        owner = name.partition(".")[0]
        return any(member.name == owner and not member.trained for member in self.members)

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: trained members, adapters and losses, by name, without the frozen members."""
        return {name: tensor for name, tensor in whole_state(self).items() if not self.is_frozen(name)}

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
        return self.with_graph(copy.deepcopy(self.graph))

    def with_graph(
        self, graph: fx.Graph, *, stages: tuple[Stage, ...] | None = None, terms: tuple[Term, ...] | None = None
    ) -> "Program":
        """A program with another graph over the same modules and tensors; it has the same mode."""
        made = Program.assemble(
            self, graph, members=self.members, stages=self.stages if stages is None else stages,
            terms=self.terms if terms is None else terms,
        )  # fmt: skip
        made.meta = {**self.meta, **made.meta}
        made.training = self.training
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle modules and graph with what its nodes mean; ``fx.GraphModule`` would trace its own code anew."""
        root = nn.Module()
        for name, child in self.named_children():
            root.add_module(name, child)
        graph = copy.deepcopy(self.graph)  # one that does not refer back to this module
        return _restored, (root, graph, dict(self.meta), self.training)

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

    def total(self, losses: Mapping[str, Tensor], epoch: int = 0) -> Tensor:
        """The weighted sum of a stage's losses in one of its epochs, a scalar.

        The sum over terms of weight * decay ** epoch times value; the first epoch is 0.
        """
        return torch.stack([t.loss.weight * t.loss.decay**epoch * losses[t.key] for t in self.terms]).sum()

    def outputs(self, batch: Batch) -> Outputs:
        """Losses, predictions and taps for one batch, so that a term of one's own can be added to the losses.

        Args:
            batch: The fields that :attr:`inputs` names.
        """
        values: Outputs = self._with_outputs()(batch)
        return values

    def _with_outputs(self) -> fx.GraphModule:
        found: fx.GraphModule | None = self.__dict__.get("_outputs_graph")  # no submodule: it holds what we hold
        if found is None:
            graph = fx.Graph()
            new: dict[fx.Node, fx.Node] = {}
            for node in self.graph.nodes:
                if node.op != "output":
                    new[node] = graph.node_copy(node, new.__getitem__)
            made = graph.call_function(Outputs, kwargs=fx.map_arg(self._read(), new.__getitem__))
            graph.output(made)
            found = self.__dict__["_outputs_graph"] = fx.GraphModule(self, graph)
        return found

    def _read(self) -> dict[str, Any]:
        """The nodes whose values :class:`Outputs` holds."""
        losses, logits, taps = {}, dict[str, fx.Node](), dict[str, dict[str, fx.Node]]()
        by_key = {term.key: term.loss for term in self.terms}
        for node in self.nodes("loss"):
            term = by_key[node.meta["key"]]
            losses[node.meta["key"]] = node
            for port, value in zip(node.meta["reads"], _nodes(node.args), strict=True):
                role, _, kind = port.partition(".")
                if kind == "tap":
                    taps.setdefault(str(term.pair), {})[role] = value
                elif kind == "logits":
                    logits[str(getattr(term, role))] = value
        return {"losses": losses, "logits": logits, "taps": taps}

    def nodes(self, role: Role) -> list[fx.Node]:
        """The nodes of one role, in order."""
        return of_role(self.graph, role)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all members in one forward pass at the planned batch size."""
        return sum(macs_of(node) for node in self.graph.nodes)


def _nodes(values: Iterable[object]) -> Iterator[fx.Node]:
    return (value for value in values if isinstance(value, fx.Node))


def _restored(root: nn.Module, graph: fx.Graph, meta: dict[str, Any], training: bool) -> Program:  # noqa: FBT001
    program = Program.assemble(root, graph, members=meta["members"], stages=meta["stages"], terms=meta["terms"])
    program.meta |= meta
    program.training = training
    return program


def inline(
    graph: fx.Graph, source: fx.Graph, arguments: dict[fx.Node, fx.Node], *, member: Member
) -> dict[fx.Node, fx.Node]:
    """Copy a member's nodes into a graph, its targets below its name; returns old node to new node.

    Args:
        graph: Where to copy to.
        source: The model's graph.
        arguments: What stands for its placeholders.
        member: Whose nodes they are.

    Raises:
        InvariantError: The source has a placeholder that nothing stands for.
    """
    new: dict[fx.Node, fx.Node] = dict(arguments)
    for node in source.nodes:
        if node.op == "placeholder" and node not in arguments:
            raise InvariantError(f"nothing stands for the input '{node.target}'", where=member.name)
        if node.op in ("placeholder", "output"):
            continue
        target: Any = f"{member.name}.{node.target}" if node.op in ("call_module", "get_attr") else node.target
        copied = graph.create_node(
            node.op, target, fx.node.map_arg(node.args, new.__getitem__),
            fx.node.map_arg(node.kwargs, new.__getitem__), name=f"{member.name}_{node.name}",
        )  # fmt: skip
        copied.meta = {k: v for k, v in node.meta.items() if k in _FACTS}
        copied.meta |= {"role": "model", "member": member.name, "frozen": not member.trained}
        new[node] = copied
    return new

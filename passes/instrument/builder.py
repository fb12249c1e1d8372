"""Building a program: members are inlined, taps and adapters added, and losses that read their ports."""

import copy
import itertools
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import PairingError, PlanError
from fxdistill.ir.adapters import SCALES, Called, FixedScale, Projection, standardized
from fxdistill.ir.graph import Traced, find, memory, shape_of, written
from fxdistill.ir.program import Member, Program, Term, inline, tap, tap_copy
from fxdistill.ir.views import column, steps
from fxdistill.losses import LOSSES, Context, Loss
from fxdistill.passes.instrument.branch import by_batch_statistics
from fxdistill.passes.instrument.layouts import call, same_layout
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import Pair, Tap
from fxdistill.plan.training import Arm, Comparison, LossTerm, Stage
from fxdistill.preprocessing import View

_Taps = Mapping[tuple[str, Comparison], Mapping[str, fx.Node]]


@dataclass(frozen=True)
class _Side:
    """A member inside the program: its trace, the nodes that stand for those of the trace, which share memory."""

    traced: Traced
    nodes: dict[fx.Node, fx.Node]
    memory: dict[fx.Node, int]

    @property
    def prediction(self) -> fx.Node:
        return self.nodes[self.traced.output]

    def overwrites(self, node: fx.Node) -> bool:
        """Whether a later node writes into this node's memory, directly or through a view."""
        later = itertools.dropwhile(lambda other: other is not node, self.traced.graph.nodes)
        return any(self.memory[target] == self.memory[node] for other in itertools.islice(later, 1, None)
                   if other.op != "output" for target in written(other, self.traced.module))  # fmt: skip


class Builder:
    """Collects nodes and the modules that they call."""

    def __init__(self, traced: Mapping[str, Traced], plan: Plan, arm: Arm) -> None:
        self.plan, self.arm = plan, arm
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.adapters, self.losses, self.seen = nn.Module(), nn.Module(), nn.Module()
        self.root.add_module("views", self.seen)
        self.root.add_module("adapters", self.adapters)
        self.root.add_module("losses", self.losses)
        self.batch = self.graph.placeholder("batch")
        self.batch.meta = {"role": "input", "path": "batch"}
        self.fields: dict[str, fx.Node] = {}
        self.views: dict[View, fx.Node] = {}
        self.still: dict[fx.Node, fx.Node] = {}
        self.members = tuple(
            Member(name, trained=name in arm.trains, training=one.training, view=plan.view_of(name), held=one.held)
            for name, one in traced.items()
        )
        self.input_shape = (traced[arm.trains[0]].input_shape[0], *plan.input.shape[1:])
        self.sides = {member.name: self._inline(member, traced[member.name]) for member in self.members}

    def program(self) -> Program:
        """The program of the arm, with all its stages.

        Raises:
            PairingError: The values of a pair, or the answers that a loss compares, have no common shape.
            PlanError: The plan does not fit the models.
        """
        stages = tuple(self.arm.stages)
        taps = {
            (pair.name, compare): self._adapted(pair, compare)
            for pair in self.plan.pairs
            for compare in dict.fromkeys(t.loss.compare for t in distinct(stages) if t.loss.pair == pair.name)
        }
        values: dict[str, fx.Node] = {}
        terms: list[Term] = []
        for term in distinct(stages):
            values[term.key] = self._loss(term, taps)
            terms.append(term)
        self.graph.output(values)
        program = Program.assemble(self.root, self.graph, members=self.members, stages=stages, terms=tuple(terms))
        program.meta["input_shape"] = self.input_shape
        return program.train(any(member.training for member in self.members if member.trained))

    @property
    def _like(self) -> Tensor:
        """A weight of the members: what is added lies where it does, in its type."""
        return next((p for p in self.root.parameters() if p.is_floating_point()), torch.empty(0))

    def _field(self, name: str) -> fx.Node:
        """A field of the batch: read once, in front of everything."""
        if name not in self.fields:
            with self.graph.inserting_after(next(reversed(self.fields.values()), self.batch)):
                node = self.graph.create_node("call_function", operator.getitem, (self.batch, name), name=name)
            node.meta = {"role": "input", "path": name}
            self.fields[name] = node
        return self.fields[name]

    def _inline(self, member: Member, traced: Traced) -> _Side:
        self.root.add_module(member.name, traced.module if member.trained else frozen(traced.module))
        side = _Side(traced, {}, memory(traced.graph, traced.module))
        images = self._seen(member.view)
        if side.overwrites(traced.input):
            images = self._call("adapter", torch.clone, images, member=member.name)
        side.nodes.update(inline(self.graph, traced.graph, {traced.input: images}, member=member))
        side.prediction.meta["prediction"] = True
        return side

    def _seen(self, view: View) -> fx.Node:
        """The images as a view shows them: its nodes stand once, for all members that have the same."""
        if view not in self.views:
            number = len(self.views)

            def constant(name: str, values: tuple[float, ...]) -> fx.Node:
                self.seen.register_buffer(f"{name}_{number}", column(values).to(self._like.device))
                node = self.graph.get_attr(f"views.{name}_{number}")
                node.meta = {"role": "view"}
                return node

            images = self._field("images")
            self.views[view] = steps(view, images, lambda f, *rest: self._call("view", f, *rest), constant)
        return self.views[view]

    def _adapted(self, pair: Pair, compare: Comparison) -> dict[str, fx.Node]:
        """The values of a pair by role, of one shape and one scale."""
        teacher, student = self._tap("teacher", pair, pair.teacher), self._tap("student", pair, pair.student)
        if compare in ("released", "running") and pair.teacher.member in self.arm.trains:
            raise PlanError(
                f"the {pair.teacher.member} is trained, and its tap is to be normalised as one that is frozen",
                where=f"pair {pair.name}, compare", hint="compare the taps 'standardized' or 'raw'",
            )  # fmt: skip
        if compare == "released":
            teacher = by_batch_statistics(self.graph, self.root, teacher, where=f"pair {pair.name}")
        kept = self.plan.kept_for(pair.name)
        name = self._identifier(pair.name)
        if kept is not None and len(kept.channels) < kept.width:
            self.adapters.register_buffer(f"keep_{name}", torch.tensor(kept.channels, device=self._like.device))
            index = self.graph.get_attr(f"adapters.keep_{name}")
            index.meta = {"role": "adapter"}
            teacher = self._call("adapter", torch.index_select, teacher, pair.teacher.channel_dim, index)
        if pair.align == "project":
            self.adapters.add_module(f"project_{name}", Projection(pair.student, pair.teacher.width).to(self._like))
            student = self.graph.call_module(f"adapters.project_{name}", (student,))
            student.meta = {"role": "adapter"}
        student, teacher = same_layout(self.graph, pair, student, teacher)
        if compare == "running":
            return {"student": self._call("adapter", standardized, student), "teacher": self._fixed(pair, teacher)}
        if (scale := SCALES.get(compare)) is not None:
            student, teacher = (self._call("adapter", scale, value) for value in (student, teacher))
        return {"student": student, "teacher": teacher}

    def _fixed(self, pair: Pair, teacher: fx.Node) -> fx.Node:
        """A frozen tap by statistics of its own, which are yet to be measured."""
        name, width = self._identifier(pair.name), self._shape(teacher)[1]
        self.adapters.add_module(f"scale_{name}", FixedScale(width).to(self._like.device))
        node = self.graph.call_module(f"adapters.scale_{name}", (teacher,))
        node.meta = {"role": "adapter", "frozen": True}
        return node

    def _tap(self, role: str, pair: Pair, tap_: Tap) -> fx.Node:
        side = self._side(tap_.member)
        source = find(side.traced, tap_.path)
        shape = list(source.meta["shape"] or ())
        if shape[1:] != tap_.shape[1:]:
            raise PlanError(
                f"the {tap_.member}'s node has shape {shape}, the plan says {tap_.shape}",
                where=f"pair {pair.name}, {tap_.path}", hint="write the plan anew with `fxdistill plan`",
            )  # fmt: skip
        function = tap_copy if side.overwrites(source) else tap
        with self.graph.inserting_after(side.nodes[source]):
            node = self.graph.call_function(function, (side.nodes[source], f"{role} {pair.name}"))
        frozen_ = side.nodes[source].meta["frozen"]
        node.meta = {"role": "tap", "member": tap_.member, "frozen": frozen_, "shape": source.meta["shape"]}
        return node

    def _identifier(self, name: str) -> str:
        """A name as a Python identifier that no other adapter or loss has."""
        found = re.sub(r"\W", "_", name)
        taken = {name for name, _ in (*self.losses.named_children(), *self.adapters.named_children())}
        taken |= {name for name, _ in self.adapters.named_buffers()}
        while {found, f"keep_{found}", f"project_{found}", f"scale_{found}"} & taken:
            found += "_"
        return found

    def _loss(self, term: Term, taps: _Taps) -> fx.Node:
        """The node of a loss: every port that it reads, resolved by one rule."""
        loss = LOSSES.get(term.loss.loss)
        values = [self._port(port, term.loss, taps) for port in loss.reads]
        self._same_answers(loss, term.loss, values)
        arguments = dict(term.loss.args)
        if loss.build is not None:
            shapes = {port: self._shape(value) for port, value in zip(loss.reads, values, strict=True)}
            context = Context(shapes, classes=len(self.plan.data.classes), train_size=self.plan.data.train_size)
            model = loss.arguments
            made = loss.build(context, model.model_validate(arguments) if model is not None else None)
            node = self._built(term, made, values)
        else:
            node = self._built(term, loss.function, values)
            node.kwargs = {**arguments}
        node.meta |= {"key": term.key, "reads": loss.reads}
        return node

    def _built(self, term: Term, made: Any, values: list[fx.Node]) -> fx.Node:
        """The node of what computes a loss: a function, or a module of the program, which is trained along."""
        if not callable(made):
            raise PlanError(
                f"the loss '{term.loss.loss}' built a {type(made).__name__}, which cannot be called", where="losses",
                hint="its build has to return a function or a module",
            )  # fmt: skip
        if not isinstance(made, nn.Module) and hasattr(made, "__name__"):
            return self._call("loss", made, *values)
        made = made if isinstance(made, nn.Module) else Called(made)  # a graph calls functions by their names
        name = self._identifier(term.key)
        self.losses.add_module(name, made.to(device=self._like.device))
        node = self.graph.call_module(f"losses.{name}", tuple(values))
        node.meta = {"role": "loss"}
        return node

    def _port(self, port: str, term: LossTerm, taps: _Taps) -> fx.Node:
        role, dot, kind = port.partition(".")
        if not dot:
            return self._field(port)
        tapped = kind == "tap" and term.pair is not None
        value = taps[str(term.pair), term.compare][role] if tapped else self._side(getattr(term, role)).prediction
        if role == "student" or getattr(term, role) not in self.arm.trains:
            return value
        if value not in self.still:  # who teaches learns nothing from being imitated
            self.still[value] = self._call("adapter", torch.Tensor.detach, value)
            self.still[value].meta["shape"] = shape_of(value)
        return self.still[value]

    def _side(self, member: str) -> _Side:
        if member not in self.sides:
            raise PlanError(f"a loss compares with the member '{member}', and there is none", where="arms")
        return self.sides[member]

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a port's value; of adapted taps it is computed, on no data; () for a field of the batch."""
        known = shape_of(node)
        if known is not None or node.meta.get("role") == "input":
            return known or ()
        return self._adapted_shape(node, self._shape(node.all_input_nodes[0]))

    def _adapted_shape(self, node: fx.Node, before: tuple[int, ...]) -> tuple[int, ...]:
        value = torch.empty(before, device="meta")
        if node.op == "call_module":
            module = copy.deepcopy(self.root.get_submodule(str(node.target))).to("meta")
            return tuple(module(value).shape)
        rest = [self._constant(argument) for argument in node.args[1:]]
        function: Any = node.target
        return tuple(function(value, *rest).shape)

    def _constant(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.root.get_buffer(str(argument.target)).to("meta")
        return argument

    def _same_answers(self, loss: Loss, term: LossTerm, values: list[fx.Node]) -> None:
        """Predictions that are compared entry by entry have one shape."""
        if not loss.same_shapes or not {"student.logits", "teacher.logits"} <= set(loss.reads):
            return
        one, other = (shape_of(values[loss.reads.index(f"{role}.logits")]) or () for role in ("teacher", "student"))
        if one[1:] != other[1:]:
            raise PairingError(
                f"the {term.teacher} answers with shape {one[1:]} an image, the {term.student} with {other[1:]}",
                where="model outputs",
                hint="both need the same classes: check num_classes of the factories; or compare no predictions: "
                "--method indistill+supervised, attention or features",
            )  # fmt: skip

    def _call(self, role: str, function: object, *arguments: object, member: str = "") -> fx.Node:
        return call(self.graph, role, function, *arguments, member=member)


def frozen(module: nn.Module) -> nn.Module:
    """A copy of a module's layers over the same weights, without gradients: what happens to one does not to the other.

    Moving the copy leaves the module where it is, and its mode is its own.
    """
    own = [t for part in module.modules() for t in (*part.buffers(recurse=False), *vars(part).values())]
    shared: dict[int, object] = {id(t): t.detach() for t in own if isinstance(t, Tensor)}
    shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    root = nn.Module()
    with torch.no_grad():  # TorchScript copies its weights as autograd sees them
        for name, child in module.named_children():
            root.add_module(name, copy.deepcopy(child, shared))
    for name, parameter in module.named_parameters(recurse=False):
        root.register_parameter(name, shared[id(parameter)])  # type: ignore[arg-type]
    for name, buffer in module.named_buffers(recurse=False):
        root.register_buffer(name, shared[id(buffer)])  # type: ignore[arg-type]
    return root.eval()


def distinct(stages: tuple[Stage, ...]) -> Iterator[Term]:
    """Each different loss once; the same loss with other arguments gets a numbered key."""
    seen: list[LossTerm] = []
    for stage in stages:
        variants = [stage.under(taught) for taught in range(len(stage.successors) + 1)]
        for loss in (loss for variant in variants for loss in variant.losses):
            plain = loss.plain
            if plain not in seen:
                same = sum(one.name == loss.name for one in seen)
                seen.append(plain)
                yield Term(f"{loss.name}#{same + 1}" if same else loss.name, loss)

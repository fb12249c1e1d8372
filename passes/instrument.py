"""Instrument: traced members and a plan become one program.

The members of an arm are inlined side by side over the same batch; for every pair a tap marks each of its two nodes,
and adapters bring the two values to one shape; every distinct loss of the arm becomes a node that reads its ports:

    slice    loss(student_tap, teacher_tap[:, keep])
    project  loss(encoder(student_tap), teacher_tap)       encoder: a learned 1x1 projection, not exported

then, where they differ, layout (tokens and channels-last to NCHW, class token dropped) and spatial size (average
pooling to the smaller of the two). A tap on memory that is written to later, directly or through a view, takes a copy.
Inserting taps changes no output: checked exactly, every time.
"""

import copy
import itertools
import math
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, fx, nn

from fxdistill.errors import InvariantError, PairingError, PlanError
from fxdistill.ir.adapters import Called, Projection
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.graph import Traced, find, memory, shape_of, written
from fxdistill.ir.program import Member, Program, Term, inline, tap, tap_copy
from fxdistill.ir.running import buffers_kept, example, in_mode, seeded
from fxdistill.losses import LOSSES, Context, Loss
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import Arm, LossTerm, Pair, Stage, Tap


@dataclass(frozen=True)
class Joint:
    """What a program is made of: the members of an arm by name, each traced in the mode that it shall have."""

    members: Mapping[str, Traced]


@dataclass(frozen=True)
class Instrument(Pass[Joint, Program]):
    """Build the program of one arm of a plan.

    Attributes:
        plan: Pairs, kept channels and losses.
        arm: The arm's name.
    """

    plan: Plan
    arm: str = "distilled"

    def requires(self, source: Joint) -> None:
        """Every member of the arm is there, in the mode that it needs, and all read the same images."""
        arm = self.plan.arm(self.arm)
        for name in arm.members:
            if hasattr(Program, name):
                raise PlanError(
                    f"a program cannot have a member '{name}'", where="members", hint="give it another name"
                )
            if name not in source.members:
                raise PlanError(f"the arm '{arm.name}' needs the member '{name}'", where="members", hint="give it")
        for name, traced in source.members.items():
            if name not in arm.trains and traced.training:
                raise InvariantError(f"the frozen member '{name}' was traced in training mode")
        shapes = {name: traced.input_shape[1:] for name, traced in source.members.items()}
        if len(set(shapes.values())) > 1:
            told = ", ".join(f"'{name}' reads {'x'.join(map(str, shape))}" for name, shape in shapes.items())
            raise PairingError(f"the members read different images: {told}", where="input", hint="give both one size")

    def run(self, source: Joint) -> PassResult[Program]:
        """Inline, tap, adapt, add losses."""
        return PassResult(_Builder(source, self.plan, self.plan.arm(self.arm)).program(), modified=True)

    def ensures(self, source: Joint, value: Program) -> None:
        """The arm's losses and trained members; every member answers exactly as outside of the program."""
        arm = self.plan.arm(self.arm)
        wanted = [term.key for term in _distinct(tuple(arm.stages))]
        found = [str(node.meta["key"]) for node in value.nodes("loss")]
        if found != wanted:
            raise InvariantError(f"the program has the losses {', '.join(found)}, the arm has {', '.join(wanted)}")
        if {member.name for member in value.members if member.trained} != set(arm.trains):
            raise InvariantError("the program does not train what the arm trains")
        for name, traced in source.members.items():
            batch = max(2, traced.input_shape[0]) if traced.training else traced.input_shape[0]
            images = example(traced.module, (batch, *traced.input_shape[1:]))
            with traced.running() as module:
                alone = _answer(fx.GraphModule(module, _ending_at(traced.graph, traced.output)), images)
            if any(member.training != traced.training for member in value.members if member.name == name):
                raise InvariantError(f"the member '{name}' is not in the mode that it was traced in")
            with in_mode(_outputs_of(value, name), training=traced.training) as inside:
                together = _answer(inside, {"images": images.clone()})
            if not torch.allclose(alone, together, rtol=0, atol=0, equal_nan=True):
                raise InvariantError(f"instrumenting changed the output of the {name}")


def _answer(module: fx.GraphModule, images: Tensor | dict[str, Tensor]) -> Tensor:
    device = (images if isinstance(images, Tensor) else images["images"]).device
    with torch.no_grad(), buffers_kept(module), seeded(device):
        answer: Tensor = module(images.clone() if isinstance(images, Tensor) else images)
    return answer


def _ending_at(graph: fx.Graph, node: fx.Node) -> fx.Graph:
    """A copy of a graph that returns one node's value; nothing is removed, so that random numbers fall alike."""
    copied = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for old in graph.nodes:
        if old.op != "output":
            new[old] = copied.node_copy(old, new.__getitem__)
    copied.output(new[node])
    return copied


def _outputs_of(program: Program, member: str) -> fx.GraphModule:
    """One member of the program with all its taps, returning its prediction."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    last = None
    for old in program.graph.nodes:
        image = old.meta.get("role") == "input" and old.meta["path"] in ("batch", "images")
        if image or old.meta.get("member") == member:
            new[old] = graph.node_copy(old, new.__getitem__)
            last = new[old] if old.meta.get("prediction") else last
    if last is None:
        raise InvariantError(f"the program lost the prediction of the {member}")
    graph.output(last)
    return fx.GraphModule(program, graph)


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


class _Builder:
    """Collects nodes and the modules that they call."""

    def __init__(self, source: Joint, plan: Plan, arm: Arm) -> None:
        self.plan, self.arm = plan, arm
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.adapters, self.losses = nn.Module(), nn.Module()
        self.root.add_module("adapters", self.adapters)
        self.root.add_module("losses", self.losses)
        self.batch = self.graph.placeholder("batch")
        self.batch.meta = {"role": "input", "path": "batch"}
        self.fields: dict[str, fx.Node] = {}
        self.members = tuple(
            Member(name, trained=name in arm.trains, training=traced.training)
            for name, traced in source.members.items()
        )
        self.input_shape = source.members[arm.trains[0]].input_shape
        self.sides = {member.name: self._inline(member, source.members[member.name]) for member in self.members}

    def program(self) -> Program:
        stages = tuple(self.arm.stages)
        used = {loss.pair for stage in stages for loss in stage.losses}
        taps = {pair.name: self._adapted(pair) for pair in self.plan.pairs if pair.name in used}
        values: dict[str, fx.Node] = {}
        terms: list[Term] = []
        for term in _distinct(stages):
            values[term.key] = self._loss(term, taps)
            terms.append(term)
        self.graph.output(values)
        program = Program.assemble(self.root, self.graph, members=self.members, stages=stages, terms=tuple(terms))
        program.meta["input_shape"] = self.input_shape
        return program.train(any(member.training for member in self.members if member.trained))

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
        images = self._field("images")
        if side.overwrites(traced.input):
            images = self._call("adapter", torch.clone, images, member=member.name)
        side.nodes.update(inline(self.graph, traced.graph, {traced.input: images}, member=member))
        side.prediction.meta["prediction"] = True
        return side

    def _adapted(self, pair: Pair) -> dict[str, fx.Node]:
        """The values of a pair by role, of one shape."""
        teacher, student = self._tap("teacher", pair, pair.teacher), self._tap("student", pair, pair.student)
        kept = self.plan.kept_for(pair.name)
        name = self._identifier(pair.name)
        if kept is not None and len(kept.channels) < kept.width:
            device = next((t.device for t in self.root.parameters()), None)
            self.adapters.register_buffer(f"keep_{name}", torch.tensor(kept.channels, device=device))
            index = self.graph.get_attr(f"adapters.keep_{name}")
            index.meta = {"role": "adapter"}
            teacher = self._call("adapter", torch.index_select, teacher, pair.teacher.channel_dim, index)
        if pair.align == "project":
            like = next((p for p in self.root.parameters() if p.is_floating_point()), torch.empty(0))
            self.adapters.add_module(f"project_{name}", Projection(pair.student, pair.teacher.width).to(like))
            student = self.graph.call_module(f"adapters.project_{name}", (student,))
            student.meta = {"role": "adapter"}
        student, teacher = self._same_layout(pair, student, teacher)
        return {"student": student, "teacher": teacher}

    def _same_layout(self, pair: Pair, student: fx.Node, teacher: fx.Node) -> tuple[fx.Node, fx.Node]:
        one, other = pair.student, pair.teacher
        if one.layout == other.layout and _positions(one) == _positions(other) and one.class_token == other.class_token:
            return self._channels_second(student, one), self._channels_second(teacher, other)
        sizes = [_spatial(tap_) for tap_ in (one, other)]
        student, teacher = self._to_nchw(student, one), self._to_nchw(teacher, other)
        small = [min(pair_) for pair_ in zip(*sizes, strict=True)]
        if sizes[0] != small:
            student = self._call("adapter", F.adaptive_avg_pool2d, student, small)
        if sizes[1] != small:
            teacher = self._call("adapter", F.adaptive_avg_pool2d, teacher, small)
        return student, teacher

    def _channels_second(self, node: fx.Node, tap_: Tap) -> fx.Node:
        """The value with its channels in dimension 1, where every loss expects them; a view."""
        rank = len(tap_.shape)
        order = (0, tap_.channel_dim, *(d for d in range(1, rank) if d != tap_.channel_dim))
        return node if tap_.channel_dim == 1 else self._call("adapter", torch.permute, node, order)

    def _to_nchw(self, node: fx.Node, tap_: Tap) -> fx.Node:
        if tap_.layout == "nchw":
            return node
        if tap_.layout == "nhwc":
            return self._call("adapter", torch.permute, node, (0, 3, 1, 2))
        if tap_.layout == "features":
            raise PairingError("a pooled feature cannot be paired with a feature map", where=tap_.path)
        if tap_.class_token:
            node = self._call("adapter", torch.narrow, node, 1, 1, _positions(tap_)[0] - 1)
        node = self._call("adapter", torch.transpose, node, 1, 2)
        return self._call("adapter", torch.unflatten, node, 2, _spatial(tap_))

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
        while {found, f"keep_{found}", f"project_{found}"} & taken:
            found += "_"
        return found

    def _loss(self, term: Term, taps: dict[str, dict[str, fx.Node]]) -> fx.Node:
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
        elif loss.function is not None:
            node = self._built(term, loss.function, values)
            node.kwargs = {**arguments}
        else:
            raise PlanError(f"the loss '{term.loss.loss}' has neither a function nor a way to build one", where="loss")
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
        like = next((p for p in self.root.parameters() if p.is_floating_point()), torch.empty(0))
        self.losses.add_module(name, made.to(device=like.device))
        node = self.graph.call_module(f"losses.{name}", tuple(values))
        node.meta = {"role": "loss"}
        return node

    def _port(self, port: str, term: LossTerm, taps: dict[str, dict[str, fx.Node]]) -> fx.Node:
        role, dot, kind = port.partition(".")
        if not dot:
            return self._field(port)
        if kind == "tap":
            return taps[str(term.pair)][role]
        return self._side(str(getattr(term, role))).prediction

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
                where="model outputs", hint="both need the same classes: check num_classes of the factories",
            )  # fmt: skip

    def _call(self, role: str, function: object, *arguments: object, member: str = "") -> fx.Node:
        node = self.graph.create_node("call_function", function, arguments)  # type: ignore[arg-type]
        node.meta = {"role": role, **({"member": member} if member else {})}
        return node


def frozen(module: nn.Module) -> nn.Module:
    """A copy of a module's layers over the same weights, without gradients: what happens to one does not to the other.

    Moving the copy leaves the module where it is, and its mode is its own.
    """
    own = [t for part in module.modules() for t in (*part.buffers(recurse=False), *vars(part).values())]
    shared: dict[int, object] = {id(t): t.detach() for t in own if isinstance(t, Tensor)}
    shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    root = nn.Module()
    for name, child in module.named_children():
        root.add_module(name, copy.deepcopy(child, shared))
    for name, parameter in module.named_parameters(recurse=False):
        root.register_parameter(name, shared[id(parameter)])  # type: ignore[arg-type]
    for name, buffer in module.named_buffers(recurse=False):
        root.register_buffer(name, shared[id(buffer)])  # type: ignore[arg-type]
    return root.eval()


def _distinct(stages: tuple[Stage, ...]) -> Iterator[Term]:
    """Each different loss once; the same loss with other arguments gets a numbered key."""
    seen: list[LossTerm] = []
    for stage in stages:
        for loss in stage.losses:
            plain = loss.changed(weight=1.0)
            if plain not in seen:
                same = sum(one.name == loss.name for one in seen)
                seen.append(plain)
                yield Term(f"{loss.name}#{same + 1}" if same else loss.name, loss)


def _positions(tap_: Tap) -> list[int]:
    """The sizes of the tap's dimensions without batch and channel."""
    return [size for dim, size in enumerate(tap_.shape) if dim not in (0, tap_.channel_dim)]


def _spatial(tap_: Tap) -> list[int]:
    """Height and width of the tap's positions; a token sequence is taken as a square."""
    positions = _positions(tap_)
    if tap_.layout != "tokens":
        return positions
    side = math.isqrt(positions[0] - tap_.class_token)
    if side * side != positions[0] - tap_.class_token:
        raise PairingError(
            f"{positions[0]} tokens are not a square", where=tap_.path, hint="pair it with a token sequence"
        )
    return [side, side]

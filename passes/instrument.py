"""Instrument: two traced models and a plan become one program.

Teacher and student are inlined side by side over the same input; for every pair a tap marks each of the two nodes, and
adapters bring the two values to one shape; every distinct loss of the plan becomes a node:

    slice    loss(student_tap, teacher_tap[:, keep])
    project  loss(encoder(student_tap), teacher_tap)       encoder: a learned 1x1 projection, not exported

then, where they differ, layout (tokens and channels-last to NCHW, class token dropped) and spatial size (average
pooling to the smaller of the two). A tap on memory that is written to later, directly or through a view, takes a copy.
Inserting taps changes no output: checked exactly, every time.
"""

import copy
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, fx, nn

from fxdistill.errors import InvariantError, PairingError, PlanError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.graph import Traced, find, memory, written
from fxdistill.ir.program import Program, Term, inline, tap, tap_copy
from fxdistill.ir.running import buffers_kept, example, in_mode, seeded
from fxdistill.losses import old as losses
from fxdistill.plan.schema import ArmName, LossTerm, Pair, Plan, Stage, Tap


@dataclass(frozen=True)
class Joint:
    """What a program is made of: the traced teacher (eval mode; None without one) and the traced student."""

    teacher: Traced | None
    student: Traced


@dataclass(frozen=True)
class Instrument(Pass[Joint, Program]):
    """Build the program of a plan.

    Attributes:
        plan: Pairs, kept channels and losses.
        arm: Whose stages to build: the distilled student's, the control's, or the auxiliary teacher's.
    """

    plan: Plan
    arm: ArmName = "distilled"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages whose losses the program holds."""
        return self.plan.stages_of(self.arm)

    def requires(self, source: Joint) -> None:
        """The teacher is traced in eval mode; both have as many classes as each other."""
        if source.teacher is None:
            return
        if source.teacher.training:
            raise InvariantError("the teacher was traced in training mode")
        widths = [traced.output.meta["shape"] for traced in (source.teacher, source.student)]
        if widths[0][1:] != widths[1][1:]:
            raise PairingError(
                f"the teacher answers with shape {widths[0][1:]} an image, the student with {widths[1][1:]}",
                where="model outputs", hint="both need the same classes: check num_classes of the factories",
            )  # fmt: skip

    def run(self, source: Joint) -> PassResult[Program]:
        """Inline, tap, adapt, add losses."""
        return PassResult(_Builder(source, self.plan).program(self.stages), modified=True)

    def ensures(self, source: Joint, value: Program) -> None:
        """Inside the program both models answer exactly as outside of it."""
        for role, traced in (("teacher", source.teacher), ("student", source.student)):
            if traced is None:
                continue
            batch = max(2, traced.input_shape[0]) if traced.training else traced.input_shape[0]
            images = example(traced.module, (batch, *traced.input_shape[1:]))
            with traced.running() as module:
                alone = _answer(fx.GraphModule(module, _ending_at(traced.graph, traced.output)), images)
            with in_mode(_outputs_of(value, role), training=traced.training) as inside:
                together = _answer(inside, images, None)
            if not torch.allclose(alone, together, rtol=0, atol=0, equal_nan=True):
                raise InvariantError(f"instrumenting changed the output of the {role}")


def _answer(module: fx.GraphModule, images: Tensor, *labels: None) -> Tensor:
    with torch.no_grad(), buffers_kept(module), seeded(images.device):
        answer: Tensor = module(images.clone(), *labels)
    return answer


def _ending_at(graph: fx.Graph, node: fx.Node) -> fx.Graph:
    """A copy of a graph that returns one node's value; nothing is removed, so that random numbers fall alike."""
    copy = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for old in graph.nodes:
        if old.op != "output":
            new[old] = copy.node_copy(old, new.__getitem__)
    copy.output(new[node])
    return copy


def _outputs_of(program: Program, role: str) -> fx.GraphModule:
    """One model of the program with all its taps, returning its prediction."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    last = None
    for old in program.graph.nodes:
        wanted = old.op == "placeholder" or old.meta.get("role") in (role, "input") or old.meta.get("of") == role
        if wanted:
            new[old] = graph.node_copy(old, new.__getitem__)
            last = new[old] if old.meta.get("prediction") else last
    if last is None:
        raise InvariantError(f"the program lost the prediction of the {role}")
    graph.output(last)
    return fx.GraphModule(program, graph)


class _Builder:
    """Collects nodes and the modules that they call."""

    def __init__(self, source: Joint, plan: Plan) -> None:
        self.plan = plan
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.adapters = nn.Module()
        self.root.adapters = self.adapters
        self.memory: dict[str, dict[fx.Node, int]] = {}
        self.student_training = source.student.training
        self.input_shape = source.student.input_shape
        self.images = self._placeholder("x")
        self.labels = self._placeholder("y")
        self.sides: dict[str, tuple[Traced, dict[fx.Node, fx.Node]]] = {}
        for role, traced in (("teacher", source.teacher), ("student", source.student)):
            if traced is not None:
                self.sides[role] = (traced, self._inline(role, traced))

    def program(self, stages: tuple[Stage, ...]) -> Program:
        used = {loss.pair for stage in stages for loss in stage.losses}
        if used != {None} and "teacher" not in self.sides:
            raise PlanError("a stage compares taps, and there is no teacher", where="stages")
        taps = {pair.name: self._adapted(pair) for pair in self.plan.pairs if pair.name in used}
        values: dict[str, fx.Node] = {}
        terms: list[Term] = []
        for term in _distinct(stages):
            values[term.key] = self._loss(term, taps)
            terms.append(term)
        self.graph.output(values)
        program = Program.assemble(self.root, self.graph, stages=stages, terms=tuple(terms))
        program.meta["student_training"] = self.student_training
        program.meta["input_shape"] = self.input_shape
        program.train(self.student_training)
        return program

    def _placeholder(self, name: str) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta = {"role": "input", "path": name}
        return node

    def _inline(self, role: str, traced: Traced) -> dict[fx.Node, fx.Node]:
        self.root.add_module(role, frozen(traced.module) if role == "teacher" else traced.module)
        self.memory[role] = memory(traced.graph, traced.module)
        images = self.images
        if self._overwritten(role, traced.input, traced):
            images = self._call("adapter", torch.clone, self.images, of=role)
        nodes = inline(
            self.graph,
            traced.graph,
            {traced.input: images},
            role="teacher" if role == "teacher" else "student",
        )
        nodes[traced.output].meta["prediction"] = True
        return nodes

    def _adapted(self, pair: Pair) -> tuple[fx.Node, fx.Node]:
        """The student's and the teacher's value of a pair, of one shape."""
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
        return self._same_layout(pair, student, teacher)

    def _same_layout(self, pair: Pair, student: fx.Node, teacher: fx.Node) -> tuple[fx.Node, fx.Node]:
        one, other = pair.student, pair.teacher
        if one.layout == other.layout and _positions(one) == _positions(other) and one.class_token == other.class_token:
            return student, teacher
        sizes = [_spatial(tap_) for tap_ in (one, other)]
        student, teacher = self._to_nchw(student, one), self._to_nchw(teacher, other)
        small = [min(pair_) for pair_ in zip(*sizes, strict=True)]
        if sizes[0] != small:
            student = self._call("adapter", F.adaptive_avg_pool2d, student, small)
        if sizes[1] != small:
            teacher = self._call("adapter", F.adaptive_avg_pool2d, teacher, small)
        return student, teacher

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
        traced, nodes = self.sides[role]
        source = find(traced, tap_.path)
        shape = list(source.meta["shape"] or ())
        if shape[1:] != tap_.shape[1:]:
            raise PlanError(
                f"the {role}'s node has shape {shape}, the plan says {tap_.shape}",
                where=f"pair {pair.name}, {tap_.path}", hint="write the plan anew with `fxdistill plan`",
            )  # fmt: skip
        function = tap_copy if self._overwritten(role, source, traced) else tap
        with self.graph.inserting_after(nodes[source]):
            node = self.graph.call_function(function, (nodes[source], f"{role} {pair.name}"))
        node.meta = {"role": "tap", "of": role, "shape": source.meta["shape"]}
        return node

    def _overwritten(self, role: str, node: fx.Node, traced: Traced) -> bool:
        """Whether a later node writes into this node's memory, directly or through a view."""
        group = self.memory[role]
        later = itertools.dropwhile(lambda other: other is not node, traced.graph.nodes)
        return any(group[target] == group[node] for other in itertools.islice(later, 1, None)
                   if other.op != "output" for target in written(other, traced.module))  # fmt: skip

    def _identifier(self, name: str) -> str:
        """A pair's name as a Python identifier that no other pair has."""
        found = re.sub(r"\W", "_", name)
        while hasattr(self.adapters, f"keep_{found}") or hasattr(self.adapters, f"project_{found}"):
            found += "_"
        return found

    def _loss(self, term: Term, taps: dict[str, tuple[fx.Node, fx.Node]]) -> fx.Node:
        loss = losses.get(term.loss.loss)
        if (loss.reads == "taps") != (term.loss.pair is not None):
            needs = "a pair" if loss.reads == "taps" else "no pair"
            raise PlanError(f"the loss '{loss.name}' needs {needs}", where=f"loss {term.loss.name}")
        if term.loss.pair is not None:
            arguments = taps[term.loss.pair]
        elif loss.reads == "labels":
            arguments = (self._prediction("student"), self.labels)
        else:
            arguments = (self._prediction("student"), self._prediction("teacher"))
        node = self._call("loss", loss.function, *arguments)
        node.kwargs = {**losses.arguments(loss.name, dict(term.loss.args))}
        node.meta["key"] = term.key
        return node

    def _prediction(self, role: str) -> fx.Node:
        if role not in self.sides:
            raise PlanError(f"a loss compares with the {role}, and there is none", where="stages")
        traced, nodes = self.sides[role]
        return nodes[traced.output]

    def _call(self, role: str, function: object, *arguments: object, of: str = "") -> fx.Node:
        node = self.graph.create_node("call_function", function, arguments)  # type: ignore[arg-type]
        node.meta = {"role": role, "of": of}
        return node


class Projection(nn.Module):
    """A learned encoder from the student's to the teacher's width: a 1x1 convolution (FitNets, Romero et al., 2015).

    Reads the student's tap in its own layout and returns the same layout.
    """

    def __init__(self, student: Tap, width: int) -> None:
        super().__init__()
        self.channel_dim = student.channel_dim
        self.weight = nn.Linear(student.width, width, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        """Apply to the channel dimension."""
        return self.weight(value.movedim(self.channel_dim, -1)).movedim(-1, self.channel_dim)  # type: ignore[no-any-return]


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
            plain = loss.model_copy(update={"weight": 1.0})
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

"""Instrument: traced members and a plan become one program.

The members of an arm are inlined side by side over the same batch, each behind its view of it (what its preprocessing
makes of the pixels; equal views stand once); for every pair a tap marks each of its two nodes,
and adapters bring the two values to one shape; every distinct loss of the arm becomes a node that reads its ports:

    slice    loss(student_tap, teacher_tap[:, keep])
    project  loss(encoder(student_tap), teacher_tap)       encoder: a learned 1x1 projection, not exported

then, where they differ, layout (tokens and channels-last to NCHW, class token dropped) and spatial size (average
pooling to the smaller of the two). A tap on memory that is written to later, directly or through a view, takes a copy.
Inserting taps changes no output: checked exactly, every time.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxdistill.errors import InvariantError, PairingError, PlanError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.graph import Traced
from fxdistill.ir.program import Program
from fxdistill.ir.running import buffers_kept, example, in_mode, seeded, told_by
from fxdistill.ir.views import seen
from fxdistill.passes.instrument.builder import Builder, distinct
from fxdistill.plan.document import Plan


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
        """Every member of the arm is there, in the mode that it needs, and reads what its view shows."""
        arm = self.plan.arm(self.arm)
        taken = {*dir(Program), *vars(fx.GraphModule(nn.Module(), fx.Graph()))}
        for name in arm.members:
            if name in taken:
                raise PlanError(
                    f"a program cannot have a member '{name}'", where="members", hint="give it another name"
                )
            if name not in source.members:
                raise PlanError(f"the arm '{arm.name}' needs the member '{name}'", where="members", hint="give it")
        for name, traced in source.members.items():
            if name not in arm.trains and traced.training:
                raise InvariantError(f"the frozen member '{name}' was traced in training mode")
            if traced.input_shape[1:] != (shape := self.plan.shape_of(name)[1:]):
                own, planned = ("x".join(map(str, one)) for one in (traced.input_shape[1:], shape))
                raise PairingError(
                    f"the member '{name}' reads {own} images, the plan gives it {planned}", where="input",
                    hint="give it a preprocessing of its size",
                )  # fmt: skip

    def run(self, source: Joint) -> PassResult[Program]:
        """Inline, tap, adapt, add losses."""
        return PassResult(Builder(source.members, self.plan, self.plan.arm(self.arm)).program(), modified=True)

    def ensures(self, source: Joint, value: Program) -> None:
        """The arm's losses and trained members, each member in the mode that it was traced in."""
        arm = self.plan.arm(self.arm)
        wanted = [term.key for term in distinct(tuple(arm.stages))]
        found = [str(node.meta["key"]) for node in value.nodes("loss")]
        if found != wanted:
            raise InvariantError(f"the program has the losses {', '.join(found)}, the arm has {', '.join(wanted)}")
        if {member.name for member in value.members if member.trained} != set(arm.trains):
            raise InvariantError("the program does not train what the arm trains")
        for member in value.members:
            if member.training != source.members[member.name].training:
                raise InvariantError(f"the member '{member.name}' is not in the mode that it was traced in")

    def proves(self, source: Joint, value: Program) -> None:
        """Every member answers exactly as outside of the program."""
        for name, traced in source.members.items():
            batch = max(2, traced.input_shape[0]) if traced.training else traced.input_shape[0]
            images = example(traced.module, (batch, *self.plan.input.shape[1:]))
            images, alone = told_by(images, functools.partial(self._alone, name, traced))
            held = [f"{name}.{part}" for part in traced.held]
            with in_mode(_outputs_of(value, name), training=traced.training, held=held) as inside:
                together = _answer(inside, {"images": images.clone()})
            if not torch.allclose(alone, together, rtol=0, atol=0, equal_nan=True):
                raise InvariantError(f"instrumenting changed the output of the {name}")

    def _alone(self, name: str, traced: Traced, images: Tensor) -> Tensor:
        """What a member answers outside of the program."""
        shown = seen(images, self.plan.view_of(name))
        with traced.running() as module:
            return _answer(fx.GraphModule(module, _ending_at(traced.graph, traced.output)), shown)


def _answer(module: fx.GraphModule, images: Tensor | dict[str, Tensor]) -> Tensor:
    device = (images if isinstance(images, Tensor) else images["images"]).device
    with torch.no_grad(), buffers_kept(module), seeded(device):
        answer: Tensor = module(images.clone() if isinstance(images, Tensor) else images)
    return answer


def _ending_at(graph: fx.Graph, node: fx.Node) -> fx.Graph:
    """A copy of a graph that returns one node's value; nothing is removed, so that random numbers fall alike."""
    copied, new = fx.Graph(), dict[fx.Node, fx.Node]()
    copied.graph_copy(graph, new)
    copied.output(new[node])
    return copied


def _outputs_of(program: Program, member: str) -> fx.GraphModule:
    """One member of the program with all its taps, returning its prediction."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    last = None
    for old in program.graph.nodes:
        image = old.meta.get("role") == "input" and old.meta["path"] in ("batch", "images")
        if image or old.meta.get("role") == "view" or old.meta.get("member") == member:
            new[old] = graph.node_copy(old, new.__getitem__)
            last = new[old] if old.meta.get("prediction") else last
    if last is None:
        raise InvariantError(f"the program lost the prediction of the {member}")
    graph.output(last)
    return fx.GraphModule(program, graph)

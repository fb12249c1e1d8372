"""Members in outline: their layers in the order in which they run, and what of them runs in which stage.

layers   what a trace in eval mode has, without inputs, constants and outputs
runs     narrowed   fewer channels of its value than it has by itself: a slice has sunk into it
         folded     a BatchNorm that has become part of the convolution before it
         runs       as it is; what is named by none of these does not run
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from fxdistill.compiler.build import build_arm, specialize, tracing
from fxdistill.errors import FxdistillError
from fxdistill.ir.contract import PassManager
from fxdistill.ir.graph import Traced, macs_of, op_name, path_of, shape_of
from fxdistill.ir.program import Program
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked

_FOLDED = "_folded"
_MOST = 4000
"""Layers of a member that are told of: nobody reads more."""


@dataclass(frozen=True)
class Layer:
    """A node of a traced model.

    Attributes:
        path: Its path.
        kind: Its operation.
        width: Channels of its value; 0 where it has none.
        macs: Multiply-accumulates of one image.
    """

    path: str
    kind: str
    width: int = 0
    macs: int = 0

    @property
    def counts(self) -> bool:
        """Whether it is one of those by which a reader tells whether a part of a network runs."""
        return self.macs > 0 or "norm" in self.kind


@dataclass(frozen=True)
class Runs:
    """What of the members runs in a stage: by member and path ``runs``, ``narrowed`` or ``folded``."""

    arm: str
    stage: str
    layers: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Outline:
    """Members in outline.

    Attributes:
        layers: Of each member, in order.
        runs: Stage by stage.
        missing: Why some are not there; '' where all are.
    """

    layers: dict[str, list[Layer]] = field(default_factory=dict)
    runs: list[Runs] = field(default_factory=list)
    missing: str = ""


def outline(plan: Plan, modules: Mapping[str, nn.Module]) -> Outline:
    """The members in outline, as far as they can be traced and put into programs; it never fails.

    Args:
        plan: The plan.
        modules: Its members, as far as there are.
    """
    passes, missing = PassManager(prove=False), ""
    traced: dict[str, Traced] = {}
    for name, module in modules.items():
        if isinstance(plan.members[name], Masked | Hardened):  # drawn as what they are made of
            continue
        try:
            traced[name] = passes.run(tracing(plan, name, training=False, quick=True), module)
        except FxdistillError as cause:
            missing = f"{name}: {cause.what}"
    layers = {name: list(_layers(one)) for name, one in traced.items()}
    runs, in_arms = list[Runs](), dict[tuple[str, bool], Traced]()
    for arm in plan.all_arms:
        if any(isinstance(plan.members[name], Hardened | Masked) for name in arm.members):
            continue
        try:
            program = build_arm(plan, arm.name, modules, passes=passes, traced=in_arms)
            stages = [(stage.name, specialize(program, stage.name, passes=passes)) for stage in arm.stages]
        except FxdistillError as cause:
            missing = missing or f"arm '{arm.name}': {cause.what}"
            continue
        runs += [Runs(arm.name, name, _runs(one, layers)) for name, one in stages]
    return Outline(layers, runs, missing)


def _layers(traced: Traced) -> Iterator[Layer]:
    shown = [node for node in traced.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    for node in shown[:_MOST]:
        yield Layer(path_of(node), op_name(node, traced.module), _width(node), macs_of(node) // traced.images)


def _width(node: fx.Node) -> int:
    """Channels of a value: in the last dimension of tokens, else in the second one."""
    shape = shape_of(node) or ()
    return shape[2] if len(shape) == 3 else shape[1] if len(shape) > 1 else 0


def _runs(program: Program, layers: Mapping[str, list[Layer]]) -> dict[str, dict[str, str]]:
    """By member and path, what of the layers is in a stage's program."""
    found: dict[str, dict[str, str]] = {name: {} for name in layers if name in {one.name for one in program.members}}
    merged: set[tuple[str, str]] = set()
    for node in program.nodes("model"):
        member, path = str(node.meta["member"]), str(node.meta.get("path", ""))
        if member not in found or not path:
            continue
        found[member][path] = "runs"
        if _FOLDED in str(node.target):
            merged.add((member, path))
    for name, states in found.items():
        _note(name, states, layers[name], program, merged)
    return found


def _note(
    name: str, states: dict[str, str], layers: list[Layer], program: Program, merged: set[tuple[str, str]]
) -> None:
    """Say of what is there whether it is narrower, and of a norm that is not whether it was folded."""
    widths = {
        str(node.meta["path"]): _width(node) for node in program.nodes("model") if node.meta["member"] == name
    }  # fmt: skip
    for before, layer in zip([None, *layers], layers, strict=False):
        if layer.path in states:
            states[layer.path] = "narrowed" if 0 < widths.get(layer.path, 0) < layer.width else "runs"
        elif before is not None and "norm" in layer.kind and (name, before.path) in merged:
            states[layer.path] = "folded"

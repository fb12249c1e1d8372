"""Specialize: the program cut down to one stage.

Only the stage's losses stay; whatever nothing needs any more goes, so that a warm-up stage on a shallow pair runs a
fraction of both networks. Then the frozen members are made cheaper:

    bn(conv(x))                → conv'(x)                       BatchNorm in eval mode is affine per channel
    slice(f(x))                → f(slice(x))                    f acts per channel: ReLU, pooling, BatchNorm …
    slice(a + b)               → slice(a) + slice(b)
    slice(cat(a, b))           → cat(slice(a), slice(b))        a part that nothing is kept of goes
    slice(conv(x))             → conv[keep](x)                  fewer filters are computed at all

and sums of all members are written over an operand that nothing else reads: a + b → add_(a, b).

A slice sinks as far as each value has no other user, and no further than what is known: plain layers of ``torch.nn``
(no subclass, hook or parametrisation) and memory that nobody else looks at. That sinking *is* InDistill's pruning of
an intermediate layer: each pruned layer reads the full activation of the unpruned teacher. The proof, run every time:
what the stage's losses read from frozen members is what they read from them before.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxdistill.errors import InvariantError
from fxdistill.ir.adapters import SCALES, FixedScale
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.graph import submodule
from fxdistill.ir.program import Program, Term, fields, of_role
from fxdistill.ir.running import buffers_kept, example, full_precision, seeded, told_by
from fxdistill.passes.specialize.needed import remove_dead, upto
from fxdistill.passes.specialize.overwrite import overwrite
from fxdistill.passes.specialize.sink import CONVOLUTIONS, NORMS, Sinker, fused, is_frozen, is_plain
from fxdistill.plan.training import Stage

_SCALED: dict[object, str] = {function: name for name, function in SCALES.items()}
TOLERANCE = 1e-4
"""Largest difference of a teacher value before and after, relative to the largest value (float32 rounding)."""


@dataclass(frozen=True)
class Specialize(Pass[Program, Program]):
    """Cut a program down to one stage.

    Attributes:
        stage: The stage's name.
        taught: How many of its successors have taken the teacher's place.
    """

    stage: str
    taught: int = 0

    def run(self, source: Program) -> PassResult[Program]:
        """Restrict, fold, sink, overwrite, remove what is dead."""
        stage = source.find_stage(self.stage).under(self.taught)
        program = restricted(source, stage)
        folded = _fold_batch_norms(program)
        sunk = Sinker(program).run()
        written_over = overwrite(program)
        program = _clean(program)
        smaller = len(program.graph.nodes) < len(source.graph.nodes)
        return PassResult(program, modified=bool(smaller or folded or sunk or written_over))

    def ensures(self, source: Program, value: Program) -> None:
        """The losses are those of the stage and read what they read before."""
        graph, terms = _cut(source, source.find_stage(self.stage).under(self.taught))
        _same_losses(graph, terms, value, self.stage)

    def proves(self, source: Program, value: Program) -> None:
        """From frozen members losses read the values that they read before."""
        graph, _ = _cut(source, source.find_stage(self.stage).under(self.taught))
        images, one = told_by(_noise(value), lambda images: frozen_values(source, images, graph))
        other = frozen_values(value, images)
        if one.keys() != other.keys():
            raise InvariantError("specializing changed which losses read from frozen members", where=self.stage)
        for key, first in one.items():
            error = _relative_error(first, other[key])
            if not error <= TOLERANCE:
                raise InvariantError(
                    f"specializing changed what '{key}' reads, by {error:.1e} of its largest value",
                    where=f"stage {self.stage}",
                )


def restricted(source: Program, stage: Stage) -> Program:
    """The program with only a stage's losses and what they need; nothing is rewritten yet."""
    graph, terms = _cut(source, stage)
    return source.with_graph(graph, stages=(stage,), terms=terms)


def _cut(source: Program, stage: Stage) -> tuple[fx.Graph, tuple[Term, ...]]:
    """The graph of a stage's losses and of what they need, and its terms."""
    by_key = {node.meta["key"]: node for node in source.nodes("loss") if "key" in node.meta}
    terms = tuple(Term(_key(source, wanted.name, wanted.plain), wanted) for wanted in stage.losses)
    return upto(source.graph, source, {term.key: by_key[term.key] for term in terms}), terms


def _same_losses(before: fx.Graph, terms: tuple[Term, ...], after: Program, stage: str) -> None:
    """The losses are the same calls, and read the same but for slices that sank and frozen members made cheaper."""
    losses = [{str(node.meta["key"]): node for node in of_role(graph, "loss")} for graph in (before, after.graph)]
    if losses[0].keys() != losses[1].keys() or after.terms != terms or after.inputs != fields(before):
        raise InvariantError("specializing changed which losses there are, or their inputs", where=f"stage {stage}")
    for key, node in losses[0].items():
        other = losses[1][key]
        if (node.target, node.kwargs, len(node.args)) != (other.target, other.kwargs, len(other.args)):
            raise InvariantError(f"specializing changed the loss '{key}'", where=f"stage {stage}")
        for port, one, two in zip(node.meta["reads"], _arguments(node), _arguments(other), strict=True):
            rewritten = one.meta.get("role") == "adapter" or _is_frozen_alone(one)
            if not rewritten and one.name != two.name:
                raise InvariantError(f"specializing changed what '{key}' reads at {port}", where=f"stage {stage}")


def _arguments(loss: fx.Node) -> list[fx.Node]:
    return [value for value in loss.args if isinstance(value, fx.Node)]


def _key(source: Program, name: str, wanted: object) -> str:
    for term in source.terms:
        if term.loss.plain == wanted:
            return term.key
    raise InvariantError(f"the program lacks the loss '{name}'")


def _clean(program: Program) -> Program:
    """Reassemble after rewriting: unused modules and tensors go."""
    remove_dead(program.graph, program)
    return program.with_graph(program.graph)


def _fold_batch_norms(program: Program) -> int:
    """Fold the BatchNorms of frozen members into the convolutions in front of them, on copies."""
    calls = Counter(node.target for node in program.graph.nodes if node.op == "call_module")
    folded = 0
    for node in list(program.graph.nodes):
        norm = submodule(program, node)
        if not is_frozen(node) or type(norm) not in NORMS or not isinstance(norm, NORMS) or not is_plain(norm):
            continue
        conv_node = node.args[0] if node.args else None
        if (
            not isinstance(conv_node, fx.Node)
            or len(conv_node.users) != 1
            or norm.running_mean is None
            or norm.training
        ):
            continue
        conv = submodule(program, conv_node)
        if type(conv) not in CONVOLUTIONS or not isinstance(conv, CONVOLUTIONS) or not is_plain(conv):
            continue
        if calls[conv_node.target] > 1:
            continue
        program.add_submodule(f"{conv_node.target}_folded", fused(conv, norm))
        conv_node.target = f"{conv_node.target}_folded"
        node.replace_all_uses_with(conv_node)
        program.graph.erase_node(node)
        folded += 1
    return folded


def _noise(program: Program) -> Tensor:
    """Images for a proof."""
    images = example(program, program.meta["input_shape"])
    if len({p.dtype for p in program.parameters() if p.is_floating_point()}) > 1:
        images = images.float()  # as those of a run: members in another precision cast them
    return images


def frozen_values(program: Program, images: Tensor, graph: fx.Graph | None = None) -> dict[str, Tensor]:
    """What each loss of a program reads from frozen members, by loss and port.

    Scales are named, and what is scaled is given: over the deviation of a channel that hardly varies rounding is large.

    Args:
        program: The program.
        images: (N, C, H, W).
        graph: Another graph over the program's parts; None for its own.
    """
    read, whole = dict[str, fx.Node](), program.graph if graph is None else graph
    for node in of_role(whole, "loss"):
        for port, value in zip(node.meta["reads"], node.args, strict=False):
            if isinstance(value, fx.Node) and _is_frozen_alone(value):
                name, source = f"{node.meta['key']} {port}", value
                while (scale := _scale(program, source)) is not None:
                    name, source = f"{name}, {scale}", source.all_input_nodes[0]
                read[name] = source
    if not read:
        return {}
    called = fx.Interpreter(program, graph=upto(whole, program, read))
    device = images.device  # a teacher may draw random numbers, and count its calls
    with torch.no_grad(), full_precision(device), buffers_kept(program), seeded(device):
        values: dict[str, Tensor] = called.run({"images": images.clone()})
    return values


def _scale(program: Program, node: fx.Node) -> str | None:
    """The name of a scale that a loss compares by; None for another node."""
    return str(node.target) if isinstance(submodule(program, node), FixedScale) else _SCALED.get(node.target)


def _relative_error(first: Tensor, second: Tensor) -> float:
    """Largest difference as a share of the largest value; what is not finite must be so in both."""
    first, second = first.double(), second.double()
    known = first.isfinite() & second.isfinite()
    if first.shape != second.shape or not torch.equal(first.isfinite(), second.isfinite()):
        return float("inf")
    scale = float(first[known].abs().max()) if known.any() else 0.0
    error = float((first[known] - second[known]).abs().max()) if known.any() else 0.0
    return error / max(scale, torch.finfo(torch.float32).tiny)


def _is_frozen_alone(value: fx.Node) -> bool:
    """Whether a value comes from frozen members, and from no other."""
    models: set[bool] = set()
    seen, pending = {value}, [value]
    while pending:
        node = pending.pop()
        if node.meta.get("role") == "model" or node.op == "call_module":
            models.add(bool(node.meta.get("frozen")))
        new = [source for source in node.all_input_nodes if source not in seen]
        seen.update(new)
        pending.extend(new)
    return models == {True}

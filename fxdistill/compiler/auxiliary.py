"""The auxiliary teacher: a really smaller teacher, made from the teacher, that teaches in its place.

    teacher ─ thin to the student's widths ─ shrink (proved) ─ fine-tune from the teacher ─▶ auxiliary teacher

InDistill uses one where the gap in capacity is large. Its taps have the student's widths, so nothing is sliced. The
plan holds what it keeps as indices, so that ``run`` carries the same decision out on the teacher's weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxdistill.compiler.barriers import with_barriers
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import PairingError, PlanError
from fxdistill.ir.channels import Examples
from fxdistill.ir.contract import PassManager
from fxdistill.ir.graph import Traced, find, path_of
from fxdistill.passes.couple import Couple
from fxdistill.passes.shrink import Shrink, ShrinkSource
from fxdistill.passes.thin.kept import removed_of
from fxdistill.passes.thin.stays import layer_of
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Pair, Shrunken


@dataclass(frozen=True)
class Proposal:
    """A smaller member that was decided on.

    Attributes:
        shrunken: What the plan says of it.
        traced: The smaller model, with the original's weights that are left.
        pairs: The pairs, their teacher taps now those of the smaller model.
        diagnostics: What was not pruned, and why.
    """

    shrunken: Shrunken
    traced: Traced
    pairs: tuple[Pair, ...]
    diagnostics: tuple[Diagnostic, ...]


def propose(
    teacher: nn.Module, pairs: Sequence[Pair], *, input_shape: tuple[int, ...], keep: float | None, criterion: str,
    batch: Examples | None, loss: Callable[[Tensor, Tensor], Tensor], seed: int, passes: PassManager, of: str,
    name: str, entry: str = "", width: Callable[[Pair], int] = lambda pair: pair.student.width,
) -> Proposal:  # fmt: skip
    """Shrink a teacher to the student's widths, or to others between.

    Args:
        teacher: The teacher, not changed.
        pairs: The pairs; where the teacher's tap is the wider one, and to be shrunk, it gets another width.
        input_shape: Shape of one batch.
        keep: Share of the other channels to keep; None keeps them all.
        criterion: Importance of a channel.
        batch: Images and labels for criteria that read data.
        loss: What the labels say about a prediction, for the same.
        seed: Seed of the criterion, where it draws.
        passes: Where the passes run.
        of: The teacher's name in the plan.
        name: The smaller one's.
        entry: Which entry of their output is the prediction.
        width: Which one.

    Raises:
        PairingError: A width cannot be had, with the chain of couplings that forbids it; or none of them can.
        InputError: There is nothing to remove.
    """
    wider = [pair for pair in pairs if pair.student.width < pair.teacher.width and pair.align == "shrink"]
    stays = next((remark for remark in passes.diagnostics if remark.code == "teacher-locked"), None)
    if not wider and keep is None and stays is not None:
        raise PairingError(
            f"no layer that is paired can be made narrower: {stays.why}", where=stays.where, hint=stays.hint
        )
    widths = [(pair.teacher.path, width(pair)) for pair in wider]
    shrunk = shrink_model(
        teacher, input_shape=input_shape, keep=keep, widths=widths, criterion=criterion, batch=batch, loss=loss,
        seed=seed, passes=passes, entry=entry,
    )  # fmt: skip
    traced = passes.run(Trace(input_shape, entry=entry), shrunk.module)
    shrunken = Shrunken(
        of=of, kept=shrunk.kept,
        widths={name: shrunk.widths[layer_of(name)][0] for name in shrunk.kept},
        taps={pair.name: pair.teacher.width for pair in wider},
        barriers=list(shrunk.barriers), criterion=criterion, rung=shrunk.rung,
        parameters=shrunk.after.parameters, macs=shrunk.after.macs,
    )  # fmt: skip
    return Proposal(shrunken, traced, tuple(_narrowed(pair, traced, name) for pair in pairs), shrunk.diagnostics)


def make(
    shrunken: Shrunken, teacher: nn.Module, *, input_shape: tuple[int, ...], passes: PassManager | None = None
) -> fx.GraphModule:
    """A plan's shrunken member, on the weights of the one that it is made from, proved; that one is not changed.

    Raises:
        PlanError: The kept indices remove what has to stay.
        InputError: They are not of this model.
    """
    passes = passes or PassManager()
    traced = passes.run(Trace(input_shape, rungs=(shrunken.rung,)), teacher)
    coupling = with_barriers(traced, passes.run(Couple(), traced), shrunken.barriers)
    removed = removed_of(coupling, shrunken.kept)
    for class_id in sorted(removed):
        if reason := coupling.locked(class_id):
            raise PlanError(f"the plan removes a channel that {reason}", where="members, kept", hint="plan anew")
    return passes.run(Shrink(), ShrinkSource(traced, coupling, removed)).module


def _narrowed(pair: Pair, traced: Traced, member: str) -> Pair:
    """The pair with the teacher's tap as it is in the smaller teacher."""
    node = find(traced, pair.teacher.path)
    shape = [int(size) for size in node.meta["shape"]]
    width = shape[pair.teacher.channel_dim]
    tap = pair.teacher.changed(member=member, path=path_of(node), shape=shape, width=width)
    wider = "slice" if pair.align == "shrink" and width > pair.student.width else "project"
    align = "shrink" if width == pair.student.width else wider
    return pair.changed(teacher=tap, align=align)

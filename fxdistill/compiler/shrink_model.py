"""Shrinking a whole model: trace, couple, decide, carry out, prove."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor, fx, nn
from torch.nn import functional

from fxdistill.compiler.barriers import barrier_remarks, next_barrier, with_barriers
from fxdistill.compiler.training_mode import otherwise_in_training
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import CriterionError, InvariantError, ModelError, PassError
from fxdistill.ir.budget import Limit, Size
from fxdistill.ir.channels import Examples
from fxdistill.ir.contract import PassManager
from fxdistill.ir.coupling import Said
from fxdistill.ir.graph import Shape, Traced, path_of
from fxdistill.ir.layers import Timing
from fxdistill.ir.running import attention_in_parts
from fxdistill.losses import LOSSES
from fxdistill.passes.couple import Couple
from fxdistill.passes.shrink import Shrink, ShrinkSource
from fxdistill.passes.shrink.arguments import Obstacle
from fxdistill.passes.shrink.prove import Proof
from fxdistill.passes.shrink.unused import keep as keep_unused
from fxdistill.passes.shrink.unused import remarks as unused_remarks
from fxdistill.passes.shrink.unused import unused as unused_tensors
from fxdistill.passes.thin import Removal, Thin, ThinSource
from fxdistill.passes.thin.kept import KeptIndices
from fxdistill.passes.thin.search import Ranking
from fxdistill.passes.trace import Trace
from fxdistill.passes.trace.restore import switched_off
from fxdistill.plan.schema import Rung
from fxdistill.tasks import Task, labelled


class Confirmed(NamedTuple):
    """The latency of a smaller model, measured in turn with the original.

    Attributes:
        own_ms: Milliseconds that the original takes, median.
        ms: Milliseconds that the smaller model takes, median.
        share: The median share of the two in turn.
        low: The lower end of that median's 95 % interval.
        high: The upper end.
        provider: What ran both.
    """

    own_ms: float
    ms: float
    share: float
    low: float
    high: float
    provider: str


@dataclass(frozen=True, eq=False)
class ShrunkResult:
    """A shrunken model and what there is to say about it.

    Attributes:
        module: The smaller model, a plain ``fx.GraphModule`` in eval mode.
        proof: What was compared with the masked original.
        kept: For each weight that got smaller the output indices that it keeps.
        widths: For each producing module its width before and after.
        before: Size of the original.
        after: Size of the smaller model.
        confirmed: The latency that was measured for such a budget.
        criterion: What the importance of its channels was, by name.
        rung: How the original was traced.
        barriers: Paths of what cannot be shrunk; the channels that go through it had to stay.
        input_shape: Shape of one batch.
        diagnostics: What was not pruned, and why; other remarks.
    """

    module: fx.GraphModule
    proof: Proof
    kept: KeptIndices
    widths: dict[str, tuple[int, int]]
    before: Size
    after: Size
    criterion: str
    rung: Rung
    barriers: tuple[str, ...]
    input_shape: Shape
    diagnostics: tuple[Diagnostic, ...]
    confirmed: Confirmed | None = None


def shrink_model(
    module: nn.Module, *, input_shape: Shape, keep: float | None = None, limits: Sequence[Limit] = (),
    ranking: Ranking | None = None, floor: float | None = None, scopes: Sequence[tuple[str, float]] = (),
    widths: Sequence[tuple[str, int]] = (), criterion: str = "l1", round_to: int | None = 1,
    protect: Sequence[str] = (), only: Sequence[str] = (),
    batch: Examples | None = None, loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    known: Said | None = None, seed: int = 0,
    before: Sequence[tuple[str, int]] = (), timing: Timing | None = None, roughly: bool = False,
    entry: str = "", passes: PassManager | None = None,
) -> ShrunkResult:  # fmt: skip
    """Make a model physically smaller; the model itself is not changed.

    Args:
        module: Takes one batch of images.
        input_shape: Shape of the batch, the batch size first.
        keep: Share of the channels to keep, in (0, 1).
        limits: What the smaller model may cost, instead of ``keep``; it is met within 2 %.
        ranking: What competes for that: ``global``, ``isomorphic`` or ``uniform``; None for the last one with ``keep``
            and the first one with ``limits``.
        floor: The least share of its channels that a layer keeps; None for 0 with ``keep`` and 0.1 with ``limits``.
        scopes: Parts with a share of their own, (module path, share to keep); 1 keeps all of it.
        widths: Wanted widths of taps, (node path, channels); without ``keep`` nothing else is removed.
        criterion: One of :mod:`fxdistill.criteria`, or two as ``NAME+NAME``: see :class:`Thin`.
        round_to: Widths become multiples of this; None for what :class:`Thin` chooses.
        protect: Paths whose channels stay.
        only: Paths of the modules to prune; empty for the whole model.
        batch: Images and targets for criteria that read data.
        loss: What the targets say about a prediction, for the same: a mean over the labels.
        known: What criteria have said of the batch, where the model is made smaller several times: {} for the first.
        seed: Seed of the criterion ``random`` and of the proof.
        before: The widths of layers before earlier steps, by module path: floors and shares of parts are of these.
        timing: How long layers take, for budgets of time.
        roughly: Whether the widths nearest below a budget will do where none come within 2 % of it.
        entry: Which entry of the output is the prediction; '' to find it.
        passes: A manager to run the passes in, for its timings and remarks.

    Raises:
        InputError: The request changes nothing, or names what is not there.
        PairingError: A width cannot be had; names the chain of couplings.
        PassError: The smaller model is not the masked one; nothing is returned.
        InvariantError: It costs something else than was counted for a budget.
    """
    passes = passes or PassManager()
    thin = Thin(
        keep=keep, limits=tuple(limits), ranking=ranking, floor=floor, scopes=tuple(scopes), widths=tuple(widths),
        criterion=criterion, round_to=round_to, protect=tuple(protect), only=tuple(only), seed=seed,
        before=tuple(before), roughly=roughly,
    )  # fmt: skip
    known = {} if known is None else known
    barriers: dict[str, str] = {}
    traced = passes.run(Trace(input_shape, entry=entry), module)
    while True:
        unread = _count(module) - _count(traced.module)
        coupling = with_barriers(traced, passes.run(Couple(), traced), tuple(barriers))
        removal = passes.run(thin, ThinSource(traced, coupling, batch, loss, known, unread, timing))
        try:
            shrunken = passes.run(Shrink(seed=seed), ShrinkSource(traced, coupling, removal.removed))
            break
        except PassError as error:
            if not isinstance(error.__cause__, Obstacle):
                raise
            obstacle = error.__cause__
        smaller = _in_small_operations(traced, module, input_shape, passes) if obstacle.fused else None
        if smaller is None:
            barriers[next_barrier(traced, obstacle.path, barriers)] = obstacle.why
        else:
            traced, barriers = smaller, {}
            known.clear()
    unused = unused_tensors(module, traced)
    keep_unused(shrunken.module, unused)
    again = Trace(input_shape)(shrunken.module).value
    after = Size(_count(shrunken.module), again.macs_of_image)
    _check_count(removal, after)
    return ShrunkResult(
        module=shrunken.module, proof=shrunken.proof, kept=removal.kept, widths=removal.widths,
        before=Size(_count(module), traced.macs_of_image), after=after,
        criterion=criterion, rung=traced.rung, barriers=tuple(barriers), input_shape=tuple(input_shape),
        diagnostics=(
            *coupling.diagnostics, *passes.records[-2].diagnostics, *barrier_remarks(barriers),
            *unused_remarks(unused), *(tuple(_frozen(traced)) or otherwise_in_training(module, traced)),
        ),
    )  # fmt: skip


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _check_count(removal: Removal, found: Size) -> None:
    """Refuse a model that costs something else than was counted when its budget was met."""
    if removal.size is not None and removal.size != found:
        raise InvariantError(
            f"the smaller model has {found.parameters:,} parameters and {found.macs:,} MACs, and "
            f"{removal.size.parameters:,} and {removal.size.macs:,} were counted", where="budget",
        )  # fmt: skip


def supervised_loss(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """What a task's labels say about a prediction, for criteria that read gradients.

    A task without a loss of its own says nothing, nor does one whose loss is more than a function of prediction and
    labels: a criterion that asks for it gets an error.
    """
    loss = LOSSES.get(task.supervised) if task.supervised is not None else None
    if loss is not None and loss.function is not None and loss.reads == ("student.logits", "labels"):
        return partial(_of_labels, loss.function)
    why = (
        "has no loss of its own"
        if loss is None
        else f"has the loss '{task.supervised}', which reads more than prediction and labels"
    )

    def nothing(_prediction: Tensor, _targets: Tensor) -> Tensor:
        raise CriterionError(
            f"this task {why}, so there are no gradients to rank channels by", where="criterion",
            hint="choose one that reads weights alone, e.g. l1",
        )  # fmt: skip

    return nothing


def _of_labels(loss: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, targets: Tensor) -> Tensor:
    if not bool(labelled(targets).any()):
        raise CriterionError(
            "none of the images has a label, so there are no gradients to rank channels by", where="criterion",
            hint="choose one that reads weights alone, e.g. l1, or give data with labels",
        )  # fmt: skip
    return loss(prediction, targets)


def _frozen(traced: Traced) -> Iterator[Diagnostic]:
    """Batch norms and dropouts that are calls and no modules: their mode is that of the trace for good."""
    calls = [(node, kind) for node in traced.graph.nodes if (kind := switched_off(node))]
    norms = [path_of(node) for node, kind in calls if kind == "batch_norm"]
    others = [path_of(node) for node, kind in calls if kind != "batch_norm"]
    if others:
        yield Diagnostic(
            code="frozen-mode", severity="warning", where=others[0],
            why=f"{len(others)} dropouts or normalisations are calls of a function and no layers, so they stay as they "
            "are in eval mode: train() does not change them",
            hint="use layers, such as nn.Dropout, where training the shrunken model needs them",
        )  # fmt: skip
    if norms:
        yield Diagnostic(
            code="frozen-batch-norm", severity="warning", where=norms[0],
            why=f"{len(norms)} batch norms are calls of a function and no layers, so they stay in eval mode: train() "
            "does not change them, and training goes on with the statistics that they have",
        )  # fmt: skip


def _in_small_operations(traced: Traced, module: nn.Module, shape: Shape, passes: PassManager) -> Traced | None:
    """The model traced by ``torch.export``, where fused functions fall apart; None where that is no use."""
    if traced.rung == "export":
        return None
    try:
        with attention_in_parts():
            return passes.run(Trace(shape, rungs=("export",), entry=traced.entry), module)
    except ModelError:
        return None

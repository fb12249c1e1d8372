"""Criteria: how much each coupled class of channels matters, one file each, and the registry of their names.

A criterion is a function of :class:`fxdistill.ir.channels.Channels`, what may be known of one model. Most sum over the
members of a class, the filters f of the weights W that produce its channels:

    CRITERION = Criterion(
        summary="the L1 norm of the filters", score=lambda channels: channels.sum_over_filters(norm)
    )

A file in this folder is a criterion, and costs nothing else. A criterion reads: whoever touches the model is refused.
One that reads weights alone is asked once about the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxdistill.errors import CriterionError, InvariantError, PlanError
from fxdistill.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from fxdistill.ir.channels import Channels


@dataclass(frozen=True)
class Criterion:
    """A measure of importance.

    Attributes:
        score: The importance of every class, by class id: float64 of shape (classes + 1,); 0 where it says nothing.
        summary: A few words for help.
        needs_batch: Whether it reads gradients or activations, on a batch of data, and not weights and seed alone.
        of_loss: Whether it is what a loss loses, so that channels of different layers compare as they are.
    """

    score: "Callable[[Channels], Tensor]"
    summary: str = ""
    needs_batch: bool = False
    of_loss: bool = False


def measures(name: str) -> tuple[str, str]:
    """By which criterion layers compete for widths, and by which the channels of one layer: of NAME, or NAME+NAME."""
    first, both, second = name.partition("+")
    return first, second if both else first


def importance(name: str, channels: "Channels") -> "Tensor":
    """The importance of every class by a criterion's name, float64 of shape (classes + 1,).

    What a criterion says is kept for as long as the model's checksums are the same: with the coupling, or, where it
    says it of a batch, in ``channels.known``.

    Raises:
        PlanError: There is no such criterion.
        InputError: There is no batch for it.
        CriterionError: It cannot say anything: no batch norm, no gradients, weights that are not numbers or all 0; or
            one of another distribution failed.
        InvariantError: The criterion's scores have the wrong shape, or it changed the model.
    """
    with CRITERIA.called(name, error=CriterionError):
        return _importance(name, CRITERIA.get(name, where="criterion", error=PlanError), channels)


def _importance(name: str, criterion: Criterion, channels: "Channels") -> "Tensor":
    before = channels.fingerprint()
    kept, key = channels.known if criterion.needs_batch else channels.coupling.importances, (criterion, channels.seed)
    whole = not criterion.needs_batch or (channels.batch is not None and channels.asked is None)
    if whole and (known := kept.get(key)) and known[0] == before:
        return known[1].clone()
    scores = criterion.score(channels)
    after = channels.fingerprint()
    if after != before:
        touched = next((key for key in before if after.get(key) != before[key]), "a new tensor")
        raise InvariantError(f"the criterion '{name}' changed the model that it measures: {touched}", where="criterion")
    if scores.shape != (channels.coupling.class_count + 1,) or not scores.is_floating_point():
        raise InvariantError(
            f"the criterion '{name}' gave scores of shape {tuple(scores.shape)} in {scores.dtype} for "
            f"{channels.coupling.class_count} classes", where="criterion",
        )  # fmt: skip
    scores = scores.detach().cpu().double()
    if not bool(scores.isfinite().all()):
        raise CriterionError(
            f"the criterion '{name}' gives importances that are not numbers", where="criterion",
            hint="the model's weights, or its loss on the given data, are not finite, or too large; choose another "
            "criterion",
        )  # fmt: skip
    if channels.coupling.class_count and not bool(scores.any()):
        raise CriterionError(
            f"the criterion '{name}' says nothing about any channel of this model: all its importances are 0",
            where="criterion", hint=other_than(name),
        )  # fmt: skip
    if whole:
        kept[key] = before, scores.clone()
    return scores


def other_than(name: str) -> str:
    """What to do where a criterion says nothing."""
    return f"choose another, e.g. {'random' if name == 'l1' else 'l1'}"


CRITERIA: Registry[Criterion] = Registry("criterion", __name__, "CRITERION", Criterion)

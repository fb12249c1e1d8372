"""What a loss is called where several have its name: by whose it is, and if that is not enough, by who teaches it."""

from collections.abc import Sequence

from fxdistill.passes.instrument.builder import distinct
from fxdistill.plan.training import LossTerm, Stage


def of_members(stages: Sequence[Stage]) -> dict[str, str]:
    """The keys of losses with what people call them: ``kd#2`` is ``kd of level-1``, or ``kd from teacher``.

    Where two differ in something else, as in an argument, both keep their keys.
    """
    terms = {one.key: one.loss for one in distinct(tuple(stages))}
    told = {key: _called(loss, [other for other in terms.values() if other.name == loss.name])
            for key, loss in terms.items()}  # fmt: skip
    return {key: name if [*told.values()].count(name) == 1 else key for key, name in told.items()}


def _called(loss: LossTerm, namesakes: Sequence[LossTerm]) -> str:
    own = [one for one in namesakes if one.student == loss.student]
    of = f" of {loss.student}" if len(own) < len(namesakes) else ""
    taught = f" from {loss.teacher}" if len({one.teacher for one in own}) > 1 else ""
    return f"{loss.name}{of}{taught}"

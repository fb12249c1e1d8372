"""What a model may cost: sizes, limits on them, and the words for both."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fxdistill.errors import BudgetError


class Size(NamedTuple):
    """Parameters of a model, and multiply-accumulates of an image."""

    parameters: int
    macs: int


class Spent(NamedTuple):
    """The same, and nanoseconds by the times of its layers; 0 where they are not known."""

    parameters: int
    macs: int
    latency: int


What = Literal["parameters", "macs", "latency"]


@dataclass(frozen=True)
class Limit:
    """What a model may cost.

    Attributes:
        what: Of what; latencies are in nanoseconds, by the times of the layers.
        amount: How much; below 1 a share of the model's own.
        option: The option that says it, for messages.
    """

    what: What
    amount: float
    option: str = ""

    def most(self, own: Size | Spent) -> int:
        """How much that is of a model's own size."""
        return int(self.amount * getattr(own, self.what)) if self.amount < 1 else int(self.amount)


def limits_of(*, macs: float | None = None, parameters: float | None = None) -> tuple[Limit, ...]:
    """The budgets that are given."""
    found = [] if macs is None else [Limit("macs", macs, "--macs")]
    return (*found, *([] if parameters is None else [Limit("parameters", parameters, "--params")]))


def check_limit(what: What, most: int, *, least: Size | Spent, whole: Size | Spent, where: str, floor: str) -> None:
    """Refuse a budget that cannot be met, or that the whole model keeps to.

    Args:
        what: Of what it is.
        most: What may be spent.
        least: The least that can be had.
        whole: The model's own size.
        where: The option.
        floor: When it is that least, in words.

    Raises:
        BudgetError: It is below the least, or not below the whole.
    """
    least_, whole_ = getattr(least, what), getattr(whole, what)
    if least_ <= most < whole_:
        return
    why = (
        f"{told(what, most)} cannot be met: {floor} there are {told(what, least_, unit=False)} left"
        if most < least_
        else f"the model has no more than {told(what, whole_)}, and {told(what, most, unit=False)} are allowed"
    )
    hint = (
        f"give one from {told(what, least_, unit=False)} up to {told(what, whole_ - 1, unit=False)}"
        if least_ < whole_
        else "nothing of it can be removed"
    )
    raise BudgetError(why, where=where, hint=hint, least=least_ if most < least_ else 0)


def told(what: What, amount: int, *, unit: bool = True) -> str:
    """An amount of it, in words."""
    if what == "latency":
        return f"{amount / 1e6:.3g} ms" + (" by the times of its layers" if unit else "")
    name = "MACs" if what == "macs" else what
    return f"{amount:,}" + (f" {name[:-1] if amount == 1 else name}" if unit else "")

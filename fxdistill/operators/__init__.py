"""Operators: what is known of an operation, and the registry of those that have a file of their own.

An operation is known by its bare name: ``x + y``, ``x += y`` and ``torch.add`` are all ``add``. The table of them is
:mod:`fxdistill.ir.operators`; where existing rules serve, a new operation is one line there. One that needs code of
its own is a file here, or an entry point of an installed distribution:

    OPERATOR = Operator(names=("special_xlog1py",), traits=Trait.ELEMENTWISE, labels="elementwise")

Rules are named by a word, which the pass that applies them knows; or they are given as functions. Of an operation that
is in neither nothing is assumed: channels are not followed through it, with a remark.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, TypeVar

from fxdistill.errors import InputError
from fxdistill.registry import Registry, suggestion

Function = TypeVar("Function", bound=Callable[..., Any])


class Trait(Flag):
    """What holds for an operation, whatever its arguments are."""

    POINTWISE = auto()
    """Of one tensor, in eval mode ``f(x)[i] = f(x[i])``: what slices the result may slice ``x`` instead."""
    ELEMENTWISE = auto()
    """The same of any number of tensors, which broadcast."""
    ACTIVATION = auto()
    """A nonlinearity after which a person would tap a network."""
    POOLING = auto()
    """Of (N, C, H, W), works on each map alone: what slices the channels may slice the input instead."""
    CONCATENATES = auto()
    """Lays tensors side by side."""
    BOOLEAN = auto()
    """The result is of type bool, whatever the operands are."""
    METADATA = auto()
    """Asks for shape, type or place: the answer carries no data."""
    CARRIES = auto()
    """Hands its first input on but for form, place and type: where a value comes from is told by what is before."""
    VIEW = auto()
    """The result may share memory with the first input."""
    RESHAPES = auto()
    """Gives the elements new sizes, in the order that they have."""
    KEEPS_ORDER = auto()
    """Moves the elements, integers as well, and leaves them in their order."""
    PERMUTES = auto()
    """Moves the elements, integers as well, into another order: of dimensions or inside of them."""
    REORDERS = auto()
    """Permutes inside of a dimension."""
    PICKS = auto()
    """Takes elements by fixed indices, maybe in another order."""
    CUTS = auto()
    """Takes pieces along a dimension."""
    STATISTIC = auto()
    """Reduces elements to what depends on how many they are: their mean, their norm."""
    WEIGHS = auto()
    """Sets elements off against one another: softmax, largest, sorted."""
    UNIFORM = auto()
    """Makes a tensor of given sizes that holds one number everywhere."""
    FUSED = auto()
    """Several operations in one, with weights: has to be traced in smaller ones to be shrunk."""


NOTHING = Trait(0)


@dataclass(frozen=True)
class Operator:
    """What is known of some operations. Everything that is left out is unknown, and so done without.

    Attributes:
        names: Their bare names (:func:`fxdistill.ir.operators.bare_name`).
        traits: What holds for them.
        labels: How channel labels pass: a word of :mod:`fxdistill.passes.couple.rules`, or a function
            ``(ledger, function, args, kwargs) -> labelled value`` (there as well).
        spelled: Instead of ``labels``: the operation written in others, with its own arguments, shapes and types true.
        rewrite: How a node is corrected when widths shrink: a word of :mod:`fxdistill.passes.shrink.rewrites`, or a
            function ``(node, run, masks) -> None``. Without one, sizes among the arguments stay as they are.
        masked: The value of the full model when removed elements do not count: a word of
            :mod:`fxdistill.passes.shrink.masked`, or a function ``(call, alive) -> value or None``; ``alive`` says
            which elements of the first argument survive. Without one, zeros in their place do.
    """

    names: tuple[str, ...] = ()
    traits: Trait = NOTHING
    labels: str | Callable[..., Any] = ""
    spelled: Callable[..., Any] | None = None
    rewrite: str | Callable[..., Any] = ""
    masked: str | Callable[..., Any] = ""


OPERATORS: Registry[Operator] = Registry("operator", __name__, "OPERATOR", Operator)


def rule(given: str | Function, known: Mapping[str, Function], *, field: str, name: str) -> Function | None:
    """The function of a rule; None where there is none.

    Args:
        given: A word, a function, or ''.
        known: The functions of the words.
        field: The field of the operator, in messages.
        name: The operation.

    Raises:
        InputError: The word is not known.
    """
    if not isinstance(given, str):
        return given
    if given and given not in known:
        raise InputError(
            f"the operator '{name}' names the unknown rule '{given}'", where=f"{field} of the operator '{name}'",
            hint=suggestion(given, tuple(known), "known are"),
        )  # fmt: skip
    return known.get(given)


def collected(ours: Iterable[Operator], registry: Registry[Operator] = OPERATORS) -> dict[str, Operator]:
    """The table by bare name: ours, and what the registry adds.

    Raises:
        InputError: A registered operator has a name that is in the table already, or none, or is no operator.
    """
    table = {name: known for known in ours for name in known.names}
    for entry in registry.names():
        known = registry.get(entry)
        where = f"operator '{entry}'"
        if not isinstance(known, Operator) or not known.names:
            raise InputError(
                "this operator says nothing", where=where, hint='give an Operator(names=("its_bare_name",), ...)'
            )
        for name in known.names:
            if name in table:
                raise InputError(
                    f"the operation '{name}' is known already", where=where, hint="an operator adds, and replaces none"
                )
            table[name] = known
    return table

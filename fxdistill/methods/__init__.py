"""Methods, one file each: what a method's name means, and the registry of the names.

A method is a value. Its name expands into explicit stages with explicit numbers, which the plan holds; nothing of a
method is left when a plan is run. Names **compose**: ``indistill+kd`` warms up as ``indistill`` does and then trains
as ``kd`` does; the main stage is that of the last part that has one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxdistill.errors import InputError, PlanError
from fxdistill.registry import Registry

if TYPE_CHECKING:
    from fxdistill.plan.schema import Pair
    from fxdistill.plan.training import LossTerm, Stage

DISTIL = ("trace", "couple", "match", "prune", "shrink", "schedule", "instrument", "specialize")
"""The passes of a method that compares two members, by name, in order."""
DEFAULT_CRITERION = "l1"
RATE = 3e-3
"""The learning rate of a method that has none of its own, chosen on images set aside from training
(``benchmarks/README.md``)."""


@dataclass(frozen=True)
class Recipe:
    """What a method expands: the pairs, and the numbers that the user gave.

    Attributes:
        pairs: The pairs, from shallow to deep.
        supervised: The task's own term, with weight 1; None for a task that has none.
        imitation: The term by which the student's prediction imitates the teacher's, with weight 1 and the loss's own
            arguments; None for a task in which there is no use in that.
        teacher: The member that teaches.
        student: The member that learns.
        epochs: Epochs of the main stage.
        lr: Learning rate.
        embeds: Whether predictions are embeddings, of which it counts how they lie to each other.
    """

    pairs: "Sequence[Pair]"
    supervised: "LossTerm | None" = None
    imitation: "LossTerm | None" = None
    teacher: str = "teacher"
    student: str = "student"
    epochs: int = 60
    lr: float = RATE
    embeds: bool = False


@dataclass(frozen=True)
class Method:
    """What a method's name means.

    Attributes:
        summary: One line for help.
        warm_up: The stages before the main one; None for none.
        main: The terms of the main stage; None where it is a warm-up only, for ``default_main`` to follow.
        needs_pairs: Whether there must be pairs.
        takes_embeddings: Whether it compares predictions instead of a pair where these are embeddings.
        default_main: The method whose main stage follows where the name names none.
        criterion: The criterion that chooses the channels to keep, where the user names none; None for ``l1``.
        on_data: The same where there are images to look at; None for ``criterion``.
        passes: The passes that make its plan, by name, in order.
        source: Where it was published: an arXiv number, a venue.
        alone: Whether its student is made out of the teacher, so that none is given.
        lr: The learning rate where the user names none; None for :data:`RATE`.
    """

    summary: str
    warm_up: "Callable[[Recipe], Sequence[Stage]] | None" = None
    main: "Callable[[Recipe], Sequence[LossTerm]] | None" = None
    needs_pairs: bool = False
    takes_embeddings: bool = False
    default_main: str = "kd"
    criterion: str | None = None
    on_data: str | None = None
    passes: tuple[str, ...] = DISTIL
    source: str = ""
    alone: bool = False
    lr: float | None = None

    def lacks_pairs(self, recipe: Recipe) -> bool:
        """Whether it needs pairs of a recipe that has none."""
        return self.needs_pairs and not recipe.pairs and not (self.takes_embeddings and recipe.embeds)


METHODS: Registry[Method] = Registry("method", __name__, "METHOD", Method)


@dataclass(frozen=True)
class Composed:
    """A method's name, read: the methods that it names, the one of the main stage last.

    Attributes:
        name: As it was written.
        parts: Name and method of each part.
        assumed: Whether the method of the main stage was named by nobody.
    """

    name: str
    parts: tuple[tuple[str, Method], ...]
    assumed: bool = False

    def lacks_pairs(self, recipe: Recipe) -> bool:
        """Whether any part needs pairs of a recipe that has none."""
        return any(method.lacks_pairs(recipe) for _, method in self.parts)

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes: those of the last part, which makes the student or is given one."""
        return self.parts[-1][1].passes

    @property
    def alone(self) -> bool:
        """Whether the student is made out of the teacher, so that none is given."""
        return self.parts[-1][1].alone

    @property
    def lr(self) -> float:
        """The learning rate where the user names none: that of the last part which has one of its own."""
        return next((method.lr for _, method in reversed(self.parts) if method.lr is not None), RATE)

    @property
    def criterion(self) -> str:
        """The criterion of the first part that has one."""
        return next((method.criterion for _, method in self.parts if method.criterion is not None), DEFAULT_CRITERION)

    @property
    def on_data(self) -> str:
        """The same where there are images to look at."""
        found = (method.on_data or method.criterion for _, method in self.parts)
        return next((name for name in found if name is not None), DEFAULT_CRITERION)

    def warm_ups(self, recipe: Recipe) -> "list[Stage]":
        """The warm-up stages of all parts, in order."""
        return named((part, _warm_up(part, method, recipe)) for part, method in self.parts)

    def main_terms(self, recipe: Recipe) -> "list[LossTerm]":
        """The terms of the main stage."""
        return _main(*self.parts[-1], recipe)


def _warm_up(name: str, method: Method, recipe: Recipe) -> "list[Stage]":
    with METHODS.called(name):
        return [] if method.warm_up is None else list(method.warm_up(recipe))


def _main(name: str, method: Method, recipe: Recipe) -> "list[LossTerm]":
    with METHODS.called(name):
        return [] if method.main is None else list(method.main(recipe))


def named(parts: "Iterable[tuple[str, Iterable[Stage]]]") -> "list[Stage]":
    """The stages of several methods, each with a name of its own: one that is taken has its method's before it."""
    found: dict[str, Stage] = {}
    for part, stages in parts:
        for stage in stages:
            name = stage.name if stage.name not in found else f"{part}-{stage.name}"
            found[name] = stage.changed(name=name)
    return list(found.values())


def composed(name: str, *, where: str = "--method", default_main: str | None = None) -> Composed:
    """Read a method's name.

    Args:
        name: It.
        where: For messages.
        default_main: The method of the main stage where the name names none; None for what that method says.

    Raises:
        InputError: A part is unknown or occurs twice, or a part before the last one has no warm-up.
    """
    names = name.split("+")
    parts = [(part, METHODS.get(part, where=where)) for part in names]
    for part in names:
        if names.count(part) > 1:
            raise InputError(f"'{part}' occurs twice in '{name}'", where=where, hint="name each method once")
    assumed = parts[-1][1].main is None
    if assumed:
        default = default_main or parts[-1][1].default_main
        name = name if default_main is None else f"{name}+{default}"
        parts.append((default, METHODS.get(default, where=where)))
    for part, method in parts[:-1]:
        if method.warm_up is None:
            others = ", ".join(name for name, method in _working() if method.warm_up is not None)
            raise InputError(
                f"'{part}' has no warm-up, so nothing of it is left in '{name}'", where=where,
                hint=f"leave it out, or put a method with a warm-up there: {others}",
            )  # fmt: skip
    if not parts[-1][1].alone and len({method.passes for _, method in parts}) > 1:
        raise InputError(
            f"the methods in '{name}' go through different passes, so they cannot be one", where=where,
            hint="plan with one of them",
        )  # fmt: skip
    if parts[-1][1].main is None:
        raise PlanError(f"the method '{parts[-1][0]}' has no main stage", where=where, hint="name another one last")
    return Composed(name, tuple(parts), assumed)


def with_terms(recipe: Recipe) -> list[str]:
    """The methods that have a main stage for what they are to expand, which is about a student that is given."""
    found = []
    for name, method in _working():
        with suppress(InputError):  # one of another distribution that fails is none to propose
            if not (method.alone or method.lacks_pairs(recipe)) and _main(name, method, recipe):
                found.append(name)
    return found


def _working() -> "Iterator[tuple[str, Method]]":
    """The methods that can be imported."""
    for name in METHODS.names():
        with suppress(InputError):
            yield name, METHODS.get(name)

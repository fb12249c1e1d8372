"""The cascade: a student that is pruned out of its own teacher, with assistants on the way.

Miles and Mikolajczyk, "Cascaded channel pruning using hierarchical self-distillation", BMVC 2020, arXiv 2008.06814.
Levels of one network share their convolutions: level-0 is the student, which keeps a share k of the channels, the last
one keeps all of them, and the levels between are assistants. Each learns from the level above it, the last one from the
frozen teacher that all of them start as; the scores behind each level's mask move by the gradient of the level above it
(:mod:`fxdistill.passes.mask`). With no assistant there is one level, whose scores move by its own gradient.

    warm-up   with indistill+cascade: layer by layer, all levels imitate what the frozen teacher's layers hand on,
              each through the mask that its scores start with, which stays as it is; the level that keeps all does
              so too, so that the convolutions that it shares remain of use to it
    joint     all levels at once, while the masks move
    main      the student alone, cut out of its level; as soon as it is better than its teacher on the validation images
              the next level up teaches

What the paper says is here as it is: SGD with Nesterov's momentum 0.9, weight decay 4e-4, half a cosine from 0.008,
temperature 15, lambda 0.4, hints 0, as many epochs for either phase, levels at k, 1 + (k - 1) / 1.5, 1 + (k - 1) / 2.5,
1. What it leaves open is a number of the plan: cross-entropy 1 beside the 0.4 (so that labels count as much as without
a teacher), both phases; the softened predictions with the factor T squared of Hinton et al.; losses of all levels are
summed; scores begin as the L1 norm of their filters over the mean of their layer, and move by RMSProp, which the paper
has for ImageNet, where plain steps let whole layers collapse, at a rate of 0.0003, chosen on CIFAR-10 images set aside
from training. What was tried: ``benchmarks/README.md``.

A share of channels says nothing of their cost: channels of early layers, which compute the most, may be kept at the
expense of late ones. What a student may cost is a budget. Under one the channels of the first convolution compete as
well, which the paper keeps whole: in a small network that alone is almost half of what a student may cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from fxdistill import checking
from fxdistill.errors import InputError
from fxdistill.methods import Composed, Method, Recipe, named
from fxdistill.plan.schema import Pair
from fxdistill.plan.training import MOST_WEIGHT, Arm, Comparison, LossTerm, Optimizer, ScoreOptimizer, Stage

JOINT, DISTILLED = "joint", "distilled"
"""The names of the two arms."""
CASCADE = ("trace", "couple", "mask", "schedule")
"""The passes of the method."""
TEMPERATURE, LAMBDA, RATE = 15.0, 0.4, 0.008
WARM_UP_RATE = 0.001
"""Of a warm-up before it, whose levels start as the trained teacher, where its method has no rate of its own."""
_SCORES = ScoreOptimizer(name="rmsprop", lr=0.0003)
Spacing = Literal["paper", "even"]
Threshold = Literal["global", "layer"]
Budgeted = Literal["macs", "parameters"]
_MOST = 99
"""As many assistants are taken for meant: each is a network of its own in memory."""


def level(number: int) -> str:
    """The name of a level, counted from the student."""
    return f"level-{number}"


def spaced(keep: float, assistants: int, spacing: Spacing = "paper") -> tuple[float, ...]:
    """The shares that the levels keep, from the student up.

    Args:
        keep: The student's, between 0 and 1.
        assistants: How many levels there are beside it; the last of them keeps all.
        spacing: ``paper``: k, 1 + (k - 1) / 1.5, 1 + (k - 1) / 2.5 …, 1; ``even``: equal steps, as in Miles' thesis.

    Raises:
        InputError: There is no such share, or number of assistants.
    """
    if not 0 < keep < 1:
        raise InputError(f"{keep} is no share of channels to keep", where="--keep", hint="give one above 0 and below 1")
    if not 0 <= assistants <= _MOST:
        raise InputError(f"there cannot be {assistants} assistants", where="--assistants", hint=f"give 0 to {_MOST}")
    steps = (i / assistants if spacing == "even" else 1 - 1 / (i + 0.5) for i in range(1, assistants))
    return (keep, *(round(keep + (1 - keep) * step, 4) for step in steps), *((1.0,) if assistants else ()))


def checked(shares: Sequence[float]) -> tuple[float, ...]:
    """Levels that were given one by one.

    Raises:
        InputError: They do not increase, or are no shares; or the last one of several does not keep all.
    """
    found = tuple(shares)
    wrong = ""
    if not found or not all(0 < share <= 1 for share in found) or found[0] == 1:
        wrong = "shares of channels are above 0 and up to 1, that of the student below 1"
    elif any(a >= b for a, b in pairwise(found)):
        wrong = "levels increase from the student to the unpruned one"
    elif len(found) > 1 and found[-1] != 1:
        wrong = "the last of several levels keeps all channels"
    if wrong:
        listed = ",".join(f"{share:g}" for share in found)
        raise InputError(f"'{listed}' are no levels: {wrong}", where="--levels", hint="write them as 0.2,0.47,0.68,1.0")
    return found


@dataclass(frozen=True)
class Cascade:
    """What a user decides about a cascade.

    Attributes:
        keep: The share that the student keeps; None where ``levels`` or ``budget`` say so.
        levels: The shares that all levels keep, from the student up; empty for those that follow.
        budget: What the student may cost: ``macs`` or ``parameters``, and how many.
        assistants: How many levels there are beside the student.
        spacing: How their shares lie.
        nested: Whether a level keeps only what the level above it keeps.
        threshold: Whether the channels of all layers compete (``global``), or each layer keeps about the same share
            (``layer``).
        round_to: Of each layer a level keeps a multiple of so many channels, or all.
        centred: Whether the gradients of scores are centred within each layer.
        mask_first: Whether the channels of the first convolution compete as well; None for: under a budget.
        hints: The weight of hints in the joint phase: what the last three masked layers hand on, reconstructed from
            that of the level below; 0 for none.
        hints_alone: The weight of hints while the student is alone: what is left of the last three masked layers
            imitates the same channels of the frozen teacher, both standardized; 0 for none.
        export_all: Whether the assistants are exported as well.

    Raises:
        InputError: Nothing, or more than one of them, says what the student keeps; or what is said cannot be.
    """

    keep: float | None = None
    levels: tuple[float, ...] = ()
    budget: tuple[Budgeted, int] | None = None
    assistants: int = 3
    spacing: Spacing = "paper"
    nested: bool = False
    threshold: Threshold = "global"
    round_to: int = 1
    centred: bool = False
    mask_first: bool | None = None
    hints: float = 0.0
    hints_alone: float = 0.0
    export_all: bool = False

    def __post_init__(self) -> None:
        checking.fields(self)
        said = {"--keep": self.keep is not None, "--levels": bool(self.levels), "--budget": self.budget is not None}
        given = [option for option, is_given in said.items() if is_given]
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given) or 'nothing'} {'both say' if given else 'says'} what the student keeps",
                where=" ".join(given) or "--keep", hint="give one of --keep 0.2, --levels 0.2,0.47,0.68,1.0 and "
                "--budget macs=52M",
            )  # fmt: skip
        if self.budget is not None and self.budget[1] < 1:
            raise InputError(f"{self.budget[1]} is no budget", where="--budget", hint="give 1 or more")
        if self.round_to < 1:
            raise InputError(
                f"widths cannot be multiples of {self.round_to}", where="--round-to", hint="give 1 or more"
            )
        for option, weight in (("--hints", self.hints), ("--hints-alone", self.hints_alone)):
            if not 0 <= weight <= MOST_WEIGHT:
                raise InputError(
                    f"{weight} is not a weight for hints", where=option, hint="give a number from 0: 0.001"
                )
        if self.centred and self.threshold == "layer":
            raise InputError(
                "with --threshold layer no layer competes with another, so there is nothing to centre",
                where="--centred", hint="give --threshold layer or --centred",
            )  # fmt: skip
        between = len(self.levels) - 2 if self.levels else self.assistants - 1
        of_these = {"--nested": self.nested, "--export-levels": self.export_all, "--spacing": self.spacing == "even"}
        for option, is_given in of_these.items():
            if is_given and between < 1:
                raise InputError(
                    "there is no masked level beside the student's", where=option,
                    hint="leave it out, or give --assistants 2 or more",
                )  # fmt: skip
        if not self.budget:
            self.shares()

    @property
    def first(self) -> bool:
        """Whether the channels of the first convolution compete."""
        return self.budget is not None if self.mask_first is None else self.mask_first

    def shares(self, expected: float | None = None) -> tuple[float, ...]:
        """The shares that the levels keep.

        Args:
            expected: With a budget, the share that it is expected to leave.

        Raises:
            InputError: They are none.
        """
        if self.levels:
            return checked(self.levels)
        share = self.keep if expected is None else round(expected, 6)  # of a million channels still the same count
        return spaced(0.0 if share is None else share, self.assistants, self.spacing)


def arms(recipe: Recipe, levels: int, *, options: Cascade | None = None, before: Sequence[Stage] = ()) -> list[Arm]:
    """The two arms of a cascade.

    Args:
        recipe: The task's terms, and the pairs of hints; ``student`` is the one that is cut out, ``teacher`` the frozen
            one.
        levels: How many levels there are.
        options: The weights of hints; None for none.
        before: Stages that come before the joint phase.
    """
    names = [level(number) for number in range(levels)]
    taught = list(zip(names, [*names[1:], recipe.teacher], strict=True))
    weights = (0.0, 0.0) if options is None else (options.hints, options.hints_alone)
    joint = Stage(
        name=JOINT, epochs=recipe.epochs, schedule="cosine", optimizer=_optimizer(recipe), scores=_SCORES,
        losses=[
            *(term for student, teacher in taught for term in _terms(recipe, student, teacher)),
            *(_hint(pair, weights[0]) for pair in recipe.pairs if pair.align == "project"),
        ],
    )  # fmt: skip
    above = [*names[1:], recipe.teacher]
    alone = Stage(
        name="main", epochs=recipe.epochs, schedule="cosine", optimizer=_optimizer(recipe), successors=above[1:],
        losses=[
            *_terms(recipe, recipe.student, above[0]),
            *(_hint(pair, weights[1], "standardized") for pair in recipe.pairs if pair.align == "kept"),
        ],
    )  # fmt: skip
    return [
        Arm(name=JOINT, trains=names, stages=[*before, joint]),
        Arm(name=DISTILLED, trains=[recipe.student], stages=[alone]),
    ]


def warm_ups(method: Composed, recipe: Recipe, levels: int) -> list[Stage]:
    """The stages of the methods that are named before the cascade, at rates of their own, each for all levels at once.

    Args:
        method: The method, read.
        recipe: With the pairs of all levels.
        levels: How many there are.
    """
    sliced = [pair for pair in recipe.pairs if pair.align == "slice"]
    own = [[pair for pair in sliced if pair.student.member == level(number)] for number in range(levels)]
    found = list[tuple[str, list[Stage]]]()
    for name, part in method.parts[:-1]:
        warm_up = part.warm_up
        of_levels = [
            warm_up(replace(recipe, pairs=pairs, lr=part.lr or WARM_UP_RATE)) for pairs in own if warm_up is not None
        ]
        together = [
            stages[0].changed(losses=[term for stage in stages for term in stage.losses])
            for stages in zip(*of_levels, strict=True)
        ]
        found.append((name, together))
    return named(found)


def _hint(pair: Pair, weight: float, compare: Comparison = "raw") -> LossTerm:
    return LossTerm(
        loss="mse", pair=pair.name, student=pair.student.member, teacher=pair.teacher.member, weight=weight,
        compare=compare,
    )  # fmt: skip


def main(recipe: Recipe) -> list[LossTerm]:
    """The terms of the main stage; none where predictions are not imitated."""
    return _terms(recipe, recipe.student, recipe.teacher) if recipe.imitation is not None else []


def _terms(recipe: Recipe, student: str, teacher: str) -> list[LossTerm]:
    if recipe.imitation is None:
        raise InputError(
            "predictions of this task are not imitated, and a cascade hands them from level to level", where="--method",
            hint="choose another method",
        )  # fmt: skip
    softened = {"temperature": TEMPERATURE} if "temperature" in recipe.imitation.args else {}
    imitation = recipe.imitation.changed(
        student=student, teacher=teacher, weight=LAMBDA, args={**recipe.imitation.args, **softened}
    )
    return [*([recipe.supervised.changed(student=student)] if recipe.supervised is not None else []), imitation]


def _optimizer(recipe: Recipe) -> Optimizer:
    return Optimizer(name="sgd", lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=4e-4)


METHOD = Method(
    summary="a student pruned out of its teacher, with assistants between", main=main, passes=CASCADE,
    source="arXiv 2008.06814, BMVC 2020", alone=True, lr=RATE,
)  # fmt: skip

"""The exceptions, and what each means for the caller.

    FxdistillError                  exit code 1: the work failed
    ├── InputError                  exit code 2: what was given is wrong
    │   ├── ModelError              a model file, a factory or a state dict
    │   │   └── ChanceError         a model that is to teach and is at chance
    │   ├── PlanError               a plan that cannot be read, or that does not fit its models
    │   ├── DataError               a data spec, or the data behind it
    │   ├── PairingError            a pin, a forbidden pair or a width that cannot be had
    │   ├── CriterionError          a criterion that cannot tell how important channels are
    │   └── RunDirError             a run directory that holds something else
    ├── PassError                   a pass failed; the cause is chained
    ├── InvariantError              a promise that the product makes about itself did not hold
    ├── ParityError                 the exported model and the trained one disagree
    ├── StorageError                the disk is full, or failed, where the place itself is right
    └── TrainingError               training diverged

Every error says what is wrong, where, and what to do about it: each in one line of bounded length that can be printed,
whatever the words come from, a file of somebody else's or another library's error.
"""

_LONGEST = 1000


def line(text: str) -> str:
    """A text as one line: what is no character to print (half of one, a terminal's control sequence) is spelled out."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} …"
    if text.isprintable():
        return text
    shown = (char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.splitlines()))
    return "".join(shown)


def first_line(cause: BaseException) -> str:
    """The first line of an error, at most 200 characters; with its kind where it says no more than what it sought."""
    kind, said = type(cause).__name__, next(iter(str(cause).strip().splitlines()), "")
    return (f"{kind}: {said}" if said and isinstance(cause, LookupError) else said or kind)[:200]


class FxdistillError(Exception):
    """Base of all errors raised on purpose by fxdistill.

    Args:
        what: What is wrong, one sentence.
        where: The file, node, option or line of the plan that it is about.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = map(line, (what, where, hint))
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  to do: {self.hint}")
        return "\n".join(lines)


class InputError(FxdistillError):
    """What the user gave is wrong; nothing was written."""

    exit_code = 2


class ModelError(InputError):
    """A model file, a factory or a state dict cannot be used."""


class ChanceError(ModelError):
    """A model that is to teach knows nothing of the data."""


class PlanError(InputError):
    """A plan cannot be read, or does not fit its models."""


class DataError(InputError):
    """A data spec is unknown, or the data behind it is not what it should be."""


class PairingError(InputError):
    """A pin, a forbidden pair or a width that cannot be had."""


class CriterionError(InputError):
    """A criterion cannot tell, of this model and data, how important channels are; another one may."""


class BudgetError(InputError):
    """A budget that no widths meet, of those that may be had.

    Args:
        what: What is wrong, one sentence.
        where: The option.
        hint: What to do about it.
        least: The least that can be had of it, where it is below that; 0 elsewhere.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "", least: int = 0) -> None:
        super().__init__(what, where=where, hint=hint)
        self.least = least


class RunDirError(InputError):
    """A run directory holds another run, or not what it should."""


class PassError(FxdistillError):
    """A pass failed. The exception that it raised is the ``__cause__``."""


class InvariantError(FxdistillError):
    """A promise that fxdistill makes about its own results did not hold."""


class ParityError(FxdistillError):
    """The exported model and the trained one disagree."""


class StorageError(FxdistillError):
    """There is no space left, or the disk failed; what was there before is as it was."""


class TrainingError(FxdistillError):
    """Training produced a loss that is not a number."""

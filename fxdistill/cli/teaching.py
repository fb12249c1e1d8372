"""What the command line's options say of how a student is taught: warm-ups, an assistant, a cascade."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fxdistill.cli import budgets
from fxdistill.errors import InputError

if TYPE_CHECKING:
    from fxdistill.methods.cascade import Budgeted, Cascade, Spacing, Threshold
    from fxdistill.passes.schedule.curriculum import Curriculum


def curriculum(share: float | None, keep: float | None, plateau: str | None, probe: str | None) -> "Curriculum":
    """What the options say of a method's warm-ups.

    Raises:
        InputError: One of them says nothing.
    """
    from fxdistill.passes.schedule.curriculum import PLATEAU, Curriculum
    from fxdistill.plan.training import Plateau

    found = None
    if plateau is not None:
        fall, _, epochs = plateau.partition(":")
        try:
            found = Plateau(share=float(fall), epochs=int(epochs or 1))
        except ValueError as cause:
            raise InputError(
                f"'{plateau}' is no plateau", where=PLATEAU,
                hint="give SHARE:EPOCHS: 0.01:2 ends a warm-up that falls by less than 1 % of its loss in 2 epochs",
            ) from cause  # fmt: skip
    return Curriculum(share, keep, found, probe)  # type: ignore[arg-type]  # what it is, is checked there


def check_assistant(via: str | None, others: Mapping[str, object], *, is_cascade: bool) -> None:
    """Check that options about an assistant come with one, and that the method leaves room for it.

    Args:
        via: ``auto``, a model, or None.
        others: What the other options say of it, by name.
        is_cascade: Whether the method is a cascade.

    Raises:
        InputError: It is not so.
    """
    if via is None and any(value not in (None, []) for value in others.values()):
        raise InputError("this is about an assistant, and there is none", where="--via", hint="add --via auto or MODEL")
    if via is not None and is_cascade:
        raise InputError("a cascade has assistants of its own", where="--via", hint="say how many: --assistants 2")


def cascade(
    method: str, *, keep: float | None, levels: str, budget: str, assistants: int | None, spacing: "Spacing | None",
    nested: bool, threshold: "Threshold | None", round_to: int | None, centred: bool, mask_first: bool | None,
    hints: float, hints_alone: float, export_all: bool, student: str | None, others: Mapping[str, object],
) -> "Cascade | None":  # fmt: skip
    """What the options say of a cascade; None for another method.

    Args:
        method: The method.
        keep: The share that the student keeps.
        levels: The shares of all levels, with commas.
        budget: What the student may cost: ``macs=52M``.
        assistants: How many levels there are beside the student.
        spacing: How their shares lie.
        nested: Whether levels lie inside of each other.
        threshold: Among which channels the best are kept.
        round_to: Of what the widths of levels become multiples.
        centred: Whether the gradients of scores are centred within each layer.
        mask_first: Whether the channels of the first convolution compete as well.
        hints: The weight of hints in the joint phase.
        hints_alone: The weight of hints while the student is alone.
        export_all: Whether the assistants are exported as well.
        student: The student that was named.
        others: Options that are about a student that is given, or about warm-ups, with their values.

    Raises:
        InputError: They do not go together, or a student is named where none can be, or is missing.
    """
    from fxdistill.methods import composed
    from fxdistill.methods.cascade import Cascade

    if not composed(method).alone:
        if student is None:
            raise InputError(
                f"missing argument 'student': the method '{method}' needs one",
                where="STUDENT",
                hint="name it behind the teacher",
            )
        said = {
            "levels": levels, "budget": budget, "assistants": assistants, "spacing": spacing, "nested": nested,
            "threshold": threshold, "round-to": round_to, "centred": centred, "mask-first": mask_first is not None,
            "hints": hints or None, "hints-alone": hints_alone or None, "export-levels": export_all,
        }  # fmt: skip
        if odd := [name for name, value in said.items() if value not in (None, "", False)]:
            raise InputError(
                f"--{odd[0]} is about a cascade", where=f"--{odd[0]}", hint="add --method cascade, and name no student"
            )
        return None
    if student is not None:
        raise InputError(
            f"the method '{method}' makes its student out of the teacher", where=student, hint="name the teacher alone"
        )
    if odd := [name for name, value in others.items() if value not in (None, "", False, [])]:
        raise InputError(f"a cascade has no use for --{odd[0]}", where=f"--{odd[0]}", hint="leave it out")
    if levels and (assistants is not None or spacing is not None):
        raise InputError(
            "--levels says which levels there are", where="--levels", hint="leave out --assistants and --spacing"
        )
    shares = (
        tuple(budgets.number(text, "--levels", "0.2,0.47,0.68,1.0") for text in levels.split(",")) if levels else ()
    )
    return Cascade(
        keep=keep, levels=shares, budget=_budget(budget), assistants=3 if assistants is None else assistants,
        spacing=spacing or "paper", nested=nested, threshold=threshold or "global", round_to=round_to or 1,
        centred=centred, mask_first=mask_first, hints=hints, hints_alone=hints_alone, export_all=export_all,
    )  # fmt: skip


def _budget(text: str) -> "tuple[Budgeted, int] | None":
    """What a student may cost, from ``macs=52M`` or ``params=1M``."""
    if not text:
        return None
    what, _, number = text.partition("=")
    names: dict[str, Budgeted] = {"macs": "macs", "params": "parameters", "parameters": "parameters"}
    if what.lower() not in names or not number:
        raise InputError(f"'{text}' is no budget", where="--budget", hint="write it as macs=52M or params=1M")
    found = round(budgets.number(number, "--budget", "macs=52M"))
    if found < 1:
        raise InputError(f"'{text}' is no budget: it is below 1", where="--budget", hint="write it as macs=52M")
    return names[what.lower()], found

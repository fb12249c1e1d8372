"""What the command line's arguments stand for: shapes, pairs, models, places to write to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from fxdistill import files
from fxdistill.errors import InputError
from fxdistill.modelfiles import source

if TYPE_CHECKING:
    from fxdistill.measure.onnx_reduced import Precision
    from fxdistill.modelfiles.load import LoadedModel
    from fxdistill.plan.training import Recalibration

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def once(option: str, given: Iterable[tuple[str, str]]) -> None:
    """Refuse two values where only one can count.

    Args:
        option: The option.
        given: What it says: of what ('' for an option that says one thing), and which value.

    Raises:
        InputError: There are two for one.
    """
    found: dict[str, str] = {}
    for name, value in given:
        if found.setdefault(name, value) != value:
            of = f" for '{name}'" if name else ""
            raise InputError(
                f"two values are given{of}: {found[name]} and {value}", where=option, hint="give one of them"
            )


def shape(text: str) -> tuple[int, ...] | None:
    """The shape of a batch, from ``1x3x32x32``; None from an empty text.

    Raises:
        InputError: It is no such text.
    """
    if not text:
        return None
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isdecimal() and len(part) < 6 and int(part) > 0 for part in parts):
        raise InputError(f"'{text}' is not a batch shape", where="--input", hint="write it as 1x3x224x224")
    return tuple(int(part) for part in parts)


def pairs(texts: Sequence[str], option: str) -> tuple[tuple[str, str], ...]:
    """Pairs of paths, from ``T=S`` each.

    Raises:
        InputError: One is no such text.
    """
    found = []
    for text in texts:
        teacher, equals, student = text.partition("=")
        if not (teacher and equals and student):
            raise InputError(f"'{text}' is not a pair", where=option, hint=f"write it as {option} layer1=features.3")
        found.append((teacher, student))
    return tuple(found)


def cache(text: str) -> "Literal['auto', 'off'] | Path":
    """Where to keep what frozen members compute, from ``auto``, ``off`` or a folder.

    Raises:
        InputError: There is a file of that name, or no name.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    path = Path(text)
    if not text.strip() or (path.exists() and not path.is_dir()):
        raise InputError(f"'{text}' is no folder", where="--cache", hint="give a folder, new or not, or auto, or off")
    return path


def about_cache(where: "Literal['auto', 'off'] | Path", given: Iterable[str]) -> None:
    """Check that what is said of the cache is said of one.

    Args:
        where: As :func:`cache` gives it.
        given: The options that were given about it.

    Raises:
        InputError: There is none.
    """
    for option in given if where == "off" else ():
        raise InputError("nothing is kept, so this does nothing", where=f"--{option}",
                         hint="leave it out, or --cache off")  # fmt: skip


def choosing(text: str) -> "Literal['auto'] | bool":
    """Whether to do something, from ``off``, ``on`` or ``auto``."""
    return "auto" if text == "auto" else text == "on"


def byte_count(text: str, option: str) -> int:
    """A number of bytes, from ``4G``, ``4GB``, ``4GiB`` (all the same), ``500M`` or digits alone.

    Raises:
        InputError: It is no such text.
    """
    number = text.upper()
    number = number.removesuffix("IB") if number[-3:-2] in _UNITS else number.removesuffix("B")
    number, unit = (number[:-1], number[-1:]) if number[-1:] in _UNITS else (number, "")
    try:
        found = int(float(number) * _UNITS.get(unit, 1)) if number.isascii() else 0
    except (ValueError, OverflowError):
        found = 0
    if found <= 0:
        raise InputError(f"'{text}' is no number of bytes", where=option, hint="write it as 4G, 500M or 1000000")
    return found


def recalibration(text: str) -> "Recalibration | None":
    """What ``auto``, ``off`` or a number of images says of BatchNorm statistics.

    Raises:
        InputError: It is none of them.
    """
    from fxdistill.plan.training import Recalibration

    if text in ("auto", "off"):
        return Recalibration() if text == "auto" else None
    if not text.isdecimal() or not int(text):
        raise InputError(
            f"'{text}' is not one of the choices", where="--recalibrate-bn", hint="give auto, off or a number of images"
        )
    return Recalibration(when="always", images=int(text))


def names(*, method: str, task: str, criterion: str | None, passes: Sequence[str]) -> None:
    """Check names before anything heavy is imported.

    Raises:
        InputError: One is unknown; says which are known.
    """
    from fxdistill.methods import composed
    from fxdistill.registry import suggestion
    from fxdistill.tasks import TASKS

    expanded = composed(method)
    if task not in TASKS.names():
        TASKS.get(task, where="--task")
    if criterion is not None:
        known_criterion(criterion, "--criterion")
    for name in passes:
        if name not in expanded.passes:
            raise InputError(
                f"the method '{method}' has no pass named '{name}'", where="--print-after",
                hint=suggestion(name, expanded.passes, "its passes are"),
            )  # fmt: skip


def known_criterion(name: str, option: str) -> None:
    """Check a criterion's name without importing it.

    Raises:
        InputError: It is unknown; says which are known.
    """
    from fxdistill.criteria import CRITERIA

    if name not in CRITERIA.names():
        CRITERIA.get(name, where=option)


def known_importance(by: str | None) -> None:
    """Check what ``--by`` names, one criterion or two; None is fine.

    Raises:
        InputError: One is unknown.
    """
    from fxdistill.criteria import measures

    for name in measures(by) if by is not None else ():
        known_criterion(name, "--by")


def distinct(models: Sequence[str]) -> None:
    """Check that each model is named once.

    Raises:
        InputError: One is named twice.
    """
    for model in models:
        if models.count(model) > 1:
            raise InputError("it is named twice", where=model, hint="name each model once")


def about_data(data: str | None, of_data: Mapping[str, object]) -> None:
    """Check that options about data come with data.

    Args:
        data: The data spec; None for none.
        of_data: What is said of it, by option; false where nothing is.

    Raises:
        InputError: There is none.
    """
    for option in (name for name, value in of_data.items() if value and data is None):
        raise InputError(
            "this is about the data, and there is none", where=f"--{option}", hint="give --data, or leave it out"
        )


def is_run(model: str) -> bool:
    """Whether a model is named by its run directory, which says itself what it reads."""
    return files.is_folder(model)


def precisions(
    *, int8: bool, fp16: bool, of_int8: Mapping[str, object], of_losses: Mapping[str, object]
) -> "list[Precision]":
    """In which precisions a file is written beside the float one.

    Args:
        int8: Whether in INT8.
        fp16: Whether in FP16.
        of_int8: What is said of the calibration, by option; None where nothing is.
        of_losses: What is said of what less precision may cost, likewise.

    Raises:
        InputError: Something is said of files that are not wanted.
    """
    for option in (name for name, value in of_int8.items() if value is not None and not int8):
        raise InputError("only INT8 is calibrated", where=f"--{option}", hint="add --int8, or leave it out")
    for option in (name for name, value in of_losses.items() if value is not None and not (int8 or fp16)):
        raise InputError(
            "no file in less precision is asked for", where=f"--{option}", hint="add --int8 or --fp16, or leave it out"
        )
    wanted: list[tuple[Precision, bool]] = [("int8", int8), ("fp16", fp16)]
    return [precision for precision, is_wanted in wanted if is_wanted]


def go_without_jobs(options: Mapping[str, object]) -> None:
    """Refuse options of a run whose seeds are not trained side by side.

    Args:
        options: By name what is said of each; false where nothing is.

    Raises:
        InputError: One is given.
    """
    for option in (name for name, value in options.items() if value):
        raise InputError(
            "seeds that are trained side by side are trained in one process each", where=f"--jobs, --{option}",
            hint=f"leave one of the two out; a run that was begun with --jobs is continued without --{option}",
        )  # fmt: skip


def said(**arguments: Any) -> dict[str, Any]:
    """The arguments that were given; the others keep their defaults."""
    return {name: value for name, value in arguments.items() if value is not None}


def run_directory(plan: Path, output: Path | None) -> tuple[Path, Path]:
    """The plan's file and the run directory, of what is either of them.

    Args:
        plan: A plan, or a run directory.
        output: The run directory, where it is named.

    Raises:
        InputError: It is a folder, and none of a run.
    """
    if plan.is_dir():
        if not (plan / "plan.json").is_file():
            raise InputError("this directory holds no run", where=str(plan), hint="give a plan, or a run directory")
        plan = plan / "plan.json"
        return plan, output or plan.parent
    held = plan.name == "plan.json" and (plan.parent / "origin.json").is_file()
    return plan, output or (plan.parent if held else Path("run"))


def there(context: typer.Context, value: Any) -> Any:
    """The value of a parameter that names models or runs, which have to be there: told before anything is imported.

    Raises:
        ModelError: One is not.
    """
    for text in (value or ()) if isinstance(value, list | tuple) else (value,):
        if isinstance(text, str) and text != "auto" and not context.resilient_parsing:
            source.check_there(text)
    return value


@dataclass(frozen=True)
class Named:
    """A model as the command line names it.

    Attributes:
        text: The argument; None where it is left out.
        factory: Its factory, where given apart.
        args: Arguments of that factory.
        entry: The entry of a checkpoint that holds the weights.
        option: The option that names that factory, for hints.
    """

    text: str | None
    factory: str | None
    args: Sequence[str]
    entry: str | None = None
    option: str = "--factory"


def model(named: Named, *, seed: int, allow: Sequence[str], trust_code: bool) -> "LoadedModel":
    """Load a model.

    Args:
        named: How it is named.
        seed: Seed of the weights of a factory alone.
        allow: Modules whose factories may be called.
        trust_code: Whether a pickle may be opened.

    Raises:
        ModelError: Whatever is wrong with it.
    """
    from fxdistill.modelfiles.load import load  # slow to import

    found = source.parse_source(
        named.text or "", factory=named.factory, args=named.args, trust_code=trust_code, allow=allow,
        option=named.option, entry=named.entry,
    )  # fmt: skip
    return load(found, seed=seed)

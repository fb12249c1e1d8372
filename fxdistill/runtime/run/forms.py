"""JSON files that may come from others: read against their form, and what is wrong in them is named."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from fxdistill.errors import InputError, RunDirError
from fxdistill.files import read_text

Form = TypeVar("Form")


def read(
    form: TypeAdapter[Form], path: Path, *, hint: str, odd: Callable[[Form], str] = lambda _: "",
    error: type[InputError] = RunDirError,
) -> Form:  # fmt: skip
    """What a file holds.

    Args:
        form: What it must look like.
        path: The file.
        hint: What to do about one that is damaged.
        odd: What is wrong with what has that form, '' where nothing is.
        error: What is raised of a file that is damaged.

    Raises:
        InputError: The file is damaged.
    """
    try:
        found = form.validate_json(read_text(path), strict=True)
    except ValidationError as cause:
        wrong = first_wrong(cause)
    except (OSError, ValueError) as cause:
        wrong = str(cause)
    else:
        wrong = odd(found)
        if not wrong:
            return found
    raise error(f"{path.name} is damaged: {wrong}", where=str(path), hint=hint)


def first_wrong(cause: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = cause.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg'].lower()}"

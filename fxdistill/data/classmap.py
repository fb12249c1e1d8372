"""Class maps: which number of a model's output is which class, for data that has some of the model's classes.

    one name a line       in the order of the numbers, timm's form
    {"name": number}      JSON, as torchvision's ``class_to_idx``
    {"number": "name"}    JSON, as transformers' ``id2label``; of several names of a class the first counts
    ["name", …]           JSON

Labels of data whose classes have names get the model's numbers by these. Of data that has numbers alone, the labels are
the model's numbers already, and the map says what they are called.
"""

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxdistill import classnames, files
from fxdistill.data.dataset import Dataset, Images
from fxdistill.errors import DataError
from fxdistill.tasks import NO_LABEL, Task

_HINT = 'write one name a line, in the order of the model\'s outputs; or JSON, {"name": number}'


def read(path: Path) -> tuple[str, ...]:
    """The class names in a file, in the order of their numbers; a number without a name is ``class 7``.

    Raises:
        DataError: The file cannot be read, or is no class map.
    """
    try:
        text = files.read_text(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is not a text file"
        raise DataError(f"the class map cannot be read: {reason}", where=str(path), hint=_HINT) from cause
    if path.suffix.lower() != ".json":
        lines = [line.strip() for line in text.rstrip().splitlines()]
        if "" in lines or not lines:
            where = f"{path}, line {lines.index('') + 1 if lines else 1}"
            raise DataError("the class map has an empty line where a name should be", where=where, hint=_HINT)
        return _checked(lines, path)
    try:
        numbers = _numbers(json.loads(text, object_pairs_hook=_distinct))
    except (ValueError, TypeError, RecursionError) as cause:
        raise DataError(f"the class map is not valid JSON: {cause}", where=str(path), hint=_HINT) from cause
    by_number = {number: name for name, number in numbers.items()}
    names = [by_number.get(number, "") for number in range(max(by_number) + 1)]
    return _checked(filled(names, len(by_number)), path)


def _checked(names: Sequence[str], path: Path) -> tuple[str, ...]:
    if wrong := classnames.wrong(names):
        raise DataError(
            f"the class map is not valid: {wrong}", where=str(path), hint="give every class a name of its own"
        )
    return tuple(names)


def _distinct(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, count in Counter(key for key, _ in entries).items() if count > 1]:
        raise ValueError(f"'{twice[0]}' occurs twice")
    return dict(entries)


def _numbers(found: Any) -> dict[str, int]:
    """Numbers by name.

    Raises:
        ValueError: It is none of the forms.
    """
    if isinstance(found, list):
        found = {str(number): name for number, name in enumerate(found)}
    if not isinstance(found, Mapping) or not found:
        raise ValueError("it holds no names")
    pairs = [
        (_name(value), int(key)) if isinstance(value, str | list) else (str(key), value)
        for key, value in found.items()
    ]  # fmt: skip
    for name, number in pairs:
        if type(number) is not int or not 0 <= number < classnames.MOST:
            raise ValueError(f"the number of '{name}' is {number!r}")
    numbers = dict(pairs)
    if len(numbers) < len(pairs) or len(set(numbers.values())) < len(numbers):
        kind = "name" if len(numbers) < len(pairs) else "number"
        (twice, _), *_ = Counter(pair[kind == "number"] for pair in pairs).most_common(1)
        raise ValueError(f"the {kind} {twice!r} occurs twice")
    return numbers


def _name(value: str | list[Any]) -> str:
    if not value:
        raise ValueError(f"a class is called {value!r}")
    return value if isinstance(value, str) else str(value[0])


def filled(names: Sequence[str], count: int) -> tuple[str, ...]:
    """The names, with one for every number up to ``count``: ``class 7``."""
    whole = [*names, *[""] * (count - len(names))]
    return tuple(name or f"class {number}" for number, name in enumerate(whole))


def mapped(dataset: Dataset, names: Sequence[str], *, task: Task, where: str) -> Dataset:
    """The data with the labels of a model whose classes are these.

    Args:
        dataset: The data.
        names: The model's classes by their numbers.
        task: What the data is for.
        where: The spec.

    Raises:
        DataError: A class of the data is not among them, or several times; or the task has no classes.
    """
    if not task.has_classes:
        raise DataError("the task has no classes to map", where=where, hint="leave out --class-map")
    unnamed = dataset.classes == tuple(map(str, range(len(dataset.classes))))
    if unnamed and not set(dataset.classes) & set(names):
        if len(dataset.classes) > len(names):
            raise DataError(
                f"the data has labels up to {len(dataset.classes) - 1}, the class map {len(names)} classes",
                where=where, hint="give the map of the model that the labels are of",
            )  # fmt: skip
        table = torch.arange(len(dataset.classes))
    else:
        table = torch.tensor([_number(name, names, where) for name in dataset.classes], dtype=torch.long)
    found = dataset.each(lambda images: images.relabelled(_renumbered(images, table, len(names))))
    return Dataset(found.train, found.test, tuple(names), found.mean, found.std, found.val, found.remarks)


def _number(name: str, names: Sequence[str], where: str) -> int:
    count = names.count(name)
    if count == 1:
        return names.index(name)
    why = f"stands {count} times in the class map" if count else "is not in the class map"
    near = difflib.get_close_matches(name, names, n=1)
    hint = (
        f"did you mean '{near[0]}'?"
        if near and not count
        else "give the model's names, each once, as the data has them"
    )
    raise DataError(f"the class '{name}' of the data {why}", where=where, hint=hint)


def _renumbered(images: Images, table: Tensor, count: int) -> Tensor:
    """The labels under new numbers; rows of yes and no get a column a class, unknown where the data says nothing."""
    labels = images.labels
    if labels.is_floating_point():
        if labels.ndim != 2:  # nothing has a label
            return labels
        rows = labels.new_full((len(labels), count), torch.nan)
        rows[:, table.to(labels.device)] = labels
        return rows
    if not len(table):
        return labels
    known = labels != NO_LABEL
    return torch.where(known, table.to(labels.device)[labels.clamp(min=0)], labels)

"""Names of classes: text that can be shown, one for each class. They come out of files, and go into tables."""

import unicodedata
from collections.abc import Sequence

MOST = 1 << 20
"""Classes that data may have: a name is made for every label up to the highest."""
_CONTROL = frozenset(("Cc", "Cs"))  # what moves a terminal's cursor, and half a character


def wrong(names: Sequence[object]) -> str:
    """What is wrong with the names of classes; '' where nothing is."""
    if len(names) > MOST:
        return f"there are {len(names):,} classes; {MOST:,} is the most"
    seen: dict[object, int] = {}
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            return f"the name of class {number} is {name!r}, which is no text"
        if any(unicodedata.category(character) in _CONTROL for character in name):
            return f"the name of class {number} is {name!r}, which cannot be shown"
        if seen.setdefault(name, number) != number:
            return f"the classes {seen[name]} and {number} are both called '{name}'"
    return ""

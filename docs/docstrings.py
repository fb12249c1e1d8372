"""Docstrings as Markdown: their paragraphs, indented formulas and code, and Google's sections."""

import inspect
import re

_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
_SECTION = re.compile(rf"\n(?=(?:{'|'.join(_SECTIONS)}):\n)")
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?([\w]+)`")


def markdown(doc: str) -> str:
    """A docstring in Markdown: sections as lists, indented blocks as they stand."""
    made: list[str] = []
    for block in _SECTION.split(inspect.cleandoc(doc)):
        name, _, rest = block.partition(":\n")
        made.append(_section(name, rest) if name in _SECTIONS else _prose(block))
    return "\n\n".join(made)


def words(text: str) -> str:
    """What stands in double backquotes or a role as code, in Markdown."""
    text = re.sub(r"``(.+?)``", r"`\1`", _ROLE.sub(r"`\1`", text), flags=re.DOTALL)
    return re.sub(r"https?://\S+[\w/]", r"<\g<0>>", text)


def _prose(text: str) -> str:
    made = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.split("\n")
        indented = next((i for i, line in enumerate(lines) if line.startswith("    ")), None)
        if indented is None or lines[0].startswith(("-", ">>>")):
            made.append(words(paragraph))
            continue
        if indented:
            made.append(words("\n".join(lines[:indented])))
        made.append("```none\n" + inspect.cleandoc("\n" + "\n".join(lines[indented:])) + "\n```")
    return "\n\n".join(made).replace("```\n\n```none\n", "\n")


def _section(name: str, rest: str) -> str:
    text = inspect.cleandoc("\n" + rest)
    if name in ("Returns", "Yields"):
        return f"**{name}** {words(text)}"
    entries = re.split(r"\n(?=\S)", text)
    lines = []
    for entry in entries:
        what, _, said = entry.partition(": ")
        lines.append(f"- `{what}`: {words(' '.join(said.split()))}" if said else f"- {words(' '.join(what.split()))}")
    return f"**{name}**\n\n" + "\n".join(lines)

"""What the README says, held against what happens."""

import re
from pathlib import Path
from typing import Any

from tests.docs.blocks import lines, parse

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_snippet_runs_as_it_stands() -> None:
    (found,) = (text for language, text in BLOCKS if language == "python")
    names: dict[str, Any] = {}
    exec(found.replace("224", "64"), names)
    assert set(names["losses"]) == {"cross-entropy", "kd", *(f"mse[layer{n}]" for n in (1, 2, 3, 4))}
    assert names["student"].conv1.weight.grad is not None
    assert names["teacher"].conv1.weight.grad is None


def test_its_commands_can_be_typed() -> None:
    shown = [line.removeprefix("$ ").partition(" #")[0] for _, text in BLOCKS for line in lines(text)]
    typed = [line for line in shown if line.startswith("fxdistill ")]
    assert len(typed) >= 10
    for line in typed:
        parse(line, "README.md")

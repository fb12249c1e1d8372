"""What the README says, held against what happens."""

import re
from pathlib import Path
from typing import Any

from fxdistill.methods import METHODS
from tests import runs

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_snippet_runs_as_it_stands() -> None:
    (found,) = (
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "fxdistill.compile" in block
    )
    names: dict[str, Any] = {}
    exec(found.replace("224", "64"), names)
    assert set(names["losses"]) == {"cross-entropy", "kd", *(f"mse[layer{n}]" for n in (1, 2, 3, 4))}
    assert names["student"].conv1.weight.grad is not None
    assert names["teacher"].conv1.weight.grad is None


def test_every_file_of_a_run_directory_is_named() -> None:
    for run in (runs.finished(), runs.finished("auxiliary", align="shrink")):
        for entry in run.iterdir():
            assert f"`{entry.name}{'/' if entry.is_dir() else ''}`" in README


def test_every_method_has_its_row() -> None:
    table = README.partition("| `--method` | stages |")[2].partition("\n\n")[0]
    heads = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert sorted(re.match("`(.+?)`", head)[1] for head in heads) == sorted(METHODS.names())  # type: ignore[index]


def test_every_remark_is_explained() -> None:
    package = Path(__file__).parents[1]
    sources = [path.read_text() for top in ("fxdistill", "passes") for path in (package / top).rglob("*.py")]
    # a code is given by name, or stands first in a ledger's note
    given = r'code="([a-z-]+)"|\.note\(\s*"([a-z-]+)"'
    written = {one or other for source in sources for one, other in re.findall(given, source)}
    table = README.partition("## Remarks")[2].partition("## Limits")[0]
    explained = {
        code for line in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for code in re.findall("`(.+?)`", line)
    }
    assert explained == written
    assert len(written) > 15

"""The layout that packaging, type checking and readers rely on."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from mypy import api

import fxdistill.passes

ROOT = Path(__file__).parents[1]
PRODUCT = sorted(
    path
    for top in ("fxdistill", "passes")
    for path in (ROOT / top).rglob("*.py")
    if "fxdistill/passes" not in str(path)
)
SPEAKING = {"commands.py", "__main__.py"}


def test_passes_is_the_folder_at_the_top_through_one_link() -> None:
    link = ROOT / "fxdistill" / "passes"
    assert Path(str(fxdistill.passes.__file__)).resolve() == ROOT / "passes" / "__init__.py"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an archive without its history")
def test_the_link_is_committed() -> None:
    command = ["git", "ls-files", "--stage", "fxdistill/passes"]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.startswith("120000 ")


def test_the_bare_package_refuses() -> None:
    command = [sys.executable, "-c", "import passes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: import fxdistill.passes instead" in done.stderr


def test_every_package_is_listed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in PRODUCT if path.name == "__init__.py"}
    names = {name if name.startswith("fxdistill") else f"fxdistill.{name}" for name in found}
    assert setuptools["packages"] == sorted(names)
    assert setuptools["package-dir"] == {"fxdistill": "fxdistill", "fxdistill.passes": "passes"}


def test_product_code_has_no_assert_no_print_and_no_relative_import() -> None:
    wrong = []
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            printing = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            relative = isinstance(node, ast.ImportFrom) and node.level
            if isinstance(node, ast.Assert) or relative or (printing and path.name not in SPEAKING):
                wrong.append(f"{path}:{node.lineno}")  # type: ignore[attr-defined]
    assert not wrong, "\n".join(wrong)
    assert len(PRODUCT) > 100


def test_type_checking_sees_into_passes(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from fxdistill.passes.schedule import Schedule\nSchedule(method=3)\nreveal_type(Schedule().method)\n"
    )
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    output, problems, status = api.run([*options, str(snippet)])
    assert (status, problems) == (1, "")
    assert 'Argument "method" to "Schedule" has incompatible type "int"; expected "str"' in output
    assert re.search(r'Revealed type is "(builtins\.)?str"', output)

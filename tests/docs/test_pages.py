"""Every block of the documentation, run: what a page says to type works, and what it shows comes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxdistill import registry
from fxdistill.measure import onnx_file
from tests.docs.blocks import PageError, Reader, blocks, difference

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [path.name for path in sorted(DOCS.glob("*.md"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which somebody has worked through the tutorial; all pages share it."""
    with pytest.MonkeyPatch.context() as patch:
        where = tmp_path_factory.mktemp("docs")
        patch.chdir(where)
        patch.setenv("COLUMNS", "80")
        patch.setattr("sys.path", [*sys.path])
        patch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))  # the quicker of the two; the other one has tests
        Reader().read(DOCS / "tutorial.md")
        yield where
    registry._entry_points.cache_clear()  # of what a page installs


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_does_what_it_says(name: str, folder: Path) -> None:
    if name != "tutorial.md":  # the fixture's
        Reader().read(DOCS / name)
    assert (folder / "run" / "student.onnx").exists()


BASH, TEXT = "```bash\n{}\n```\n", "```text\n{}\n```\n"
CAPTION = "```{{code-block}} {}\n:caption: {}\n\n{}\n```\n"
REFUSED = {
    "a command": (BASH.format("fxdistill pla teacher.pt"), "exits with 2"),
    "an option": (BASH.format("fxdistill losses --al"), "exits with 2"),
    "a program": (BASH.format("make docs"), "cannot be run here"),
    "a line": (BASH.format("fxdistill losses") + TEXT.format("…\nmze  squared\n…"), "did not come: mze"),
    "a count": ("```python\nprint('3 of 4')\n```\n" + TEXT.format("3 of 5"), "did not come: 3 of 5"),
    "a figure": ("```python\nprint('98.51%')\n```\n" + TEXT.format("58.51%"), "shows 58.51, and 98.51 came"),
    "an exit": (BASH.format("fxdistill losses") + CAPTION.format("text", "exits with 2", "…"), "exits with 0"),
    "an option of what is not run": (
        CAPTION.format("bash", "not run here: needs four devices", "fxdistill run plan.json --devises 4"),
        "--devises",
    ),
    "a language": ("```console\n$ ls\n```\n", "no block is of the language"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_in_a_page_is_found(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(REFUSED[kind][0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PageError, match=REFUSED[kind][1]):
        Reader().read(page)


def test_a_block_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport fxdistill\nfxdistill.lode\n```\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttributeError, match="lode"):
        Reader().read(page)


def test_what_may_differ() -> None:
    assert not difference("a  b 3.04 M …\n…\nend", "a b 3.1 M in 4 s\nmore\nand more\nend\n")
    assert difference("…\nend", "end\nmore")
    assert difference("a\nb", "a\nc\nb")


def test_a_page_without_a_block_is_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```{include} other.md\n```\n")
    assert list(blocks(page)) == []
    Reader().read(page)

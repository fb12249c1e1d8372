"""What is generated of the code is all of it, what pages quote is so, and all is built with every link checked."""

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

import fxdistill
from docs import drawings, generated, remarks
from docs.docstrings import markdown
from fxdistill.cli.commands import app
from fxdistill.criteria import CRITERIA
from fxdistill.losses import LOSSES
from fxdistill.methods import METHODS
from fxdistill.methods.cascade import spaced
from tests import runs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def heads(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def ours(registry: Any) -> list[str]:
    return [name for name in registry.names() if registry.origin(name) is None]


@pytest.mark.parametrize(
    ("part", "registry"), [("methods", METHODS), ("losses", LOSSES), ("criteria", CRITERIA)], ids=str
)
def test_every_name_has_its_section(part: str, registry: Any) -> None:
    text = generated.PARTS[part]()
    assert heads(text) == ours(registry)
    assert all(len(section.split()) > 8 for section in text.split("\n## ")[1:])


def test_every_command_and_option_is_there() -> None:
    text, program = generated.cli(), get_command(app)
    commands: Any = program.commands  # type: ignore[attr-defined]  # a group
    assert heads(text) == list(commands)
    sections = dict(zip(heads(text), text.split("\n## "), strict=True))
    for name, command in commands.items():
        context = typer.Context(command, info_name=name)
        for parameter in command.params:
            hidden = parameter.get_help_record(context) is None or "--help" in parameter.opts
            for spelled in (*parameter.opts, *parameter.secondary_opts) if not hidden else ():
                if spelled.startswith("-"):  # an argument is there by what it is called for
                    assert spelled in sections[name], (name, spelled)
    assert "{" not in re.sub(r"```none.*?```", "", text, flags=re.DOTALL).replace("\\{", "")


def test_options_that_pages_name_are_options() -> None:
    known = set(re.findall(r"--[a-z][a-z0-9-]*", generated.cli())) | {"--help", "--version"}
    assert len(known) > 100
    for path in DOCS.rglob("*.md"):
        for code in re.findall(r"`([^`\n]*--[^`\n]*)`", path.read_text()):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code)) <= known, (path.name, code)


def test_every_remark_of_the_sources_is_there() -> None:
    text, found = generated.diagnostics(), remarks.remarks()
    given = set()
    for top in ("fxdistill", "passes"):
        for path in (ROOT / top).rglob("*.py"):
            given |= set(re.findall(r'code="([a-z-]+)"|\.note\(\s*"([a-z-]+)"', path.read_text()))
    assert {remark.code for remark in found} == {one or other for one, other in given} == set(heads(text))
    assert set(generated.meanings()) == set(heads(text))
    said = [remark for remark in found if not set(remark.why) <= set("… :")]
    assert len(said) > 0.75 * len(found)  # what it says, and not that it says something
    assert "- **warning**: the teacher has random weights: this plan can be reviewed, not run  \n" in text


def test_every_public_name_has_its_section() -> None:
    text = generated.python()
    assert heads(text) == list(fxdistill.__all__)
    assert "<function" not in text
    assert " at 0x" not in text


def test_a_docstring_becomes_markdown() -> None:
    text = markdown("""Sum of :class:`a.b.Thing` and ``x``.

        y = x + 1        where x < 2

    Args:
        x: A number
            that goes on.

    Returns:
        Another ``one``.
    """)
    assert "Sum of `Thing` and `x`." in text
    assert "```none\ny = x + 1        where x < 2\n```" in text
    assert "- `x`: A number that goes on." in text
    assert "**Returns** Another `one`." in text


def test_a_formula_on_the_line_below_its_words_is_one() -> None:
    assert markdown("Head.\n\nIt is\n    a + b\n") == "Head.\n\nIt is\n\n```none\na + b\n```"


@pytest.mark.parametrize("page", ["indistill", "cascade"])
def test_figures_are_those_of_the_benchmark(page: str) -> None:
    own = (DOCS / f"{page}.md").read_text().partition("## Measured")[2]
    tables = (ROOT / "benchmarks" / f"{page}.md").read_text()
    quoted = re.findall(r"[+-]?\d+\.\d\d(?: ± \d+\.\d\d)?", own)
    assert len(quoted) >= 3
    for figure in quoted:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", tables), figure


def test_a_drawing_shows_what_runs_in_which_stage() -> None:
    text = drawings.indistill()
    assert re.findall(r">(\d+ of \d+|kd)<title", text) == ["8 of 16", "16 of 32", "32 of 64", "kd"]
    box = text.partition("layers.layer2.0.relu_1</text>")[2].partition("</g>")[0]
    assert re.findall(r'class="sq-(\w+)"', box) == ["dead", "narrowed", "runs", "runs"]
    all_are_styled(text)


def test_a_drawing_shows_what_the_levels_of_a_cascade_keep() -> None:
    text = drawings.cascade()
    boxes = dict(re.findall(r'<text class="strong"[^>]*>([\w-]+)</text>(.*?)</g>', text, re.DOTALL))
    assert list(boxes) == ["teacher", "level-3", "level-2", "level-1", "level-0", "student"]
    kept = {name: [tuple(map(int, of)) for of in re.findall(r"(\d+) of (\d+)<", box)] for name, box in boxes.items()}
    whole = sum(channels for _, channels in kept["teacher"])
    for name, share in zip(boxes, (1, 1, *spaced(0.2, 3)[::-1][1:]), strict=False):
        assert abs(sum(one for one, _ in kept[name]) / whole - share) <= 0.01, name
    assert kept["student"] == kept["level-0"]
    for name, box in boxes.items():
        heights = [float(one) for one in re.findall(r'class="bar"[^>]*height="([\d.]+)"', box)]
        assert heights == pytest.approx([15 * one / channels for one, channels in kept[name]], abs=0.01)
    labels = re.findall(r"<text[^>]*>([^<]*(?:kd|cut out when)[^<]*)</text></g>", text)
    assert sorted(labels) == ["cut out when that is trained", "kd", "kd", *["kd, moves its scores"] * 3]
    all_are_styled(text)


def all_are_styled(text: str) -> None:
    styles = (ROOT / "fxdistill" / "report" / "page" / "drawing.css").read_text()
    for name in {one for found in re.findall(r'class="([^"]+)"', text) for one in found.split()} - {
        "drawing",
        "legend",
    }:
        assert re.search(rf"\.{name}\b", styles), name


def test_every_file_of_a_run_directory_is_named() -> None:
    page = (DOCS / "files.md").read_text()
    for run in (runs.finished(), runs.finished("auxiliary", align="shrink")):
        for entry in run.iterdir():
            assert f"`{entry.name}{'/' if entry.is_dir() else ''}`" in page


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    assert any(link.startswith("docs/") for link in links)
    for link in links:
        assert (ROOT / link).exists(), link


def test_pages_are_built_with_every_link_checked(tmp_path: Path) -> None:
    code, said = built(DOCS, tmp_path / "out")
    assert code == 0, said
    made = tmp_path / "out"
    pages = {path.relative_to(made).as_posix(): path.read_text() for path in made.rglob("*.html")}
    assert "<math" in pages["indistill.html"]
    assert pages["indistill.html"].count('<path class="link') == 4  # three pairs and the predictions
    assert pages["cascade.html"].count('<rect class="box') == 6  # the teacher, four levels, the student
    assert all((made / "_static" / name).is_file() for name in ("drawing.css", "fxdistill.css"))
    assert 'id="trace-rung"' in pages["reference/diagnostics.html"]
    for name, page in pages.items():  # from disk, without a network: nothing of another place is loaded
        assert not re.search(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//', page), name


def test_a_broken_link_fails(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "conf.py").write_text("extensions = ['myst_parser']\nmyst_heading_anchors = 3\n")
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[there](nowhere.md)\n")
    code, said = built(tmp_path / "docs", tmp_path / "out")
    assert code != 0
    assert "nowhere.md" in said


def built(source: Path, out: Path) -> tuple[int, str]:
    """What sphinx returns and says, with the options of ``make docs``; all our modules are here already."""
    from sphinx.cmd.build import build_main  # noqa: PLC0415  # slow to import
    from sphinx.util.docutils import docutils_namespace  # noqa: PLC0415

    (command,) = re.findall(r"\$\(BIN\)/(sphinx-build .*) docs docs/_build", (ROOT / "Makefile").read_text())
    with contextlib.redirect_stderr(io.StringIO()) as said, warnings.catch_warnings(), docutils_namespace():
        warnings.simplefilter("ignore")
        return build_main([*command.split()[1:], str(source), str(out)]), said.getvalue()

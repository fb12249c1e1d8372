"""The pages that people open, in a browser: as they are read from disk, on a screen and on a telephone, light and dark.

Needs Chromium; without one the tests are skipped.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

import fxdistill
from fxdistill import models
from fxdistill.compiler.outline import outline
from fxdistill.methods.cascade import Cascade
from fxdistill.report.page import document, told
from tests import jobs, runs
from tests.report.browser import SCHEMES, WIDTHS, Looked, Shown, chromium, look

PROGRAM, _WHY = chromium()
pytestmark = pytest.mark.skipif(not PROGRAM, reason=_WHY)

PAGES = {"run.html": (5, 12), "compared.html": (11, 28), "plan.html": (2, 1), "cascade.html": (3, 3)}
"""Pages with how many sections and drawings they have."""


def write_pages(folder: Path) -> list[Path]:
    """The report of a run, of two runs, of a plan, and of a cascade with pairs between its levels."""
    run, other = runs.detailed(), folder / "other"
    shutil.copytree(run, other)
    result = json.loads((other / "result.json").read_text())
    for arm in result["arms"]:
        arm["accuracy"] += 0.1
    (other / "result.json").write_text(json.dumps(result))
    jobs.done("report", run, "-o", folder / "run.html")
    jobs.done("report", run, other, "-o", folder / "compared.html")
    jobs.done(
        "show", runs.plan_file("detailed", repeats=2), "--html", folder / "plan.html", "--allow-factory", *runs.ALLOW
    )
    (folder / "cascade.html").write_text(cascade())
    return [folder / name for name in PAGES]


def cascade() -> str:
    teacher = models.resnet(widths=[4, 8, 16], blocks=1, classes=10, in_channels=1).eval()
    how = Cascade(keep=0.5, assistants=1, hints=1e-3)
    options = fxdistill.Options(input_shape=(1, 1, 16, 16), method="cascade", cascade=how)
    plan = fxdistill.compile(teacher, None, options)
    return document.document([told.of_plan(plan, "cascade", outline(plan, {"teacher": teacher}))])


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    folder = tmp_path_factory.mktemp("pages")
    return look(PROGRAM, write_pages(folder), folder)


def test_the_consoles_stay_empty(looked: Looked) -> None:
    assert len(looked.frames) == len(PAGES) * len(WIDTHS) * len(SCHEMES)
    assert looked.console == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_its_screen_and_is_there_whole(looked: Looked, page: str, width: int, scheme: str) -> None:
    found = looked.frames[Shown(page, width, scheme)]
    assert found["wide"] == width
    assert found["is_dark"] == (scheme == "dark")
    assert (found["sections"], found["figures"]) == PAGES[page]
    nothing = {"blank": [], "cut": [], "broken": 0, "fetched": [], "faint": []}
    assert {name: found[name] for name in nothing} == nothing


_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy".*?>')
_SCRIPT = "<script>{}</script>"


def planted(text: str, kind: str) -> str:
    """The report of a run with one thing wrong."""
    free = _POLICY.sub("", text)
    changed = {
        "wide": text.replace("<main>", "<main><div style='width:900px'>wide</div>", 1),
        "script": text.replace("<main>", "<main><script>x</script>", 1),
        "error": free.replace("<main>", "<main>" + _SCRIPT.format("console.error('it broke')"), 1),
        "warning": free.replace("<main>", "<main>" + _SCRIPT.format("console.warn('it may break')"), 1),
        "loads": free.replace("<main>", "<main><img src='http://example.org/x.png'>", 1),
        "empty": re.sub(r'<circle class="dot.*?/>', "", text),
        "line": re.sub(r'<path class="line control.*?</path>', "", text, count=1, flags=re.DOTALL),
        "unseen": text.replace("figure svg .dot { fill: var(--slot);", "figure svg .dot { fill: var(--card);"),
        "picture": re.sub(r"base64,.{40}", "base64,", text, count=1),
        "cut": text.replace('x="2" y="11">', 'x="-40" y="11">'),
        "night": text.replace("(prefers-color-scheme: dark)", "(prefers-color-scheme: no-preference)"),
        "faint": text.replace("--soft: #5d6771;", "--soft: #9aa5af;"),
    }[kind]
    assert changed != text, kind
    return changed


KINDS = {
    "wide": "wide", "script": "console", "error": "console", "warning": "console", "loads": "fetched", "empty": "blank",
    "line": "blank", "unseen": "blank", "picture": "broken", "cut": "cut", "night": "is_dark", "faint": "faint",
}  # fmt: skip
"""What is planted, and by what it is found."""


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    folder = tmp_path_factory.mktemp("wrong")
    text = document.document([told.of_run(runs.detailed(), "run")])
    pages = [folder / f"{kind}.html" for kind in KINDS]
    for page in pages:
        page.write_text(planted(text, page.stem))
    return look(PROGRAM, pages, folder, widths=WIDTHS[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_in_a_page_is_found(wrong: Looked, kind: str) -> None:
    page, by = f"{kind}.html", KINDS[kind]
    light, dark = (wrong.frames[Shown(page, 420, scheme)] for scheme in SCHEMES)
    said = [line for line in wrong.console if line.startswith(page)]
    match by:
        case "console":
            assert said
            assert any(word in said[0] for word in ("it broke", "it may break", "Content Security Policy"))
        case "wide":
            assert light[by] > 900
        case "is_dark":
            assert not dark[by]
        case _:
            assert light[by]

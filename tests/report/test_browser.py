"""The report in a browser: nothing on its console, nothing wider than the screen. Needs Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fxdistill.report.page import document
from tests import runs

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
_PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  const late = [...page.querySelectorAll("svg text")].filter(t => {
    const own = t.getBoundingClientRect(), svg = t.ownerSVGElement.getBoundingClientRect();
    return own.right > svg.right + 1 || own.left < svg.left - 1;
  }).map(t => t.textContent);
  document.title = JSON.stringify({
    wide: page.documentElement.scrollWidth, sections: page.querySelectorAll("section").length,
    broken: [...page.images].filter(i => !i.complete || !i.naturalWidth).length, cut: late,
  });
  document.body.dataset.said = document.title;
}, 50));
</script>"""

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium (Debian: apt-get install chromium)")


def opened(page: Path, profile: Path) -> tuple[str, str]:
    """What Chromium has of a page when it is loaded, and what it logged."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", f"--user-data-dir={profile}",
        "--enable-logging=stderr", "--hide-scrollbars", "--virtual-time-budget=2000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def framed(page: Path, width: int) -> Path:
    """A page that looks at another one at a width: headless windows are not narrower than 500 pixels."""
    holder = page.with_name(f"frame-{width}.html")
    style = f"width:{width}px;height:900px;border:0"
    holder.write_text(f"<!DOCTYPE html><body><iframe src='{page.name}' style='{style}'></iframe>{_PROBE}")
    return holder


def said(dom: str) -> dict[str, object]:
    (found,) = re.findall(r'data-said="(.*?)"', dom)
    told: dict[str, object] = json.loads(html.unescape(found))
    return told


@pytest.mark.parametrize("width", [420, 1280])
def test_a_report_fits_its_screen_and_the_console_stays_empty(tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    document.write_report([runs.detailed()], page)
    dom, console = opened(framed(page, width), tmp_path / "profile")
    assert console == ""
    found = said(dom)
    assert found["wide"] == width
    assert found["broken"] == 0
    assert found["cut"] == []
    assert found["sections"] == 5


def test_what_a_page_must_not_do_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    document.write_report([runs.detailed()], page)
    text = page.read_text().replace("<main>", "<main><script>x</script><div style='width:900px'>wide</div>", 1)
    page.write_text(text)
    dom, console = opened(framed(page, 420), tmp_path / "profile")
    assert "Content Security Policy" in console
    assert said(dom)["wide"] == 920

"""Pages in Chromium, read from disk: what they have when they are loaded, and what their consoles say.

All pages of a call are opened by one Chromium, each in frames of a page of ours: a frame has any width (headless
windows are not narrower than 500 pixels), and a page in it prefers the colours that the frame prefers. Names of hosts
lead nowhere, so that nothing is fetched by a test.
"""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

WIDTHS = (420, 1280)
SCHEMES = ("light", "dark")
NAMES = ("chromium", "chromium-browser", "google-chrome")

_PROBE = r"""
const MARKS = ".dot, .hollow, .line, .level, .box, .bar";
const seen = one => { const at = one.getBoundingClientRect(); return at.width + at.height > 0; };
const channels = text => (text.match(/[\d.]+/g) || []).map(Number);
const clear = text => { const c = channels(text); return text === "none" || c[3] === 0; };

function luminance(text) {
  const [r, g, b] = channels(text).map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(one, other) {
  const [dark, bright] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
}

function behind(style, element) {
  while (element && clear(style(element).backgroundColor)) element = element.parentElement;
  return element ? style(element).backgroundColor : "rgb(255, 255, 255)";
}

function drawn(style, mark, svg) {
  const { fill, stroke } = style(mark), own = mark.getBoundingClientRect(), all = svg.getBoundingClientRect();
  const across = own.left < all.right && own.right > all.left, down = own.top < all.bottom && own.bottom > all.top;
  const paper = behind(style, svg);
  return seen(mark) && across && down && [fill, stroke].some(colour => !clear(colour) && contrast(colour, paper) > 1.2);
}

function blank(style, figure) {
  const svg = figure.querySelector("svg");
  const marks = svg ? [...svg.querySelectorAll(MARKS)].filter(mark => drawn(style, mark, svg)) : [];
  const slots = [...figure.querySelectorAll(".legend > span[class]")].map(span => span.className);
  return !marks.length || slots.some(slot => !marks.some(mark => mark.closest(`svg .${slot}`)));
}

function text(page, style) {
  const found = [], walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const own = node.parentElement;
    if (!node.data.trim() || own.closest("title, desc, style, script") || !seen(own)) continue;
    const ink = own.ownerSVGElement ? style(own).fill : style(own).color;
    found.push([node.data.trim(), contrast(ink, behind(style, own))]);
  }
  return found;
}

function told(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, style = one => view.getComputedStyle(one);
  return {
    page: frame.dataset.page, width: frame.clientWidth, scheme: frame.dataset.scheme,
    wide: page.scrollingElement.scrollWidth,
    is_dark: luminance(behind(style, page.body)) < 0.2,
    sections: page.querySelectorAll("section").length,
    figures: page.querySelectorAll("figure").length,
    blank: [...page.querySelectorAll("figure")].filter(one => blank(style, one)).map(one => one.children[0].innerText),
    cut: [...page.querySelectorAll("svg text")].filter(one => {
      const own = one.getBoundingClientRect(), svg = one.ownerSVGElement.getBoundingClientRect();
      return own.right > svg.right + 1 || own.left < svg.left - 1;
    }).map(one => one.textContent),
    broken: [...page.images].filter(one => !one.complete || !one.naturalWidth).length,
    fetched: view.performance.getEntriesByType("resource").map(one => one.name),
    faint: text(page, style).filter(([, found]) => found < 4.5).map(([said, found]) => `${said}: ${found.toFixed(2)}`),
  };
}

addEventListener("load", () => setTimeout(() => {
  document.body.dataset.said = JSON.stringify([...document.querySelectorAll("iframe")].map(told));
}, 50));
"""


class Shown(NamedTuple):
    """Where a page is looked at: its name, the pixels that it has, and the colours that are preferred."""

    page: str
    width: int
    scheme: str


@dataclass(frozen=True)
class Looked:
    """What Chromium has of some pages.

    Attributes:
        frames: What was found of a page, by where it was looked at.
        console: What the pages' consoles say, each line with the name of its page.
    """

    frames: dict[Shown, dict[str, Any]]
    console: list[str]


def chromium() -> tuple[str, str]:
    """The path of a Chromium that starts, or else why there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        return "", f"there is no Chromium: none of {', '.join(NAMES)} is on the path (Debian: apt-get install chromium)"
    done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=120, check=False)
    return (found, "") if done.returncode == 0 else ("", f"{found} does not start: {done.stderr.strip()[-200:]}")


def look(
    program: str, pages: Sequence[Path], folder: Path, *, widths: Sequence[int] = WIDTHS,
    schemes: Sequence[str] = SCHEMES,
) -> Looked:  # fmt: skip
    """Open some pages, at some widths and in some colours, by one start of Chromium.

    Args:
        program: The path of Chromium.
        pages: The pages, of different names.
        folder: Where to write what frames them.
        widths: Pixels.
        schemes: ``light``, ``dark``.
    """
    holder = folder / "frames.html"
    frames = "".join(
        f'<iframe src="{page.as_uri()}" data-page="{page.name}" data-scheme="{scheme}" '
        f'style="width:{width}px;height:900px;border:0;color-scheme:{scheme}"></iframe>'
        for page in pages for width in widths for scheme in schemes
    )  # fmt: skip
    holder.write_text(f"<!DOCTYPE html><html style='color-scheme:light'><body>{frames}<script>{_PROBE}</script>")
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
        "--v=0", "--virtual-time-budget=2000", "--dump-dom", holder.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    (said,) = re.findall(r'data-said="(.*?)"', done.stdout)
    found = {Shown(one["page"], one["width"], one["scheme"]): one for one in json.loads(html.unescape(said))}
    return Looked(found, list(_console(done.stderr)))


def _console(logged: str) -> Iterator[str]:
    """``run.html: what it says``, of the lines that tell of a page's console; a message may have several lines."""
    for said, source in re.findall(r'CONSOLE[:(].*?\] "(.*?)", source: (\S*)', logged, re.DOTALL):
        yield f"{source.rsplit('/', 1)[-1]}: {said}"

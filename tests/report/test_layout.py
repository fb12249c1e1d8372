"""Lines that wrap in their column, numbers that are short."""

from rich.text import Text

from fxdistill.report import layout
from tests.report.drawing import drawn


def test_a_line_whose_head_is_as_wide_as_the_console_wraps_whole() -> None:
    console, text = drawn(terminal=False, width=20)
    console.print(layout.Line(Text("32 -> 16"), Text("features.denseblock1.conv  ")))
    assert text.getvalue().splitlines() == ["features.densebl", "    ock1.conv  32 ->", "    16"]


def test_numbers_are_short() -> None:
    assert [layout.count(n) for n in (12, 1_234, 25_557_032, 4.1e9)] == ["12", "1.23 k", "25.6 M", "4.1 G"]

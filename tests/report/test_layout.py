"""Lines that wrap in their column, numbers that are short."""

import pytest
from rich.cells import cell_len
from rich.text import Text

from fxdistill.figures import figure
from fxdistill.report import estimate_view, layout
from fxdistill.tasks import TASKS
from tests.report.drawing import drawn


def test_a_line_whose_head_is_as_wide_as_the_console_wraps_whole() -> None:
    console, text = drawn(terminal=False, width=20)
    console.print(layout.Line(Text("32 -> 16"), Text("features.denseblock1.conv  ")))
    assert text.getvalue().splitlines() == ["features.densebl", "    ock1.conv  32 ->", "    16"]


def test_numbers_are_short() -> None:
    assert [layout.count(n) for n in (12, 1_234, 25_557_032, 4.1e9)] == ["12", "1.23 k", "25.6 M", "4.1 G"]
    assert [layout.count(n) for n in (999, 999_499, 999_999, 999_500_000)] == ["999", "999 k", "1 M", "1 G"]
    assert [estimate_view.size(n) for n in (12, 999.7, 999_999, 5e12)] == ["12 B", "1 kB", "1 MB", "5,000 GB"]
    assert [estimate_view.span(n) for n in (0.0034, 0.9999, 59)] == ["3.4 ms", "1 s", "59 s"]


@pytest.mark.parametrize("width", [60, 30])
def test_letters_as_wide_as_two_move_no_column_and_cut_no_number(width: int) -> None:
    console, text = drawn(terminal=False, width=width)
    rows = (("三個三個三個", "53", "-5.66"), ("cat", "1,053", "+12.90"), ("🙂 nine, with a longer name", "7", "+0.00"))
    console.print(layout.Table(("class", "images", "B - A"), rows))
    lines = text.getvalue().splitlines()
    assert all(value in " ".join(lines) for row in rows for value in row)
    if width == 60:
        assert len({cell_len(line) for line in lines}) == 1
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize(("value", "digits", "said"), [
    (0.01234, 3, "0.0123"), (999.4, 3, "999"), (999.6, 3, "1,000"), (1234.5, 3, "1,234"), (69381.4, 4, "69,381"),
    (-1234.5, 3, "-1,234"), (1e12, 3, "1e+12"), (0.0, 3, "0"), (float("nan"), 3, "nan"),
])  # fmt: skip
def test_a_figure_has_an_exponent_only_where_one_would_write_it(value: float, digits: int, said: str) -> None:
    assert figure(value, digits) == said
    assert value < 0 or figure(value, digits, sign=True) in (f"+{said}", said)


@pytest.mark.parametrize(("value", "deviation", "said"), [
    (69381.4, 0.72, "69,381.40 ± 0.72"), (69381.4, 1234.0, "69,381 ± 1,234"), (0.01234, 0.0056, "0.0123 ± 0.0056"),
    (8029.4, 0.0, "8,029"), (0.5, 1e-12, "0.5 ± 1e-12"),
])  # fmt: skip
def test_a_mean_goes_as_far_as_its_deviation(value: float, deviation: float, said: str) -> None:
    assert layout.spread(value, deviation, TASKS.get("regression")) == said


def test_several_seeds_that_reach_the_same_have_a_deviation_of_zero() -> None:
    said = {
        (task, seeds): layout.spread(0.5, 0.0, TASKS.get(task), seeds)
        for task in ("classification", "regression") for seeds in (1, 2)
    }  # fmt: skip
    assert list(said.values()) == ["50.00%", "50.00% ± 0.00", "0.5", "0.5 ± 0"]

"""What masks kept while they moved, as a picture in the text of a run."""

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Group

from fxdistill.report import show as show_module
from fxdistill.report.kept_view import bars, kept_lines
from fxdistill.report.page import levels, told
from fxdistill.report.show import show
from tests import runs
from tests.report.drawing import drawn
from tests.runtime.test_cascade import finished, planned

pytestmark = pytest.mark.usefixtures("few_digits")


def text(records: list[dict[str, Any]], width: int = 100, seed: int | None = None) -> str:
    console, told = drawn(terminal=False, width=width)
    console.print(Group(*kept_lines(planned(), records, seed=planned().seeds[0] if seed is None else seed)))
    return told.getvalue()


def epoch(seed: int, **levels: tuple[int, int]) -> dict[str, Any]:
    kept = {name.replace("_", "-"): {"features.4": a, "features.8": b} for name, (a, b) in levels.items()}
    return {"name": "joint", "seed": seed, "kept": kept}


@pytest.mark.parametrize(
    ("counts", "drawn_"),
    [([8, 4, 1], "█▄▁"), ([0, 0], "▁▁"), ([3], "█"), ([1000, 1, 999], "█▁█"), ([2, 3, 4, 5, 6, 7, 8, 16], "▁▂▂▃▃▄▄█")],
)
def test_bars_stand_over_the_largest_count(counts: list[int], drawn_: str) -> None:
    assert bars(counts) == drawn_


def test_many_epochs_are_bars_at_even_distances_and_the_last_one_is_there() -> None:
    found = bars([*range(1, 801), 1])
    assert len(found) == 24
    assert (found[0], found[-2], found[-1]) == ("▁", "█", "▁")
    assert list(found[:-1]) == sorted(found[:-1])


def test_each_layer_of_each_level_has_its_own_course_from_the_plans_start() -> None:
    other = planned().seeds[0] + 1
    start = {layer.name: layer.kept for layer in planned().members["level-0"].layers}  # type: ignore[union-attr]
    told = [
        epoch(planned().seeds[0], level_0=(1, 6), level_1=(8, 3)), epoch(other, level_0=(7, 7), level_1=(7, 7)),
        epoch(planned().seeds[0], level_0=(2, 5), level_1=(4, 7)), {"name": "distilled", "seed": planned().seeds[0]},
    ]  # fmt: skip
    lines = text(told).splitlines()
    assert lines[1].strip() == f"channels kept, from the start to epoch 2 of 'joint', seed {planned().seeds[0]}"
    assert lines[2].split() == ["layer", "channels", "level-0", "level-1"]
    assert lines[3].split()[:2] == ["features.4", "8"]
    assert f"{bars([start['features.4'], 1, 2])}  {start['features.4']} -> 2  " in lines[3]
    assert lines[3].endswith(" -> 4")
    assert f"{bars([start['features.8'], 6, 5])}  {start['features.8']} -> 5  " in lines[4]
    assert lines[4].endswith(" -> 7")
    assert len(lines) == 5
    assert max(map(len, text(told, width=40).splitlines())) <= 40
    assert f"to epoch 1 of 'joint', seed {other}" in text(told, seed=other)
    assert " -> 7" in text(told, seed=other)


def test_a_run_whose_masks_moved_shows_it_and_another_one_does_not() -> None:
    kept = [line["kept"]["level-0"] for line in runs.metrics(finished()) if "kept" in line]
    shown = show(finished())
    assert "channels kept, from the start to epoch 2 of 'joint'" in shown
    assert f" -> {kept[-1]['features.8']}" in shown.split("channels kept")[1]
    assert "channels kept" not in show(runs.finished())


def test_what_is_shown_is_of_the_seed_whose_student_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, result, records = show_module._run(finished())
    first, other = plan.seeds[0], plan.seeds[0] + 1
    several = [*records, *({**record, "seed": other} for record in records if record.get("kept"))]
    for ended, seed in (({**(result or {}), "exported_seed": other}, other), (None, first)):
        monkeypatch.setattr(show_module, "_run", lambda _, ended=ended: (plan, ended, several))
        console, written = drawn(terminal=False)
        console.print(show_module.moved(finished()))
        assert f"of 'joint', seed {seed}" in written.getvalue()


def test_nothing_is_shown_of_no_records() -> None:
    assert text([]) == ""


def test_levels_that_have_trained_cost_what_was_cut_out_of_them() -> None:
    found = told.of_run(finished(), "run")
    assert found.result is not None
    arms = [arm | {"macs": 4321} if "macs" in arm else arm for arm in found.result["arms"]]
    found = replace(found, result={**found.result, "arms": arms})
    assert costs(found)["student"] == costs(found)["level-0"] == "4.32 k MACs"
    assert costs(found)["level-1"] == ""  # nobody has cut it out
    assert found.result is not None
    exported = replace(found, result={**found.result, "levels": {"level-1": {"macs": 1234.0}}})
    assert costs(exported)["level-1"] == "1.23 k MACs"


def costs(found: told.Told) -> dict[str, str]:
    drawing = levels.drawing(found)
    assert drawing is not None
    return {box.label: box.cost for box in drawing.boxes}

"""The summary of a profiled run: one screen, also a narrow one."""

from fxdistill.report.profile_view import profile_view
from fxdistill.runtime.training.profiling import StageTimes
from tests.report.drawing import drawn


def test_shares_are_of_a_step_and_fit_sixty_columns() -> None:
    parts = {"data": 0.1, "teacher": 1.0, "student": 0.4, "backward": 0.3, "optimiser": 0.1, "rest": 0.1}
    alone = {"data": 0.25, "forward": 0.5, "backward": 0.25}
    found = [StageTimes("distilled", "warm-up-1", 5, parts), StageTimes("control", "control", 2, alone)]
    console, text = drawn(terminal=False, width=60)
    console.print(profile_view(found, "run/profile"))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert lines == [
        "",
        "profile: milliseconds of a step, shares of its parts",
        "distilled   ms  data  teacher  student  back  optim  rest",
        "warm-up-1  400    5%      50%      20%   15%     5%    5%",
        "control   ms  data  forward  back",
        "control  500   25%      50%   25%",
        "traces: run/profile",
    ]


def test_in_a_narrow_terminal_each_arm_is_named_above_its_stages() -> None:
    found = [StageTimes(arm, "main", 1, {"data": 0.1, "teacher": 0.3}) for arm in ("kd", "indistill+kd")]
    console, text = drawn(terminal=False, width=20)
    console.print(profile_view(found, "run/profile"))
    lines = text.getvalue().splitlines()
    at = [lines.index(arm) for arm in ("kd", "indistill+kd")]
    assert [lines[place + 1].partition(":")[0] for place in at] == ["main", "main"]

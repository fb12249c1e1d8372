"""Selection: exact, the same on every machine, and honest about what it did not find."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from fxdistill.errors import InputError, InvariantError, PairingError
from fxdistill.ir.coupling import Constraint, Coupling
from fxdistill.passes.thin import program, selection
from fxdistill.passes.thin.blocks import Block, Width
from fxdistill.passes.thin.selection import Selection, select


def coupling_of(count: int, *sets: tuple[tuple[int, ...], ...]) -> Coupling:
    rules = tuple(Constraint("groups", f"rule-{index}", rows) for index, rows in enumerate(sets))
    return Coupling(
        graph=fx.Graph(), values={}, parameters={}, roles={}, class_of=torch.arange(count + 1), locks={},
        constraints=rules,
    )  # fmt: skip


def scores_of(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stays(found: Selection, classes: Sequence[int]) -> list[int]:
    return [i for i in classes if i not in found.removed]


RULE = ((1, 2, 3), (3, 4, 5))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_of_all_selections_is_found(seed: int, sign: int) -> None:
    """Two blocks tied by overlapping rows and a tap that has one class twice, against every selection there is."""
    blocks = [Block((1, 2, 3, 4), 1, 2), Block((5, 6, 7, 8), 1, None)]
    width = Width("tap", (5, 6, 7, 8, 8, 1), 4)
    scores = sign * scores_of(8, seed)
    scales = {i: float(scores[list(block.classes)].abs().max()) for block in blocks for i in block.classes}

    def worth(kept: set[int]) -> float:
        total = sum(float(scores[i]) / scales[i] for i in kept)
        return total - 1000 * abs(len(kept & {1, 2, 3, 4}) - 2)

    def allowed(kept: set[int]) -> bool:
        counts = {len(kept & set(row)) for row in RULE}
        return (
            len(counts) == 1 and 0 not in counts and sum(i in kept for i in width.classes) == 4
            and all(kept & set(block.classes) for block in blocks)
        )  # fmt: skip

    subsets = (set(kept) for size in range(9) for kept in itertools.combinations(range(1, 9), size))
    best = max((kept for kept in subsets if allowed(kept)), key=worth)
    found = select(coupling_of(8, RULE), blocks, [width], scores, frozen=())
    assert stays(found, range(1, 9)) == sorted(best)
    assert found.diagnostics == ()


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), locked=st.integers(0, 2), part=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_one_width_alone_is_a_sort_that_gives_what_the_program_gives(
    sizes: list[int], locked: int, part: float, seed: int
) -> None:
    ids = iter(range(1, sum(sizes) + 1))
    blocks = [Block(tuple(itertools.islice(ids, size)), 1, None) for size in sizes]
    free = [class_id for block in blocks for class_id in block.classes]
    channels = (*free[::-1], *range(len(free) + 1, len(free) + 1 + locked))
    count = len(blocks) + round(part * (len(free) - len(blocks)))
    scores, width = scores_of(len(channels), seed), Width("tap", channels, count + locked)
    found = selection._least_of_tap(blocks, width, scores)
    assert found == program.Program(blocks, [], [width], scores).solve()[0]
    assert found == select(coupling_of(len(channels)), blocks, [width], scores, frozen=range(len(free) + 1, 99)).removed


def test_a_block_of_negative_scores_keeps_its_best_class() -> None:
    blocks, scores = [Block((1, 2), 1, None), Block((3, 4), 1, None)], torch.tensor([0, 0.9, 0.5, -0.2, -0.1])
    width = Width("tap", (1, 2, 3, 4), 2)
    assert selection._least_of_tap(blocks, width, scores) == {2, 3}
    assert program.Program(blocks, [], [width], scores).solve()[0] == {2, 3}


def test_what_is_no_sort_is_left_to_the_program() -> None:
    blocks, tap = [Block((1, 2), 1, None), Block((3, 4), 1, None)], (1, 2, 3, 4)
    assert selection._least_of_tap(blocks, Width("tap", tap, 3), scores_of(4)) is not None
    for others, channels, count in (
        (blocks, tap, 1),  # one block would be empty
        (blocks, tap, 5),
        (blocks, (1, 2, 3, 4, 4), 3),
        (blocks, (1, 2, 3), 3),  # another class is free
        ([blocks[0], Block((3, 4), 2, None)], tap, 3),
        ([blocks[0], Block((3, 4), 1, 1)], tap, 3),
    ):
        assert selection._least_of_tap(others, Width("tap", channels, count), scores_of(4)) is None


def test_what_cannot_be_is_told_from_what_was_not_found() -> None:
    blocks = [Block((1, 2, 3, 4), 1, None)]
    widths = [Width("one", (1, 2, 3, 4), 2), Width("other", (1, 2, 3, 4), 3)]
    with pytest.raises(PairingError, match="cannot be had together: 2 of 4 at 'one', 3 of 4 at 'other'"):
        select(coupling_of(4), blocks, widths, scores_of(4), frozen=())
    rule = ((1, 2, 3), (4,))
    with pytest.raises(InputError, match=r"the equal counts at 'rule-0' \(groups\) cannot be met"):
        select(coupling_of(4, rule), [Block((1, 4), 1, 2)], [], scores_of(4), frozen=(2, 3))


def split(taps: int, most: int, count: int = 30) -> tuple[list[Block], list[Width]]:
    """Widths of taps in which each class occurs many times: a market split problem, small and hard."""
    times = np.random.default_rng(0).integers(0, most, (taps, count))
    widths = [
        Width(f"tap-{index}", tuple(np.repeat(np.arange(1, count + 1), row).tolist()), int(row.sum() // 2))
        for index, row in enumerate(times)
    ]
    return [Block(tuple(range(1, count + 1)), 1, None)], widths


def test_a_search_that_ends_without_a_selection_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_NODES", 20)
    blocks, widths = split(4, 100)
    with pytest.raises(
        InputError, match=r"no selection with .* 'tap-3' was found in 20 nodes .* nor that there is none"
    ):
        select(coupling_of(30), blocks, widths, scores_of(30), frozen=())


def test_a_search_that_ends_with_a_selection_says_so_and_gives_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, widths = split(3, 20)
    whole = select(coupling_of(30), blocks, widths, scores_of(30), frozen=())
    assert whole.diagnostics == ()
    monkeypatch.setattr(program, "_NODES", 3)
    one, other = (select(coupling_of(30), blocks, widths, scores_of(30), frozen=()) for _ in range(2))
    assert one == other
    kept = stays(one, range(1, 31))
    assert [sum(i in kept for i in width.classes) for width in widths] == [width.width for width in widths]
    assert [(d.code, d.severity, d.where) for d in one.diagnostics] == [("search-ended", "warning", "tap-0")]
    assert "may not be the most important ones: the search ended after 3 nodes" in one.diagnostics[0].why


def test_the_search_is_not_bounded_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, float]] = []
    solve = scipy.optimize.milp

    def watched(*args: Any, **options: Any) -> Any:
        given.append(dict(options["options"]))  # scipy takes from it what it knows
        return solve(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", watched)
    select(coupling_of(8, RULE), [Block((1, 2, 3, 4, 5), 1, 2)], [], scores_of(8), frozen=())
    assert [sorted(options) for options in given] == [["mip_rel_gap", "node_limit"]]


def test_multiples_that_cannot_be_had_are_given_up_with_a_remark() -> None:
    rule = ((1, 2, 3), (4, 5, 6), (1, 4))
    found = select(coupling_of(6, rule), [Block((1, 2, 3, 4, 5, 6), 3, 3)], [], scores_of(6), frozen=())
    assert len(found.removed) % 3 != 0
    assert [(d.code, d.severity, d.where) for d in found.diagnostics] == [("not-rounded", "note", "rule-0")]


def test_multiples_that_were_not_found_are_tried_without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first search meets its limit with nothing in hand, the second one, which need not round, finds something."""
    ends = iter([True, False])
    solve = scipy.optimize.milp

    def limited(*args: Any, **options: Any) -> Any:
        if next(ends):
            return SimpleNamespace(status=4, message="Solution limit reached", x=None)
        return solve(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", limited)
    found = select(coupling_of(8, RULE), [Block((1, 2, 3, 4, 5), 2, 2)], [], scores_of(8), frozen=())
    assert [d.code for d in found.diagnostics] == ["not-rounded"]


@pytest.mark.parametrize(
    ("status", "message", "end"),
    [
        (0, "Optimal", "solved"), (1, "Time limit reached", "limit"), (2, "The problem is infeasible.", "infeasible"),
        (4, "(HiGHS Status 16: Solution limit reached)", "limit"),
        (4, "(HiGHS Status 9: Primal infeasible or unbounded)", "infeasible"),
    ],
)  # fmt: skip
def test_every_end_of_a_search_has_its_name(status: int, message: str, end: str) -> None:
    assert program._end(status, message) == end


@pytest.mark.parametrize(("status", "message"), [(3, "The problem is unbounded."), (4, "Solve error")])
def test_a_search_that_fails_is_no_answer(status: int, message: str) -> None:
    with pytest.raises(InvariantError, match="the integer program of the selection failed"):
        program._end(status, message)

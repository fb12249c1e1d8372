"""Match: pair teacher and student nodes of two different architectures.

Both models' :mod:`~fxdistill.passes.match.candidates` come in stages. The pairs are the monotone alignment of
stages with the largest sum of scores, found by dynamic programming:

    best(i, j) = score(i, j) + max { best(k, m) : k < i, m < j, and something is computed in between }
    score      = 0.35 resolution + 0.15 depth + 0.10 cost + 0.35 preference + 0.05 kind            in 0 … 1
    resolution = exp(-1.2 log2(stride ratio)^2);  depth, cost = 1 - difference of the shares
    preference = mean of 1 / (1 + place in the stage's order of preference)

A stage is represented by its first choice, or by the next that is not forbidden. A model of one resolution (a
vision transformer) has no stages to go by. Where the other one has, each stage takes the block that is nearest in its
share of depth and cost: all blocks being of one resolution, a different one lowers the score and not the choice. Where
both are of one resolution, ``limit`` of the student's blocks stand for stages, spread evenly and ending with the last.

    comparable = same layout, positions and class token, or both on a grid, which is then pooled to the smaller

What is left alone is said.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import fx

from fxdistill.errors import InvariantError, PairingError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.ir.graph import find, path_of
from fxdistill.passes.match.blocks import Candidate
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.match.remarks import Pairing, Stages, locked, no_pair, obstacle, projected, unlike, unpaired
from fxdistill.plan.schema import Align, Pair, RunnerUp

_SHARPNESS = 1.2  # a factor of two in size costs as much as a whole stage of depth; unpadded convolutions cost little
_LEAST_SCORE = 0.35


@dataclass(frozen=True)
class MatchSource:
    """Two members, as far as they may be paired."""

    teacher: Survey
    student: Survey


@dataclass(frozen=True)
class Match(Pass[MatchSource, tuple[Pair, ...]]):
    """Pair the two models' nodes, shallow pairs first.

    Attributes:
        pins: Pairs (teacher path, student path) that must be; a module's path stands for its output.
        forbid: Pairs that must not be.
        align: How the teacher's width is brought to the student's; where the teacher is the narrower one, or is to be
            shrunk and has channels that must stay, the pair gets ``project`` with a diagnostic.
        limit: Largest number of pairs, pins aside, where a model of one resolution takes part; of more stages those
            of the nearest resolution are paired.
    """

    pins: tuple[tuple[str, str], ...] = ()
    forbid: tuple[tuple[str, str], ...] = ()
    align: Align = "slice"
    limit: int = 4

    def requires(self, source: MatchSource) -> None:
        """Both models must read the same images, each in its own size.

        Raises:
            PairingError: They do not, or no pair may be made.
        """
        shapes = source.teacher.traced.input_shape[1:], source.student.traced.input_shape[1:]
        if shapes[0][0] != shapes[1][0]:
            told = [" x ".join(map(str, shape)) for shape in shapes]
            raise PairingError(
                f"the teacher reads {told[0]}, the student {told[1]}", where="input shape",
                hint="give both models the same input, e.g. --input 1x3x224x224",
            )  # fmt: skip
        if self.limit < 1:
            raise PairingError(f"the limit of pairs is {self.limit}", where="limit", hint="give at least 1")

    def run(self, source: MatchSource) -> PassResult[tuple[Pair, ...]]:
        """Align the stages.

        Raises:
            PairingError: A pinned or forbidden path does not exist, pins contradict each other or cannot be
                compared, or nothing can be paired.
        """
        teacher, student = source.teacher, source.student
        forbidden = {(path_of(a), path_of(b)) for a, b in self._resolved(source, self.forbid)}
        pins = self._pinned(source, teacher, student, forbidden)
        rows, columns = self._sides(teacher, student, pins)
        nearest = _nearest(rows, columns, (teacher, student), self.limit)
        chosen = _align(*nearest, pins, forbidden)
        pairings = sorted([*pins, *chosen], key=lambda pair: pair[0].index)
        if not pairings:
            raise no_pair(teacher, student)
        pinned = {s.path for _, s in pins}
        supply = [c for stage in teacher.stages for c in stage]
        pairs = [
            self._pair(t, s, _runner_up(number, pairings, supply, forbidden), source, pinned=s.path in pinned)
            for number, (t, s) in enumerate(pairings)
        ]
        lenders = teacher.single_resolution, student.single_resolution and not teacher.single_resolution
        remarks = [
            *projected(pairs, self.align, teacher.coupling),
            *unpaired("teacher", [] if lenders[0] else rows, pairings),
            *unpaired("student", [] if lenders[1] else columns, pairings),
            *unlike("teacher", teacher),
            *unlike("student", student),
        ]
        return PassResult(_named(pairs, pairings), modified=True, diagnostics=tuple(remarks))

    def ensures(self, source: MatchSource, value: tuple[Pair, ...]) -> None:
        """Every path is a node, pairs are in the order of both models, and their names are unique.

        Raises:
            InvariantError: They are not.
        """
        for survey, ends in (
            (source.teacher, [p.teacher for p in value]),
            (source.student, [p.student for p in value]),
        ):
            position = {path_of(node): index for index, node in enumerate(survey.traced.graph.nodes)}
            if unknown := [tap.path for tap in ends if tap.path not in position]:
                raise InvariantError(f"a pair names '{unknown[0]}', which is no node of the {ends[0].member}")
            order = [position[tap.path] for tap in ends]
            if order != sorted(set(order)):
                raise InvariantError("the pairs are not in the order of both models")
        if len({pair.name for pair in value}) != len(value):
            raise InvariantError("two pairs have the same name")

    def _resolved(self, source: MatchSource, named: tuple[tuple[str, str], ...]) -> list[tuple[fx.Node, fx.Node]]:
        return [(find(source.teacher.traced, a), find(source.student.traced, b)) for a, b in named]

    def _sides(self, teacher: Survey, student: Survey, pins: list[Pairing]) -> tuple[Stages, Stages]:
        """What is aligned: stages that no pin replaces, and the blocks of a model of one resolution to choose from."""
        rows, columns = teacher.stages, student.stages
        ends = [t for t, _ in pins], [s for _, s in pins]
        if teacher.single_resolution:
            if student.single_resolution and self.limit < len(columns):
                columns = [columns[math.ceil((k + 1) * len(columns) / self.limit) - 1] for k in range(self.limit)]
            return _unlike(rows, ends[0]), _free(columns, ends[1])
        rows = _free(rows, ends[0])
        return rows, _unlike(columns, ends[1]) if student.single_resolution else _free(columns, ends[1])

    def _pinned(
        self, source: MatchSource, teacher: Survey, student: Survey, forbidden: set[tuple[str, str]]
    ) -> list[Pairing]:
        nodes = dict.fromkeys(self._resolved(source, self.pins))
        pins = [(teacher.describe(a), student.describe(b)) for a, b in nodes]
        for t, s in pins:
            if (t.path, s.path) in forbidden:
                raise PairingError(
                    "this pair is pinned and forbidden", where=f"{t.path}={s.path}", hint="drop one of the two"
                )
            if reason := obstacle(t, s):
                raise PairingError(
                    f"this pair is pinned and cannot be compared: {reason}",
                    where=f"{t.path}={s.path}", hint="pin nodes of the same form, or drop this one",
                )  # fmt: skip
        for number, (t, s) in enumerate(pins):
            for u, v in pins[:number]:
                if (t.index - u.index) * (s.index - v.index) <= 0:
                    raise PairingError(
                        "two pinned pairs cross, or share a layer: what is deeper in the teacher must be deeper in the "
                        "student",
                        where=f"{u.path}={v.path} and {t.path}={s.path}", hint="change or drop one of them",
                    )  # fmt: skip
        return pins

    def _pair(
        self, teacher: Candidate, student: Candidate, runner_up: RunnerUp | None, source: MatchSource, *, pinned: bool
    ) -> Pair:
        why = [*(["pinned by the user"] if pinned else []), *_reasons(teacher, student)]
        if runner_up is not None and runner_up.score > _score(teacher, student) and not pinned:
            why.append(
                "the runner-up alone scores higher, but is not the end of its stage, or leaves another stage alone"
            )
        least = len(locked(teacher.path, source.teacher.coupling)) if self.align == "shrink" else 0
        align: Align = self.align if least <= student.tap.width <= teacher.tap.width else "project"
        return Pair(
            name=student.block or student.path, teacher=teacher.tap, student=student.tap,
            score=_score(teacher, student), runner_up=runner_up, why=why, align=align,
        )  # fmt: skip


def _free(stages: Stages, pinned: list[Candidate]) -> Stages:
    """The stages that no pin replaces."""
    replaced = [_stage_around(pin, stages) for pin in pinned]
    return [stage for stage in stages if not any(stage is other for other in replaced)]


def _unlike(stages: Stages, pinned: list[Candidate]) -> Stages:
    """The stages between whose ends and every pin something is computed."""
    return [stage for stage in stages if all(stage[0].layers != pin.layers for pin in pinned)]


def _nearest(rows: Stages, columns: Stages, surveys: tuple[Survey, Survey], limit: int) -> tuple[Stages, Stages]:
    """Of two sides, one of one resolution, at most ``limit`` stages of the other, those nearest in resolution."""

    def nearest(stages: Stages, blocks: Stages) -> Stages:
        def octaves(stage: list[Candidate]) -> tuple[float, int]:
            return abs(round(math.log2(stage[0].side / blocks[0][0].side))), -stage[0].index

        chosen = {stage[0].path for stage in sorted(stages, key=octaves)[:limit]}
        return [stage for stage in stages if stage[0].path in chosen]

    one = [survey.single_resolution for survey in surveys]
    if one[0] == one[1] or not rows or not columns:
        return rows, columns
    return (rows, nearest(columns, rows)) if one[0] else (nearest(rows, columns), columns)


def _stage_around(pin: Candidate, stages: Stages) -> list[Candidate] | None:
    """The stage that a node lies in: it is in it, or on the way from the end of the stage before to its end."""
    for stage in stages:
        if pin.index <= stage[0].index or any(c.path == pin.path for c in stage):
            return stage
    return stages[-1] if stages and pin.side == stages[-1][0].side and pin.tap.layout != "features" else None


def _fits(teacher: Candidate, student: Candidate, pins: list[Pairing]) -> bool:
    """Whether a pair keeps the order of all pins."""
    return all((teacher.index - t.index) * (student.index - s.index) > 0 for t, s in pins)


def _same_layers(one: Pairing, other: Pairing) -> bool:
    """Whether nothing is computed between two pairs in either model: an activation and its pooling."""
    return one[0].layers == other[0].layers and one[1].layers == other[1].layers


def _align(rows: Stages, columns: Stages, pins: list[Pairing], forbidden: set[tuple[str, str]]) -> list[Pairing]:
    """The monotone alignment of largest total score; the shallower one among equals.

    Two stages whose ends say what a pin says are left to the pin.
    """

    def allowed(teacher: Candidate, student: Candidate) -> bool:
        return (teacher.path, student.path) not in forbidden and _fits(teacher, student, pins)

    best: dict[tuple[int, int], tuple[float, list[Pairing]]] = {}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            pairing = _representatives(row, column, allowed)
            if pairing is None or any(_same_layers((row[0], column[0]), pin) for pin in pins):
                continue
            before: tuple[float, list[Pairing]] = (0.0, [])
            for (k, m), way in best.items():
                if k < i and m < j and way[0] > before[0] and not _same_layers(way[1][-1], pairing):
                    before = way
            best[i, j] = (before[0] + _score(*pairing), [*before[1], pairing])
    return max(best.values(), key=lambda way: way[0], default=(0.0, []))[1]


def _representatives(
    row: list[Candidate], column: list[Candidate], allowed: Callable[[Candidate, Candidate], bool]
) -> Pairing | None:
    """The pair of two stages: first choices, or the next ones that are allowed."""
    pairings = [
        (t, s) for t in row for s in column
        if allowed(t, s) and not obstacle(t, s) and _score(t, s) >= _LEAST_SCORE
    ]  # fmt: skip
    return min(pairings, key=lambda c: (c[0].rank + c[1].rank, -_score(*c)), default=None)


def _score(teacher: Candidate, student: Candidate) -> float:
    octaves = math.log2(teacher.stride / student.stride)
    score = (
        0.35 * math.exp(-_SHARPNESS * octaves**2)
        + 0.15 * (1 - abs(teacher.depth - student.depth))
        + 0.1 * (1 - abs(teacher.cost - student.cost))
        + 0.35 * (1 / (1 + teacher.rank) + 1 / (1 + student.rank)) / 2
        + 0.05 * (teacher.kind == student.kind)
    )
    return round(score, 4)


def _runner_up(
    number: int, pairings: list[Pairing], supply: list[Candidate], forbidden: set[tuple[str, str]]
) -> RunnerUp | None:
    """The best teacher node that could take a pair's place and leave the other pairs as they are."""
    teacher, student = pairings[number]
    low = pairings[number - 1][0].index if number else -1
    high = pairings[number + 1][0].index if number + 1 < len(pairings) else math.inf
    others = [
        c for c in supply
        if low < c.index < high and c.path != teacher.path and (c.path, student.path) not in forbidden
        and not obstacle(c, student)
    ]  # fmt: skip
    best = max(others, key=lambda c: _score(c, student), default=None)
    return RunnerUp(teacher=best.path, score=_score(best, student)) if best is not None else None


def _reasons(teacher: Candidate, student: Candidate) -> Iterator[str]:
    same_size = teacher.size == student.size
    size = teacher.size if same_size else f"{teacher.size} and {student.size}"
    if teacher.block and student.block:
        yield f"outputs of the blocks '{teacher.block}' and '{student.block}'"
    for role, one in (("teacher", teacher), ("student", student)):
        if one.beside:
            yield f"of branches side by side in the {role}, that of the lowest resolution"
    if teacher.grid and student.grid and teacher.grid != student.grid:
        grids = ["x".join(map(str, candidate.grid or ())) for candidate in (teacher, student)]
        yield f"grids {grids[0]} and {grids[1]}: pooled to the smaller"
    else:
        yield f"both end a stage at {size}" if same_size and teacher.rank == student.rank == 0 else f"of size {size}"
    yield f"share of depth {teacher.depth:.2f} and {student.depth:.2f}"
    yield f"share of cost {teacher.cost:.2f} and {student.cost:.2f}"
    same = teacher.kind == student.kind
    yield f"both after {teacher.kind}" if same else f"after {teacher.kind} and after {student.kind}"


def _named(pairs: list[Pair], pairings: list[Pairing]) -> tuple[Pair, ...]:
    """Pairs are named after the student's block; after its node where two would share that name."""
    names = [pair.name for pair in pairs]
    return tuple(
        pair if names.count(pair.name) == 1 else pair.changed(name=student.path)
        for pair, (_, student) in zip(pairs, pairings, strict=True)
    )

"""The lines of ``metrics.jsonl``: one JSON object an epoch, checked against the plan wherever they are read.

What they name becomes names of folders, and their numbers become tables: a line that no run of the plan could have
written is refused, and nothing is changed then. Only a last line that does not end is what a kill leaves.
"""

import json
import math
from pathlib import Path
from typing import Any

from fxdistill.errors import RunDirError
from fxdistill.plan.document import Plan
from fxdistill.plan.training import longest
from fxdistill.runtime.run.trials import Trial, trials_of

Record = dict[str, Any]
_LONGEST = 1 << 20


def read(path: Path, plan: Plan, *, size: int | None) -> list[Record]:
    """The lines that count.

    Args:
        path: The file; without it there are none.
        plan: The plan that was run.
        size: How much of the file counts, bytes; the rest was written after the last checkpoint. None for all.

    Raises:
        RunDirError: A line is damaged, one behind those that count as well, or lines are missing.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as cause:
        raise RunDirError(f"the metrics cannot be read: {cause.strerror}", where=str(path)) from cause
    if size is not None and len(content) < size:
        raise _damaged(f"{path}, behind byte {len(content)}", "lines are missing")
    epochs = {
        arm.name: {stage.name: most for stage, most in zip(arm.stages, longest(arm.stages), strict=True)}
        for arm in plan.all_arms
    }
    trials, lines = set(trials_of(plan)), content.splitlines(keepends=True)
    found, at = [], 0
    for number, line in enumerate(lines, 1):
        at += len(line)
        counts = size is None or at <= size
        if not counts and not line.endswith(b"\n"):
            break
        record, wrong = _record(line, epochs, trials)
        if wrong:
            raise _damaged(f"{path}, line {number}", wrong)
        found.extend([record] if counts else [])
    return found


def _damaged(where: str, why: str) -> RunDirError:
    return RunDirError(
        f"the metrics are damaged: {why}", where=where, hint="put the file back, or run the plan anew elsewhere"
    )


def _record(line: bytes, epochs: dict[str, dict[str, int]], trials: set[Trial]) -> tuple[Record, str]:
    """A line, and what is wrong with it."""
    if len(line) > _LONGEST:
        return {}, "it is longer than any that a run has written"
    try:
        record: Record = json.loads(line, parse_constant=_refuse)
        numbers = [("time", record["time"]), ("images_per_second", record["images_per_second"])]
        numbers += [*record["losses"].items(), *record["metrics"].items()]
        numbers += [("learning_rate", record.get("learning_rate", 0.0))]
        kept = record.get("kept", {}).items()
        numbers += [(f"kept {level}/{layer}", count) for level, found in kept for layer, count in found.items()]
        arm, stage, epoch, seed = (record[name] for name in ("name", "stage", "epoch", "seed"))
        if Trial(seed, arm) not in trials or stage not in epochs[arm]:
            return record, "it is of a training that the plan has not"
        if type(epoch) is not int or type(seed) is not int or not 1 <= epoch <= epochs[arm][stage]:
            return record, f"the stage '{stage}' has no epoch {epoch!r}"
        wrong = [name for name, value in numbers if type(value) not in (int, float) or not math.isfinite(value)]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}, "it is none that a run has written"
    return record, f"{wrong[0][:80]!r} is no number" if wrong else ""


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")

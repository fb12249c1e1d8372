"""Plan every ordered teacher-student pair of twenty torchvision models of different families.

    python benchmarks/pair_matrix.py [--out benchmarks/pair_matrix.md]

For each pair: match, prune to the student's widths (``slice``), and decide an auxiliary teacher of the student's
widths (``shrink``). A cell says how many pairs of layers were found, and how many of them slice (the teacher is wide
enough); then ``+`` where an auxiliary teacher can be had, or a letter that the list below the table explains. Anything
else that goes wrong is an unexplained failure: it is printed, and the exit code is 1.
"""

import argparse
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision import models

from fxdistill.errors import FxdistillError, InputError
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced
from fxdistill.passes.couple import Couple
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.prune import Prune, PruneSource
from fxdistill.passes.thin import Thin, ThinSource
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Pair

NAMES = (
    "alexnet", "vgg16_bn", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "densenet121", "googlenet",
    "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_y_800mf", "convnext_tiny", "vit_b_16", "swin_t",
)  # fmt: skip
SHAPE = (1, 3, 224, 224)


@dataclass
class Model:
    """A model, traced, coupled and surveyed once."""

    traced: Traced
    coupling: Coupling
    teaches: Survey
    learns: Survey


def load(name: str) -> Model:
    """Build, trace and couple a model with random weights."""
    torch.manual_seed(0)
    extra = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    traced = Trace(SHAPE)(getattr(models, name)(weights=None, **extra).eval()).value
    coupling = Couple()(traced).value
    return Model(traced, coupling, Survey(traced, coupling), Survey(traced, coupling, "student"))


def plan(teacher: Model, student: Model, reasons: dict[str, str]) -> str:
    """One cell of the matrix; the text of an explained failure goes into ``reasons`` under its letter."""
    try:
        pairs = Match()(MatchSource(teacher.teaches, student.learns)).value
    except InputError as refusal:
        return letter(reasons, refusal)
    kept = Prune()(PruneSource(teacher.traced, teacher.coupling, pairs)).value
    return f"{len(pairs)}/{len(kept)}{auxiliary(teacher, pairs, reasons)}"


def auxiliary(teacher: Model, pairs: tuple[Pair, ...], reasons: dict[str, str]) -> str:
    """Whether a smaller teacher with the student's widths can be had."""
    widths = tuple((p.teacher.path, p.student.width) for p in pairs if p.student.width < p.teacher.width)
    if not widths:
        return "="
    try:
        Thin(widths=widths)(ThinSource(teacher.traced, teacher.coupling))
    except InputError as refusal:
        return letter(reasons, refusal)
    return "+"


def letter(reasons: dict[str, str], refusal: FxdistillError) -> str:
    """The letter that stands for a refusal: one for each kind of sentence, numbers and names aside."""
    kind = re.sub(r"'[^']*'|\d+", "…", refusal.what)
    if kind not in reasons.values():
        reasons["abcdefghijklmnopqrstuvwxyz"[len(reasons)]] = kind
    return next(key for key, value in reasons.items() if value == kind)


def main() -> int:
    """Write the matrix; 1 where a failure is unexplained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--models", nargs="*", default=list(NAMES))
    options = parser.parse_args()
    loaded = {name: load(name) for name in options.models}
    reasons: dict[str, str] = {}
    failures: list[str] = []
    lines = [f"| teacher \\ student | {' | '.join(options.models)} |", "| --- |" + " --- |" * len(options.models)]
    for teacher in options.models:
        cells = []
        for student in options.models:
            try:
                cells.append("" if teacher == student else plan(loaded[teacher], loaded[student], reasons))
            except Exception as failure:  # noqa: BLE001  # whatever it is, it is what is looked for
                cells.append("!")
                failures.append(f"{teacher} -> {student}: {type(failure).__name__}: {failure}")
        lines.append(f"| {teacher} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    count = len(options.models) * (len(options.models) - 1)
    seconds = time.process_time()
    head = [
        f"# {count} ordered pairs of {len(options.models)} torchvision models", "",
        f"`python benchmarks/pair_matrix.py`, torch {torch.__version__}, {seconds:.0f} s of one core with imports.",
        f"{len(failures)} unexplained failures.", "",
        "A cell: pairs found / pairs whose teacher is wide enough to slice; `+`: an auxiliary teacher of the student's",
        "widths can be had, `=`: the teacher is nowhere wider; a letter: why not.", "",
    ]  # fmt: skip
    tail = ["", *(f"- `{key}`: {value}" for key, value in reasons.items()), *(f"- `!` {f}" for f in failures), ""]
    options.out.write_text("\n".join([*head, *lines, *tail]), encoding="utf-8")
    print("\n".join([*tail, f"wrote {options.out}"]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""What the files reach that were exported from a run in less precision: ``exports.json`` in its directory.

``fxdistill export RUN_DIR --int8`` measures what it writes on the run's test images; the report shows it beside the
run's own models. The file may come from others, so that it is read against its form.
"""

import math
from dataclasses import dataclass, field

from pydantic import FiniteFloat, TypeAdapter

from fxdistill.files import write_text
from fxdistill.measure.onnx_reduced import Precision
from fxdistill.plan.document import Plan
from fxdistill.runtime.deployment.reducing import Reduced
from fxdistill.runtime.run import forms
from fxdistill.runtime.run.directory import RunDir


@dataclass(frozen=True)
class Export:
    """A file in less precision.

    Attributes:
        file: Its name.
        precision: Its precision.
        value: The primary metric in ONNX Runtime; None where the test images have no labels.
        agreement: Share of its answers that are the float file's; None where answers are numbers.
        latency: Milliseconds of an image, one thread.
        latency_of_float: Of the float file, measured beside it.
        bytes: Its size.
    """

    file: str
    precision: Precision
    value: FiniteFloat | None
    agreement: FiniteFloat | None
    latency: FiniteFloat
    latency_of_float: FiniteFloat
    bytes: int


@dataclass(frozen=True)
class Exports:
    """Those of the run of a plan, the last one of each precision."""

    plan: str
    exports: list[Export] = field(default_factory=list)


_FORM = TypeAdapter(Exports)


def note(run: RunDir, made: Reduced) -> None:
    """Add a file to those of a run, in place of one of its precision.

    Raises:
        InputError: What is there is damaged, or cannot be written.
    """
    plan = run.plan()
    latency, size = made.latency, made.bytes[made.precision]
    own = Export(
        made.path.name, made.precision, made.value if math.isfinite(made.value) else None, made.agreement,
        latency[made.precision].median_ms, latency["float"].median_ms, size,
    )  # fmt: skip
    others = [one for one in read(run, plan) if one.precision != own.precision]
    write_text(run.exports_path, _FORM.dump_json(Exports(plan.sha256, [*others, own]), indent=2).decode() + "\n")


def read(run: RunDir, plan: Plan) -> list[Export]:
    """The files of a run; none where there are none, or they are of a plan that the run had before.

    Raises:
        RunDirError: The file is damaged.
    """
    if not run.exports_path.exists():
        return []
    found = forms.read(_FORM, run.exports_path, hint="remove it, and export anew")
    return found.exports if found.plan == plan.sha256 else []

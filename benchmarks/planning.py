"""What `fxdistill plan` costs once everything is imported: seconds of one core, and memory.

    python benchmarks/planning.py [TEACHER STUDENT] [--against CHECKOUT] [--repeats 3]

Every measurement is a process of its own on one thread; what counts are the seconds that it computed, for on a busy
machine those on the wall are the neighbours'. With ``--against`` another checkout of the package is measured in turns
with this one, the plans are compared byte by byte, and the ratio of the medians is printed.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def planned(models: list[str]) -> dict[str, Any]:
    """Seconds, memory in MB and the plan, of this process; what it imports is not counted."""
    import torchvision.models  # noqa: F401, PLC0415

    from fxdistill.cli import commands  # noqa: PLC0415
    from fxdistill.report import plan_view  # noqa: F401, PLC0415
    from fxdistill.runtime.planning import planner  # noqa: F401, PLC0415
    from fxdistill.tasks import TASKS  # noqa: PLC0415

    TASKS.get("classification")
    imported, wall, cpu = _peak(), time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["fxdistill", "plan", *models, "-o", f"{folder}/plan.json"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            commands.main()
        found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "imported": imported}
        return found | {"peak": _peak(), "plan": Path(folder, "plan.json").read_text(encoding="utf-8")}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(checkout: Path, models: list[str]) -> dict[str, Any]:
    """The same of a process of its own, with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *models, "--here"]
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["torchvision.models:resnet50", "torchvision.models:resnet18"])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--here", action="store_true", help="in this process, once; prints JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(planned(options.models)))
        return
    checkouts = [HERE] if options.against is None else [options.against, HERE]
    found: dict[Path, list[dict[str, Any]]] = {checkout: [] for checkout in checkouts}
    for _ in range(options.repeats):
        for checkout in checkouts:
            found[checkout].append(measured(checkout, options.models))
    for checkout, rows in found.items():
        median = {key: statistics.median(row[key] for row in rows) for key in ("cpu", "wall", "imported", "peak")}
        spread = f"{min(row['cpu'] for row in rows):.2f} to {max(row['cpu'] for row in rows):.2f}"
        print(f"{checkout.name}: {median['cpu']:.2f} s of one core ({spread}), {median['wall']:.2f} s on the wall; "
              f"{median['imported']:.0f} MB imported, {median['peak']:.0f} MB at the most")  # fmt: skip
    if options.against is not None:
        first, second = (statistics.median(row["cpu"] for row in rows) for rows in found.values())
        plans = {row["plan"] for rows in found.values() for row in rows}
        print(f"{first / second:.2f} times as quick; {'the plans are the same' if len(plans) == 1 else 'PLANS DIFFER'}")


if __name__ == "__main__":
    main()

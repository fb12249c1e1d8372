"""Files: every model of torchvision and one of each of timm's families, written down as a graph, sealed, read again.

What is read has to answer bit for bit like the model, in eval mode, and to have its weights by the same names. Each
model runs in a process of its own; rows are kept as JSON, so that an interrupted run goes on where it stopped.

    python benchmarks/roundtrip.py
    python benchmarks/roundtrip.py --only resnet18 --only timm:vit_tiny_patch16_224
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "roundtrip.json", HERE / "roundtrip.md"
COVERAGE = runpy.run_path(str(HERE / "coverage.py"))
Row = dict[str, Any]


def measure(name: str, *, most: int) -> Row:
    """One model, in this process."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree as pytree  # noqa: PLC0415

    from fxdistill import container  # noqa: PLC0415
    from fxdistill.modelfiles import graphs  # noqa: PLC0415

    model, shape = COVERAGE["build"](name)
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > most:
        return {"ok": False, "why": f"left out: {size / 1e6:.0f} M parameters", "left_out": True}
    images = torch.randn(2, *shape[1:])
    written = container.to_bytes(
        "model", graphs.of_model(model, input_shape=tuple(images.shape), where=name), where=name
    )
    found = graphs.from_data(container.from_bytes(written, where=name, kinds=("model",))[1], where=name)
    with torch.no_grad():
        one, other = (pytree.tree_leaves(module(images.clone())) for module in (model, found))
    equal = len(one) == len(other) and all(map(torch.equal, one, other))
    names = model.state_dict().keys() == found.state_dict().keys()
    return {
        "ok": equal and names,
        "equal": equal,
        "names": names,
        "nodes": len(found.graph.nodes),
        "bytes": len(written),
    }


def table(rows: dict[str, Row]) -> str:
    """The totals, and what did not come back."""
    lines = ["# Files: models that come back bit for bit", ""]
    for family, timm in (("torchvision", False), ("timm", True)):
        mine = {name: row for name, row in rows.items() if name.startswith("timm:") == timm}
        tried = [row for row in mine.values() if not row.get("left_out")]
        left = f"; {len(mine) - len(tried)} left out for their size" if len(mine) > len(tried) else ""
        lines += [f"**{family}**: {sum(row['ok'] for row in tried)} of {len(tried)}{left}.", ""]
    failed = {name: row for name, row in sorted(rows.items()) if not row["ok"] and not row.get("left_out")}
    lines += [f"- `{name}`: {row.get('why', 'its answers or names differ')}" for name, row in failed.items()]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="MODEL")
    parser.add_argument("--most", type=int, default=100_000_000, help="parameters of the largest model")
    parser.add_argument("--seconds", type=int, default=300, help="limit of each process")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(arguments.only[0], most=arguments.most)))
        return
    rows: dict[str, Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.only or (*COVERAGE["torchvision_models"](), *COVERAGE["timm_models"]()):
        if name in rows and name not in arguments.only:
            continue
        command = [sys.executable, __file__, "--child", "--only", name, "--most", str(arguments.most)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=arguments.seconds, env=environment, check=False
            )
            rows[name] = json.loads((done.stdout.strip().splitlines() or [""])[-1])
        except subprocess.TimeoutExpired:
            rows[name] = {"ok": False, "why": f"not done after {arguments.seconds} s"}
        except ValueError:
            rows[name] = {"ok": False, "why": (done.stderr.strip().splitlines() or ["the process died"])[-1][:300]}
        RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
        TABLE.write_text(table(rows))
        print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()

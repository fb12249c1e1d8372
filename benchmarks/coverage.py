"""Coverage: which models are traced, coupled and shrunk to half, with proof; beside Torch-Pruning on the same models.

Every model runs in a child process of its own, with limits on time and memory. Rows are kept as JSON, so that an
interrupted run goes on where it stopped; the Markdown table beside it is written anew after every row.

    python benchmarks/coverage.py --family torchvision
    python benchmarks/coverage.py --only resnet18 --only timm:convnext_atto --without-peer
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "coverage_results.json", HERE / "coverage_results.md"
KEEP = 0.5
_MIB = 1 << 20
Row = dict[str, Any]


def torchvision_models() -> list[str]:
    """Every classification and segmentation model."""
    from torchvision import models  # noqa: PLC0415

    names = models.list_models(module=models) + models.list_models(module=models.segmentation)
    return sorted(name for name in names if not name.startswith("quantized_"))


def timm_models() -> list[str]:
    """One model of every family (timm's module): a small one, going by the names."""
    import timm  # noqa: PLC0415

    sizes = ("test", "atto", "pico", "nano", "femto", "tiny", "xxs", "xs", "mini", "small", "_s", "b0", "18", "base")
    chosen = []
    for family in sorted(timm.list_modules()):
        names = timm.list_models(module=family)
        if names:
            best = min(names, key=lambda n: (next((i for i, word in enumerate(sizes) if word in n), 99), len(n), n))
            chosen.append(f"timm:{best}")
    return chosen


_OTHER_INPUTS = ("dinat", "imagegpt", "shieldgemma2", "siglip2")
"""Of transformers: one needs a library beside it, the others read tokens or patches, not images."""


def transformers_models() -> list[str]:
    """The image classifiers of transformers."""
    from transformers.models.auto import modeling_auto  # noqa: PLC0415

    names = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return [f"transformers:{kind}" for kind in sorted(names) if kind not in _OTHER_INPUTS]


def _of_transformers(kind: str) -> tuple[Any, tuple[int, ...]]:
    """One as its configuration has it, but for its depth: two layers, or one of each stage."""
    import transformers  # noqa: PLC0415
    from transformers.models.auto import modeling_auto  # noqa: PLC0415

    config: Any = transformers.CONFIG_MAPPING[kind]()
    for part in (config, *(found for found in vars(config).values() if hasattr(found, "model_type"))):
        if "num_hidden_layers" in vars(part):  # of others it is the number of stages
            part.num_hidden_layers = 2
        if getattr(part, "depths", None):
            part.depths = [1 for _ in part.depths]
    names = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[kind]
    model = getattr(transformers, names if isinstance(names, str) else names[0])(config).eval()
    parts = (config, getattr(config, "vision_config", None))
    size = next((n for part in parts if isinstance(n := getattr(part, "image_size", None), int)), 224)
    return model, (1, 3, size, size)


def build(name: str) -> tuple[Any, tuple[int, ...]]:
    """A model with random weights, in eval mode, and its input shape."""
    import torch  # noqa: PLC0415

    torch.manual_seed(0)
    if name.startswith("timm:"):
        import timm  # noqa: PLC0415

        model: Any = timm.create_model(name.removeprefix("timm:"), pretrained=False).eval()
        return model, (1, *model.default_cfg["input_size"])
    if name.startswith("transformers:"):
        return _of_transformers(name.removeprefix("transformers:"))
    from torchvision import models  # noqa: PLC0415

    options: Row = {"weights_backbone": None} if name in models.list_models(module=models.segmentation) else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    size = {"inception_v3": 299, "vit_h_14": 224}.get(name, 224)
    return models.get_model(name, weights=None, **options).eval(), (1, 3, size, size)


FAMILIES = {"torchvision": torchvision_models, "timm": timm_models, "transformers": transformers_models}


def ours(name: str) -> Row:
    """Trace, couple, shrink to half, prove, run, in this process."""
    from fxdistill.compiler.shrink_model import shrink_model  # noqa: PLC0415
    from fxdistill.ir.contract import PassManager  # noqa: PLC0415

    model, shape = build(name)
    passes = PassManager()
    try:
        result = shrink_model(model, input_shape=shape, keep=KEEP, passes=passes)
    except Exception as cause:  # noqa: BLE001  # the reason is the row
        return {**_steps(passes), "ok": False, "why": f"{type(cause).__name__}: {str(cause).strip()}"[:400]}
    return {
        **_steps(passes), "ok": True, "rung": result.rung, "forward": _forward(result.module, shape),
        "parameters": [result.before.parameters, result.after.parameters],
        "macs": [result.before.macs, result.after.macs],
        "error": result.proof.error, "nodes": result.proof.nodes, "barriers": list(result.barriers),
        "not_pruned": sum(d.code == "not-pruned" for d in result.diagnostics),
        "opaque": sorted({d.where for d in result.diagnostics if d.code == "opaque-node"}),
    }  # fmt: skip


def _steps(passes: Any) -> Row:
    seconds: dict[str, float] = {}
    for record in passes.records:
        seconds[record.name] = round(seconds.get(record.name, 0.0) + record.seconds, 2)
    return {"seconds": seconds}


def _forward(module: Any, shape: tuple[int, ...]) -> bool:
    import torch  # noqa: PLC0415

    with torch.no_grad():
        module(torch.randn(shape))
    return True


def peer(name: str) -> Row:
    """Torch-Pruning: half of every group by L1 norm, then a forward pass, in this process."""
    import torch  # noqa: PLC0415
    import torch_pruning  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    model, shape = build(name)
    images = torch.randn(shape)
    before = sum(p.numel() for p in model.parameters())
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            model, images, importance=torch_pruning.importance.MagnitudeImportance(p=1), pruning_ratio=1 - KEEP,
            ignored_layers=last,
        )  # fmt: skip
        pruner.step()
        with torch.no_grad():
            model(images)
    except Exception as cause:  # noqa: BLE001
        return {"ok": False, "why": f"{type(cause).__name__}: {str(cause).strip()}"[:300]}
    after = sum(p.numel() for p in model.parameters())
    if after == before:
        return {"ok": False, "why": "nothing was pruned", "parameters": [before, after]}
    return {"ok": True, "parameters": [before, after]}


def child(task: str, name: str, memory: int) -> None:
    """One measurement; prints one line of JSON."""
    import torch  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_AS, (memory * _MIB, memory * _MIB))
    torch.set_num_threads(1)
    start = time.process_time()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        row = ours(name) if task == "ours" else peer(name)
    row["total"] = round(time.process_time() - start, 1)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(row))


def measure(task: str, name: str, *, seconds: int, memory: int) -> Row:
    """Run a child; running out of time or memory is a result as well."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", task, "--only", name, "--memory", str(memory)]
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "why": f"not done after {seconds} s"}
    try:
        row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        tail = (done.stderr.strip().splitlines() or [""])[-1]
        return {"ok": False, "why": f"the process ended with {done.returncode}: {tail}"[:300]}
    return row


def table(rows: dict[str, Row]) -> str:
    """The Markdown table with its totals."""
    lines = ["# Coverage: shrunk to half, proved", ""]
    for family in FAMILIES:
        chosen = {
            n: r for n, r in sorted(rows.items()) if (n.partition(":")[0] if ":" in n else "torchvision") == family
        }
        if chosen:
            peer = (
                f", {_total(chosen, 'peer')} by Torch-Pruning" if any("peer" in row for row in chosen.values()) else ""
            )
            lines += [
                f"**{family}**: {_total(chosen, 'ours')} by fxdistill{peer}.",
                "",
            ]
    lines += [
        "Each model in its own process, one thread, random weights; *total* is time of the processor, MiB the peak",
        "of the process. *couple* is the time of the label execution alone. *error* is the largest difference of",
        "any node between the masked full model and the shrunken one, relative to that node's largest value. *kept",
        "whole* counts the places that could not be shrunk; the JSON beside this names them. Models of transformers",
        "have two layers, or one a stage.",
        "",
        "| model | rung | couple s | total s | MiB | parameters | error | result | Torch-Pruning |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]  # fmt: skip
    return "\n".join([*lines, *(_line(name, row) for name, row in sorted(rows.items()))]) + "\n"


def _total(rows: dict[str, Row], key: str) -> str:
    known = [row[key] for row in rows.values() if key in row]
    return f"{sum(bool(one['ok']) for one in known)} of {len(known)}"


def _line(name: str, row: Row) -> str:
    mine, other = row.get("ours", {"ok": False, "why": "not measured"}), row.get("peer")
    couple = mine.get("seconds", {}).get("couple", "")
    share = "{:.0%}".format(mine["parameters"][1] / mine["parameters"][0]) if mine.get("parameters") else ""
    error = f"{mine['error']:.0e}" if "error" in mine else ""
    result = "shrunk, proved" if mine["ok"] else _cell(mine["why"])
    if mine.get("barriers"):
        result += f"; kept whole: {len(mine['barriers'])}"
    theirs = "" if other is None else "pruned" if other["ok"] else _cell(other["why"])
    cells = (
        name,
        mine.get("rung", ""),
        couple,
        mine.get("total", ""),
        mine.get("peak_mib", ""),
        share,
        error,
        result,
        theirs,
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())[:160]


def wanted(arguments: argparse.Namespace) -> Iterator[str]:
    """The names to measure."""
    if arguments.only:
        yield from arguments.only
        return
    for family, names in FAMILIES.items():
        if arguments.family in (None, family):
            yield from names()


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=tuple(FAMILIES))
    parser.add_argument("--only", action="append", default=[], metavar="MODEL")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--peer-only", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    parser.add_argument("--failed", action="store_true", help="measure again what failed")
    parser.add_argument("--seconds", type=int, default=600, help="limit of each process")
    parser.add_argument("--memory", type=int, default=16_000, help="limit of each process, MiB of address space")
    parser.add_argument("--child", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.only[0], arguments.memory)
        return
    rows: dict[str, Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    tasks = ("ours",) if arguments.without_peer else ("peer",) if arguments.peer_only else ("ours", "peer")
    for name in wanted(arguments):
        for task in tasks:
            known = rows.get(name, {}).get(task)
            if known is None or arguments.again or (arguments.failed and not known["ok"]):
                found = measure(task, name, seconds=arguments.seconds, memory=arguments.memory)
                rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another process may have added
                rows.setdefault(name, {})[task] = found
                RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
                TABLE.write_text(table(rows))
        print(_line(name, rows[name]), flush=True)


if __name__ == "__main__":
    main()

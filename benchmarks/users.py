"""What users meet: timm's networks, tapped where their authors would, planned and built as students and as teachers.

Rows are kept as JSON, so that an interrupted run goes on where it stopped; the Markdown tables beside it are written
anew after every row.

    python benchmarks/users.py --taps            # a small network of every family, random weights
    python benchmarks/users.py --students        # networks below six million parameters, a ResNet-50 as teacher
    python benchmarks/users.py --transformers    # transformers as teachers and as students
    python benchmarks/users.py --taps --only dla34 --again
"""

import argparse
import contextlib
import importlib.metadata
import json
import platform
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "users.json", HERE / "users.md"
SECONDS, PARAMETERS, PIXELS = 300, 60e6, 360
Row = dict[str, Any]

STUDENTS = (
    "coat_tiny", "convit_tiny", "convnext_zepto_rms", "convnextv2_atto", "cs3darknet_focus_s", "cspnext_tiny",
    "deit_tiny_patch16_224", "dla46_c", "dla46x_c", "dla60x_c", "edgenext_xx_small", "efficientformerv2_s0",
    "efficientnet_lite0", "efficientvit_m0", "ese_vovnet19b_slim_dw", "eva02_tiny_patch14_224", "fasternet_t0",
    "fastvit_t8", "fbnetc_100", "ghostnet_050", "ghostnetv3_050", "gmlp_ti16_224", "hardcorenas_b", "hgnetv2_b0",
    "iformer_t", "inception_next_atto", "lcnet_035", "lcnetv2_small", "mixnet_s", "mnasnet_small",
    "mobilenet_edgetpu_100", "mobilenetv1_100", "mobilenetv2_035", "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035", "mobileone_s1", "mobilevit_xxs", "mobilevitv2_050", "pit_ti_224", "pvt_v2_b0",
    "regnetx_002", "regnety_002", "repghostnet_050", "repvit_m1", "resnet10t", "rexnet_100", "rexnetr_100",
    "semnasnet_050", "spnasnet_100", "starnet_s050", "swiftformer_xs", "tinynet_e", "vit_tiny_patch16_dinov3_qkvb",
    "xcit_nano_12_p8_224",
)  # fmt: skip
"""The smallest network of each of timm 1.0.31's architectures (first word of the name; none of timm's own tests, no
second copy under ``tf_``), where it has less than six million parameters."""
TRANSFORMERS = (
    ("vit_small_patch16_224", "vit_tiny_patch16_224"), ("deit_small_patch16_224", "deit_tiny_patch16_224"),
    ("vit_small_patch16_224", "mobilenetv3_small_050"), ("swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"),
    ("swin_tiny_patch4_window7_224", "resnet10t"), ("convnext_tiny", "vit_tiny_patch16_224"),
    ("hiera_tiny_224", "mobilenetv2_035"), ("resnet50", "vit_tiny_patch16_224"),
    ("resnet50", "swin_tiny_patch4_window7_224"), ("vit_tiny_patch16_dinov3_qkvb", "resnet10t"),
    ("convnext_tiny", "convnext_atto"), ("deit_small_distilled_patch16_224", "deit_tiny_distilled_patch16_224"),
    ("ecaresnet26t", "resnet18"), ("hrnet_w18_small", "resnet18"), ("resnet50", "ecaresnet26t"),
    ("mvitv2_tiny", "mobilenetv2_035"), ("crossvit_tiny_240", "mobilenetv2_035"),
)  # fmt: skip


_FIRST = "they mark the first block of a size, the one that strides; ours is the last"
_INSIDE = "they mark the activation inside the next block, which strides; ours is the sum that it reads"
_HEAD = "they count the last convolution in, which widens for the classifier; ours is the end of the block before it"
BECAUSE = {
    "ghostnet_050": _FIRST, "repghostnet_050": _FIRST, "legacy_xception": _INSIDE, "xception41": _INSIDE,
    "hardcorenas_a": _HEAD, "tf_mobilenetv3_large_minimal_100": _HEAD, "mobilevit_xxs": _HEAD, "test_nfnet": _HEAD,
    "inception_resnet_v2": _HEAD, "selecsls42": _HEAD,
    "fastvit_s12": "its last convolution, with a gate of two more, is a block of several layers to us",
    "densenet121": "they take the last norm and activation; ours is the concatenation before, as at the other stages",
    "inception_v4": "73 and 71 pixels are one stage to us: ours is the last node of it",
    "hrnet_w18_small": "'stage1' names no module ('layer1' is meant); the last of ours is behind the fusing head",
    "coat_tiny": "theirs come after the parallel blocks; ours before, where the branch is the smallest so far",
    "efficientvim_m1": "a second output of the blocks leads past the last block at 14 pixels; they mark two maps at 4",
    "volo_d1_224": "ours is behind the class attention, which leaves the patches as they are; theirs before",
    "sequencer2d_s": "they mark three stages of one size; ours is the last of that size",
    "lcnetv2_small": "a stem of three layers is a stage to us in so shallow a network; they mark none",
}  # fmt: skip
"""Why taps differ, said by hand."""


def taps(name: str) -> Row:
    """Our taps of a network beside those of its authors.

    A tap of ours is the first choice of a stage. It agrees with an entry of ``feature_info`` if it is the feature map
    that the named module returns: the node at which it ends, movement, casts and identities aside. Where an entry names
    no module, it is the map that ``forward_intermediates`` gives, and of a module with several outputs it is any of
    these, compared number by number, class tokens left out. Entries of the stem (at half the size or more) need not be
    found. Taken is the small network of every family of ``coverage.py`` that has less than 60 M parameters, at most 360
    pixels, and entries of several resolutions: where there is but one, every block is an entry, which says nothing.
    """
    from fxdistill.ir.graph import find, path_of  # noqa: PLC0415
    from fxdistill.passes.couple import Couple  # noqa: PLC0415
    from fxdistill.passes.match.candidates import Survey  # noqa: PLC0415
    from fxdistill.passes.trace import Trace  # noqa: PLC0415

    model = network(name, classes=1000)
    traced = Trace((1, *model.default_cfg["input_size"]))(model).value
    stages = Survey(traced, Couple()(traced).value).stages
    nodes = {path_of(node): node for node in traced.graph.nodes}
    ours = {stage[0].path: origin(nodes[stage[0].path], traced) for stage in stages}
    agreeing: Row = {}
    unnamed = []
    zeros = torch.zeros(traced.input_shape)
    for index, entry in enumerate(entries(model)):
        if len(outputs_of(model, entry["module"], zeros)) == 1:
            end = origin(find(traced, entry["module"]), traced)
            agreeing |= {path: entry["module"] for path, node in ours.items() if node is end}
        else:
            unnamed.append(index)
    if unnamed:
        chosen = [stage[0] for stage in stages]
        agreeing |= {path: found for path, found in by_number(model, traced, chosen, unnamed) if path not in agreeing}
    wanted = {entry["module"] for entry in entries(model) if entry["reduction"] > 2}
    return {
        "ours": {path: agreeing.get(path, "") for path in ours},
        "wanted": sorted(wanted), "missed": sorted(wanted - set(agreeing.values())),
    }  # fmt: skip


def entries(model: Any) -> list[Row]:
    """What a network's authors wrote down; each with ``module`` and ``reduction``."""
    info = getattr(model, "feature_info", None) or []
    return list(info if isinstance(info, list) else info.get_dicts())


def origin(node: Any, traced: Any) -> Any:
    """The node that computes a value."""
    from fxdistill.ir.graph import op_name  # noqa: PLC0415
    from fxdistill.ir.operators import is_a  # noqa: PLC0415
    from fxdistill.operators import Trait  # noqa: PLC0415

    while is_a(op_name(node, traced.module), Trait.CARRIES) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def outputs_of(model: Any, module: str, images: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a module returns; none where there is no such module, or it is not called."""
    if not module or module not in dict(model.named_modules()):
        return []
    found: list[Any] = []
    hook = model.get_submodule(module).register_forward_hook(lambda _m, _i, value: found.append(value))
    with torch.no_grad():
        model(images)
    hook.remove()
    return [one for one in pytree.tree_leaves(found[-1:]) if isinstance(one, torch.Tensor)]


def by_number(model: Any, traced: Any, chosen: list[Any], unnamed: list[int]) -> Iterator[tuple[str, str]]:
    """Taps and the entries of which they are a map; weights are moved before, so that no block is an identity."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        images = torch.randn(traced.input_shape)
        values = Values(traced.module)
        values.run(images)
        known = hasattr(model, "forward_intermediates")
        maps = model.forward_intermediates(images, intermediates_only=True) if known else []
    for index in unnamed:
        module = entries(model)[index]["module"]
        theirs = outputs_of(model, module, images) or maps[index : index + 1]
        for tap in chosen:
            if any(same(one, values.kept[tap.path], tap) for one in theirs):
                yield tap.path, module


def same(theirs: torch.Tensor, ours: torch.Tensor, tap: Any) -> bool:
    """Whether two values are one feature map: as they are, or as a map of channels first without class tokens."""
    moved = ours
    if tap.tap.layout == "tokens" and tap.grid is not None:
        moved = ours[:, -tap.grid[0] * tap.grid[1] :].transpose(1, 2).unflatten(2, tap.grid)
    elif tap.tap.layout == "nhwc":
        moved = ours.permute(0, 3, 1, 2)
    return any(one.shape == theirs.shape and torch.allclose(one, theirs, rtol=1e-4, atol=1e-5) for one in (ours, moved))


class Values(torch.fx.Interpreter):
    """Keeps the value of every node under its path."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run it, and keep what comes out."""
        from fxdistill.ir.graph import path_of  # noqa: PLC0415

        value = super().run_node(n)
        self.kept[path_of(n)] = value.clone() if isinstance(value, torch.Tensor) else value
        return value


def network(name: str, *, classes: int = 10) -> Any:
    """A network with random weights in eval mode."""
    import timm  # noqa: PLC0415

    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=classes).eval()


def pixels(*models: Any) -> int:
    """The side of the images: 96, or the size of a network that takes no other."""
    fixed = [m.default_cfg["input_size"][-1] for m in models if m.default_cfg.get("fixed_input_size")]
    return max(fixed, default=96)


def pair(teacher: str, student: str) -> Row:
    """Plan and build a pair; one step of every stage on two images."""
    import fxdistill  # noqa: PLC0415

    models = network(teacher), network(student)
    side = pixels(*models)
    start = time.perf_counter()
    plan = fxdistill.compile(*models, fxdistill.Options(input_shape=(2, 3, side, side)))
    planned = time.perf_counter() - start
    program = fxdistill.build(plan, *models)
    batch = {"images": torch.randn(2, 3, side, side), "labels": torch.tensor([0, 1])}
    stages = [stage.name for arm in plan.arms for stage in arm.stages if arm.trains == ["student"]]
    for stage in dict.fromkeys(stages):
        if not stage.startswith("control"):
            step(fxdistill.specialize(program, stage).train(), batch, models[1])
    return {
        "pixels": side, "planned": round(planned, 1), "seconds": round(time.perf_counter() - start, 1),
        "pairs": [[p.teacher.path, p.student.path, p.align] for p in plan.pairs],
        "remarks": sorted({d.code for d in plan.diagnostics}),
    }  # fmt: skip


def step(program: Any, batch: Row, student: nn.Module) -> None:
    """Forward and backward.

    Raises:
        ArithmeticError: A loss or a gradient is not finite, or no gradient reaches the student.
    """
    student.zero_grad()
    losses = program(batch)
    total = program.total(losses)
    total.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    if not bool(torch.isfinite(total)) or not all(bool(g.isfinite().all()) for g in gradients):
        raise ArithmeticError("a loss or a gradient is not finite")
    if not any(bool(g.any()) for g in gradients):
        raise ArithmeticError("no gradient reaches the student")


def families() -> Iterator[str]:
    """The small network of every family that is small enough and has hand-written taps of several resolutions."""
    import timm  # noqa: PLC0415

    timm_models = runpy.run_path(str(HERE / "coverage.py"))["timm_models"]
    for name in (full.removeprefix("timm:") for full in timm_models()):
        try:
            with torch.device("meta"):
                model: Any = timm.create_model(name, pretrained=False)
        except Exception:  # noqa: BLE001  # its constructor computes
            model = timm.create_model(name, pretrained=False)
        size = model.default_cfg["input_size"][-1]
        small = sum(p.numel() for p in model.parameters()) < PARAMETERS and size <= PIXELS
        if small and len({entry["reduction"] for entry in entries(model)}) > 1:
            yield name


def measured(work: Callable[[], Row]) -> Row:
    """A row; what goes wrong is one as well."""
    start = time.perf_counter()

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            row = work()
    except Exception as cause:  # noqa: BLE001  # the reason is the row
        row = {"why": " ".join(f"{type(cause).__name__}: {cause}".split())[:300]}
    finally:
        signal.alarm(0)
    return {**row, "total": round(time.perf_counter() - start, 1)}


def tables(rows: dict[str, dict[str, Row]]) -> str:
    """The Markdown tables."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm"))
    lines = [
        "# What users meet",
        "",
        f"`python benchmarks/users.py`; Python {platform.python_version()}, {versions}; one thread, random weights.",
        "",
    ]
    if known := rows.get("taps"):
        lines += [*_taps(known), ""]
    for kind, title in (("students", "Students of a ResNet-50"), ("transformers", "Transformers, and other kinds")):
        if known := rows.get(kind):
            lines += [*_pairs(title, known), ""]
    return "\n".join(lines)


def _taps(rows: dict[str, Row]) -> Iterator[str]:
    done = {name: row for name, row in rows.items() if "why" not in row}
    ours = [found for row in done.values() for found in row["ours"].values()]
    wanted, missed = (sum(len(row[key]) for row in done.values()) for key in ("wanted", "missed"))
    yield "## Taps beside those that timm's authors wrote down"
    yield ""
    yield from (line.strip() for line in str(taps.__doc__).strip().splitlines()[1:] if line.strip())
    yield ""
    yield f"Of our **{len(ours)}** taps in **{len(done)}** families **{sum(map(bool, ours))}** agree; of the authors'"
    yield f"{wanted} entries {wanted - missed} are found. {sum(map(_agree, done.values()))} families agree altogether."
    yield "The others:"
    yield ""
    yield "| network | agree | ours, that are not theirs | theirs, that are not ours | because |"
    yield "| --- | --- | --- | --- | --- |"
    for name, row in sorted(rows.items()):
        if "why" in row:
            yield f"| {name} | | | | {row['why']} |"
        elif not _agree(row):
            share = f"{sum(map(bool, row['ours'].values()))} of {len(row['ours'])}"
            alone = ", ".join(path for path, found in row["ours"].items() if not found)
            yield f"| {name} | {share} | {alone} | {', '.join(row['missed'])} | {BECAUSE.get(name, '')} |"


def _agree(row: Row) -> bool:
    return all(row["ours"].values()) and not row["missed"]


def _pairs(title: str, rows: dict[str, Row]) -> Iterator[str]:
    done = sum("why" not in row for row in rows.values())
    yield f"## {title}"
    yield ""
    yield "Planned, built, and trained for one step of every stage on two images, losses and gradients finite:"
    yield f"**{done} of {len(rows)}**."
    yield ""
    yield "| teacher | student | pixels | pairs: teacher's tap = student's tap | remarks |"
    yield "| --- | --- | ---: | --- | --- |"
    for name, row in rows.items():
        pairs = (f"{t} = {s}" + (f" ({how})" if how != "slice" else "") for t, s, how in row.get("pairs", ()))
        cells = (*name.split(" "), row.get("pixels", ""), row.get("why") or "; ".join(pairs))
        yield "| " + " | ".join(map(str, (*cells, ", ".join(row.get("remarks", ()))))) + " |"


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in ("taps", "students", "transformers"):
        parser.add_argument(f"--{kind}", action="store_true")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="networks whose names hold this")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    work: dict[str, Iterator[tuple[str, Callable[[], Row]]]] = {
        "taps": ((name, partial(taps, name)) for name in families()),
        "students": ((f"resnet50 {name}", partial(pair, "resnet50", name)) for name in STUDENTS),
        "transformers": ((f"{one} {other}", partial(pair, one, other)) for one, other in TRANSFORMERS),
    }
    rows: dict[str, dict[str, Row]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for kind in (kind for kind in work if getattr(arguments, kind)):
        for name, task in work[kind]:
            known = rows.setdefault(kind, {})
            if (name in known and "why" not in known[name] and not arguments.again) or not _chosen(
                name, arguments.only
            ):
                continue
            known[name] = measured(task)
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            TABLE.write_text(tables(rows))
            print(kind, name, known[name], flush=True)


def _chosen(name: str, only: list[str]) -> bool:
    return not only or any(part in name for part in only)


if __name__ == "__main__":
    main()

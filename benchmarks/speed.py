"""Speed and memory of training beside a hand-written loop: each stage's step, interleaved in one process, and a recipe.

The hand-written loop is what one writes with care for one's own models: forward hooks on the tapped modules, the
teacher in eval mode without gradients, both models run in full, the same losses, optimiser and batch. The floor is the
student trained alone.

    by hand          as above, with torch's default Adam
    by hand, fused   the same with fused=True, for who knows of it
    as released      a warm-up as InDistill's released code goes about it: both models in full, the pruned layer once
                     more from the teacher's whole maps, by the batch's statistics, raw values, Adam as it comes
    torchdistill     the main stage by torchdistill's DistillationBox, where that is installed
    program          the stage's program, nothing kept
    kept             its rest, which reads what the frozen half has computed (hashes of pixels compared, as in a run)
    kept, nhwc       the same in channels-last memory
    alone            the student's own cross-entropy: no distillation
    alone, nhwc      the same in channels-last memory

In tables of their own: the hand-written loop and the program through torch.compile beside both as they are, and
**memory**: the most that a process of its own held (VmHWM), imports included, over three steps of the main stage.

    python -m benchmarks.speed                    # what is not in speed.json yet; then writes speed.md
    python -m benchmarks.speed --compiled --no-recipe --only small
    python -m benchmarks.speed --memory --no-recipe --only resnet34
    python -m benchmarks.speed --only resnet34 --again

Numbers are seconds of processor time on one thread, so that a machine that others use as well can be measured on:
medians of interleaved steps, ratios of these, with the least and the greatest ratio of neighbours. A recipe is three
seeds of the default method in small, each epoch with views of its own; both loops take turns, trial by trial, timed as
a whole; ours lies in memory as a run would choose.
"""

import argparse
import copy
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fxdistill
from benchmarks import speed_ways
from benchmarks.speed_ways import (
    AUGMENT,
    PAIRS,
    SEEDS,
    HandWritten,
    Makers,
    Step,
    compiled_makers,
    data,
    made,
    makers,
    planned,
)  # fmt: skip
from fxdistill.data.batches import batches
from fxdistill.plan.training import Stage
from fxdistill.runtime.run.reuse import Reuse
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Position
from fxdistill.runtime.training.layouts import chosen, laid_out
from fxdistill.runtime.training.loop import Loop
from fxdistill.runtime.training.recording import Recorder
from fxdistill.runtime.training.shelf import Memory
from fxdistill.tasks import TASKS

HERE = Path(__file__).parent
GOALS = {"resnet34 to resnet18": 1.6, "resnet50 to mobilenet_v2": 3.0}
"""How many times as quick as by hand the main stage was to be, read from what was kept, at its best setting."""
NEAR = 1.1  # of the student alone
_AT_ONCE = 10  # steps on a GPU between two looks at the clock


def measured(contestants: dict[str, Step], batch: dict[str, Tensor], turns: int) -> dict[str, list[float]]:
    """Seconds of each step, the contestants taking turns; the first two turns do not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    at_once = 1 if speed_ways.place.device == "cpu" else _AT_ONCE
    for turn in range(turns + 2):
        for name, step in contestants.items():
            start = now()
            for _ in range(at_once):
                step(batch["images"], batch["labels"])
            if turn >= 2:
                times[name].append((now() - start) / at_once)
    return times


def now() -> float:
    """Seconds of processor time; on a GPU of the clock on the wall, once it has done what it was given."""
    if speed_ways.place.device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def steps(
    pair: str, turns: int, stages: str = "", make: Callable[[fxdistill.Plan, Stage, str], Makers] = makers
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """The times of every stage, or of those with a part of the name."""
    plan = planned(pair)
    batch = next(batches(data(pair).train, speed_ways.place.batch_of(pair), device=speed_ways.place.device))
    for stage in (one for one in plan.arm("distilled").stages if stages in one.name):
        contestants = {name: maker() for name, maker in make(plan, stage, pair).items()}
        times = measured(contestants, batch, turns)
        contestants.clear()  # each holds both models
        gc.collect()
        yield stage.name, times


def memory(pair: str, repeats: int = 3) -> dict[str, list[float]]:
    """The most that a process of its own holds in three steps of the main stage, MB: the contestants take turns."""
    if speed_ways.place.device == "cuda":
        return _held_by_gpu(pair)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(planned(pair).to_json())
        plan = fxdistill.load_plan(path)
        names = [name for name in makers(plan, _main(plan), pair) if "fused" not in name]
        for _ in range(repeats):
            for name in names:
                command = [sys.executable, "-m", "benchmarks.speed", "--held", str(path), name, "--only", pair]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.setdefault(name, []).append(float(done.stdout.split()[-1]))
    return found


def _held_by_gpu(pair: str) -> dict[str, list[float]]:
    """The most of a GPU's memory that each contestant has allocated in three steps of the main stage, MB."""
    plan, found = planned(pair), dict[str, list[float]]()
    batch = next(batches(data(pair).train, speed_ways.place.batch_of(pair), device=speed_ways.place.device))
    for name, maker in makers(plan, _main(plan), pair).items():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step = maker()
        for _ in range(3):
            step(batch["images"], batch["labels"])
        found[name] = [(torch.cuda.max_memory_allocated() - before) / (1 << 20)]
        del step
    return found


def held(path: Path, name: str, pair: str) -> float:
    """What this process has held at most after three steps, MB; the plan comes from a file, as a run's does."""
    plan = fxdistill.load_plan(path)
    batch = next(batches(data(pair).train, PAIRS[pair][3]))
    with tempfile.TemporaryDirectory() as folder:
        speed_ways.place = replace(speed_ways.place, aside=Path(folder))
        step = makers(plan, _main(plan), pair)[name]()
        gc.collect()
        for _ in range(3):
            step(batch["images"], batch["labels"])
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _main(plan: fxdistill.Plan) -> Stage:
    return plan.arm("distilled").stages[-1]


def recipe(pair: str) -> dict[str, Any]:
    """Seconds of the whole recipe under three seeds, by hand and by us, trial by trial."""
    place = speed_ways.place
    plan, found = planned(pair), data(pair)
    fabric, task = place.fabric, TASKS.get("classification")
    reuse = Reuse(plan, task, found.train, fabric, Memory(1 << 32), {})
    taken: dict[str, list[float]] = {"by hand": [], "ours": []}
    said: list[Any] = []
    notes: list[str] = []
    for seed in SEEDS:
        start = now()
        teacher, student = made(pair)
        epoch = 0
        for stage in plan.arm("distilled").stages:
            hand = HandWritten(plan, stage, copy.deepcopy(teacher), student, fused=False)
            for _ in range(stage.epochs):
                for batch in batches(
                    found.train, place.batch_of(pair), seed=seed, epoch=epoch, shuffle=True, augment=AUGMENT,
                    device=place.device,
                ):  # fmt: skip
                    hand(batch["images"], batch["labels"])
                epoch += 1
        taken["by hand"].append(now() - start)
        start = now()
        program, trial = fxdistill.build(plan, *made(pair)), Trial(seed, "distilled")
        if seed == SEEDS[0]:
            layout = chosen({"distilled": program}, found, batch_size=plan.data.batch_size, device=place.device)
        if layout.last:
            laid_out(program)
        recorder = Recorder("distilled", lambda _where, why: notes.append(why), fabric)
        Loop(
            fabric, program.to(fabric.device), found, plan.data, task, seed, plan.seed, compiled=False,
            on_progress=lambda _: None, on_save=lambda _: None, halves=partial(reuse.of, trial),
            recorder=recorder if place.device == "cuda" else None,
        ).run(Position())  # fmt: skip
        taken["ours"].append(now() - start)
        said.append(reuse.ended())
    return {**taken, "reuse": said, "recorded": notes}


def machine() -> dict[str, Any]:
    """What the numbers were made with."""
    found = {
        "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine(),
        "threads": torch.get_num_threads(), "shared": True,
    }  # fmt: skip
    if speed_ways.place.device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "precision": speed_ways.place.precision}
    return found


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# Speed of training", "", __doc__.split("\n\n    python")[0].strip().partition("\n\n")[2], ""]
    for pair, found in results.items():
        told = found["how"]
        lines += [f"## {pair}", ""]
        lines += [f"{_where(told, pair)}, torch {told['torch']}; seconds a step, and the ratio to by hand."]
        for part in ("steps", "compiled"):
            lines += _steps(found[part]) if part in found else []
        if "memory" in found:
            most = {name: f"{statistics.median(own):.0f}" for name, own in found["memory"].items()}
            count = len(found["memory"]["by hand"])
            what = "allocated on the GPU" if "device" in told else "held, imports included,"
            lines += [
                "",
                f"MB {what} at most in three steps of the main stage; medians of {count}:",
                "",
            ]
            lines += [f"| {' | '.join(most)} |", f"|{' ---: |' * len(most)}", f"| {' | '.join(most.values())} |"]
        if "recipe" in found:
            one, other = (sum(found["recipe"][name]) for name in ("by hand", "ours"))
            each = [f"{a / b:.2f}" for a, b in zip(found["recipe"]["by hand"], found["recipe"]["ours"], strict=True)]
            said = f"Whole recipe, 3 seeds: by hand {one:.0f} s, ours {other:.0f} s, **{one / other:.2f}x**"
            lines += ["", f"{said} (seed by seed {', '.join(each)})."]
        lines += ["", *bounds(pair, found), ""]
    return "\n".join(lines)


def _where(told: dict[str, Any], pair: str) -> str:
    pair = pair.partition(",")[0]
    if "device" in told:
        return f"{PAIRS[pair][2]} px, batch {speed_ways.GPU_BATCH}, {told['device']}, {told['precision']}"
    machine = f"{told['threads']} thread of a shared {told['machine']} machine"
    return f"{PAIRS[pair][2]} px, batch {PAIRS[pair][3]}, {machine}"


def bounds(pair: str, found: dict[str, Any]) -> list[str]:
    """Each bound beside what was reached."""
    middle = {
        stage: {name: statistics.median(own) for name, own in times.items()} for stage, times in found["steps"].items()
    }
    said = []
    slowest = min((times["by hand"] / times["program"], stage) for stage, times in middle.items())
    said.append(f"no stage slower than by hand: the program's worst is {slowest[0]:.2f}x ({slowest[1]})")
    if "compiled" in found:
        one = {name: statistics.median(own) for name, own in found["compiled"]["main"].items()}
        said.append(f"nor compiled: {one['by hand, compiled'] / one['program, compiled']:.2f}x in the main stage")
    main, on_cpu = middle["main"], "device" not in found["how"]
    best, floor = (min(own for name, own in main.items() if name.startswith(kind)) for kind in ("kept", "alone"))
    said.append(f"kept at most {NEAR:.2f} of the student alone, both at their best: {best / floor:.2f}")
    if "recipe" in found:
        one, other = (sum(found["recipe"][name]) for name in ("by hand", "ours"))
        said.append(f"a whole recipe at least {2 if on_cpu else 3}x by hand: {one / other:.2f}x")
    if pair in GOALS and on_cpu:
        said.append(f"kept at its best at least {GOALS[pair]:.1f}x by hand: {main['by hand'] / best:.2f}x")
    if "memory" in found:
        most = {name: statistics.median(own) for name, own in found["memory"].items()}
        over = ", ".join(f"{name} {most[name] - most['by hand']:+.0f} MB" for name in ("program", "kept", "kept, nhwc"))
        said.append(f"never more memory than by hand: {over}")
    return [f"- {line}" for line in said]


def _steps(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Times of stages, a line each; the most columns are those of the last."""
    names = list(dict.fromkeys(name for times in found.values() for name in times))
    lines = ["", f"| stage | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for stage, times in found.items():
        cells = [_cell(times[name], times["by hand"]) if name in times else "" for name in names]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return lines


def _cell(own: list[float], hand: list[float]) -> str:
    ratios = [a / b for a, b in zip(hand, own, strict=True)]
    ratio = statistics.median(hand) / statistics.median(own)
    median = statistics.median(own)
    told = f"{median:.3f}" if median >= 0.1 else f"{median:.4f}"
    return f"{told}, {ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names of the pairs")
    parser.add_argument("--stages", default="", help="a part of the names of the stages")
    parser.add_argument("--no-recipe", action="store_true", help="measure steps alone")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--again", action="store_true", help="measure what is there as well")
    parser.add_argument("--compiled", action="store_true", help="measure what is compiled as well, of the main stage")
    parser.add_argument("--memory", action="store_true", help="measure memory as well")
    parser.add_argument("--held", nargs=2, metavar=("PLAN", "NAME"), help="say what one contestant holds, and no more")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="on a GPU")
    given = parser.parse_args()
    speed_ways.place = speed_ways.Place(given.device, given.precision)
    torch.set_num_threads(1)
    if given.held:
        print(held(Path(given.held[0]), given.held[1], given.only))
        return
    for pair in PAIRS:
        if given.only in pair:
            measure(pair, given)
    results, page = _files()
    page.write_text(table(json.loads(results.read_text())))


def _files() -> tuple[Path, Path]:
    """Results and table: of a CPU, or of a GPU in a precision."""
    name = "speed" if speed_ways.place.device == "cpu" else f"speed-cuda-{speed_ways.place.precision.partition('-')[0]}"
    return HERE / f"{name}.json", HERE / f"{name}.md"


def measure(pair: str, given: argparse.Namespace) -> None:
    """Measure what is missing of a pair."""
    path, _ = _files()
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found = {} if given.again else results.get(pair, {})
    wanted: dict[str, Callable[[], Any]] = {"steps": lambda: dict(steps(pair, given.turns, given.stages))}
    if given.compiled:
        wanted["compiled"] = lambda: dict(steps(pair, given.turns, "main", compiled_makers))
    if given.memory:
        wanted["memory"] = lambda: memory(pair)
    if not given.no_recipe:
        wanted["recipe"] = lambda: recipe(pair)
    for part, make in wanted.items():
        if part not in found:
            found[part] = make()
            results[pair] = found | ({"how": machine()} if part == "steps" else {})
            path.write_text(json.dumps(results, indent=1) + "\n")
            found = results[pair]
    print(table({pair: found}))


if __name__ == "__main__":
    main()

"""Values of torchdistill's losses on fixed inputs, kept in ``golden.json``, so that the tests need no torchdistill.

    pip install --no-deps torchdistill==1.1.5
    python -m tests.losses.golden

writes them anew, in float64, each with its slope along one direction of the student's values. What torchdistill has in
another variant (PKT of 2018; SP with rows that sum to 1, where the paper has length 1) or not at all (DKD, CWD) is held
against NumPy in the tests.
"""

import importlib
import json
import logging
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).with_name("golden.json")
BATCH, CLASSES = 8, 5


def waves(*shape: int, phase: float) -> Tensor:
    """Numbers within -2 to 2 that are the same wherever they are computed; float64."""
    count = int(torch.tensor(shape).prod())
    place = torch.arange(count, dtype=torch.float64)
    return (torch.sin(1.7 * place + phase) + torch.cos(0.31 * place * phase)).reshape(shape)


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher, and a direction in the student's values: logits, or taps of one or of two widths."""
    student, teacher = {
        "logits": ((BATCH, CLASSES), (BATCH, CLASSES)),
        "taps": ((BATCH, 4, 3, 3), (BATCH, 4, 3, 3)),
        "widths": ((BATCH, 4, 3, 3), (BATCH, 6, 3, 3)),
    }[kind]
    return waves(*student, phase=1.3), 2 * waves(*teacher, phase=2.1), waves(*student, phase=0.7)


def known() -> dict[str, dict[str, float]]:
    """Of each case ``value`` and ``slope``."""
    values: dict[str, dict[str, float]] = json.loads(FILE.read_text())["values"]
    return values


def vid_layers() -> list[Tensor]:
    """The weights of three layers from 4 to 6 channels."""
    return [waves(6, width, phase=0.3 + number) for number, width in enumerate((4, 6, 6))]


def vid_variances() -> Tensor:
    """One for each of the teacher's channels."""
    return waves(6, phase=0.9).exp()


def regressed(student: Tensor) -> Tensor:
    """What three layers make of the student's taps."""
    first, second, third = vid_layers()
    value = torch.einsum("oc,bchw->bohw", first, student).relu()
    value = torch.einsum("oc,bchw->bohw", second, value).relu()
    return torch.einsum("oc,bchw->bohw", third, value)


def crd_state() -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Weights and biases of both embeddings, the memory (2, 40, 16), and which images are drawn."""
    weights = [waves(16, width, phase=1.0 + width) for width in (4, 6)]
    biases = [waves(16, phase=0.2 + width) for width in (4, 6)]
    memory = torch.nn.functional.normalize(waves(2, 40, 16, phase=1.9), dim=2)
    return weights, biases, memory, torch.arange(BATCH, 40)


def _crd(mid_level: Any, student: Tensor, teacher: Tensor) -> Tensor:
    """Two batches: the first one sets Z and moves the memory."""
    weights, biases, memory, drawn = crd_state()
    loss = mid_level.CRDLoss("s", "e", "t", 16, 40, len(drawn), 40).double()
    loss.memory_v1, loss.memory_v2 = memory[0].clone(), memory[1].clone()
    taps = [tap.mean((2, 3)) @ w.t() + b for tap, w, b in zip((student, teacher), weights, biases, strict=True)]
    s, t = (torch.nn.functional.normalize(tap, dim=1) for tap in taps)
    index = torch.arange(BATCH)
    rows = torch.cat([index.unsqueeze(1), drawn.expand(BATCH, -1)], 1)
    loss.contrast_memory(s.detach(), t.flip(0), index, rows)
    out = loss.contrast_memory(s, t, index, rows)
    value: Tensor = loss.compute_contrast_loss(out[0]) + loss.compute_contrast_loss(out[1])
    return value


def _cases() -> Iterator[tuple[str, str, Callable[[Tensor, Tensor], Tensor]]]:
    mid_level = importlib.import_module("torchdistill.losses.mid_level")

    def of(loss: Any, factor: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda s, t: factor * loss({"x": {"output": s}}, {"x": {"output": t}})

    both = ("x", "output", "x", "output")
    pair = {"p": {"student": {"path": "x", "io": "output"}, "teacher": {"path": "x", "io": "output"}}}
    for temperature in (1.0, 4.0):
        square = temperature**2
        yield f"kd {temperature:g}", "logits", of(mid_level.KDLoss(*both, temperature, alpha=0.0), square)
        standardised = mid_level.LogitStdKDLoss(*both, temperature, alpha=0.0)
        yield f"kd-standardized {temperature:g}", "logits", of(standardised, square)
        dist = mid_level.DISTLoss(*both, beta=1.0, gamma=2.0, tau=temperature)
        yield f"dist {temperature:g}", "logits", of(dist)
    yield "attention", "widths", of(mid_level.ATLoss(pair))
    yield "rkd", "widths", of(mid_level.RKDLoss("x", "x", 25.0, 50.0, "mean"))
    vid = mid_level.VIDLoss(pair)
    means, variances = regressed, vid_variances().reshape(1, -1, 1, 1)
    yield "vid", "widths", lambda s, t: vid({"x": {"output": (means(s), variances)}}, {"x": {"output": t}})
    yield "crd", "widths", lambda s, t: _crd(mid_level, s, t)


def main() -> None:
    """Compute and write."""
    logging.disable()
    values = {}
    for name, kind, loss in _cases():
        student, teacher, direction = inputs(kind)
        value = loss(student.requires_grad_(), teacher)
        (gradient,) = torch.autograd.grad(value, student)
        values[name] = {"value": value.item(), "slope": (gradient * direction).sum().item()}
    versions = {name: metadata.version(name) for name in ("torchdistill", "torch")}
    FILE.write_text(json.dumps({"versions": versions, "values": values}, indent=2) + "\n")


if __name__ == "__main__":
    main()

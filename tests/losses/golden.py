"""Values of torchdistill's losses on fixed inputs, kept in ``golden.json``, so that the tests need no torchdistill.

    pip install --no-deps torchdistill==1.1.5
    python -m tests.losses.golden

writes them anew, in float64, each with its slope along one direction of the student's values. What torchdistill has in
another variant (PKT of 2018; SP with rows that sum to 1, where the paper has length 1) or not at all (DKD) is held
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

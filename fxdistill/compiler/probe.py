"""Difficulty, measured: how much of a teacher's tap the student's layer does not know before it is trained.

For each pair, with what its loss compares of the two taps, a row x of the student's and a row y of the teacher's for
each image and position, ridge regression in closed form on the images of one half,

    W = (X'X + l I)⁻¹ X'Y        of rows less their means; l is a thousandth of the mean diagonal of X'X

and, on the images of the other half, difficulty = Σ |y - W'x|² / Σ |y - mean y|²: 0 where a linear map of what the
student has gives the teacher's layer, 1 where it gives nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxdistill.errors import InputError
from fxdistill.ir.program import Batch, Program
from fxdistill.ir.running import attributes_kept, buffers_kept, seeded

IMAGES, AT_ONCE = 512, 64
_POSITIONS = 16
_RIDGE = 1e-3
_TINY = 1e-12
_DIGITS = 3


def difficulties(program: Program, sample: Sequence[Batch]) -> dict[str, float]:
    """The difficulty of each pair whose taps a program compares, from 0 to 1; nothing is changed.

    Args:
        program: Teacher and untrained student.
        sample: Batches of real images.

    Raises:
        InputError: A tap is not a number somewhere.
    """
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch in sample:
        with torch.no_grad(), attributes_kept(program), buffers_kept(program), seeded(torch.device("cpu")):
            taps: Mapping[str, Mapping[str, Tensor]] = program.outputs(batch).taps
        for pair, found in taps.items():
            for role, tap in found.items():
                if not bool(tap.isfinite().all()):
                    raise InputError(
                        f"the {role}'s tap is not a number, or infinite, so that nothing can be measured on it",
                        where=f"--probe, pair '{pair}'", hint="check the model's weights, and how it normalises images",
                    )  # fmt: skip
            rows.setdefault(pair, []).append((_rows(found["student"]), _rows(found["teacher"])))
    return {
        pair: round(_unexplained(*map(torch.cat, zip(*found, strict=True))), _DIGITS) for pair, found in rows.items()
    }


def _rows(tap: Tensor) -> Tensor:
    """A tap (B, C, ...) as rows (B, P, C) of evenly spaced positions."""
    found = tap.detach().cpu().double().flatten(2) if tap.dim() > 2 else tap.detach().cpu().double().unsqueeze(2)
    count = found.shape[2]
    picked = torch.linspace(0, count - 1, min(count, _POSITIONS)).round().long()
    return found[:, :, picked].transpose(1, 2)


def _unexplained(student: Tensor, teacher: Tensor) -> float:
    half = len(student) // 2
    (x, seen), (y, wanted) = ((rows[:half].flatten(0, 1), rows[half:].flatten(0, 1)) for rows in (student, teacher))
    centre, mean = x.mean(0), y.mean(0)
    gram = (x - centre).T @ (x - centre)
    ridge = (_RIDGE * gram.diagonal().mean() + _TINY) * torch.eye(len(gram), dtype=gram.dtype)
    found = torch.linalg.solve(gram + ridge, (x - centre).T @ (y - mean))
    missed = wanted - mean - (seen - centre) @ found
    whole = float((wanted - wanted.mean(0)).square().sum())
    return min(1.0, float(missed.square().sum()) / whole) if whole else 0.0

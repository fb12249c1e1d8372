"""What training does that a graph of the eval mode does not: it is compared, so that it is said.

A trace freezes a mode. Where ``forward`` itself asks for it (a drop path that returns its input, an auxiliary head, a
buffer that is updated, dropout inside of an attention), the other mode is not in the graph; nor is a ``train`` of the
model's own, which leaves some layers in eval mode. Layers of torch are in the graph as they are, and change with it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.graph import Traced
from fxdistill.ir.running import attributes_kept, buffers_kept, example, in_mode, quiet, same, seeded, tensors_in
from fxdistill.passes.trace.probe import random_kept, uncompiled

_TOLERANCE = 1e-3
"""Of the largest value: what ``torch.export`` takes apart rounds differently."""


def otherwise_in_training(module: nn.Module, traced: Traced) -> Iterator[Diagnostic]:
    """A remark where a model in training mode does not do what its eval-mode graph does in training mode.

    Nothing is said of a model that does not run in training mode, or of a graph that takes one size of batch alone.
    """
    batch, *size = traced.input_shape
    images = example(module, (max(2, batch), *size))
    try:
        with random_kept(), uncompiled(module), quiet():
            (answers, updates, drawn), (found, updated, draws) = (
                _trained(one, images) for one in (module, traced.module)
            )
    except Exception:  # noqa: BLE001  # whatever the reason: there is nothing to compare
        return
    lost = [name for place, name in updates.items() if place not in updated]
    if lost:
        why = f"training updates the buffer '{lost[0]}', and what was traced in eval mode does not: it stays as it is"
    elif len(answers) != len(found) or not torch.equal(drawn, draws) or not all(map(_alike, answers, found)):
        why = (
            "in training mode the model does something that was not traced in eval mode, and the smaller one does not "
            "(a drop path, dropout in an attention, an auxiliary head, layers that its own train() leaves as they are)"
        )
    else:
        return
    yield Diagnostic(
        code="frozen-mode", severity="warning", where=type(module).__name__, why=why,
        hint="where training the shrunken model needs it, use layers of torch.nn, such as nn.Dropout",
    )  # fmt: skip


def _trained(module: nn.Module, images: Tensor) -> tuple[list[Tensor], dict[int, str], Tensor]:
    """What a module answers in training mode, the buffers that it updates, and where random numbers stand after it."""
    own = dict(module.named_buffers(remove_duplicate=False))
    with (
        in_mode(module, training=True), attributes_kept(module), buffers_kept(module) as before, torch.no_grad(),
        seeded(images.device),
    ):  # fmt: skip
        answers = tensors_in(module(images.clone()))
        after = dict(module.named_buffers(remove_duplicate=False))
        updated = {id(own[n]): n for n, b in after.items() if n in before and not same(b, before[n])}
        on_cpu = images.device.type != "cuda"
        return answers, updated, torch.get_rng_state() if on_cpu else torch.cuda.get_rng_state(images.device)


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return same(one, other)
    largest = float(one.detach().abs().nan_to_num().max()) if one.numel() else 0.0
    return torch.allclose(one.double(), other.double(), rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True)

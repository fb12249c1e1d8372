"""Importance: how much each coupled class of channels matters, by name of the criterion.

The importance of a class is the sum over its members, the filters f of the weights W that produce its channels:

    l1, l2    ‖W[f]‖₁, ‖W[f]‖₂                     Li et al. 2017, https://arxiv.org/abs/1608.08710
    fpgm      Σ_g ‖W[f] - W[g]‖₂                   He et al. 2019, https://arxiv.org/abs/1811.00250
    taylor    Σ |W[f] · ∂loss/∂W[f]|               Molchanov et al. 2019, https://arxiv.org/abs/1906.10771
    bn        |weight| of the channel's BatchNorms Liu et al. 2017, https://arxiv.org/abs/1708.06519
    random    uniform, seeded: the control
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxdistill.errors import InputError, PlanError
from fxdistill.ir.coupling import Coupling, varying
from fxdistill.ir.graph import Traced
from fxdistill.ir.running import tensors_in

Criterion = Literal["l1", "l2", "fpgm", "taylor", "bn", "random"]
Batch = tuple[Tensor, Tensor]


def importance(
    traced: Traced, coupling: Coupling, *, criterion: str = "l1", batch: Batch | None = None, seed: int = 0
) -> Tensor:
    """Importance of every class, by class id (float64); classes that the criterion says nothing about have 0.

    Args:
        traced: The model.
        coupling: Its coupled channels.
        criterion: See the module docstring.
        batch: Images and class indices for ``taylor``; without it the gradients that lie in ``.grad`` are used.
        seed: Seed of ``random``.

    Raises:
        PlanError: The criterion is unknown.
        InputError: ``taylor`` has neither a batch nor gradients; ``bn`` finds no batch norm.
    """
    if criterion not in get_args(Criterion):
        raise PlanError(
            f"no pruning criterion is named '{criterion}'",
            where="criterion",
            hint=f"use {', '.join(get_args(Criterion))}",
        )
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(coupling.class_count + 1, generator=generator, dtype=torch.float64)
    if criterion == "bn":
        return _batch_norm_scales(traced, coupling)
    scores = torch.zeros(coupling.class_count + 1, dtype=torch.float64)
    gradients = _gradients(traced, batch) if criterion == "taylor" else {}
    tensors = dict(traced.module.named_parameters(remove_duplicate=False))
    for (name, dim), role in coupling.roles.items():
        weight, labels = tensors.get(name), coupling.parameter_labels(name).get(dim)
        if role != "out" or weight is None or labels is None or (gradients and name not in gradients):
            continue
        value = weight.detach().cpu().to(torch.float64)
        entries = value * gradients[name].cpu() if gradients else value
        _add(scores, labels, entries, dim, _NORMS[criterion])
    return scores


def _add(scores: Tensor, labels: Tensor, entries: Tensor, dim: int, norm: Callable[[Tensor], Tensor]) -> None:
    """Add the norms of one weight's filters to the scores of their classes."""
    if varying(labels) in ((), (dim,)):
        filters = entries.movedim(dim, 0).flatten(1)
        scores.index_add_(0, labels.movedim(dim, 0).flatten(1)[:, 0], norm(filters))
    else:  # outputs numbered within groups (grouped transposed convolution): the filters are the lines of both
        rows = entries.flatten(2).reshape(-1, entries[0, 0].numel())
        scores.index_add_(0, labels.flatten(2)[:, :, 0].reshape(-1), norm(rows))


def _distances(filters: Tensor) -> Tensor:
    return torch.cdist(filters, filters).sum(1)


_NORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda filters: filters.abs().sum(1),
    "l2": lambda filters: torch.linalg.vector_norm(filters, dim=1),
    "taylor": lambda filters: filters.abs().sum(1),
    "fpgm": _distances,
}


def _batch_norm_scales(traced: Traced, coupling: Coupling) -> Tensor:
    scores = torch.zeros(coupling.class_count + 1, dtype=torch.float64)
    buffers, found = dict(traced.module.named_buffers()), False
    for name, weight in traced.module.named_parameters():
        labels = coupling.parameter_labels(name).get(0)
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and f"{owner}.running_var" in buffers and labels is not None:
            found = True
            scores.index_add_(0, labels.contiguous(), weight.detach().cpu().abs().to(torch.float64))
    if not found:
        raise InputError(
            "the criterion 'bn' ranks channels by the scales of batch norms, and the model has none",
            where="criterion", hint="choose another, e.g. l1",
        )  # fmt: skip
    return scores


def _gradients(traced: Traced, batch: Batch | None) -> dict[str, Tensor]:
    """Gradients by parameter, of the cross-entropy on a batch or as they lie in ``.grad``."""
    parameters: dict[str, nn.Parameter] = dict(traced.module.named_parameters())
    if batch is None:
        found = {name: p.grad.to(torch.float64) for name, p in parameters.items() if p.grad is not None}
        if not found:
            raise InputError(
                "the criterion 'taylor' needs gradients", where="criterion",
                hint="give data (--data), or call backward() on your own loss before",
            )  # fmt: skip
        return found
    images, targets = batch
    with torch.enable_grad():
        wanted = {name: p for name, p in parameters.items() if p.requires_grad}
        logits = tensors_in(traced.module(images))[0]
        loss = functional.cross_entropy(logits, targets)
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {name: g.to(torch.float64) for name, g in zip(wanted, gradients, strict=True) if g is not None}

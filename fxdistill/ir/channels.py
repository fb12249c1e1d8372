"""Channels: what may be known of a model's coupled channels when their importance is measured.

    coupling, traced     which filters produce a class, and their weights
    batch, loss          images and targets, and what their labels say about a prediction: gradients
    seed                 of everything random

A measure reads; whatever runs here leaves modes, buffers and gradients as they were.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxdistill.errors import CriterionError, InputError, first_line
from fxdistill.ir import outputs
from fxdistill.ir.computed import computed_weights
from fxdistill.ir.coupling import Coupling, Said
from fxdistill.ir.graph import Traced
from fxdistill.ir.running import buffers_kept, quiet, seeded
from fxdistill.tasks import labels_of

_PIECE = 64  # words of eight bytes
_ODD = np.arange(1, 2 * _PIECE, 2, dtype=np.uint64)  # a word that changes its place is a change
_AT_ONCE = 8
"""Images of which gradients are computed at a time."""
_ENTRIES = 2**16  # entries of filters that are read at a time: half a megabyte in float64
Examples = tuple[Tensor, Tensor]
"""Images and targets."""


@dataclass(frozen=True, eq=False)
class Channels:
    """The coupled channels of one model, and what may be read of them.

    Attributes:
        traced: The model.
        coupling: Its coupled channels.
        batch: Images and targets; None where there are none.
        seed: Seed of everything random.
        loss: What the targets say about a prediction, a scalar: ``loss(prediction, targets)``, a mean over the labels.
        known: What criteria have said of the same batch before; it is put in here.
        asked: The classes whose importance counts, for criteria that can leave others out; None for all.
    """

    traced: Traced
    coupling: Coupling
    batch: Examples | None = None
    seed: int = 0
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    known: Said = field(default_factory=dict)
    asked: frozenset[int] | None = None

    def zeros(self) -> Tensor:
        """No importance for any class: float64 of shape (classes + 1,)."""
        return torch.zeros(self.coupling.class_count + 1, dtype=torch.float64)

    def sum_over_filters(
        self, norm: Callable[[Tensor], Tensor], *, factors: Mapping[str, Tensor] | None = None, apart: bool = False
    ) -> Tensor:
        """The importance of every class as a sum over the filters that produce it, of all weights that do.

        A weight that is computed (a weight norm, a mask) counts as what it is computed to be; with ``factors`` the
        parameter that it is made of counts instead, which for masks and gains is the same with gradients.

        Args:
            norm: Takes the filters of one weight, float64 of shape (filters, entries); returns (filters,).
            factors: For each weight a tensor of its shape that it is multiplied with before (gradients, say); weights
                that have none do not count.
            apart: What ``norm`` says of a filter does not depend on the others, so that it is asked about a few of
                them at a time: no second copy of a large weight.
        """
        scores = self.zeros()
        tensors = dict(self.traced.module.named_parameters(remove_duplicate=False))
        computed = computed_weights(self.traced, self.coupling) if factors is None else {}
        for (name, dim), classes in self.coupling.outputs.items():
            if name not in tensors or (factors is not None and name not in factors):
                continue
            weight = computed.get((name, dim))
            rows = _filters(tensors[name].detach(), dim, len(classes)) if weight is None else weight.flatten(1)
            by = None if factors is None else _filters(factors[name], dim, len(classes)).cpu()
            step = max(1, _ENTRIES // max(1, rows.shape[1])) if apart else max(1, len(rows))
            for first in range(0, len(rows), step):
                part = slice(first, first + step)
                entries = rows[part].cpu().to(torch.float64)
                scores.index_add_(0, classes[part], norm(entries if by is None else entries * by[part]))
        return scores

    def batch_norms(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch norm that scales: the class of every channel, and its scale in float64."""
        buffers = dict(self.traced.module.named_buffers())
        for name, weight in self.traced.module.named_parameters():
            labels = self.coupling.parameter_labels(name).get(0)
            owner, _, leaf = name.rpartition(".")
            if leaf == "weight" and f"{owner}.running_var" in buffers and labels is not None:
                yield labels.contiguous(), weight.detach().cpu().to(torch.float64)

    def gradients(self, criterion: str) -> dict[str, Tensor]:
        """The loss's gradients by parameter in float64: on the batch, or without one as they lie in ``.grad``.

        Args:
            criterion: Who asks, for the message.

        Raises:
            InputError: There is neither a batch nor a gradient.
        """
        if self.batch is None:
            parameters = self.traced.module.named_parameters(remove_duplicate=False)
            found = {name: p.grad.to(torch.float64) for name, p in parameters if p.grad is not None}
            if not found:
                raise InputError(
                    f"the criterion '{criterion}' needs gradients", where="criterion",
                    hint="give data (--data), or call backward() on your own loss before",
                )  # fmt: skip
            return found
        return self._gradients(*self.examples(criterion))

    def gradients_by_image(self, criterion: str) -> Iterator[dict[str, Tensor]]:
        """The gradients of each image of the batch alone, by parameter in float64; those without a label say nothing.

        Args:
            criterion: Who asks, for the message.

        Raises:
            InputError: There is no batch.
        """
        for image, target, _ in _parts(*self.examples(criterion), at_once=1):
            yield self._gradients(image, target)

    def squared_gradients(self, criterion: str) -> dict[str, Tensor]:
        """The mean over the batch of each image's squared gradients, by parameter in float64.

        Args:
            criterion: Who asks, for the message.

        Raises:
            InputError: There is no batch.
        """
        squares: dict[str, Tensor] = {}
        count = 0
        for count, gradients in enumerate(self.gradients_by_image(criterion), 1):  # noqa: B007
            for name, gradient in gradients.items():
                squares[name] = squares.get(name, torch.zeros_like(gradient)) + gradient.square()
        return {name: total / count for name, total in squares.items()}

    def examples(self, criterion: str) -> Examples:
        """The batch, images in the precision of the model and on its device.

        Args:
            criterion: Who asks, for the message.

        Raises:
            InputError: There is none.
        """
        if self.batch is None:
            raise InputError(
                f"the criterion '{criterion}' needs images and their labels", where="criterion",
                hint="give data (--data), or choose a criterion that reads weights alone, e.g. l1",
            )  # fmt: skip
        images, targets = self.batch
        like = next((p for p in self.traced.module.parameters() if p.is_floating_point()), images)
        return images.to(like.device, like.dtype), targets.to(like.device)

    def fingerprint(self) -> dict[str, int]:
        """What tells whether anybody touched the model: checksums of its tensors, and the modes of its modules."""
        module = self.traced.module
        tensors = (*module.named_parameters(), *module.named_buffers())
        modes = {f"the mode of '{name}'": int(child.training) for name, child in module.named_modules()}
        return {name: _checksum(tensor) for name, tensor in tensors} | modes

    def _gradients(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Gradients for aliases of the parameters, so that those of a frozen model are had too.

        A weight that has several names has its gradient under each of them.
        """
        own = dict(self.traced.module.named_parameters(remove_duplicate=False))
        first = {id(p): name for name, p in reversed(own.items())}
        wanted = {first[id(p)]: p.detach().requires_grad_() for p in own.values() if p.is_floating_point()}
        found: dict[str, Tensor] = {}
        with (
            self.traced.running() as module, buffers_kept(module), seeded(images.device, self.seed), quiet(),
            torch.enable_grad(),
        ):  # fmt: skip
            for some, theirs, share in _parts(images, targets):
                for name, gradient in zip(wanted, self._of_part(module, wanted, some, theirs), strict=True):
                    if gradient is not None:
                        found[name] = found.get(name, 0) + share * gradient.to(torch.float64)
        return {name: found[first[id(p)]] for name, p in own.items() if first[id(p)] in found}

    def _of_part(
        self, module: nn.Module, wanted: dict[str, Tensor], images: Tensor, targets: Tensor
    ) -> tuple[Tensor | None, ...]:
        why: object = "the prediction does not depend on any, as autograd sees it"
        try:
            output = torch.func.functional_call(module, wanted, (images,))
            loss = self.loss(outputs.prediction(output, self.traced.entry), targets)
            if loss.requires_grad:
                return torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        except RuntimeError as cause:  # it takes batches of one size alone, say, or writes over what gradients read
            why = first_line(cause)
        raise CriterionError(
            f"no gradient reaches a weight: {why}", where="criterion",
            hint="choose one that reads weights alone, e.g. l1",
        )  # fmt: skip


def _parts(images: Tensor, targets: Tensor, at_once: int = _AT_ONCE) -> Iterator[tuple[Tensor, Tensor, float]]:
    """A few images with labels at a time, so that memory does not grow with their number; their share of the labels."""
    counts = labels_of(targets)
    counts += ~counts.any()  # where no image has one, the loss says so
    known = counts > 0
    parts = (one[known].split(at_once) for one in (images, targets, counts))
    for some, theirs, labels in zip(*parts, strict=True):
        yield some, theirs, int(labels.sum()) / int(counts.sum())


def _filters(weight: Tensor, dim: int, count: int) -> Tensor:
    """The filters of a weight as rows; there are more than along its dimension where each group numbers its own."""
    groups = count // weight.shape[dim]
    if groups > 1:  # a grouped transposed convolution: (inputs, outputs of a group, …)
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        dim = 0
    return weight.movedim(dim, 0).flatten(1)


def _checksum(tensor: Tensor) -> int:
    """A checksum of a tensor's bits: of sums of its words by pieces, each word times an odd number of its own."""
    bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    whole = len(bits) // (8 * _PIECE) * 8 * _PIECE
    words = bits[:whole].view(np.uint64).reshape(-1, _PIECE)
    sums = np.einsum("pw,w->p", words, _ODD)
    return zlib.crc32(bits[whole:].data, zlib.crc32(sums.data))

"""How alike two layers see the same images: linear CKA (Kornblith et al., ICML 2019), by the unbiased estimator.

    K = X Xᵀ,  L = Y Yᵀ        of n images, with the diagonals set to 0
    HSIC(K, L) = [tr(K L) + (1ᵀK1)(1ᵀL1) / ((n - 1)(n - 2)) - 2 · 1ᵀK L1 / (n - 2)] / (n (n - 3))
    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

1 where one layer is the other, rotated and scaled; about 0 where they have nothing in common. It compares how images
lie to each other, so that widths may differ. The estimator of HSIC is that of Song et al. (2012), as in Nguyen et al.
(2021): the plain one finds random features alike as soon as there are more features than images.

A layer's features of an image are its values at all positions; maps of more than 8 x 8 positions are averaged down to
that, and of tokens neighbours to at most 64.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, fx

from fxdistill.ir.graph import Traced, find
from fxdistill.plan.schema import Layout

_SIDE, _TOKENS = 8, 64
LEAST = 8
"""Images that it takes at least."""


def features(value: Tensor, layout: Layout) -> Tensor:
    """The features of a layer's value for a batch: (B, D), float32, on the CPU."""
    value = value.detach().float()
    if layout == "nhwc":
        value = value.permute(0, 3, 1, 2)
    if value.dim() == 4:
        value = F.adaptive_avg_pool2d(value, (min(_SIDE, value.shape[2]), min(_SIDE, value.shape[3])))
    elif value.dim() == 3 and value.shape[1] > _TOKENS:
        value = F.adaptive_avg_pool1d(value.transpose(1, 2), _TOKENS)
    return value.flatten(1).cpu()


def cka(first: Tensor, second: Tensor) -> float | None:
    """How alike two layers are.

    Args:
        first: Features of n images, (n, D).
        second: Features of the same images, (n, E).

    Returns:
        At most 1, hardly below 0; None of fewer than 8 images, or where a layer says the same of all of them.
    """
    if len(first) < LEAST:
        return None
    grams = [_gram(one) for one in (first, second)]
    own, other, both = (_hsic(*pair) for pair in ((grams[0],) * 2, (grams[1],) * 2, grams))
    if not own > 0 or not other > 0:
        return None
    found = float(both / (own * other).sqrt())
    return found if abs(found) < 2 else None


def _gram(features: Tensor) -> Tensor:
    centred = features.double() - features.double().mean(0)
    size = centred.norm() or 1.0
    gram = (centred / size) @ (centred / size).T
    return gram.fill_diagonal_(0.0)


def _hsic(one: Tensor, other: Tensor) -> Tensor:
    n = len(one)
    rows, columns = one.sum(1), other.sum(1)
    middle = rows.sum() * columns.sum() / ((n - 1) * (n - 2))
    return ((one * other).sum() + middle - 2 * (rows @ columns) / (n - 2)) / (n * (n - 3))


class Reading(fx.Interpreter):
    """Runs a traced model and keeps the features of some of its nodes.

    Args:
        traced: The model, traced in eval mode.
        taps: The nodes by path, with their layouts.

    Raises:
        PairingError: There is no such node.
    """

    def __init__(self, traced: Traced, taps: Mapping[str, Layout]) -> None:
        super().__init__(traced.module)
        self._wanted = {find(traced, path): (path, layout) for path, layout in taps.items()}
        self._kept: dict[str, list[Tensor]] = {path: [] for path in taps}

    def run_node(self, n: fx.Node) -> object:
        """A node's value; its features are taken now, before a later node may write over it."""
        value: object = super().run_node(n)
        if n in self._wanted and isinstance(value, Tensor):
            path, layout = self._wanted[n]
            self._kept[path].append(features(value, layout))
        return value

    def read(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        """The features of all images by path, each (n, D)."""
        with torch.inference_mode():
            for batch in images:
                self.run(batch)
        return {path: torch.cat(found) for path, found in self._kept.items() if found}

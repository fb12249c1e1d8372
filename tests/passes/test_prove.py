"""Prove: what counts as a difference, and that rounding is told from a mistake."""

from math import inf, nan

import pytest
import torch
from torch import Tensor, fx, nn

from fxdistill.errors import InvariantError, ModelError
from fxdistill.ir.graph import Traced
from fxdistill.ir.survivors import Mask, Survivors
from fxdistill.passes.couple import Couple
from fxdistill.passes.shrink import shrink
from fxdistill.passes.shrink.prove import _difference, prove
from fxdistill.passes.thin.kept import removed_of
from fxdistill.passes.trace import Trace


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25), ([2.0, 2.0], [2.0, 2.0], 0.0), ([1.0, nan], [1.5, nan], 0.5),
        ([1.0, inf], [1.0, inf], 0.0), ([1.0, inf], [1.0, -inf], inf), ([1.0, 2.0], [1.0, inf], inf),
        ([1.0, 2.0], [1.0, nan], inf), ([inf], [2.0], inf), ([], [], 0.0),
    ],
)  # fmt: skip
def test_a_difference_is_relative_to_the_largest_finite_entry(
    one: list[float], other: list[float], expected: float
) -> None:
    assert _difference(torch.tensor(one), torch.tensor(other), "node") == expected


def test_integers_are_equal_or_not() -> None:
    assert _difference(torch.tensor([1, 2]), torch.tensor([1, 2]), "node") == 0.0
    assert _difference(torch.tensor([1, 2]), torch.tensor([1, 3]), "node") == inf


@pytest.mark.parametrize(
    ("alive", "shape"),
    [
        ([[[True, False, True, True]]], (2, 3, 4)),  # one dimension
        ([[[True, False, True, False]], [[False, True, True, False]]], (2, 3, 4)),  # ragged: others in each group
        ([[[True], [True], [False]], [[False], [False], [False]]], (2, 3, 4)),
    ],
)
def test_survivors_are_taken_in_their_order(alive: list[list[list[bool]]], shape: tuple[int, ...]) -> None:
    mask = Mask(torch.tensor(alive), shape)
    tensor = torch.randn(shape)
    assert mask.sizes is not None
    torch.testing.assert_close(mask.take(tensor), tensor[mask.full].reshape(mask.sizes), rtol=0, atol=0)


class Cancelling(nn.Module):
    """A sum of large terms that cancel: rounding in single precision is amplified past the tolerance."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.head = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        difference: Tensor = self.head(self.wide(x) + 3e3) - self.head(self.wide(x) * 0.9 + 3e3)
        return difference


def _shrunken() -> tuple[Traced, Survivors]:
    traced = Trace((1, 3, 9, 9))(Cancelling().eval()).value
    coupling = Couple()(traced).value
    return traced, Survivors(coupling, removed_of(coupling, {"wide.weight": list(range(0, 64, 2))}))


def test_rounding_is_told_from_a_mistake_in_double_precision() -> None:
    traced, survivors = _shrunken()
    proof = prove(traced, survivors, shrink(traced, survivors))
    assert proof.precision == "float64"
    assert proof.error < 1e-8


def test_a_small_mistake_stays_one_in_double_precision() -> None:
    traced, survivors = _shrunken()
    small = shrink(traced, survivors)
    with torch.no_grad():
        small.get_parameter("wide.weight")[0] *= 1.005
    with pytest.raises(InvariantError, match="disagrees with the masked full one, first at 'wide'"):
        prove(traced, survivors, small)


class CancellingInside(Cancelling):
    """The same, around a region that computes in single precision by its own: a graph inside of the exported graph."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            scale = x.to(torch.float32).mean().tanh().abs().add(torch.zeros((), dtype=torch.float32)).add(0.5)
        x = self.wide(x) * scale
        difference: Tensor = self.head(x + 3e3) - self.head(x * 0.9 + 3e3)
        return difference


def test_a_graph_inside_of_a_graph_is_computed_in_double_precision_as_well() -> None:
    traced = Trace((1, 3, 9, 9), rungs=("export",))(CancellingInside().eval()).value
    assert sum(isinstance(part, fx.GraphModule) for part in traced.module.modules()) == 2
    coupling = Couple()(traced).value
    lost = [i for i in coupling.parameter_labels("head.weight")[1][0, :, 0, 0].tolist() if i not in coupling.locks]
    survivors = Survivors(coupling, frozenset(lost[::2]))  # the sums of what is left come in another order
    proof = prove(traced, survivors, shrink(traced, survivors))
    assert proof.precision == "float64"
    assert proof.error < 1e-8


def _removed(module: nn.Module, kind: torch.dtype = torch.float32) -> tuple[Traced, Survivors]:
    traced = Trace((1, 3, 9, 9))(module.to(kind).eval()).value
    coupling = Couple()(traced).value
    return traced, Survivors(coupling, removed_of(coupling, {"0.weight": [0, 1, 2, 5]}))


def test_rounding_of_half_precision_is_told_from_a_mistake() -> None:
    traced, survivors = _removed(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 3, 1)), torch.bfloat16
    )
    small = shrink(traced, survivors)
    assert prove(traced, survivors, small).precision == "float64"
    with torch.no_grad():
        small.get_parameter("1.weight")[0] *= 1.05
    with pytest.raises(InvariantError, match="disagrees with the masked full one, first at '1'"):
        prove(traced, survivors, small)


class Rooted(nn.Sequential):
    """Roots of what is read: numbers of positive images alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sqrt() + self.more)  # type: ignore[no-any-return, operator]


@pytest.mark.parametrize("more", [0.0, nan])
def test_an_answer_without_numbers_proves_nothing(more: float) -> None:
    torch.manual_seed(0)
    module = Rooted(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 9))
    module.more = more  # type: ignore[assignment]
    traced, survivors = _removed(module)
    small = shrink(traced, survivors)
    with torch.no_grad():
        small.get_parameter("1.weight")[0] *= 1.05
    error, said = (InvariantError, "disagrees") if more == 0 else (ModelError, "with no finite number")
    with pytest.raises(error, match=said):
        prove(traced, survivors, small)

"""Operators: one name however an operation is spelled, one line of the table for each, and traits that hold."""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxdistill.errors import InputError
from fxdistill.ir.operators import _LINES, bare_name, is_a, operator_of, table
from fxdistill.operators import Operator, Trait, collected, rule
from fxdistill.registry import Registry


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (torch.ops.aten.conv2d.default, "conv2d"), (torch.ops.aten.add, "add"), (F.relu, "relu"), (torch.relu_, "relu"),
        ("add_", "add"), ("__add__", "add"), ("__radd__", "add"), ("__iadd__", "add"), (Tensor.__rsub__, "sub"),
        (operator.iadd, "add"), (operator.and_, "and"), (operator.ior, "or"), (operator.setitem, "setitem"),
        (operator.getitem, "getitem"), (Tensor.__getitem__, "getitem"), ("__getitem__", "getitem"),
        (Tensor.__rmatmul__, "rmatmul"), (operator.matmul, "matmul"),
        (vars(torch._C.TensorBase)["shape"].__get__, "shape"), ("ior", "ior"), (torch.isinf, "isinf"),
        ("_unsafe_view", "_unsafe_view"),
        (torch.special.xlog1py, "special_xlog1py"),
    ],
)  # fmt: skip
def test_one_operation_has_one_bare_name(target: Callable[..., Any] | str, name: str) -> None:
    assert bare_name(target) == name


def test_each_name_is_in_one_line() -> None:
    counts = Counter(name for line in _LINES for name in line.names)
    assert {name for name, count in counts.items() if count > 1} == set()


def test_of_an_unknown_operation_nothing_is_assumed() -> None:
    assert operator_of("no_such_operation") == Operator()
    assert not any(is_a("no_such_operation", trait) for trait in Trait)


def test_traits_of_well_known_operations() -> None:
    assert is_a("relu", Trait.ACTIVATION)
    assert is_a("relu", Trait.POINTWISE)
    assert not is_a("softmax", Trait.POINTWISE)
    assert not is_a("prelu", Trait.POINTWISE)
    assert not is_a("max_pool3d", Trait.POOLING)
    assert not is_a("permute", Trait.KEEPS_ORDER)


def functions(trait: Trait) -> list[str]:
    """Names with a trait that can be called on tensors alone, as a function or a method."""
    return sorted(n for n, known in table().items() if trait in known.traits and _callable(n) is not None)


def _callable(name: str) -> Callable[..., Any] | None:
    for owner in (Tensor, F, torch):
        found = getattr(owner, name, None)
        if callable(found):
            function: Callable[..., Any] = found
            return function
    return None


_EXTRA: dict[str, tuple[Any, ...]] = {
    "to": (torch.float64,), "type": (torch.float64,), "type_as": (torch.zeros((), dtype=torch.float64),),
    "dropout": (0.5, False), "alpha_dropout": (0.5, False), "feature_dropout": (0.5, False),
    "feature_alpha_dropout": (0.5, False), "dropout2d": (0.5, False),
    "view": (8, 15), "reshape": (8, 15), "_unsafe_view": ((8, 15),),
    "unflatten": (1, (2, 2)), "unsqueeze": (1,), "permute": (1, 0, 2, 3), "transpose": (0, 1), "swapaxes": (0, 1),
    "swapdims": (1, 2), "movedim": (0, 2), "moveaxis": (0, 2), "pixel_shuffle": (2,), "pixel_unshuffle": (2,),
    "roll": (1, 1), "flip": ((1,),), "channel_shuffle": (2,), "native_channel_shuffle": (2,),
    "adaptive_avg_pool2d": (2,), "adaptive_max_pool2d": (2,), "max_pool2d": (2,), "avg_pool2d": (2,),
    "lp_pool2d": (2, 2), "interpolate": (5,), "upsample": (5,), "upsample_nearest": (5,), "upsample_bilinear": (5,),
}  # fmt: skip
_NEEDS_INTEGERS = {"bitwise_not", "bitwise_and", "bitwise_or", "and", "or", "xor"}
_ELSEWHERE = {"cuda", "dropout1d", "dropout3d"}  # need a device, or another number of dimensions
KEEP = torch.tensor([0, 2])


@pytest.mark.parametrize("name", [n for n in functions(Trait.POINTWISE) if n not in _ELSEWHERE])
def test_what_slices_a_pointwise_result_may_slice_its_input(name: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 4, 3, 5).mul(0.9) + 0.05
    x = x.gt(0.5) if name in _NEEDS_INTEGERS else x
    function = _callable(name)
    assert function is not None
    extra = _EXTRA.get(name, ())
    torch.testing.assert_close(
        function(x, *extra).index_select(1, KEEP), function(x.index_select(1, KEEP), *extra), rtol=1e-6, atol=0
    )


_OPERANDS = {"where": 3, "addcmul": 3, "addcdiv": 3, "lerp": 3, "threshold": 3, "clamp": 3, "clip": 3}


@pytest.mark.parametrize("name", functions(Trait.ELEMENTWISE))
def test_what_slices_an_elementwise_result_may_slice_its_operands(name: str) -> None:
    torch.manual_seed(0)
    function = _callable(name)
    assert function is not None
    operands: list[Any] = [torch.rand(2, 4, 3, 5) + 0.5, torch.rand(2, 4, 1, 1) + 0.5, torch.rand(2, 1, 3, 5) + 0.5]
    operands = operands[: _OPERANDS.get(name, 2)]
    if name in ("where", "masked_fill"):
        operands[1] = operands[1] > 1  # the condition
    if name in ("masked_fill", "threshold"):
        operands = [*operands[: 2 - (name == "threshold")], *[0.5] * (1 + (name == "threshold"))]
    if name in _NEEDS_INTEGERS:
        operands = [value > 1 for value in operands]
    sliced = [
        value.index_select(1, KEEP) if isinstance(value, Tensor) and value.shape[1] == 4 else value
        for value in operands
    ]
    result = function(*operands)
    torch.testing.assert_close(result.index_select(1, KEEP), function(*sliced), rtol=0, atol=0)
    assert (result.dtype == torch.bool) == (is_a(name, Trait.BOOLEAN) or name in _NEEDS_INTEGERS)


@pytest.mark.parametrize("name", functions(Trait.POOLING))
@pytest.mark.filterwarnings("ignore:.*upsample.* is deprecated:UserWarning")
def test_what_slices_the_channels_of_a_pooling_may_slice_its_input(name: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 4, 4, 4)
    function = getattr(F, name)
    extra = _EXTRA[name]
    torch.testing.assert_close(
        function(x, *extra).index_select(1, KEEP), function(x.index_select(1, KEEP), *extra), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", functions(Trait.KEEPS_ORDER))
def test_what_keeps_the_order_keeps_it_for_integers(name: str) -> None:
    x = torch.arange(120).reshape(2, 4, 3, 5)
    function = _callable(name)
    assert function is not None
    assert function(x, *_EXTRA.get(name, ())).flatten().tolist() == list(range(120))


@pytest.mark.parametrize("name", functions(Trait.PERMUTES))
def test_what_permutes_has_the_same_elements_and_says_where_it_reorders(name: str) -> None:
    shapes = {"t": (8, 15), "pixel_shuffle": (1, 4, 5, 6), "pixel_unshuffle": (1, 5, 4, 6)}
    x = torch.arange(120).reshape(shapes.get(name, (2, 4, 3, 5)))
    function = _callable(name)
    assert function is not None
    moved = function(x, *_EXTRA.get(name, ()))
    assert sorted(moved.flatten().tolist()) == list(range(120))
    axes = sorted(x.shape) == sorted(moved.shape) and any(
        torch.equal(x.permute(order), moved)
        for order in torch.cartesian_prod(*[torch.arange(x.dim())] * x.dim()).tolist()
        if len(set(order)) == x.dim()
    )
    assert axes != is_a(name, Trait.REORDERS)


class Given(Registry[Operator]):
    """A registry of operators by name."""

    def __init__(self, **operators: Operator) -> None:
        super().__init__("operator", "nowhere", "OPERATOR", Operator)
        object.__setattr__(self, "given", operators)

    def names(self) -> tuple[str, ...]:
        return tuple(self.given)  # type: ignore[attr-defined]

    def get(self, name: str, **_: Any) -> Operator:
        found: Operator = self.given[name]  # type: ignore[attr-defined]
        return found


def test_an_operator_adds_and_replaces_none() -> None:
    ours = (Operator(("relu",), Trait.POINTWISE),)
    more = Operator(("gated", "gated_too"), labels="pointwise")
    assert set(collected(ours, Given(gated=more))) == {"relu", "gated", "gated_too"}
    with pytest.raises(InputError, match="the operation 'relu' is known already") as caught:
        collected(ours, Given(mine=Operator(("relu",))))
    assert "operator 'mine'" in str(caught.value)
    with pytest.raises(InputError, match="'gated' is known already"):
        collected(ours, Given(one=more, other=Operator(("gated",))))


@pytest.mark.parametrize("nothing", [Operator(), "relu", None])
def test_an_operator_that_says_nothing_is_refused(nothing: Any) -> None:
    with pytest.raises(InputError, match="says nothing"):
        collected((), Given(mine=nothing))


def test_an_unknown_word_is_refused_with_the_nearest_one() -> None:
    known: dict[str, Callable[..., Any]] = {"elementwise": max, "movement": min}
    assert rule("", known, field="labels", name="gated") is None
    assert rule("movement", known, field="labels", name="gated") is min
    assert rule(sum, known, field="labels", name="gated") is sum
    with pytest.raises(InputError, match="the operator 'gated' names the unknown rule 'elementwis'") as caught:
        rule("elementwis", known, field="labels", name="gated")
    assert "did you mean 'elementwise'?" in caught.value.hint

"""Search: budgets are met, never exceeded, by what matters least; or refused with what can be had."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import BudgetError, InputError, InvariantError
from fxdistill.ir.budget import Limit, Size, limits_of
from fxdistill.ir.cost import cost_of
from fxdistill.ir.layers import Layer, Timing
from fxdistill.models import convnet
from fxdistill.passes.couple import Couple
from fxdistill.passes.thin import Removal, Thin, ThinSource
from fxdistill.passes.thin.blocks import Block, Importance
from fxdistill.passes.thin.search import TOLERANCE, Search, costs_of, pools
from fxdistill.passes.thin.stays import Stays
from fxdistill.passes.trace import Trace
from tests.tiny_models import SHAPE, Body, Classifier, conv_norm

IMAGE = (1, 3, 32, 32)


def both(scores: Tensor) -> Importance:
    return Importance(scores, scores)


class Basic(nn.Module):
    """Two stages of a ResNet."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_norm(3, width)
        self.inner, self.outer = conv_norm(width, width), nn.Conv2d(width, width, 3, padding=1)
        self.down, self.deep = nn.Conv2d(width, 2 * width, 1), conv_norm(width, 2 * width)
        self.last, self.head = nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        x = torch.relu(self.down(x) + self.last(self.deep(x)))
        return self.head(x.mean((2, 3)))


def inverted() -> nn.Module:
    """Inverted residuals, as in a MobileNet."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.second(x + m.first(x))  # type: ignore[no-any-return]

    def block(inputs: int, outputs: int) -> nn.Module:
        inside = 4 * inputs
        return nn.Sequential(
            conv_norm(inputs, inside), conv_norm(inside, inside, groups=inside), nn.Conv2d(inside, outputs, 1)
        )

    return Classifier(Body({"stem": conv_norm(3, 8), "first": block(8, 8), "second": block(8, 16)}, forward), 16)


def dense() -> nn.Module:
    """Each layer reads all before it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        values = [m.stem(x)]
        for layer in (m.one, m.two, m.three):
            values.append(layer(torch.cat(values, 1)))
        return torch.cat(values, 1)

    layers: dict[str, nn.Module] = {
        "stem": conv_norm(3, 12),
        "one": conv_norm(12, 8),
        "two": conv_norm(20, 8),
        "three": conv_norm(28, 8),
    }
    return Classifier(Body(layers, forward), 36)


def vgg() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 12), conv_norm(12, 16), nn.MaxPool2d(4), conv_norm(16, 24), nn.MaxPool2d(4), nn.Flatten(),
        nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {"resnet": Basic, "mobilenet": inverted, "densenet": dense, "vgg": vgg}


def made(name: str = "resnet") -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def size(module: nn.Module) -> Size:
    return Size(sum(p.numel() for p in module.parameters()), Trace(IMAGE)(module).value.macs)


def source(module: nn.Module) -> ThinSource:
    traced = Trace(IMAGE)(module).value
    return ThinSource(traced, Couple()(traced).value)


def thin(module: nn.Module, **options: Any) -> Removal:
    return Thin(**options)(source(module)).value


@pytest.mark.parametrize("ranking", ["global", "isomorphic", "uniform"])
@pytest.mark.parametrize("name", MODELS)
def test_half_the_macs_are_met_and_not_exceeded(name: str, ranking: Any) -> None:
    model = made(name)
    found = shrink_model(model, input_shape=IMAGE, limits=limits_of(macs=0.5), ranking=ranking)
    own, after = size(model).macs, size(found.module).macs
    assert 0.5 * own * (1 - TOLERANCE) <= after <= 0.5 * own
    assert found.after == size(found.module)


def test_parameters_numbers_and_both_at_once() -> None:
    model = made()
    own = size(model)
    half = thin(model, limits=limits_of(parameters=0.5)).size
    assert half is not None
    assert 0.98 * own.parameters <= 2 * half.parameters <= own.parameters
    assert thin(model, limits=limits_of(parameters=int(0.5 * own.parameters))).size == half
    both = thin(model, limits=limits_of(parameters=0.5, macs=0.3)).size
    assert both is not None
    assert both.parameters <= own.parameters / 2
    assert 0.98 * 0.3 * own.macs <= both.macs <= 0.3 * own.macs


def test_a_model_that_costs_something_else_than_was_counted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Thin.run

    def wrong(self: Thin, given: ThinSource) -> Any:
        result = right(self, given)
        size = result.value.size
        assert size is not None
        object.__setattr__(result.value, "size", Size(size.parameters, size.macs - 1))
        return result

    monkeypatch.setattr(Thin, "run", wrong)
    monkeypatch.setattr(Thin, "ensures", lambda *_args: None)
    with pytest.raises(InvariantError, match="were counted"):
        shrink_model(made(), input_shape=IMAGE, limits=limits_of(macs=0.5))


def test_a_removal_that_does_not_meet_the_budget_is_no_result() -> None:
    given = source(made())
    asked = Thin(limits=limits_of(macs=0.5))
    right, more = asked(given).value, Thin(limits=limits_of(macs=0.7))(given).value
    asked.ensures(given, right)
    for wrong in (more, Removal(right.removed, right.kept, right.widths, more.size)):
        with pytest.raises(InvariantError, match="the budget is not met"):
            asked.ensures(given, wrong)


def test_what_matters_least_goes_wherever_it_is() -> None:
    model = made()
    with torch.no_grad():
        model.inner[0].weight[4:] *= 1e-3  # type: ignore[index, union-attr]
    together = thin(model, limits=limits_of(macs=0.8), ranking="global").widths
    apart = thin(model, limits=limits_of(macs=0.8), ranking="uniform").widths
    assert together["inner.0"] == (16, 4)
    assert together["last"][1] > apart["last"][1]
    assert apart["inner.0"][1] > 10
    assert all(after < before for name, (before, after) in apart.items() if name != "head")
    assert thin(model, limits=limits_of(macs=0.8), ranking="global").kept["inner.0.weight"] == [0, 1, 2, 3]


def test_a_scale_of_a_whole_layer_does_not_matter() -> None:
    model = made()
    before = thin(model, limits=limits_of(macs=0.5)).kept
    with torch.no_grad():
        model.inner[0].weight *= 1e-3  # type: ignore[index, union-attr]
    assert thin(model, limits=limits_of(macs=0.5)).kept == before


def test_layers_alike_compete_with_each_other_alone() -> None:
    given = source(made("densenet"))
    stays = Stays(given.traced, given.coupling, (), ())
    blocks = [Block(tuple(m), 1, None) for m in stays.blocks.values()]
    assert pools(blocks, "global", given.coupling) == [[0, 1, 2, 3]]
    assert pools(blocks, "uniform", given.coupling) == [[0], [1], [2], [3]]
    # the stem is read by three layers and the head, the others by two, one and none of them
    assert len(pools(blocks, "isomorphic", given.coupling)) == 4
    given = source(Classifier(nn.Sequential(*(conv_norm(i, 8) for i in (3, 8, 8))), 8).eval())
    stays = Stays(given.traced, given.coupling, (), ())
    blocks = [Block(tuple(m), 1, None) for m in stays.blocks.values()]
    assert pools(blocks, "isomorphic", given.coupling) == [[0, 1], [2]]  # the last one is read by a dense layer
    search = Search(given.coupling, blocks, [[0, 1], [2]], both(torch.rand(given.coupling.class_count + 1)), frozen=())
    kept = search.targets(0.5)
    assert (kept[0] + kept[1], kept[2]) == (8, 4)


def test_what_a_loss_loses_competes_by_the_root_of_what_it_costs() -> None:
    given = source(Classifier(nn.Sequential(conv_norm(3, 2), conv_norm(2, 2)), 2).eval())
    blocks = [Block(tuple(m), 1, None) for m in Stays(given.traced, given.coupling, (), ()).blocks.values()]
    scores = torch.zeros(given.coupling.class_count + 1, dtype=torch.float64)
    for block, values in zip(blocks, ((8.0, 6.0), (3.5, 1.0)), strict=True):
        scores[list(block.classes)] = torch.tensor(values, dtype=torch.float64)

    def order(*costs: float) -> list[int]:
        return Search(given.coupling, blocks, [[0, 1]], both(scores), frozen=(), costs=costs or None).order[0]

    assert order(4.0, 1.0) == [0, 1, 0, 1]  # 8/2, 3.5, 6/2, 1
    assert order(1.0, 1.0) == [0, 0, 1, 1]
    assert order(0.0, 1.0)[:2] == [0, 0]  # what costs nothing need not go
    assert order() == [1, 0, 0, 1]  # 3.5/2.25, 8/7, 6/7, 1/2.25


def test_what_a_class_costs_is_what_the_model_is_cheaper_by_without_it() -> None:
    given = source(made())
    blocks = [Block(tuple(m), 1, None) for m in Stays(given.traced, given.coupling, (), ()).blocks.values()]
    cost = cost_of(given.traced, given.coupling, [i for block in blocks for i in block.classes])
    own, less = cost.spent_without(()), [cost.spent_without(block.classes[:1]) for block in blocks]
    macs, parameters = ([(own[n] - one[n]) / own[n] for one in less] for n in (1, 0))
    assert costs_of(blocks, limits_of(macs=0.5), cost) == macs
    assert costs_of(blocks, limits_of(parameters=0.5), cost) == parameters
    both = [max(one, other) for one, other in zip(macs, parameters, strict=True)]
    assert costs_of(blocks, limits_of(macs=0.5, parameters=0.5), cost) == both
    assert costs_of(blocks, [Limit("latency", 0.5)], cost) == macs
    assert 0 < min(macs) < max(macs) < 1


def test_no_layer_falls_below_its_floor() -> None:
    model = made()
    with torch.no_grad():
        model.inner[0].weight[2:] *= 1e-3  # type: ignore[index, union-attr]
    for floor, least in ((None, 2), (0.45, 8), (0.5, 8), (0.0, 2)):
        widths = thin(model, limits=limits_of(macs=0.7), floor=floor).widths
        assert widths["inner.0"][1] == least
        assert all(after >= (floor or 0) * before for before, after in widths.values())


def test_widths_are_multiples_under_a_budget() -> None:
    model = Basic(32).eval()
    widths = thin(model, limits=limits_of(macs=0.6), round_to=4).widths
    assert {after % 4 for name, (_, after) in widths.items() if name != "head"} == {0}
    with pytest.raises(InputError, match="no widths were found within 2% of the budget: the nearest below it have"):
        thin(model, limits=limits_of(macs=0.6), round_to=32, floor=0.0)


def chain(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(inputs, outputs, 3) for inputs, outputs in itertools.pairwise((3, *widths))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5)).eval()


@pytest.mark.parametrize(("multiple", "share"), [(8, 0.28), (8, 0.6), (16, 0.41), (16, 0.57)])
def test_a_layer_that_is_no_multiple_itself_loses_down_to_one(multiple: int, share: float) -> None:
    widths = thin(chain(20, 28, 44, 20), limits=limits_of(macs=share), round_to=multiple, roughly=True).widths
    assert all(after % multiple == 0 or after == before for before, after in widths.values())


def test_multiples_hold_in_every_layer_that_makes_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, groups=16), nn.Conv2d(32, 5, 1), nn.Flatten())
    widths = thin(model.eval(), keep=0.7, round_to=8).widths
    assert (widths["0"], widths["1"]) == ((16, 8), (32, 16))


def test_multiples_hold_where_a_time_is_looked_for_further_on() -> None:
    """What takes longer at 30 channels than at 32 is no reason for these where 6 are asked for."""

    def times(layer: Layer, inputs: int, outputs: int) -> float:
        return layer.macs(inputs, outputs) * (1.6 if outputs % 8 else 1.0)

    given = replace(source(chain(48, 60, 96, 72)), timing=Timing(times, 1.0))
    for share in (0.36, 0.54, 0.74, 0.76):
        widths = Thin(limits=(Limit("latency", share),), round_to=6, roughly=True)(given).value.widths
        assert all(after % 6 == 0 for before, after in widths.values() if before > 5), (share, widths)


class Grouped(nn.Module):
    """Widths of two layers each, in four and in eight groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.deep, self.last = nn.Conv2d(32, 48, 3, 2, 1, groups=2), nn.Conv2d(48, 48, 3, padding=1, groups=8)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = self.deep(x + self.inner(x))
        return self.head((x + self.last(x)).mean((2, 3)))


@pytest.mark.parametrize(("name", "share", "multiple"), [("groups", 0.5, 1), ("groups", 0.7, 1), ("two", 0.59, 4)])
def test_a_layer_may_give_much_for_another_one_to_come_near_a_budget(name: str, share: float, multiple: int) -> None:
    model = Grouped().eval() if name == "groups" else nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 5),
    ).eval()  # fmt: skip
    given, wanted = source(model), Thin(limits=limits_of(macs=share), round_to=multiple)
    found = wanted(given).value.size
    assert found is not None
    assert 0.98 * share <= found.macs / given.traced.macs <= share


def test_the_nearest_below_a_budget_will_do_where_it_is_a_step_of_several() -> None:
    traced = Trace(IMAGE)(Basic(32).eval()).value
    source = ThinSource(traced, Couple()(traced).value)
    wanted = Thin(limits=limits_of(macs=0.6), round_to=32, floor=0.0, roughly=True)
    result = wanted(source)
    assert [remark.code for remark in result.diagnostics][:1] == ["below-budget"]
    assert result.value.size is not None
    assert 0 < result.value.size.macs < 0.98 * 0.6 * traced.macs
    fine = replace(wanted, round_to=None)(source)  # finer multiples are preferred to that
    assert fine.value.size is not None
    assert 0.98 * 0.6 * traced.macs <= fine.value.size.macs


def test_widths_near_a_budget_are_found_where_several_layers_have_to_give() -> None:
    model = convnet(widths=[16, 32], hidden=32).eval()
    for share in (0.97, 0.95):
        traced = Trace((1, 1, 8, 8))(model).value
        found = Thin(limits=limits_of(macs=share), round_to=1)(ThinSource(traced, Couple()(traced).value)).value.size
        assert found is not None
        assert (1 - TOLERANCE) * share <= found.macs / traced.macs <= share


@pytest.mark.parametrize(
    ("width", "share", "multiple", "refused"),
    [(64, 0.5, 8, ()), (24, 0.7, 4, ()), (24, 0.9, 2, (4,)), (12, 0.9, 1, (2,))],
)
def test_without_a_word_widths_are_the_largest_multiples_that_meet_a_budget(
    width: int, share: float, multiple: int, refused: tuple[int, ...]
) -> None:
    """Of those up to an eighth of the mean width, which is one and a half times the stem's."""
    model, limits = Basic(width).eval(), limits_of(macs=share)
    assert thin(model, limits=limits, round_to=None) == thin(model, limits=limits, round_to=multiple)
    for coarser in refused:
        with pytest.raises(BudgetError):
            thin(model, limits=limits, round_to=coarser)
    assert thin(model, keep=0.7, round_to=None) == thin(model, keep=0.7)


def test_a_part_has_a_share_of_its_own() -> None:
    model = made()
    widths = thin(model, limits=limits_of(macs=0.6), scopes=(("inner", 0.25), ("stem", 1.0))).widths
    assert (widths["inner.0"], widths["stem.0"], widths["outer"]) == ((16, 4), (16, 16), (16, 16))
    alone = thin(model, scopes=(("inner", 0.25),)).widths
    assert {name for name, (before, after) in alone.items() if before != after} == {"inner.0"}
    inner = thin(model, keep=0.5, scopes=(("deep", 1.0), ("deep.0", 0.25))).widths  # the innermost one holds
    assert (inner["deep.0"], inner["inner.0"]) == ((32, 8), (16, 8))
    rounded = thin(Classifier(conv_norm(3, 12), 12).eval(), scopes=(("body", 0.5),), round_to=8).widths
    assert rounded["body.0"] == (12, 8)
    with pytest.raises(InputError, match="changes nothing"):
        thin(Classifier(conv_norm(3, 12), 12).eval(), keep=0.5, scopes=(("body", 1.0),), round_to=8)


class Joined(nn.Module):
    """Channels of two layers, divided into groups across both."""

    def __init__(self, one: int, other: int, groups: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, one, 1), nn.Conv2d(3, other, 1)
        self.both, self.head = nn.Conv2d(one + other, 8 * groups, 1, groups=groups), nn.Linear(8 * groups, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.both(torch.cat([self.one(x), self.other(x)], 1)).mean((2, 3)))


def test_a_part_that_keeps_all_keeps_it_where_counts_are_equal_too() -> None:
    grouped = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=2), nn.Conv2d(12, 32, 1)).eval()
    widths = thin(nn.Sequential(grouped, nn.Conv2d(32, 4, 1)), keep=0.5, scopes=(("0.0", 1.0),), round_to=8).widths
    assert (widths["0.0"], widths["0.2"]) == ((12, 12), (32, 16))
    joined = Joined(12, 20, 4).eval()
    for scopes in ((("one", 1.0),), (("one", 1.0), ("other", 1.0))):
        widths = thin(joined, keep=0.5, scopes=scopes, round_to=8).widths
        assert (widths["one"], widths["both"]) == ((12, 12), (32, 16))


def test_what_nobody_asked_for_is_not_rounded() -> None:
    widths = thin(Joined(12, 20, 4).eval(), scopes=(("both", 0.5),), round_to=8).widths
    assert (widths["one"], widths["other"], widths["both"]) == ((12, 12), (20, 20), (32, 16))


def test_a_layer_narrower_than_a_multiple_does_not_take_it_from_those_tied_to_it() -> None:
    widths = thin(Joined(6, 26, 4).eval(), keep=0.5, round_to=8).widths
    assert (widths["one"], widths["other"]) == ((6, 4), (26, 16))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limits": limits_of(macs=10)}, "10 MACs cannot be met: with the fewest channels that a layer may have there"),
        ({"limits": limits_of(macs=10**9)}, "the model has no more than"),
        ({"limits": limits_of(parameters=10**9, macs=0.5)}, "parameters, and 1,000,000,000 are allowed"),
        ({"limits": limits_of(macs=0.0)}, "0.0 is no budget"),
        ({"limits": limits_of(macs=-1)}, "-1 is no budget"),
        ({"limits": limits_of(macs=float("nan"))}, "nan is no budget"),
        ({"limits": limits_of(macs=float("inf"))}, "inf is no budget"),
        ({"limits": limits_of(macs=1.5)}, "1.5 is no budget"),
        ({"limits": limits_of(macs=0.5), "keep": 0.5}, "both --macs and --keep say how much to keep"),
        ({"limits": limits_of(macs=0.5), "widths": (("stem", 4),)}, "both --macs and widths"),
        ({"limits": limits_of(macs=0.5), "round_to": 64}, "no layer may have fewer than it has"),
        ({"limits": limits_of(parameters=0.5), "floor": 0.99}, "to do: lower --floor, or"),
        ({"limits": limits_of(macs=0.9), "scopes": (("deep", 0.1), ("inner", 0.1))}, "leaves less than the budget"),
        ({"scopes": (("head", 0.5),)}, "nothing that can be removed is made by 'head'"),
        ({"scopes": (("inner", 1.5),)}, "the share of 'inner' to keep is 1.5"),
        ({"scopes": (("inner", float("nan")),)}, "the share of 'inner' to keep is nan"),
        ({"scopes": (("relu", 1.0),)}, "'relu' has no weights"),
        ({"keep": 0.5, "only": ("inner", "relu")}, "'relu' has no weights"),
        ({"scopes": (("nowhere", 0.5),)}, "no node or module has the path 'nowhere'"),
        ({"limits": limits_of(macs=0.5), "floor": 1.0}, "1.0 is no share"),
        ({"keep": 0.5, "ranking": "best"}, "there is no ranking named 'best'"),
        ({"scopes": (("inner", 0.5),), "ranking": "global"}, "--ranking is about what competes"),
        ({"scopes": (("inner", 0.5),), "floor": 0.2}, "--floor is about what competes"),
        ({}, "nothing says how much to keep"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        thin(made(), **options)
    assert said in str(error.value)


def test_parameters_that_nothing_reads_stay_and_count() -> None:
    model = made()
    model.unused, model.alone = nn.Linear(40, 40), nn.Parameter(torch.zeros(100))
    found = shrink_model(model, input_shape=IMAGE, limits=limits_of(parameters=0.7))
    own = size(model).parameters
    assert found.before.parameters == own
    assert 0.98 * 0.7 * own <= size(found.module).parameters <= 0.7 * own


def test_where_everything_stays_it_says_why() -> None:
    with pytest.raises(InputError, match="is protected by 'inner'"):
        thin(made(), limits=limits_of(macs=0.5), protect=("stem", "inner", "outer", "down", "deep", "last"))


@pytest.mark.parametrize("options", [{}, {"scopes": (("inner", 0.5),), "only": ("inner",)}])
def test_the_least_that_is_named_can_be_had(options: dict[str, Any]) -> None:
    """Also where it is the most as well, for a part has a share."""
    model = made()
    with pytest.raises(InputError) as error:
        thin(model, limits=(Limit("macs", 10, "--macs"),), **options)
    least = int(str(error.value).partition("there are ")[2].split(" ")[0].replace(",", ""))
    found = thin(model, limits=limits_of(macs=least), **options)
    assert found.size is not None
    assert found.size.macs == least
    with pytest.raises(InputError, match="cannot be met"):
        thin(model, limits=limits_of(macs=least - 1), **options)


def test_a_layer_of_which_the_criterion_says_nothing_is_not_the_first_to_go() -> None:
    removal = Thin(limits=limits_of(macs=0.6), criterion="bn")(source(made())).value
    assert removal.widths["down"][1] > 16  # 'down' and 'last' have no batch norm


def test_equal_counts_hold_under_a_budget() -> None:
    net = Classifier(nn.Sequential(conv_norm(3, 16), conv_norm(16, 24, groups=4), conv_norm(24, 16)), 16).eval()
    traced = Trace(SHAPE)(net).value
    removal = Thin(limits=limits_of(macs=0.5))(ThinSource(traced, Couple()(traced).value)).value
    assert removal.size is not None
    assert 0.98 * traced.macs_of_image <= 2 * removal.size.macs <= traced.macs_of_image


def test_a_budget_of_a_model_that_is_taken_apart_first() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.layer(m.stem(x).flatten(2).transpose(1, 2)).mean(1))  # type: ignore[no-any-return]

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    layers = {"stem": nn.Conv2d(3, 16, 4, stride=4), "layer": layer, "head": nn.Linear(16, 5)}
    found = shrink_model(Body(layers, forward).eval(), input_shape=SHAPE, limits=limits_of(macs=0.5))
    assert found.rung == "export"
    assert 0.98 * found.before.macs <= 2 * found.after.macs <= found.before.macs

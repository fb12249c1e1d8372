"""Mask: equation 5 of the cascade in numbers, what is kept, and what the gates leave for `shrink` to cut."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from fxdistill.errors import InputError, InvariantError
from fxdistill.ir import masks
from fxdistill.ir.budget import What
from fxdistill.ir.cost import cost_of
from fxdistill.ir.graph import Traced
from fxdistill.models import vgg
from fxdistill.passes.couple import Couple
from fxdistill.passes.mask import Mask, MaskSource, kept_of, unmasked
from fxdistill.passes.mask.maskable import maskable
from fxdistill.passes.shrink import Shrink, ShrinkSource
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Rung
from tests import tiny_models
from tests.tiny_models import SHAPE, conv_norm


def source(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> MaskSource:
    traced = Trace(shape)(model.eval()).value
    return MaskSource(traced, Couple()(traced).value)


def by_hand() -> nn.Module:
    """A first convolution, one of two filters, and what reads them; 1x1, without biases."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
    )
    for layer, weight in zip(model.parameters(), ([[1.0]], [[2.0], [3.0]], [[5.0, 7.0]]), strict=True):
        layer.data = torch.tensor(weight).view(layer.shape)
    return model


def scored(made: Traced, *, own: list[float], riding: list[float]) -> fx.GraphModule:
    module = made.module
    module.get_parameter("masks.scores").data = torch.tensor(own)
    module.get_parameter("masks.riding").data = torch.tensor(riding)
    return module


IMAGES = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2)
"""Two images of two positions."""


def test_equation_5_by_hand() -> None:
    """Y = (2x, 3x), both let through as (1, 0); the answer is 5 Y_0 = 10 x, the loss half the sum of its squares.

    dL/dY is the answer times (5, 7); so the scores below get sum(10 x * 5 * 2x) and sum(10 x * 7 * 3x), with
    sum(x * x) = 30, whatever they are themselves.
    """
    made = Mask(count=1, rides=True)(source(by_hand(), (2, 1, 1, 2))).value
    module = scored(made, own=[1.0, 0.5], riding=[0.3, -8.0])
    answer = module(IMAGES)
    assert torch.equal(answer, 10 * IMAGES)
    (answer.square().sum() / 2).backward()
    moved = module.get_parameter("masks.riding").grad
    assert moved is not None
    assert moved.tolist() == [100.0 * 30, 210.0 * 30]
    assert module.get_parameter("masks.scores").grad is None  # its own gradient says nothing about it


def test_a_filter_that_is_masked_moves_and_without_the_riding_term_it_does_not() -> None:
    made = Mask(count=1, rides=True)(source(by_hand(), (2, 1, 1, 2))).value
    module = scored(made, own=[1.0, 0.5], riding=[1.0, 0.0])  # the second filter is masked here and below
    for node in module.graph.nodes:
        if node.target is masks.ride:
            node.target = lambda mask, scores: mask + 0 * scores.detach()
    module.recompile()
    answer = module(IMAGES).square().sum()
    answer.backward()
    assert module.get_parameter("masks.riding").grad is None


def test_riding_scores_change_no_bit_of_the_answer() -> None:
    made = Mask(count=None, rides=True)(source(tiny_models.plain().eval())).value
    made.module.get_parameter("masks.riding").data.uniform_(-1e6, 1e6)
    images = torch.randn(SHAPE)
    torch.manual_seed(0)
    assert torch.equal(made.module(images), unmasked(made.module)(images))


def test_a_gate_sorts_nothing_on_the_way_back() -> None:
    """On a GPU the gradient of an index in brackets is a dozen kernels, for each layer of each level."""
    value, factors = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 2.0], requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
        masks.gate(value, factors, torch.tensor([1, -1, 0]), 1).sum().backward()
    sums = value.sum((0, 2, 3))
    torch.testing.assert_close(factors.grad, torch.stack([sums[2], sums[0]]))
    names = {event.key for event in seen.key_averages()}
    assert "aten::index_add_" in names
    assert not names & {"aten::index_put_", "aten::_index_put_impl_", "aten::sort"}


def test_as_many_as_asked_are_kept_over_all_layers_and_of_each_one() -> None:
    layers = torch.tensor([[0, 1, 2], [3, 4, 3]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.2])
    assert masks.threshold(scores, layers, 3).tolist() == [1, 1, 0, 0, 1]  # the best of the second layer stays
    assert masks.threshold(scores, layers, 5).tolist() == [1] * 5
    assert masks.threshold(torch.zeros(5), layers, 3).tolist() == [1, 1, 0, 1, 0]  # of equals the first ones
    above = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    assert masks.threshold(scores, layers, 3, above).tolist() == [0, 1, 1, 1, 0]


def test_by_layer_each_layer_keeps_the_same_share_of_its_own_best() -> None:
    """Of three, the second and the third best stand at 3/6 and 5/6; of two, the second at 3/4."""
    layers = torch.tensor([[0, 1, 2], [3, 4, 3]])
    scores = torch.tensor([0.9, 0.7, 0.8, 0.1, 0.2])
    assert masks.ranked(scores, layers, by_layer=True).tolist() == [0, 4, 2, 3, 1]
    assert masks.threshold(scores, layers, 4, by_layer=True).tolist() == [1, 0, 1, 1, 1]
    assert masks.threshold(scores, layers, 4).tolist() == [1, 1, 1, 0, 1]
    moved = scores + torch.tensor([5.0, 5.0, 5.0, 0.0, 0.0])  # a layer as a whole
    assert masks.threshold(moved, layers, 4, by_layer=True).tolist() == [1, 0, 1, 1, 1]
    assert masks.threshold(torch.zeros(5), layers, 3, by_layer=True).tolist() == [1, 1, 0, 1, 0]
    above = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    assert masks.threshold(scores, layers, 3, above, by_layer=True).tolist() == [0, 1, 1, 1, 0]
    single = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]])  # the only one at 1/2, and two at 1/8 and 3/8
    assert masks.threshold(scores, single, 2, by_layer=True).tolist() == [1, 0, 1, 0, 0]
    wide = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 5, 5, 5]])  # the fourth at 7/10 goes before the second of two at 3/4
    assert masks.threshold(-torch.arange(7.0), wide, 5, by_layer=True).tolist() == [1, 1, 1, 1, 0, 1, 0]
    mixed = torch.tensor([[0, 2, 4], [1, 3, 1]])  # layers need not lie one behind the other
    assert masks.ranked(scores, mixed, by_layer=True).tolist() == [0, 1, 2, 3, 4]


def test_in_multiples_a_layer_keeps_its_best_in_bundles_that_compete_by_their_mean() -> None:
    """Of the first layer {0, 2}, {4, 3} with mean 0.4, {1}; of the second {6, 7}, {5} with 0.45."""
    layers = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 5, 5]])
    scores = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.6, 0.45, 0.7, 0.5])
    order = masks.ranked(scores, layers, multiple=2)
    assert order.tolist() == [0, 2, 6, 7, 5, 4, 3, 1]
    assert masks.whole(order, layers, 2).tolist() == [2, 2, 4, 4, 5, 7, 7, 8]
    assert masks.ranked(scores, layers, by_layer=True, multiple=2).tolist() == [0, 2, 6, 7, 4, 3, 5, 1]
    for count, kept in ((4, {0, 2, 6, 7}), (6, {0, 2, 5, 6, 7}), (7, {0, 2, 3, 4, 5, 6, 7})):
        assert set(masks.threshold(scores, layers, count, multiple=2).nonzero().flatten().tolist()) == kept
    above = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0])  # of the second layer the last bundle is gone
    assert masks.threshold(scores, layers, 5, above, multiple=2).tolist() == [1, 0, 1, 0, 0, 0, 1, 1]
    assert masks.threshold(scores, layers, 8, above, multiple=2).tolist() == above.tolist()


def test_centred_gradients_are_less_their_mean_over_the_layer_and_the_value_is_the_mask() -> None:
    layers = torch.tensor([[0, 1, 2], [3, 4, 3]])
    mask, values = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]), torch.tensor([2.0, 5.0, -1.0, 4.0, 6.0])
    for own, sums in ((mask, 7.0), (None, 16.0)):
        scores = torch.tensor([0.3, 1e6, -0.9, 0.1, 7.0], requires_grad=True)
        answer = (masks.ride(own, scores, layers) * values).sum()
        assert answer.item() == sums
        answer.backward()
        torch.testing.assert_close(scores.grad, torch.tensor([0.0, 3.0, -3.0, -1.0, 1.0]))


@pytest.mark.parametrize("count", [None, 1])
def test_equation_5_centred_by_hand(count: int | None) -> None:
    """The sums of :func:`test_equation_5_by_hand` less their mean, through the gates of a level."""
    made = Mask(count=count, rides=True, centred=True)(source(by_hand(), (2, 1, 1, 2))).value
    if count is not None:
        made.module.get_parameter("masks.scores").data = torch.tensor([1.0, 0.5])
    answer = made.module(IMAGES)  # 10 x; where nothing is masked 5 * 2x + 7 * 3x
    assert torch.equal(answer, (10 if count else 31) * IMAGES)
    (answer.square().sum() / 2).backward()
    moved = made.module.get_parameter("masks.riding").grad
    assert moved is not None
    slopes = [answer.flatten()[0].item() * one * 30 for one in (10.0, 21.0)]
    assert moved.tolist() == [(slopes[0] - slopes[1]) / 2, (slopes[1] - slopes[0]) / 2]


@pytest.mark.parametrize("what", ["macs", "parameters"])
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("multiple", [1, 3])
def test_a_budget_is_spent_and_never_exceeded(by_layer: bool, multiple: int, what: What) -> None:
    torch.manual_seed(0)
    given = source(bottleneck() if by_layer else tiny_models.residual())
    found = maskable(given.traced, given.coupling)
    cost = cost_of(given.traced, given.coupling, found.classes)
    least = masks.threshold(
        torch.ones(len(found.classes)), found.positions, found.least(multiple), by_layer=by_layer, multiple=multiple
    )
    low, high = (getattr(cost.of(mask), what) for mask in (least, torch.ones(len(found.classes))))
    for limit in (low, *range((2 * low + high) // 3, high, (high - low) // 7), high - 1):
        made = Mask(limit=(what, limit), by_layer=by_layer, multiple=multiple)(given).value
        scores = torch.rand(len(found.classes))
        made.module.get_parameter("masks.scores").data = scores
        kept = kept_of(made.module)
        assert getattr(cost.of(kept), what) <= limit
        order = masks.ranked(scores, found.positions, by_layer=by_layer, multiple=multiple)
        left = [place for place in order.tolist() if not kept[place]]
        owner = {place: number for number, row in enumerate(found.positions.tolist()) for place in row}
        nexts = {owner[place]: [one for one in left if owner[one] == owner[place]][:multiple] for place in left}
        for more in [nexts[owner[left[0]]]] if by_layer else nexts.values():  # no layer can have another bundle
            assert getattr(cost.of(kept.index_fill(0, torch.tensor(more), 1)), what) > limit


def test_where_one_does_not_fit_its_layer_ends_and_others_go_on() -> None:
    layers = torch.tensor([[0, 1, 2], [3, 4, 5]])
    price = torch.tensor([5.0, 5.0, 5.0, 1.0, 1.0, 1.0], dtype=torch.double)
    counts, rows = torch.cat([price[None], torch.zeros(1, 6)]), torch.tensor([[0, 1]])
    fixed, weights = torch.tensor([0.0, 1.0], dtype=torch.double), torch.ones(1, dtype=torch.double)
    scores = torch.tensor([0.9, 0.8, 0.5, 0.7, 0.6, 0.4])
    found = {
        limit: masks.affordable(scores, layers, counts, fixed, rows, weights, limit).tolist() for limit in (6, 8, 12)
    }
    assert found[6] == [1, 0, 0, 1, 0, 0]
    assert found[8] == [1, 0, 0, 1, 1, 1]  # the second of the first layer costs too much
    assert found[12] == [1, 1, 0, 1, 1, 0]


def one_each(positions: Tensor) -> Tensor:
    return torch.zeros(int(positions.max()) + 1).index_fill(0, positions[:, 0], 1)


def bottleneck(width: int = 8) -> nn.Module:
    """An inverted residual: expanded, depthwise, projected without an activation, added."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.second(m.stem(x))
        out: Tensor = x + m.project(m.depthwise(m.expand(x)))
        return out

    layers = {
        "stem": conv_norm(3, width), "second": nn.Conv2d(width, width, 1), "expand": conv_norm(width, 2 * width),
        "depthwise": conv_norm(2 * width, 2 * width, groups=2 * width),
        "project": nn.Sequential(nn.Conv2d(2 * width, width, 1, bias=False), nn.BatchNorm2d(width)),
    }  # fmt: skip
    return tiny_models.Classifier(tiny_models.Body(layers, forward), width)


def concatenated(width: int = 8) -> nn.Module:
    """Each layer reads all before it, as in a DenseNet."""

    def forward(m: Any, x: Tensor) -> Tensor:
        one = m.stem(x)
        two = m.two(torch.relu(m.norm(one)))
        three = m.three(torch.cat([one, two], 1))
        return torch.cat([one, two, three], 1)

    layers = {
        "stem": conv_norm(3, width), "norm": nn.BatchNorm2d(width), "two": conv_norm(width, width),
        "three": conv_norm(2 * width, width),
    }  # fmt: skip
    return tiny_models.Classifier(tiny_models.Body(layers, forward), 3 * width)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "plain": (tiny_models.plain, ["body.1.0"]), "residual": (tiny_models.residual, ["body.first"]),
    "dense": (concatenated, ["body.two.0", "body.three.0"]), "excited": (tiny_models.excited, ["body.gate.0"]),
    "depthwise": (bottleneck, ["body.second", "body.expand.0"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_is_masked_can_be_cut_and_costs_what_was_counted(name: str) -> None:
    torch.manual_seed(0)
    model, layers = MODELS[name]
    given = source(model())
    found = maskable(given.traced, given.coupling)
    made = Mask(count=len(found.classes) // 2, rides=True)(given).value
    assert [layer.name for layer in found.layers] == layers
    made.module.get_parameter("masks.scores").data = torch.rand(len(found.classes))
    kept = kept_of(made.module)
    gone = frozenset(i for i, alive in zip(found.classes, kept.tolist(), strict=True) if not alive)
    small = Shrink()(ShrinkSource(given.traced, given.coupling, gone)).value.module
    images = torch.randn(4, *SHAPE[1:])
    torch.testing.assert_close(small(images), made.module(images), rtol=1e-4, atol=1e-5)
    cut = Trace(SHAPE)(small).value
    counted = cost_of(given.traced, given.coupling, found.classes).of(kept)
    assert counted == (sum(p.numel() for p in small.parameters()), cut.macs_of_image)


class Gain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width, 1, 1, 1) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain


def gained(conv: nn.Module) -> nn.Module:
    parametrize.register_parametrization(conv, "weight", Gain(8))
    return conv


def identity(conv: nn.Module) -> nn.Module:
    prune.identity(conv, "weight")
    return conv


def computed(wrap: Callable[[nn.Module], nn.Module], *, residual: bool) -> nn.Module:
    """A layer whose weight is computed; what it reads is what it makes, or is not."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.second(m.stem(x))
        out = F.relu(m.conv(x))
        return m.last(x + out if residual else out)

    torch.manual_seed(0)
    layers = {"stem": conv_norm(3, 8), "second": conv_norm(8, 8), "conv": wrap(nn.Conv2d(8, 8, 3, padding=1)),
              "last": conv_norm(8, 8)}  # fmt: skip
    return tiny_models.Classifier(tiny_models.Body(layers, forward), 8)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("wrap", "rung", "makes"),
    [
        *((gained, rung, True) for rung in ("symbolic", "export")),
        *((parametrizations.weight_norm, rung, True) for rung in ("symbolic", "export")),
        *((parametrizations.spectral_norm, rung, False) for rung in ("symbolic", "export")),
        (identity, "export", True),  # as a hook it is an obstacle to cutting
    ],
)
def test_what_computed_weights_read_is_not_masked_and_what_they_make_where_it_can_be_cut(
    wrap: Callable[[nn.Module], nn.Module], rung: Rung, makes: bool, residual: bool
) -> None:
    traced = Trace(SHAPE, rungs=(rung,))(computed(wrap, residual=residual).eval()).value
    given = MaskSource(traced, Couple()(traced).value)
    found = given.found
    assert len(found.layers) == (2 if makes and not residual else 1)
    made = Mask(count=len(found.classes) // 2, rides=True)(given).value
    made.module.get_parameter("masks.scores").data = torch.rand(len(found.classes))
    kept = kept_of(made.module)
    gone = frozenset(i for i, alive in zip(found.classes, kept.tolist(), strict=True) if not alive)
    small = Shrink()(ShrinkSource(traced, given.coupling, gone)).value.module
    images = torch.randn(4, *SHAPE[1:])
    torch.testing.assert_close(small(images), made.module(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_what_one_weight_makes_and_reads_is_not_masked(transposed: bool) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        out = F.relu(F.conv2d(m.second(m.stem(x)), m.weight))
        back = F.conv2d(out, m.weight.transpose(0, 1)) if transposed else F.conv_transpose2d(out, m.weight)
        return m.last(back)

    body = tiny_models.Body({"stem": conv_norm(3, 8), "second": conv_norm(8, 8), "last": conv_norm(8, 8)}, forward)
    body.weight = nn.Parameter(torch.randn(6, 8, 1, 1))
    given = source(tiny_models.Classifier(body, 8))
    assert [layer.name for layer in given.found.layers] == ["body.last.0"]
    assert "made and read by the same weight" in next(r.why for r in given.found.remarks if r.where == "body")
    Mask(count=4)(given)


def test_channels_that_are_coupled_have_one_score_and_a_gate_at_each_reader() -> None:
    given = source(bottleneck())
    found = maskable(given.traced, given.coupling)
    readers = [str(edge.reader.target) for edge in found.edges]
    assert readers == ["body.expand.0", "body.project.0", "head"]  # not the depthwise one, which acts on each alone
    assert [len(layer.classes) for layer in found.layers] == [8, 16]


def test_why_channels_are_not_masked_is_said() -> None:
    given = source(tiny_models.residual())
    said = {remark.where: remark.why for remark in maskable(given.traced, given.coupling).remarks}
    assert said == {
        "body.stem.0": "its channels stay: one is made by 'body.stem.0', the first convolution, which stays whole",
        "body.second.0": "its channels stay: one is made by 'body.stem.0', the first convolution, which stays whole",
        "head": "its channels stay: one is the network's output at 'output'",
    }
    with pytest.raises(InputError, match="no channels that can be masked"):
        Mask(count=1)(source(tiny_models.shared()))


def test_the_first_convolution_is_masked_where_that_is_wanted_and_what_is_coupled_with_it() -> None:
    given = replace(source(tiny_models.residual()), first=True)
    made = Mask(count=len(given.found.classes) // 2, rides=True)(given).value
    assert "body.stem.0" in [layer.name for layer in given.found.layers]
    assert not any("first convolution" in remark.why for remark in given.found.remarks)
    made.module.get_parameter("masks.scores").data = torch.linspace(0.0, 1.0, len(given.found.classes))
    kept = kept_of(made.module)
    gone = frozenset(i for i, alive in zip(given.found.classes, kept.tolist(), strict=True) if not alive)
    small = Shrink()(ShrinkSource(given.traced, given.coupling, gone)).value.module
    assert small.get_parameter("body.stem.0.weight").shape[0] < 8
    images = torch.randn(4, *SHAPE[1:])
    torch.testing.assert_close(small(images), made.module(images), rtol=1e-4, atol=1e-5)


def summed(width: int = 8) -> nn.Module:
    """Channels that are summed without weights: zeros in their place are not what is left without them."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.mid(m.stem(x))
        out: Tensor = x * x.sum(1, keepdim=True)
        return out

    return tiny_models.Classifier(
        tiny_models.Body({"stem": conv_norm(3, width), "mid": conv_norm(width, width)}, forward), width
    )


def grouped(width: int = 8) -> nn.Module:
    body = nn.Sequential(conv_norm(3, width), conv_norm(width, width), conv_norm(width, width, groups=2))
    return tiny_models.Classifier(body, width)


def normalised(width: int = 8) -> nn.Module:
    body = nn.Sequential(conv_norm(3, width), nn.Conv2d(width, width, 1), nn.GroupNorm(1, width))
    return tiny_models.Classifier(body, width)


@pytest.mark.parametrize(
    ("model", "why"), [(summed, "without a weight"), (grouped, "equal counts"), (normalised, "statistic over channels")]
)
def test_what_is_read_otherwise_than_by_weights_is_not_masked(model: Callable[[], nn.Module], why: str) -> None:
    given = source(model())
    remarks = maskable(given.traced, given.coupling).remarks
    assert any(why in remark.why for remark in remarks if remark.where.startswith("body."))
    assert len(maskable(given.traced, given.coupling).classes) in (0, 8)  # of the grouped one the last layer


def test_vgg16_costs_what_is_published() -> None:
    model = vgg()
    given = source(model, (1, 3, 32, 32))
    found = maskable(given.traced, given.coupling)
    assert (len(found.layers), len(found.classes)) == (12, 4160)
    parameters, macs = cost_of(given.traced, given.coupling, found.classes).of(torch.ones(4160))
    norms = sum(p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert (macs, parameters - norms) == (313_463_808, 14_982_474)  # 313 M and 14.98 M


def with_wrong(made: Traced, change: Callable[[fx.GraphModule], None]) -> Traced:
    change(made.module)
    made.module.recompile()
    return made


def _shut(module: fx.GraphModule) -> None:
    module.get_submodule("masks").index_0 = module.get_buffer("masks.index_0").roll(1)


def _one_more(module: fx.GraphModule) -> None:
    node = next(node for node in module.graph.nodes if node.target is masks.threshold)
    node.args = (*node.args[:2], node.args[2] + 1, *node.args[3:])


def _renamed(module: fx.GraphModule) -> None:
    node = next(node for node in module.graph.nodes if node.op == "call_module")
    node.target = "body.1.0"


@pytest.mark.parametrize("change", [_shut, _one_more, _renamed])
def test_a_wrong_result_is_refused(change: Callable[[fx.GraphModule], None]) -> None:
    torch.manual_seed(0)
    given = source(tiny_models.plain())
    step = Mask(count=5)
    made = step(given).value
    wrong = with_wrong(made, change)

    def check() -> None:
        step.ensures(given, wrong)
        step.proves(given, wrong)

    with pytest.raises((InvariantError, RuntimeError)):
        check()


def test_shares_that_leave_a_layer_without_channels_are_refused() -> None:
    with pytest.raises(InputError, match="1 channels are to be kept of 24 in 2 layers, of which none may lose all"):
        Mask(count=1)(source(bottleneck()))

"""What is counted of a smaller model without building it is what it has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.errors import InputError
from fxdistill.ir import cost as costs
from fxdistill.ir.budget import Limit, Size, check_limit
from fxdistill.ir.cost import Cost, cost_of
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced
from fxdistill.ir.survivors import Survivors
from fxdistill.passes.couple import Couple
from fxdistill.passes.shrink import shrink
from fxdistill.passes.thin.blocks import Block, Importance
from fxdistill.passes.thin.search import Search, pools
from fxdistill.passes.thin.stays import Stays
from fxdistill.passes.trace import Trace
from tests import tiny_models
from tests.tiny_models import SHAPE, Body, Classifier, conv_norm


def both(scores: Tensor) -> Importance:
    return Importance(scores, scores)


def grouped() -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(3, 8), conv_norm(8, 12, groups=4), conv_norm(12, 8, groups=2)), 8)


def multiplied_depthwise() -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(3, 4), nn.Conv2d(4, 12, 3, groups=4), conv_norm(12, 8)), 8)


def transposed() -> nn.Module:
    return Classifier(
        nn.Sequential(conv_norm(3, 8), nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), conv_norm(12, 8)), 8
    )


def flattened() -> nn.Module:
    return nn.Sequential(conv_norm(3, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 5))


def tokens(attend: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """Two heads of attention over pixels, then a layer over pixels that acts on each channel alone."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.norm(m.stem(x).flatten(2).transpose(1, 2))
        x = x + attend(m, x)
        x = x + m.over(x.transpose(1, 2)).transpose(1, 2)
        return m.head(m.inside(x).relu().mean(1))  # type: ignore[no-any-return]

    layers = {
        "stem": nn.Conv2d(3, 8, 2, stride=2), "norm": nn.LayerNorm(8), "mixed": nn.Linear(8, 24),
        "out": nn.Linear(8, 8), "over": nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 16)),
        "inside": nn.Linear(8, 10), "head": nn.Linear(10, 5),
    }  # fmt: skip
    return Body(layers, forward)


def _heads(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    batch, count, _ = x.shape
    split = m.mixed(x).reshape(batch, count, 3, 2, -1).permute(2, 0, 3, 1, 4)
    return split[0], split[1], split[2]


def fused(m: Any, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def multiplied(m: Any, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    return m.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def over_channels(m: Any, x: Tensor) -> Tensor:
    q, k, v = (one.transpose(-2, -1) for one in _heads(m, x))
    made = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return m.out(made.permute(0, 3, 1, 2).flatten(2))  # type: ignore[no-any-return]


def summed(m: Any, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    weights = torch.einsum("b h i d, b h j d -> b h i j", q, k).softmax(-1)
    return m.out(torch.einsum("bhij,bhjd->bhid", [weights, v]).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def numbered(m: Any, x: Tensor) -> Tensor:
    return torch.einsum(x, [0, 1, 2], m.out.weight, [3, 2], [0, 1, 3])


def by_name(m: Any, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    x = F.scaled_dot_product_attention(value=v, key=k, query=q).transpose(1, 2).flatten(2)
    x = F.linear(weight=m.out.weight, input=x)
    weights = torch.bmm(x, mat2=m.out(input=x).transpose(1, 2)).softmax(-1)
    return torch.matmul(other=x, input=weights)


def called_by_name() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.conv2d(weight=m.one.weight, input=m.stem(x)).relu()
        return m.two(input=x)  # type: ignore[no-any-return]

    layers = {"stem": conv_norm(3, 8), "one": nn.Conv2d(8, 6, 1), "two": nn.Conv2d(6, 8, 1)}
    return Classifier(Body(layers, forward), 8)


def computed_weights() -> nn.Module:
    """Weights that are computed, with biases that are parameters."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.conv2d(m.stem(x), m.one.weight - m.one.weight.mean((1, 2, 3), keepdim=True), m.one.bias).relu()
        x = F.conv2d(x, m.two.weight[:, :, None, None], m.two.bias).relu()
        return F.linear(x.permute(0, 2, 3, 1), m.three.weight * 2, m.three.bias).permute(0, 3, 1, 2)

    layers = {"stem": conv_norm(3, 8), "one": nn.Conv2d(8, 6, 3), "two": nn.Linear(6, 10), "three": nn.Linear(10, 8)}
    return Classifier(Body(layers, forward), 8)


def shared_keys(m: Any, x: Tensor) -> Tensor:
    """Four heads of queries to one of keys and values."""
    batch, count, _ = x.shape
    q, k, v = m.mixed(x).split([16, 4, 4], 2)
    q, k = q.reshape(batch, count, 4, 4).transpose(1, 2), k.reshape(batch, count, 1, 4).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, k, v.unsqueeze(1), enable_gqa=True)
    return m.out(torch.cat([mixed.mean(1), mixed.sum(1)], 2))  # type: ignore[no-any-return]


def learnt_queries(m: Any, x: Tensor) -> Tensor:
    """Queries that are weights, for all images: what of them is left multiplies values as well."""
    q = m.over[0].weight[:, :8].expand(x.shape[0], -1, -1)
    mixed = F.scaled_dot_product_attention(q.unsqueeze(1), x.unsqueeze(1), m.inside(x)[..., :8].unsqueeze(1))
    return x + m.out(mixed.squeeze(1).sum(1, keepdim=True))  # type: ignore[no-any-return]


def tied() -> nn.Module:
    """Two layers of one weight: its entries count once, its products twice."""
    made = Classifier(nn.Sequential(conv_norm(3, 8), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)), 8)
    made.body[3].weight = made.body[1].weight  # type: ignore[index]
    return made


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": tiny_models.plain, "residual": tiny_models.residual, "dense": tiny_models.dense, "tied": tied,
    "depthwise": tiny_models.depthwise, "excited": tiny_models.excited, "shared": tiny_models.shared,
    "grouped": grouped, "multiplied depthwise": multiplied_depthwise, "transposed": transposed,
    "flattened": flattened, "attention": lambda: tokens(fused),
    "matmul": lambda: tokens(multiplied), "cross-covariance": lambda: tokens(over_channels),
    "einsum": lambda: tokens(summed), "numbered": lambda: tokens(numbered),
    "by name": lambda: tokens(by_name), "layers by name": called_by_name,
    "computed weights": computed_weights, "shared keys": lambda: tokens(shared_keys),
    "learnt queries": lambda: tokens(learnt_queries),
}  # fmt: skip


def coupled(model: nn.Module) -> tuple[Traced, Coupling]:
    torch.manual_seed(0)
    traced = Trace(SHAPE)(model.eval()).value
    return traced, Couple()(traced).value


def blocks_in(traced: Traced, coupling: Coupling) -> tuple[list[Block], Stays]:
    stays = Stays(traced, coupling, (), ())
    return [Block(tuple(members), 1, None) for members in stays.blocks.values()], stays


def counted(traced: Traced, coupling: Coupling, blocks: list[Block]) -> Cost:
    return cost_of(traced, coupling, [i for block in blocks for i in block.classes])


def real(traced: Traced, coupling: Coupling, removed: frozenset[int]) -> Size:
    again = Trace(SHAPE)(shrink(traced, Survivors(coupling, removed))).value
    return Size(sum(p.numel() for p in again.module.parameters()), again.macs_of_image)


@pytest.mark.parametrize("name", MODELS)
def test_random_widths_cost_what_is_counted(name: str) -> None:
    traced, coupling = coupled(MODELS[name]())
    blocks, stays = blocks_in(traced, coupling)
    cost = counted(traced, coupling, blocks)
    assert cost.spent_without(())[:2] == (sum(p.numel() for p in traced.module.parameters()), traced.macs_of_image)
    search = Search(coupling, blocks, pools(blocks, "uniform", coupling), both(torch.rand(coupling.class_count + 1)),
                    frozen=stays.frozen)  # fmt: skip
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(3):
        drawn = [int(torch.randint(1, len(b.classes) + 1, (), generator=generator)) for b in blocks]
        removed = search.selected(tuple(drawn)).removed
        assert cost.spent_without(removed)[:2] == real(traced, coupling, removed)
        seen.add(cost.spent_without(removed)[:2])
    assert len(seen) > 1


@pytest.mark.parametrize("name", ["einsum", "matmul"])
def test_what_is_not_followed_would_be_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traced, coupling = coupled(MODELS[name]())
    blocks, stays = blocks_in(traced, coupling)
    monkeypatch.setattr(costs, "_product", lambda *_args: ((), (1,), 0.0))
    search = Search(coupling, blocks, pools(blocks, "uniform", coupling), both(torch.rand(coupling.class_count + 1)),
                    frozen=stays.frozen)  # fmt: skip
    removed = search.selected(search.targets(0.5)).removed
    assert counted(traced, coupling, blocks).spent_without(removed)[:2] != real(traced, coupling, removed)


def test_a_share_is_of_the_models_own() -> None:
    own = Size(101, 1000)
    assert (Limit("parameters", 0.5).most(own), Limit("macs", 0.25).most(own), Limit("macs", 7).most(own)) == (
        50,
        250,
        7,
    )


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (9, "9 MACs cannot be met: in ruins there are 10 left where: --here to do: give one from 10 up to 99"),
        (100, "the model has no more than 100 MACs, and 100 are allowed"),
    ],
)
def test_a_budget_that_cannot_be_met_names_what_can(most: int, said: str) -> None:
    check_limit("macs", 10, least=Size(1, 10), whole=Size(2, 100), where="--here", floor="in ruins")
    with pytest.raises(InputError) as error:
        check_limit("macs", most, least=Size(1, 10), whole=Size(2, 100), where="--here", floor="in ruins")
    assert said in " ".join(str(error.value).split())

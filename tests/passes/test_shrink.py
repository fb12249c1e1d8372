"""Shrink: hand-computed survivors of small graphs, and what a shrunken model can be used for."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxdistill.compiler import shrink_model as shrinking
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import InputError, InvariantError
from fxdistill.ir.survivors import Masks, Survivors
from fxdistill.modelfiles import bundle
from fxdistill.modelfiles.load import load
from fxdistill.modelfiles.source import ModelSource
from fxdistill.passes.couple import Couple
from fxdistill.passes.shrink import Shrink, ShrinkSource, Shrunken
from fxdistill.passes.shrink.arguments import Rewriting
from fxdistill.passes.shrink.prove import prove
from fxdistill.passes.shrink.rewrites import rewrite
from fxdistill.passes.thin.kept import removed_of
from fxdistill.passes.trace import Trace

IMAGE = (2, 3, 8, 8)


class Net(nn.Module):
    """Modules by name, and what to do with them."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, module in modules.items():
            self.add_module(name, module)
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.run = forward
        self.eval()

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(inputs: int, outputs: int, *, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, groups=groups)


def remove(net: nn.Module, removed: dict[str, list[int]], shape: tuple[int, ...] = IMAGE) -> Any:
    """Shrink by output indices that weights lose; the proof runs inside."""
    traced = Trace(shape)(net).value
    coupling = Couple()(traced).value
    sizes = {name: tensor.shape[0] for name, tensor in net.named_parameters()}
    kept = {name: [i for i in range(sizes[name]) if i not in gone] for name, gone in removed.items()}
    return Shrink()(ShrinkSource(traced, coupling, removed_of(coupling, kept))).value.module


def same(module: fx.GraphModule, name: str, expected: Tensor) -> None:
    assert torch.equal(module.get_parameter(name), expected), name


def test_cat() -> None:
    net = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 4), c=conv(8, 5))
    small = remove(net, {"a.weight": [1], "b.weight": [2]})
    same(small, "a.weight", net.a.weight[[0, 2, 3]])
    same(small, "b.weight", net.b.weight[[0, 1, 3]])
    same(small, "c.weight", net.c.weight[:, [0, 2, 3, 4, 5, 7]])
    assert (small.a.out_channels, small.c.in_channels, small.c.out_channels) == (3, 6, 5)


@pytest.mark.parametrize(
    "pieces", [lambda y: y.split([4, 4], 1), lambda y: y.chunk(2, 1), lambda y: (y[:, :4], y[:, 4:])]
)
def test_split(pieces: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    def forward(m: Net, x: Tensor) -> Any:
        one, other = pieces(m.a(x))
        return m.p(one) + m.q(other)

    net = Net(forward, a=conv(3, 8), p=conv(4, 5), q=conv(4, 5))
    small = remove(net, {"a.weight": [1, 2, 6]})
    same(small, "p.weight", net.p.weight[:, [0, 3]])
    same(small, "q.weight", net.q.weight[:, [0, 1, 3]])


def test_grouped_convolution() -> None:
    net = Net(lambda m, x: m.c(m.g(m.a(x))), a=conv(3, 8), g=conv(8, 8, groups=2), c=conv(8, 5))
    small = remove(net, {"a.weight": [1, 6], "g.weight": [0, 5]})
    first, second = net.g.weight[[1, 2, 3]][:, [0, 2, 3]], net.g.weight[[4, 6, 7]][:, [0, 1, 3]]
    same(small, "g.weight", torch.cat([first, second]))
    assert (small.g.groups, small.g.in_channels, small.g.out_channels) == (2, 6, 6)


def test_depthwise_convolution_loses_groups() -> None:
    net = Net(lambda m, x: m.c(m.g(m.a(x))), a=conv(3, 6), g=conv(6, 12, groups=6), c=conv(12, 5))
    small = remove(net, {"a.weight": [2]})
    same(small, "g.weight", net.g.weight[[0, 1, 2, 3, 6, 7, 8, 9, 10, 11]])
    assert small.g.groups == 5


def test_transposed_convolution() -> None:
    net = Net(lambda m, x: m.c(m.t(m.a(x))), a=conv(3, 4), t=nn.ConvTranspose2d(4, 6, 2, stride=2), c=conv(6, 5))
    small = remove(net, {"a.weight": [1]})
    same(small, "t.weight", net.t.weight[[0, 2, 3]])
    assert (small.t.in_channels, small.t.out_channels) == (3, 6)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def turned(x: Tensor) -> Tensor:
    grouped: Tensor = x.permute(0, 2, 3, 1).unflatten(-1, (2, -1)).mT
    return grouped.flatten(-2).permute(0, 3, 1, 2)


@pytest.mark.parametrize("shuffle", [shuffled, nn.ChannelShuffle(2), turned])
def test_channel_shuffle_puts_ragged_survivors_in_order(shuffle: Callable[[Tensor], Tensor]) -> None:
    modules = {"shuffle": shuffle} if isinstance(shuffle, nn.Module) else {}
    net = Net(lambda m, x: m.c(m.d(shuffle(m.a(x)))), a=conv(3, 8), d=conv(8, 8, groups=8), c=conv(8, 5), **modules)
    small = remove(net, {"a.weight": [1, 6]})  # after the shuffle: 0 4 1 5 2 6 3 7
    same(small, "c.weight", net.c.weight[:, [0, 1, 3, 4, 6, 7]])
    assert any(node.target is torch.index_select for node in small.graph.nodes)


def test_channel_shuffle_needs_nothing_where_positions_agree() -> None:
    net = Net(lambda m, x: m.c(shuffled(m.a(x))), a=conv(3, 8), c=conv(8, 5))
    small = remove(net, {"a.weight": [1, 5]})
    assert not any(node.target is torch.index_select for node in small.graph.nodes)


def test_pixel_shuffle() -> None:
    net = Net(lambda m, x: m.c(m.up(m.a(x))), a=conv(3, 8), up=nn.PixelShuffle(2), c=conv(2, 5))
    small = remove(net, {"a.weight": [2]})
    same(small, "a.weight", net.a.weight[[4, 5, 6, 7]])
    same(small, "c.weight", net.c.weight[:, [1]])


def test_squeeze_and_excitation() -> None:
    def forward(m: Net, x: Tensor) -> Any:
        y = m.a(x)
        return m.c(y * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1))))))

    net = Net(forward, a=conv(3, 6), down=conv(6, 4), up=conv(4, 6), c=conv(6, 5))
    small = remove(net, {"a.weight": [2], "down.weight": [0]})
    keep = [0, 1, 3, 4, 5]
    same(small, "up.weight", net.up.weight[keep][:, [1, 2, 3]])
    same(small, "down.weight", net.down.weight[[1, 2, 3]][:, keep])
    same(small, "c.weight", net.c.weight[:, keep])


def test_residual_over_concatenation() -> None:
    net = Net(
        lambda m, x: m.d(torch.cat([m.a(x), m.b(x)], 1) + m.c(x)),
        a=conv(3, 4),
        b=conv(3, 4),
        c=conv(3, 8),
        d=conv(8, 5),
    )
    small = remove(net, {"c.weight": [5]})
    same(small, "a.weight", net.a.weight)
    same(small, "b.weight", net.b.weight[[0, 2, 3]])
    same(small, "d.weight", net.d.weight[:, [0, 1, 2, 3, 4, 6, 7]])


def test_shared_module_called_twice() -> None:
    net = Net(lambda m, x: m.c(m.s(m.s(m.a(x)))), a=conv(3, 4), s=conv(4, 4), c=conv(4, 5))
    small = remove(net, {"a.weight": [1]})
    keep = [0, 2, 3]
    same(small, "s.weight", net.s.weight[keep][:, keep])
    same(small, "c.weight", net.c.weight[:, keep])


def test_tied_weights_stay_tied() -> None:
    net = Net(
        lambda m, x: m.c(m.one(m.a(x)) + m.other(m.a(x))), a=conv(3, 4), one=conv(4, 6), other=conv(4, 6), c=conv(6, 5)
    )
    net.other.weight = net.one.weight
    small = remove(net, {"one.weight": [0], "a.weight": [3]})
    assert small.one.weight is small.other.weight
    same(small, "one.weight", net.one.weight[1:, :3])


def test_transposed_use_of_a_weight() -> None:
    net = Net(lambda m, x: F.linear(F.relu(m.encode(x.flatten(1))), m.encode.weight.t()), encode=nn.Linear(12, 6))
    small = remove(net, {"encode.weight": [2]}, (2, 3, 2, 2))
    same(small, "encode.weight", net.encode.weight[[0, 1, 3, 4, 5]])


def test_flatten_into_linear() -> None:
    net = Net(lambda m, x: m.fc(m.a(x).flatten(1)), a=conv(3, 4), fc=nn.Linear(16, 5))
    small = remove(net, {"a.weight": [1]}, (2, 3, 2, 2))
    same(small, "fc.weight", net.fc.weight[:, [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]])
    assert small.fc.in_features == 12


def attention(m: Net, x: Tensor) -> Any:
    tokens = m.embed(x).flatten(2).transpose(1, 2)
    b, n, _ = tokens.shape
    q, k, v = m.qkv(m.norm(tokens)).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8)
    return m.head((tokens + m.out(mixed)).mean(1))


def attention_net() -> Net:
    return Net(attention, embed=conv(3, 10), norm=nn.LayerNorm(10), qkv=nn.Linear(10, 24), out=nn.Linear(8, 10),
               head=nn.Linear(10, 5))  # fmt: skip


def test_attention_heads_keep_equal_counts_and_their_scale() -> None:
    net = attention_net()
    small = remove(net, {"qkv.weight": [1, 6, 16, 21]})  # head 0: q1, v0; head 1: q2, v1; keys go with queries
    keep = [i for i in range(24) if i not in (1, 6, 9, 14, 16, 21)]
    same(small, "qkv.weight", net.qkv.weight[keep])
    same(small, "out.weight", net.out.weight[:, [1, 2, 3, 4, 6, 7]])


def test_pieces_of_every_head_keep_equal_counts() -> None:
    def forward(m: Net, x: Tensor) -> Any:
        tokens = m.embed(x).flatten(2).transpose(1, 2)
        b, n, _ = tokens.shape
        q, k, v = m.qkv(tokens).view(b, n, 2, 12).transpose(1, 2).chunk(3, dim=-1)
        mixed = torch.softmax((q * 0.5) @ k.transpose(-2, -1), -1) @ v
        return m.head(m.out(mixed.transpose(1, 2).reshape(b, n, 8)).mean(1))

    net = Net(forward, embed=conv(3, 10), qkv=nn.Linear(10, 24), out=nn.Linear(8, 10), head=nn.Linear(10, 5))
    result = shrink_model(net, input_shape=IMAGE, keep=0.5)
    assert result.barriers == ()
    assert result.widths["qkv"] == (24, 12)
    counts = [sum(start <= i < start + 4 for i in result.kept["qkv.weight"]) for start in range(0, 24, 4)]
    assert counts[:3] == counts[3:]
    assert counts[0] == counts[1]


def test_standardized_weights_have_statistics_over_the_survivors() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            weight = F.batch_norm(
                self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0
            )
            return F.conv2d(input, weight.reshape_as(self.weight), self.bias)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = Standardized(3, 8, 1), Standardized(8, 6, 1), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.b(F.relu(self.a(x))).mean((2, 3)))

    torch.manual_seed(0)
    result = shrink_model(Two().eval(), input_shape=IMAGE, keep=0.5)
    assert result.widths == {"a": (8, 4), "b": (6, 3), "head": (5, 5)}


def test_the_residual_stream_of_a_transformer() -> None:
    net = attention_net()
    small = remove(net, {"embed.weight": [0, 9]})
    same(small, "norm.weight", net.norm.weight[1:9])
    same(small, "out.weight", net.out.weight[1:9])
    assert small.norm.normalized_shape == (8,)


def test_group_norm_statistics_are_over_the_survivors() -> None:
    net = Net(lambda m, x: m.c(m.n(m.a(x))), a=conv(3, 8), n=nn.GroupNorm(2, 8), c=conv(8, 5))
    small = remove(net, {"a.weight": [1, 6]})
    assert (small.n.num_channels, small.n.num_groups) == (6, 2)


def test_multihead_attention_is_taken_apart() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            x = self.embed(x).flatten(2).transpose(1, 2)
            y = self.norm(x)
            return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))

    torch.manual_seed(0)
    result = shrink_model(Block().eval(), input_shape=IMAGE, keep=0.5)
    assert result.rung == "export"
    assert result.widths["embed"] == (8, 4)
    assert result.widths["attention"] == (24, 12)


def test_padded_shortcut() -> None:
    net = Net(lambda m, x: m.c(F.pad(m.a(x), (0, 0, 0, 0, 1, 2)) + m.b(x)), a=conv(3, 4), b=conv(3, 7), c=conv(7, 5))
    small = remove(net, {"b.weight": [0, 2, 6]})
    same(small, "a.weight", net.a.weight[[0, 2, 3]])
    same(small, "c.weight", net.c.weight[:, [1, 3, 4, 5]])


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x += self.block(x)
        return self.head(x.mean((2, 3)))


def test_the_original_stays_as_it_is() -> None:
    net = Tiny().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small = shrink_model(net, input_shape=IMAGE, keep=0.5).module
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not {id(p) for p in net.parameters()} & {id(p) for p in small.parameters()}
    assert net.stem[0].out_channels == 8
    assert small.get_submodule("stem.0").out_channels == 4


def test_is_traced_again_trained_and_shrunk_again() -> None:
    small = shrink_model(Tiny().eval(), input_shape=IMAGE, keep=0.5).module
    small.train()
    images, targets = torch.randn(IMAGE), torch.tensor([0, 1])
    before = small.get_parameter("head.weight").clone()
    torch.autograd.backward(F.cross_entropy(small(images), targets))
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    assert not torch.equal(before, small.get_parameter("head.weight"))
    assert int(small.get_buffer("stem.1.num_batches_tracked")) == 1
    again = shrink_model(small.eval(), input_shape=IMAGE, keep=0.5)
    assert again.widths["stem.0"] == (4, 2)


def test_a_shrunken_model_is_written_down_and_read_bit_for_bit(tmp_path: Path) -> None:
    result = shrink_model(Tiny().eval(), input_shape=IMAGE, keep=0.5)
    bundle.save(result.module, tmp_path / "aux.pt", input_shape=IMAGE)
    loaded = load(ModelSource(tmp_path / "aux.pt", None))
    images = torch.randn(5, 3, 8, 8)
    assert torch.equal(loaded.module(images), result.module(images))
    assert loaded.input_shape == IMAGE


def test_a_file_can_reach_no_function_that_writes_or_calls_others() -> None:
    for name in ("build", "write_bytes"):
        with pytest.raises(InputError):
            load(ModelSource(None, f"fxdistill.compiler.shrink_model:{name}"))
        assert not callable(getattr(shrinking, name, None))


def test_the_proof_names_the_first_node_that_differs() -> None:
    traced = Trace(IMAGE)(Tiny().eval()).value
    coupling = Couple()(traced).value
    removed = removed_of(coupling, {"stem.0.weight": [0, 1, 2, 3]})
    survivors = Survivors(coupling, removed)
    small = Shrink()(ShrinkSource(traced, coupling, removed)).value.module
    with torch.no_grad():
        small.get_parameter("block.0.weight")[0] += 1.0
    with pytest.raises(InvariantError, match=r"disagrees with the masked full one, first at 'block\.0'"):
        prove(traced, survivors, small)


def test_sums_that_cancel_are_no_disagreement() -> None:
    net = Net(lambda m, x: m.head(m.b(m.norm(m.a(x).relu()).mean((2, 3), keepdim=True)).flatten(1)), a=conv(3, 8),
              norm=nn.GroupNorm(4, 8), b=nn.Conv2d(8, 8, 1, bias=False), head=nn.Linear(8, 5))  # fmt: skip
    nn.init.zeros_(net.norm.bias)
    assert shrink_model(net, input_shape=IMAGE, keep=0.5).proof.precision == "float64"


def test_a_mistake_behind_values_that_vanish_is_found() -> None:
    net = Net(lambda m, x: m.d(m.c(m.b(m.a(x)))), **{name: nn.Conv2d(n, 4, 1, bias=False) for name, n in
              (("a", 3), ("b", 4), ("c", 4), ("d", 4))})  # fmt: skip
    for parameter in net.parameters():
        parameter.data *= 1e-6
    traced = Trace(IMAGE)(net).value
    coupling = Couple()(traced).value
    removed = removed_of(coupling, {"a.weight": [0, 1]})
    small = Shrink()(ShrinkSource(traced, coupling, removed)).value.module
    prove(traced, Survivors(coupling, removed), small)
    small.get_parameter("d.weight").data[0] *= 1.01
    with pytest.raises(InvariantError, match="first at 'd'"):
        prove(traced, Survivors(coupling, removed), small)


def test_what_is_silenced_lies_in_memory_as_it_did() -> None:
    def attentive(m: Net, x: Tensor) -> Tensor:
        tokens = m.a(x).flatten(2).mT
        heads = m.b(tokens).unflatten(2, (2, 4)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2)
        found: Tensor = m.head(mixed.view(mixed.shape[0], mixed.shape[1], mixed.shape[2] * mixed.shape[3]).mean(1))
        return found

    net = Net(attentive, a=conv(3, 8), b=nn.Linear(8, 8), head=nn.Linear(8, 5))
    shrunken = shrink_model(net, input_shape=IMAGE, keep=0.5)
    assert shrunken.module.get_parameter("b.weight").shape == (4, 4)


def narrow() -> tuple[ShrinkSource, Shrunken]:
    """Two convolutions, the first of which loses two of its four channels."""
    net = Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    traced = Trace(IMAGE)(net).value
    coupling = Couple()(traced).value
    source = ShrinkSource(traced, coupling, removed_of(coupling, {"a.weight": [0, 2]}))
    return source, Shrink()(source).value


def _without_a_node(small: fx.GraphModule) -> None:
    (node,) = [n for n in small.graph.nodes if n.meta["path"] == "relu"]
    node.replace_all_uses_with(node.all_input_nodes[0])
    small.graph.erase_node(node)


def _without_paths(small: fx.GraphModule) -> None:
    for node in small.graph.nodes:
        node.meta = {}


def _narrower(small: fx.GraphModule) -> None:
    small.get_submodule("a").weight = nn.Parameter(small.get_parameter("a.weight")[:1])


WRONG: dict[str, tuple[Callable[[fx.GraphModule], object], str]] = {
    "a weight": (lambda small: small.get_parameter("a.weight").data[0, 0].add_(0.5), "first at 'a'"),
    "a bias": (lambda small: small.get_parameter("b.bias").data[1].add_(0.5), "first at 'b'"),
    "an order": (lambda small: small.get_parameter("a.weight").data.copy_(small.get_parameter("a.weight").flip(0)),
                 "first at 'a'"),
    "a width": (_narrower, "does not run"),
    "not a number": (lambda small: small.get_parameter("b.bias").data.fill_(float("nan")), "first at 'b'"),
    "no node": (_without_a_node, "lacks a node of the full one"),
    "no paths": (_without_paths, "lacks a node of the full one"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_caught_by_the_guarantee(name: str) -> None:
    change, message = WRONG[name]
    source, result = narrow()
    Shrink().ensures(source, result)
    change(result.module)
    result.module.recompile()
    with pytest.raises(InvariantError, match=message):
        Shrink().ensures(source, result)


def test_the_full_model_or_its_memory_is_caught_by_the_guarantee() -> None:
    source, result = narrow()
    with pytest.raises(InvariantError, match="shares memory with the full one"):
        Shrink().ensures(source, Shrunken(source.traced.module))
    with pytest.raises(InvariantError, match=r"has the shape \(2, 4, 8, 8\) where \(2, 2, 8, 8\) survive"):
        Shrink().ensures(source, Shrunken(copy.deepcopy(source.traced.module)))
    result.module.get_submodule("b").bias = source.traced.module.get_parameter("b.bias")
    with pytest.raises(InvariantError, match="shares memory with the full one") as caught:
        Shrink().ensures(source, result)
    assert "b.bias" in str(caught.value)


def test_the_proof_is_there_once_the_guarantee_was_checked_and_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = narrow()
    with pytest.raises(InvariantError, match="not proved"):
        _ = Shrink().run(source).value.proof
    counted = Mock(side_effect=prove)
    monkeypatch.setattr(sys.modules["fxdistill.passes.shrink"], "prove", counted)
    assert Shrink()(source).value.proof.nodes > 0
    assert counted.call_count == 1


def test_what_is_locked_or_nothing_is_refused() -> None:
    traced = Trace(IMAGE)(Tiny().eval()).value
    coupling = Couple()(traced).value
    with pytest.raises(InputError, match="nothing is to be removed"):
        Shrink()(ShrinkSource(traced, coupling, frozenset()))
    with pytest.raises(InputError, match="is the network's output at 'output' cannot be removed"):
        Shrink()(ShrinkSource(traced, coupling, removed_of(coupling, {"head.weight": [0]})))


def test_what_cannot_be_carried_out_stays_whole_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def rewritten(node: fx.Node, run: Rewriting, masks: Masks) -> None:
        if node.op != "call_function" or node.name != "reshape":
            rewrite(node, run, masks)

    def forward(m: Net, x: Tensor) -> Any:
        return m.fc(torch.reshape(m.a(x), (-1, 16)) + F.adaptive_avg_pool2d(m.b(m.c(x)), 2).flatten(1)[:, :16])

    monkeypatch.setattr("fxdistill.passes.shrink.rewrite", rewritten)
    net = Net(forward, a=conv(3, 4), b=conv(6, 4), c=conv(3, 6), fc=nn.Linear(16, 5))
    result = shrink_model(net, input_shape=(2, 3, 2, 2), keep=0.5)
    assert result.barriers == ("reshape",)
    assert result.widths == {"a": (4, 4), "b": (4, 4), "c": (6, 3), "fc": (5, 5)}
    assert [d.where for d in result.diagnostics if d.code == "shrink-barrier"] == ["reshape"]


LAYERS = ("conv", "grouped", "depthwise", "residual", "dense", "shuffle", "gate", "norm", "split")


class Random(nn.Module):
    """A chain of random layers, each keeping 8 channels."""

    def __init__(self, layers: list[str], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kinds = layers
        self.stem, self.head = conv(3, 8), nn.Linear(8, 4)
        self.layers = nn.ModuleList(self._layer(kind) for kind in layers)

    @staticmethod
    def _layer(kind: str) -> nn.Module:
        groups = {"grouped": 2, "depthwise": 8}.get(kind, 1)
        width = {"dense": 4, "split": 4}.get(kind, 8)
        if kind == "norm":
            return nn.GroupNorm(2, 8)
        return (
            conv(width if kind == "split" else 8, width, groups=groups) if kind != "shuffle" else nn.ChannelShuffle(2)
        )

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "residual":
                x = x + F.relu(layer(x))
            elif kind == "dense":
                x = torch.cat([x[:, :4], layer(x)], 1)
            elif kind == "gate":
                x = x * torch.sigmoid(layer(x.mean((2, 3), keepdim=True)))
            elif kind == "split":
                one, other = x.chunk(2, 1)
                x = torch.cat([other, layer(one)], 1)
            else:
                x = F.gelu(layer(x))
        return self.head(x.mean((2, 3)))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(layers=st.lists(st.sampled_from(LAYERS), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_random_graphs_keep_the_proof(layers: list[str], seed: int) -> None:
    net = Random(layers, seed).eval()
    result = shrink_model(net, input_shape=(2, 3, 4, 4), keep=0.5, criterion="random", seed=seed)
    assert result.proof.error <= 1e-4
    assert result.after.parameters < result.before.parameters
    assert result.module(torch.randn(3, 3, 4, 4)).shape == (3, 4)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99))
def test_permuting_coupled_channels_leaves_outputs_unchanged(seed: int) -> None:
    """The classes of one group may change places in all their members at once."""
    net = Tiny().eval()
    coupling = Couple()(Trace(IMAGE)(net).value).value
    images = torch.randn(IMAGE)
    before = net(images)
    group = next(g for g in coupling.groups if coupling.slices(g[0])[0].path == "stem.0" and g[0] not in coupling.locks)
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed)).tolist()
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    moves: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for class_id, place in zip(group, order, strict=True):
        for member, other in zip(coupling.slices(class_id), coupling.slices(group[place]), strict=True):
            moves.setdefault((member.parameter, member.dim), []).extend(zip(member.indices, other.indices, strict=True))
    with torch.no_grad():
        for (name, dim), pairs in moves.items():
            index = torch.arange(tensors[name].shape[dim])
            for target, source in pairs:
                index[target] = source
            tensors[name].copy_(tensors[name].index_select(dim, index))
    torch.testing.assert_close(net(images), before)

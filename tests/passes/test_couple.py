"""Couple: a catalogue of small graphs whose classes were worked out by hand, and laws on random ones."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxdistill.errors import InvariantError
from fxdistill.ir.coupling import Constraint, Coupling, core, flat_layers
from fxdistill.ir.graph import path_of
from fxdistill.ir.survivors import Survivors
from fxdistill.passes.couple import Couple
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Rung

RUNGS: tuple[Rung, ...] = ("symbolic", "export")
Shape = tuple[int, ...]
IMAGE: Shape = (1, 3, 8, 8)


class Net(nn.Module):
    """Named layers, and a forward that a test writes down as a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.steps = forward
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            else:
                self.add_module(name, layer)

    def forward(self, x):
        return self.steps(self, x)


def couple(forward, shape: Shape = IMAGE, rung: Rung = "symbolic", **layers) -> Coupling:
    traced = Trace(input_shape=shape, rungs=(rung,))(Net(forward, **layers).eval()).value
    return Couple()(traced).value


def ids(coupling: Coupling, name: str, dim: int = 0) -> list[int]:
    """Class ids along one dimension of a parameter."""
    return core(coupling.parameter_labels(name)[dim]).movedim(dim, 0).flatten().tolist()


def conv(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def free(coupling: Coupling, labels: list[int]) -> bool:
    return not any(label == 0 or label in coupling.locks for label in labels)


@pytest.fixture(params=RUNGS)
def rung(request) -> Rung:
    chosen: Rung = request.param
    return chosen


def test_conv_norm_conv(rung):
    c = couple(lambda m, x: m.b(F.relu(m.n(m.a(x)))), rung=rung, a=conv(3, 4), n=nn.BatchNorm2d(4), b=conv(4, 2))
    expected = ids(c, "a.weight")
    assert len(set(expected)) == 4
    assert free(c, expected)
    for name in ("a.bias", "n.weight", "n.bias", "n.running_mean", "n.running_var"):
        assert ids(c, name) == expected
    assert ids(c, "b.weight", 1) == expected
    assert {(m.parameter, m.dim, m.kind, m.indices) for m in c.slices(expected[2])} == {
        ("a.weight", 0, "out", (2,)), ("b.weight", 1, "in", (2,)), ("a.bias", 0, "parameter", (2,)),
        *((f"n.{part}", 0, "parameter", (2,)) for part in ("weight", "bias", "running_mean", "running_var")),
    }  # fmt: skip
    assert c.group_of(expected[0]) == tuple(sorted(expected))
    assert c.constraints == ()
    assert c.diagnostics == ()


def test_network_input_and_output_are_locked(rung):
    c = couple(lambda m, x: m.a(x), rung=rung, a=conv(3, 4))
    assert {c.locked(i) for i in ids(c, "a.weight", 1)} == {"is the network's input at 'x'"}
    assert {c.locked(i) for i in ids(c, "a.weight")} == {"is the network's output at 'output'"}
    assert c.channel_dim("x") == 1


def test_residual(rung):
    c = couple(lambda m, x: m.c(m.a(x) + m.b(x)), rung=rung, a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    assert ids(c, "a.weight") == ids(c, "b.weight") == ids(c, "c.weight", 1)
    assert len(set(ids(c, "a.weight"))) == 4


def test_cat(rung):
    c = couple(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), rung=rung, a=conv(3, 2), b=conv(3, 3), c=conv(5, 2))
    assert ids(c, "c.weight", 1) == ids(c, "a.weight") + ids(c, "b.weight")
    assert len(set(ids(c, "c.weight", 1))) == 5


def test_residual_over_concatenation(rung):
    def forward(m, x):
        y = torch.cat([m.a(x), m.b(x)], 1)
        return m.d(y + m.c(y))

    c = couple(forward, rung=rung, a=conv(3, 2), b=conv(3, 3), c=conv(5, 5), d=conv(5, 2))
    assert ids(c, "c.weight") == ids(c, "c.weight", 1) == ids(c, "a.weight") + ids(c, "b.weight")
    assert len(set(ids(c, "c.weight"))) == 5


def test_chunk_and_split(rung):
    def forward(m, x):
        one, two = m.a(x).chunk(2, 1)
        three, four = torch.split(two, [1, 3], dim=1)
        return m.b(one) + m.c(three) + m.d(four)

    c = couple(forward, rung=rung, a=conv(3, 8), b=conv(4, 2), c=conv(1, 2), d=conv(3, 2))
    a = ids(c, "a.weight")
    assert len(set(a)) == 8
    assert ids(c, "b.weight", 1) == a[:4]
    assert ids(c, "d.weight", 1) == a[5:]
    assert (
        c.locked(a[4]) == f"is picked by its index at '{c.locks[a[4]].where}'"
    )  # a piece of one channel cannot shrink
    assert free(c, a[:4] + a[5:])


def test_grouped_conv(rung):
    c = couple(lambda m, x: m.c(m.b(m.a(x))), rung=rung, a=conv(3, 8), b=conv(8, 4, groups=2), c=conv(4, 2))
    a, b = ids(c, "a.weight"), ids(c, "b.weight")
    assert len(set(a + b)) == 12
    assert {(k.kind, k.where[:1], k.sets) for k in c.constraints} == {
        ("groups", "b", (tuple(a[:4]), tuple(a[4:]))), ("groups", "b", (tuple(b[:2]), tuple(b[2:]))),
    }  # fmt: skip
    inputs = c.parameter_labels("b.weight")[1]
    assert inputs.shape == (4, 4, 3, 3)
    assert inputs[:, :, 0, 0].tolist() == [a[:4], a[:4], a[4:], a[4:]]
    # what is alive of a grouped weight is a box again
    alive = Survivors(c, {a[0], a[6], b[1], b[2]}).of_parameter("b.weight")
    assert alive is not None
    assert alive.sizes == (2, 3, 3, 3)


def test_depthwise_conv(rung):
    c = couple(lambda m, x: m.c(m.b(m.a(x))), rung=rung, a=conv(3, 4), b=conv(4, 8, groups=4), c=conv(8, 2))
    a = ids(c, "a.weight")
    assert ids(c, "b.weight") == [i for i in a for _ in range(2)] == ids(c, "c.weight", 1)
    assert 1 not in c.parameter_labels("b.weight")
    assert c.constraints == ()


def test_channel_shuffle(rung):
    def forward(m, x):
        y = m.a(x)
        n, channels, height, width = y.shape
        y = y.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return m.b(y.view(n, -1, height, width))

    c = couple(forward, rung=rung, a=conv(3, 8), b=conv(8, 2))
    a = ids(c, "a.weight")
    assert ids(c, "b.weight", 1) == [a[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    assert [(k.kind, k.sets) for k in c.constraints] == [("split", (tuple(a[:4]), tuple(a[4:])))]


def test_channel_shuffle_as_one_function(rung):
    c = couple(lambda m, x: m.b(F.channel_shuffle(m.a(x), 2)), rung=rung, a=conv(3, 8), b=conv(8, 2))
    a = ids(c, "a.weight")
    assert ids(c, "b.weight", 1) == [a[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    assert [(k.kind, k.sets) for k in c.constraints] == [("split", (tuple(a[:4]), tuple(a[4:])))]


def test_pieces_of_what_is_split(rung):
    """Cut within each of two groups: each piece keeps as many channels in one group as in the other."""

    def forward(m, x):
        one, two = m.a(x).unflatten(1, (2, 6)).split((2, 4), 2)
        return m.b(one.flatten(1, 2)) + m.c(two.flatten(1, 2))

    c = couple(forward, rung=rung, a=conv(3, 12), b=conv(4, 2), c=conv(8, 2))
    a = ids(c, "a.weight")
    assert ids(c, "b.weight", 1) == a[:2] + a[6:8]
    pieces = [((0, 6), (6, 12)), ((0, 2), (6, 8)), ((2, 6), (8, 12))]
    assert [k.sets for k in c.constraints] == [tuple(tuple(a[i:j]) for i, j in piece) for piece in pieces]


def test_pixel_shuffle_and_unshuffle(rung):
    forward = lambda m, x: m.c(F.pixel_unshuffle(m.b(F.pixel_shuffle(m.a(x), 2)), 2))  # noqa: E731
    c = couple(forward, rung=rung, a=conv(3, 8), b=conv(2, 3), c=conv(12, 2))
    a, b = ids(c, "a.weight"), ids(c, "b.weight")
    assert a == [a[0]] * 4 + [a[4]] * 4
    shuffled = next(path for path in c.values if "shuffle" in path and c.channel_dim(path) is not None)
    assert c.classes(shuffled) == (a[0], a[4])  # one for each channel, wherever
    assert ids(c, "b.weight", 1) == [a[0], a[4]]
    assert ids(c, "c.weight", 1) == [i for i in b for _ in range(4)]
    assert free(c, a + b)


def test_unfold_and_fold(rung):
    forward = lambda m, x: m.b(F.fold(F.unfold(m.a(x), 2, stride=2), (8, 8), 2, stride=2))  # noqa: E731
    c = couple(forward, rung=rung, a=conv(3, 4), b=conv(4, 2))
    assert ids(c, "b.weight", 1) == ids(c, "a.weight")
    assert len(set(ids(c, "a.weight"))) == 4
    assert free(c, ids(c, "a.weight"))


def test_squeeze_and_excitation(rung):
    def forward(m, x):
        y = m.a(x)
        gate = torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))))
        return m.b(y * gate)

    c = couple(forward, rung=rung, a=conv(3, 4), down=conv(4, 2, 1), up=conv(2, 4, 1), b=conv(4, 2))
    a = ids(c, "a.weight")
    assert len(set(a)) == 4
    assert ids(c, "up.weight") == ids(c, "down.weight", 1) == ids(c, "b.weight", 1) == a
    assert free(c, a + ids(c, "down.weight"))
    assert not set(ids(c, "down.weight")) & set(a)


def test_broadcast_of_a_single_channel_unites_nothing(rung):
    forward = lambda m, x: m.b(m.a(x) * torch.sigmoid(m.mask(x)))  # noqa: E731
    c = couple(forward, rung=rung, a=conv(3, 4), mask=conv(3, 1), b=conv(4, 2))
    a = ids(c, "a.weight")
    assert len(set(a)) == 4
    assert free(c, a)
    assert 0 not in c.parameter_labels("mask.weight")


def test_values_without_channels_lock():
    forward = lambda m, x: m.b(m.a(x) * torch.arange(4.0).view(1, 4, 1, 1))  # noqa: E731
    c = couple(forward, rung="export", a=conv(3, 4), b=conv(4, 2))
    assert all("carry no channels" in str(c.locked(i)) for i in ids(c, "a.weight"))


def test_constants_that_the_graph_keeps_are_sliced():
    forward = lambda m, x: m.b(m.a(x) * torch.arange(4.0).view(1, 4, 1, 1))  # noqa: E731
    c = couple(forward, a=conv(3, 4), b=conv(4, 2))
    assert ids(c, "_tensor_constant0", 1) == ids(c, "a.weight")
    assert free(c, ids(c, "a.weight"))


def test_layer_scale(rung):
    scale = nn.Parameter(torch.ones(4, 1, 1))
    c = couple(lambda m, x: m.b(m.a(x) * m.scale), rung=rung, a=conv(3, 4), scale=scale, b=conv(4, 2))
    assert ids(c, "scale") == ids(c, "a.weight")


def test_module_called_twice(rung):
    c = couple(lambda m, x: m.c(m.b(m.b(m.a(x)))), rung=rung, a=conv(3, 4), b=conv(4, 4), c=conv(4, 2))
    assert ids(c, "a.weight") == ids(c, "b.weight") == ids(c, "b.weight", 1) == ids(c, "c.weight", 1)
    c = couple(lambda m, x: m.c(m.a(x)) + m.c(m.b(x)), rung=rung, a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    assert ids(c, "a.weight") == ids(c, "b.weight") == ids(c, "c.weight", 1)
    assert len(set(ids(c, "a.weight"))) == 4


def test_tied_weights(rung):
    """An autoencoder whose decoder is the encoder transposed; and two layers that share one tensor."""
    forward = lambda m, x: F.linear(F.relu(F.linear(m.first(x), m.middle)), m.middle.t()) @ m.last  # noqa: E731
    middle, last = nn.Parameter(torch.ones(4, 5)), nn.Parameter(torch.ones(5, 2))
    c = couple(forward, (1, 3), rung, first=nn.Linear(3, 5), middle=middle, last=last)
    assert ids(c, "first.weight") == ids(c, "middle", 1) == ids(c, "last", 0)
    assert free(c, ids(c, "middle") + ids(c, "middle", 1))
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    c = couple(lambda m, x: m.head(m.two(m.one(m.first(x)))), (1, 3), rung, first=nn.Linear(3, 4), one=one, two=two,
               head=nn.Linear(4, 2))  # fmt: skip
    assert ids(c, "first.weight") == ids(c, "one.weight", 1) == ids(c, "one.weight") == ids(c, "head.weight", 1)
    assert ids(c, "one.bias") == ids(c, "two.bias") == ids(c, "one.weight")
    assert len(set(ids(c, "one.weight"))) == 4


def test_flatten_into_linear(rung):
    forward = lambda m, x: m.b(torch.flatten(F.max_pool2d(m.a(x), 4), 1))  # noqa: E731
    c = couple(forward, rung=rung, a=conv(3, 4), b=nn.Linear(16, 2))
    assert ids(c, "b.weight", 1) == [i for i in ids(c, "a.weight") for _ in range(4)]


def attention(m, x):
    batch, tokens, _ = x.shape
    q, k, v = m.qkv(m.stem(x)).reshape(batch, tokens, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
    plain = lambda: torch.softmax((q @ k.transpose(-2, -1)) * 0.5, -1) @ v  # noqa: E731
    y = F.scaled_dot_product_attention(q, k, v) if m.fused else plain()
    return m.head(m.proj(y.transpose(1, 2).reshape(batch, tokens, 6)).mean(1))


@pytest.mark.parametrize("fused", [True, False])
def test_attention_heads(rung, fused):
    net = Net(attention, stem=nn.Linear(4, 5), qkv=nn.Linear(5, 18), proj=nn.Linear(6, 5), head=nn.Linear(5, 2))
    net.fused = fused
    c = Couple()(Trace(input_shape=(1, 7, 4), rungs=(rung,))(net.eval()).value).value
    rows = torch.tensor(ids(c, "qkv.weight")).view(3, 2, 3)
    assert torch.equal(rows[0], rows[1])  # queries and keys are contracted with one another
    assert len(rows.unique()) == 12
    assert ids(c, "proj.weight", 1) == rows[2].flatten().tolist()
    assert free(c, rows.flatten().tolist() + ids(c, "stem.weight") + ids(c, "proj.weight"))
    (constraint,) = c.constraints
    assert constraint.kind == "heads"
    assert constraint.sets == tuple(tuple(row) for row in rows.reshape(6, 3).tolist())


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
def test_multihead_attention_module():
    mha = nn.MultiheadAttention(6, 2, batch_first=True)
    forward = lambda m, x: m.head(m.mha(m.stem(x), m.stem(x), m.stem(x))[0].mean(1))  # noqa: E731
    c = couple(forward, (1, 7, 4), stem=nn.Linear(4, 6), mha=mha, head=nn.Linear(6, 2))
    rows = torch.tensor(ids(c, "mha.in_proj_weight")).view(3, 2, 3)
    assert torch.equal(rows[0], rows[1])
    assert ids(c, "mha.in_proj_weight", 1) == ids(c, "stem.weight")
    assert ids(c, "mha.out_proj.weight", 1) == rows[2].flatten().tolist()
    assert ids(c, "mha.out_proj.weight") == ids(c, "head.weight", 1)
    assert {k.kind for k in c.constraints} == {"heads"}
    assert free(c, rows.flatten().tolist())


def test_token_mixing_keeps_the_channels(rung):
    """A linear layer over tokens: its hidden width is free, tokens are not, and channels pass by."""
    forward = lambda m, x: m.head((m.up(m.down(m.stem(x).transpose(1, 2))).transpose(1, 2) + m.stem(x)).mean(1))  # noqa: E731
    c = couple(
        forward, (1, 7, 4), rung, stem=nn.Linear(4, 5), down=nn.Linear(7, 3), up=nn.Linear(3, 7), head=nn.Linear(5, 2)
    )
    assert ids(c, "stem.weight") == ids(c, "head.weight", 1)
    assert ids(c, "down.weight") == ids(c, "up.weight", 1)
    assert free(c, ids(c, "stem.weight") + ids(c, "down.weight"))
    assert all(c.locked(i) for i in ids(c, "up.weight") + ids(c, "down.weight", 1))


def test_class_token_and_positions(rung):
    def forward(m, x):
        y = m.stem(x).flatten(2).transpose(1, 2)
        y = torch.cat([m.token.expand(y.shape[0], -1, -1), y], 1) + m.position
        return m.head(m.norm(y)[:, 0])

    token, position = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 5, 4))
    c = couple(forward, rung=rung, stem=nn.Conv2d(3, 4, 4, 4), token=token, position=position,
               norm=nn.LayerNorm(4), head=nn.Linear(4, 2))  # fmt: skip
    stem = ids(c, "stem.weight")
    assert ids(c, "token", 2) == ids(c, "position", 2) == ids(c, "norm.weight") == ids(c, "head.weight", 1) == stem
    assert free(c, stem)
    assert all(c.locked(i) for i in ids(c, "position", 1))
    assert len(c.statistics) == 1


def test_channel_padding(rung):
    forward = lambda m, x: m.c(F.pad(m.a(x), (0, 0, 0, 0, 1, 2)) + m.b(x))  # noqa: E731
    c = couple(forward, rung=rung, a=conv(3, 2), b=conv(3, 5), c=conv(5, 2))
    b = ids(c, "b.weight")
    assert b[1:3] == ids(c, "a.weight")
    assert len(set(b)) == 5
    assert free(c, b)


def test_spatial_padding_keeps_channels(rung):
    c = couple(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 2, 0))), rung=rung, a=conv(3, 4), b=conv(4, 2))
    assert ids(c, "b.weight", 1) == ids(c, "a.weight")
    assert free(c, ids(c, "a.weight"))


def test_transposed_conv(rung):
    up = nn.ConvTranspose2d(4, 5, 2, 2)
    each = nn.ConvTranspose2d(5, 5, 2, 2, groups=5)
    c = couple(lambda m, x: m.b(m.each(m.up(m.a(x)))), rung=rung, a=conv(3, 4), up=up, each=each, b=conv(5, 2))
    assert ids(c, "up.weight", 0) == ids(c, "a.weight")
    assert ids(c, "up.weight", 1) == ids(c, "up.bias") == ids(c, "each.weight") == ids(c, "b.weight", 1)
    assert {m.kind for m in c.slices(ids(c, "up.bias")[0]) if m.parameter == "up.weight"} == {"out"}


def test_group_norm(rung):
    c = couple(lambda m, x: m.b(m.n(m.a(x))), rung=rung, a=conv(3, 4), n=nn.GroupNorm(2, 4), b=conv(4, 2))
    a = ids(c, "a.weight")
    assert [(k.kind, k.sets) for k in c.constraints] == [("norm", (tuple(a[:2]), tuple(a[2:])))]
    assert ids(c, "n.weight") == a == ids(c, "b.weight", 1)


@pytest.mark.parametrize(
    ("mixing", "reason"),
    [
        (lambda y: F.local_response_norm(y, 3), "mixed with its neighbours"),
        (lambda y: torch.softmax(y, 1), "weighed against other channels"),
        (lambda y: y * y.amax(1, keepdim=True), "weighed against other channels"),
    ],
)
def test_what_mixes_channels_locks_them(mixing, reason):
    c = couple(lambda m, x: m.b(mixing(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    assert all(reason in str(c.locked(i)) for i in ids(c, "a.weight"))


def test_unknown_operation_is_a_barrier(rung):
    c = couple(lambda m, x: m.b(torch.cummax(m.a(x), 1).values), rung=rung, a=conv(3, 4), b=conv(4, 2))
    assert not free(c, ids(c, "a.weight"))
    assert all(c.locked(i) for i in [*ids(c, "a.weight"), *ids(c, "b.weight", 1)])
    (diagnostic,) = c.diagnostics
    assert (diagnostic.code, diagnostic.severity) == ("opaque-node", "warning")
    assert "cummax" in diagnostic.where
    assert "cummax" in diagnostic.why


def test_recurrent_layer_is_a_barrier():
    lstm = nn.LSTM(4, 5, batch_first=True)
    c = couple(lambda m, x: m.b(m.lstm(m.a(x))[0]), (1, 7, 3), a=nn.Linear(3, 4), lstm=lstm, b=nn.Linear(5, 2))
    assert all(c.locked(i) for i in [*ids(c, "a.weight"), *ids(c, "b.weight", 1)])
    assert [d.where for d in c.diagnostics] == ["lstm"]


def test_assignment_into_a_tensor_is_a_barrier():
    class Assigning(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3, 4), conv(4, 2)

        def forward(self, x):
            y = self.a(x)
            y[:, :, 0] = y[:, :, 1]
            return self.b(y)

    for rungs in (("symbolic",), ("export",)):
        try:
            traced = Trace(input_shape=IMAGE, rungs=rungs)(Assigning().eval()).value
        except Exception:  # noqa: BLE001  # not every rung traces an assignment
            continue
        c = Couple()(traced).value
        assert all(c.locked(i) for i in ids(c, "a.weight"))


def test_a_copy_into_a_tensor_is_a_barrier():
    def forward(m, x):
        return m.b(torch.zeros(1, 4, 8, 8).copy_(m.a(x)))

    c = couple(forward, rung="export", a=conv(3, 4), b=conv(4, 2))
    assert all(c.locked(i) for i in [*ids(c, "a.weight"), *ids(c, "b.weight", 1)])
    (diagnostic,) = c.diagnostics
    assert "'copy'" in diagnostic.why


def test_checks_in_the_graph_have_no_labels():
    def forward(m, x):
        y = m.a(x)
        torch.ops.aten._assert_tensor_metadata(y, dtype=torch.float32)
        return m.b(y)

    c = couple(forward, rung="export", a=conv(3, 4), b=conv(4, 2))
    assert c.values["_assert_tensor_metadata"] is None
    assert free(c, ids(c, "a.weight"))
    assert c.diagnostics == ()


def test_a_parameter_handed_on_as_it_is_keeps_its_labels():
    traced = Trace(input_shape=IMAGE)(
        Net(lambda m, x: m.b(m.a(x) + handed_on(m.p)), a=conv(3, 4), b=conv(4, 2), p=nn.Parameter(torch.ones(4, 1, 1)))
    ).value
    c = Couple()(traced).value
    assert c.classes("handed_on") == tuple(ids(c, "a.weight"))


@torch.fx.wrap
def handed_on(value):
    return value


def test_counters_of_batches_stay_whatever_the_mode_of_the_model():
    net = Net(lambda m, x: m.n(m.a(x)), a=conv(3, 4), n=nn.BatchNorm2d(4))
    traced = Trace(input_shape=IMAGE)(net).value
    net.train()
    Couple()(traced)
    assert int(net.state_dict()["n.num_batches_tracked"]) == 0
    assert net.training


def test_chain_names_the_way_to_the_blocker():
    c = couple(lambda m, x: m.b(F.relu(m.a(x))) + x, a=conv(3, 4), b=conv(4, 3))
    label = ids(c, "b.weight")[0]
    chain = c.chain("b", label)
    assert chain[0] == "b"
    assert chain[-1] == c.locks[label].where == "x"
    assert "add" in chain
    assert c.chain("a", ids(c, "a.weight")[0]) == ()


# laws on random graphs


class Random(nn.Module):
    """Convolutions and data movement, as drawn."""

    def __init__(self, steps: list[tuple[str, int]]):
        super().__init__()
        self.kinds = [kind for kind, _ in steps]
        width, self.layers = 4, nn.ModuleList([conv(3, 4)])
        for kind, choice in steps:
            outputs = {"conv": 4 * choice, "residual": width, "depthwise": width, "shuffle": width, "cat": 4 * choice,
                       "gate": width, "chunk": width // 2, "grouped": 4 * choice, "norm": width}[kind]  # fmt: skip
            groups = {"depthwise": width, "grouped": 2}.get(kind, 1)
            module = nn.BatchNorm2d(width) if kind == "norm" else conv(width, outputs, 1, groups=groups)
            self.layers.append(module if kind not in ("shuffle", "chunk") else nn.Identity())
            width = width + outputs if kind == "cat" else outputs
            if width % 4:
                self.layers[-1] = nn.Sequential(self.layers[-1], nn.Identity())
                width = width  # noqa: PLW0127
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.layers[0](x)
        for kind, layer in zip(self.kinds, list(self.layers)[1:], strict=True):
            if kind == "residual":
                x = x + F.relu(layer(x))
            elif kind == "cat":
                x = torch.cat([x, layer(x)], 1)
            elif kind == "gate":
                x = x * torch.sigmoid(layer(x.mean((2, 3), keepdim=True)))
            elif kind == "shuffle":
                x = x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)
            elif kind == "chunk":
                x = torch.mul(*x.chunk(2, 1))
            else:
                x = layer(x)
        return self.head(x.mean((2, 3)))


KINDS = ("conv", "residual", "depthwise", "shuffle", "cat", "gate", "grouped", "norm")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 2)), min_size=1, max_size=5)


def partition(coupling: Coupling) -> dict[tuple[str, int], list[int]]:
    """Classes of all slices of parameters, numbered in the order of their first slices."""
    number: dict[int, int] = {0: 0}
    keys = sorted((name, dim) for name, dims in coupling.parameters.items() for dim in dims)
    slices = {(name, dim): core(coupling.parameter_labels(name)[dim]).flatten().tolist() for name, dim in keys}
    return {key: [number.setdefault(k, len(number)) for k in classes] for key, classes in slices.items()}


@settings(max_examples=15, deadline=None)
@given(STEPS, st.integers(0, 1000))
def test_nothing_reads_a_channel_that_all_its_consumers_ignore(steps, seed):
    """Zero the consuming slices of a class: then its producing slices may hold anything."""
    torch.manual_seed(seed)
    net = Random(steps).eval()
    c = Couple()(Trace(input_shape=IMAGE)(net).value).value
    classes = [k for k in range(1, c.class_count + 1) if k not in c.locks]
    tensors = dict(net.state_dict())
    for k in classes[seed % max(1, len(classes)) :: 7]:
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        _scramble(c, tensors, k, roles=("in",), value=0.0)
        expected = net(torch.ones(IMAGE))
        _scramble(c, tensors, k, roles=("out", "parameter"), value=3.0)
        assert torch.equal(net(torch.ones(IMAGE)), expected), (k, c.slices(k))
        for name, tensor in tensors.items():
            tensor.copy_(before[name])


def _scramble(c: Coupling, tensors: dict[str, Tensor], class_id: int, *, roles, value: float) -> None:
    for member in c.slices(class_id):
        if member.kind in roles:
            tensors[member.parameter][c.parameter_labels(member.parameter)[member.dim] == class_id] = value


@settings(max_examples=8, deadline=None)
@given(STEPS)
def test_rungs_agree(steps):
    net = Random(steps).eval()
    found = [partition(Couple()(Trace(input_shape=IMAGE, rungs=(r,))(net).value).value) for r in RUNGS]
    assert found[0] == found[1]


def small(name: str) -> nn.Module:
    """A model of a torchvision family, with its blocks, but few of them."""
    from torchvision import models  # noqa: PLC0415

    block = models.mobilenetv3.InvertedResidualConfig
    makers = {
        "resnet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]),
        "mobilenet": lambda: models.MobileNetV3(
            [
                block(16, 3, 16, 16, use_se=True, activation="RE", stride=2, dilation=1, width_mult=1),
                block(16, 5, 40, 24, use_se=False, activation="HS", stride=2, dilation=1, width_mult=1),
                block(24, 5, 40, 24, use_se=True, activation="HS", stride=1, dilation=1, width_mult=1),
            ],
            64,
        ),
        "shufflenet": lambda: models.ShuffleNetV2([2, 1, 1], [24, 48, 96, 192, 64]),
        "regnet": lambda: models.RegNet(models.regnet.BlockParams.from_init_params(5, 16, 10.0, 2.5, 8, se_ratio=0.25)),
        "vit": lambda: models.VisionTransformer(64, 32, 1, 2, 16, 32),
        "swin": lambda: models.SwinTransformer([4, 4], 8, [2, 1], [2, 4], [4, 4]),
    }
    made: nn.Module = makers[name]()
    return made


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "shufflenet", "regnet", "vit", "swin"])
def test_torchvision_models_couple_alike_on_both_rungs(name):
    net = small(name).eval()
    results = [Couple()(Trace(input_shape=(1, 3, 64, 64), rungs=(r,))(net).value).value for r in RUNGS]
    assert partition(results[0]) == partition(results[1])
    for c in results:
        assert not c.diagnostics
        blocked = {str(lock).split(" at ")[0] for lock in c.locks.values()}
        assert blocked <= {
            "is the network's input",
            "is the network's output",
            "meets values that carry no channels",
            "is picked by its index",
        }  # the last two: position biases


def test_every_value_has_labels_of_its_shape():
    net = nn.Sequential(
        conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    traced = Trace(input_shape=IMAGE)(net).value
    c = Couple()(traced).value
    for node in traced.graph.nodes:
        if node.op != "output":
            assert c.channel_dim(path_of(node)) == 1
            assert len(c.classes(path_of(node))) == node.meta["shape"][1]
    alive = Survivors(c, {c.classes("0")[1]}).of_tensor("0")
    assert alive is not None
    assert alive.indices(1) == [0, 2, 3]


def wrong_shape(c: Coupling) -> Coupling:
    return replace(c, values={**c.values, "a": tuple(layer.unsqueeze(0) for layer in flat_layers(c.values["a"]))})


def wrong_parameter(c: Coupling) -> Coupling:
    labels = c.parameters["a.weight"]
    return replace(c, parameters={**c.parameters, "a.weight": {0: labels[0].narrow(0, 0, 4)}})


def unlocked(c: Coupling, where: str) -> Coupling:
    return replace(c, locks={i: lock for i, lock in c.locks.items() if lock.where != where})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (wrong_shape, r"the labels of 'a' have the shape \(1, 1, 8, 8, 8\)"),
        (wrong_parameter, "the labels of the parameter 'a.weight' do not have its shape"),
        (lambda c: replace(c, values={k: v for k, v in c.values.items() if k != "relu"}), "'relu' was not labelled"),
        (lambda c: unlocked(c, "x"), "'x' has channels that may be removed"),
        (lambda c: unlocked(c, "output"), "'output' has channels that may be removed"),
        (lambda c: replace(c, locks={}), "'x' has channels that may be removed"),
        (lambda c: replace(c, constraints=(Constraint("groups", "b", ((1, 2), (3,))),)), "rows of different lengths"),
    ],
)
def test_wrong_labels_are_caught_by_the_guarantee(wrong, message):
    net = Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 4, groups=2))
    traced = Trace(input_shape=IMAGE)(net.eval()).value
    coupling = Couple()(traced).value
    with pytest.raises(InvariantError, match=message):
        Couple().ensures(traced, wrong(coupling))

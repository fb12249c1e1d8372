"""Couple and shrink where ``forward`` makes tensors itself: what takes only a type or a shape carries no channels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.passes.couple import Couple
from fxdistill.passes.trace import Trace
from tests.user_models import IMAGE, Net, check, conv, pooled, randomized, zeroed

Step = Callable[[Any, Tensor], Tensor]


def with_planes(planes: Callable[[Tensor], Tensor], count: int) -> Net:
    """A head that reads the features and planes that are made beside them."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.b(m.a(x))
        return m.head(torch.cat([y, planes(y)], 1))

    return Net(forward, a=conv(3, 8), b=conv(8, 8), head=nn.Conv2d(8 + count, 4, 1))


def grid(y: Tensor, like: Callable[[Tensor], Tensor]) -> Tensor:
    n, _, h, w = y.shape
    rows, columns = torch.meshgrid(like(torch.linspace(-1, 1, h)), like(torch.linspace(-1, 1, w)), indexing="ij")
    return torch.stack([rows, columns]).unsqueeze(0).expand(n, -1, -1, -1)


PLANES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "type_as": (lambda y: grid(y, lambda t: t.type_as(y)), 2),
    "to another": (lambda y: grid(y, lambda t: t.to(y)), 2),
    "to its device and type": (lambda y: grid(y, lambda t: t.to(y.device, y.dtype)), 2),
    "expand_as a map": (lambda y: torch.linspace(-1, 1, y.shape[3]).expand_as(y[:, :1]), 1),
    "counted along the rows": (lambda y: torch.ones_like(y[:, :1]).cumsum(2) / y.shape[2], 1),
    "new_tensor": (lambda y: y.new_tensor([0.5, 2.0]).view(1, 2, 1, 1).expand(y.shape[0], 2, *y.shape[2:]), 2),
}


@pytest.mark.parametrize("name", PLANES)
def test_what_takes_only_a_type_or_a_shape_carries_no_channels(name: str) -> None:
    planes, count = PLANES[name]
    check(with_planes(planes, count), {"head"})


@pytest.mark.parametrize("name", ["type_as", "to another"])
def test_the_same_in_an_exported_graph(name: str) -> None:
    net = randomized(with_planes(*PLANES[name]))
    coupling = Couple()(Trace(IMAGE, rungs=("export",))(net).value).value
    assert coupling.diagnostics == ()
    assert {i for i in coupling.classes("b.2") if coupling.locked(i)} == set()


def test_expand_as_of_a_constant_with_channels_narrows_it_along() -> None:
    net = with_planes(lambda y: torch.linspace(-1, 1, 8).view(8, 1, 1).expand_as(y), 8)
    check(net, {"head"}, zero=False)


def test_what_is_spread_like_another_has_as_many_channels() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x)
        return m.head(m.gate(pooled(x))[..., None, None].expand_as(x).sigmoid())

    result = shrink_model(randomized(Net(forward, a=conv(3, 8), gate=nn.Linear(8, 8), head=nn.Conv2d(8, 4, 1))),
                          input_shape=IMAGE, keep=0.5)  # fmt: skip
    assert result.widths == {"a.0": (8, 4), "gate": (8, 4), "head": (4, 4)}
    assert result.kept["a.0.weight"] == result.kept["gate.weight"]


def test_what_fails_on_labels_is_a_barrier_with_its_true_structure() -> None:
    """A decision on values, nested lists, an operation of numpy's: whatever it is, the rest is shrunk."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.b(m.a(x))
        return m.head(torch.cat([torch.broadcast_tensors(y, y.mean(2, keepdim=True))[1], odd(y)], 1))

    net = Net(forward, a=conv(3, 8), b=conv(8, 8), head=nn.Conv2d(9, 4, 1))
    result = shrink_model(randomized(net), input_shape=IMAGE, keep=0.5)
    assert result.widths == {"a.0": (8, 4), "b.0": (8, 8), "head": (4, 4)}
    assert "opaque-node" in {d.code for d in result.diagnostics}


def odd(y: Tensor) -> Tensor:
    return torch.from_numpy(y.detach().numpy().max(1, keepdims=True).copy())


fx.wrap("odd")


UNPOOLING: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], Callable[..., nn.Module], int]] = {
    "1d": (nn.Conv1d, nn.MaxPool1d, nn.MaxUnpool1d, 1),
    "2d": (nn.Conv2d, nn.MaxPool2d, nn.MaxUnpool2d, 2),
    "3d": (nn.Conv3d, nn.MaxPool3d, nn.MaxUnpool3d, 3),
}


@pytest.mark.parametrize("name", UNPOOLING)
def test_max_unpooling_is_a_channel_by_itself(name: str) -> None:
    """Encoder and decoder that hand the places of the largest values on, as in SegNet, with their sizes."""
    layer, pool, unpool, dims = UNPOOLING[name]

    def forward(m: Any, x: Tensor) -> Any:
        one, first = m.pool(F.relu(m.a(x)))
        two, second = m.pool(F.relu(m.b(one)))
        two = m.unpool(m.c(two), second, output_size=one.size())
        return m.head(m.unpool(F.relu(m.d(two)), first))

    net = Net(forward, a=layer(3, 8, 3, padding=1), b=layer(8, 6, 3, padding=1), c=layer(6, 6, 1), d=layer(6, 8, 1),
              head=layer(8, 4, 1), pool=pool(2, return_indices=True), unpool=unpool(2))  # fmt: skip
    result = check(net, {"head"}, (2, 3, *(8,) * dims), zero=False)
    assert result.kept["a.weight"] == result.kept["d.weight"]
    assert result.kept["b.weight"] == result.kept["c.weight"]


def test_indices_of_an_adaptive_pooling() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y, places = F.adaptive_max_pool2d(m.a(x), 4, return_indices=True)
        return m.head(F.max_unpool2d(m.b(y), places, kernel_size=[4, 4]))

    check(Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 1), head=nn.Conv2d(8, 3, 1)), {"head"}, zero=False)


def between(step: Callable[[Tensor, Tensor], Tensor]) -> Net:
    """Two convolutions, of 8 and 12 channels, what is done with them, and a head."""
    forward = lambda m, x: m.head(step(F.relu(m.a(x)), m.b(F.relu(m.a(x)))))  # noqa: E731
    return Net(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 12, 3, padding=1), head=nn.Conv2d(12, 4, 1))


def full_width(x: Tensor) -> tuple[int, int, int, int]:
    return x.size(0), x.size(1), x.size(2), x.size(3)


FIRST_STATES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros of a shape": lambda x: torch.zeros(x.shape),
    "zeros of sizes": lambda x: torch.zeros(full_width(x)),
    "zeros on the device": lambda x: torch.zeros(*full_width(x), dtype=x.dtype, device=x.device),
    "zeros made alike": lambda x: torch.zeros(x.size()).to(x.device).type_as(x),
    "new_zeros": lambda x: x.new_zeros(x.shape),
    "full": lambda x: torch.full(x.shape, 0.5),
    "ones broadcast": lambda x: torch.ones(1, x.shape[1], 1, 1).expand(x.shape[0], -1, *x.shape[2:]),
    "constant": lambda x: torch.ones(1, 8, 1, 1) + torch.zeros_like(x),
}


@pytest.mark.parametrize("name", FIRST_STATES)
def test_first_states_of_a_recurrent_cell_are_channels(name: str) -> None:
    """What holds one number everywhere is as narrow as what it meets."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        hidden = state = FIRST_STATES[name](x)
        for _ in range(2):
            i, f, o, g = m.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
            state = f.sigmoid() * state + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * state.tanh()
        return m.head(hidden)

    result = check(Net(forward, stem=conv(3, 8), gates=nn.Conv2d(16, 32, 3, padding=1), head=nn.Conv2d(8, 3, 1)),
                   {"head"})  # fmt: skip
    assert result.module.get_parameter("gates.weight").shape == (16, 8, 3, 3)


SIZES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a pad": lambda x, y: y + F.pad(x, (0, 0, 0, 0, 0, y.size(1) - x.size(1))),
    "a pad on both sides": lambda x, y: y + F.pad(x, [0, 0, 0, 0, (y.size(1) - x.size(1)) // 2, y.size(1) // 2 - 4]),
    "a pad in aten's words": lambda x, y: y + torch.constant_pad_nd(x, [0, 0, 0, 0, 0, y.size(1) - x.size(1)], 0.0),
    "a norm over a shape": lambda x, y: F.layer_norm(y, y.shape[1:]),
    "a norm over sizes": lambda x, y: F.layer_norm(y, [y.size(1), *y.shape[2:]]),
    "narrow": lambda x, y: torch.cat([y.narrow(1, y.size(1) // 2, y.size(1) // 2), y.narrow(1, 0, y.size(1) // 2)], 1),
    "slices": lambda x, y: torch.cat([y[:, y.size(1) // 2 :], y[:, : y.size(1) // 2]], 1),
    "slices from the end": lambda x, y: torch.cat([y[:, -(y.size(1) // 3) :], y[:, : -(y.size(1) // 3)]], 1),
    "split": lambda x, y: y + torch.cat(list(reversed(torch.split(y, 12 // 2, 1))), 1),
    "split by the width": lambda x, y: torch.mul(*(y.split(y.size(1) // 2, 1)[i] for i in (0, 1))).repeat(1, 2, 1, 1),
    "reshape in halves": lambda x, y: y.reshape(y.size(0), 2, y.size(1) // 2, *y.shape[2:]).sum(1).repeat(1, 2, 1, 1),
    "unflatten": lambda x, y: y.unflatten(1, (y.size(1) // 4, 4)).sum(1).repeat(1, 3, 1, 1),
    "groups": lambda x, y: F.conv2d(y, torch.ones(12, 1, 3, 3), padding=1, groups=y.size(1)),
    "groups of four": lambda x, y: F.group_norm(y, y.size(1) // 4),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_forward_computes_from_a_width(name: str) -> None:
    result = shrink_model(randomized(between(SIZES[name])), input_shape=IMAGE, keep=0.5)
    assert result.widths["b"] == (12, 6)


MORE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a number to fill with": lambda x, y: y * torch.full((1, y.size(1), 1, 1), y.size(1) ** -0.5),
    "halves, the larger": lambda x, y: y.view(2, 2, y.size(1) // 2, 16, 16).amax(1).repeat(1, 2, 1, 1),
    "pieces by number": lambda x, y: y.chunk(y.size(1) // 4, 1)[1].repeat(1, 3, 1, 1),
    "concatenated zeros": lambda x, y: y + torch.cat([x, x.new_zeros(2, y.size(1) - x.size(1), 16, 16)], 1),
    "filled like another": lambda x, y: torch.where(y > 0, y, torch.full_like(y, 0.1)),
    "a mask of a map": lambda x, y: y * torch.ones(y.shape[-2:]).tril(),
}


@pytest.mark.parametrize("name", MORE)
def test_relatives_are_followed(name: str) -> None:
    result = shrink_model(randomized(between(MORE[name])), input_shape=IMAGE, keep=0.5)
    assert (result.widths["b"], result.barriers) == ((12, 6), ())


def in_one_batch(x: Tensor, y: Tensor) -> Tensor:
    n, _, h, w = y.shape
    return F.avg_pool2d(y.reshape(n * 12, 1, h, w), 3, 1, 1).reshape(n, 12, h, w)


def of_sizes_that_are_worked_out(x: Tensor, y: Tensor) -> Tensor:
    n, h, w = y.size(0), y.size(2), y.size(3)
    z = y.new_zeros(n * 12, h * w) + y.reshape(n * 12, h * w)
    return (z + z.mean(1, keepdim=True).expand(n * 12, h * w)).unflatten(0, (n, 12)).unflatten(2, (h, w))  # type: ignore[no-any-return]


def through_a_size(x: Tensor, y: Tensor) -> Tensor:
    return (y.flatten(0, 1).view(y.flatten(0, 1).shape) / y.flatten(0, 1).size(0)).view_as(y)


VARYING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maps in one batch": in_one_batch,
    "sizes that are worked out": of_sizes_that_are_worked_out,
    "the number of maps": through_a_size,
    "all elements": lambda x, y: y / y.numel() * y.size(0),
    "all elements of an image": lambda x, y: y / (y.size(1) * y.size(2) * y.size(3)) ** 0.5,
    "pixels and channels": lambda x, y: y / (y.flatten(1).size(1) // 4),
}


@pytest.mark.parametrize("name", VARYING)
def test_numbers_that_go_by_the_images_do_so_in_the_smaller_model(name: str) -> None:
    """They are not what they were for the images that it was shrunk with."""
    net = randomized(between(VARYING[name]))
    result = shrink_model(net, input_shape=IMAGE, keep=0.5)
    assert (result.widths["b"], result.barriers) == ((12, 6), ())
    masked = zeroed(net, result)
    for shape in ((2, 3, 16, 16), (1, 3, 16, 16), (5, 3, 16, 16), (3, 3, 24, 40)):
        images = torch.randn(shape)
        torch.testing.assert_close(result.module(images), masked(images), rtol=1e-4, atol=1e-5)


NUMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "counted": lambda x, y: y + torch.arange(y.size(1)).view(1, -1, 1, 1),
    "counted by twos": lambda x, y: (
        y.unflatten(1, (-1, 2)).flatten(1, 2) + torch.arange(y.size(1) // 2).repeat_interleave(2).view(1, -1, 1, 1)
    ),
    "on a line": lambda x, y: y * torch.linspace(0, 1, y.size(1))[:, None, None],
    "spread alike": lambda x, y: y * torch.linspace(-1, 1, y.size(1)).view(-1, 1, 1).expand_as(y),
    "drawn": lambda x, y: y + torch.rand(y.shape),
    "memory that is filled later": lambda x, y: y + torch.empty(y.shape).fill_(1.0),
    "drawn alike": lambda x, y: y + torch.randn_like(y),
    "one of many": lambda x, y: y + F.one_hot(torch.tensor([1, 2]), y.size(1)).view(2, -1, 1, 1)[: y.size(0)],
    "written into": lambda x, y: y + written(y),
    "identity": lambda x, y: torch.einsum("bchw,cd->bdhw", y, torch.eye(y.size(1))),
}


def written(y: Tensor) -> Tensor:
    places = torch.zeros(y.shape)
    places[:, 0] = 1
    return places


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_for_each_channel_hold_the_channels_and_say_so(name: str) -> None:
    result = shrink_model(randomized(between(NUMBERS[name])), input_shape=IMAGE, keep=0.5)
    assert result.widths["a"] == (8, 4)
    assert result.widths["b"] == (12, 12)
    (why,) = [d.why for d in result.diagnostics if d.where == "b" and d.code == "not-pruned"]
    assert why.startswith("keeps its 12 outputs: its channel ")

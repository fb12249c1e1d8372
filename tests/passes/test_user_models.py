"""Shrink on models as people bring them: small ones, in the styles of many fields.

Each must be shrunk everywhere but where a width is asked for, with the proof, and once more without the proof's
machinery: the removed slices of all parameters are set to zero in the full model, which must then answer as the
shrunken one does. (Not where statistics are taken over channels: those are over the survivors.)
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import FxdistillError
from fxdistill.passes.couple import Couple
from fxdistill.passes.trace import Trace
from tests.user_models import IMAGE, Net, check, conv, pooled, randomized


def unet(m: Any, x: Tensor) -> Any:
    a = m.d1(x)
    b = m.d2(a)
    b = m.c2(torch.cat([b, m.u2(m.d3(b))], 1))
    up = m.u1(b)
    rows, columns = a.size(2) - up.size(2), a.size(3) - up.size(3)
    up = F.pad(up, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
    return m.out(m.c1(torch.cat([up, a], dim=1)))


def test_unet() -> None:
    net = Net(unet, d1=conv(3, 8), d2=conv(8, 16, stride=2), d3=conv(16, 32, stride=2), c2=conv(32, 16),
              u2=nn.ConvTranspose2d(32, 16, 2, 2), c1=conv(16, 8), u1=nn.ConvTranspose2d(16, 8, 2, 2),
              out=nn.Conv2d(8, 2, 1))  # fmt: skip
    check(net, {"out"})


def test_feature_pyramid() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        features = []
        for stage in m.stages:
            x = stage(x)
            features.append(x)
        lateral = [layer(y) for layer, y in zip(m.lateral, features, strict=True)]
        for i in (1, 0):
            lateral[i] = lateral[i] + F.interpolate(lateral[i + 1], size=lateral[i].shape[-2:], mode="nearest")
        return {f"p{i}": m.head(layer(y)) for i, (layer, y) in enumerate(zip(m.smooth, lateral, strict=True))}

    net = Net(
        forward,
        stages=nn.ModuleList([conv(3, 8, stride=2), conv(8, 16, stride=2), conv(16, 32, stride=2)]),
        lateral=nn.ModuleList(nn.Conv2d(width, 12, 1) for width in (8, 16, 32)),
        smooth=nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(3)), head=nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    check(net, {"head"})


def test_cross_stage_block_and_detection_head() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        one, two = m.cv1(m.stem(x)).chunk(2, 1)
        parts = [one, two]
        for layer in m.layers:
            parts.append(layer(parts[-1]) + parts[-1])
        x = m.cv2(torch.cat(parts, 1))
        y1 = m.pool(x)
        x = m.detect(torch.cat((x, y1, m.pool(y1)), 1))
        batch, _, height, width = x.shape
        return x.view(batch, 3, 7, height, width).permute(0, 1, 3, 4, 2).contiguous().sigmoid().view(batch, -1, 7)

    layers = nn.ModuleList(nn.Sequential(conv(8, 8), conv(8, 8)) for _ in range(2))
    net = Net(forward, stem=conv(3, 16), cv1=conv(16, 16, 1), layers=layers, cv2=conv(32, 16, 1),
              pool=nn.MaxPool2d(5, 1, 2), detect=nn.Conv2d(48, 21, 1))  # fmt: skip
    check(net, {"detect"})


def test_gate_with_views_and_expand() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        y = m.b(m.a(x))
        batch, channels, _, _ = y.size()
        gate = m.gate(F.adaptive_avg_pool2d(y, 1).view(batch, channels)).view(batch, channels, 1, 1)
        return m.head(pooled(F.relu(x + y * gate.expand_as(y))))

    gate = nn.Sequential(nn.Linear(16, 4), nn.ReLU(inplace=True), nn.Linear(4, 16), nn.Sigmoid())
    net = Net(forward, stem=conv(3, 16), a=conv(16, 24), b=nn.Conv2d(24, 16, 3, padding=1), gate=gate,
              head=nn.Linear(16, 5))  # fmt: skip
    check(net, {"head"})


def attend(m: Any, x: Tensor, heads: int = 4) -> Tensor:
    batch, tokens, width = x.shape
    q, k, v = m.qkv(m.norm(x)).reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
    weights = ((q @ k.transpose(-2, -1)) * (width // heads) ** -0.5).softmax(-1)
    y: Tensor = m.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
    return y


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.LayerNorm(16), "qkv": lambda: nn.Linear(16, 48), "proj": lambda: nn.Linear(16, 16)
}  # fmt: skip


def attention() -> dict[str, nn.Module]:
    return {name: make() for name, make in ATTENTION.items()}


def test_patches_unfolded_by_reshapes() -> None:
    """MobileViT: attention among the pixels of equal place in their patches."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        y = m.enter(x)
        n, c, h, w = y.shape
        rows, columns = h // 2, w // 2
        y = y.reshape(n * c * rows, 2, columns, 2).transpose(1, 2).reshape(n, c, rows * columns, 4)
        y = y.transpose(1, 3).reshape(n * 4, rows * columns, c)
        y = (y + attend(m, y)).contiguous().view(n, 4, rows * columns, c).transpose(1, 3)
        y = y.reshape(n * c * rows, columns, 2, 2).transpose(1, 2).reshape(n, c, h, w)
        return m.head(pooled(m.fuse(torch.cat((x, m.leave(y)), 1))))

    net = Net(forward, stem=conv(3, 8, stride=2), enter=nn.Conv2d(8, 16, 1), leave=conv(16, 8, 1), fuse=conv(16, 8),
              head=nn.Linear(8, 5), **attention())  # fmt: skip
    check(net, {"head"}, zero=False)


def test_shifted_windows_with_position_biases() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = torch.roll(m.norm(x), (-2, -2), (1, 2))
        y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
        windows = y.shape[0]
        q, k, v = m.qkv(y).reshape(windows, 16, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = m.bias[m.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        y = ((q * 0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        y = m.proj(y.transpose(1, 2).reshape(windows, 16, c)).view(-1, h // 4, w // 4, 4, 4, c)
        y = torch.roll(y.permute(0, 1, 3, 2, 4, 5).contiguous().view(n, h, w, c), (2, 2), (1, 2))
        return m.head((x + y).mean((1, 2)))

    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
    apart = (places[:, :, None] - places[:, None]).permute(1, 2, 0) + 3
    net = Net(forward, stem=nn.Conv2d(3, 16, 2, 2), bias=nn.Parameter(torch.zeros(49, 4)),
              index=apart[..., 0] * 7 + apart[..., 1], head=nn.Linear(16, 5), **attention())  # fmt: skip
    check(net, {"head"}, zero=False)


def test_channels_last_block_with_layer_scale_and_response_norm() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        y = F.gelu(m.up(m.norm(m.depth(x).permute(0, 2, 3, 1))))
        energy = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        y = m.gain * (y * (energy / (energy.mean(-1, keepdim=True) + 1e-6))) + y
        return m.head((x + (m.scale * m.down(y)).permute(0, 3, 1, 2)).mean([-2, -1]))

    net = Net(forward, stem=nn.Conv2d(3, 16, 4, 4), depth=nn.Conv2d(16, 16, 7, padding=3, groups=16),
              norm=nn.LayerNorm(16), up=nn.Linear(16, 64), down=nn.Linear(64, 16), head=nn.Linear(16, 5),
              gain=nn.Parameter(torch.ones(1, 1, 1, 64)), scale=nn.Parameter(torch.ones(16)))  # fmt: skip
    check(net, {"head"}, zero=False)


def test_ghost_module() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        y = m.primary(x)
        return m.head(pooled(x + m.out(torch.cat([y, m.cheap(y)], 1)[:, :10, :, :])))

    net = Net(forward, stem=conv(3, 8), primary=conv(8, 6, 1), cheap=conv(6, 6, groups=6), out=conv(10, 8, 1),
              head=nn.Linear(8, 5))  # fmt: skip
    check(net, {"head"})


def test_attention_in_einsum() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x).flatten(2).transpose(1, 2)
        batch, tokens, width = x.shape
        q, k, v = [layer(x).view(batch, tokens, 4, 4) for layer in (m.q, m.k, m.v)]
        weights = torch.einsum("bihd,bjhd->bhij", q, k).mul(0.5).softmax(-1)
        return m.head((x + m.out(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(batch, tokens, width))).mean(1))

    square = {name: nn.Linear(16, 16) for name in ("q", "k", "v", "out")}
    check(Net(forward, stem=nn.Conv2d(3, 16, 4, 4), head=nn.Linear(16, 3), **square), {"head"})


def test_rotary_positions_and_a_gated_feed_forward() -> None:
    def turned(x: Tensor, m: Any) -> Tensor:
        one, other = x.chunk(2, -1)
        found: Tensor = x * m.cos + torch.cat([-other, one], -1) * m.sin
        return found

    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x).flatten(2).transpose(1, 2)
        batch, tokens, width = x.shape
        q, k, v = m.qkv(x).view(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(turned(q, m), turned(k, m), v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + m.proj(y)
        one, other = m.gated(x).chunk(2, -1)
        return m.head((x + m.down(F.silu(one) * other)).mean(1))

    angles = torch.cat([torch.outer(torch.arange(16.0), torch.tensor([1.0, 0.1]))] * 2, -1)
    net = Net(forward, stem=nn.Conv2d(3, 16, 4, 4), qkv=nn.Linear(16, 48), proj=nn.Linear(16, 16),
              gated=nn.Linear(16, 48), down=nn.Linear(24, 16), head=nn.Linear(16, 3), cos=angles.cos(),
              sin=angles.sin())  # fmt: skip
    check(net, {"head"})


def test_tokens_from_an_embedding() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.view(1, 1, -1).expand(x.size(0), -1, -1), x], 1) + m.table(m.places)
        return m.head((x + attend(m, x))[:, 0])

    net = Net(forward, stem=nn.Conv2d(3, 16, 4, 4), table=nn.Embedding(17, 16), places=torch.arange(17),
              token=nn.Parameter(torch.zeros(16)), head=nn.Linear(16, 3), **attention())  # fmt: skip
    result = check(net, {"head"}, zero=False)
    assert result.module.get_parameter("table.weight").shape == (17, 8)


def test_in_place_and_functional_norms() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = F.batch_norm(m.a(x), m.mean, m.var, m.gain, m.shift, m.training)
        y = F.gelu(y).add_(m.b(x))
        z = m.c(y)
        z += y
        return m.head(z.clamp_(min=-1.0).sub_(1.0))

    net = Net(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 8, 1),
              head=nn.Conv2d(8, 4, 1), mean=torch.randn(8), var=torch.rand(8) + 0.5, gain=nn.Parameter(torch.ones(8)),
              shift=nn.Parameter(torch.zeros(8)))  # fmt: skip
    check(net, {"head"})


def test_recurrent_cells_of_convolutions() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        hidden = state = torch.zeros_like(x)
        for _ in range(2):
            i, f, o, g = torch.split(m.gates(torch.cat([x, hidden], 1)), 8, 1)
            state = f.sigmoid() * state + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * state.tanh()
        return m.head(hidden)

    net = Net(forward, stem=conv(3, 8), gates=nn.Conv2d(16, 32, 3, padding=1), head=nn.Conv2d(8, 3, 1))
    check(net, {"head"})


def test_a_recurrent_layer_stays_with_what_feeds_it() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y, _ = m.rnn(m.b(m.a(x)).mean(2).transpose(1, 2))
        return m.head(F.relu(m.hidden(y[:, -1])))

    net = Net(forward, a=conv(3, 8), b=conv(8, 8), rnn=nn.LSTM(8, 6, batch_first=True), hidden=nn.Linear(6, 8),
              head=nn.Linear(8, 3))  # fmt: skip
    result = check(net, {"b.0", "head"})
    reasons = {d.where: d.why for d in result.diagnostics}
    assert "enters 'lstm', which is not followed at 'rnn'" in reasons["b.0"]


def test_padded_shortcuts() -> None:
    """The shortcuts without weights of CIFAR's ResNets."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x)
        y = m.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        z = F.avg_pool2d(x, 2)
        return m.head(pooled(F.relu(y)) + pooled(m.c(x) + torch.cat([z, z.mul(0)], 1)))

    net = Net(forward, a=conv(3, 8), b=conv(8, 16, stride=2), c=conv(8, 16, stride=2), head=nn.Linear(16, 5))
    check(net, {"head"})


def test_branches_weighed_by_softmax() -> None:
    """Selective kernels, and hierarchical residuals within a layer."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        branches = torch.cat([layer(x).unsqueeze(1) for layer in (m.a, m.b)], 1)
        squeezed = F.relu(m.squeeze(branches.sum(1).mean(-1).mean(-1)))
        weights = torch.cat([layer(squeezed).unsqueeze(1) for layer in m.excite], 1).softmax(1)
        x = (branches * weights.unsqueeze(-1).unsqueeze(-1)).sum(1)
        pieces = torch.split(x, 4, 1)
        one = m.first(pieces[0])
        return m.head(pooled(x + m.out(torch.cat([one, m.second(pieces[1] + one), pieces[2]], 1))))

    net = Net(forward, stem=conv(3, 12), a=conv(12, 12, groups=2), b=conv(12, 12, 5, groups=2),
              squeeze=nn.Linear(12, 4), excite=nn.ModuleList(nn.Linear(4, 12) for _ in range(2)), first=conv(4, 4),
              second=conv(4, 4), out=nn.Conv2d(12, 12, 1), head=nn.Linear(12, 3))  # fmt: skip
    check(net, {"head"})


def test_super_resolution_and_autoencoder() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.encode(x)
        y = m.decode(F.relu(m.widen(m.narrow(y.flatten(1)))))
        return m.up(y + m.body(y) * 0.1)

    net = Net(forward, encode=nn.Sequential(conv(3, 8, stride=2), conv(8, 16, stride=2)), narrow=nn.Linear(256, 10),
              widen=nn.Linear(10, 256),
              decode=nn.Sequential(nn.Unflatten(1, (16, 4, 4)), nn.ConvTranspose2d(16, 8, 4, 2, 1)),
              body=nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1)),
              up=nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(8, 3, 1)))  # fmt: skip
    check(net, {"up.2"})


@pytest.mark.parametrize(
    ("shape", "layer", "norm"), [((2, 3, 16), nn.Conv1d, nn.BatchNorm1d), ((2, 3, 4, 8, 8), nn.Conv3d, nn.BatchNorm3d)]
)
def test_signals_and_videos(
    shape: tuple[int, ...], layer: Callable[..., nn.Module], norm: Callable[..., nn.Module]
) -> None:
    forward = lambda m, x: m.head(m.b(F.relu(m.norm(m.a(x)))).flatten(2).mean(-1))  # noqa: E731
    net = Net(forward, a=layer(3, 8, 3, padding=1), norm=norm(8), b=layer(8, 8, 1), head=nn.Linear(8, 4))
    check(net, {"head"}, shape)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda y: y.cumsum(1),
    "softmax": lambda y: y.softmax(1),
    "argmax": lambda y: y * y.argmax(1, keepdim=True),
    "sort": lambda y: y.sort(1)[0],
    "median": lambda y: y - y.median(1, keepdim=True)[0],
    "product": lambda y: y * y.prod(1, keepdim=True),
    "flip": lambda y: y.flip(1),
    "roll": lambda y: y.roll(1, 1),
    "index": lambda y: y.index_select(1, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])),
    "stride": lambda y: torch.cat([y[:, ::2], y[:, 1::2]], 1),
    "list": lambda y: y[:, [7, 6, 5, 4, 3, 2, 1, 0]],
    "transform": lambda y: y + torch.fft.rfft2(y).real.sum((2, 3), keepdim=True),
    "response": lambda y: F.local_response_norm(y, 3),
    "covariance": lambda y: ((y.flatten(2) @ y.flatten(2).transpose(1, 2)).softmax(-1) @ y.flatten(2)).view_as(y),
    "neighbours": lambda y: y * F.conv1d(pooled(y).unsqueeze(1), torch.ones(1, 1, 3), padding=1).view(-1, 8, 1, 1),
}


def around(mixing: Callable[[Tensor], Tensor]) -> Net:
    forward = lambda m, x: m.head(F.relu(m.b(mixing(m.a(x)))))  # noqa: E731
    return Net(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 6, 3, padding=1), head=nn.Conv2d(6, 4, 1))


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_channels_keeps_them_and_says_so(name: str) -> None:
    result = check(around(MIXING[name]), {"a", "head"})
    (reason,) = [d.why for d in result.diagnostics if d.code == "not-pruned" and d.where == "a"]
    assert reason.startswith("keeps its 8 outputs: its channel ")
    assert " at '" in reason


MOVING: dict[str, Callable[[Tensor], Tensor]] = {
    "halves swapped": lambda y: torch.cat([y[:, 4:], y[:, :4]], 1),
    "halves added": lambda y: y + torch.cat([y[:, 4:], y[:, :4]], 1),
    "repeated": lambda y: y.repeat(1, 2, 1, 1)[:, 4:12],
    "maximum of halves": lambda y: y + torch.max(y[:, :4], y[:, 4:]).repeat(1, 2, 1, 1),
    "shifted": lambda y: torch.cat([y[:, :2].roll(1, 2), y[:, 2:4].roll(-1, 2), y[:, 4:]], 1),
    "summed in groups": lambda y: y.unflatten(1, (2, 4)).sum(1).repeat(1, 2, 1, 1),
    "softmax of groups": lambda y: y.unflatten(1, (2, 4)).softmax(1).flatten(1, 2),
    "outer product": lambda y: torch.einsum("bchw,bdhw->bcdhw", y, y).sum(2),
    "normalized": lambda y: F.normalize(y) + y / (y.norm(dim=1, keepdim=True) + 1),
    "scaled by the width": lambda y: y - y.sum(1, keepdim=True) / y.shape[1],
    "unshuffled": lambda y: F.pixel_shuffle(F.pixel_unshuffle(y, 2), 2),
    "sampled": lambda y: F.grid_sample(y, torch.zeros(y.shape[0], 4, 4, 2), align_corners=False),
    "turned": lambda y: torch.rot90(y, 1, (2, 3)).cumsum(2),
    "masked": lambda y: y * (y > 0) + y.masked_fill(y < -1, 2.0),
}


@pytest.mark.parametrize("name", MOVING)
def test_what_moves_channels_is_followed(name: str) -> None:
    check(around(MOVING[name]), {"head"})


FOLLOWED = [
    pytest.param(
        lambda y: torch.where(y > 0, y, y * 0.1),
        id="where",
    ),
    pytest.param(
        lambda y: (y > 0).float() * y, id="mask as numbers"
    ),
    pytest.param(lambda y: 1.0 / (1.0 + y.exp()), id="reciprocal"),
    pytest.param(
        lambda y: y - torch.var_mean(y, 1, keepdim=True)[1],
        id="var_mean",
    ),
    pytest.param(
        lambda y: y / (y.var(1, False, True) + 1),  # as torch has it
        id="var by position",
    ),
    pytest.param(
        lambda y: y - torch.mean(y, axis=1, keepdims=True),  # type: ignore[call-overload]  # numpy's names
        id="mean along an axis",
    ),
    pytest.param(
        lambda y: y + y.flatten(2).relu_().view_as(y),
        id="view in place",
    ),
    pytest.param(
        lambda y: y * torch.sum(input=torch.cat(torch.chunk(input=y, chunks=3, dim=1), 1), dim=2, keepdim=True),
        id="by name",
    ),
    pytest.param(lambda y: torch.max(input=y, other=y * 2), id="larger of two by name"),
]  # fmt: skip


@pytest.mark.parametrize("mixing", FOLLOWED)
def test_operations_that_should_be_followed(mixing: Callable[[Tensor], Tensor]) -> None:
    check(around(mixing), {"head"}, zero=False)


def test_logsumexp_weighs_channels() -> None:
    check(around(lambda y: y - y.logsumexp(1, keepdim=True)), {"a", "head"})


IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "unsqueeze": lambda y: y.unsqueeze_(1), "transposed": lambda y: y.unsqueeze_(2).transpose_(1, 2),
    "squeezed": lambda y: y.unsqueeze_(1).unsqueeze_(1).squeeze_(1), "turned twice": lambda y: (y.t_(), y.t_()),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_shape_changed_in_place_is_that_of_what_reads_it_later(name: str) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = pooled(m.a(x))
        before = y.flatten(1).sum(1)
        IN_PLACE[name](y)
        return m.head(m.b(y)) + before.sum()

    check(Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 6), head=nn.Linear(6, 4)), {"head"})


def test_kernels_made_for_each_image() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x)
        n, c, h, w = x.shape
        style = m.style(pooled(x)).view(n, 1, c, 1, 1)
        kernels = (m.kernel * style).view(n * 6, c, 3, 3)
        return m.head(F.conv2d(x.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, 6, h, w))

    net = Net(forward, a=conv(3, 8), style=nn.Linear(8, 8), kernel=nn.Parameter(torch.ones(6, 8, 3, 3)),
              head=nn.Conv2d(6, 3, 1))  # fmt: skip
    result = shrink_model(randomized(net), input_shape=IMAGE, keep=0.5)
    assert result.widths["a.0"] == (8, 4)
    assert result.module.get_parameter("kernel").shape[1] == 4


def test_one_survivor_in_each_group_of_a_shuffle() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        n, c, h, w = y.shape
        return m.head(y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w))

    net = Net(forward, a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net.get_parameter("a.weight")[[0, 2, 5, 7]] += 9.0  # the first, the first, the second, the second of a group
    assert shrink_model(net.eval(), input_shape=IMAGE, keep=0.5).kept["a.weight"] == [0, 2, 5, 7]


def test_grouped_transposed_convolution() -> None:
    up = nn.ConvTranspose2d(8, 12, 2, 2, groups=2)
    lone = nn.ConvTranspose2d(12, 12, 3, groups=12)
    net = Net(lambda m, x: m.head(m.lone(m.up(m.a(x)))), a=conv(3, 8), up=up, lone=lone, head=nn.Conv2d(12, 3, 1))
    widths = check(net, {"head"}).widths
    assert (widths["up"], widths["lone"]) == ((12, 6), (12, 6))


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
@pytest.mark.parametrize("first", [True, False])
def test_torchs_own_encoder_and_decoder(first: bool) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        memory = m.encoder(m.stem(x).flatten(2).transpose(1, 2))
        return m.head(m.decoder(m.queries.weight.unsqueeze(0).repeat(x.shape[0], 1, 1), memory))

    options = {"batch_first": True, "norm_first": first, "dropout": 0.0}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, **options), 1, enable_nested_tensor=False  # type: ignore[arg-type]
    )  # fmt: skip
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, **options), 1)  # type: ignore[arg-type]
    net = Net(forward, stem=nn.Conv2d(3, 16, 4, 4), encoder=encoder, decoder=decoder, queries=nn.Embedding(5, 16),
              head=nn.Linear(16, 3))  # fmt: skip
    result = shrink_model(randomized(net), input_shape=IMAGE, keep=0.5)
    assert result.widths["stem"] == (16, 8)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated.*")
def test_a_model_with_weight_norm_hooks_stays_as_it_was() -> None:
    net = Net(lambda m, x: m.head(F.relu(m.b(m.a(x)))), a=nn.utils.weight_norm(nn.Conv2d(3, 8, 1)),
              b=nn.Conv2d(8, 6, 1), head=nn.Conv2d(6, 4, 1)).eval()  # fmt: skip
    images = torch.randn(IMAGE)
    before = net(images)
    result = shrink_model(net, input_shape=IMAGE, keep=0.5)
    assert result.widths["b"] == (6, 3)
    assert type(net.get_submodule("a").weight) is Tensor
    assert torch.equal(net(images), before)


def test_a_parametrized_layer_is_listed_with_its_reason() -> None:
    net = Net(lambda m, x: m.head(m.c(m.b(m.a(x)))), a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 6, 1),
              b=nn.utils.parametrizations.orthogonal(nn.Conv2d(8, 8, 1)), head=nn.Conv2d(6, 4, 1))  # fmt: skip
    result = shrink_model(net.eval(), input_shape=IMAGE, keep=0.5)
    (why,) = {d.why for d in result.diagnostics if d.code == "not-pruned" and d.where == "b"}
    assert "enters 'tril', which is not followed at 'b'" in why


def exported(m: Any, x: Tensor) -> Any:
    return m.head(pooled(torch.cat(list(m.stem(x).chunk(2, 1)), 1)))  # a list of chunks: only torch.export traces it


def test_statistics_move_and_dropout_drops_where_the_model_was_traced_by_export() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, momentum=0.5), nn.ReLU(), nn.Dropout(0.5))
    result = shrink_model(Net(exported, stem=stem, head=nn.Linear(8, 4)).eval(), input_shape=IMAGE, keep=0.5)
    assert result.rung == "export"
    assert not {d.code for d in result.diagnostics} & {"frozen-batch-norm", "frozen-mode"}
    module, images = result.module, torch.randn(IMAGE) + 1
    first = F.conv2d(images, module.get_parameter("stem.0.weight"), module.get_parameter("stem.0.bias"))
    assert not torch.equal(module.train()(images), module(images))
    expected = 0.25 * 0.0 + (1 - 0.25) * first.mean((0, 2, 3))  # two calls at momentum 0.5, from zero
    assert torch.allclose(module.get_buffer("stem.1.running_mean"), expected, atol=1e-6)


def test_statistics_of_a_batch_norm_that_is_no_layer_stay_and_that_is_said() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(pooled(F.batch_norm(m.a(x), m.mean, m.var, training=m.training)))

    net = Net(forward, a=nn.Conv2d(3, 8, 1), head=nn.Linear(8, 4))
    net.register_buffer("mean", torch.zeros(8))
    net.register_buffer("var", torch.ones(8))
    result = shrink_model(net.eval(), input_shape=IMAGE, keep=0.5)
    assert "frozen-batch-norm" in {d.code for d in result.diagnostics}
    before = result.module.get_buffer("mean").clone()
    result.module.train()(torch.randn(IMAGE) + 1)
    assert torch.equal(result.module.get_buffer("mean"), before)


MOVING_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "channels": nn.Dropout2d,
    "alpha": nn.AlphaDropout, "rrelu": lambda: nn.RReLU(0.1, 0.9), "maps": nn.FeatureAlphaDropout,
}  # fmt: skip


@pytest.mark.parametrize("name", MOVING_LAYERS)
def test_other_layers_of_two_modes_are_layers_again(name: str) -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 1), MOVING_LAYERS[name]())
    net = Net(exported, stem=stem, head=nn.Linear(8, 4)).eval()
    result = shrink_model(net, input_shape=IMAGE, keep=0.5)
    assert result.rung == "export"
    assert not {d.code for d in result.diagnostics} & {"frozen-batch-norm", "frozen-mode"}
    images = torch.randn(IMAGE) + 1
    expected = result.module(images)
    assert not torch.allclose(result.module.train()(images), expected)
    assert type(result.module.get_submodule("stem.1")) is type(stem[1])


STEADY: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "own statistics": lambda m, y: m.norm(y),
    "each image": lambda m, y: m.each(y),
    "no chance": lambda m, y: F.dropout(y, 0.0, training=m.training),
}  # fmt: skip


def steady(apply: Callable[[Any, Tensor], Tensor], rung: str) -> Net:
    def forward(m: Any, x: Tensor) -> Any:
        y = apply(m, m.a(x))
        return exported(m, y) if rung == "export" else m.head(pooled(m.stem(y)))

    each, norm = nn.InstanceNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False)
    parts = {"a": nn.Conv2d(3, 8, 1), "stem": nn.Conv2d(8, 8, 1), "norm": norm, "each": each, "head": nn.Linear(8, 4)}
    return Net(forward, **parts)


@pytest.mark.parametrize("rung", ["symbolic", "export"])
@pytest.mark.parametrize("name", STEADY)
def test_what_is_the_same_in_both_modes_stays_and_nothing_is_said(name: str, rung: str) -> None:
    result = shrink_model(steady(STEADY[name], rung).eval(), input_shape=IMAGE, keep=0.5)
    assert result.rung == rung
    assert not {d.code for d in result.diagnostics} & {"frozen-batch-norm", "frozen-mode"}


@pytest.mark.parametrize("rung", ["symbolic", "export"])
def test_dropout_that_always_drops_does_so_in_the_graph(rung: str) -> None:
    net = steady(lambda _m, y: F.dropout(y, 0.5, training=True), rung).eval()
    traced = Trace(IMAGE)(net).value
    images = torch.randn(IMAGE)
    assert traced.rung == rung
    assert not torch.equal(traced.module.eval()(images), traced.module(images))


def test_dropout_that_is_no_layer_stays_off_and_that_is_said() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(pooled(F.dropout2d(m.a(x), 0.5, m.training)))

    result = shrink_model(Net(forward, a=nn.Conv2d(3, 8, 1), head=nn.Linear(8, 4)).eval(), input_shape=IMAGE, keep=0.5)
    assert [d.where for d in result.diagnostics if d.code == "frozen-mode"] == ["dropout2d"]
    images = torch.randn(IMAGE)
    assert torch.equal(result.module.train()(images), result.module.eval()(images))


def test_a_model_in_double_precision() -> None:
    net = Net(lambda m, x: m.head(F.relu(m.a(x))), a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1)).double()
    assert shrink_model(net.eval(), input_shape=IMAGE, keep=0.5).widths["a"] == (8, 4)


def test_batch_norms_scales_of_a_model_without_any() -> None:
    net = Net(lambda m, x: m.head(F.relu(m.a(x))), a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 4, 1)).eval()
    with pytest.raises(FxdistillError, match=r"bn|BatchNorm|norm"):
        shrink_model(net, input_shape=IMAGE, keep=0.5, criterion="bn")


def test_the_chain_goes_the_way_of_the_coupling() -> None:
    net = Net(lambda m, x: m.head(F.relu(m.a(x)) + x), a=nn.Conv2d(3, 3, 1), head=nn.Conv2d(3, 4, 1)).eval()
    coupling = Couple()(Trace(IMAGE)(net).value).value
    assert coupling.chain("a", coupling.classes("a")[0]) == ("a", "relu", "add", "x")

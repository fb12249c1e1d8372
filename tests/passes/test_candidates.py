"""Candidates: taps where channels cannot be removed, where branches run side by side, and at the ends of stages."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxdistill
from fxdistill.errors import PairingError
from fxdistill.passes.couple import Couple
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.trace import Trace

IMAGE = (2, 3, 32, 32)


def standardized_mse(one: Tensor, other: Tensor) -> Tensor:
    """By hand, of two maps: every channel less its mean, over its standard deviation."""
    moments = [torch.var_mean(value, (0, 2, 3), unbiased=False, keepdim=True) for value in (one, other)]
    scaled = [(x - mean) / (var + 1e-5).sqrt() for x, (var, mean) in zip((one, other), moments, strict=True)]
    return (scaled[0] - scaled[1]).square().mean()


class AlongChannels(nn.Module):
    """Gates channels by a convolution over their means, each with its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        del width
        self.mix = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mix(x.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(3)


class AlongSorted(nn.Module):
    """Adds what no rule follows: the running sum over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.cumsum(x, 1)


class AlongPositions(nn.Module):
    """Multiplies with an image of constant numbers for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0.5, 1.5, self.width)[:, None, None]


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.second, self.gate = nn.Conv2d(width, width, 3, padding=1), gate(width)
        self.short, self.act = nn.Conv2d(inputs, width, 1, stride=2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.short(x) + self.gate(self.second(F.relu(self.norm(self.first(x))))))
        return out


class Gated(nn.Module):
    """Three stages of a residual block, each with a gate of a kind."""

    def __init__(self, width: int, gate: type[nn.Module] = AlongChannels, last: type[nn.Module] | None = None) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer1, self.layer2 = Block(width, width, gate), Block(width, 2 * width, gate)
        self.layer3, self.head = Block(2 * width, 4 * width, last or gate), nn.Linear(4 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer3(self.layer2(self.layer1(self.stem(x)))).mean((2, 3)))
        return logits


class Plain(nn.Identity):
    def __init__(self, width: int) -> None:
        super().__init__()
        del width


def convolution(inputs: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, width, 3, stride=stride, padding=1), nn.BatchNorm2d(width), nn.ReLU())


class Exchange(nn.Module):
    """Two branches, each of which gets the sum of both."""

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.high, self.low = convolution(high, high), convolution(low, low)
        self.up, self.down = nn.Conv2d(low, high, 1), nn.Conv2d(high, low, 3, stride=2, padding=1)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        high, low = self.high(high), self.low(low)
        return F.relu(high + F.interpolate(self.up(low), scale_factor=2.0)), F.relu(low + self.down(high))


class SideBySide(nn.Module):
    """Branches at 16, 8 and 4 pixels run on to the end, where all of them are pooled."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(convolution(3, width, 2), convolution(width, width))
        self.split1, self.stage1 = convolution(width, 2 * width, 2), Exchange(width, 2 * width)
        self.split2, self.stage2 = convolution(2 * width, 4 * width, 2), Exchange(2 * width, 4 * width)
        self.head = nn.Linear(7 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        high, middle = self.stage1(high, self.split1(high))
        middle, low = self.stage2(middle, self.split2(middle))
        logits: Tensor = self.head(torch.cat([one.mean((2, 3)) for one in (high, middle, low)], 1))
        return logits


class Shaped(nn.Module):
    """An encoder and a decoder with a bridge at every size, in blocks, that hands the sizes on beside the maps."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down1 = nn.Sequential(convolution(3, width), convolution(width, width))
        self.down2 = nn.Sequential(convolution(width, 2 * width, 2), convolution(2 * width, 2 * width))
        self.down3 = nn.Sequential(convolution(2 * width, 4 * width, 2), convolution(4 * width, 4 * width))
        self.up2 = nn.Sequential(convolution(6 * width, 2 * width), convolution(2 * width, 2 * width))
        self.up1 = nn.Sequential(convolution(3 * width, width), convolution(width, width))
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(one)
        three = self.down3(two)
        two = self.up2(torch.cat([F.interpolate(three, scale_factor=2.0), two], 1))
        logits: Tensor = self.head(self.up1(torch.cat([F.interpolate(two, scale_factor=2.0), one], 1)))
        return logits


def survey(module: nn.Module) -> Survey:
    traced = Trace(IMAGE)(module.eval()).value
    return Survey(traced, Couple()(traced).value)


def firsts(module: nn.Module) -> list[str]:
    return [stage[0].path for stage in survey(module).stages]


def compiled(teacher: nn.Module, student: nn.Module, **options: object) -> fxdistill.Plan:
    return fxdistill.compile(teacher, student, fxdistill.Options(input_shape=IMAGE, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("gate", [AlongChannels, AlongSorted, AlongPositions])
def test_a_tap_is_sliced_wherever_its_channels_are_known(gate: type[nn.Module]) -> None:
    teacher, student = Gated(16, gate).eval(), Gated(4, Plain).eval()
    plan = compiled(teacher, student)
    assert [(p.teacher.path, p.align) for p in plan.pairs] == [(f"layer{i}.act", "slice") for i in (1, 2, 3)]
    for kept, block in zip(plan.kept, (teacher.layer1, teacher.layer2, teacher.layer3), strict=True):
        # both weights that produce a channel count
        norms = torch.stack([c.weight.detach().abs().sum((1, 2, 3)) for c in (block.second, block.short)]).sum(0)
        assert kept.channels == sorted(norms.topk(len(kept.channels)).indices.tolist())
    program = fxdistill.build(plan, teacher, student)
    images = torch.randn(IMAGE)
    found: list[Tensor] = []
    handle = teacher.layer1.act.register_forward_hook(lambda _m, _i, out: found.append(out))
    with torch.no_grad():
        teacher(images)
    handle.remove()
    stage = fxdistill.specialize(program, "warm-up-1").train()
    losses = stage({"images": images, "labels": torch.tensor([0, 1])})
    stage.total(losses).backward()
    assert student.layer1.first.weight.grad is not None
    assert all(p.grad is None for p in teacher.parameters())
    own: list[Tensor] = []
    student.train()
    handle = student.layer1.act.register_forward_hook(lambda _m, _i, out: own.append(out))
    with torch.no_grad():
        student(images)
    handle.remove()
    torch.testing.assert_close(losses["mse[layer1]"], standardized_mse(own[0], found[0][:, plan.kept[0].channels]))


def test_a_teacher_that_cannot_be_shrunk_there_is_projected_with_its_reason() -> None:
    plan = compiled(Gated(16, Plain, AlongChannels), Gated(4, Plain), align="shrink")
    assert [p.align for p in plan.pairs] == ["shrink", "shrink", "project"]
    (remark,) = [d for d in plan.diagnostics if d.code == "teacher-locked"]
    assert remark.where == "layer3"
    assert "64 of them must stay" in remark.why
    assert "layer3.gate.mix" in remark.why
    assert [p.teacher.width for p in plan.pairs] == [4, 8, 64]


def test_where_no_tap_can_be_shrunk_the_refusal_says_why() -> None:
    with pytest.raises(PairingError, match=r"layer1\.gate\.mix") as refusal:
        compiled(Gated(16), Gated(4, Plain), align="shrink")
    assert "--align slice" in refusal.value.hint


def test_of_branches_side_by_side_the_lowest_resolution_is_tapped() -> None:
    assert firsts(SideBySide()) == ["stem.1.2", "stage1.relu_1", "stage2.relu_1"]
    plan = compiled(SideBySide(), Gated(4, Plain))
    assert [(p.teacher.path, p.student.path) for p in plan.pairs] == [
        ("stem.1.2", "layer1.act"), ("stage1.relu_1", "layer2.act"), ("stage2.relu_1", "layer3.act"),
    ]  # fmt: skip
    assert [any("side by side in the teacher" in line for line in p.why) for p in plan.pairs] == [False, True, True]


def test_an_encoder_is_tapped_below_its_bridges_and_a_decoder_where_all_comes_together() -> None:
    assert firsts(Shaped()) == ["down1.1.2", "down2.1.2", "down3.1.2", "up1.1.2"]


class Bare(nn.Module):
    """Its first block ends in a bare convolution, whose norm and activation follow outside."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU()
        self.layer, self.head = Block(8, 16, Plain), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(self.act(self.norm(self.deep(x)))).mean((2, 3)))
        return logits


def test_a_block_that_ends_in_a_bare_layer_is_tapped_behind_its_activation() -> None:
    assert firsts(Bare()) == ["act", "layer.act"]


class Stem(nn.Module):
    """A stem at the top, of the same resolution as the first of the stages inside a container."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 8, 2), convolution(8, 8), convolution(8, 8, 2))
        stages = [
            nn.Sequential(*(convolution(8, 8) for _ in range(6))),
            nn.Sequential(Block(8, 16, Plain), *(convolution(16, 16) for _ in range(6))),
        ]
        self.body, self.head = nn.ModuleDict({"stages": nn.Sequential(*stages)}), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body["stages"](self.stem(x)).mean((2, 3)))
        return logits


def test_a_stem_does_not_stand_for_the_stage_that_lies_deeper_in_the_tree_of_modules() -> None:
    assert firsts(Stem()) == ["body.stages.0.5.2", "body.stages.1.6.2"]


class Windows(nn.Module):
    """Attention in windows, which are no images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        windows = x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 8)
        x = self.mix(windows).reshape(x.shape[0], 2, 2, 4, 4, 8).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_windows_of_an_image_are_no_images() -> None:
    found = survey(Windows())
    assert all(c.tap.shape[0] == IMAGE[0] for c in found.candidates)
    with pytest.raises(PairingError, match="cannot be tapped"):
        compiled(Windows(), Windows(), pins=(("mix.2", "mix.2"),))


class Attending(nn.Module):
    """Mixes tokens with all others and channels with each other."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        del tokens
        self.norm, self.queries, self.values = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + F.softmax(self.queries(y) @ y.transpose(1, 2), 2) @ self.values(y)
        out: Tensor = x + self.channels(x)
        return out


class Mixing(nn.Module):
    """The same by a layer over the tokens, whose outputs could be removed one by one, as channels could."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.tokens = nn.LayerNorm(width), nn.Linear(tokens, tokens)
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.channels(x)
        return out


class Registered(nn.Module):
    """Sixteen patches, a class token, and registers before or behind them, laid there at once or one after another."""

    def __init__(
        self, width: int = 12, registers: int = 2, how: str = "at once", block: type[nn.Module] = Attending
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.how = nn.Conv2d(3, width, 8, 8), how
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.registers = nn.Parameter(torch.randn(1, registers, width))
        self.blocks = nn.Sequential(*(block(width, 17 + registers) for _ in range(4)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        token, registers = (one.expand(x.shape[0], -1, -1) for one in (self.token, self.registers))
        if self.how == "at once":
            x = torch.cat([token, registers, x], 1)
        elif self.how == "behind":
            x = torch.cat([token, x, registers], 1)
        else:
            x = torch.cat([token, x], 1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
        logits: Tensor = self.head(self.blocks(x)[:, 0])
        return logits


@pytest.mark.parametrize(
    ("how", "registers", "block"),
    [("at once", 4, Attending), ("one after another", 1, Attending), ("one after another", 4, Mixing)],
)
def test_registers_are_left_aside_like_the_class_token(how: str, registers: int, block: type[nn.Module]) -> None:
    teacher, student = Registered(12, registers, how, block).eval(), Gated(4, Plain).eval()
    plan = compiled(teacher, student)
    assert [(p.teacher.class_token, p.teacher.registers) for p in plan.pairs] == [(True, registers)] * 3
    values: dict[str, Tensor] = {}
    teacher.blocks[2].register_forward_hook(lambda _m, _i, out: values.update(teacher=out))
    student.layer2.act.register_forward_hook(lambda _m, _i, out: values.update(student=out))
    images = torch.randn(IMAGE)
    found = fxdistill.build(plan, teacher, student)({"images": images, "labels": torch.tensor([0, 1])})
    with torch.no_grad():
        teacher.eval()(images)
        student.train()(images)
    pair = next(p for p in plan.pairs if p.name == "layer2")
    assert pair.teacher.path.startswith("blocks.2.")
    kept = next(k.channels for k in plan.kept if k.pair == "layer2")
    grid = values["teacher"][:, 1 + registers :, kept].transpose(1, 2).unflatten(2, (4, 4))
    small = min(4, values["student"].shape[2])
    pooled = (F.adaptive_avg_pool2d(value, small) for value in (values["student"], grid))
    expected = standardized_mse(*pooled)
    torch.testing.assert_close(found["mse[layer2]"], expected)


def test_tokens_behind_the_positions_are_not_taken_for_registers() -> None:
    with pytest.raises(PairingError, match="form no square grid"):
        compiled(Registered(how="behind"), Gated(4, Plain))

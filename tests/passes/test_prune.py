"""Prune: the kept channels of sliced pairs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.criteria import Criterion, importance
from fxdistill.errors import InputError, InvariantError, PairingError, PlanError
from fxdistill.ir.channels import Channels
from fxdistill.passes.couple import Couple
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.prune import Prune, PruneSource
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Align, Kept, Pair
from fxdistill.registry import Registry

IMAGE = (1, 3, 8, 8)


def net(*widths: int) -> nn.Sequential:
    torch.manual_seed(len(widths) + sum(widths))
    stem, inner, outer = widths
    return nn.Sequential(
        nn.Conv2d(3, stem, 3, padding=1), nn.ReLU(), nn.Conv2d(stem, inner, 3, padding=1), nn.ReLU(),
        nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(outer, 5),
    ).eval()  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def paired(
    teacher: nn.Module, student: nn.Module, pins: tuple[tuple[str, str], ...], align: Align = "slice"
) -> PruneSource:
    one, other = Trace(IMAGE)(teacher).value, Trace(IMAGE)(student).value
    couplings = Couple()(one).value, Couple()(other).value
    surveys = Survey(one, couplings[0]), Survey(other, couplings[1], "student")
    pairs: tuple[Pair, ...] = Match(pins=pins, align=align)(MatchSource(*surveys)).value
    return PruneSource(one, couplings[0], pairs)


def kept_of(source: PruneSource, path: str, criterion: str = "l1") -> Kept:
    return next(one for one in Prune(criterion=criterion)(source).value if one.path == path)


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
def test_the_filters_of_largest_norm_are_kept_in_their_order(criterion: str, order: int) -> None:
    teacher = net(8, 12, 16)
    source = paired(teacher, net(4, 6, 8), (("2", "2"),))
    norms = torch.linalg.vector_norm(teacher.get_parameter("2.weight").detach().flatten(1), ord=order, dim=1)
    kept = kept_of(source, "2", criterion)
    assert kept.channels == sorted(norms.topk(6).indices.tolist())
    assert (kept.width, kept.criterion, kept.coupled) == (12, criterion, ["2"])


def test_coupled_weights_count_together_and_nest() -> None:
    teacher, student = Residual(), net(3, 5, 6)
    source = paired(teacher, student, (("stem", "0"), ("add", "2")))
    norms = teacher.stem.weight.detach().abs().flatten(1).sum(1) + teacher.block.weight.detach().abs().flatten(1).sum(1)
    narrow, wide = kept_of(source, "stem"), kept_of(source, "add")
    assert narrow.channels == sorted(norms.topk(3).indices.tolist())
    assert wide.channels == sorted(norms.topk(5).indices.tolist())
    assert set(narrow.channels) < set(wide.channels)
    assert narrow.coupled == ["block", "stem"]


def test_projected_pairs_keep_nothing_in_the_plan() -> None:
    source = paired(net(8, 12, 16), net(4, 6, 8), (("2", "2"),), align="project")
    assert Prune()(source).value == ()


def test_channels_that_are_not_known_are_refused() -> None:
    source = paired(net(8, 12, 16), net(4, 6, 8), (("2", "2"),))
    pair = next(p for p in source.pairs if p.teacher.path == "2")
    wrong = pair.model_copy(update={"teacher": pair.teacher.model_copy(update={"width": 99})})
    with pytest.raises(PairingError, match="the channels of '2' are not known"):
        Prune()(PruneSource(source.teacher, source.coupling, (wrong,)))


def test_what_no_weight_produces_has_no_importance() -> None:
    source = paired(net(8, 12, 16), net(4, 6, 8), ())
    scores = importance("l1", Channels(source.teacher, source.coupling))
    assert float(scores[list(source.coupling.classes("input"))].sum()) == 0


def test_channels_of_which_a_criterion_says_nothing_are_said() -> None:
    normed = nn.Sequential(Residual().stem, nn.ReLU(), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Flatten())
    source = paired(normed.eval(), net(3, 5, 6), (("0", "0"),))
    result = Prune(criterion="bn")(source)
    assert next(one for one in result.value if one.path == "0").channels == [0, 1, 2]
    assert [(d.code, d.where, d.why) for d in result.diagnostics if d.where == "0"] == [
        (
            "no-importance", "0",
            "the criterion 'bn' says nothing about these channels: all count alike, the first are kept",
        )
    ]  # fmt: skip


def test_a_batch_gives_gradients_and_a_seed_numbers() -> None:
    teacher = net(8, 12, 16)
    source = paired(teacher, net(4, 6, 8), (("2", "2"),))
    with pytest.raises(InputError, match="needs gradients"):
        Prune(criterion="taylor")(source)
    images, targets = torch.randn(4, *IMAGE[1:], generator=torch.Generator().manual_seed(0)), torch.arange(4)
    kept = kept_of(replace(source, batch=(images, targets)), "2", "taylor")
    torch.autograd.backward(F.cross_entropy(teacher(images), targets))
    weight = teacher.get_parameter("2.weight")
    assert weight.grad is not None
    by_hand = (weight * weight.grad).abs().flatten(1).sum(1)
    assert kept.channels == sorted(by_hand.topk(6).indices.tolist())
    one, same, other = (Prune(criterion="random", seed=seed)(source).value for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert kept_of(source, "2", "tp.lamp").criterion == "tp.lamp"


@pytest.mark.parametrize("align", ["slice", "project"])
def test_an_unknown_criterion_is_refused_whether_or_not_it_is_needed(align: Align) -> None:
    source = paired(net(8, 12, 16), net(4, 6, 8), (("2", "2"),), align=align)
    with pytest.raises(PlanError, match=r"no criterion named 'tp\.lam'(.|\n)*did you mean 'tp\.lamp'"):
        Prune(criterion="tp.lam")(source)


class Shared(nn.Module):
    """A tap, the same channels in another order, and a concatenation that holds them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mix, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        both = torch.cat([stem.flip(1), self.other(x)], 1)
        logits: Tensor = self.head(both.mean((2, 3)))
        return logits


def wrong_results() -> list[tuple[str, Callable[[list[Kept]], list[Kept]], str]]:
    def channels(change: Callable[[list[int]], list[int]]) -> Callable[[list[Kept]], list[Kept]]:
        return lambda kept: [kept[0].model_copy(update={"channels": change(kept[0].channels)}), *kept[1:]]

    def first(**update: object) -> Callable[[list[Kept]], list[Kept]]:
        return lambda kept: [kept[0].model_copy(update=update), *kept[1:]]

    return [
        ("one too few", channels(lambda found: found[:-1]), "2 channels of 'stem' are kept, but the student has 3"),
        ("one too many", channels(lambda found: sorted([*found, min({*range(8)} - {*found})])), "4 channels of"),
        ("none", channels(lambda found: []), "0 channels of 'stem' are kept"),
        ("unsorted", channels(lambda found: found[::-1]), "not in order, each once"),
        ("twice", channels(lambda found: [found[0], *found[:-1]]), "not in order, each once"),
        ("too large", channels(lambda found: [*found[:-1], 8]), "not one of its 8 channels"),
        ("negative", channels(lambda found: [-1, *found[1:]]), "not one of its 8 channels"),
        ("a missing pair", lambda kept: kept[1:], "kept for '2', but the sliced pairs are '0', '2'"),
        ("no pair", lambda kept: [], "kept for none, but"),
        ("a pair twice", lambda kept: [kept[0], *kept], "kept for '0', '0', '2', but"),
        ("another order", lambda kept: kept[::-1], "kept for '2', '0', but"),
        (
            "a pair that is not sliced",
            lambda kept: [*kept, kept[0].model_copy(update={"pair": "projected"})],
            "'projected'",
        ),
        ("another tap", first(path="other"), "kept of 'other' with 8 channels, but the tap is 'stem'"),
        ("another width", first(width=9), "kept of 'stem' with 9 channels, but"),
        ("not nested", channels(lambda found: sorted({*range(8)} - {*found})[:3]), "are not nested"),
    ]


@pytest.mark.parametrize(("change", "message"), [w[1:] for w in wrong_results()], ids=[w[0] for w in wrong_results()])
def test_a_wrong_result_is_refused(change: Callable[[list[Kept]], list[Kept]], message: str) -> None:
    source = paired(Residual(), net(3, 5, 6), (("stem", "0"), ("add", "2")))
    projected = source.pairs[0].model_copy(update={"name": "projected", "align": "project"})
    source = replace(source, pairs=(projected, *source.pairs))
    value = Prune()(source).value
    Prune().ensures(source, value)
    with pytest.raises(InvariantError, match=message):
        Prune().ensures(source, tuple(change(list(value))))


def test_taps_that_share_channels_are_nested_in_any_order() -> None:
    source = paired(Shared().eval(), net(3, 5, 7), (("stem", "0"), ("cat", "2")))
    value = Prune()(source).value
    assert [one.path for one in value] == ["stem", "cat"]
    classes = source.coupling.classes("cat")
    assert classes[:8] == source.coupling.classes("stem")[::-1]
    wrong = sorted({*range(8)} - {7 - i for i in value[0].channels})[:5]
    with pytest.raises(InvariantError, match="are not nested, though 'cat' and 'stem' share channels"):
        Prune().ensures(source, (value[0], value[1].model_copy(update={"channels": wrong})))


def test_ties_are_nested_too() -> None:
    """Two taps of the same channels in opposite order, all of one importance."""
    teacher = Shared().eval()
    with torch.no_grad():
        teacher.stem.weight.fill_(1.0)
        teacher.other.weight.fill_(1.0)
    value = Prune()(paired(teacher, net(3, 5, 7), (("stem", "0"), ("cat", "2")))).value
    assert value[0].channels == [0, 1, 2]
    assert value[1].channels == [3, 4, 5, 6, 7]


def test_a_touched_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = paired(net(8, 12, 16), net(4, 6, 8), (("2", "2"),))

    def score(channels: Channels) -> Tensor:
        channels.traced.module.get_parameter("2.weight").data.mul_(1.001)
        return channels.zeros()

    monkeypatch.setattr(Registry, "get", lambda *_, **__: Criterion(score=score))
    with pytest.raises(InvariantError, match=r"changed the model that it measures: 2\.weight"):
        Prune(criterion="l1")(source)

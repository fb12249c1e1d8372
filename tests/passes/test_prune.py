"""Prune: the kept channels of sliced pairs."""

import pytest
import torch
from torch import Tensor, nn

from fxdistill.errors import PairingError
from fxdistill.passes.couple import Couple
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.prune import Prune, PruneSource, importance
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Align, Kept, Pair

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
    pairs: tuple[Pair, ...] = Match(pins=pins, align=align)(MatchSource(one, other, *couplings)).value
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
    scores = importance(source.teacher, source.coupling)
    assert float(scores[list(source.coupling.classes("input"))].sum()) == 0

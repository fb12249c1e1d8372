"""Thin: which classes a whole model loses, and why others stay."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill.criteria import importance
from fxdistill.errors import CriterionError, InputError, InvariantError, PairingError, PlanError
from fxdistill.ir.budget import limits_of
from fxdistill.ir.channels import Channels
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Traced
from fxdistill.passes.couple import Couple
from fxdistill.passes.thin import Removal, Thin, ThinSource
from fxdistill.passes.thin.kept import kept_indices, removed_of
from fxdistill.passes.trace import Trace

IMAGE = (2, 3, 8, 8)


class Residual(nn.Module):
    """Two convolutions coupled by an addition, one inside, a classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)
        self.inner, self.outer = nn.Conv2d(width, 12, 1), nn.Conv2d(12, width, 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.g, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.c(self.g(self.a(x))).mean((2, 3))


def sources(net: nn.Module) -> tuple[Traced, Coupling]:
    traced = Trace(IMAGE)(net.eval()).value
    return traced, Couple()(traced).value


def thin(net: nn.Module, **options: object) -> Removal:
    return Thin(**options)(ThinSource(*sources(net))).value  # type: ignore[arg-type]


def test_each_block_keeps_its_share_of_the_most_important() -> None:
    net = Residual()
    removal = thin(net, keep=0.5)
    assert removal.widths == {"stem": (8, 4), "inner": (12, 6), "outer": (8, 4), "head": (5, 5)}
    both = net.stem.weight.abs().flatten(1).sum(1) + net.outer.weight.abs().flatten(1).sum(1)
    assert removal.kept["stem.weight"] == sorted(both.topk(4).indices.tolist())
    assert removal.kept["outer.weight"] == removal.kept["stem.weight"]
    inside = net.inner.weight.abs().flatten(1).sum(1)
    assert removal.kept["inner.weight"] == sorted(inside.topk(6).indices.tolist())


@pytest.mark.parametrize(
    ("keep", "round_to", "stem", "inner"), [(0.5, 4, 4, 8), (0.4, 8, 8, 8), (0.01, 1, 1, 1), (0.7, 2, 6, 8)]
)
def test_widths_are_rounded_to_multiples(keep: float, round_to: int, stem: int, inner: int) -> None:
    widths = thin(Residual(), keep=keep, round_to=round_to).widths
    assert (widths["stem"][1], widths["inner"][1]) == (stem, inner)


def test_protected_paths_stay() -> None:
    result = Thin(keep=0.5, protect=("stem",))(ThinSource(*sources(Residual())))
    assert result.value.widths == {"stem": (8, 8), "inner": (12, 6), "outer": (8, 8), "head": (5, 5)}
    reasons = {d.where: d.why for d in result.diagnostics}
    assert reasons["outer"] == "keeps its 8 outputs: its channel is protected by 'stem'"
    assert reasons["head"] == "keeps its 5 outputs: its channel is the network's output at 'output'"


def test_only_a_part_is_pruned() -> None:
    result = Thin(keep=0.5, only=("inner", "outer"))(ThinSource(*sources(Residual())))
    assert result.value.widths["inner"] == (12, 6)
    assert result.value.widths["outer"] == (8, 8)
    assert (
        "is produced by 'stem', outside of what is to be pruned"
        in {d.where: d.why for d in result.diagnostics}["outer"]
    )


def test_groups_keep_equal_counts() -> None:
    removal = thin(Grouped(), keep=0.5)
    for name in ("a.weight", "g.weight"):
        assert [sum(i // 4 == group for i in removal.kept[name]) for group in (0, 1)] == [2, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda removed, kept, widths, locked: Removal(removed | {locked}, kept, widths),
            "a locked channel was removed",
        ),
        (lambda removed, kept, widths, _: Removal(removed - {min(removed)}, kept, widths), "widths are not those"),
        (
            lambda removed, kept, widths, _: Removal(removed, {**kept, "a.weight": [0]}, widths),
            "kept indices do not say",
        ),
        (
            lambda removed, kept, widths, _: Removal(removed, dict(list(kept.items())[1:]), widths),
            "kept indices do not",
        ),
        (lambda removed, kept, widths, _: Removal(removed, kept, {**widths, "a": (8, 7)}), "widths are not those"),
        (lambda removed, kept, widths, _: Removal(removed, kept, {}), "widths are not those"),
    ],
)
def test_a_wrong_removal_is_caught(wrong: Callable[..., Removal], message: str) -> None:
    source = ThinSource(*sources(Grouped()))
    right = Thin(keep=0.5)(source).value
    locked = min(source.coupling.locks)
    with pytest.raises(InvariantError, match=message):
        Thin(keep=0.5).ensures(source, wrong(right.removed, right.kept, right.widths, locked))


def decided(source: ThinSource, removed: frozenset[int]) -> Removal:
    """A removal that says truly what it removes."""
    before = {name.rpartition(".")[0]: labels for name, labels in source.coupling.producers()}
    widths = {n: (len(c), sum(i not in removed for i in c.tolist())) for n, c in before.items()}
    return Removal(removed, kept_indices(source.coupling, removed), widths)


def test_a_removal_of_unequal_counts_is_caught() -> None:
    source = ThinSource(*sources(Grouped()))
    classes = source.coupling.parameter_labels("a.weight")[0][:, 0, 0, 0].tolist()
    Thin(keep=0.5).ensures(source, decided(source, frozenset((classes[0], classes[5]))))
    with pytest.raises(InvariantError, match=r"unequal counts \[2, 4\]"):
        Thin(keep=0.5).ensures(source, decided(source, frozenset(classes[:2])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protect": ("inner",)}, "a channel was removed that is protected by 'inner'"),
        ({"only": ("stem",)}, "is produced by 'inner', outside of what is to be pruned"),
        ({"widths": (("inner", 6),)}, "the width 6 of 'inner' was not met"),
    ],
)
def test_a_removal_that_is_not_what_was_asked_for_is_caught(options: dict[str, Any], message: str) -> None:
    source = ThinSource(*sources(Residual()))
    classes = source.coupling.parameter_labels("inner.weight")[0][:, 0, 0, 0].tolist()
    removal = decided(source, frozenset(classes[:2]))
    Thin(keep=0.5).ensures(source, removal)
    with pytest.raises(InvariantError, match=message):
        Thin(keep=0.5, **options).ensures(source, removal)


def test_wanted_widths_leave_the_rest_alone() -> None:
    assert thin(Residual(), widths=(("inner", 5),)).widths == {
        "stem": (8, 8),
        "inner": (12, 5),
        "outer": (8, 8),
        "head": (5, 5),
    }
    assert thin(Residual(), widths=(("add", 3),)).widths["outer"] == (8, 3)
    assert thin(Grouped(), widths=(("g", 6),)).widths["g"] == (8, 6)


def test_an_infeasible_width_names_the_chain() -> None:
    with pytest.raises(
        PairingError, match=r"'head' cannot have 3 channels: 5 of its 5 must stay.*coupled along head → output"
    ):
        thin(Residual(), widths=(("head", 3),))
    with pytest.raises(
        PairingError, match=r"these widths cannot be had together: 5 of 8 at 'g', with equal counts at 'g' \(groups\)"
    ):
        thin(Grouped(), widths=(("g", 5),))
    with pytest.raises(PairingError, match=r"cannot be had together: 3 of 8 at 'stem', 4 of 8 at 'outer'"):
        thin(Residual(), widths=(("stem", 3), ("outer", 4)))
    with pytest.raises(PairingError, match="has 8 channels, so it cannot keep 9"):
        thin(Residual(), widths=(("stem", 9),))


def test_a_request_that_changes_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="changes nothing"):
        thin(Residual(), keep=0.9, round_to=16)
    with pytest.raises(InputError, match="is protected by 'outer'"):
        thin(Residual(), keep=0.5, protect=("outer", "inner"))


@pytest.mark.parametrize("keep", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(keep: float) -> None:
    with pytest.raises(InputError, match="above 0 and below 1"):
        thin(Residual(), keep=keep)


def test_unknown_paths_and_nothing_to_do_are_refused() -> None:
    with pytest.raises(PairingError, match="no node or module has the path 'steem'"):
        thin(Residual(), keep=0.5, protect=("steem",))
    with pytest.raises(InputError, match="how much to keep"):
        thin(Residual())
    with pytest.raises(InputError, match="multiples of 0"):
        thin(Residual(), keep=0.5, round_to=0)


def test_kept_indices_replay_only_on_their_architecture() -> None:
    removal = thin(Residual(), keep=0.5)
    assert removed_of(sources(Residual())[1], removal.kept) == removal.removed
    with pytest.raises(InputError, match=r"no producing weight 'inner\.weight'"):
        removed_of(sources(Grouped())[1], {"inner.weight": [0]})
    with pytest.raises(InputError, match="out of range"):
        removed_of(sources(Residual())[1], {"stem.weight": [8]})


def scores_of(net: nn.Module, weight: str, *, criterion: str, **known: Any) -> Tensor:
    traced, coupling = sources(net)
    labels = coupling.parameter_labels(weight)[0].flatten(1)[:, 0]
    return importance(criterion, Channels(traced, coupling, **known))[labels]


def test_criteria_by_hand() -> None:
    net = Grouped()
    with torch.no_grad():
        net.a.weight.copy_(torch.arange(24.0).reshape(8, 3, 1, 1))
    rows = net.a.weight.detach().double().flatten(1)
    assert scores_of(net, "a.weight", criterion="l1").tolist() == rows.sum(1).tolist()
    torch.testing.assert_close(scores_of(net, "a.weight", criterion="l2"), rows.pow(2).sum(1).sqrt())
    distances = torch.stack([(rows - row).pow(2).sum(1).sqrt().sum() for row in rows])
    torch.testing.assert_close(scores_of(net, "a.weight", criterion="fpgm"), distances)
    one, same, other = (scores_of(net, "a.weight", criterion="random", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_bn_criterion_reads_the_scales() -> None:
    net = Residual()
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([1.0, -5.0, 2.0, -3.0, 0.0, 4.0, 7.0, -6.0]))
    assert scores_of(net, "stem.weight", criterion="bn").tolist() == [1, 5, 2, 3, 0, 4, 7, 6]


def test_taylor_needs_gradients() -> None:
    net = Grouped()
    images, targets = torch.randn(IMAGE), torch.tensor([0, 1])
    with pytest.raises(InputError, match="needs gradients"):
        scores_of(net, "a.weight", criterion="taylor")
    given = scores_of(net, "a.weight", criterion="taylor", batch=(images, targets))
    torch.autograd.backward(F.cross_entropy(net(images), targets))
    assert net.a.weight.grad is not None
    by_hand = (net.a.weight * net.a.weight.grad).abs().flatten(1).sum(1)
    torch.testing.assert_close(given.float(), by_hand.detach())
    torch.testing.assert_close(scores_of(net, "a.weight", criterion="taylor"), given)


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(
        PlanError,
        match=r"there is no criterion named 'l7'(.|\n)*did you mean 'l2'\? known are activation, bn, fisher, fpgm",
    ):
        thin(Residual(), keep=0.5, criterion="l7")


class Dense(nn.Module):
    """Concatenation, BatchNorm after it, and flatten into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm, self.c, self.fc = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = self.c(F.relu(self.norm(torch.cat([x, self.b(x)], 1))))
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class Mobile(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.down, self.up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.project, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.depth(F.relu(self.expand(x)))
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.project(x).mean((2, 3)))


Slices = set[tuple[str, str, tuple[int, ...]]]


def peer_slices(net: nn.Module, layer: str, index: int) -> Slices:
    """What Torch-Pruning would slice off together with one output of a layer: (module, side, indices)."""
    graph = torch_pruning.DependencyGraph().build_dependency(net, torch.randn(IMAGE))
    module = net.get_submodule(layer)
    names = {id(m): name for name, m in net.named_modules()}
    group = graph.get_pruning_group(module, torch_pruning.prune_conv_out_channels, [index])
    found: Slices = set()
    for dependency, indices in group:
        target = dependency.target.module
        if id(target) in names and isinstance(target, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            side = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
            depthwise = isinstance(target, nn.Conv2d) and target.groups > 1
            side = "out" if depthwise or isinstance(target, nn.BatchNorm2d) else side
            found.add((names[id(target)], side, tuple(sorted(indices))))
    return found


def our_slices(net: nn.Module, coupling: Coupling, layer: str, index: int) -> Slices:
    class_id = int(coupling.parameter_labels(f"{layer}.weight")[0].flatten(1)[index, 0])
    return {
        (member.path, "in" if member.kind == "in" else "out", member.indices)
        for member in coupling.slices(class_id)
        if member.parameter.endswith(".weight")
    }


def cases() -> Iterator[tuple[type[nn.Module], str]]:
    yield from ((Residual, name) for name in ("stem", "inner", "outer"))
    yield from ((Dense, name) for name in ("a", "b", "c"))
    yield from ((Mobile, name) for name in ("expand", "up", "down", "project"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "layer"), list(cases()))
def test_groups_agree_with_torch_pruning(kind: type[nn.Module], layer: str) -> None:
    net = kind().eval()
    coupling = sources(net)[1]
    for index in (0, net.get_parameter(f"{layer}.weight").shape[0] - 1):
        assert our_slices(net, coupling, layer, index) == peer_slices(net, layer, index)


def test_channels_of_which_a_criterion_says_nothing_are_said() -> None:
    result = Thin(keep=0.5, criterion="bn")(ThinSource(*sources(Residual())))
    found = [(d.where, d.severity, d.why) for d in result.diagnostics if d.code == "no-importance"]
    said = "the criterion 'bn' says nothing about its outputs: all count alike, the first are kept"
    assert found == [("inner", "warning", said)]
    assert result.value.kept["inner.weight"] == [0, 1, 2, 3, 4, 5]


class Auxiliary(nn.Module):
    """A second answer, of which the loss of the first one says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.aside = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.head, self.other = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        return {"logits": self.head(self.deep(x).mean((2, 3))), "aux": self.other(self.aside(x).mean((2, 3)))}


@pytest.mark.parametrize(("by", "why"), [("taylor", "the first are kept"), ("taylor+interpolative", "they go first")])
def test_a_layer_with_which_a_loss_loses_nothing_is_said_to_go_first(by: str, why: str) -> None:
    source = ThinSource(*sources(Auxiliary()), batch=(torch.randn(8, 3, 16, 16), torch.arange(8) % 5))
    for ranking, told in (("global", True), ("uniform", by == "taylor")):
        wanted: Any = {"limits": limits_of(macs=0.5), "criterion": by, "ranking": ranking}
        result = Thin(**wanted)(source)
        found = [one for one in result.diagnostics if one.code == "no-importance"]
        assert [one.where for one in found] == (["aside"] if told else [])
        assert all(one.why.startswith("the criterion 'taylor' says nothing about its outputs") for one in found)
        if ranking == "global":
            assert why in found[0].why
            assert "--scope aside=" in found[0].hint
            assert result.value.widths["aside"][1] < result.value.widths["deep"][1] / 2


def test_of_two_criteria_the_second_says_which_channels_stay_where_it_says_something() -> None:
    net = Residual()
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([1.0, -5.0, 2.0, -3.0, 0.0, 4.0, 7.0, -6.0]))
    result = Thin(keep=0.5, criterion="l1+bn")(ThinSource(*sources(net)))
    norms = net.inner.weight.detach().abs().flatten(1).sum(1)
    assert result.value.kept["stem.weight"] == [1, 5, 6, 7]
    assert result.value.kept["inner.weight"] == sorted(norms.topk(6).indices.tolist())
    assert "no-importance" not in [one.code for one in result.diagnostics]


@pytest.mark.parametrize("wrong", ["l1+l7", "l7+l1", "l1+", "+l1", "l1+bn+l1"])
def test_two_criteria_of_which_one_is_none_are_refused(wrong: str) -> None:
    with pytest.raises(PlanError, match="there is no criterion named"):
        thin(Residual(), keep=0.5, criterion=wrong)


def test_a_criterion_that_says_nothing_of_what_may_go_is_refused() -> None:
    with pytest.raises(CriterionError, match="'bn' says nothing about any channel that may be removed"):
        Thin(keep=0.5, criterion="bn", only=("inner",))(ThinSource(*sources(Residual())))
    silent = Residual()
    torch.nn.init.zeros_(silent.inner.weight)
    with pytest.raises(CriterionError, match=r"'l1' says nothing(.|\n)*e\.g\. random"):
        Thin(keep=0.5, criterion="l1", only=("inner",))(ThinSource(*sources(silent)))


def test_the_loss_of_the_task_is_the_one_that_gradients_are_of() -> None:
    net = Residual().eval()
    batch = (torch.randn(4, *IMAGE[1:], generator=torch.Generator().manual_seed(0)), torch.zeros(4, 5))
    result = Thin(keep=0.5, criterion="taylor")(ThinSource(*sources(net), batch=batch, loss=F.mse_loss)).value
    torch.autograd.backward(F.mse_loss(net(batch[0]), batch[1]))
    assert net.inner.weight.grad is not None
    by_hand = (net.inner.weight * net.inner.weight.grad).abs().flatten(1).sum(1)
    assert result.kept["inner.weight"] == sorted(by_hand.topk(6).indices.tolist())


@pytest.mark.parametrize("criterion", ["tp.lamp", "tp.magnitude", "tp.obdc"])
def test_criteria_of_torch_pruning_choose_too(criterion: str) -> None:
    batch = (torch.randn(4, *IMAGE[1:], generator=torch.Generator().manual_seed(0)), torch.arange(4))
    removal = Thin(keep=0.5, criterion=criterion)(ThinSource(*sources(Residual()), batch=batch)).value
    assert removal.widths == {"stem": (8, 4), "inner": (12, 6), "outer": (8, 4), "head": (5, 5)}

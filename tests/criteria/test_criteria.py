"""Criteria: found by name, in one file each; what they may read, and that they touch nothing."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fxdistill.criteria
from fxdistill import registry
from fxdistill.compiler.shrink_model import supervised_loss
from fxdistill.criteria import CRITERIA, Criterion, _handed, importance, interpolative
from fxdistill.errors import CriterionError, InputError, InvariantError, PlanError
from fxdistill.ir.budget import limits_of
from fxdistill.ir.channels import Channels
from fxdistill.passes.couple import Couple
from fxdistill.passes.thin import Thin, ThinSource
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import Rung
from fxdistill.tasks import NO_LABEL, TASKS

IMAGE = (2, 3, 8, 8)
BATCH = (torch.randn(4, *IMAGE[1:], generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 1, 2]))


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.norm(self.stem(x))).mean((2, 3)))


def channels_of(net: nn.Module, **given: Any) -> Channels:
    traced = Trace(IMAGE)(net).value
    return Channels(traced, Couple()(traced).value, **given)


def of_stem(scores: Tensor, channels: Channels) -> Tensor:
    return scores[channels.coupling.parameter_labels("stem.weight")[0][:, 0, 0, 0]]


def test_listing_names_imports_neither_torch_nor_torch_pruning() -> None:
    code = (
        "import sys; from fxdistill.criteria import CRITERIA; print(*CRITERIA.names());"
        "print([name for name in ('torch', 'torch_pruning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = done.stdout.splitlines()
    assert {"l1", "l2", "fpgm", "taylor", "bn", "random", "tp.lamp", "tp.bn-scale"} <= set(names.split())
    assert imported == "[]"


def test_every_criterion_has_a_summary_and_a_source() -> None:
    for name in CRITERIA.names():
        found = CRITERIA.get(name)
        assert found.summary, name
        assert found.needs_batch == (
            name.rpartition(".")[2] in {"taylor", "hessian", "obdc", "fisher", "activation", "interpolative"}
        ), name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are criteria too."""
    monkeypatch.setattr(fxdistill.criteria, "__path__", [*fxdistill.criteria.__path__, str(tmp_path)])
    registry._files.cache_clear()
    yield tmp_path
    registry._files.cache_clear()
    for name in [name for name in sys.modules if name.startswith("fxdistill.criteria.largest_entry")]:
        del sys.modules[name]


def test_a_new_criterion_costs_one_file(folder: Path) -> None:
    (folder / "largest_entry.py").write_text(
        "from fxdistill.criteria import Criterion\n"
        "CRITERION = Criterion(score=lambda c: c.sum_over_filters(lambda filters: filters.abs().amax(1)))\n"
    )
    net = Net().eval()
    assert "largest-entry" in CRITERIA.names()
    channels = channels_of(net)
    largest = net.stem.weight.detach().abs().amax((1, 2, 3))
    assert of_stem(importance("largest-entry", channels), channels).tolist() == largest.tolist()
    source = ThinSource(channels.traced, channels.coupling)
    removal = Thin(keep=0.5, criterion="largest-entry")(source).value
    assert removal.kept["stem.weight"] == sorted(largest.topk(4).indices.tolist())
    with pytest.raises(PlanError, match=r"there is no criterion named 'largest-entri'") as refused:
        importance("largest-entri", channels)
    assert "did you mean 'largest-entry'?" in str(refused.value)


def masked(net: Net) -> None:
    prune.custom_from_mask(net.stem, "weight", (torch.arange(8) >= 4).float().view(8, 1, 1, 1).expand(8, 3, 1, 1))


def normed(net: Net) -> None:
    parametrizations.weight_norm(net.stem)
    with torch.no_grad():
        net.get_parameter("stem.parametrizations.weight.original1")[:4] *= 100
        net.get_parameter("stem.parametrizations.weight.original0")[:4] *= 0.01


@pytest.mark.parametrize("rung", ["symbolic", "export"])
@pytest.mark.parametrize("compute", [masked, normed])
def test_a_computed_weight_counts_as_what_it_is(compute: Callable[[Net], None], rung: Rung) -> None:
    net = Net().eval()
    compute(net)
    traced = Trace(IMAGE, rungs=(rung,))(net).value
    kept = Thin(keep=0.5)(ThinSource(traced, Couple()(traced).value)).value.kept
    assert [4, 5, 6, 7] in kept.values()


def test_a_filter_of_a_grouped_transposed_convolution_is_one_row() -> None:
    layers = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 1, groups=2), nn.Conv2d(12, 5, 1)
    channels = channels_of(nn.Sequential(*layers).eval())
    weight = layers[1].weight.detach().double()
    expected = torch.cat([half.transpose(0, 1).flatten(1).norm(dim=1) for half in weight.chunk(2)])
    assert importance("l2", channels)[dict(channels.coupling.producers())["1.weight"]].tolist() == expected.tolist()


def test_gradients_of_a_frozen_model_in_training_mode_leave_no_trace() -> None:
    net = Net().eval()
    channels = channels_of(net, batch=BATCH)
    expected = importance("taylor", channels)
    net.requires_grad_(requires_grad=False).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert torch.equal(importance("taylor", channels), expected)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())


def test_the_loss_is_the_tasks() -> None:
    net = Net().eval()
    targets = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    channels = channels_of(net, batch=(BATCH[0], targets), loss=F.mse_loss)
    found = of_stem(importance("taylor", channels), channels)
    torch.autograd.backward(F.mse_loss(net(BATCH[0]), targets))
    assert net.stem.weight.grad is not None
    by_hand = (net.stem.weight * net.stem.weight.grad).abs().flatten(1).sum(1)
    torch.testing.assert_close(found.float(), by_hand.detach())


def test_images_come_in_the_models_precision() -> None:
    channels = channels_of(Net().double().eval(), batch=BATCH)
    single = channels_of(Net().eval(), batch=BATCH)
    torch.testing.assert_close(importance("taylor", channels), importance("taylor", single), rtol=1e-4, atol=1e-6)


class Shared(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b, self.head = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 6, 1),
            nn.Linear(6, 5),
        )
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(F.relu(self.a(self.stem(x)))).mean((2, 3)))


def test_a_weight_of_two_names_has_its_gradient_under_both() -> None:
    net = Shared().eval()
    channels = channels_of(net, batch=BATCH)
    found = channels.gradients("taylor")
    torch.autograd.backward(F.cross_entropy(net(BATCH[0]), BATCH[1]))
    for name in ("a.weight", "b.weight"):
        torch.testing.assert_close(found[name].float(), net.a.weight.grad)
    given = Channels(channels.traced, channels.coupling).gradients("taylor")
    torch.testing.assert_close(given, found, rtol=1e-4, atol=1e-6)


def test_gradients_do_not_depend_on_how_many_images_are_looked_at_a_time() -> None:
    net, chance = Net().eval(), torch.Generator().manual_seed(0)
    images, labels = torch.randn(37, *IMAGE[1:], generator=chance), torch.randint(5, (37,), generator=chance)
    labels[3:19] = NO_LABEL  # a part of them has fewer labels than the others
    found = channels_of(net, batch=(images, labels)).gradients("taylor")
    torch.autograd.backward(F.cross_entropy(net(images), labels, ignore_index=NO_LABEL))
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name].float(), parameter.grad)


def test_of_pixels_each_that_has_a_label_counts_alike() -> None:
    chance = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1)).eval()
    images, labels = torch.randn(37, *IMAGE[1:], generator=chance), torch.randint(5, (37, *IMAGE[2:]), generator=chance)
    labels[:16, 1:] = labels[20] = NO_LABEL
    loss = supervised_loss(TASKS.get("segmentation"))
    found = channels_of(net, batch=(images, labels), loss=loss).gradients("taylor")
    torch.autograd.backward(loss(net(images), labels))
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name].float(), parameter.grad)


def test_gradients_of_a_model_that_draws_are_the_same_again() -> None:
    class Drawing(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(F.dropout(x, training=True))

    channels, before = channels_of(Drawing().eval(), batch=BATCH), torch.get_rng_state()
    assert torch.equal(importance("taylor", channels), importance("taylor", channels))
    assert torch.equal(torch.get_rng_state(), before)


class Deaf(Net):
    """Its prediction hangs on no weight, as autograd sees it."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).detach()


class Overwriting(Net):
    """It writes over what gradients are computed from."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).sigmoid().mul_(2)


class OfSize(Net):
    """It takes batches of one size alone."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).view(IMAGE[0], 5)


@pytest.mark.parametrize(("kind", "why"), [(Deaf, "depend"), (Overwriting, "inplace"), (OfSize, "shape")])
def test_a_prediction_without_gradients_is_told(
    kind: type[Net], why: str, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    channels = channels_of(kind().eval(), batch=(torch.zeros(3, *IMAGE[1:]), torch.zeros(3, dtype=torch.long)))
    with pytest.raises(CriterionError, match=f"no gradient reaches a weight: .*{why}"):
        importance("taylor", channels)
    assert capfd.readouterr().err == ""


def spoiling(what: str) -> Any:
    def score(channels: Channels) -> Tensor:
        module, scores = channels.traced.module, channels.zeros()
        if what == "weight":
            module.get_parameter("stem.weight").data[3, 1] += 1e-6
        elif what == "buffer":
            module.get_buffer("norm.running_mean").add_(1e-6)
        elif what == "mode":
            module.get_submodule("norm").train()
        elif what == "shape":
            scores = scores[1:]
        elif what == "type":
            scores = scores.long()
        else:
            scores[2] = float(what)
        return scores

    return score


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("weight", InvariantError, r"changed the model that it measures: stem\.weight"),
        ("buffer", InvariantError, r"changed the model that it measures: norm\.running_mean"),
        ("mode", InvariantError, r"changed the model that it measures: the mode of 'norm'"),
        ("shape", InvariantError, r"gave scores of shape \(16,\) in torch.float64 for 16 classes"),
        ("type", InvariantError, r"in torch.int64"),
        ("0", InputError, "says nothing about any channel"),
        ("nan", InputError, "not numbers"),
        ("inf", InputError, "not numbers"),
    ],
)
def test_a_criterion_that_is_wrong_is_refused(
    what: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = channels_of(Net().eval())
    assert channels.coupling.class_count == 16
    monkeypatch.setattr(registry.Registry, "get", lambda *_, **__: Criterion(score=spoiling(what)))
    with pytest.raises(error, match=message):
        importance("spoiling", channels)


def test_fisher_is_the_mean_square_of_a_gates_slope_over_images() -> None:
    net = Net().eval()
    channels = channels_of(net, batch=BATCH)
    found = of_stem(importance("fisher", channels), channels)
    slopes = []
    for image, label in zip(BATCH[0].split(1), BATCH[1].split(1), strict=True):
        gates = torch.ones(8, 1, 1, 1, requires_grad=True)
        stem = F.conv2d(image, net.stem.weight * gates, net.stem.bias)
        loss = F.cross_entropy(net.head(F.relu(net.norm(stem)).mean((2, 3))), label)
        slopes.append(torch.autograd.grad(loss, gates)[0].flatten().double())
    torch.testing.assert_close(found, torch.stack(slopes).square().mean(0), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", ["fisher", "tp.hessian", "tp.obdc"])
def test_an_image_without_a_label_says_nothing_of_what_is_measured_image_by_image(name: str) -> None:
    loss = supervised_loss(TASKS.get("classification"))
    images, labels = BATCH
    partly = (torch.cat([images, images[:1] + 1]), torch.cat([labels, torch.tensor([NO_LABEL])]))
    expected, found = (importance(name, channels_of(Net().eval(), batch=b, loss=loss)) for b in (BATCH, partly))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
    with pytest.raises(InputError, match="none of the images has a label"):
        importance(name, channels_of(Net().eval(), batch=(images, torch.full_like(labels, NO_LABEL)), loss=loss))


def test_activation_is_the_mean_of_what_is_handed_on() -> None:
    net = Net().eval()
    with torch.no_grad():
        net.norm.bias[3] = -100.0
    channels = channels_of(net, batch=BATCH)
    found = of_stem(importance("activation", channels), channels)
    with torch.no_grad():
        handed = F.relu(net.norm(net.stem(BATCH[0]))).mean((2, 3)).abs().double().mean(0)
    torch.testing.assert_close(found, handed)
    assert found[3] == 0


def test_activation_adds_up_over_readers_and_follows_flattened_channels() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.again = nn.Conv2d(3, 4, 1), nn.Identity(), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4 * 64, 5)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            return self.head((x + self.again(x)).flatten(1))

    torch.manual_seed(0)
    net = Two().eval()
    channels = channels_of(net, batch=BATCH)
    found = of_stem(importance("activation", channels), channels)
    with torch.no_grad():
        first = net.stem(BATCH[0])
        second = first + net.again(first)
    expected = first.abs().mean((0, 2, 3)) + second.abs().mean(0).sum((1, 2))
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6)


def test_interpolative_is_what_the_pivots_before_do_not_explain() -> None:
    net = Net().eval()
    with torch.no_grad():
        for name in ("weight", "bias"):  # channel 3 says what channel 1 says, twice as loud
            parameter = getattr(net.stem, name)
            if parameter is not None:
                parameter[3] = parameter[1]
            getattr(net.norm, name)[1], getattr(net.norm, name)[3] = 0.5, 1.0
        net.norm.running_mean[3], net.norm.running_var[3] = net.norm.running_mean[1], net.norm.running_var[1]  # type: ignore[index]
        images = torch.randn(64, *IMAGE[1:], generator=torch.Generator().manual_seed(1))
        handed = F.relu(net.norm(net.stem(images))).mean((2, 3)).T.double()
    channels = channels_of(net, batch=(images, torch.zeros(64, dtype=torch.int64)))
    found = of_stem(importance("interpolative", channels), channels)
    centred = (handed - handed.mean(1, keepdim=True)).numpy()
    factor, order = scipy.linalg.qr(centred.T, mode="r", pivoting=True)
    expected = torch.zeros(len(handed), dtype=torch.float64)
    expected[torch.from_numpy(order.astype("int64"))] = torch.from_numpy(factor.diagonal() ** 2 / (centred**2).sum())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    assert found[1] < 1e-12 < 1e-3 < found[3]


class Embedding(Net):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.norm(self.stem(x))).mean((2, 3))


class Tokens(nn.Module):
    """A normalisation whose scale has one dimension, that of the channels, behind them: their values are looked at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.scale, self.head = nn.Conv2d(3, 8, 1), nn.Parameter(torch.rand(8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        tokens = self.stem(x).flatten(2).mean(2)
        return self.head(F.layer_norm(tokens, (8,), self.scale))


@pytest.mark.parametrize("name", ["activation", "interpolative"])
def test_weights_are_not_looked_at_as_values(name: str) -> None:
    traced = Trace(IMAGE, rungs=("export",))(Tokens().eval()).value
    channels = Channels(traced, Couple()(traced).value, batch=BATCH)
    assert of_stem(importance(name, channels), channels).any()


@pytest.mark.parametrize("net", [Net, Embedding])
def test_channels_are_told_apart_where_fewer_images_are_pooled_than_there_are_channels(net: type[Net]) -> None:
    model = net().eval()
    channels = channels_of(model, batch=BATCH)  # 4 images, 8 channels
    with torch.no_grad():
        maps = F.relu(model.norm(model.stem(BATCH[0]))).movedim(1, 0).flatten(1).double()
    expected = interpolative.left(torch.cov(maps, correction=0))
    torch.testing.assert_close(of_stem(importance("interpolative", channels), channels), expected)
    assert bool((expected > 0).all())


@pytest.mark.parametrize("name", ["activation", "interpolative"])
def test_what_goes_out_of_the_network_is_handed_on(name: str) -> None:
    model = Embedding().eval()
    images = torch.randn(20, *IMAGE[1:], generator=torch.Generator().manual_seed(1))
    channels = channels_of(model, batch=(images, torch.zeros(20, dtype=torch.int64)))
    with torch.no_grad():
        out = model(images).T.double()
    expected = interpolative.left(torch.cov(out, correction=0)) if name == "interpolative" else out.abs().mean(1)
    found = of_stem(importance(name, channels), channels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


class Residual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head((x + F.relu(self.again(x))).mean((2, 3)))


class Same(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.0


@pytest.mark.parametrize("rung", ["symbolic", "export"])
@pytest.mark.parametrize("by", ["prune", "parametrization"])
@pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "interpolative"])
def test_a_computed_weight_counts_once_where_its_inputs_and_outputs_are_coupled(name: str, by: str, rung: Rung) -> None:
    plain, net = Residual().eval(), Residual().eval()
    if by == "prune":
        prune.identity(net.again, "weight")
    else:
        parametrize.register_parametrization(net.again, "weight", Same())
    found = []
    for model in (plain, net):
        traced = Trace(IMAGE, rungs=(rung,))(model).value
        channels = Channels(traced, Couple()(traced).value, batch=BATCH)
        found.append(of_stem(importance(name, channels), channels))
    torch.testing.assert_close(found[1], found[0])


class Standardized(Net):
    """Its first weight is computed, and given to a function: weights are handed to layers too, and no images."""

    def forward(self, x: Tensor) -> Any:
        weight = self.stem.weight - self.stem.weight.mean((1, 2, 3), keepdim=True)
        return self.head(F.relu(self.norm(F.conv2d(x, weight, self.stem.bias))).mean((2, 3)))


@pytest.mark.parametrize("rung", ["symbolic", "export"])
@pytest.mark.parametrize("name", ["activation", "interpolative"])
def test_what_is_handed_on_shows_images(name: str, rung: Rung) -> None:
    model = Standardized().eval()
    traced = Trace(IMAGE, rungs=(rung,))(model).value
    channels = Channels(traced, Couple()(traced).value, batch=BATCH)
    with torch.no_grad():
        weight = model.stem.weight - model.stem.weight.mean((1, 2, 3), keepdim=True)
        maps = F.relu(model.norm(F.conv2d(BATCH[0], weight, model.stem.bias)))
    expected = maps.double().mean((0, 2, 3))
    if name == "interpolative":  # 4 images, 8 channels
        expected = interpolative.left(torch.cov(maps.movedim(1, 0).flatten(1).double(), correction=0))
    torch.testing.assert_close(of_stem(importance(name, channels), channels), expected)


@pytest.mark.parametrize("name", ["activation", "interpolative"])
def test_activations_are_those_of_the_whole_batch_whatever_is_run_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torch.randn(20, *IMAGE[1:], generator=torch.Generator().manual_seed(1)), torch.zeros(20, dtype=torch.int64)
    channels = channels_of(Net().eval(), batch=batch)
    found = importance(name, channels)
    monkeypatch.setattr(_handed, "_AT_ONCE", 20)
    torch.testing.assert_close(importance(name, channels), found)


@pytest.mark.parametrize("name", ["activation", "interpolative"])
def test_a_model_of_another_batch_says_what_to_do(name: str) -> None:
    class Four(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(F.relu(self.norm(self.stem(x))).view(2, 8, 64).mean(2))

    images = torch.randn(3, *IMAGE[1:])
    with pytest.raises(CriterionError, match="does not run on 3 images"):
        importance(name, channels_of(Four().eval(), batch=(images, torch.zeros(3, dtype=torch.int64))))


def test_values_that_nobody_asks_about_are_left_out() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.between = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(F.relu(self.norm(self.between(F.relu(self.stem(x))))).mean((2, 3)))

    images = torch.randn(64, *IMAGE[1:], generator=torch.Generator().manual_seed(1))
    channels = channels_of(Two().eval(), batch=(images, torch.zeros(64, dtype=torch.int64)))
    whole, asked = importance("interpolative", channels), frozenset(channels.coupling.classes("between"))
    found = importance("interpolative", replace(channels, asked=asked))
    inside = torch.zeros(len(whole), dtype=torch.bool).index_fill(0, torch.tensor(sorted(asked)), value=True)
    assert torch.equal(found[inside], whole[inside])
    assert whole[~inside].any()
    assert not found[~inside].any()


@pytest.mark.parametrize("several", [False, True])
def test_positions_behind_a_flattening_are_observations_of_their_channel(several: bool) -> None:
    torch.manual_seed(0)
    value, classes = torch.randn(4 * 6, 50), torch.arange(4).repeat_interleave(6)
    if several:  # a channel has one position more than the others
        value, classes = torch.cat([value, value[-1:]]), torch.cat([classes, classes[-1:]])
    rows, own = interpolative._by_class(value, classes)  # class 0 is of none
    assert own.tolist() == [1, 2, 3]
    means = torch.stack([value[classes == number].mean(0) for number in range(1, 4)])
    assert torch.allclose(rows, means if several else value.view(4, -1)[1:])


@pytest.mark.parametrize("name", ["fisher", "activation"])
def test_measures_on_data_want_data_and_rank_a_budget(name: str) -> None:
    channels = channels_of(Net().eval())
    with pytest.raises(InputError, match="needs images and their labels"):
        importance(name, channels)
    source = ThinSource(channels.traced, channels.coupling, BATCH)
    removal = Thin(limits=limits_of(macs=0.51), criterion=name)(source).value
    scores = of_stem(importance(name, channels_of(Net().eval(), batch=BATCH)), channels)
    assert removal.kept["stem.weight"] == sorted(scores.topk(4).indices.tolist())


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "fisher"])
def test_filters_read_a_few_at_a_time_score_as_all_at_once(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(Net(), batch=BATCH)
    whole = CRITERIA.get(criterion).score(channels)
    monkeypatch.setattr("fxdistill.ir.channels._ENTRIES", 7)  # two filters of the stem, none of the head's
    assert torch.equal(CRITERIA.get(criterion).score(channels), whole)


def test_weights_alone_are_measured_once_and_again_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, int]]()

    def named(_: object, name: str, **__: object) -> Criterion:
        def score(channels: Channels) -> Tensor:
            asked.append((name, channels.seed))
            return channels.zeros() + len(asked)

        return known.setdefault(name, Criterion(score=score, needs_batch=name == "on data"))

    known = dict[str, Criterion]()
    monkeypatch.setattr(registry.Registry, "get", named)
    channels = channels_of(Net().eval())
    importance("of weights", channels).zero_()  # whoever asked may do so
    assert set(importance("of weights", channels).tolist()) == {1.0}
    importance("of weights", replace(channels, seed=1))
    importance("others", channels)
    assert asked == [("of weights", 0), ("of weights", 1), ("others", 0)]
    channels.traced.module.get_parameter("stem.weight").data[3, 1] += 1e-6
    assert set(importance("of weights", channels).tolist()) == {4.0}
    importance("on data", channels)
    importance("on data", channels)
    assert asked[3:] == [("of weights", 0), ("on data", 0), ("on data", 0)]


def test_what_only_changes_its_place_is_a_change() -> None:
    channels = channels_of(Net(128).eval())
    weight = channels.traced.module.get_parameter("norm.weight").data
    weight.copy_(torch.arange(128))
    before = channels.fingerprint()
    weight[:4] = weight[[2, 3, 0, 1]]
    assert {name for name, sum_ in channels.fingerprint().items() if sum_ != before[name]} == {"norm.weight"}

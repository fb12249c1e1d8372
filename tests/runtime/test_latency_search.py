"""Budgets of time: searched by the layers, corrected by the whole, refused where nothing comes near."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fxdistill.cli import budgets
from fxdistill.cli.commands import app
from fxdistill.compiler.shrink_model import Confirmed, ShrunkResult, shrink_model
from fxdistill.errors import InputError
from fxdistill.ir.budget import Limit
from fxdistill.ir.layers import Layer, Timing
from fxdistill.measure import layer_times, onnx_file
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.load import load
from fxdistill.passes.trace import Trace
from fxdistill.runtime.run import details
from fxdistill.runtime.smaller import latency_search, shrinking, shrunken
from fxdistill.runtime.smaller.latency_search import Measured, Wanted, interval, within
from tests import runs

IMAGE = (1, 3, 16, 16)
OWN = 10.0


def net() -> nn.Module:
    return build("fxdistill.models:resnet", {"widths": [32, 64], "blocks": 1, "in_channels": 3}, seed=0)


def by_macs(layer: Layer, inputs: int, outputs: int) -> float:
    return layer.macs(inputs, outputs)


def make(limit: Limit, timing: Timing, **how: Any) -> ShrunkResult:
    return shrink_model(net(), input_shape=IMAGE, limits=(limit,), timing=timing, **how)


def whole(module: nn.Module, power: float = 1.0) -> Confirmed:
    """A machine on which a model takes a power of its share of multiply-accumulates."""
    share = (Trace(IMAGE)(module).value.macs / Trace(IMAGE)(net()).value.macs) ** power
    return Confirmed(OWN, OWN * share, share, share - 0.01, share + 0.01, "Fake")


def test_a_time_is_met_as_multiply_accumulates_are_where_they_are_the_time() -> None:
    made = make(Limit("latency", 0.5), Timing(by_macs, OWN / 1000))
    assert 0.98 * 0.5 <= made.after.macs / made.before.macs <= 0.5 + 1e-6
    absolute = make(Limit("latency", int(OWN * 1e6 / 2)), Timing(by_macs, OWN / 1000))
    assert absolute.widths == made.widths


def test_widths_that_are_slower_than_wider_ones_are_not_chosen() -> None:
    def in_eights(layer: Layer, inputs: int, outputs: int) -> float:
        odd = 3.0 if inputs % 8 or outputs % 8 else 1.0
        return odd * layer.macs(-(-inputs // 8) * 8, -(-outputs // 8) * 8)

    made = make(Limit("latency", 0.5), Timing(in_eights, OWN / 1000))
    widths = {path: after for path, (_, after) in made.widths.items() if path != "classifier"}
    assert {after % 8 for after in widths.values()} == {0}, widths


@pytest.mark.parametrize(
    ("wanted", "power"), [(Wanted(0.5), 0.7), (Wanted(0.5), 1.4), (Wanted(5.0, absolute=True), 1.0)]
)
def test_what_the_whole_takes_corrects_what_its_layers_say(wanted: Wanted, power: float) -> None:
    def compare(module: nn.Module, shape: tuple[int, ...]) -> Confirmed:
        assert shape == IMAGE
        return whole(module, power)

    made = within(wanted, make, own_ms=OWN, compare=compare, times=by_macs)
    assert made.confirmed == whole(made.module, power)
    assert abs(whole(made.module, power).share / 0.5 - 1) <= 0.02


def test_what_is_smaller_already_has_that_much_less_of_the_way_to_go() -> None:
    asked: list[tuple[Limit, float]] = []

    def noted(limit: Limit, timing: Timing) -> ShrunkResult:
        asked.append((limit, timing.whole))
        return make(limit, timing)

    def compare(*_: object) -> Confirmed:  # beside the original, which takes a quarter more
        return Confirmed(OWN, 4.0, 0.4, 0.39, 0.41, "Fake")

    made = within(Wanted(0.4), noted, own_ms=OWN, compare=compare, times=by_macs, at=0.8)
    ((limit, seconds),) = asked
    assert (limit, seconds) == (Limit("latency", 0.5, "--latency"), 0.8 * OWN / 1000)
    assert made.confirmed == compare()
    with pytest.raises(InputError, match="the model takes 8 ms as it is, and 9 ms are allowed"):
        within(Wanted(9.0, absolute=True), noted, own_ms=OWN, compare=compare, times=by_macs, at=0.8)


def test_what_cannot_be_had_is_refused_with_what_can() -> None:
    nearest = r"no widths were found that take 0.0001 ms within 2%: the nearest take 0\.\d+ ms"
    with pytest.raises(InputError, match=nearest):
        within(Wanted(0.0001, absolute=True), make, own_ms=OWN, compare=lambda module, _: whole(module), times=by_macs)
    with pytest.raises(InputError, match="the model takes 10 ms as it is, and 11 ms are allowed"):
        within(Wanted(11, absolute=True), make, own_ms=OWN, compare=lambda *_: whole(net()), times=by_macs)


def test_what_single_layers_say_cannot_be_had_is_measured_as_a_whole() -> None:
    def halves(limit: Limit, timing: Timing) -> ShrunkResult:
        return make(limit, timing, floor=0.5)

    with pytest.raises(InputError, match="by the times of its layers cannot be met"):
        halves(Limit("latency", 0.1), Timing(by_macs, OWN / 1000))
    made = within(Wanted(0.1), halves, own_ms=OWN, compare=lambda module, _: whole(module, 4.0), times=by_macs)
    assert made.confirmed is not None
    assert abs(made.confirmed.share / 0.1 - 1) <= 0.02


@pytest.mark.parametrize("wanted", [0.5, 0.1])  # of less than half there are soon no widths by their layers
def test_what_no_widths_take_is_refused_with_the_nearest_that_was_measured(wanted: float) -> None:
    def stubborn(*_: object) -> Confirmed:
        return Confirmed(OWN, 8.0, 0.8, 0.79, 0.81, "Fake")

    nearest = rf"take {wanted} of its own time .* nearest take 0.8 of its own time \(95 % between 0.79 and 0.81"
    with pytest.raises(InputError, match=nearest):
        within(Wanted(wanted), make, own_ms=OWN, compare=stubborn, times=by_macs)
    with pytest.raises(InputError, match=rf"take {OWN * 0.8:g} ms \(0.8 of its own time, 95 % between 0.79 and 0.81\)"):
        within(Wanted(OWN * wanted, absolute=True), make, own_ms=OWN, compare=stubborn, times=by_macs)
    rough = within(Wanted(wanted, roughly=True), make, own_ms=OWN, compare=stubborn, times=by_macs)
    assert rough.confirmed == stubborn()  # a part of the way is as near as they come


def test_the_share_of_runs_in_turn_has_an_interval() -> None:
    chance = np.random.default_rng(0)
    held = [interval(chance.normal(0.6, 0.1, 80)) for _ in range(200)]
    assert all(low <= median <= high for median, low, high in held)
    assert 180 <= sum(low <= 0.6 <= high for _, low, high in held) <= 200
    assert interval(np.array([0.5])) == (0.5, 0.5, 0.5)


def test_a_smaller_model_is_measured_in_turn_with_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_search, "_SECONDS", 0.5)
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    large, small = (
        build("fxdistill.models:resnet", {"widths": [width], "blocks": 1, "in_channels": 3}, seed=0).eval()
        for width in (64, 8)
    )
    measured = Measured(large, (1, 3, 32, 32), "CPUExecutionProvider", tmp_path)
    found = measured(small, (1, 3, 32, 32))
    assert measured.own_ms > 0
    assert 0 < found.low <= found.share <= found.high
    assert found.share < 0.7  # a sixty-fourth of the work
    assert 0 < found.ms < found.own_ms
    assert found.provider == "CPUExecutionProvider"


class Known(Measured):
    """Times that are no matter of the machine: the share of the teacher's multiply-accumulates."""

    def __init__(self, *_: object) -> None:
        self.own_ms = OWN

    def __call__(self, module: nn.Module, shape: tuple[int, ...]) -> Confirmed:
        share = Trace(shape)(module).value.macs / Trace(shape)(build(*runs.TEACHER, seed=3).eval()).value.macs
        return Confirmed(OWN, OWN * share, share, share, share, "Known")


def test_shrink_and_compress_take_a_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_search, "Measured", Known)
    monkeypatch.setattr(layer_times.InOnnxRuntime, "__call__", lambda _self, case: by_macs(*case))
    model = str(runs.workshop() / "teacher.pt")
    done = CliRunner().invoke(
        app, ["shrink", model, "--latency", "6ms", "--round-to", "1", "-o", str(tmp_path / "aux.pt")]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    said = " ".join(done.stdout.split())
    assert "measured in turn in Known, one thread" in said
    made = shrinking.shrink(model, latency=0.6, round_to=1)
    assert made.confirmed is not None
    assert abs(made.confirmed.share / 0.6 - 1) <= 0.02
    assert shrunken.wished(latency=0.6).round_to == 8
    assert shrunken.wished().round_to is None


def test_steps_meet_a_time_of_the_original_and_measure_each_layer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[layer_times.Case] = []

    def measure(_self: object, case: layer_times.Case) -> float:
        asked.append(case)
        return by_macs(*case)

    monkeypatch.setattr(latency_search, "Measured", Known)
    monkeypatch.setattr(layer_times.InOnnxRuntime, "__call__", measure)
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    monkeypatch.setattr(details, "write", lambda *_, **__: None)
    made = shrinking.shrink(
        runs.workshop() / "teacher.pt", tmp_path / "aux.pt", latency=0.4, steps=2, data="digits", round_to=1, by="l1",
        settings=runs.CPU, latency_table=tmp_path / "times.json",
    )  # fmt: skip
    step = load(tmp_path / "aux-steps" / "step-1" / "smaller.pt").module
    for model, wanted, near in ((step, 0.4**0.5, 0.05), (made.module, 0.4, 0.02)):  # a step goes about as far
        assert abs(Known()(model, (1, 1, 8, 8)).share / wanted - 1) <= near
    assert made.confirmed is not None
    assert abs(made.confirmed.ms / (0.4 * OWN) - 1) <= 0.02
    assert len(asked) == len(set(asked))
    asked.clear()
    shrinking.shrink(runs.workshop() / "teacher.pt", latency=0.6, round_to=1, latency_table=tmp_path / "times.json")
    assert asked == []  # what the file knows is not measured again
    assert Wanted(2.0, absolute=True).part(0.5, 8.0) == Wanted(0.5, roughly=True)
    assert Wanted(0.25).part(1, 8.0) == Wanted(0.25)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        (("--latency", "fast"), "no number"),
        (("--latency", "1.5"), "'1.5' is no latency"),
        (("--latency", "0ms"), "is no latency"),
        (("--latency", "-3ms"), "is no latency"),
        (("--latency", "0.5", "--keep", "0.5"), "both --latency and --keep"),
        (("--on", "cuda", "--macs", "0.5"), "no latency is asked for"),
        (("--latency-table", "times.json", "--macs", "0.5"), "no latency is asked for"),
        (("--latency", "0.5", "--latency-table", "none/times.json"), "there can be no file of this name"),
        (("--latency", "0.5", "--on", "cuda"), "no working CUDAExecutionProvider here"),
    ],
)
def test_wrong_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], needle: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    model = str(runs.workshop() / "teacher.pt")
    done = CliRunner().invoke(app, ["shrink", model, *options, "-o", str(tmp_path / "aux.pt")])
    assert done.exit_code == 2, (done.output, done.exception)
    assert needle in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_provider_that_is_built_in_and_does_not_come_up_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime for GPUs on a machine without one: it names the provider, and its sessions run without it."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is one for CPUs alone")
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _self: names[1:])
    model = str(runs.workshop() / "teacher.pt")
    done = CliRunner().invoke(
        app, ["shrink", model, "--latency", "0.5", "--on", "cuda", "-o", str(tmp_path / "aux.pt")]
    )
    assert done.exit_code == 2, (done.output, done.exception)
    said = " ".join(done.stderr.split())
    assert said.count("error:") == 1
    assert "no working CUDAExecutionProvider here" in said
    assert "choose one of: CPUExecutionProvider" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
def test_a_time_on_cuda_is_met(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime is built without CUDA")
    model = build("fxdistill.models:resnet", {"widths": [128, 256], "blocks": 2, "in_channels": 3}, seed=0).eval()
    made = shrinking.shrink(model, latency=0.7, on="cuda", input_shape=(8, 3, 64, 64))
    assert made.confirmed is not None
    assert made.confirmed.provider == "CUDAExecutionProvider"
    assert abs(made.confirmed.share / 0.7 - 1) <= 0.02
    assert made.after.macs < made.before.macs


def test_times_are_read() -> None:
    assert budgets.latency("0.6", None) == {"latency": "0.6", "on": "cpu"}
    assert [budgets.latency(text, "cuda")["latency"] for text in ("3ms", "500us", "0.25s", "3MS")] == [
        "3ms", "0.5ms", "250ms", "3ms",
    ]  # fmt: skip
    assert budgets.latency(None, None) == {}
    assert [Wanted.of("3ms"), Wanted.of("0.6"), Wanted.of(0.5, "cuda")] == [
        Wanted(3.0, absolute=True), Wanted(0.6), Wanted(0.5, on="cuda"),
    ]  # fmt: skip
    for wrong in (0, 1, 1.5, -0.5, "ms", "0ms", "nanms", "infms", float("nan")):
        with pytest.raises(InputError, match="is no latency"):
            Wanted.of(wrong)
    with pytest.raises(InputError, match="nothing runs on 'tpu'"):
        Wanted.of(0.5, "tpu")

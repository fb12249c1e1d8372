"""Steps that are recorded: where that pays, what is said of it, and that training does not notice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.build import specialize
from fxdistill.diagnostics import Diagnostic
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.training import recording
from fxdistill.runtime.training.recording import Recorder
from tests import runs, tiny_models
from tests.passes.test_divide import BATCH, program_of


class _Replayed(nn.Module):
    """Stands for a recording: it computes the same."""

    def __init__(self, program: Any, _batch: object, _fabric: object) -> None:
        super().__init__()
        self.program = program

    def forward(self, batch: dict[str, Tensor]) -> object:
        return self.program(batch)


def made(
    monkeypatch: pytest.MonkeyPatch, *, plain: float = 0.01, quick: float = 0.001, waits: str = "",
    make: Callable[..., nn.Module] = _Replayed,
) -> tuple[bool, str]:  # fmt: skip
    """Whether a stage is recorded on a machine of these times, and what is said; its program stays as it was."""
    said: list[str] = []
    program = specialize(program_of(tiny_models.residual()), "main").train()
    before = {name: value.clone() for name, value in program.trainable_state().items()}

    def seconds(_recorder: Recorder, step: Callable[[], None]) -> float:
        called.clear()
        step()
        return quick if isinstance(called[0], _Replayed) else plain

    called: list[nn.Module] = []

    def step(module: nn.Module) -> None:
        called.append(module)
        program.total(module(BATCH)).backward()

    monkeypatch.setattr(Recorder, "_seconds", seconds)
    monkeypatch.setattr(recording, "_waits", lambda step: step() or waits)
    monkeypatch.setattr(recording, "Recorded", make)
    recorder = Recorder("arm", lambda where, why: said.append(f"{where}: {why}"), None)  # type: ignore[arg-type]
    found = recorder.made("main", program, BATCH, step)
    assert all(torch.equal(value, before[name]) for name, value in program.trainable_state().items())
    assert all(parameter.grad is None for parameter in program.parameters())
    assert isinstance(found, _Replayed) or found is program
    return isinstance(found, _Replayed), "".join(said)


def _refused(*_: object) -> nn.Module:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize(
    ("machine", "expected", "told"),
    [
        ({}, True, "recorded: a step takes 1 ms replayed and 10 as it is"),
        ({"quick": 0.02}, False, "not recorded: a step takes 20 ms replayed and 10 as it is"),
        ({"plain": 0.2}, False, "not recorded: a step takes 200 ms, beside which launching its kernels is little"),
        (
            {"waits": "called a synchronizing operation"},
            False,
            "not recorded: a step waits for the device (called",
        ),
        ({"make": _refused}, False, "not recorded: torch cannot record it (operation not permitted when"),
    ],
)
def test_recorded_where_it_is_quicker_and_can_be(
    machine: dict[str, Any], expected: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = made(monkeypatch, **machine)
    assert found == expected
    assert said.startswith(f"arm 'arm', stage 'main': {told}")
    assert "\n" not in said


def test_what_waits_for_the_device_or_fails_is_not_timed_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(recording, "_waits", lambda call: call())
    assert recording.replayed(lambda: "a synchronizing operation", gpu) is None
    monkeypatch.setattr(torch.cuda, "Stream", _refused)
    assert recording.replayed(lambda: "", gpu) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_call_is_replayed_in_less_time_than_its_kernels_take_to_launch() -> None:
    gpu = torch.device("cuda")
    value = torch.rand(64, device=gpu)

    def call() -> Tensor:
        with torch.inference_mode():
            found = value
            for _ in range(200):
                found = found * 1.5
        return found

    took = recording.replayed(call, gpu)
    assert took is not None
    assert 0 < took < recording.seconds(call, gpu)
    assert recording.replayed(lambda: value.sum().item(), gpu) is None


@dataclass(frozen=True)
class _Fabric:
    """As much of one as says where a run is."""

    device: torch.device
    world_size: int = 1


def test_steps_are_recorded_by_one_process_on_a_gpu_and_not_where_they_are_profiled() -> None:
    cpu, gpu = (_Fabric(torch.device(name)) for name in ("cpu", "cuda"))
    several = _Fabric(gpu.device, world_size=2)
    assert Settings().records(gpu)  # type: ignore[arg-type]
    assert not any(Settings().records(one) for one in (cpu, several))  # type: ignore[arg-type]
    assert not any(one.records(gpu) for one in (Settings(cuda_graphs="off"), Settings(profile=True)))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_run_has_the_losses_of_one_that_is_not(tmp_path: Path) -> None:
    """With dropout and running statistics, stage by stage; sums on a GPU come in any order."""
    losses: dict[str, list[dict[str, float]]] = {}
    for cuda_graphs in get_args(get_type_hints(Settings)["cuda_graphs"]):
        said: list[Diagnostic] = []
        out = tmp_path / f"run-{cuda_graphs}"
        settings = Settings(device="cuda", allow=runs.ALLOW, cuda_graphs=cuda_graphs)
        execute(runs.plan_file(), out, settings, Observer(on_diagnostic=said.append))
        recorded = [one.why for one in said if one.code == "cuda-graph"]
        assert bool(recorded) == (cuda_graphs == "auto")
        assert all(why.startswith("recorded: ") for why in recorded), recorded
        losses[cuda_graphs] = [line["losses"] for line in runs.metrics(out)]
    for one, other in zip(losses["auto"], losses["off"], strict=True):
        assert one == pytest.approx(other, rel=0.02)

"""What a run measures: a member on a split once for the weights that it has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from fxdistill.ir.running import digest
from fxdistill.measure.model import metrics
from fxdistill.modelfiles import factories
from fxdistill.plan.file import load
from fxdistill.runtime.processes.crew import Crew
from fxdistill.runtime.run import bench
from fxdistill.runtime.run.execution import Settings
from fxdistill.tasks import TASKS
from tests import runs, tiny_models
from tests.by_hand import digits
from tests.runtime.test_crew import joined

pytestmark = pytest.mark.usefixtures("few_digits")


def test_nothing_is_measured_twice_and_the_figures_are_those_of_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def counted(module: Any, *args: Any, **how: Any) -> dict[str, float]:
        seen.append((digest(module), how["on"]))
        return metrics(module, *args, **how)

    monkeypatch.setattr(bench, "metrics", counted)
    result = runs.execute(runs.plan_file(), tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW))
    assert len({weights for weights, _ in seen}) == len(seen)
    epochs = [line["metrics"] for line in runs.metrics(tmp_path / "run") if line["metrics"]]
    assert len(seen) == len(epochs) + 1  # the teacher
    assert [arm["accuracy"] for arm in result["arms"]] == [epochs[1]["accuracy"], epochs[-1]["accuracy"]]
    # what is asked a second time is what was said the first time
    monkeypatch.setattr(bench, "digest", lambda _: str(len(seen)))
    again = runs.execute(runs.plan_file(), tmp_path / "again", Settings(device="cpu", allow=runs.ALLOW))
    assert len(seen) > 2 * (len(epochs) + 1)
    assert json.dumps([result["members"], result["summary"]]) == json.dumps([again["members"], again["summary"]])


def test_what_several_processes_measure_is_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(crew: Crew) -> dict[str, float]:
        monkeypatch.setattr(bench, "metrics", lambda *_, **__: {"accuracy": 0.5 + 1e-7 * crew.rank})
        plan, data = load(runs.plan_file()), digits()
        modules = {"teacher": factories.build(*runs.TEACHER, seed=3)}
        fabric = Fabric(accelerator="cpu", devices=1)
        found = bench.Bench(plan, TASKS.get(plan.task), data, modules, fabric, frozenset(), {}, crew=crew)
        return found.measured("teacher")

    assert joined(work) == [{"accuracy": 0.5}] * 2


def test_a_digest_tells_every_weight_buffer_and_name() -> None:
    model = tiny_models.awake(tiny_models.residual())
    found = {digest(model)}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.view(-1)[-1] += 1e-3
                found.add(digest(model))
    count = sum(tensor.is_floating_point() for tensor in (*model.parameters(), *model.buffers()))
    assert len(found) == count + 1
    model.register_buffer("more", torch.zeros(1), persistent=False)
    assert digest(model) not in found
    before = digest(model)
    assert digest(model.to(memory_format=torch.channels_last)) == before

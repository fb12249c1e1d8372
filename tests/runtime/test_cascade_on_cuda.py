"""A cascade on an accelerator: levels that share weights, scores that move, the cut and both phases, the export."""

import json
from pathlib import Path

import pytest
import torch

from fxdistill.files import write_text
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Budget, Masked
from fxdistill.plan.schema import Precision
from fxdistill.runtime.run.execution import Settings
from tests import runs
from tests.runs import execute
from tests.runtime.test_cascade import planned


def _under_a_budget(plan: Plan) -> Plan:
    """The plan whose student may cost what its masks come to at the start."""
    level = plan.members["level-0"]
    assert isinstance(level, Masked)
    own = level.changed(budget=Budget(macs=level.macs))
    return plan.changed(members={**plan.members, "level-0": own}, costed="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "last", "budget"), [("32-true", False, False), ("bf16-mixed", True, True)])
def test_a_cascade_on_cuda(precision: Precision, last: bool, budget: bool, tmp_path: Path) -> None:
    plan = _under_a_budget(planned()) if budget else planned()
    path = runs.workshop() / f"cuda-{precision}.json"
    write_text(path, plan.to_json())
    settings = Settings(device="cuda", force=True, precision=precision, channels_last=last, save_seconds=0)
    result = execute(path, tmp_path / "run", settings)
    assert result["device"].startswith("cuda")
    assert [arm["name"] for arm in result["arms"]] == ["joint", "distilled"]
    assert result["parity"]["agreement"] == 1
    lines = [line for line in runs.metrics(tmp_path / "run") if line["name"] == "joint"]
    kept = lines[-1]["kept"]["level-0"]
    state = torch.load(tmp_path / "run" / "student_state_dict.pt", weights_only=True)
    assert [state[f"{name}.weight"].shape[0] for name in kept] == list(kept.values())
    assert {value.device.type for value in state.values()} == {"cpu"}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["latency"].keys() == {"teacher", "student"}

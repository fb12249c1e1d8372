from pathlib import Path

import onnx
import pytest
import torch

from fxdistill.errors import InputError
from fxdistill.measure import onnx_file
from fxdistill.runtime import deploy
from tests import runs


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


def test_a_run_is_exported_with_its_provenance(tmp_path: Path) -> None:
    _, parity = deploy.export(runs.finished(), tmp_path / "s.onnx", allow=runs.ALLOW)
    assert parity.images == 537
    keys = {entry.key for entry in onnx.load(tmp_path / "s.onnx").metadata_props}
    assert "fxdistill.plan_sha256" in keys


def test_a_file_is_compared_on_noise_without_data(tmp_path: Path) -> None:
    runs.plan_file()
    found = deploy.find(str(runs.workshop() / "teacher.pt"))
    assert found.dataset is None
    assert found.input_shape == (1, 1, 8, 8)
    _, parity = deploy.export(runs.workshop() / "teacher.pt", tmp_path / "t.onnx")
    assert parity.images == 32


def test_the_trained_weights_are_found() -> None:
    found = deploy.find(str(runs.finished()), allow=runs.ALLOW)
    state = torch.load(runs.finished() / "student.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in found.module.state_dict().items())


def test_data_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="7 classes"):
        deploy.find("fxdistill.models:convnet?widths=[4,8]&classes=7", data="digits")

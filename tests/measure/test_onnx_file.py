"""The ONNX file: what is in it, that it is the module, and that the gate sees when it is not."""

import errno
import gc
import logging
import os
import tempfile
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxdistill import models
from fxdistill.errors import (
    DataError,
    FxdistillError,
    InputError,
    ModelError,
    ParityError,
    PlanError,
    StorageError,
)  # fmt: skip
from fxdistill.measure import gate, onnx_file
from fxdistill.measure.latency import open_session
from fxdistill.measure.parity import Parity
from fxdistill.tasks import TASKS

SHAPE = (1, 3, 12, 12)
TASK = TASKS.get("classification")


class Small(nn.Module):
    """Conv, BatchNorm with statistics of its own, functional dropout; auxiliary logits while training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.norm.get_buffer("running_mean").uniform_()
        self.norm.get_buffer("running_var").uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.dropout(F.relu(self.norm(self.conv(x))), 0.5, training=self.training).mean((2, 3))
        return (self.head(x), x) if self.training else self.head(x)


class Structured(Small):
    def forward(self, x: Tensor) -> Any:
        return {"aux": [super().forward(x).repeat(1, 2)[:, :8]], "out": super().forward(x)}


class Swapped(nn.Module):
    """A model whose entries changed their places, the values of the first doubled."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        output = self.module(x)
        return {"aux": [output["aux"][0] * 2], "out": output["out"]}


class Branching(Small):
    """Control flow on data: not for the first exporter."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if x.sum() < 1e9 else x.flatten(1)


class WritesIntoItsInput(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.relu_())


def build(kind: type[nn.Module] = Small) -> Any:
    torch.manual_seed(0)
    return kind().train()


def batches(*sizes: int, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, *shape[1:], generator=generator) for n in sizes]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, Path]:
    module, path = build(), tmp_path_factory.mktemp("small") / "small.onnx"
    onnx_file.export_onnx(module, path, input_shape=SHAPE, metadata={"plan": "ab12", "classes": '["a", "b"]'})
    return module, path


def test_what_is_in_the_file(small: tuple[Small, Path]) -> None:
    model = onnx.load(small[1])
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("input", "logits")
    batch, *rest = image.type.tensor_type.shape.dim
    assert (batch.dim_param, [d.dim_value for d in rest]) == ("batch", [3, 12, 12])
    assert model.opset_import[0].version == 18
    assert {entry.key: entry.value for entry in model.metadata_props} == {"plan": "ab12", "classes": '["a", "b"]'}
    assert [file.name for file in small[1].parent.iterdir()] == ["small.onnx"]
    assert b".py" not in small[1].read_bytes(), "no traces of the machine that it was made on"
    assert dict(open_session(small[1]).get_modelmeta().custom_metadata_map)["plan"] == "ab12"


def test_export_is_quiet_and_leaves_the_module_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = BufferingHandler(1 << 20)
    monkeypatch.setattr(logging.getLogger(), "handlers", [said])
    module = build()
    module.norm.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    made = onnx_file.export_onnx(module, tmp_path / "x.onnx", input_shape=SHAPE)
    assert (made.exporter, made.opset, made.refused) == ("dynamo", 18, ())
    assert (module.training, module.norm.training, module.conv.training) == (True, False, True)
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert not [record for record in said.buffer if record.levelname != "DEBUG"]


def test_the_same_module_gives_the_same_bytes(small: tuple[Small, Path], tmp_path: Path) -> None:
    metadata = {"classes": '["a", "b"]', "plan": "ab12"}
    onnx_file.export_onnx(small[0], tmp_path / "again.onnx", input_shape=SHAPE, metadata=metadata)
    assert (tmp_path / "again.onnx").read_bytes() == small[1].read_bytes()


def test_parity_at_any_batch_size(small: tuple[Small, Path]) -> None:
    module, path = small
    measured = gate.measure(module, path, batches(1, 3, 7), task=TASK)
    assert measured.images == 11
    assert measured.max_abs_error < 1e-5
    assert measured.agreement == 1.0
    assert module.training
    gate.gate(measured)


def test_nothing_holds_the_weights_of_what_was_exported(tmp_path: Path) -> None:
    """The exporter's rules hold the last graph that they saw, and would hold a copy of a student for a whole run."""
    model = nn.Sequential(nn.Conv2d(3, 61, 3), nn.ReLU(), nn.Flatten(), nn.Linear(61 * 36, 5))
    onnx_file.export_onnx(model, tmp_path / "a.onnx", input_shape=(1, 3, 8, 8))
    gc.collect()
    held = [value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter) and value.shape[:1] == (61,)]
    assert {id(value) for value in held} == {id(value) for value in model[0].parameters()}


def test_parity_of_a_resnet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.resnet(widths=[8, 16], blocks=1, classes=10, in_channels=3)
    with torch.no_grad():
        module(torch.randn(8, 3, 32, 32))  # statistics of its own in every BatchNorm
    onnx_file.export_onnx(module, tmp_path / "resnet.onnx", input_shape=(8, 3, 32, 32))
    measured = gate.measure(module, tmp_path / "resnet.onnx", batches(1, 3, 7, shape=(1, 3, 32, 32)), task=TASK)
    gate.gate(measured)
    assert measured.images == 11


@pytest.mark.parametrize("kind", [Structured, WritesIntoItsInput])
def test_other_modules(tmp_path: Path, kind: type[nn.Module]) -> None:
    module = build(kind)
    onnx_file.export_onnx(module, tmp_path / "x.onnx", input_shape=SHAPE)
    logits, *others = open_session(tmp_path / "x.onnx").get_outputs()
    assert (logits.name, logits.shape[1]) == ("logits", 5)
    assert [other.name for other in others] == (["aux_0"] if kind is Structured else [])
    gate.gate(gate.measure(module, tmp_path / "x.onnx", batches(4), task=TASK))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_of_a_structured_output_the_entry_that_is_named_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: str
) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", (exporter,))
    module = build(Structured)
    onnx_file.export_checked(
        module, tmp_path / "x.onnx", batches(4), task=TASK, input_shape=SHAPE, entry="aux.0"
    )  # fmt: skip
    assert open_session(tmp_path / "x.onnx").get_outputs()[0].shape[1] == 8
    with pytest.raises(ParityError):
        gate.gate(gate.measure(Swapped(module), tmp_path / "x.onnx", batches(4), task=TASK, entry="aux.0"))
    with pytest.raises(ModelError, match="has no entry 'logits'"):
        onnx_file.export_onnx(module, tmp_path / "y.onnx", input_shape=SHAPE, entry="logits")


def test_the_second_exporter_is_named(tmp_path: Path) -> None:
    module = build(Branching)
    made = onnx_file.export_onnx(module, tmp_path / "x.onnx", input_shape=SHAPE)
    assert made.exporter == "torchscript"
    assert len(made.refused) == 1
    assert made.refused[0].startswith("dynamo: GuardOnDataDependentSymNode")
    assert "\n" not in made.refused[0]
    gate.gate(gate.measure(module, tmp_path / "x.onnx", batches(1, 3, 7), task=TASK))


def test_perturbed_weights_do_not_pass(small: tuple[Small, Path]) -> None:
    module = build()
    module.load_state_dict(small[0].state_dict())
    with torch.no_grad():
        module.head.bias[0] += 5
    measured = gate.measure(module, small[1], batches(20), task=TASK)
    assert measured.max_abs_error == pytest.approx(5, abs=1e-4)
    assert measured.agreement is not None
    assert measured.agreement < 1
    with pytest.raises(ParityError, match=r"differ by up to 5; allowed is 0.000\d+(.|\n)*20 images compared"):
        gate.gate(measured, 1e-4)
    assert ParityError.exit_code == 1


def test_one_changed_weight_does_not_pass(small: tuple[Small, Path]) -> None:
    module = build()
    module.load_state_dict(small[0].state_dict())
    with torch.no_grad():
        module.conv.weight[0, 0, 0, 0] += 0.05
    with pytest.raises(ParityError):
        gate.gate(gate.measure(module, small[1], batches(20), task=TASK))


@pytest.mark.parametrize(
    ("measured", "passes"),
    [
        (Parity(1e-5, 1.0, 10, largest=1.0), True),
        (Parity(1e-4, 1.0, 10, largest=1.0), True),
        (Parity(1.1e-4, 1.0, 10, largest=1.0), False),
        (Parity(1.1e-5, None, 10, largest=0.1), False),
        (Parity(1e-6, None, 10, largest=1e-3), True),
        (Parity(1.1e-6, None, 10, largest=1e-3), False),
        (Parity(9e-5, 0.9, 10, widest_flip=5e-5, largest=1.0), True),
        (Parity(9e-5, 0.9, 10, widest_flip=1.5e-4, largest=1.0), False),
        (Parity(float("nan"), 1.0, 10, largest=1.0), False),
        (Parity(0.0, 0.9, 10, widest_flip=float("nan"), largest=1.0), False),
        (Parity(0.4, 0.9, 10, widest_flip=0.4, largest=5e3), True),
        (Parity(0.6, 1.0, 10, largest=5e3), False),
        (Parity(0.4, 0.9, 10, widest_flip=0.6, largest=5e3), False),
        (Parity(float("inf"), 1.0, 10, largest=float("inf")), False),
    ],
)
def test_gate(measured: Parity, passes: bool) -> None:
    if passes:
        gate.gate(measured, 1e-4)
    else:
        with pytest.raises(ParityError, match="not the trained one"):
            gate.gate(measured, 1e-4)


def test_numbers_that_are_nearly_zero_say_nothing(small: tuple[Small, Path]) -> None:
    class Faint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = small[0].eval()(x)
            return logits * 1e-9

    measured = gate.measure(Faint(), small[1], batches(3), task=TASKS.get("regression"), prediction_name="logits")
    assert measured.vacuous == "all predictions are zero, or nearly"


def test_flips_are_measured_by_their_gap(small: tuple[Small, Path]) -> None:
    class Shifted(nn.Module):
        """The module with its two best logits exchanged: every prediction flips, over a known gap."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = small[0].eval()(x)
            best, where = logits.topk(2)
            return logits.scatter(1, where, best.flip(1))

    data = batches(6)
    top = Shifted()(data[0]).topk(2).values
    small[0].train()
    measured = gate.measure(Shifted(), small[1], data, task=TASK)
    assert measured.agreement == 0
    assert measured.widest_flip == pytest.approx((top[:, 0] - top[:, 1]).max().item(), abs=1e-5)


def test_neighbours_are_sought_among_all_images(small: tuple[Small, Path]) -> None:
    module, (images,) = build(), batches(24)
    module.load_state_dict(small[0].state_dict())
    with torch.no_grad():
        module.head.weight.add_(0.3 * torch.randn(5, 8, generator=torch.Generator().manual_seed(2)))
    task = TASKS.get("retrieval")
    found = [
        gate.measure(module, small[1], images.split(size), task=task, prediction_name="logits") for size in (4, 24)
    ]
    assert found[0].agreement == found[1].agreement
    assert found[0].widest_flip == pytest.approx(found[1].widest_flip)
    assert found[0].widest_flip > 0


def test_a_nan_is_seen_wherever_it_is(small: tuple[Small, Path]) -> None:
    first, second = batches(2, 2)
    first[0, 0, 0, 0] = float("nan")
    measured = gate.measure(small[0], small[1], [first, second], task=TASK)
    with pytest.raises(ParityError):
        gate.gate(measured)


def test_no_images_is_an_error(small: tuple[Small, Path]) -> None:
    with pytest.raises(DataError, match="no images"):
        gate.measure(small[0], small[1], [], task=TASK)


def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_LARGEST_FILE", 100)
    module = build()
    module.head = nn.Linear(8, 64)  # small tensors stay in the graph
    onnx_file.export_onnx(module, tmp_path / "x.onnx", input_shape=SHAPE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.onnx", "x.onnx.data"]
    gate.gate(gate.measure(module, tmp_path / "x.onnx", batches(3), task=TASK))


class FixedBatch(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).reshape(2, 5)


class Opaque(Branching):
    """Its value leaves the graph: no exporter can follow."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * float(x.sum())


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (Small, (1, 4, 12, 12), "does not run on an input of shape .1, 4, 12, 12."),
        (FixedBatch, SHAPE, "does not run on an input of shape .1, 3, 12, 12.(.|\n)*any batch size"),
        (Opaque, SHAPE, "cannot be exported to ONNX; dynamo: .*; torchscript: .*computes something else"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    tmp_path: Path, kind: Any, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        onnx_file.export_onnx(build(kind), tmp_path / "x.onnx", input_shape=shape)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


class Unknown(Small):
    """ONNX has no such operation; the second exporter of torch prints the whole graph then."""

    def forward(self, x: Tensor) -> Any:
        return torch.special.i0e(super().forward(x))


def test_a_refused_export_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="UnsupportedOperatorError"):
        onnx_file.export_onnx(build(Unknown), tmp_path / "x.onnx", input_shape=SHAPE)
    assert capfd.readouterr() == ("", "")
    onnx_file.export_onnx(build(Branching), tmp_path / "y.onnx", input_shape=SHAPE)
    assert capfd.readouterr() == ("", "")


def test_an_old_file_survives_a_failed_export(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"old")
    with pytest.raises(ModelError):
        onnx_file.export_onnx(build(Opaque), tmp_path / "x.onnx", input_shape=SHAPE)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x.onnx", b"old")]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot write: No such file(.|\n)*x\.onnx"):
        onnx_file.export_onnx(build(), tmp_path / "missing" / "x.onnx", input_shape=SHAPE)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_files_have_the_mode_that_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    monkeypatch.setattr(onnx_file, "_LARGEST_FILE", 100)
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    module = build()
    module.head = nn.Linear(8, 64)  # small tensors stay in the graph
    before = os.umask(umask)
    try:
        onnx_file.export_onnx(module, tmp_path / "x.onnx", input_shape=SHAPE)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert modes == dict.fromkeys(("x.onnx", "x.onnx.data"), 0o666 & ~umask)
        (tmp_path / "x.onnx").chmod(0o640)
        onnx_file.export_onnx(module, tmp_path / "x.onnx", input_shape=SHAPE)
    finally:
        os.umask(before)
    assert (tmp_path / "x.onnx").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["a[1].onnx", "a*.onnx", "a?.onnx", "[!a].onnx", "a b.onnx", "**.onnx", "x.ONNX"])
@pytest.mark.parametrize("large", [False, True])
def test_a_name_is_a_name_and_no_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, large: bool
) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    monkeypatch.setattr(onnx_file, "_LARGEST_FILE", 100 if large else 2**31)
    module = build()
    module.head = nn.Linear(8, 64)
    made, _ = onnx_file.export_checked(module, tmp_path / name, batches(3), task=TASK, input_shape=SHAPE)
    assert made.path == tmp_path / name
    assert {path.name for path in tmp_path.iterdir()} == ({name, f"{name}.data"} if large else {name})
    gate.gate(gate.measure(module, tmp_path / name, batches(3), task=TASK))


@pytest.mark.parametrize("name", ["x.pt", "x", "x.onnx.pt", ".onnx", "x.onnx.data", "plan.json"])
def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"old")
    for call in (
        lambda: onnx_file.export_onnx(build(), tmp_path / name, input_shape=SHAPE),
        lambda: onnx_file.export_checked(build(), tmp_path / name, batches(3), task=TASK, input_shape=SHAPE),
    ):
        with pytest.raises(InputError, match="is not the name of an ONNX file") as caught:
            call()
        assert caught.value.exit_code == 2
        assert ".onnx" in caught.value.hint
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"old")]


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, StorageError), (errno.EACCES, PlanError)])
@pytest.mark.parametrize("step", ["folder", "draft", "place"])
def test_a_full_disk_is_told_from_a_wrong_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[FxdistillError], step: str
) -> None:
    def refusing(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    target: tuple[Any, str] = {
        "folder": (tempfile, "TemporaryDirectory"), "draft": (onnx, "save_model"), "place": (Path, "replace"),
    }[step]  # fmt: skip
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    monkeypatch.setattr(*target, refusing)
    with pytest.raises(kind, match="cannot write") as caught:
        onnx_file.export_checked(build(), tmp_path / "x.onnx", batches(3), task=TASK, input_shape=SHAPE)
    assert caught.value.where == str(tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"opset 99 cannot be written(.|\n)*use one from 11 to \d+"):
        onnx_file.export_onnx(build(), tmp_path / "x.onnx", input_shape=SHAPE, opset=99)


def test_another_opset(tmp_path: Path) -> None:
    module = build()
    assert onnx_file.export_onnx(module, tmp_path / "x.onnx", input_shape=SHAPE, opset=20).opset == 20
    assert onnx.load(tmp_path / "x.onnx").opset_import[0].version == 20
    gate.gate(gate.measure(module, tmp_path / "x.onnx", batches(3), task=TASK))

"""Models from files: every kind of file that is read, and one clear message for every kind that is not."""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

from fxdistill import models
from fxdistill.errors import ModelError
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.modelfiles.source import ModelSource, parse_source
from fxdistill.modelfiles.statedict import save_state_dict

FACTORY = "fxdistill.models:convnet"
KWARGS: dict[str, Any] = {"widths": [4, 6], "hidden": 5, "classes": 3}
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = models.convnet(**KWARGS)
        module(X)  # BatchNorm statistics other than at the start
    return module.eval()


def source(path: Path | str, **options: Any) -> ModelSource:
    options.setdefault("factory", FACTORY)
    return ModelSource(Path(path), kwargs=KWARGS if options["factory"] else {}, **options)


def same_outputs(loaded: LoadedModel) -> bool:
    assert not loaded.module.training
    return torch.equal(loaded.module(X), network()(X))


def refused(path: Path | str, *parts: str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(source(path, **options))
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.hint
    assert str(path) in caught.value.where
    assert caught.value.exit_code == 2
    return caught.value


# What is read


def test_a_bundle_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save(network(), path, factory=FACTORY, kwargs=KWARGS, input_shape=(1, 1, 8, 8), metadata={"accuracy": 0.5})
    loaded = load(parse_source(str(path)))
    assert same_outputs(loaded)
    assert (loaded.factory, loaded.kwargs, loaded.input_shape) == (FACTORY, KWARGS, (1, 1, 8, 8))
    assert loaded.metadata == {"accuracy": 0.5}
    assert not loaded.random_weights
    assert not loaded.trusted
    assert loaded.sha256 is not None
    assert len(loaded.sha256) == 64


def test_the_same_model_gives_the_same_bytes_also_after_loading(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.pt", "b.pt", "c.pt")]
    for file in files[:2]:
        save(network(), file, factory=FACTORY, kwargs=KWARGS, input_shape=[1, 1, 8, 8])
    save(load(parse_source(str(files[0]))).module, files[2], factory=FACTORY, kwargs=KWARGS, input_shape=[1, 1, 8, 8])
    assert len({file.read_bytes() for file in files}) == 1
    assert sorted(tmp_path.iterdir()) == files


def test_a_saved_state_dict_is_plain_and_small(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    module.weight = nn.Parameter(torch.randn(1000, 3)[:2])
    save_state_dict(module, tmp_path / "student.pt")
    assert (tmp_path / "student.pt").stat().st_size < 4000, "the whole storage of a view was written"
    fresh = nn.Linear(3, 2)
    state = torch.load(tmp_path / "student.pt", weights_only=True)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.weight, module.weight)
    assert not any(value.requires_grad for value in state.values())


def wrapped(entry: str, prefix: str) -> dict[str, Any]:
    state = {prefix + name: value for name, value in network().state_dict().items()}
    content: Any = state
    for name in reversed(entry.split(".") if entry else []):
        content = {"epoch": 3, name: content, "args": {"lr": 0.1}}
    return dict(content)


@pytest.mark.parametrize("entry", ["", "state_dict", "model", "model_state_dict", "ema", "model.state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
def test_weights_are_found_in_checkpoints_of_training_scripts(tmp_path: Path, entry: str, prefix: str) -> None:
    torch.save(wrapped(entry, prefix), tmp_path / "model.pt")
    loaded = load(source(tmp_path / "model.pt"))
    assert same_outputs(loaded)
    assert loaded.entry == entry
    assert [d.code for d in loaded.diagnostics] == (["checkpoint-entry"] if entry else [])
    assert all(f"'{entry}'" in d.why for d in loaded.diagnostics)


def test_other_entries_are_named_where_one_was_chosen(tmp_path: Path) -> None:
    torch.save({**wrapped("ema", ""), **wrapped("model", "")}, tmp_path / "model.pt")
    loaded = load(source(tmp_path / "model.pt"))
    assert loaded.entry == "model"
    assert "also holds ema" in loaded.diagnostics[0].why


def test_names_inside_and_averaged_models_are_made_plain(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network())
    torch.save(averaged.state_dict(), tmp_path / "average.pt")
    assert same_outputs(load(source(tmp_path / "average.pt")))
    inner = {re.sub(r"^block1\.", "block1._orig_mod.", k): v for k, v in network().state_dict().items()}
    torch.save(inner, tmp_path / "inner.pt")
    assert same_outputs(load(source(tmp_path / "inner.pt")))


def test_safetensors_old_files_and_missing_counters(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    torch.save(network().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    state = {k: v for k, v in network().state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "counters.pt")
    for name in ("model.safetensors", "old.pt", "counters.pt"):
        assert same_outputs(load(source(tmp_path / name))), name


def test_weights_that_are_not_finite_are_said(tmp_path: Path) -> None:
    module = network()
    next(module.buffers()).fill_(float("inf"))  # as a mask is
    save_state_dict(module, tmp_path / "model.pt")
    assert not load(source(tmp_path / "model.pt")).diagnostics
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = float("inf")
    save_state_dict(module, tmp_path / "model.pt")
    (remark,) = load(source(tmp_path / "model.pt")).diagnostics
    assert (remark.code, remark.severity) == ("weights-not-finite", "warning")
    assert "block1.conv.weight" in remark.where


# torch.export


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.drop(self.body(x))
        return result


def export(module: nn.Module, path: Path, *, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(module, (X,), dynamic_shapes=shapes), path)
    return path


@pytest.mark.parametrize("training", [False, True])
def test_an_exported_program_is_a_plain_module_again(tmp_path: Path, training: bool) -> None:
    module = WithDropout().train(training)
    loaded = load(source(export(module, tmp_path / "m.pt2"), factory=None, trust_code=True))
    found = loaded.module
    assert isinstance(found, fx.GraphModule)
    assert loaded.input_shape == (2, 1, 8, 8)
    assert not loaded.diagnostics
    assert found.state_dict().keys() == module.state_dict().keys()
    assert torch.equal(found(X), module.eval()(X))
    assert found(X[:1]).shape == (1, 3)
    found.train()
    module.train()
    torch.manual_seed(0)
    expected = module(X)
    torch.manual_seed(0)
    assert torch.equal(found(X), expected)
    for name, value in found.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), f"{name} was not updated as in the original"
    assert torch.equal(found.eval()(X), module.eval()(X))
    assert torch.equal(fx.symbolic_trace(found)(X), found(X))


def test_the_archive_is_recognised_whatever_its_name(tmp_path: Path) -> None:
    export(network(), tmp_path / "m.pt2").rename(tmp_path / "m.pt")
    assert same_outputs(load(source(tmp_path / "m.pt", factory=None, trust_code=True)))


def test_structured_outputs_and_fixed_batches_of_exports(tmp_path: Path) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.body(x)
            return {"out": y, "aux": y * 2}

    loaded = load(source(export(Heads(), tmp_path / "m.pt2", dynamic=False), factory=None, trust_code=True))
    assert torch.equal(loaded.module(X)["aux"], network()(X) * 2)
    assert [d.code for d in loaded.diagnostics] == ["static-batch"]


def test_torchvision_exports_equal_their_original(tmp_path: Path) -> None:
    original = load(parse_source("torchvision.models:mobilenet_v3_small?num_classes=3")).module
    x = torch.randn(2, 3, 64, 64)
    program = torch.export.export(original, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "m.pt2")
    found = load(source(tmp_path / "m.pt2", factory=None, trust_code=True)).module
    assert torch.equal(found(x), original(x))
    assert {type(m) for m in found.modules()} >= {nn.BatchNorm2d, nn.Dropout}


def rewritten(archive: Path, member: str, change: Any) -> Path:
    content = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith(member) else data)
    archive.write_bytes(content.getvalue())
    return archive


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["ATTACKED"],)


@pytest.fixture
def attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTACKED", str(tmp_path / "attacked"))
    return tmp_path / "attacked"


def test_an_exported_program_is_code_and_refused_unless_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export(network(), tmp_path / "m.pt2")
    assert load(source(path, factory=None, trust_code=True)).trusted
    monkeypatch.setattr(torch.export, "load", lambda *_args, **_names: pytest.fail("it was loaded"))
    refused(path, "can run code", "--trust-code", factory=None)


def test_exports_take_no_factory_and_one_input(tmp_path: Path) -> None:
    refused(export(network(), tmp_path / "m.pt2"), "needs no factory", trust_code=True)

    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    torch.export.save(torch.export.export(Two(), (X, X)), tmp_path / "two.pt2")
    refused(tmp_path / "two.pt2", "2 inputs", factory=None, trust_code=True)


# Pickles


def test_a_pickled_module_is_refused_unless_trusted(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "torch.nn.modules.container.Sequential", "runs whatever code", factory=None)
    loaded = load(source(tmp_path / "model.pt", factory=None, trust_code=True))
    assert same_outputs(loaded)
    assert loaded.trusted
    torch.save({"model": nn.DataParallel(network()), "epoch": 1}, tmp_path / "entry.pt")
    loaded = load(source(tmp_path / "entry.pt", factory=None, trust_code=True))
    assert same_outputs(loaded)
    assert loaded.entry == "model"
    refused(tmp_path / "model.pt", "needs no factory", trust_code=True)


def test_trust_is_recorded_only_where_it_was_needed(tmp_path: Path) -> None:
    save_state_dict(network(), tmp_path / "model.pt")
    assert not load(source(tmp_path / "model.pt", trust_code=True)).trusted


@pytest.mark.parametrize("new_format", [True, False])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, attacked: Path, new_format: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": network().state_dict(), "x": Attack()}, path, _use_new_zipfile_serialization=new_format)
    assert same_outputs(load(source(path)))
    assert not attacked.exists()
    torch.save({"x": Attack()}, path, _use_new_zipfile_serialization=new_format)
    refused(path, "no state dict")
    torch.save({"state_dict": Attack()}, path, _use_new_zipfile_serialization=new_format)
    refused(path, "pickled objects", "mkdir", "--trust-code")
    path.write_bytes(pickle.dumps(Attack()))
    refused(path)
    assert not attacked.exists()


def test_a_trusted_pickle_of_an_unknown_class_is_explained(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pt")
    path = rewritten(tmp_path / "model.pt", "data.pkl", lambda data: data.replace(b"Sequential", b"Zequential"))
    refused(path, "cannot be imported", factory=None, trust_code=True)


# Files that are no models


def archive_with_a_name_that_is_no_text() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("é/data.pkl"), b"")  # of no date: it names a test
    return file.getvalue().replace("é".encode(), b"\xc3\xc3")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pt", b"", "empty"),
        ("page.pt", b"\n<!DOCTYPE html><html>", "web page"),
        ("pointer.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("text.pt", b"hello\n", "text"),
        ("model.onnx", b"\x08\x08\x12\x07pytorch", "ONNX"),
        ("noise.pt", bytes(range(255, 100, -1)), "not one that PyTorch wrote"),
        ("pickle.pt", pickle.dumps({"a": 1}), "pickled objects"),
        ("short.pt", b"\x80\x02", "truncated"),
        ("broken.safetensors", (50).to_bytes(8, "little") + b'{"a":', "truncated"),
        ("header.pt", b"PK\x03\x04" + bytes(100), "truncated"),
        ("names.pt", archive_with_a_name_that_is_no_text(), "truncated"),
    ],
)
def test_files_that_are_no_models_are_called_what_they_are(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    refused(tmp_path / "absent.pt", "no such file", "MODULE:FUNCTION")
    refused(tmp_path, "no run directory")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "model.pt", "cannot be read")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["model.pt", "model.pt2", "old.pt", "model.safetensors"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / kind
    if kind == "model.pt2":
        export(network(), path)
    elif kind == "model.safetensors":
        save_file(network().state_dict(), path)
    else:
        torch.save(network().state_dict(), path, _use_new_zipfile_serialization=kind == "model.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    options = {"factory": None, "trust_code": True} if kind == "model.pt2" else {}
    refused(path, "cannot be read" if kind == "model.pt2" else "truncated", **options)


def test_a_flipped_bit_in_a_foreign_archive_is_found(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    content = bytearray((tmp_path / "model.pt").read_bytes())
    weights = network().state_dict()["block1.conv.weight"].numpy().tobytes()
    content[content.index(weights) + 2] ^= 8
    (tmp_path / "model.pt").write_bytes(content)
    refused(tmp_path / "model.pt", "damaged", "data/")


def test_an_archive_that_would_grow_out_of_all_proportion_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/data/0", bytes(1 << 26))
    refused(tmp_path / "model.pt", "67,108,8", "expand")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_torchscript_and_foreign_archives(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(network()), tmp_path / "script.pt")
    refused(tmp_path / "script.pt", "TorchScript", "state dict")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.pt", "PyTorch did not write", "readme.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {}}, "entries are: epoch, optimizer"),
        ({}, "entries are: none"),
        ([1, 2], "holds list"),
        (torch.zeros(2), "holds Tensor"),
        ({"state_dict": {"a": 1}}, "entries are: state_dict"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", message)


def test_a_state_dict_needs_its_factory(tmp_path: Path) -> None:
    save_state_dict(network(), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "name its factory, such as torchvision.models:resnet18", factory=None)


def test_a_state_dict_that_does_not_fit_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(models.convnet(**{**KWARGS, "classes": 7}).state_dict(), path)
    error = refused(path, "2 of another shape", "classifier.weight is 7x5 in the file, 3x5 in the model")
    assert error.hint.endswith("classes=7")
    torch.save(models.convnet(**{**KWARGS, "widths": [4, 7]}).state_dict(), path)
    assert "classes" not in refused(path, "of another shape", "…").hint
    torch.save(models.resnet().state_dict(), path)
    refused(path, "missing (block1.conv.weight", "unexpected (", "few names agree")
    state = OrderedDict(network().state_dict())
    state.popitem()
    state["more"] = torch.zeros(1)
    torch.save(state, path)
    refused(path, "1 missing (classifier.bias)", "1 unexpected (more)")


def test_torchvision_heads_get_the_argument_named(tmp_path: Path) -> None:
    torch.save(load(parse_source("torchvision.models:resnet18?num_classes=10")).module.state_dict(), tmp_path / "r.pt")
    with pytest.raises(ModelError, match="num_classes=10"):
        load(ModelSource(tmp_path / "r.pt", "torchvision.models:resnet18"))


def test_a_bundle_says_itself_what_builds_it(tmp_path: Path) -> None:
    save(network(), tmp_path / "model.pt", factory=FACTORY, kwargs=KWARGS)
    assert same_outputs(load(source(tmp_path / "model.pt")))
    refused(tmp_path / "model.pt", "says itself", factory="fxdistill.models:resnet")
    with pytest.raises(ModelError, match="says itself"):
        load(tmp_path / "model.pt", kwargs={"hidden": 6})
    assert same_outputs(load(tmp_path / "model.pt", kwargs=KWARGS))


# What load takes


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_loaded_as_on_the_command_line(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(network(), "a.pt", factory=FACTORY, kwargs=KWARGS)
    save_state_dict(network(), "weights.pt")
    torch.save(network(), "pickle.pt")
    assert same_outputs(load(kind("a.pt")))
    assert load(kind("a.pt")).path == Path("a.pt")
    assert same_outputs(load(kind("weights.pt"), factory=FACTORY, kwargs=KWARGS))
    assert same_outputs(load(kind("weights.pt"), factory=f"{FACTORY}?widths=[4,6]&hidden=5", kwargs={"classes": 3}))
    assert same_outputs(load(kind("pickle.pt"), trust_code=True))
    with pytest.raises(ModelError, match="pickled objects"):
        load(kind("pickle.pt"))
    with pytest.raises(ModelError, match="no such file"):
        load(kind("b.pt"))
    built = load(kind(f"{FACTORY}?hidden=5"), kwargs={"widths": [4, 6]}, seed=3)
    assert (built.path, built.kwargs) == (None, {"hidden": 5, "widths": [4, 6]})
    again = load(ModelSource(None, FACTORY, built.kwargs), seed=3)
    assert torch.equal(built.module(X), again.module(X))


def test_nothing_is_said_twice_to_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'hidden' is given twice"):
        load(f"{FACTORY}?hidden=5", kwargs={"hidden": 6})
    with pytest.raises(ModelError, match="two factories"):
        load(FACTORY, factory=FACTORY)
    for more in ({"factory": FACTORY}, {"kwargs": {"hidden": 5}}, {"trust_code": True}, {"allow": ["mine"]}):
        with pytest.raises(ModelError, match="says everything"):
            load(ModelSource(None, FACTORY), **more)


def test_a_module_of_the_users_own_is_allowed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("allowed_for_load.py").write_text("from torch import nn\ndef tiny(): return nn.Linear(2, 2)\n")
    with pytest.raises(ModelError, match="--allow-factory allowed_for_load"):
        load("allowed_for_load:tiny")
    assert isinstance(load("allowed_for_load:tiny", allow=["allowed_for_load"]).module, nn.Linear)


def test_a_source_without_anything() -> None:
    with pytest.raises(ModelError, match="neither"):
        load(ModelSource(None, None))

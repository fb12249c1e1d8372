"""Bundles: what is written, what comes back bit for bit, and which made ones are refused."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxdistill import compiler, container
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.errors import FxdistillError, ModelError
from fxdistill.modelfiles.bundle import KIND, read, save, save_trained
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.load import load
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.planning import planner, preflight

FACTORY = "fxdistill.models:convnet"
KWARGS: dict[str, Any] = {"widths": [8, 16], "hidden": 6, "classes": 3}
SHAPE = (1, 1, 8, 8)
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    module = build(FACTORY, KWARGS, seed=1)
    module(X)  # BatchNorm statistics other than at the start
    return module.eval()


def edited(path: Path, **change: Any) -> Path:
    """The file with other entries, sealed again; ``...`` takes one away."""
    content = {**container.read(path, kinds=(KIND,))[1], **change}
    container.write(path, KIND, {key: value for key, value in content.items() if value is not ...})
    return path


def test_a_bundle_of_a_factory_says_what_builds_it(tmp_path: Path) -> None:
    seen = Preprocessing(size=[8, 8], mean=[0.5], std=[0.25], channels="gray")
    save(network(), tmp_path / "a.pt", factory=FACTORY, kwargs=KWARGS, input_shape=SHAPE, metadata={"accuracy": 0.5},
         preprocessing=seen)  # fmt: skip
    content = container.read(tmp_path / "a.pt", kinds=(KIND,))[1]
    assert content.pop("state").keys() == network().state_dict().keys()
    assert content == {
        "factory": FACTORY, "kwargs": KWARGS, "graph": None, "input_shape": [1, 1, 8, 8],
        "preprocessing": seen.model_dump(mode="json"), "metadata": {"accuracy": 0.5},
    }  # fmt: skip


@pytest.mark.parametrize("factory", [None, FACTORY])
def test_what_a_model_of_timm_carries_of_its_preprocessing_is_in_the_file(factory: str | None, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    path, model = tmp_path / "a.pt", build(FACTORY, KWARGS | {"in_channels": 3})
    config = {"crop_pct": 0.8, "mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3}
    model.pretrained_cfg = config | {"input_size": (3, 8, 8)}  # type: ignore[assignment]
    kwargs = KWARGS | {"in_channels": 3} if factory else None
    save(model, path, factory=factory, kwargs=kwargs, input_shape=(1, 3, 8, 8))
    found = load(path).preprocessing
    assert found is not None
    assert (found.size, found.resize, found.mean) == ([8, 8], [10, 10], [0.1, 0.2, 0.3])
    assert (found.source.geometry, found.source.normalisation) == ("the file", "timm's pretrained_cfg")
    said = Preprocessing(size=[8, 8], mean=[0.5] * 3, std=[0.5] * 3)
    save(model, path, input_shape=(1, 3, 8, 8), preprocessing=said)  # what is said holds
    assert (found := load(path).preprocessing) is not None
    assert (found.mean, found.source.normalisation) == ([0.5] * 3, "the file")
    model.pretrained_cfg = config | {"input_size": (3, 32, 32)}  # type: ignore[assignment]
    save(model, path, factory=factory, kwargs=kwargs, input_shape=(1, 3, 8, 8))  # of other images, and other weights
    assert load(path).preprocessing is None


class Own(nn.Module):
    """A user's class: a buffer that no state dict has, a layer that forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 3)
        self.unused = nn.Linear(5, 5)
        self.scale: Tensor
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)
        self.shift = torch.arange(8.0).view(8, 1, 1)  # a constant, which is in the graph alone

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(functional.relu(self.norm(self.a(x)) * self.scale + self.shift).mean((2, 3)))
        return out


def test_a_class_of_the_users_own_comes_back_without_it(tmp_path: Path) -> None:
    model = Own()
    model.scale.fill_(0.5)
    model(X)
    model.eval()
    save(model, tmp_path / "own.pt", input_shape=SHAPE)
    found = load(tmp_path / "own.pt")
    assert (found.factory, found.input_shape) == (None, SHAPE)
    assert torch.equal(found.module(X), model(X))
    assert type(found.module).__module__ != __name__
    before = found.module.get_buffer("norm.running_mean").clone()
    found.module.train()(X + 1)
    assert not torch.equal(found.module.get_buffer("norm.running_mean"), before)


def test_a_shrunken_model_comes_back_and_is_shrunk_again_and_again(tmp_path: Path) -> None:
    module, widths = network(), []
    for _ in range(3):
        result = shrink_model(module, input_shape=SHAPE, keep=0.5)
        save(result.module, tmp_path / "small.pt", input_shape=SHAPE)
        module = load(tmp_path / "small.pt").module
        assert torch.equal(module(X), result.module(X))
        widths.append(result.widths["block2.conv"])
    assert widths == [(16, 8), (8, 4), (4, 2)]


def test_the_same_model_gives_the_same_bytes_also_after_loading(tmp_path: Path) -> None:
    for name, model in (("a", network()), ("b", network())):
        save(model, tmp_path / name, input_shape=SHAPE)
    save(load(tmp_path / "a").module, tmp_path / "c", input_shape=SHAPE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read(tmp_path / "a").graph is not None
    assert torch.equal(load(tmp_path / "c").module(X), network()(X))


def test_the_plans_own_reference_is_accepted(tmp_path: Path) -> None:
    save(network(), tmp_path / "graph.pt", input_shape=SHAPE)
    save(network(), tmp_path / "whole.pt", factory=FACTORY, kwargs=KWARGS)
    for name, factory in (("graph.pt", None), ("whole.pt", FACTORY)):
        found = load(tmp_path / name)
        ref = planner.reference(found, tmp_path / "plan.json")
        assert (ref.factory, ref.path, ref.sha256) == (factory, name, found.sha256)
        again = preflight.load_model(ref, tmp_path, seed=0)
        assert torch.equal(again(X), found.module(X))
        with pytest.raises(ModelError, match="says itself"):
            preflight.load_model(ref.model_copy(update={"kwargs": {"hidden": 3}}), tmp_path, seed=0)


def test_a_bundle_of_the_users_own_factory_needs_permission_and_its_shrunken_model_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_for_bundle.py").write_text(
        "from fxdistill import models\ndef net(classes=3): return models.convnet(widths=[8, 16], classes=classes)\n"
    )
    model = load("own_for_bundle:net", allow=["own_for_bundle"]).module
    save(model, "own.pt", factory="own_for_bundle:net")
    with pytest.raises(ModelError, match="--allow-factory own_for_bundle"):
        load("own.pt")
    assert torch.equal(load("own.pt", allow=["own_for_bundle"]).module(X), model(X))
    save(shrink_model(model, input_shape=SHAPE, keep=0.5).module, "small.pt", input_shape=SHAPE)
    assert load("small.pt").module(X).shape == (2, 3)


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.special.i0e(x.flatten(1)))
        return out


def test_a_model_that_cannot_be_written_down_is_kept_as_its_weights(tmp_path: Path) -> None:
    model = Strange().eval()
    with pytest.raises(ModelError, match="i0e"):
        save(model, tmp_path / "a.pt", input_shape=SHAPE)
    assert not list(tmp_path.iterdir())
    assert "i0e" in save_trained(model, tmp_path / "a.pt", factory=None, kwargs={}, input_shape=SHAPE)
    assert torch.equal(read(tmp_path / "a.pt").state["fc.weight"], model.fc.weight)
    with pytest.raises(ModelError, match="weights alone"):
        load(tmp_path / "a.pt")


def test_the_compiler_knows_no_files() -> None:
    for path in Path(compiler.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not [name for name in named if "modelfiles" in name], path


def test_a_bundle_of_an_older_version_is_called_so(tmp_path: Path) -> None:
    torch.save({"format": "fxdistill-bundle", "version": 2, "state_dict": {}}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="older fxdistill"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factory": 3}, "lacks a part, or has a wrong one: factory"),
        ({"graph": [1]}, "wrong one: graph"),
        ({"kwargs": [1]}, "wrong one: kwargs"),
        ({"kwargs": {"hidden": torch.zeros(1)}}, "wrong one: kwargs"),
        ({"kwargs": {"hidden": float("nan")}}, "wrong one: kwargs"),
        ({"metadata": ...}, "wrong one: metadata"),
        ({"state": {"a": 1}}, "wrong one: state"),
        ({"state": {}}, "not those of"),
        ({"state": {"block1.conv.weight": torch.zeros(3)}}, "not those of"),
        ({"input_shape": [1, -8]}, "wrong one: input_shape"),
        ({"input_shape": [1.5]}, "wrong one: input_shape"),
        ({"input_shape": []}, "wrong one: input_shape"),
        ({"input_shape": [1, 1, 1 << 17, 8]}, "wrong one: input_shape"),
        ({"input_shape": [64, 3, 60000, 60000]}, "wrong one: input_shape"),
        ({"preprocessing": {"size": [0, 8]}}, "preprocessing is not valid"),
        ({"preprocessing": {"size": [65536, 65536]}}, "more pixels than 67,108,864"),
        ({"preprocessing": {"size": [8, 8], "resize": [65536, 1025]}}, "more pixels than"),
        ({"factory": "os:system"}, "--allow-factory os"),
        ({"factory": "os"}, "is not a factory"),
        ({"factory": f"{FACTORY}?hidden=3"}, "is not a factory"),
        ({"factory": "fxdistill.compiler.shrink_model:shrink_model"}, "not called unasked"),
        ({"kwargs": {"width": 3}}, "unexpected keyword argument 'width'"),
        ({"factory": None, "graph": {"nodes": []}}, "graph in the file"),
        ({"factory": None, "graph": None}, "weights alone"),
    ],
)
def test_bundles_that_were_tampered_with(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(network(), tmp_path / "a.pt", factory=FACTORY, kwargs=KWARGS)
    with pytest.raises(ModelError, match=message) as caught:
        load(edited(tmp_path / "a.pt", **change))
    assert caught.value.hint
    assert caught.value.where


def test_a_layer_that_lacks_what_its_class_has_is_refused(tmp_path: Path) -> None:
    save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), tmp_path / "a.pt", input_shape=(1, 1, 8, 8))
    kind, content = container.read(tmp_path / "a.pt", kinds=("model",))
    del content["graph"]["modules"]["modules"]["1"]["attributes"]["track_running_stats"]
    container.write(tmp_path / "a.pt", kind, content)
    with pytest.raises(ModelError, match=r"cannot be loaded.*track_running_stats"):
        load(tmp_path / "a.pt")


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    save(network(), tmp_path / "a.pt", factory=FACTORY, kwargs=KWARGS)
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[-100] ^= 4
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "convnet"}, r"a plain factory|not a factory"),
        ({"factory": FACTORY + "?hidden=3"}, "not a plain factory"),
        ({"factory": FACTORY, "kwargs": {"x": torch.zeros(1)}}, "not JSON"),
        ({"factory": FACTORY, "metadata": {"x": float("nan")}}, "not JSON"),
        ({}, "input_shape"),
        ({"factory": FACTORY, "input_shape": (1, 3, 0, 8)}, "cannot be read again: input_shape"),
        ({"factory": FACTORY, "input_shape": (1.0, 3, 8, 8)}, "is no input_shape"),
        ({"factory": FACTORY, "input_shape": ()}, "cannot be read again: input_shape"),
        ({"factory": FACTORY, "kwargs": [1], "metadata": ["x"]}, "is no kwargs"),
    ],
)
def test_saving_refuses_what_could_not_be_loaded(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FxdistillError, match=message):
        save(network(), tmp_path / "model.pt", **options)
    assert not list(tmp_path.iterdir())


def test_a_factory_builds_no_more_than_the_file_holds(tmp_path: Path) -> None:
    """A file of some kilobytes that names a model of some gigabytes is refused before these are there."""
    model = build(FACTORY, {"widths": [4, 6], "classes": 3})
    save(model, tmp_path / "m.pt", factory=FACTORY, kwargs={"widths": [4096, 4096]})
    with pytest.raises(ModelError, match=r"builds more than 0\.1 GB"):
        load(tmp_path / "m.pt")

"""What a stranger may write into a file as a factory of ours: the name of a model, and plain arguments."""

import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from fxdistill import container, models
from fxdistill.errors import ModelError
from fxdistill.files import file_sha256
from fxdistill.modelfiles import registered
from fxdistill.modelfiles.bundle import KIND, save
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.load import load
from fxdistill.plan.schema import ModelRef
from fxdistill.runtime.planning import preflight


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


@pytest.fixture(autouse=True)
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that could be read, changed or unpickled, and no way out of the machine."""

    def offline(*_: object, **__: object) -> None:
        raise AssertionError("something was to be fetched")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(socket, "socket", offline)
    Path("evil.pth").write_bytes(pickle.dumps(Attack()))
    Path("notes").write_text("epoch,loss\n1,2\n")
    Path("evil_to_import.py").write_text("open('imported', 'w')\n")
    Path("folder").mkdir()
    Path("folder/config.json").write_text('{"architecture": "resnet10t", "num_classes": 3}')
    torch.save(models.convnet().state_dict(), "weights.pth")
    return tmp_path / "here"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def by_argument(factory: str, kwargs: dict[str, Any]) -> None:
    build(factory, kwargs)


def by_bundle(factory: str, kwargs: dict[str, Any]) -> None:
    content = {
        "factory": factory, "kwargs": kwargs, "graph": None, "input_shape": None, "metadata": {},
        "state": models.convnet().state_dict(),
    }  # fmt: skip
    container.write(Path("../bundle.pt"), KIND, content)
    load("../bundle.pt")


def by_plan(factory: str, kwargs: dict[str, Any]) -> None:
    ref = ModelRef(path="weights.pth", sha256=file_sha256(Path("weights.pth")), factory=factory, kwargs=kwargs)
    preflight.load_model(ref, Path.cwd(), seed=0)


WAYS = pytest.mark.parametrize("way", [by_argument, by_bundle, by_plan])


@WAYS
@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        ("timm.utils:update_summary", {"epoch": 3, "train_metrics": {"a": 1}, "eval_metrics": {}, "filename": "notes"}),
        ("timm.utils.summary:update_summary", {"epoch": 3, "train_metrics": {}, "eval_metrics": {}, "filename": "x"}),
        ("timm.utils:trim_summary", {"filename": "notes", "keep": 0}),
        ("timm.models:load_state_dict_from_hf", {"model_id": "a/b", "weights_only": False}),
        ("timm.models._hub:load_state_dict_from_path", {"path": "evil.pth", "weights_only": False}),
        ("timm.models._hub:download_cached_file", {"url": "https://example.com/x"}),
        ("timm.models._helpers:load_state_dict", {"checkpoint_path": "evil.pth", "weights_only": False}),
        ("timm.models:load_checkpoint", {"checkpoint_path": "evil.pth"}),
        ("timm.models._features:_import_class", {"name": "evil_to_import"}),
        ("timm.data:create_dataset", {"name": "torch/cifar10", "root": ".", "download": True}),
        ("timm:list_models", {}),
        ("timm.models.layers:DropPath", {}),
        ("timm.models.layers.drop:DropPath", {}),
        ("timm.layers:Mlp", {"in_features": 3}),
        ("timm.models._registry:model_entrypoint", {"model_name": "resnet10t"}),
        ("timm.models.resnet:ResNet", {"block": "evil_to_import"}),
        ("timm.models.resnet:vit_tiny_patch16_224", {}),
        ("Timm:resnet10t", {}),
        ("timm.Models:resnet10t", {}),
        ("timm.models.ResNet:resnet10t", {}),
        ("timm:ResNet10t", {}),
        ("torchvision.models:get_model_weights", {"name": "resnet18"}),
        ("torchvision.models:get_weight", {"name": "ResNet18_Weights.DEFAULT"}),
        ("torchvision.models:list_models", {}),
        ("torchvision.models:get_model", {"name": "resnet18", "weights": "DEFAULT"}),
        ("torchvision.models._api:register_model", {"name": "evil"}),
        ("torchvision.models._api:load_state_dict_from_url", {"url": "https://example.com/x"}),
        ("torchvision.models.resnet:ResNet", {}),
        ("torchvision.models.resnet:vgg11", {}),
        ("torchvision.models.resnet.evil:resnet18", {}),
        ("torchvision.models.segmentation:resnet18", {}),
        ("torchvision.Models:resnet18", {}),
        ("torchvision.models:ResNet18", {}),
        ("torchvision:resnet18", {}),
        ("fxdistill.models:Tensor", {}),
        ("fxdistill.models:OrderedDict", {}),
        ("fxdistill.models:_ResNet", {"widths": [4], "blocks": [1], "classes": 2, "in_channels": 1}),
        ("fxdistill.models:_conv3x3", {"channels": 1, "width": 1}),
        ("fxdistill.Models:convnet", {}),
        ("fxdistill.models.convnet:convnet", {}),
        ("fxdistill.files:write_text", {"path": "notes", "text": ""}),
        ("fxdistill.compiler.shrink_model:shrink_model", {}),
        ("fxdistill.compiler.shrink_model:torch", {}),
        ("fxdistill.modelfiles.bundle:save", {"path": "notes", "factory": "a:b"}),
        ("evil_to_import:open", {}),
    ],
)
def test_what_is_no_registered_model_is_not_called(
    victim: Path, way: Callable[..., None], factory: str, kwargs: dict[str, Any]
) -> None:
    before = contents(victim)
    with pytest.raises(ModelError) as caught:
        way(factory, kwargs)
    assert "not called unasked" in str(caught.value) or "registers" in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2
    assert contents(victim) == before
    assert not Path("unpickled").exists()


@WAYS
@pytest.mark.parametrize("factory", ["timm:create_model", "timm.models:create_model"])
@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet10t", "hf_hub:timm/resnet10t", "HF-HUB:timm/resnet10t", "local-dir:folder", "timm/resnet10t",
        "local-dir:.", "./folder", "C:\\folder", "resnet10t.a/../../folder", "resnet10t.a:b", "file:evil.pth", "",
        "create_model", "list_models", "resnet10t\n", "resnet10t ", ["resnet10t"], {"file": "evil.pth"}, None, 3,
    ],
)  # fmt: skip
def test_a_model_name_is_one_of_timms_registry(victim: Path, way: Callable[..., None], factory: str, name: Any) -> None:
    before = contents(victim)
    with pytest.raises(ModelError, match=r"downloads nothing|has no model"):
        way(factory, {"model_name": name})
    assert contents(victim) == before


@WAYS
@pytest.mark.parametrize(
    "kwargs",
    [
        {"pretrained": True},
        {"pretrained": 1},
        {"pretrained": "false"},
        {"checkpoint_path": "evil.pth"},
        {"checkpoint_path": ["evil"]},
        {"pretrained_cfg": "a1_in1k"},
        {"pretrained_cfg": {"file": "evil"}},
        {"pretrained_cfg": {"url": "https://example.com/x"}},
        {"pretrained_cfg_overlay": {"file": "evil"}},
        {"pretrained_cfg_overlay": {"hf_hub_id": "a"}},
        {"pretrained_strict": True},
        {"pretrained_model_args": {"file": "x"}},
        {"cache_dir": "folder"},
        {"pruned": True},
        {"block_args": {"file": "evil"}},
        {"block_args": {"inner": [{"url": "x"}]}},
        {"block_args": {"inner": {"hf_hub_filename": "x"}}},
        {"block_args": {"inner": {"state_dict": {"x": 1}}}},
        {"act_layer": "torch.nn.ReLU"},
        {"act_layer": "os:system"},
        {"norm_layer": ["evil_to_import.x"]},
        {"block_args": {"act_layer": "evil_to_import.x"}},
        {"act_layer": "../evil"},
        {"act_layer": "folder/evil"},
        {"act_layer": "folder\\evil"},
        {"act_layer": "https://example.com"},
        {"act_layer": "evil.pth"},
        {"act_layer": "~"},
    ],
)
@pytest.mark.parametrize("factory", ["timm:resnet10t", "timm:create_model", "torchvision.models:resnet18"])
def test_arguments_only_build(victim: Path, way: Callable[..., None], factory: str, kwargs: dict[str, Any]) -> None:
    before = contents(victim)
    named = {"model_name": "resnet10t"} if factory.endswith("create_model") else {}
    with pytest.raises(ModelError, match=r"downloads nothing|could name a file, an address or code"):
        way(factory, named | kwargs)
    assert contents(victim) == before
    assert not Path("unpickled").exists()
    assert not Path("imported").exists()


@pytest.mark.parametrize("weights", ["weights", "weights_backbone", "pretrained", "pretrained_backbone"])
@pytest.mark.parametrize("value", ["DEFAULT", "legacy", "IMAGENET1K_V1", True, 1, {"url": "x"}, ""])
def test_torchvisions_builders_get_no_weights(weights: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"'{weights}' may load weights from elsewhere"):
        build("torchvision.models.segmentation:lraspp_mobilenet_v3_large", {weights: value})


def test_arguments_that_are_no_plain_values() -> None:
    for value in (nn.ReLU, print, torch.zeros(1), b"x", {1, 2}):
        with pytest.raises(ModelError, match="the argument 'act_layer' is of the type"):
            build("timm:resnet10t", {"act_layer": value})


def test_arguments_that_are_nested_without_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (endless, {"inner": endless}):
        with pytest.raises(ModelError, match="nested in more than"):
            build("timm:resnet10t", {"block_args": value})


def test_every_model_of_the_libraries_is_found() -> None:
    for name in torchvision.models.list_models():
        builder = torchvision.models.get_model_builder(name)
        for module in ("torchvision.models", builder.__module__):
            assert registered.find(module, name) is builder
        assert registered.find(builder.__module__, builder.__name__) is builder
    for name in timm.list_models(include_tags=False):
        builder = timm.model_entrypoint(name)
        for module in ("timm", "timm.models", builder.__module__):
            assert registered.find(module, name) is builder


def test_a_model_that_somebody_else_registered_is_not_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "registered_by_a_test", lambda **_: nn.Linear(1, 1))
    assert timm.is_model("registered_by_a_test")
    monkeypatch.setitem(torchvision.models._api.BUILTIN_MODELS, "registered_by_a_test", lambda **_: nn.Linear(1, 1))
    for factory in ("timm:registered_by_a_test", "torchvision.models:registered_by_a_test"):
        with pytest.raises(ModelError, match="registers no model"):
            build(factory, {})
    with pytest.raises(ModelError, match="has no model"):
        build("timm:create_model", {"model_name": "registered_by_a_test"})


def test_names_of_timm_that_are_out_of_date_build_and_load_nothing() -> None:
    old = next(name for name, new in timm.models._registry._deprecated_models.items() if new and "vit_tiny" in name)
    with pytest.raises(ModelError, match="downloads nothing"):
        build(f"timm:{old}", {"pretrained": True})


def test_a_plain_bundle_of_a_registered_model_is_read() -> None:
    module = build("timm:resnet10t", {"num_classes": 3, "act_layer": "silu"})
    save(module, "model.pt", factory="timm:resnet10t", kwargs={"num_classes": 3, "act_layer": "silu"})
    found = load("model.pt").module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in module.state_dict().items())

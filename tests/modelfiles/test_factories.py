"""Factories: what is called, with which arguments, and what is not."""

import socket
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxdistill.errors import DataError, ModelError
from fxdistill.modelfiles.factories import build, resolve
from fxdistill.modelfiles.load import load
from fxdistill.modelfiles.source import parse_source

FACTORY = "fxdistill.models:convnet"
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("os:system?command=x", "--allow-factory os"),
        ("torchvision.datasets.utils:download_url?url=x", "--allow-factory"),
        ("torchvision_models:resnet18", "--allow-factory"),
        ("torchvision.models:resnet81", "did you mean 'resnet18'"),
        ("torchvision.models.absent:resnet18", "no module"),
        ("torchvision.models:resnet18?classes=10", "unexpected keyword argument 'classes'"),
        ("torchvision.models:resnet18?weights=DEFAULT", "downloads nothing"),
        ("torchvision.models:get_model?name=resnet18", "name the function itself"),
        ("timm:create_model?model_name=hf-hub:a/b", "downloads nothing"),
        ("timm:create_model?model_name=resnet18&pretrained=true", "downloads nothing"),
        ("torchvision.models.resnet:partial", "registers no model 'partial'"),
        ("torchvision.models:__doc__", "registers no model '__doc__'"),
        ("fxdistill.models:resnett", "did you mean 'resnet'"),
        ("timm:resnet81", "did you mean 'resnet18'|near it are .*resnet18"),
        ("timm:create_model?model_name=resnet81", "near it are .*resnet18"),
        ("fxdistill.models:convnet?padding=0", "used up"),
    ],
)
def test_factories_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(parse_source(text))
    assert caught.value.hint


def test_random_weights_depend_on_the_seed_alone() -> None:
    found = parse_source(FACTORY, args=["hidden=4"])
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = load(found, seed=1), load(found, seed=1), load(found, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.random_weights
    assert first.path is None
    assert torch.equal(first.module(X), again.module(X))
    assert not torch.equal(first.module(X), other.module(X))


@pytest.mark.parametrize(
    "text",
    [
        "torchvision.models:googlenet?num_classes=3",
        "torchvision.models.segmentation:lraspp_mobilenet_v3_large?num_classes=3",
        "torchvision.models.quantization:shufflenet_v2_x0_5?weights=null&num_classes=3",
        "torchvision.models:resnet18?weights=null&pretrained=false",
        "torchvision.models.video:r3d_18",
        "torchvision.models.detection:ssdlite320_mobilenet_v3_large?weights_backbone=false",
        "timm:create_model?model_name=resnet10t",
        "timm:create_model?model_name=resnet18.a1_in1k&pretrained=false&checkpoint_path=null&num_classes=3",
        "timm:resnet10t?act_layer=gelu&global_pool=avg&features_only=true&pretrained_cfg=null",
        'timm.models:resnet10t?block_args={"attn_layer": "se"}',
        "timm.models.vision_transformer:vit_tiny_patch16_224?img_size=32",
    ],
)
@pytest.mark.filterwarnings("ignore:Importing from timm.models.layers:FutureWarning")
def test_library_factories_build_without_downloads(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    monkeypatch.setattr(socket, "socket", no_download)
    assert isinstance(load(parse_source(text)).module, nn.Module)


def test_the_users_own_modules_come_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    Path("mine_for_test").mkdir()
    Path("mine_for_test/nets.py").write_text("from torch import nn\ndef tiny(n=2): return nn.Linear(n, n)\n")
    Path("mine_for_test/gathered.py").write_text(
        "from functools import partial\nfrom os import system\nfrom torchvision.models import resnet18\n"
        "from mine_for_test.nets import tiny\nthree = partial(tiny, 3)\nhidden = partial(system, 'exit')\n"
    )
    Path("mine_for_test/broken.py").write_text("raise OSError('on fire')\n")
    with pytest.raises(ModelError, match=r"--allow-factory mine_for_test\.nets"):
        load(parse_source("mine_for_test.nets:tiny"))
    for allow in ("mine_for_test", "mine_for_test.nets"):
        assert isinstance(load(parse_source("mine_for_test.nets:tiny?n=3", allow=[allow])).module, nn.Linear)
    for name in ("tiny", "three", "resnet18"):
        assert callable(resolve(f"mine_for_test.gathered:{name}", allow=["mine_for_test.gathered"]))
    for name in ("system", "hidden"):
        with pytest.raises(ModelError, match=r"only imports '.*' from '(posix|nt)'"):
            resolve(f"mine_for_test.gathered:{name}", allow=["mine_for_test"])
    assert str(tmp_path) not in sys.path
    with pytest.raises(ModelError, match="cannot be imported: OSError: on fire"):
        load(parse_source("mine_for_test.broken:tiny", allow=["mine_for_test"]))
    with pytest.raises(ModelError, match="--allow-factory"):
        load(parse_source("mine_for_test_too:tiny", allow=["mine_for_test"]))


def test_what_a_module_of_the_users_own_gathers_obeys_the_same_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gathered_for_test.py").write_text(
        "from timm import create_model\nfrom timm.utils import update_summary\n"
        "from torchvision.models import ResNet, resnet18\n"
    )
    allow = ("gathered_for_test",)
    assert isinstance(build("gathered_for_test:resnet18", {"num_classes": 3}, allow=allow), nn.Module)
    with pytest.raises(ModelError, match="downloads nothing"):
        build("gathered_for_test:resnet18", {"weights": "DEFAULT"}, allow=allow)
    with pytest.raises(ModelError, match="downloads nothing"):
        build("gathered_for_test:create_model", {"model_name": "local-dir:/tmp"}, allow=allow)
    with pytest.raises(ModelError, match=r"only imports 'update_summary' from 'timm\.utils\.summary'"):
        build("gathered_for_test:update_summary", {"filename": "written"}, allow=allow)
    with pytest.raises(ModelError, match="only imports 'ResNet'"):
        build("gathered_for_test:ResNet", {}, allow=allow)
    assert sorted(tmp_path.glob("written*")) == []


def test_a_library_may_be_allowed_like_any_other_module() -> None:
    assert resolve("timm.utils:random_seed", allow=["timm.utils"]).__name__ == "random_seed"
    with pytest.raises(ModelError, match=r"--allow-factory timm\.utils"):
        build("timm.utils:random_seed", {})
    built = build("torchvision.models:AlexNet", {"num_classes": 2}, allow=["torchvision.models"])
    assert type(built).__name__ == "AlexNet"
    with pytest.raises(ModelError, match="downloads nothing"):
        build("torchvision.models:alexnet", {"weights": "DEFAULT"}, allow=["torchvision.models"])


def test_data_of_the_users_own_is_resolved_with_its_own_error() -> None:
    for name in ("torchvision.datasets:FakeData", "torchvision.models:resnet18", "timm:resnet18", FACTORY):
        with pytest.raises(DataError, match="not called unasked") as caught:
            resolve(name, error=DataError)
        assert "registered models" not in caught.value.hint

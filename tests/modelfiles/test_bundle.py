"""Bundles: what is written, which kinds and versions are read, and which recipes are refused."""

import ast
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxdistill import compiler
from fxdistill.cli import planning
from fxdistill.compiler.shrink_model import ShrunkResult, shrink_model
from fxdistill.errors import ModelError
from fxdistill.modelfiles.bundle import save, save_shrunken
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.load import load
from fxdistill.runtime import preflight

FACTORY = "fxdistill.models:convnet"
KWARGS: dict[str, Any] = {"widths": [8, 16], "hidden": 6, "classes": 3}
SHAPE = (1, 1, 8, 8)
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
OLD = "fxdistill.shrinking:rebuild"


def network() -> nn.Module:
    module = build(FACTORY, KWARGS, seed=1)
    module(X)  # BatchNorm statistics other than at the start
    return module.eval()


def shrunken(module: nn.Module) -> ShrunkResult:
    return shrink_model(module, input_shape=SHAPE, keep=0.5)


def edited(path: Path, **change: Any) -> Path:
    """The file with other entries; ``...`` takes one away."""
    content = {**torch.load(path, weights_only=True), **change}
    torch.save({key: value for key, value in content.items() if value is not ...}, path)
    return path


# Kinds


def test_a_plain_bundle_names_its_kind(tmp_path: Path) -> None:
    save(network(), tmp_path / "a.pt", factory=FACTORY, kwargs=KWARGS, input_shape=SHAPE, metadata={"accuracy": 0.5})
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content.pop("state_dict").keys() == network().state_dict().keys()
    assert content == {
        "format": "fxdistill-bundle", "version": 2, "kind": "factory", "factory": FACTORY, "kwargs": KWARGS,
        "input_shape": [1, 1, 8, 8], "metadata": {"accuracy": 0.5},
    }  # fmt: skip


def test_a_shrunken_bundle_holds_a_recipe_and_no_path_of_ours(tmp_path: Path) -> None:
    result = shrunken(network())
    save_shrunken(result, tmp_path / "a.pt", factory="timm:any_name", kwargs=KWARGS, random_weights=True)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content.pop("state_dict").keys() == result.module.state_dict().keys()
    assert content == {
        "format": "fxdistill-bundle", "version": 2, "kind": "shrunken", "factory": "timm:any_name", "kwargs": KWARGS,
        "input_shape": [1, 1, 8, 8], "metadata": {"random_weights": True},
        "recipe": {"input_shape": [1, 1, 8, 8], "rung": "symbolic", "barriers": [], "kept": result.kept},
    }  # fmt: skip


def test_a_shrunken_model_comes_back_and_is_shrunk_again(tmp_path: Path) -> None:
    result, paths = shrunken(network()), [tmp_path / f"{number}.pt" for number in range(3)]
    save_shrunken(result, paths[0], factory=FACTORY, kwargs=KWARGS)
    for path, following in itertools.pairwise(paths):
        found = load(path)
        assert torch.equal(found.module(X), result.module(X))
        assert (found.factory, found.kwargs, found.input_shape) == (FACTORY, KWARGS, SHAPE)
        assert found.recipe is not None
        result = shrunken(found.module)
        save_shrunken(result, following, factory=found.factory, kwargs=found.kwargs, before=found.recipe)
    last = load(paths[2])
    assert torch.equal(last.module(X), result.module(X))
    assert last.module.get_parameter("block1.conv.weight").shape[0] == 1
    assert last.recipe is not None
    assert [len(step.kept["block1.conv.weight"]) for step in last.recipe.steps()] == [4, 2, 1]


def test_the_plans_own_reference_is_accepted(tmp_path: Path) -> None:
    save_shrunken(shrunken(network()), tmp_path / "small.pt", factory=FACTORY, kwargs=KWARGS)
    save(network(), tmp_path / "whole.pt", factory=FACTORY, kwargs=KWARGS)
    for name in ("small.pt", "whole.pt"):
        found = load(tmp_path / name)
        ref = planning.reference(found, tmp_path / "plan.json")
        assert (ref.factory, ref.kwargs, ref.path, ref.sha256) == (FACTORY, KWARGS, name, found.sha256)
        again = preflight.load_model(ref, tmp_path, seed=0)
        assert torch.equal(again(X), found.module(X))
        with pytest.raises(ModelError, match="says itself"):
            preflight.load_model(ref.model_copy(update={"kwargs": {"hidden": 3}}), tmp_path, seed=0)


def test_a_shrunken_model_of_the_users_own_needs_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_for_bundle.py").write_text(
        "from fxdistill import models\ndef net(classes=3): return models.convnet(widths=[8, 16], classes=classes)\n"
    )
    result = shrunken(load("own_for_bundle:net", allow=["own_for_bundle"]).module)
    save_shrunken(result, "small.pt", factory="own_for_bundle:net")
    with pytest.raises(ModelError, match="--allow-factory own_for_bundle"):
        load("small.pt")
    assert torch.equal(load("small.pt", allow=["own_for_bundle"]).module(X), result.module(X))


def test_the_compiler_knows_no_files() -> None:
    for path in Path(compiler.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not [name for name in named if "modelfiles" in name], path


# Version 1


def version_1(path: Path, factory: str, kwargs: dict[str, Any], state: dict[str, Any]) -> Path:
    content = {
        "format": "fxdistill-bundle", "version": 1, "factory": factory, "kwargs": kwargs, "metadata": {},
        "input_shape": [1, 1, 8, 8], "state_dict": state,
    }  # fmt: skip
    torch.save(content, path)
    return path


def recipe_1(result: ShrunkResult, factory: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {
        "factory": factory, "kwargs": kwargs, "input_shape": list(result.input_shape), "rung": result.rung,
        "barriers": list(result.barriers), "kept": result.kept,
    }  # fmt: skip


def test_plain_bundles_of_version_1_are_read(tmp_path: Path) -> None:
    found = load(version_1(tmp_path / "a.pt", FACTORY, KWARGS, network().state_dict()))
    assert torch.equal(found.module(X), network()(X))
    assert (found.factory, found.kwargs, found.recipe, found.input_shape) == (FACTORY, KWARGS, None, SHAPE)


def test_shrunken_bundles_of_version_1_are_read_also_those_shrunk_twice(tmp_path: Path) -> None:
    first = shrunken(network())
    one = recipe_1(first, FACTORY, KWARGS)
    found = load(version_1(tmp_path / "one.pt", OLD, one, first.module.state_dict()))
    assert torch.equal(found.module(X), first.module(X))
    assert (found.factory, found.kwargs) == (FACTORY, KWARGS)
    second = shrunken(found.module)
    two = recipe_1(second, OLD, one)
    path = version_1(tmp_path / "two.pt", OLD, two, second.module.state_dict())
    assert torch.equal(load(path).module(X), second.module(X))
    assert torch.equal(load(path, factory=OLD, kwargs=two).module(X), second.module(X)), "as an old plan names it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factory": None}, "lacks its original"),
        ({"kwargs": 3}, "lacks its original"),
        ({"kept": {}}, "recipe is wrong"),
        ({"more": 1}, "recipe is wrong"),
        ({"factory": "os:system"}, "not called unasked"),
    ],
)
def test_a_damaged_recipe_of_version_1_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    result = shrunken(network())
    damaged = {**recipe_1(result, FACTORY, KWARGS), **change}
    with pytest.raises(ModelError, match=message):
        load(version_1(tmp_path / "a.pt", OLD, damaged, result.module.state_dict()))


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3"),
        ({"version": 0}, "version 0"),
        ({"version": True}, "version True"),
        ({"version": "x"}, "version x"),
        ({"version": ...}, "version None"),
        ({"kind": "shrunk"}, "of the kind 'shrunk', which this fxdistill does not know"),
        ({"kind": ...}, "of the kind 'None'"),
        ({"kind": "fxdistill.compiler.shrink_model:replay"}, "does not know"),
        ({"kind": ["factory"]}, "does not know"),
        ({"factory": None}, "lacks a part, or has a wrong one: factory"),
        ({"kwargs": [1]}, "lacks a part, or has a wrong one: kwargs"),
        ({"kwargs": {"hidden": torch.zeros(1)}}, "wrong one: kwargs"),
        ({"kwargs": {"hidden": float("nan")}}, "wrong one: kwargs"),
        ({"metadata": ...}, "wrong one: metadata"),
        ({"state_dict": {}}, "wrong one: state_dict"),
        ({"input_shape": [1, -8]}, "wrong one: input_shape"),
        ({"input_shape": [1.5]}, "wrong one: input_shape"),
        ({"factory": "os:system"}, "--allow-factory os"),
        ({"factory": "os"}, "is not a factory"),
        ({"factory": f"{FACTORY}?hidden=3"}, "is not a factory"),
        ({"factory": OLD}, "not called unasked"),
        ({"factory": "fxdistill.compiler.shrink_model:rebuild"}, "not called unasked"),
        ({"kwargs": {"width": 3}}, "unexpected keyword argument 'width'"),
        ({"kind": "shrunken"}, "has no recipe"),
        ({"kind": "shrunken", "recipe": [1]}, "has no recipe"),
    ],
)
def test_bundles_that_were_tampered_with(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save(network(), tmp_path / "a.pt", factory=FACTORY, kwargs=KWARGS)
    with pytest.raises(ModelError, match=message) as caught:
        load(edited(tmp_path / "a.pt", **change))
    assert caught.value.hint
    assert caught.value.where


def test_a_kind_that_is_misspelt_is_suggested(tmp_path: Path) -> None:
    save(network(), tmp_path / "a.pt", factory=FACTORY, kwargs=KWARGS)
    with pytest.raises(ModelError) as caught:
        load(edited(tmp_path / "a.pt", kind="factories"))
    assert caught.value.hint == "did you mean 'factory'? known are factory, shrunken"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_shrunken(shrunken(network()), tmp_path / "small.pt", factory=FACTORY, kwargs=KWARGS)
    return tmp_path / "small.pt"


def test_what_holds_itself_is_refused(tmp_path: Path, small: Path) -> None:
    endless: dict[str, Any] = {}
    endless["inner"] = endless
    save(network(), tmp_path / "a.pt", factory=FACTORY, kwargs=KWARGS)
    for change in ({"kwargs": endless, "metadata": {}}, {"metadata": endless, "kwargs": {}}):
        with pytest.raises(ModelError, match="has a wrong one"):
            load(edited(tmp_path / "a.pt", **change))
    recipe = torch.load(small, weights_only=True)["recipe"]
    recipe["before"] = recipe
    with pytest.raises(ModelError, match="recipe is wrong"):
        load(edited(small, recipe=recipe))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"input_shape": []}, "recipe.input_shape"),
        ({"input_shape": [1, 0, 8, 8]}, "recipe.input_shape.1"),
        ({"input_shape": "1x1x8x8"}, "recipe.input_shape"),
        ({"input_shape": [1, 1.0, 8, 8]}, "recipe.input_shape.1"),
        ({"input_shape": [1, True, 8, 8]}, "recipe.input_shape.1"),
        ({"rung": "os:system"}, "recipe.rung"),
        ({"rung": ...}, "recipe.rung"),
        ({"barriers": None}, "recipe.barriers"),
        ({"barriers": [3]}, "recipe.barriers.0"),
        ({"kept": {}}, "recipe.kept"),
        ({"kept": {"block1.conv.weight": []}}, "recipe.kept.block1.conv.weight"),
        ({"kept": {"block1.conv.weight": [-1]}}, "recipe.kept.block1.conv.weight.0"),
        ({"kept": {"block1.conv.weight": ["0"]}}, "recipe.kept.block1.conv.weight.0"),
        ({"kept": {"block1.conv.weight": [1, 0]}}, "recipe.kept"),
        ({"kept": {"block1.conv.weight": [1, 1]}}, "recipe.kept"),
        ({"kept": [["block1.conv.weight", [0]]]}, "recipe.kept"),
        ({"before": 3}, "recipe.before"),
        ({"before": {}}, "recipe.before.input_shape"),
        ({"factory": "os:system"}, "recipe.factory"),
    ],
)
def test_recipes_are_validated(small: Path, change: dict[str, Any], where: str) -> None:
    recipe = {**torch.load(small, weights_only=True)["recipe"], **change}
    with pytest.raises(ModelError, match="recipe is wrong") as caught:
        load(edited(small, recipe={key: value for key, value in recipe.items() if value is not ...}))
    assert caught.value.where == f"{small}, {where}"
    assert caught.value.hint == "shrink the model again"


@pytest.mark.parametrize(
    "change",
    [
        {"kept": {"block9.conv.weight": [0]}},
        {"kept": {"block1.conv.weight": [0, 8]}},
        {"kept": {"classifier.weight": [0]}},
        {"input_shape": [1, 3, 8, 8]},
        {"input_shape": [8, 8]},
        {"barriers": ["block1.conv.weight"]},
    ],
)
def test_recipes_of_another_model_are_refused(small: Path, change: dict[str, Any]) -> None:
    recipe = {**torch.load(small, weights_only=True)["recipe"], **change}
    with pytest.raises(ModelError, match=f"the bundle's recipe is not one for '{FACTORY}'") as caught:
        load(edited(small, recipe=recipe))
    assert str(small) in caught.value.where


def test_weights_of_another_recipe_do_not_fit(small: Path) -> None:
    recipe = torch.load(small, weights_only=True)["recipe"]
    recipe["kept"]["block1.conv.weight"] = [0, 1, 2]
    with pytest.raises(ModelError, match="does not fit"):
        load(edited(small, recipe=recipe))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "convnet"}, r"a plain factory|not a factory"),
        ({"factory": FACTORY + "?hidden=3"}, "not a plain factory"),
        ({"factory": FACTORY, "kwargs": {"x": torch.zeros(1)}}, "not JSON"),
        ({"factory": FACTORY, "metadata": {"x": float("nan")}}, "not JSON"),
    ],
)
def test_saving_refuses_what_could_not_be_loaded(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        save(network(), tmp_path / "model.pt", **options)
    assert not list(tmp_path.iterdir())

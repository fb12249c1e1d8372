"""Names: ours from files, others' from entry points; what is wrong with a name is said; listing imports nothing."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

import fxdistill
from fxdistill import models, registry
from fxdistill.criteria import CRITERIA
from fxdistill.data.augmentations import AUGMENTATIONS
from fxdistill.data.sources import SOURCES
from fxdistill.errors import InputError, PlanError
from fxdistill.ir.contract import PassManager
from fxdistill.losses import LOSSES, Loss
from fxdistill.methods import METHODS, Recipe
from fxdistill.operators import OPERATORS
from fxdistill.passes.schedule import Schedule
from fxdistill.registry import Origin, suggestion
from fxdistill.tasks import TASKS
from tests.plugins import Add

ALL = (LOSSES, METHODS, CRITERIA, TASKS, SOURCES, AUGMENTATIONS, OPERATORS)
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes distributions as pip does: a folder of metadata on the path, with entry points, and maybe a module."""
    modules: list[str] = []

    def made(distribution: str, points: str, *, module: str = "", source: str = "") -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(points)
        if module:
            (tmp_path / f"{module}.py").write_text(source)
            modules.append(module)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_entry_points", registry._entry_points.__wrapped__)  # what is read is not kept
    yield made
    for name in modules:
        sys.modules.pop(name, None)


LOSS = "from fxdistill.losses import Loss\nLOSS = Loss(reads=('student.logits',), function=lambda s: s.mean())\n"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.kind)
def test_every_name_gives_a_thing_of_its_kind(kind: registry.Registry[object]) -> None:
    names = [name for name in kind.names() if kind.origin(name) is None]
    assert names == sorted(names)
    assert len(names) == len(set(names)) > 0
    assert all(isinstance(kind.get(name), kind.entry) for name in names)
    assert all(name == name.lower() and "_" not in name for name in names)


def test_names_are_those_of_the_files() -> None:
    assert set(LOSSES.names()) >= {"attention", "cross-entropy", "kd", "l1", "mse", "pkt"}
    assert set(METHODS.names()) >= {"attention", "indistill", "kd", "pkt"}
    assert "tp.lamp" in CRITERIA.names()
    assert not any(part.startswith("_") for kind in ALL for name in kind.names() for part in name.split("."))


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("cross_entropy", "cross-entropy"), ("crossentropy", "cross-entropy"), ("KD", ""), ("ptk", "pkt"), ("zzz", ""),
     ("attenton", "attention"), ("_private", ""), ("losses.kd", "")],
)  # fmt: skip
def test_an_unknown_name_gets_the_nearest_and_all(wrong: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"there is no loss named '{wrong}'") as caught:
        LOSSES.get(wrong)
    assert caught.value.hint.startswith(f"did you mean '{meant}'? known are" if meant else "")
    assert ", ".join(LOSSES.names()) in caught.value.hint
    assert caught.value.where == f"loss '{wrong}'"
    assert caught.value.exit_code == 2


def test_the_place_and_the_kind_of_error_are_the_callers() -> None:
    with pytest.raises(PlanError, match="there is no criterion named 'l3'") as caught:
        CRITERIA.get("l3", where="--criterion", error=PlanError)
    assert caught.value.where == "--criterion"
    assert LOSSES.origin("zzz") is None
    assert LOSSES.origin("kd") is None
    assert suggestion("a", (), "known are") == "there are none"


def test_a_distribution_adds_a_name(install: Install) -> None:
    points = "[fxdistill.losses]\nfocal = focal_loss:LOSS\n[fxdistill.methods]\nalpha = focal_loss:METHOD\n"
    install("fxdistill-focal", points, module="focal_loss", source=LOSS)
    assert LOSSES.names()[-1] == "focal"
    assert LOSSES.names()[:-1] == tuple(sorted(LOSSES.names()[:-1]))
    assert "focal" not in METHODS.names()
    assert METHODS.names()[-1] == "alpha"  # behind ours
    loss = LOSSES.get("focal")
    assert isinstance(loss, Loss)
    assert loss.reads == ("student.logits",)
    assert LOSSES.origin("focal") == Origin("fxdistill-focal", "1.2.3")
    with pytest.raises(InputError) as caught:
        LOSSES.get("focl")
    assert "did you mean 'focal'" in caught.value.hint


def test_a_distribution_cannot_replace_ours(install: Install) -> None:
    install("fxdistill-thief", "[fxdistill.losses]\nkd = thief:LOSS\n", module="thief", source=LOSS)
    assert LOSSES.names().count("kd") == 1
    assert LOSSES.get("kd").reads == ("student.logits", "teacher.logits")
    assert LOSSES.origin("kd") is None
    assert "thief" not in sys.modules


def test_two_distributions_with_one_name_are_told_apart(install: Install) -> None:
    for name in ("fxdistill-one", "fxdistill-two"):
        install(name, "[fxdistill.losses]\nfocal = focal_loss:LOSS\n", module="focal_loss", source=LOSS)
    with pytest.raises(InputError, match="more than one distribution gives the loss 'focal'") as caught:
        LOSSES.get("focal")
    assert caught.value.where == "fxdistill-one and fxdistill-two"
    assert "uninstall" in caught.value.hint
    assert LOSSES.names().count("focal") == 1


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_loss'"),
        ("raise RuntimeError('no licence')\n", "RuntimeError: no licence"),
        ("import not_installed_here\n", "ModuleNotFoundError: No module named 'not_installed_here'"),
        ("OTHER = 1\n", "AttributeError: module 'broken_loss' has no attribute 'LOSS'"),
        ("def\n", "SyntaxError: "),
    ],
)
def test_one_that_cannot_be_imported_is_named(install: Install, source: str | None, told: str) -> None:
    module = "" if source is None else "broken_loss"
    install("fxdistill-broken", "[fxdistill.losses]\nfocal = broken_loss:LOSS\n", module=module, source=source or "")
    assert "focal" in LOSSES.names()  # listing imports nothing
    with pytest.raises(InputError, match="the loss 'focal' cannot be imported") as caught:
        LOSSES.get("focal")
    assert told in caught.value.what
    assert caught.value.where == "entry point broken_loss:LOSS"
    assert caught.value.__cause__ is not None
    assert LOSSES.get("kd").reads  # the others work


def test_what_fails_in_one_of_another_distribution_is_its_own(install: Install) -> None:
    source = "from fxdistill.methods import Method\nMETHOD = Method(summary='x', main=lambda recipe: 1 / 0)\n"
    install("fxdistill-halved", "[fxdistill.methods]\nhalved = halved:METHOD\n", module="halved", source=source)
    with pytest.raises(InputError, match="the method 'halved' failed: ZeroDivisionError: division by zero") as caught:
        PassManager().run(Schedule("halved"), Recipe(pairs=[]))
    assert caught.value.where == "entry point halved:METHOD"
    with pytest.raises(PlanError) as without:  # it is none to choose instead
        PassManager().run(Schedule("supervised"), Recipe(pairs=[]))
    assert "halved" not in without.value.hint
    with pytest.raises(ZeroDivisionError), METHODS.called("kd"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ("torch.ones(3)", r"failed: the criterion 'flat' gave scores of shape \(3,\)"),
        ("channels.nothing", "failed: AttributeError: 'Channels' object has no attribute 'nothing'"),
    ],
)
def test_a_criterion_of_another_distribution_that_is_wrong_is_no_fault_of_ours(
    install: Install, score: str, told: str
) -> None:
    source = "import torch\nfrom fxdistill.criteria import Criterion\n"
    source += f"CRITERION = Criterion(score=lambda channels: {score})\n"
    install(
        "fxdistill-flat",
        "[fxdistill.criteria]\nflat = flat_criterion:CRITERION\n",
        module="flat_criterion",
        source=source,
    )
    with pytest.raises(InputError, match=told) as caught:
        fxdistill.shrink(models.resnet(widths=[8, 16], blocks=1).eval(), keep=0.5, input_shape=(1, 1, 8, 8), by="flat")
    assert caught.value.where == "entry point flat_criterion:CRITERION"


def test_what_is_no_loss_is_named(install: Install) -> None:
    """An entry point that names the function, and not the description of it; or a thing of another kind."""
    source = LOSS + "def focal(s):\n    return s.mean()\n"
    points = "[fxdistill.losses]\nfocal = wrong_loss:focal\n[fxdistill.methods]\nfocal = wrong_loss:LOSS\n"
    install("fxdistill-focal", points, module="wrong_loss", source=source)
    with pytest.raises(InputError, match="the loss 'focal' is a function, not a Loss") as caught:
        LOSSES.get("focal")
    assert caught.value.where == "entry point wrong_loss:focal"
    with pytest.raises(InputError, match="the method 'focal' is a Loss, not a Method"):
        METHODS.get("focal")


def test_a_file_of_ours_without_its_attribute(add: Add) -> None:
    add(LOSSES, "half-done", "def half_done(s):\n    return s\n")
    assert "half-done" in LOSSES.names()
    with pytest.raises(AttributeError, match="LOSS"):
        LOSSES.get("half-done")


def test_listing_imports_nothing() -> None:
    """Help is quick: names of all kinds without torch, sklearn and the like, and without any file of theirs."""
    code = (
        "import sys;"
        "from fxdistill.losses import LOSSES; from fxdistill.methods import METHODS;"
        "from fxdistill.criteria import CRITERIA; from fxdistill.tasks import TASKS;"
        "from fxdistill.data.sources import SOURCES; from fxdistill.data.augmentations import AUGMENTATIONS;"
        "from fxdistill.operators import OPERATORS;"
        "kinds = (LOSSES, METHODS, CRITERIA, TASKS, SOURCES, AUGMENTATIONS, OPERATORS);"
        "names = [name for kind in kinds for name in kind.names()];"
        "origins = [kind.origin(name) for kind in kinds for name in kind.names()];"
        "heavy = [m for m in ('torch', 'torchvision', 'numpy', 'sklearn', 'torch_pruning', 'torchmetrics') "
        "if m in sys.modules];"
        "files = [m for m in sys.modules if m.startswith(tuple(k.package + '.' for k in kinds))];"
        "print(len(names) > 20, heavy, [f for f in files if f not in [k.package for k in kinds]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True [] []"


def test_entry_points_are_grouped_by_kind() -> None:
    found = registry._entry_points.__wrapped__("console_scripts")
    assert "pytest" in found
    assert all(isinstance(point, metadata.EntryPoint) for points in found.values() for point in points)

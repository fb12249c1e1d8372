"""Whatever is wrong with the input: exit code 2, one message that says what, where and what to do, nothing written."""

import argparse
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.files import file_sha256
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.statedict import save_state_dict
from tests import runs

RESNET = "fxdistill.models:resnet?widths=[8,16]&blocks=1"
CONVNET = "fxdistill.models:convnet?widths=[4,8]"
ALLOW = ("--allow-factory", runs.ALLOW[0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a trained teacher, a student and a plan."""
    runs.plan_file()
    for name in ("teacher.pt", "student.pt", "plan.json"):
        shutil.copy(runs.workshop() / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))  # the quicker of the two; the other has tests
    return tmp_path


def refused(folder: Path, *args: str) -> str:
    """Call fxdistill, check how it refuses, and return what it says."""
    before = runs.snapshot(folder)
    done = CliRunner().invoke(app, list(args))
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert runs.snapshot(folder) == before
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    assert done.stderr.count("\n  where: ") == 1
    assert done.stderr.count("\n  to do: ") == 1
    return done.stderr


def test_missing_files(folder: Path) -> None:
    assert "no such file" in refused(folder, "plan", "nothing.pt", "student.pt")
    assert "cannot be read" in refused(folder, "run", "nothing.json")
    assert "cannot be read" in refused(folder, "show", "nothing.json")
    assert "no such file" in refused(folder, "eval", "nothing.pt", "--data", "digits")
    assert "no such file" in refused(folder, "export", "nothing.pt")


def test_files_that_are_no_models(folder: Path) -> None:
    whole = (folder / "teacher.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "page.pt").write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    (folder / "empty.pt").write_bytes(b"")
    with (folder / "list.pt").open("wb") as file:
        pickle.dump([1, 2, 3], file)
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    for name in ("cut.pt", "page.pt", "empty.pt", "list.pt", "module.pt"):
        assert name in refused(folder, "plan", name, "student.pt", *ALLOW)
    assert "HTML" in refused(folder, "plan", "page.pt", "student.pt", *ALLOW)
    assert "--trust-code" in refused(folder, "plan", "module.pt", "student.pt", *ALLOW)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive(folder: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "script.pt")
    assert "TorchScript" in refused(folder, "plan", "script.pt", "student.pt", *ALLOW)


def test_a_state_dict_that_does_not_fit(folder: Path) -> None:
    save_state_dict(build("fxdistill.models:convnet", {"widths": [4, 8]}), folder / "weights.pt")
    said = refused(folder, "plan", "teacher.pt", "weights.pt", "--student-factory", CONVNET.replace("8", "16"))
    assert "weights.pt" in said


def test_the_option_that_names_the_factory_is_the_right_one(folder: Path) -> None:
    save_state_dict(build("fxdistill.models:convnet", {"widths": [4, 8]}), folder / "weights.pt")
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    for name in ("weights.pt", "module.pt"):
        assert "name its factory: --student-factory " in refused(folder, "plan", "teacher.pt", name)
        assert "name its factory: --teacher-factory " in refused(folder, "plan", name, "student.pt")
        for command in (("export", name), ("eval", name), ("shrink", name, "--keep", "0.5")):
            assert "name its factory: --factory " in refused(folder, *command)
        assert "name its factory: fxdistill export … --factory " in refused(folder, "bench", name)  # it takes none


def test_the_entry_of_a_checkpoint(folder: Path) -> None:
    state = build("fxdistill.models:convnet", {"widths": [4, 8]}).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state, "args": argparse.Namespace(lr=0.1)}, folder / "all.pt")
    given = ("all.pt", "--factory", CONVNET, "--entry", "state_dict_emma")
    for command in (("export", *given), ("eval", *given), ("shrink", *given, "--keep", "0.5")):
        assert "did you mean 'state_dict_ema'?" in refused(folder, *command)
    student = ("all.pt", "--student-factory", CONVNET, "--student-entry", "ema")
    assert "no entry 'ema'" in refused(folder, "plan", "teacher.pt", *student)
    assert "has no entry 'model'" in refused(folder, "plan", "teacher.pt", CONVNET, "--teacher-entry", "model")
    assert "no file with an entry" in refused(folder, "plan", "teacher.pt", CONVNET, "--student-entry", "model")


def test_commands_that_cannot_be_parsed(folder: Path) -> None:
    said = refused(folder, "plan", "teacher.pt", "student.pt", "--no-such-option")
    assert said.splitlines()[0].startswith("error: no such option: --no-such-option")
    assert "missing argument 'student'" in refused(folder, "plan", "teacher.pt")
    assert "no such command 'plna'. Did you mean 'plan'?" in refused(folder, "plna")
    assert "no such option: --no-such-option" in refused(folder, "--no-such-option")


CASCADE = ("--method", "cascade", "--input", "1x1x8x8")


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (("--keep", "0"), "0.0 is no share of channels to keep"),
        (("--keep", "1"), "1.0 is no share of channels to keep"),
        ((), "nothing says what the student keeps"),
        (("--keep", "0.5", "--budget", "macs=20K"), "--keep and --budget both say what the student keeps"),
        (("--levels", "0.5,0.4,1"), "levels increase from the student"),
        (("--levels", "0.5,0.7"), "the last of several levels keeps all channels"),
        (("--levels", "0.5,x"), "'x' is no number"),
        (("--levels", "0.5,1", "--assistants", "2"), "leave out --assistants and --spacing"),
        (("--keep", "0.5", "--assistants", "-1"), "there cannot be -1 assistants"),
        (("--keep", "0.5", "--assistants", "1000000"), "there cannot be 1000000 assistants"),
        (("--keep", "0.5", "--threshold", "layer", "--centred"), "there is nothing to centre\n  where: --centred\n"),
        (("--budget", "macs=1", "--threshold", "layer"), "1 MAC cannot be met: with one channel a layer there are "),
        (("--keep", "0.5", "--hints", "inf"), "inf is not a weight for hints\n  where: --hints\n"),
        (("--keep", "0.5", "--hints-alone", "inf"), "inf is not a weight for hints\n  where: --hints-alone\n"),
        (("--levels", "0.01,1"), "of which none may lose all\n  where: --levels\n"),
        (("--keep", "0.01"), "less than one in each of 3 layers"),
        (("--budget", "macs=1"), "1 MAC cannot be met: with one channel a layer there are "),
        (("--budget", "params=1G"), "and 1,000,000,000 are allowed"),
        (("--budget", "52M"), "'52M' is no budget"),
        (("--budget", "watts=5"), "'watts=5' is no budget"),
        (("--keep", "0.5", "--criterion", "taylor"), "reads data, and scores start from weights alone"),
        (("--keep", "0.5", "--pair", "a=b"), "a cascade has no use for --pair"),
        (("--keep", "0.5", "--align", "shrink"), "a cascade has no use for --align"),
        (("--keep", "0.5", "--plateau", "0.1"), "the method has no warm-up"),
        (("--keep", "0.5", "--probe", "order"), "a cascade has no use for --probe"),
        (("--keep", "0.5", "--size", "student=16"), "'student' is not the name of a model here"),
        (("--levels", "0.5,1", "--nested"), "no masked level beside the student's\n  where: --nested\n"),
        (("--keep", "0.5", "--assistants", "1", "--spacing", "even"), "beside the student's\n  where: --spacing\n"),
        (
            ("--budget", "macs=20K", "--assistants", "0", "--export-levels", "all"),
            "beside the student's\n  where: --export-levels\n",
        ),
    ],
)
def test_cascades_that_cannot_be(folder: Path, words: tuple[str, ...], needle: str) -> None:
    given = "fxdistill.models:resnet?widths=[4,8]&blocks=1"
    assert needle in refused(folder, "plan", given, *CASCADE, *words)


def test_a_cascade_has_no_student_and_only_it_has_levels(folder: Path) -> None:
    said = refused(folder, "plan", "teacher.pt", "student.pt", "--method", "cascade", "--keep", "0.5")
    assert "makes its student out of the teacher" in said
    for option in (
        ("--levels", "0.2,1"),
        ("--assistants", "2"),
        ("--budget", "macs=1M"),
        ("--nested",),
        ("--threshold", "layer"),
        ("--threshold", "global"),
        ("--centred",),
        ("--mask-first",),
        ("--hints", "1"),
        ("--hints-alone", "1"),
    ):
        assert f"{option[0]} is about a cascade" in refused(folder, "plan", "teacher.pt", "student.pt", *option)
    said = refused(folder, "plan", "fxdistill.models:convnet?widths=[4]", *CASCADE, "--keep", "0.5")
    assert "no channels that can be masked" in said
    said = refused(folder, "plan", "teacher.pt", "student.pt", "--method", "indistill+cascade", "--keep", "0.5")
    assert "makes its student out of the teacher" in said
    said = refused(folder, "plan", "teacher.pt", "--method", "kd+cascade", "--keep", "0.5")
    assert "'kd' has no warm-up" in said


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "teacher.pt", "student.pt", *ALLOW, "--val", "0.1"),
        ("plan", "teacher.pt", "student.pt", *ALLOW, "--augment", "flip"),
        ("plan", "teacher.pt", "student.pt", *ALLOW, "--class-map", "plan.json"),
        ("shrink", "teacher.pt", "--keep", "0.5", "--class-map", "plan.json"),
        ("export", "teacher.pt", "--class-map", "plan.json"),
    ],
)
def test_what_is_said_of_data_needs_data(folder: Path, words: tuple[str, ...]) -> None:
    said = refused(folder, *words)
    assert f"this is about the data, and there is none\n  where: {words[-2]}\n" in said


@pytest.mark.parametrize(
    "words",
    [
        ("shrink", "smaller.pt", "--keep", "0.5"),  # smaller.pt is what shrink writes unless another name is given
        ("plan", "teacher.pt", "smaller.pt", "-o", "./smaller.pt"),
        ("plan", "smaller.pt", "student.pt", "-o", "smaller.pt"),
        ("plan", "teacher.pt", "student.pt", "--via", "smaller.pt", "-o", "smaller.pt"),
        ("show", "smaller.pt", "--html", "smaller.pt"),
        ("export", "smaller.pt", "-o", "smaller.pt"),
    ],
)
def test_what_is_read_is_not_written_over(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "smaller.pt").write_bytes(b"a model")
    assert "the output is a file that is read here" in refused(folder, *words)
    assert (folder / "smaller.pt").read_bytes() == b"a model"


@pytest.mark.parametrize("words", [("report", "old", "-o"), ("show", "old", "--html")])
def test_what_a_run_consists_of_is_not_written_over(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "old").mkdir()
    plan = folder / "old" / "plan.json"
    plan.write_text("{}")
    assert "the output is a file that is read here" in refused(folder, *words, "old/plan.json")
    assert plan.read_text() == "{}"


def test_factories(folder: Path) -> None:
    assert "torchvision.models:resnet18" in refused(folder, "plan", "teacher.pt", "resnet18")
    assert "--allow-factory" in refused(folder, "plan", "teacher.pt", "os:getcwd")
    assert "resnet" in refused(folder, "plan", "teacher.pt", "torchvision.models:resnett18")
    assert "widthss" in refused(folder, "plan", "teacher.pt", "fxdistill.models:convnet?widthss=[4]")
    assert "--allow-factory" in refused(folder, "run", "plan.json", "-o", "r")


def test_models_that_do_not_go_together(folder: Path) -> None:
    shape = ("--input", "1x1x8x8")
    said = refused(folder, "plan", "teacher.pt", f"{CONVNET}&classes=7", *shape, "--method", "kd")
    assert "(10,)" in said
    assert "indistill+supervised" in said
    assert "channels" in refused(folder, "plan", "teacher.pt", f"{CONVNET}&in_channels=3", *shape)
    assert "10 classes" in refused(folder, "plan", RESNET + "&classes=7", f"{CONVNET}&classes=7", "--data", "digits")
    assert "1x8x8" in refused(folder, "plan", "teacher.pt", CONVNET, "--data", "digits", "--input", "1x3x8x8")


@pytest.mark.parametrize(
    ("args", "needle"),
    [
        (("--data", "digitss"), "digitss"),
        (("--data", "cifar10"), "needs a place"),
        (("--data", "npz:nowhere.npz"), "nowhere.npz"),
        (("--data", "my.module:factory"), "--allow-factory"),
        (("--data", "digits", "--input", "1x3x8x8"), "1x8x8"),
        (("--input", "3x32"), "3x32"),
        (("--input", "1x1x8x8", "--pair", "layers.layer1"), "--pair"),
        (("--input", "1x1x8x8", "--pair", "layers.layer1=nothing.there"), "nothing.there"),
        (("--input", "1x1x8x8", "--forbid", "a=b=c", "--pair", "=x"), "--pair"),
        (("--input", "1x1x8x8", "--criterion", "taylor"), "taylor"),
        (("-o", "missing/plan.json"), "missing/plan.json"),
        (("-o", "."), "is a folder"),
        (("--method", "magic"), "magic"),
        (("--method", "kd+attention"), "'kd' has no warm-up"),
        (("--task", "tracking"), "--task"),
        (("--criterion", "l7"), "did you mean 'l2'"),
        (("--seed", str(2**63)), "--seed"),
        (("--seed", "-1"), "--seed"),
        (("--print-after", "train"), "its passes are trace, couple, match"),
        (("--keep", "0.5"), "--align shrink"),
        (("--student-output", "logits", "--data", "digits"), "leave out --student-output"),
        (("--epochs", "0"), "--epochs"),
        (("--epochs", "many"), "--epochs"),
        (("--no-such-option",), "--no-such-option"),
        (("--budget", "macs=1M", "--budget", "params=1k"), "given: macs=1M and params=1k\n  where: --budget"),
        (("-o", "a.json", "--output=b.json"), "a.json and b.json\n  where: --output"),
        (("--control", "--no-control"), "--control and --no-control\n  where: --control"),
        (("--size", "teacher=8", "--size", "teacher=9"), "for 'teacher': 8 and 9\n  where: --size"),
        (("--method", "kd", "--weight", "kd=1", "--weight", "kd=2"), "for 'kd': 1 and 2\n  where: --weight"),
        (("--method", "kd", "--set", "main.epochs=1", "--set", "main.epochs=2"), "for 'main.epochs': 1 and 2"),
        (("--method", "kd", "--arg", "kd.temperature=1", "--arg", "kd.temperature=2"), "1 and 2\n  where: --arg"),
    ],
)  # fmt: skip
def test_options_of_plan(folder: Path, args: tuple[str, ...], needle: str) -> None:
    assert needle in refused(folder, "plan", "teacher.pt", "student.pt", *ALLOW, *args)


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "plan.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _stages(plan: dict[str, Any]) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = plan["arms"][0]["stages"]
    return stages


def _seen(plan: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plan["members"]["student"]["preprocessing"]
    return found


def _kept(plan: dict[str, Any]) -> list[int]:
    channels: list[int] = plan["kept"][0]["channels"]
    return channels


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (lambda p: p.update(version=4), "version 4"),
        (lambda p: p.update(version=1), "anew with `fxdistill plan`"),
        (lambda p: p.update(version="1"), "version"),
        (lambda p: p.update(surprise=1), "surprise"),
        (lambda p: p.pop("pairs"), "pairs"),
        (lambda p: _stages(p)[0].update(epochs=-1), "arms.0.stages.0.epochs"),
        (lambda p: _stages(p)[0].update(epochs="3"), "arms.0.stages.0.epochs"),
        (lambda p: _stages(p)[0].update(epochs=1.5), "arms.0.stages.0.epochs"),
        (lambda p: p["arms"][0].update(stages=[]), "arms.0.stages"),
        (lambda p: _stages(p)[0]["losses"][0].update(loss="hinge"), "hinge"),
        (lambda p: _stages(p)[0]["losses"][0].update(weight=float("nan")), "NaN"),
        (lambda p: _stages(p)[0]["optimizer"].update(name="lion"), "optimizer"),
        (lambda p: _stages(p)[0]["optimizer"].update(lr=-1.0), "lr"),
        (lambda p: _stages(p)[0]["losses"][0].update(pair="nowhere"), "nowhere"),
        (lambda p: _stages(p)[1].update(name=_stages(p)[0]["name"]), "warm-up-1"),
        (lambda p: p["control"].update(losses=_stages(p)[0]["losses"]), "control"),
        (lambda p: p["kept"][0].update(channels=[*_kept(p)[:-1], 99]), "99"),
        (lambda p: _kept(p).insert(0, -1), "kept"),
        (lambda p: _kept(p).pop(), "keeps"),
        (lambda p: _kept(p).reverse(), "sorted"),
        (lambda p: p["pairs"][0]["student"].update(path="no.such.node"), "no.such.node"),
        (lambda p: (p["pairs"][0]["teacher"].update(path="gone"), p["kept"][0].update(path="gone")), "gone"),
        (lambda p: p["data"].update(spec="digitss"), "digitss"),
        (lambda p: p["data"].update(spec=None), "no data"),
        (lambda p: _seen(p).update(mean=[0.1, 0.2], std=[1.0, 1.0]), "channels"),
        (lambda p: p["data"].update(augmentation=["mixing"]), "mixing"),
        (lambda p: _seen(p).update(mean=[0.1, 0.2, 0.3]), "mean has 3 entries, std 1"),
        (lambda p: _seen(p).update(size=[0, 8]), "size"),
        (lambda p: _seen(p).update(size=[8, 9]), "student"),
        (lambda p: p["members"]["student"].update(preprocessing=None), "members.student.preprocessing"),
        (lambda p: p.update(version=2), "anew with `fxdistill plan`"),
        (lambda p: p["data"].update(classes=["a", "b"]), "classes"),
        (lambda p: p["data"].update(batch_size=0), "batch_size"),
        (lambda p: p["data"].update(batch_size=1), "batch"),
        (lambda p: p["input"].update(shape=[1, 3, 8, 8]), "the images have 3"),
        (lambda p: p["members"]["teacher"].update(path="elsewhere.pt"), "missing"),
        (lambda p: p["members"]["teacher"].update(path=None, sha256=None), "random weights"),
        (lambda p: p["members"]["student"].update(sha256="0" * 64), "0" * 64),
        (lambda p: p.update(precision="8-bit"), "precision"),
        (lambda p: p.update(precision="16-mixed"), "CUDA"),
        (lambda p: p.update(seeds=[]), "seeds"),
        (lambda p: p["export"].update(opset=3), "opset"),
        (lambda p: p.update(task="tracking"), "tracking"),
        (lambda p: p.update(seeds=[2**63]), "seeds.0"),
        (lambda p: _stages(p)[0]["optimizer"].update(momentum=0.9), "momentum"),
    ],
)  # fmt: skip
def test_plans_edited_into_nonsense(folder: Path, change: Callable[[dict[str, Any]], object], needle: str) -> None:
    _edit(folder, change)
    assert needle in refused(folder, "run", "plan.json", "-o", "r", "--device", "cpu", *ALLOW)


def test_plans_that_are_none(folder: Path) -> None:
    (folder / "plan.json").write_text('{"version": 1,')
    assert "line 1" in refused(folder, "run", "plan.json")
    (folder / "plan.json").write_text("[]")
    assert "object" in refused(folder, "run", "plan.json")
    (folder / "plan.json").write_bytes(b"\xff\xfe\x00")
    assert "text" in refused(folder, "show", "plan.json")
    assert "not a text file" in refused(folder, "run", "teacher.pt")


def test_a_model_file_that_changed_shows_both_hashes(folder: Path) -> None:
    planned = json.loads((folder / "plan.json").read_text())["members"]["teacher"]["sha256"]
    with (folder / "teacher.pt").open("ab") as file:
        file.write(b" ")
    said = refused(folder, "run", "plan.json", "-o", "r", *ALLOW)
    assert planned in said
    assert file_sha256(folder / "teacher.pt") in said


class _Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path(self.target), "unpickled")


def test_a_plan_cannot_have_a_pickle_opened(folder: Path) -> None:
    with (folder / "bomb.pt").open("wb") as file:
        pickle.dump(_Bomb(str(folder / "harm")), file)
    digest = file_sha256(folder / "bomb.pt")
    _edit(
        folder,
        lambda p: p["members"]["teacher"].update(path="bomb.pt", sha256=digest, factory=None, kwargs={}, trusted=True),
    )
    assert "--trust-code" in refused(folder, "run", "plan.json", "-o", "r", *ALLOW)
    assert not (folder / "harm").exists()


def test_run_directories(folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("important")
    run = ("run", "plan.json", *ALLOW, "-o")
    assert "not empty" in refused(folder, *run, "full")
    assert "not empty" in refused(folder, *run, "full", "--resume")
    assert "is a file" in refused(folder, *run, "teacher.pt")
    assert "cannot make" in refused(folder, *run, "teacher.pt/below")
    shutil.copytree(runs.finished(), folder / "done")
    assert "another run" not in refused(folder, *run, "done")
    _edit(folder, lambda p: p.update(seed=5, seeds=[5]))
    said = refused(folder, *run, "done", "--resume")
    assert "another run" in said
    assert "no run" in refused(folder, "show", "full")
    assert "holds no run" in refused(folder, "run", "full")
    assert "this is a file, and no run directory" in refused(folder, "report", "plan.json")
    assert "there is no such directory" in refused(folder, "report", "nowhere")
    assert "make that folder first" in refused(folder, "report", "done", "-o", "nowhere/report.html")
    assert "give the name of a file" in refused(folder, "report", "done", "-o", "full")
    assert "no run" in refused(folder, "export", "full")


@pytest.mark.parametrize("holding", ["nothing", "an empty folder", "a start that was killed"])
def test_nothing_to_resume(folder: Path, holding: str) -> None:
    if holding != "nothing":
        (folder / "r").mkdir()
    if holding == "a start that was killed":
        (folder / "r" / "origin.json").write_text('{"plan": "../plan.json"}')
    said = refused(folder, "run", "plan.json", "-o", "r", "--resume", *ALLOW)
    assert said.startswith("error: there is no run to resume\n  where: r\n")
    assert "-o" in said
    assert "without --resume" in said


def test_devices(folder: Path) -> None:
    if not torch.cuda.is_available():
        assert "--device" in refused(folder, "run", "plan.json", "--device", "cuda", *ALLOW)
    assert "tpu" in refused(folder, "run", "plan.json", "--device", "tpu", *ALLOW)


def test_eval_and_export(folder: Path) -> None:
    assert "--data" in refused(folder, "eval", "teacher.pt")
    assert "1x1x8x8" in refused(folder, "eval", "torchvision.models:resnet18?num_classes=10", "--data", "digits")
    assert "10" in refused(folder, "eval", f"{CONVNET}&classes=7", "--data", "digits")
    assert "opset" in refused(folder, "export", "teacher.pt", "--opset", "3")
    for name in ("x.pt", "teacher.pt", "plan.json", "x"):
        assert "is not the name of an ONNX file" in refused(folder, "export", "student.pt", "-o", name)
    assert "(1, 3, 8, 8)" in refused(folder, "export", "teacher.pt", "--input", "1x3x8x8")


def test_data_that_lies(folder: Path) -> None:
    images, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2
    np.savez(folder / "two.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    assert "2 classes" in refused(folder, "plan", "teacher.pt", "student.pt", *ALLOW, "--data", "npz:two.npz")
    (folder / "two.npz").write_bytes((folder / "two.npz").read_bytes()[:300])
    assert "two.npz" in refused(folder, "plan", "teacher.pt", "student.pt", *ALLOW, "--data", "npz:two.npz")

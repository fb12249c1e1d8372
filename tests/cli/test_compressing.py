"""``fxdistill compress``: an ordinary plan, written and run; gone on with; refused with nothing left behind."""

import functools
import itertools
import json
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxdistill
from fxdistill.cli.commands import app
from fxdistill.measure import onnx_file
from fxdistill.methods import RATE
from fxdistill.modelfiles.load import load
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.schema import ModelRef
from fxdistill.runtime.run import checkpoint, details
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.smaller import shrunken
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")

FEW = ("--macs", "0.5", "--by", "l1", "--data", "digits", "--epochs", "2", "--batch-size", "256", "--device", "cpu")


def but(options: tuple[str, ...], *others: str) -> tuple[str, ...]:
    """Options with their values, some of them with others, and further ones."""
    named = dict(zip(options[::2], options[1::2], strict=True)) | dict(zip(others[::2], others[1::2], strict=True))
    return tuple(itertools.chain.from_iterable(named.items()))


ONE = but(FEW, "--epochs", "1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    monkeypatch.setattr(details, "write", lambda *_, **__: None)  # a report's, which has tests


def compress(out: Path, *args: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["compress", str(runs.workshop() / "teacher.pt"), *args, "-o", str(out)])
    assert done.exit_code == code, (done.output, done.exception)
    return " ".join(done.output.split())


@functools.cache
def made() -> tuple[Path, str]:
    """What one request leaves beside the original, and what it says."""
    out = runs.workshop() / "compressed"
    return out, compress(out, *FEW)


def test_it_is_a_plan_that_runs_again_and_teaches_what_is_left_of_the_original(tmp_path: Path) -> None:
    out, said = made()
    assert "proof: equals the masked original" in said
    assert sorted(place.name for place in out.iterdir()) == ["plan.json", "run", "smaller.pt"]
    plan = load_plan(out / "plan.json")
    teacher, student = (plan.members[name] for name in ("teacher", "student"))
    assert isinstance(teacher, ModelRef)
    assert isinstance(student, ModelRef)
    assert (student.path, plan.control, plan.seeds) == ("smaller.pt", None, [0])
    assert (out / str(teacher.path)).samefile(runs.workshop() / "teacher.pt")
    assert plan.arms[0].stages[-1].optimizer.lr == RATE
    assert [(term.loss, term.teacher) for term in plan.arms[0].stages[-1].losses][1] == ("kd", "teacher")
    small, original = (load(path).module for path in (out / "smaller.pt", runs.workshop() / "teacher.pt"))
    kept = small.state_dict()["stem.0.weight"]
    rows = {tuple(row.flatten().tolist()) for row in original.state_dict()["stem.0.weight"]}
    assert 0 < len(kept) < len(rows)
    assert {tuple(row.flatten().tolist()) for row in kept} < rows
    result = json.loads((out / "run/result.json").read_text())
    again = runs.execute(out / "plan.json", tmp_path / "again", Settings(device="cpu"))
    assert again["summary"] == result["summary"]
    assert (tmp_path / "again/student.pt").read_bytes() == (out / "run/student.pt").read_bytes()


def test_called_again_it_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    out = runs.workshop() / "cut off"  # as far from the original
    with monkeypatch.context() as patch:
        count, save = itertools.count(1), checkpoint.save

        def counting(run: RunDir, at: checkpoint.Checkpoint) -> None:
            save(run, at)
            if next(count) == 2:
                raise KeyboardInterrupt

        patch.setattr(checkpoint, "save", counting)
        said = compress(out, *FEW, "--save-every", "0", code=130)
    words = ["fxdistill", "compress", str(runs.workshop() / "teacher.pt"), *FEW, "--save-every", "0", "-o", str(out)]
    assert sorted(shlex.split(said.partition("interrupted; continue with: ")[2])) == sorted(words)
    before = (out / "smaller.pt").stat().st_mtime_ns
    said = compress(out, *FEW)
    assert "proof" not in said  # what is there is taken
    assert (out / "smaller.pt").stat().st_mtime_ns == before
    whole, resumed = (runs.snapshot(folder) for folder in (made()[0], out))
    for name in ("smaller.pt", "plan.json", "run/student.pt"):
        assert whole[name] == resumed[name], name
    assert runs.metrics(made()[0] / "run") == runs.metrics(out / "run")
    compress(out, *FEW)  # a complete one says again what came out
    assert runs.snapshot(out) == resumed


def test_another_request_in_the_same_folder_is_refused() -> None:
    out = Path(shutil.copytree(made()[0], runs.workshop() / "another one"))
    held = runs.snapshot(out)
    for options, needle in (
        (("--macs", "0.4"), "made smaller in another way: limits"),
        (("--floor", "0.2", "--by", "l2"), "made smaller in another way: by, floor"),
        (("--epochs", "3"), "it differs in arms.0.stages.0.epochs: 2, now 3"),
        (("--method", "dkd"), "the plan that is there is not the one of this command"),
    ):
        said = compress(out, *but(FEW, *options), code=2)
        assert needle in said
        assert "choose another place with -o" in said
    assert runs.snapshot(out) == held
    content = json.loads((out / "plan.json").read_text())
    content["seeds"] = [7]
    (out / "plan.json").write_text(json.dumps(content))
    for more in ([], ["--allow-factory", "mine"]):
        again = " ".join([f"fxdistill run '{out / 'plan.json'}' -o '{out / 'run'}' --resume", *more])
        assert f"{again};" in compress(out, *FEW, *more, code=2)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ((), "nothing says how much to keep"),
        (("--macs", "0.5", "--keep", "0.5"), "both --macs and --keep say how much to keep"),
        (("--macs", "0.0001"), "cannot be met"),
        (("--macs", "half"), "'half' is no number"),
        (("--macs", "1"), "1 MAC cannot be met"),
        (("--latency", "3M"), "'3M' is no latency"),
        (("--macs", "0.5", "--set", "main.nothing=1"), "--set"),
        (("--macs", "0.5", "--method", "cascade"), "makes its student by itself"),
        (("--macs", "0.5", "--weight", "mse=1"), "--weight"),
        (("--macs", "0.5", "--data", "npz:none.npz"), "none.npz"),
        (("--macs", "0.5", "--recover", "2"), "with one step there is no training in between"),
        (("--keep", "0.5", "--steps", "2"), "steps go towards a budget"),
        (("--macs", "0.5", "--steps", "101"), "101 are no steps"),
        (("--macs", "0.5", "--steps", "2", "--set", "main.nothing=1"), "--set"),
        (("--macs", "0.5", "--device", "cpu", "--precision", "16-mixed"), "16-mixed precision needs a CUDA device"),
        (("--macs", "0.5", "--by", "l7"), "there is no criterion named 'l7'"),
    ],
)
def test_a_wrong_request_leaves_nothing(tmp_path: Path, options: tuple[str, ...], needle: str) -> None:
    data = () if "--data" in options else ("--data", "digits")
    assert needle in compress(tmp_path / "out", *data, *options, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [(), ("--steps", "2")])
def test_data_that_no_run_would_begin_with_leaves_nothing(tmp_path: Path, steps: tuple[str, ...]) -> None:
    images = torch.zeros(20, 1, 8, 8).numpy()
    for count, needle in ((1, "batches of two images or more"), (10, "hardly anything to teach on this data")):
        labels, few = torch.arange(count).numpy(), images[:count]  # of images that are all the same
        np.savez(tmp_path / "data.npz", train_images=few, train_labels=labels, test_images=few, test_labels=labels)
        out = tmp_path / "out"
        assert needle in compress(out, *but(ONE, "--data", f"npz:{tmp_path / 'data.npz'}"), *steps, code=2)
        assert not out.exists()


def test_it_needs_data_and_trained_weights_and_a_folder_of_its_own(tmp_path: Path) -> None:
    assert "missing option '--data'" in compress(tmp_path / "out", "--macs", "0.5", code=2)
    done = CliRunner().invoke(app, ["compress", "fxdistill.models:resnet", *FEW, "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "no trained weights in a file: there is nothing to teach" in done.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("mine")
    assert "it holds 'notes.txt'" in compress(tmp_path, *FEW, code=2)
    for place in ("notes.txt", "notes.txt/out"):
        assert "there is a file of this name" in compress(tmp_path / place, *FEW, code=2)
    assert runs.snapshot(tmp_path) == {"notes.txt": b"mine"}
    for name in (".smaller.pt.0123abcd", "step-2"):  # what is left where it was killed
        (tmp_path / "begun" / name).mkdir(parents=True)
        assert "cannot be met" in compress(tmp_path / "begun", *but(FEW, "--macs", "0.0001"), code=2)


def test_in_steps_with_training_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = but(ONE, "--macs", "0.4", "--steps", "2", "--seed", "5")
    with monkeypatch.context() as patch:
        patch.setattr(shrunken, "size_of", lambda *_: signal.raise_signal(signal.SIGINT))  # after the step's training
        cut = compress(tmp_path / "out", *asked, code=130)
    assert "step 1 parameters" in cut
    assert "interrupted; continue with: fxdistill compress " in cut
    said = compress(tmp_path / "out", *asked)
    assert "step 1" not in said
    assert said.count("proof: equals the masked original") == 1
    places = [str(place.relative_to(tmp_path / "out")) for place in sorted((tmp_path / "out").rglob("plan.json"))]
    assert places == ["plan.json", "run/plan.json", "step-1/plan.json", "step-1/run/plan.json"]
    held = runs.snapshot(tmp_path / "out")
    assert "step 1" not in compress(tmp_path / "out", *asked)
    assert runs.snapshot(tmp_path / "out") == held
    said = compress(tmp_path / "out", *but(asked, "--steps", "3"), code=2)
    assert "made smaller in another way: steps" in said


def test_an_embedding_is_taught_by_the_one_below_the_same_layer(tmp_path: Path) -> None:
    whole = load(runs.workshop() / "teacher.pt").module
    twice = nn.Sequential(whole, nn.Linear(10, 12))  # below the head another layer that could be one
    fxdistill.save(twice, tmp_path / "twice.pt", input_shape=(1, 1, 8, 8))
    asked = but(ONE, "--task", "retrieval", "--steps", "2")
    done = CliRunner().invoke(app, ["compress", str(tmp_path / "twice.pt"), *asked, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    heads = {
        str(place.parent.name): [one.head for one in load_plan(place).members.values() if isinstance(one, ModelRef)]
        for place in (tmp_path / "out").rglob("plan.json") if place.parent.name != "run"
    }  # fmt: skip
    assert heads == {"step-1": ["1", "1"], "out": ["1", ""]}  # what was trained in between has none any more


def test_what_its_plan_remarks_is_said_before_it_trains(tmp_path: Path) -> None:
    whole = load(runs.workshop() / "teacher.pt")
    sure = nn.Sequential(whole.module, nn.Softmax(1))
    fxdistill.save(sure, tmp_path / "sure.pt", input_shape=(1, *(whole.input_shape or ())[1:]))
    done = CliRunner().invoke(app, ["compress", str(tmp_path / "sure.pt"), *ONE, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert {one.code for one in load_plan(tmp_path / "out/plan.json").diagnostics} == {"probabilities"}
    assert done.output.index("warning probabilities") < done.output.index("accuracy")


def test_from_python(tmp_path: Path) -> None:
    result = fxdistill.compress(
        runs.workshop() / "teacher.pt", tmp_path / "out", data="digits", params=0.5, epochs=1, batch_size=256, lr=2e-3,
        control=True, settings=Settings(device="cpu"),
    )  # fmt: skip
    plan = load_plan(tmp_path / "out/plan.json")
    assert plan.arms[0].stages[-1].optimizer.lr == 2e-3
    assert {arm["name"] for arm in result["arms"]} == {"distilled", "control"}
    small, original = (load(path).module for path in (tmp_path / "out/smaller.pt", runs.workshop() / "teacher.pt"))
    share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in original.parameters())
    assert 0.48 < share <= 0.5
    assert torch.isfinite(small(torch.zeros(1, 1, 8, 8))).all()

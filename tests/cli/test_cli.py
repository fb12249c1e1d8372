import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from fxdistill.cli import commands, values
from fxdistill.cli.commands import app, main
from fxdistill.compiler import pipeline
from fxdistill.errors import InputError
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.plan.file import load
from fxdistill.runtime.planning import preflight
from fxdistill.runtime.run import checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Observer, Settings
from fxdistill.runtime.training.course import Position
from tests import children, runs

pytestmark = pytest.mark.usefixtures("few_digits")

ALLOW = ("--allow-factory", runs.ALLOW[0])
RESNET = "fxdistill.models:resnet?widths=[8,16]&blocks=1"
CONVNET = "fxdistill.models:convnet?widths=[4,8]"
COMMAND = [sys.executable, "-m", "fxdistill"]


def call(*args: str) -> str:
    done = CliRunner().invoke(app, list(args))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_help_of_every_command() -> None:
    others = ("export", "eval", "compare", "bench", "compress", "demo", "schema", "methods", "losses")
    for command in ("plan", "run", "show", *others):
        said = call(command, "--help")
        assert f"fxdistill {command}" in said.replace("root", "fxdistill")
        assert "[[" not in said  # typer itself says what may be left out


@pytest.mark.parametrize("width", ["80", "50"])
def test_the_commands_are_summed_up_in_whole_sentences(width: str) -> None:
    environment = {**os.environ, "COLUMNS": width}
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True, env=environment)
    said = done.stdout
    assert "..." not in said.partition("Commands:")[2]
    assert "and compare the file with the model." in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= int(width)


def test_without_a_command_there_is_help() -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert done.output.startswith("Usage: ")


HEAVY = (
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "numpy",
    "lightning_fabric",
    "torchmetrics",
    "timm",
    "sklearn",
    "jinja2",
)


def said_by(code: str, given: object = None) -> Any:
    """What a fresh process writes as JSON on standard error."""
    command = [sys.executable, "-c", code, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, json, fxdistill; dir(fxdistill); sys.stderr.write(json.dumps([*sys.modules]))"
    assert not {*HEAVY, "pydantic", "typer", "rich"} & set(said_by(code))


HELPED = ("plan", "run", "show", "shrink", "compress", "export", "eval", "bench", "report", "compare")
HELP = """
import json, sys
from fxdistill.cli.commands import app
found = {}
for words in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
    found[" ".join(words)] = [*sys.modules]
sys.stderr.write(json.dumps(found))
"""


def test_help_imports_nothing_heavy() -> None:
    asked = [["--help"], ["schema"], *([name, "--help"] for name in HELPED)]
    imported = said_by(HELP, asked)
    assert [*imported] == [" ".join(words) for words in asked]
    assert "pydantic" not in imported["--help"]  # for the help of a command typer imports it itself
    for words, modules in imported.items():
        assert not set(HEAVY) & set(modules), words


MISTAKES = {
    "run none.json": "the plan cannot be read",
    "plan m:a b.pt": "there is no such file\n  where: b.pt",
    "plan m:a m:b --method magic": "there is no method named 'magic'",
    "plan m:a m:b --task tracking": "there is no task named 'tracking'",
    "plan m:a m:b --criterion l7": "there is no criterion named 'l7'",
    "plan m:a m:b --print-after train": "has no pass named 'train'",
    "compress m:a --data d --method magic": "there is no method named 'magic'",
    "shrink m:a --keep 0.5 --by l7": "there is no criterion named 'l7'",
    "shrink m:a --macs 0.5 --device cuda": "with one step there is no training in between",
}
GUARDED = """
import contextlib, io, json, sys
sys.modules["torch"] = None
from fxdistill.cli.commands import main
found = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ["fxdistill", *words.split()]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            found[words] = end.code, said.getvalue()
sys.stderr.write(json.dumps(found))
"""


def test_mistakes_are_answered_without_anything_heavy() -> None:
    found = said_by(GUARDED, [*MISTAKES])
    assert found.keys() == MISTAKES.keys()
    for words, (code, said) in found.items():
        assert code == 2, said
        assert said.startswith("error: "), said
        assert MISTAKES[words] in said


def test_schema_is_that_of_plans() -> None:
    assert "arms" in json.loads(call("schema"))["properties"]


def test_plan_shows_pairs_and_is_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.plan_file()
    monkeypatch.setattr(commands, "out", Console(width=60, highlight=False))
    teacher, student = (str(runs.workshop() / name) for name in ("teacher.pt", "student.pt"))
    said = [
        call("plan", teacher, student, *ALLOW, "--data", "digits", "-o", str(tmp_path / name)) for name in ("a", "b")
    ]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "runner-up" in said[0]
    assert "warm-up-1" in said[0]
    assert all(len(line) <= 60 for line in said[0].splitlines() if not line.startswith("wrote"))


def test_a_random_teacher_can_be_planned(tmp_path: Path) -> None:
    runs.plan_file()
    said = call("plan", RESNET, str(runs.workshop() / "student.pt"), *ALLOW, "-o", str(tmp_path / "plan.json"))
    assert "random-teacher" in said


@pytest.mark.parametrize("kind", ["bundle", "export"])
def test_a_teacher_shrunken_from_random_weights_cannot_be_run(tmp_path: Path, kind: str) -> None:
    runs.plan_file()
    teacher, student = tmp_path / "teacher.pt", str(runs.workshop() / "student.pt")
    source, allow = ("fxdistill_test_models:with_dropout?widths=[16,32]", ALLOW) if kind == "export" else (RESNET, ())
    small = ("--keep", "0.5", "--input", "1x1x8x8", "-o")
    assert "random weights" in call("shrink", source, *allow, *small, str(teacher))
    assert "random weights" in call("shrink", str(teacher), *small, str(tmp_path / "again.pt"))
    for name in ("teacher.pt", "again.pt"):
        plan, out = str(tmp_path / f"{name}.json"), tmp_path / "run"
        said = call("plan", str(tmp_path / name), student, *ALLOW, "--data", "digits", "--method", "kd", "-o", plan)
        assert "random-teacher" in said
        done = CliRunner().invoke(app, ["run", plan, "-o", str(out), *ALLOW])
        assert done.exit_code == 2
        assert done.stderr.startswith("error: the plan's teacher has random weights")
        assert name in done.stderr
        assert not out.exists()


def test_a_teacher_shrunken_from_a_file_can_be_run(tmp_path: Path) -> None:
    runs.plan_file()
    source, student = (str(runs.workshop() / name) for name in ("teacher.pt", "student.pt"))
    small, plan = str(tmp_path / "small.pt"), str(tmp_path / "plan.json")
    assert "random" not in call("shrink", source, "--keep", "0.5", "-o", small)
    options = ("--data", "digits", "--method", "kd", "--epochs", "1", "--force")  # what is left of it knows nothing yet
    planned = call("plan", small, student, *ALLOW, *options, "-o", plan)
    assert "random-teacher" not in planned
    ref = load(Path(plan)).given("teacher")
    assert isinstance(preflight.load_model(ref, tmp_path, seed=0, trained=True), nn.Module)


def test_a_teacher_at_chance_is_planned_by_force_and_the_plan_does_not_carry_it(tmp_path: Path) -> None:
    teacher, plan = tmp_path / "teacher.pt", tmp_path / "plan.json"
    made = build(*runs.TEACHER, seed=3)
    save(made, teacher, factory=runs.TEACHER[0], kwargs=runs.TEACHER[1], input_shape=(1, 1, 8, 8))
    words = ("plan", str(teacher), str(runs.workshop() / "student.pt"), *ALLOW, "--data", "digits", "-o", str(plan))
    refused = CliRunner().invoke(app, list(words))
    assert refused.exit_code == 2
    assert "the teacher has hardly anything to teach on this data: accuracy" in refused.stderr
    assert not plan.exists()
    said = " ".join(call(*words, "--force").split())
    assert "where chance is 10.00%" in said
    assert "teacher-near-chance" in {remark.code for remark in load(plan).diagnostics}
    refused = CliRunner().invoke(app, ["run", str(plan), "-o", str(tmp_path / "run"), *ALLOW])
    assert (refused.exit_code, (tmp_path / "run").exists()) == (2, False)
    assert "--force" in refused.stderr


def test_show_a_plan_and_a_run(tmp_path: Path) -> None:
    assert "control  trains student, without a teacher" in call("show", str(runs.plan_file()))
    assert re.search(r"student, distilled +\d+\.\d\d%", call("show", str(runs.finished())))
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    for name in ("plan.json", "origin.json"):
        (unfinished / name).write_bytes((runs.finished() / name).read_bytes())
    assert "not complete" in call("show", str(unfinished))


def test_a_resumed_finished_run_prints_its_result() -> None:
    finished = runs.finished().with_name("run-again")  # as far from its plan
    shutil.copytree(runs.finished(), finished)
    said = call("run", str(runs.plan_file()), "-o", str(finished), *ALLOW, "--resume")
    for itself in (finished, finished / "plan.json"):
        assert call("run", str(itself), *ALLOW, "--resume") == said
    assert "student, distilled" in said
    assert "parity on 133 images" in said


def test_eval_a_run_and_a_file() -> None:
    found = json.loads((runs.finished() / "result.json").read_text())["arms"][0]["accuracy"]
    assert f"accuracy {found:.2%} on 133 test images" in call("eval", str(runs.finished()), *ALLOW)
    assert "on 133 test images" in call("eval", str(runs.workshop() / "teacher.pt"), "--data", "digits")


def interrupted(words: list[str], models: Path) -> None:
    """A run that gets Ctrl-C, a real one, right after its seventh checkpoint."""
    onnx_file._EXPORTERS = ("torchscript",)
    save, count = checkpoint.save, itertools.count(1)

    def saving(*args: Any) -> None:
        save(*args)
        if next(count) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    checkpoint.save = saving  # type: ignore[assignment]
    sys.path.insert(0, str(models))
    sys.argv = ["fxdistill", *words]
    with runs.few_digits():
        main()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = ["run", str(runs.plan_file()), "-o", str(out), *ALLOW, "--save-every", "0", "--device", "cpu"]
    code, said, errors = children.done(tmp_path, interrupted, args, runs.workshop())
    assert code == 130, errors
    assert said == ""
    again = f"fxdistill run {runs.plan_file()} -o {out} --device cpu --save-every 0 {' '.join(ALLOW)} --resume"
    assert errors.splitlines()[-1] == f"interrupted; continue with: {again}"
    assert "Traceback" not in errors
    assert "Warning" not in errors
    assert checkpoint.load(RunDir(out)).position == Position(1, 0, 2)
    runs.execute(runs.plan_file(), out, Settings(device="cpu", allow=runs.ALLOW, resume=True))
    assert (out / "student.pt").read_bytes() == (runs.finished() / "student.pt").read_bytes()


def test_ctrl_c_before_there_is_a_run_does_not_say_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxdistill.runtime.run.execute.execute", interrupt)
    done = CliRunner().invoke(app, ["run", str(runs.plan_file()), "-o", str(tmp_path / "run"), "--device", "cpu"])
    assert done.exit_code == 130
    assert done.stderr.startswith("interrupted before anything was trained; start again with: fxdistill run ")
    assert done.stderr.endswith(f"-o {tmp_path / 'run'} --device cpu\n")


OPTIONS = [
    "--device", "cpu", "--devices", "1", "--precision", "bf16-mixed", "--compile", "auto", "--channels-last", "on",
    "--cuda-graphs", "off",
    "--profile", "--save-every", "7", "--cache", "kept", "--cache-size", "2G", "--cache-half",
    "--evaluate-every", "3", "--arms", "kd,indistill+dkd", "--seeds", "2", "--trust-code",
    "--force", "--allow-factory", "a.b", "--allow-factory", "c",
]  # fmt: skip
"""Every option of a run, but those that say how it is gone on with."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_whoever_asks_to_end_is_told_how_to_go_on_with_every_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def asked(_plan: Path, out: Path, *_: object) -> None:
        out.mkdir()
        (out / "plan.json").write_bytes(runs.plan_file().read_bytes())
        os.kill(os.getpid(), number)
        time.sleep(1)

    monkeypatch.setattr("fxdistill.runtime.run.execute.execute", asked)
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", str(runs.plan_file()), "-o", str(out), *OPTIONS])
    assert done.exit_code == code
    said, _, command = done.stderr.strip().partition(": ")
    assert said == "interrupted; continue with"
    assert command.startswith(f"fxdistill run {runs.plan_file()} -o {out} ")
    assert command.endswith(" --resume")
    assert sorted(command.split()[5:-1]) == sorted(OPTIONS)
    known = {option for parameter in _parameters("run") for option in parameter.opts[:1]}
    beside = {"plan_file", "--output", "--resume", "--more-epochs"}  # said in another way
    beside |= {"--nodes", "--jobs", "--trials"}  # with them other processes are started, or it is one of these
    assert known - beside == {option for option in OPTIONS if option.startswith("--")}


def _parameters(command: str) -> list[Any]:
    """The arguments and options of a command."""
    found: Any = typer.main.get_command(app)
    return [one for one in found.commands[command].params if one.name not in ("help",)]


@pytest.mark.parametrize("option", [["--cache-size", "4G"], ["--cache-half"]])
def test_what_is_said_of_a_cache_is_said_of_one(tmp_path: Path, option: list[str]) -> None:
    words = ["run", str(runs.plan_file()), "-o", str(tmp_path / "run"), "--cache", "off", *option]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, f"where: {option[0]}" in done.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_where_things_are_kept(tmp_path: Path) -> None:
    assert (values.cache("auto"), values.cache("off"), values.cache("a/b")) == ("auto", "off", Path("a/b"))
    assert [values.byte_count(text, "--x") for text in ("4G", "1.5m", "12", "12B")] == [4 << 30, 3 << 19, 12, 12]
    assert {values.byte_count(text, "--x") for text in ("2K", "2KB", "2kib")} == {2048}
    (tmp_path / "file").touch()
    for text in ("", " ", str(tmp_path / "file")):
        with pytest.raises(InputError, match="is no folder"):
            values.cache(text)
    for text in ("", "G", "0", "-1G", "inf", "nan", "1e999", "4 X", "²", "B", "GB", "4iB"):
        with pytest.raises(InputError, match="is no number of bytes"):
            values.byte_count(text, "--x")


def test_arguments() -> None:
    assert values.shape("1x3x32x64") == (1, 3, 32, 64)
    assert values.shape("") is None
    assert values.pairs(["layer1=features.3"], "--pair") == (("layer1", "features.3"),)
    for wrong in ("3x32x32", "1x3x0x32", "1x3xax32"):
        with pytest.raises(InputError):
            values.shape(wrong)


@pytest.mark.parametrize("seed", [20261125, 2**63 - 1])
def test_large_seeds_are_planned_and_run(tmp_path: Path, seed: int) -> None:
    runs.plan_file()
    student, plan = str(runs.workshop() / "student.pt"), tmp_path / "plan.json"
    options = ("--data", "digits", "--method", "kd", "--criterion", "random", "--epochs", "1", "--batch-size", "512")
    call("plan", str(runs.workshop() / "teacher.pt"), student, *ALLOW, *options, "--seed", str(seed), "-o", str(plan))
    assert load(plan).seeds == [seed]
    result = runs.execute(plan, tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW))
    assert {arm["seed"] for arm in result["arms"]} == {seed}


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        (("--seed", str(2**63)), "--seed"),
        (("--seed", str(2**63 - 1), "--repeats", "2"), "where: the options, seeds.1"),
        (("--epochs", "1000000"), "would train as the arm 'distilled' does, 1000007 epochs; 1000000 is the most"),
    ],
)
def test_numbers_that_are_too_large_are_refused(tmp_path: Path, options: tuple[str, ...], needle: str) -> None:
    args = ["plan", RESNET, CONVNET, "--input", "1x1x8x8", *options, "-o", str(tmp_path / "plan.json")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.startswith("error: ")
    assert needle in done.stderr
    assert list(tmp_path.iterdir()) == []


PASSES = {
    "trace": ("traced: symbolic", "layers.layer1.0.conv1", "block1.conv"),
    "couple": ("channels of stem.0, layers.layer1.0.conv2", "4 channels of block1.conv"),
    "match": ("layers.layer1.0.relu_1", "block1.pool", "score 0."),
    "prune": ("block1: layers.layer1.0.relu_1 keeps ", " of 8"),
    "shrink": ("auxiliary, of teacher: stem.0.weight keeps 4",),
    "mask": ("level-0, of teacher: layers.layer1.0.conv1 keeps ", "level-2, of teacher: layers.layer2.0.conv1 keeps "),
    "schedule": ("trains student: warm-up-1, 3 epochs of 1 mse[block1]", "0.1 cross-entropy + 0.9 kd"),
    "instrument": ("distilled, 145,440 MACs", "student.block1.conv", "teacher.layers.layer1.0.conv1"),
    "specialize": ("warm-up-1, ", "main, ", "student.block1.conv", "teacher.layers.layer1.0.conv1"),
}


def test_print_after_shows_what_each_pass_made(tmp_path: Path) -> None:
    assert set(PASSES) == set(pipeline.PIPELINE)
    for name, texts in PASSES.items():
        align = ("--align", "shrink") if name == "shrink" else ()
        args = (RESNET, CONVNET, "--input", "1x1x8x8", *align, "-o", str(tmp_path / "plan.json"))
        if name == "mask":
            args = (RESNET, "--method", "cascade", "--keep", "0.5", *args[2:])
        said = call("plan", *args, "--print-after", name)
        shown, _, rest = said.partition("\nteacher  fxdistill.models:resnet")
        assert shown.startswith(f"after {name}\n")
        assert shown.count("after ") == 1
        for text in texts:
            assert text in shown, name
        assert f"arms ({'cascade' if name == 'mask' else 'indistill'})" in rest


def test_print_after_takes_several_passes_in_their_order(tmp_path: Path) -> None:
    passes = ("--print-after", "schedule", "--print-after", "match")
    said = call("plan", RESNET, CONVNET, "--input", "1x1x8x8", *passes, "-o", str(tmp_path / "plan.json"))
    assert re.findall("^after (.*)$", said, re.MULTILINE) == ["match", "schedule"]
    said = call("plan", RESNET, CONVNET, "--input", "1x1x8x8", "-o", str(tmp_path / "plan.json"))
    assert "after " not in said.partition("pairs")[0]


def stale(plan: dict[str, Any]) -> None:
    plan["arms"][0]["stages"][1]["losses"][0]["args"] = {}
    plan["arms"][0]["stages"][2]["losses"].pop()


def test_costs_that_are_stale_are_said_by_show_and_run(tmp_path: Path) -> None:
    assert "stale-cost" not in call("show", str(runs.plan_file()))
    plan = runs.edited("stale", stale)
    assert "note stale-cost arms: pairs, kept channels, levels or losses were edited" in call("show", str(plan))
    said: list[str] = []
    observer = Observer(on_diagnostic=lambda remark: said.append(remark.code))
    runs.execute(plan, tmp_path / "run", Settings(device="cpu", allow=runs.ALLOW), observer)
    assert said.count("stale-cost") == 1
    said.clear()
    runs.execute(runs.plan_file(), tmp_path / "other", Settings(device="cpu", allow=runs.ALLOW), observer)
    assert "stale-cost" not in said


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (lambda p: p["data"].update(augmentation=["blur"]), "no augmentation named 'blur'"),
        (lambda p: p["data"].update(augmentation=["crop:0"]), "write crop:PADDING"),
        (lambda p: p["arms"][0]["stages"][0]["optimizer"].update(momentum=0.9), "'adam' takes no momentum"),
        (lambda p: p["control"]["optimizer"].update(momentum=0.9), "'adam' takes no momentum"),
        (lambda p: p.update(task="tracking"), "no task named 'tracking'"),
        (
            lambda p: p["pairs"].pop(),
            "kept channels name the pair 'dropout', which the plan has not; stage 'warm-up-2'",
        ),
    ],
)
def test_show_refuses_what_run_refuses(change: Callable[[dict[str, Any]], object], needle: str) -> None:
    plan = str(runs.edited("wrong", change))
    for command in (["show", plan], ["run", plan, "-o", f"{plan}.run", "--device", "cpu", *ALLOW]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert needle in done.stderr
    assert not Path(f"{plan}.run").exists()


def test_the_control_arm_trains_as_long_as_the_arm_beside_it_whatever_is_edited() -> None:
    longer = runs.edited("longer", lambda p: p["arms"][0]["stages"][2].update(epochs=30))
    assert "control  32 epochs of cross-entropy" in call("show", str(longer))

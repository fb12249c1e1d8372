"""``make_plan``: the plan of the command line from Python, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

import fxdistill
from fxdistill.cli.commands import app
from fxdistill.criteria import importance
from fxdistill.errors import CriterionError
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")

STUDENT = "fxdistill.models:convnet?widths=[4,8]&hidden=8"
CASCADE = {"student": None, "method": "cascade", "cascade": fxdistill.Cascade(keep=0.5)}


def by_command(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["plan", *words, "-o", str(folder / "by-command.json")])
    assert done.exit_code == 0, done.output
    return (folder / "by-command.json").read_text()


def test_it_is_the_plan_of_the_command_line(tmp_path: Path) -> None:
    teacher = str(runs.workshop() / "teacher.pt")
    words = ("--data", "digits", "--method", "indistill+kd", "--epochs", "7", "--seed", "3", "--val", "0.1")
    told = by_command(tmp_path, teacher, STUDENT, *words, "--batch-size", "64", "--student-output", "")
    said: dict[str, Any] = {"data": "digits", "method": "indistill+kd", "epochs": 7, "seed": 3, "val": 0.1}
    path = tmp_path / "plan.json"
    plan = fxdistill.make_plan(teacher, STUDENT, path, batch_size=64, entries={"student": ""}, **said)
    assert path.read_text() == told
    assert fxdistill.load_plan(path) == plan


def chosen_by(path: Path, **said: Any) -> tuple[set[str], set[str]]:
    """The criteria by which channels are kept in a plan, and the codes of its remarks."""
    plan = fxdistill.make_plan(runs.workshop() / "teacher.pt", STUDENT, path, **said)
    return {one.criterion for one in plan.kept}, {remark.code for remark in plan.diagnostics}


def test_with_data_a_warm_up_keeps_channels_that_say_different_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    data: dict[str, Any] = {"data": "digits"}
    assert chosen_by(path)[0] == {"l1"}
    assert chosen_by(path, **data)[0] == {"interpolative"}
    assert chosen_by(path, method="indistill+dkd", **data)[0] == {"interpolative"}
    assert chosen_by(path, method="indistill-released+pkt", task="retrieval", **data)[0] == {"l1"}
    assert chosen_by(path, criterion="l1", **data)[0] == {"l1"}

    def refuses(*_: object) -> None:
        raise CriterionError("it says nothing", where="criterion")

    monkeypatch.setattr("fxdistill.passes.prune.importance", lambda name, channels: (
        refuses() if name == "interpolative" else importance(name, channels)
    ))  # fmt: skip
    found, codes = chosen_by(path, **data)
    assert (found, "by-weights" in codes) == ({"l1"}, True)
    with pytest.raises(CriterionError, match="it says nothing"):
        chosen_by(path, criterion="interpolative", **data)


def test_a_cascade_and_an_assistant_are_planned_as_well(tmp_path: Path) -> None:
    teacher = runs.workshop() / "teacher.pt"
    told = by_command(tmp_path, str(teacher), "--method", "cascade", "--keep", "0.5", "--assistants", "1")
    cascade = fxdistill.Cascade(keep=0.5, assistants=1)
    fxdistill.make_plan(fxdistill.load(teacher), path=tmp_path / "plan.json", method="cascade", cascade=cascade)
    assert (tmp_path / "plan.json").read_text() == told
    told = by_command(tmp_path, str(teacher), STUDENT, "--via", "auto", "--no-control")
    fxdistill.make_plan(teacher, STUDENT, tmp_path / "plan.json", via="auto", control=False)
    assert (tmp_path / "plan.json").read_text() == told


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"student": nn.Linear(2, 2)}, "a plan names files, and this is a Linear"),
        ({"student": None}, "the method 'indistill' needs a student"),
        ({"method": "cascade"}, "the method 'cascade' makes its student out of the teacher"),
        ({"student": None, "method": "cascade"}, "the method 'cascade' has to know what the student keeps"),
        ({"student": None, "method": "cascade", "keep": 0.5}, "--keep is about an auxiliary teacher"),
        ({**CASCADE, "align": "project"}, "the method 'cascade' has no use for 'align'"),
        ({**CASCADE, "via": "auto"}, "the method 'cascade' has no use for 'via'"),
        ({**CASCADE, "pins": (("fc", "fc"),)}, "the method 'cascade' has no use for 'pins'"),
        ({**CASCADE, "curriculum": fxdistill.Curriculum(probe="order")}, "the method 'cascade' has no use for 'curr"),
        ({"cascade": fxdistill.Cascade(keep=0.5)}, "the method 'indistill' has no use for 'cascade'"),
        ({"data": "digit"}, "the data spec 'digit' is unknown"),
        ({"path": "teacher.pt"}, "the output is a file that is read here"),
        ({"via": STUDENT, "via_epochs": 0}, "the assistant has random weights"),
        ({"via_epochs": 3}, "'via_epochs' would do nothing"),
        ({"val": 0.1}, "'val' would do nothing"),
        ({"batch_size": 0}, "the plan is not valid: Input should be greater than 0"),
        ({"entries": {"pupil": "logits"}}, "'pupil' is not the name of a model here"),
    ],
)
def test_what_cannot_be_planned_is_refused_and_nothing_written(
    changed: dict[str, Any], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = (runs.workshop() / "teacher.pt").read_bytes()
    Path("teacher.pt").write_bytes(held)
    with pytest.raises(fxdistill.InputError) as refused:
        fxdistill.make_plan(**{"teacher": "teacher.pt", "student": STUDENT, **changed})
    assert refused.value.what.startswith(what), refused.value.what
    assert [entry.name for entry in tmp_path.iterdir()] == ["teacher.pt"]
    assert Path("teacher.pt").read_bytes() == held


def test_a_name_is_in_the_plan_as_it_is_or_the_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~q'\" ?&%41#[red]\n\tü:=.pt", "a\x01.pt"):
        Path(name).write_bytes((runs.workshop() / "teacher.pt").read_bytes())
    with pytest.raises(fxdistill.InputError, match=r"'a\\x01.pt' holds '\\x01'"):
        fxdistill.make_plan("a\x01.pt", STUDENT, method="kd")
    assert not Path("plan.json").exists()
    made = fxdistill.make_plan("~q'\" ?&%41#[red]\n\tü:=.pt", STUDENT, method="kd")
    assert fxdistill.load_plan("plan.json") == made
    assert made.given("teacher").path == "~q'\" ?&%41#[red]\n\tü:=.pt"


def test_a_data_spec_is_no_part_of_a_plan() -> None:
    with pytest.raises(fxdistill.InputError, match="'digits' is no part of a plan"):
        fxdistill.Options(input_shape=(1, 1, 8, 8), data="digits")  # type: ignore[arg-type]

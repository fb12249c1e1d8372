"""Plans: the same bytes, and every nonsense refused with the field named."""

import json
from pathlib import Path
from typing import Any

import pytest

import fxdistill
from fxdistill import files
from fxdistill.errors import PlanError
from fxdistill.plan import file
from tests.tiny_models import planned

PLAN = planned("body", "body", (2, 8, 8, 8), (2, 4, 8, 8), kept=[0, 2, 4, 7])


def data() -> Any:
    return json.loads(PLAN.to_json())


def changed(path: str, value: object) -> Any:
    made = data()
    *places, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target = made
    for place in places:
        target = target[place]
    target[last] = value
    return made


def test_round_trip_is_byte_identical(tmp_path: Path) -> None:
    text = PLAN.to_json()
    files.write_text(tmp_path / "plan.json", text)
    again = file.load(tmp_path / "plan.json")
    assert (again, again.to_json(), again.sha256) == (PLAN, text, PLAN.sha256)
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]


def test_lists_of_numbers_stay_on_one_line() -> None:
    assert '"channels": [0, 2, 4, 7]' in PLAN.to_json()
    assert '      "shape": [2, 8, 8, 8],\n' in PLAN.to_json()


def test_a_whole_number_is_a_float_where_one_is_meant() -> None:
    assert file.parse(changed("stages.0.losses.0.weight", 1), where="p").to_json() == PLAN.to_json()


@pytest.mark.parametrize(
    ("path", "value", "field", "message"),
    [
        ("version", 2, "version", "has version 2; this fxdistill reads versions up to 1"),
        ("version", True, "version", "not a whole number"),
        ("version", "1", "version", "not a whole number"),
        ("version", 0, "version", "should be 1"),
        ("stages.0.epochs", -3, "stages.0.epochs", "greater than 0"),
        ("stages.0.epochs", True, "stages.0.epochs", "valid integer"),
        ("stages.0.epochs", 2.5, "stages.0.epochs", "valid integer"),
        ("stages.0.epochs", "3", "stages.0.epochs", "valid integer"),
        ("stages.0.epoch", 3, "stages.0.epoch", "Extra inputs"),
        ("stages", [], "stages", "at least 1"),
        ("stages.0.losses", [], "stages.0.losses", "at least 1"),
        ("stages.0.losses.0.loss", "msee", "stages.0.losses.0", "no loss named 'msee'; did you mean 'mse'"),
        ("stages.0.losses.0.pair", None, "stages.0.losses.0", "the loss 'mse' needs a pair"),
        ("stages.1.losses.1.pair", "pair", "stages.1.losses.1", "the loss 'kd' needs no pair"),
        ("stages.0.losses.0.pair", "other", "the plan", "names the pair 'other', which the plan has not"),
        ("stages.1.losses.1.args", {"temperature": 0.0}, "stages.1.losses.1", "temperature = 0.0 is out of range"),
        ("stages.1.losses.1.args", {"heat": 1.0}, "stages.1.losses.1", "has no argument 'heat'"),
        ("stages.1.losses.1.args", {"temperature": True}, "stages.1.losses.1.args.temperature", "valid number"),
        ("stages.1.losses.1.weight", -0.5, "stages.1.losses.1.weight", "greater than or equal to 0"),
        ("stages.1.name", "warm-up-1", "the plan", "more than one stage 'warm-up-1'"),
        ("stages.1.name", "", "stages.1.name", "at least 1 character"),
        ("stages.0.optimizer.name", "lion", "stages.0.optimizer.name", "'sgd', 'adam' or 'adamw'"),
        ("stages.0.optimizer.lr", 0.0, "stages.0.optimizer.lr", "greater than 0"),
        (
            "kept.0.channels",
            [0, 2, 4, 8],
            "the plan",
            "kept channel 8 of 'pair' is out of range: 'body' has 8 channels",
        ),
        ("kept.0.channels", [0, 2, 4, -1], "kept.0.channels.3", "greater than or equal to 0"),
        ("kept.0.channels", [0, 4, 2, 7], "the plan", "not sorted and distinct"),
        ("kept.0.channels", [0, 2, 4], "the plan", "keeps 3 channels; the student's tap has 4"),
        ("kept.0.pair", "other", "the plan", "name the pair 'other'"),
        ("kept.0.width", 9, "the plan", "not about its teacher tap"),
        ("kept", [], "the plan", "no kept channels for the sliced pair 'pair'"),
        ("pairs.0.align", "project", "the plan", "has kept channels but its align is 'project'"),
        ("pairs.0.teacher.channel_dim", 2, "pairs.0.teacher", "the channels in dimension 1"),
        ("pairs.0.teacher.width", 7, "pairs.0.teacher", "the width is 7"),
        ("pairs.0.teacher.shape", [2, 8, 64], "pairs.0.teacher", "has 4 dimensions"),
        ("pairs.0.teacher.layout", "chw", "pairs.0.teacher.layout", "'nchw'"),
        ("pairs.0.score", "high", "pairs.0.score", "valid number"),
        ("input.shape", [3], "input.shape", "at least 2"),
        ("seeds", [], "seeds", "at least 1"),
        ("seeds", [1, 1], "the plan", "more than one seed '1'"),
        ("seed", -1, "seed", "greater than or equal to 0"),
        ("data.batch_size", 0, "data.batch_size", "greater than 0"),
        ("data.mean", [0.5], "the plan", "data.mean has 1 entries, data.std 0"),
        ("precision", "8-true", "precision", "'32-true'"),
        ("teacher.kwargs", {"a": [float("inf")]}, "teacher.kwargs.a", "finite"),
        ("diagnostics", [{"code": "x"}], "diagnostics.0.severity", "Field required"),
        ("surprise", 1, "surprise", "Extra inputs"),
        ("method", None, "method", "valid string"),
    ],
)
def test_nonsense_is_refused(path: str, value: object, field: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        file.parse(changed(path, value), where="plan.json")
    assert message in caught.value.what
    assert caught.value.where.startswith(f"plan.json, {field}")
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("field", "kind"), [("widths", "weight"), ("taps", "pair")])
def test_widths_of_an_auxiliary_teacher_are_about_what_it_has(field: str, kind: str) -> None:
    made = data()
    made["auxiliary"] = {"kept": {"body.weight": [0, 1]}, field: {"other": 3}, "stages": made["stages"][1:]}
    with pytest.raises(PlanError, match=f"widths name the {kind} 'other', which it has not"):
        file.parse(made, where="p")


def test_the_same_pair_twice_is_refused() -> None:
    made = data()
    made["pairs"].append(made["pairs"][0])
    with pytest.raises(PlanError, match="more than one pair 'pair'"):
        file.parse(made, where="p")
    made["pairs"][1] = {**made["pairs"][0], "name": "again"}
    with pytest.raises(PlanError, match="more than one pair of the nodes 'body = body'"):
        file.parse(made, where="p")


def test_missing_fields_are_counted() -> None:
    made = data()
    del made["seed"], made["stages"]
    with pytest.raises(PlanError, match=r"Field required \(and 1 more\)"):
        file.parse(made, where="p")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"), ("", "not JSON"), ("[]", "not a JSON object"), ("3", "not a JSON object"),
        ('{"seed": NaN}', "it holds NaN"), ('{"seed": 1, "seed": 2}', "the field 'seed' twice"),
        ("[" * 100_000, "nested too deeply"), ('{"seed": ' + "9" * 5000 + "}", "not valid"), ("<html>", "not JSON"),
    ],
)  # fmt: skip
def test_files_that_are_no_plan(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=message) as caught:
        file.load(path)
    assert str(path) in caught.value.where


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        file.load(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="not a text file"):
        file.load(tmp_path / "binary")
    with pytest.raises(PlanError, match="Is a directory"):
        file.load(tmp_path)


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    files.write_text(path, "old")
    for failure in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(_: int, failure: BaseException = failure) -> None:
            raise failure

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises((PlanError, KeyboardInterrupt)):
            files.write_text(path, "new")
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("plan.json", "old")]
    with pytest.raises(PlanError, match="cannot write: No such file"):
        files.write_text(tmp_path / "none" / "plan.json", "new")


def test_the_published_schema_is_that_of_the_code() -> None:
    published = Path(str(fxdistill.__file__)).with_name("plan") / "schema.json"
    assert json.loads(published.read_text()) == file.schema()

"""Plans: the same bytes, and every nonsense refused with the field named."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import fxdistill
from fxdistill import files
from fxdistill.errors import PlanError
from fxdistill.plan import file
from fxdistill.plan.document import edited
from fxdistill.plan.training import Plateau
from fxdistill.registry import GROUPS
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
    assert file.load(str(tmp_path / "plan.json")) == PLAN
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]


def test_lists_of_numbers_stay_on_one_line() -> None:
    assert '"channels": [0, 2, 4, 7]' in PLAN.to_json()
    assert '      "shape": [2, 8, 8, 8],\n' in PLAN.to_json()


def test_a_whole_number_is_a_float_where_one_is_meant() -> None:
    assert file.parse(changed("arms.0.stages.0.losses.0.weight", 1), where="p").to_json() == PLAN.to_json()


@pytest.mark.parametrize(
    ("path", "value", "field", "message"),
    [
        ("version", 4, "version", "has version 4; this fxdistill reads versions up to 3"),
        ("version", 1, "version", "has version 1, whose form is no longer read"),
        ("version", 2, "version", "has version 2, whose form is no longer read"),
        ("version", True, "version", "not a whole number"),
        ("version", "1", "version", "not a whole number"),
        ("version", 0, "version", "should be 3"),
        ("arms.0.stages.0.epochs", -3, "arms.0.stages.0.epochs", "greater than 0"),
        ("arms.0.stages.0.epochs", True, "arms.0.stages.0.epochs", "valid integer"),
        ("arms.0.stages.0.epochs", 2.5, "arms.0.stages.0.epochs", "valid integer"),
        ("arms.0.stages.0.epochs", "3", "arms.0.stages.0.epochs", "valid integer"),
        ("arms.0.stages.0.epoch", 3, "arms.0.stages.0.epoch", "Extra inputs"),
        ("arms.0.stages", [], "arms.0.stages", "at least 1"),
        ("arms", [], "arms", "at least 1"),
        ("arms.0.stages.0.losses", [], "arms.0.stages.0.losses", "at least 1"),
        (
            "arms.0.stages.0.losses.0.loss",
            "msee",
            "arms.0.stages.0.losses.0",
            "there is no loss named 'msee'; did you mean 'mse'?",
        ),
        ("arms.0.stages.0.losses.0.pair", None, "arms.0.stages.0.losses.0", "the loss 'mse' needs a pair"),
        ("arms.0.stages.1.losses.1.pair", "pair", "arms.0.stages.1.losses.1", "the loss 'kd' needs no pair"),
        ("arms.0.stages.0.losses.0.pair", "other", "the plan", "names the pair 'other', which the plan has not"),
        (
            "arms.0.stages.1.losses.1.args",
            {"temperature": 0.0},
            "arms.0.stages.1.losses.1",
            "the loss 'kd', temperature = 0.0: input should be greater than or equal to 0.01",
        ),
        (
            "arms.0.stages.1.losses.1.args",
            {"heat": 1.0},
            "arms.0.stages.1.losses.1",
            "the loss 'kd' has no argument 'heat'; its arguments are temperature",
        ),
        (
            "arms.0.stages.1.losses.1.args",
            {"temperature": "hot"},
            "arms.0.stages.1.losses.1",
            "temperature = 'hot': input should be a valid number",
        ),
        (
            "arms.0.stages.0.losses.0.weight",
            0.0,
            "arms.0.stages.0",
            "every loss of the stage 'warm-up-1' has the weight 0",
        ),
        ("arms.0.stages.1.losses.1.weight", -0.5, "arms.0.stages.1.losses.1.weight", "greater than or equal to 0"),
        ("arms.0.stages.1.name", "warm-up-1", "the plan", "more than one stage 'warm-up-1'"),
        ("arms.0.stages.1.name", "", "arms.0.stages.1.name", "at least 1 character"),
        ("arms.0.stages.0.optimizer.name", "lion", "arms.0.stages.0.optimizer.name", "'sgd', 'adam' or 'adamw'"),
        ("arms.0.stages.0.optimizer.lr", 0.0, "arms.0.stages.0.optimizer.lr", "greater than 0"),
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
        ("members.teacher.preprocessing", {"size": [8, 8], "mean": [0.5]}, "members.teacher.preprocessing", "std 0"),
        ("members.teacher.preprocessing", {"size": [8]}, "members.teacher.preprocessing.size", "at least 2"),
        ("precision", "8-true", "precision", "'32-true'"),
        ("members.teacher.kwargs", {"a": [float("inf")]}, "members.teacher.kwargs.a", "finite"),
        ("diagnostics", [{"code": "x"}], "diagnostics.0.severity", "Field required"),
        ("task", "clasification", "task", "no task named 'clasification'; did you mean 'classification'?"),
        ("data.augmentation", ["flop"], "data", "no augmentation named 'flop'; did you mean 'flip'?"),
        ("data.augmentation", ["flip:2"], "data", "the augmentation 'flip' takes no argument; write flip"),
        ("data.augmentation", ["flip", "crop"], "data", "'crop' is wrong, padding: Field required; write crop:PADDING"),
        ("data.augmentation", ["crop:-1"], "data", "greater than 0; write crop:PADDING"),
        ("arms.0.stages.0.optimizer.momentum", 0.9, "arms.0.stages.0.optimizer", "'adam' takes no momentum"),
        ("control.optimizer.momentum", 0.9, "control.optimizer", "'adam' takes no momentum"),
        ("arms.0.stages.1.epochs", 10**6, "the plan", "would train as the arm 'distilled' does, 1000001 epochs"),
        ("control.of", "distiled", "the plan", "stands beside the arm 'distiled', which the plan has not"),
        ("control.losses.0", {"loss": "kd"}, "the plan", "trains without a teacher, and its loss 'kd' needs one"),
        ("control.losses.0.student", "teacher", "the plan", "reads 'teacher', which it does not train"),
        ("arms.0.name", "control", "the plan", "an arm cannot be called 'control'"),
        ("arms.0.trains", ["pupil"], "the plan", "the arm 'distilled' names the member 'pupil'"),
        ("arms.0.stages.1.losses.1.teacher", "tutor", "the plan", "the arm 'distilled' names the member 'tutor'"),
        ("arms.0.stages.0.losses.0.teacher", "student", "the plan", "is 'student', that of its pair 'teacher'"),
        ("arms.0.stages.1.losses.0.teacher", "teacher", "arms.0.stages.1.losses.0", "reads nothing of a teacher"),
        ("members.Student", {}, "members.Student", "should match pattern"),
        ("members.result", {"kind": "shrunken", "of": "teacher", "kept": {}}, "the plan", "cannot be called 'result'"),
        ("pairs.0.student.member", "pupil", "the plan", "names the member 'pupil', which the plan has not"),
        ("pairs.0.align", "shrink", "the plan", "its teacher is no shrunken member"),
        ("export.member", "teacher", "the plan", "no arm 'distilled' trains the member 'teacher'"),
        ("seed", 2**63, "seed", "less than 9223372036854775808"),
        ("seeds", [2**63], "seeds.0", "less than 9223372036854775808"),
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
    made["members"]["small"] = {"kind": "shrunken", "of": "teacher", "kept": {"body.weight": [0]}, field: {"other": 3}}
    with pytest.raises(PlanError, match=f"widths of the member 'small' name the {kind} 'other', which it has not"):
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
    del made["seed"], made["arms"]
    with pytest.raises(PlanError, match="2 fields are wrong: seed: Field required; arms: Field required"):
        file.parse(made, where="p")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"), ("", "not JSON"), ("[]", "not a JSON object"), ("3", "not a JSON object"),
        ('{"method": "\\ud800"}', "half a character"), ('{"a\\u001b[2J": 1}', "controls a terminal"),
        ('{"diagnostics": [{"why": "\\u009b31m"}]}', "controls a terminal"),
        ('{"method": "x\\r"}', "controls a terminal"),
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


def test_the_control_arm_follows_the_arm_beside_it() -> None:
    assert [stage.epochs for stage in file.parse(data(), where="p").arm("control").stages] == [2]
    longer = file.parse(changed("arms.0.stages.1.epochs", 40), where="p")
    assert [stage.epochs for stage in longer.arm("control").stages] == [41]
    assert [arm.name for arm in longer.all_arms] == ["distilled", "control"]
    assert longer.arm("control").trains == longer.arm("distilled").trains
    without = file.parse(changed("control", None), where="p")
    with pytest.raises(PlanError, match="has no arm 'control'") as caught:
        without.arm("control")
    assert caught.value.hint == "its arms are: distilled"


def test_removing_a_pair_names_everything_that_still_refers_to_it_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        file.parse(changed("pairs", []), where="p")
    said = caught.value.what
    assert "kept channels name the pair 'pair', which the plan has not" in said
    assert "stage 'warm-up-1' names the pair 'pair', which the plan has not" in said
    made = changed("pairs", [])
    made["kept"] = []
    made["arms"][0]["stages"][1]["losses"].append({"loss": "mse", "pair": "pair"})
    with pytest.raises(PlanError, match=r"stage 'warm-up-1' names the pair 'pair'.*; stage 'main' names the pair"):
        file.parse(made, where="p")


def test_defaults_that_are_left_out_are_filled_in() -> None:
    made = data()
    made["arms"][0]["stages"][1]["losses"] = [{"loss": "cross-entropy"}, {"loss": "kd"}]
    cross_entropy, kd = file.parse(made, where="p").arm("distilled").stages[1].losses
    assert (cross_entropy.student, cross_entropy.teacher) == ("student", None)
    assert (kd.student, kd.teacher, kd.args) == ("student", "teacher", {"temperature": 4.0})


def test_a_change_is_validated() -> None:
    with pytest.raises(ValueError, match="more than one seed '1'"):
        PLAN.changed(seeds=[1, 1])
    assert PLAN.changed(seeds=[1, 2]).seeds == [1, 2]
    with pytest.raises(ValueError, match="valid integer"):
        PLAN.arms[0].stages[0].changed(epochs="many")


def _cheaper(plan: Any) -> None:
    plan["arms"][0]["stages"][0].update(cost=0.1)


def _longer(plan: Any) -> None:
    plan["arms"][0]["stages"][0].update(epochs=9)


def _other_loss(plan: Any) -> None:
    plan["arms"][0]["stages"][1]["losses"].pop()


def _other_channels(plan: Any) -> None:
    plan["kept"][0]["channels"] = [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "stale"), [(_other_loss, True), (_other_channels, True), (_longer, False), (_cheaper, False)]
)
def test_costs_go_stale_with_what_they_follow_from(change: Callable[[Any], None], stale: bool) -> None:
    made = PLAN.changed(costed=PLAN.cost_basis).model_dump(mode="json")
    assert list(edited(file.parse(made, where="p"))) == []
    change(made)
    assert [remark.code for remark in edited(file.parse(made, where="p"))] == ["stale-cost"] * stale


def test_a_control_arm_that_learns_otherwise_is_told() -> None:
    made = data()
    made["control"]["optimizer"] = made["arms"][0]["stages"][1]["optimizer"]
    made["control"]["schedule"] = made["arms"][0]["stages"][1]["schedule"]
    assert list(edited(file.parse(made, where="p"))) == []
    for place, change in (("optimizer", {"lr": 0.5}), ("schedule", "step")):
        other = copy.deepcopy(made)
        main = other["arms"][0]["stages"][1]
        main[place] = {**main[place], **change} if isinstance(change, dict) else change
        (remark,) = edited(file.parse(other, where="p"))
        assert remark.code == "other-control"
        assert "than the stage 'main' of 'distilled'" in remark.why


def test_a_seed_may_have_63_bits() -> None:
    for seed in (20261125, 2**63 - 1):
        assert file.parse(changed("seeds", [seed]), where="p").seeds == [seed]


@pytest.mark.parametrize("kind", sorted(GROUPS))
def test_a_plan_that_needs_what_is_not_installed_says_what_to_install(kind: str) -> None:
    made = data()
    made["plugins"] = [{"kind": kind, "name": "vidd", "distribution": "fxdistill-vidd", "version": "1.2"}]
    made["arms"][0]["stages"][1]["losses"].append({"loss": "vidd"})
    with pytest.raises(PlanError) as caught:
        file.parse(made, where="plan.json")
    assert caught.value.what == f"the plan uses the {kind} 'vidd', which is not installed"
    assert caught.value.where == "plan.json, plugins"
    assert caught.value.hint == "pip install fxdistill-vidd (the plan was written with version 1.2)"


def test_the_published_schema_is_that_of_the_code() -> None:
    published = Path(str(fxdistill.__file__)).with_name("plan") / "schema.json"
    assert json.loads(published.read_text()) == file.schema()


@pytest.mark.parametrize("place", [-1, 0])
def test_a_plateau_needs_a_main_stage_behind_it(place: int) -> None:
    arm = planned("body", "body", (2, 8, 8, 8), (2, 4, 8, 8)).arms[0]
    stages = list(arm.stages)
    stages[place] = stages[place].changed(plateau=Plateau(share=0.1))
    if place == 0:
        assert arm.changed(stages=stages).stages[0].plateau is not None
        return
    with pytest.raises(ValidationError, match="ends on a plateau, and no main stage follows"):
        arm.changed(stages=stages)

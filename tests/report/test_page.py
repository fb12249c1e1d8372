"""The report: what is on the page is what the run says, nothing of a stranger's comes alive, nothing is loaded."""

import base64
import itertools
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fxdistill
from fxdistill import models
from fxdistill.compiler.outline import Runs, outline
from fxdistill.errors import InputError
from fxdistill.methods.cascade import Cascade
from fxdistill.passes.instrument.builder import distinct
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.members import Masked
from fxdistill.report.page import chart, compared, courses, document, network, parts, told, words
from fxdistill.runtime.run.details import Beside, Details, Shown
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Settings
from fxdistill.tasks import TASKS
from tests import jobs, runs

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.elements if "id" in attrs]


def is_offline(page: Page) -> bool:
    """Whether nothing of a page loads or runs anything."""
    loads = {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    for tag, attrs in page.elements:
        sources = [str(attrs[name]) for name in ("src", "href", "xlink:href", "srcset", "action") if name in attrs]
        if tag in loads or any(name.startswith("on") for name in attrs):
            return False
        if any(not source.startswith(("#", "data:image/png;base64,")) for source in sources):
            return False
    return True


def written(tmp_path: Path, *paths: Path) -> Page:
    document.write_report(paths, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text())


def copied(tmp_path: Path, change: Any = None) -> Path:
    """A copy of a finished run, with another result."""
    path = tmp_path / "copy"
    shutil.copytree(runs.finished(), path)
    origin = json.loads((path / "origin.json").read_text())
    (path / "origin.json").write_text(json.dumps({**origin, "plan": str(runs.plan_file())}))
    if change is not None:
        result = json.loads((path / "result.json").read_text())
        change(result)
        (path / "result.json").write_text(json.dumps(result))
    return path


def test_the_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    run = runs.finished()
    page, result = written(tmp_path, run), json.loads((run / "result.json").read_text())
    task = TASKS.get("classification")
    for name in ("distilled", "control"):
        assert page.text.count(task.shown(result["summary"][name]["mean"])) >= 1
    assert task.shown(result["members"]["teacher"]["accuracy"]) in page.text
    assert f"{result['latency']['student']['median_ms']:.3f}" in page.text
    assert f"{result['parity']['images']:,} test images" in page.text
    assert result["plan"] in page.text


def test_a_number_that_is_wrong_would_be_seen(tmp_path: Path) -> None:
    def change(result: dict[str, Any]) -> None:
        result["arms"][0]["accuracy"] = result["summary"]["distilled"]["mean"] = 0.123456

    run = copied(tmp_path, change)
    (model,) = (one for one in told.of_run(run, "run").models if one.slot == "student")
    assert model.value == 0.123456
    assert "12.35%" in written(tmp_path, run).text
    assert "12.35%" not in written(tmp_path, runs.finished()).text


def test_a_verdict_is_about_what_is_exported_and_other_arms_stand_below(tmp_path: Path) -> None:
    plan, result = load_plan(runs.plan_file()), json.loads((runs.finished() / "result.json").read_text())
    task, (own,) = TASKS.get("classification"), result["differences"].values()
    for count in (2, 9):
        many = {"distilled": own, **{f"arm {n}": {**own, "beside": "distilled"} for n in range(count)}}
        found = {**result, "differences": many}
        told_of, listed = words.verdict(plan, found, task), words.differences(plan, found, task)
        assert told_of.count(" from distilled") == (2 if count == 2 else 0)
        assert "distillation is" in told_of
        assert len(listed) == (0 if count == 2 else 10)
    assert words.differences(plan, None, task) == ()


def test_distances_and_losses_of_large_numbers_are_written_out() -> None:
    """Of prices, say: the first and the last loss are no one number, and no distance has an exponent."""
    found = told.of_run(runs.finished(), "run")
    line = courses.Series("l1", "loss-1", (courses.Point(1, 71_334.0, 0, 9, 1), courses.Point(2, 71_262.0, 0, 9, 1)))
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    shown = Shown(295, "", "", None, 136_979.4, picture)
    beside = Beside("teacher", "student", 5, None, "", "images", apart=[shown])
    losses = (courses.Course("distilled", "main", (line,)),)
    page = Page(document.document([replace(found, losses=losses, details=Details("", beside=beside))]))
    assert {"71.33 k", "71.26 k", "distance 136,979"} <= {*re.findall(r"71\.\d\d k|distance [\d,]+", page.text)}


def test_what_is_measured_of_one_seed_says_of_which() -> None:
    found = told.of_run(runs.finished(), "run")
    for seeds, said in (([0, 1], "seed 0, the first one"), ([0], "")):
        page = parts.page_of(replace(found, plan=found.plan.changed(seeds=seeds), details=found.details or Details("")))
        assert page.measured.exported == said
    beside = Beside("teacher", "student", 5, 1.0, "accuracy", "images")
    shown = replace(found, plan=found.plan.changed(seeds=[0, 1]), details=Details("", beside=beside))
    assert "Of what is exported: seed 0, the first one." in document.document([shown])


def test_it_loads_nothing_and_its_references_hold(tmp_path: Path) -> None:
    page = written(tmp_path, runs.finished())
    assert is_offline(page)
    assert not is_offline(Page("<img src='http://example.org/x.png'>"))
    assert not is_offline(Page("<p onclick='x()'>"))
    assert len(page.ids) == len(set(page.ids))
    named = {
        part for _, attrs in page.elements for name in ("aria-labelledby",) for part in (attrs.get(name) or "").split()
    }
    named |= {str(attrs["href"])[1:] for tag, attrs in page.elements if tag == "a"}
    named |= {
        found for _, attrs in page.elements for found in re.findall(r"url\(#(.+?)\)", attrs.get("clip-path") or "")
    }
    assert named <= set(page.ids)
    (policy,) = (str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy
    assert "http" not in policy


def test_every_chart_has_a_title_and_says_what_it_shows(tmp_path: Path) -> None:
    page = written(tmp_path, runs.finished())
    drawn = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("aria-hidden") != "true"]
    assert len(drawn) >= 7  # three costs, a network, the metric, four stages
    assert all(attrs.get("role") == "img" and attrs.get("aria-labelledby") for attrs in drawn)


def test_what_strangers_call_their_things_stays_text(tmp_path: Path) -> None:
    plan = told.of_run(runs.finished(), "x").plan.model_dump(mode="json")
    plan["data"]["classes"] = [EVIL, *plan["data"]["classes"][1:]]
    plan["data"]["spec"] = f"npz:{EVIL}\"'.npz"
    plan["members"]["teacher"]["path"] = f"../{EVIL}.pt"
    for pair in plan["pairs"]:
        old = pair["teacher"]["path"]
        pair["teacher"]["path"] = pair["why"][0] = f'"{EVIL}{old}'
        for kept in plan["kept"]:
            kept["path"] = pair["teacher"]["path"] if kept["pair"] == pair["name"] else kept["path"]
    made = document.document([told.of_plan(Plan.model_validate(plan), f"{EVIL}&amp;")])
    page = Page(made)
    assert "<script" not in made
    assert is_offline(page)
    assert EVIL in page.text  # it is there to be read
    assert f"{EVIL}&amp;" in page.text


def test_what_was_measured_beside_the_result_is_shown(tmp_path: Path) -> None:
    page, data = written(tmp_path, runs.detailed()), json.loads((runs.detailed() / "details.json").read_text())
    assert is_offline(page)
    assert len(page.ids) == len(set(page.ids))
    pictures = [attrs for tag, attrs in page.elements if tag == "img"]
    assert len(pictures) == len(data["beside"]["apart"]) > 0
    assert all(attrs.get("alt") for attrs in pictures)
    assert f"for {data['beside']['agreement']:.2%}" in page.text
    assert f"after {data['similarity'][0]['after']:.2f}" in page.text
    assert data["fingerprint"] in page.text
    assert f"{data['beside']['classes'][0]['student']:.2%}" in page.text


def test_a_file_that_is_no_picture_is_not_shown(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.detailed(), run)
    data = json.loads((run / "details.json").read_text())
    for one, png in zip(data["beside"]["apart"], ("", "PHN2Zz4=", "A"), strict=False):
        one["png"] = png
    data["beside"]["apart"][4]["file"] = data["beside"]["apart"][4]["label"] = EVIL
    data["beside"]["agreement"] = None  # of answers that are numbers
    (run / "details.json").write_text(json.dumps(data))
    page = written(tmp_path, run)
    assert "and the teacher are compared by the distance of their answers" in page.text
    assert len([tag for tag, _ in page.elements if tag == "img"]) == len(data["beside"]["apart"]) - 3
    assert is_offline(page)
    assert EVIL in page.text


def test_runs_are_compared_on_one_page(tmp_path: Path) -> None:
    page = written(tmp_path, runs.finished(), copied(tmp_path))
    assert len(page.ids) == len(set(page.ids))
    assert page.text.count("What it reaches, and what it costs") == 2
    assert is_offline(page)


def test_runs_are_held_against_each_other_where_they_measured_on_the_same_images() -> None:
    run = replace(told.of_run(runs.finished(), "a"), details=None)
    one, same, other = (replace(run, name="b", details=Details("", fingerprint=said)) for said in ("x", "x", "y"))
    both = compared.compared([one, same])
    assert (both.sides[1].difference, both.remark) == ("+0.00 points", "")
    for pair, said in (([run, run], "Nothing says"), ([run, one], "Nothing says"), ([one, other], "These runs were")):
        found = compared.compared(pair)
        assert found.sides[1].difference == ""
        assert found.remark.startswith(said)
    assert one.result is not None
    arms = [{**arm, "seed": seed} for arm in one.result["arms"] for seed in (arm["seed"], 7)]
    longer = replace(same, result={**one.result, "arms": arms})
    assert compared.compared([one, longer]).sides[1].difference == "+0.00 points over 1 shared seed"


def test_an_arm_of_a_comparison_has_a_method_of_its_own() -> None:
    plan = load_plan(runs.plan_file())
    arm = plan.arm(plan.export.arm).changed(name="kd")
    several = plan.changed(arms=[arm], control=None, export=plan.export.changed(arm="kd"))
    assert (compared._method(plan), compared._method(several)) == (plan.method, "kd")


def test_teachers_of_several_runs_are_told_apart() -> None:
    run = told.of_run(runs.finished(), "a")
    (own,) = (one for one in run.models if one.slot == "teacher")
    weaker = tuple(replace(one, value=0.5) if one is own else one for one in run.models)
    told_apart = ["teacher of a, c", "teacher of b"]
    for reach, expected in ((run.models, ["teacher"]), (weaker, told_apart), ((), ["teacher"])):
        runs_of = [run, replace(run, name="b", models=reach), replace(run, name="c")]
        assert [one.name for one in compared._teachers(runs_of, "abc")] == expected
        charts = compared.compared(runs_of).charts
        assert all(name in str(charts[0]) for name in expected)


def test_runs_of_two_tasks_are_not_compared(tmp_path: Path) -> None:
    other = told.of_run(runs.finished(), "other")
    plan = other.plan.changed(task="regression", data=other.plan.data.changed(classes=[]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "of_run", lambda path, name: told.of_plan(plan if "b" in name else other.plan, name))
        with pytest.raises(InputError, match="it is about regression, and a about classification"):
            document.write_report([Path("a"), Path("b")], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("damage", ["result.json", "plan.json", "metrics.jsonl", "origin.json"])
def test_a_damaged_run_is_one_line_and_writes_nothing(tmp_path: Path, damage: str) -> None:
    run = copied(tmp_path)
    (run / damage).write_text('{"broken": ')
    done = jobs.call("report", run)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert not (run / "report.html").exists()


def test_the_command_that_repeats_a_run_is_one_that_a_shell_reads(tmp_path: Path) -> None:
    run = copied(tmp_path)
    page = written(tmp_path, run.rename(tmp_path / "my $(run)'s"))
    (said,) = re.findall(r"\bRun it again(cd .+)", page.text)
    assert shlex.split(said) == ["cd", str(tmp_path / "my $(run)'s")]


def test_the_command_that_repeats_a_run_permits_what_it_needs() -> None:
    plan = load_plan(runs.plan_file("seeds-fresh", from_file=False, repeats=2, align="project"))
    asks = shlex.split(words.again(plan, None))
    assert asks[asks.index("--allow-factory") :] == ["--allow-factory", "fxdistill_test_models"]
    assert "--force" not in asks
    asides = Settings(cuda_graphs="off", cache="off", evaluate_every=3, force=True).asides
    given = ["--cuda-graphs", "off", "--cache", "off", "--evaluate-every", "3", "--force"]
    assert shlex.split(words.again(plan, asides))[5:-2] == given
    assert not Settings(cache="kept").asides
    teacher = plan.members["teacher"].changed(trusted=True)
    own = plan.changed(members={**plan.members, "teacher": teacher}, data=plan.data.changed(spec="mydata:splits"))
    asks = shlex.split(words.again(own, None))
    assert asks[-5:] == ["--allow-factory", "fxdistill_test_models", "--allow-factory", "mydata", "--trust-code"]
    registered = plan.members["student"].changed(factory="torchvision.models:resnet18", kwargs={})
    usual = plan.changed(members={"teacher": plan.members["teacher"], "student": registered})
    assert "--allow-factory" not in words.again(usual, None)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "nowhere"):
        assert jobs.call("report", wrong).exit_code == 2
    assert jobs.call("report", runs.finished(), "-o", tmp_path).exit_code == 2
    assert jobs.call("report", runs.finished(), runs.finished()).exit_code == 2


def test_a_run_that_is_not_complete_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    run = copied(tmp_path)
    (run / "result.json").unlink()
    shutil.copy(runs.finished() / "metrics.jsonl", run)
    page = written(tmp_path, run)
    assert "not complete" in page.text
    assert "What it reaches" not in page.text


def test_a_plan_is_drawn_before_anything_trains(tmp_path: Path) -> None:
    assert jobs.done("show", runs.plan_file(), "--html", tmp_path / "plan.html").startswith("wrote ")
    page = Page((tmp_path / "plan.html").read_text())
    assert "Who learns what from whom" in page.text
    assert "How training went" not in page.text
    assert "None" not in page.text
    for pair in json.loads(runs.plan_file().read_text())["pairs"]:
        assert pair["teacher"]["path"] in page.text
        assert pair["student"]["path"] in page.text


def cascade_plan(tmp_path: Path) -> Plan:
    """A plan of a cascade."""
    folder = runs.workshop()
    jobs.done(
        "plan", folder / "teacher.pt", "--method", "cascade", "--data", "digits", "--epochs", 1, "--keep", 0.4,
        "--force", "-o", tmp_path / "cascade.json",
    )  # fmt: skip
    return load_plan(tmp_path / "cascade.json")


def test_a_cascade_is_told_by_its_levels_and_who_teaches_whom(tmp_path: Path) -> None:
    plan = cascade_plan(tmp_path)
    page = Page(document.document([told.of_plan(plan, "cascade")]))
    levels = [name for name, member in plan.members.items() if isinstance(member, Masked) and member.is_masked]
    assert len(levels) > 1
    assert "The levels of the cascade" in page.text
    assert all(name in page.text for name in levels)
    assert all(f"cross-entropy of {name} + 0.4 kd of {name}" in " ".join(page.text.split()) for name in levels)
    assert page.text.index("teacher teaches") < page.text.index("teaches student")
    assert compared._epochs(plan) == 2  # together with the other levels, and alone
    first = next(member for member in plan.members.values() if isinstance(member, Masked))
    assert all(layer.name in page.text for layer in first.layers)


def test_losses_of_several_members_are_told_apart(tmp_path: Path) -> None:
    plan = cascade_plan(tmp_path)
    arm = next(arm for arm in plan.arms if len(arm.trains) > 1)
    keys = [term.key for term in distinct(tuple(arm.stages))]
    record = {"name": arm.name, "stage": arm.stages[0].name, "seed": 0, "epoch": 1, "losses": dict.fromkeys(keys, 1.0)}
    (course,) = courses.losses_of(plan, [record])
    assert [series.name for series in course.series] == [
        f"{term.loss.name} of {term.loss.student}" for term in distinct(tuple(arm.stages))
    ]
    assert courses.kept_of(
        [{**record, "kept": {"level-0": {"a": 3}}}, {**record, "kept": {"level-0": {"a": 2}}}], 0
    ) == {"level-0": {"a": 2}}


def test_learning_rates_follow_one_another_over_the_stages_of_an_arm() -> None:
    run = RunDir(runs.finished())
    plan, records = run.plan(), runs.metrics(run.path)
    course = courses.rates_of(plan, records, told.slots_of(plan))
    assert course is not None
    assert [one.name for one in course.series] == ["distilled", "no distillation"]
    for series, name in zip(course.series, ("distilled", "control"), strict=True):
        own = [record["learning_rate"] for record in records if record["name"] == name]
        assert [(point.epoch, point.mean) for point in series.points] == list(enumerate(own, start=1))
    assert courses.rates_of(plan, [{"name": "distilled", "seed": 0}], told.slots_of(plan)) is None


def test_bands_are_the_range_over_seeds_and_lines_the_mean() -> None:
    (one, two) = courses.points({1: [1.0, 3.0], 2: [2.0]})
    assert one == (1, 2.0, 1.0, 3.0, 2)
    assert two == (2, 2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.1, 0.2], False),
        ([1e-4, 1.0], True),
        ([0.0, 1.0], False),
        ([5.0, 5.0], False),
        ([1.121, 1.129], False),
        ([42_816, 42_830], False),
        ([2.028770, 2.028801], False),
        ([-3.0], False),
    ],
)
def test_scales_hold_their_values_and_have_ticks(values: list[float], log: bool) -> None:
    made = chart.scale(values, 0, 100)
    assert made.log is log
    assert all(0 <= made(value) <= 100 for value in values)
    found = made.ticks(chart.short)
    assert len(found) >= 2
    assert all(-1e-6 <= tick.at <= 100.001 for tick in found)
    assert len({tick.label for tick in found}) == len(found)


@pytest.mark.parametrize(("values", "first"), [([0.9892, 0.9894], "98.92%"), ([0.2, 0.9], "20%")])
def test_shares_stay_shares_of_a_hundred_however_close_they_are(values: list[float], first: str) -> None:
    found = chart.scale(values, 0, 100).ticks(chart.metric_text(TASKS.get("classification")))
    assert found[0].label == first
    assert all(tick.label.endswith("%") for tick in found)


def test_labels_of_an_axis_fit_beside_it_and_numbers_that_are_one_have_none() -> None:
    found = chart.scale([71_200, 71_400], 0, 100).ticks(chart.short)
    assert all(len(tick.label) <= 8 for tick in found)
    assert "71.35 k" in {tick.label for tick in found}
    assert {tick.label for tick in chart.scale([1200, 8000], 0, 100).ticks(chart.short)} >= {"2,000", "8,000"}
    chart.scale([0.1, 0.1 + 1e-17], 0, 100).ticks(chart.short)


def test_what_teachers_reach_is_said_to_be_on_test_images_where_a_course_is_not() -> None:
    series = (courses.Series("distilled", "student", (courses.Point(1, 0.5, 0.4, 0.6, 2),)),)
    teacher = told.Model("teacher", "teacher", 0.95, 0.0, (0.95,), 10**6, 10**8, 3.0)
    for on, said in ((courses.ON_TEST, "teacher"), (courses.ON_VALIDATION, "teacher, test images")):
        made = chart.metric_chart(courses.Course("", "", series, on=on), TASKS.get("classification"), [teacher])
        assert [level.label for level in made.levels] == [said]


def test_bands_are_of_as_many_seeds_as_are_trained() -> None:
    found = told.of_run(runs.finished(), "run")
    for wanted, had, said in ((3, 1, "one of 3 seeds so far"), (3, 2, "up to 2 of 3 seeds"), (1, 1, "one seed, so")):
        plan = found.plan.changed(seeds=[*range(wanted)])
        line = courses.Series("kd", "loss-1", (courses.Point(1, 0.5, 0.4, 0.6, had),))
        losses = (courses.Course("distilled", "main", (line,)),)
        assert said in parts.page_of(replace(found, plan=plan, result=None, losses=losses)).bands


def test_twenty_arms_stay_inside_of_what_they_are_drawn_in() -> None:
    """A row of squares in its box, the losses between two boxes, and no label on another one."""
    found = told.of_run(runs.finished(), "run")
    layers = {name: {tap.path: "runs" for pair in found.plan.pairs for tap in (pair.teacher, pair.student)}
              for name in ("teacher", "student")}  # fmt: skip
    many = [Runs("distilled", f"stage {number}", layers) for number in range(34)]
    losses = ["kd", "dist", "kd-standardized", "dkd"]
    plan = found.plan
    main = next(stage for stage in plan.arms[0].stages if stage.name == "main")
    terms = [main.losses[0], *(main.losses[-1].changed(loss=loss, args={}) for loss in losses)]
    arms = [plan.arms[0].changed(stages=[*plan.arms[0].stages[:-1], main.changed(losses=terms)]), *plan.arms[1:]]
    (drawing,) = network.drawings(
        plan.model_copy(update={"arms": arms}), found.outline.layers, many, {"teacher": "teacher", "student": "student"}
    )  # fmt: skip
    assert [len(box.squares) for box in drawing.boxes if box.tapped] == [34] * 2 * len(plan.pairs)
    for box in drawing.boxes:
        assert all(box.x < square.x and square.x + drawing.wide < box.x + box.width - 40 for square in box.squares)
    (between,) = (link for link in drawing.links if not link.pair)
    assert between.label == "4 losses"
    assert all(loss in between.told for loss in losses)
    models = [told.Model(f"student, arm {n}", "student", 0.9, 0.0, (0.9,), 1000, 5000, 0.1) for n in range(20)]
    teacher = told.Model("teacher", "teacher", 0.95, 0.0, (0.95,), 10**6, 10**8, 3.0)
    made = chart.scatter([*models, teacher], TASKS.get("classification"), "macs")
    assert made is not None
    places = sorted(dot.label_y for dot in made.dots if dot.label and dot.slot == "student")
    assert 5 < len(places) < 20
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(places) if a != b)
    assert {dot.name for dot in made.dots} == {model.name for model in (*models, teacher)}


def test_labels_of_models_do_not_lie_on_each_other() -> None:
    task = TASKS.get("classification")
    models = [
        told.Model(f"student number {n}", "student", 0.9 + n * 1e-4, 0.0, (0.9,), 1000, 5000, 0.1) for n in range(6)
    ]
    made = chart.scatter(
        [*models, told.Model("teacher", "teacher", 0.95, 0.0, (0.95,), 10**6, 10**8, 3.0)], task, "macs"
    )
    assert made is not None
    ys = sorted(dot.label_y for dot in made.dots if dot.slot == "student")
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(ys))
    assert all(0 <= dot.label_x <= chart.WIDTH for dot in made.dots)


def test_a_label_longer_than_a_chart_is_cut_and_its_point_says_it_whole() -> None:
    name = "runs/2026-11/resnet50-to-resnet18-indistill+kd-lr0.003-batch128-five-seeds"
    pair = [told.Model(n, "student", v, 0.0, (v,), 1000, m, 0.1) for n, v, m in ((name, 0.5, 10**6), ("b", 0.9, 5000))]
    made = chart.scatter(pair, TASKS.get("classification"), "macs")
    assert made is not None
    (dot,) = (one for one in made.dots if one.name == name)
    assert name.startswith(dot.label.removesuffix("…"))
    assert dot.label_x - len(dot.label) * 5.9 * (dot.anchor == "end") >= 0
    assert dot.label_x + len(dot.label) * 5.9 * (dot.anchor == "start") <= chart.WIDTH


def test_points_that_lie_on_each_other_are_all_seen() -> None:
    task = TASKS.get("classification")
    models = [
        told.Model(name, slot, value, 0.0, (value,), 1000, macs, 0.1)
        for name, slot, value, macs in (
            ("teacher", "teacher", 0.9, 10**6), ("student", "student", 0.5, 5000), ("control", "control", 0.501, 5000),
            ("third", "other-1", 0.5, 5000),
        )
    ]  # fmt: skip
    made = chart.scatter(models, task, "macs")
    assert made is not None
    drawn = [(dot.label, dot.radius) for dot in made.dots]  # in the order in which they are painted
    assert drawn == [("third", 11.0), ("control", 8.0), ("student", 5.0), ("teacher", 5.0)]


def test_a_label_at_the_end_of_an_axis_stays_inside() -> None:
    drawn: Any = document._environment().get_template("charts.jinja").module
    ticks = (chart.Tick(100.0, "0.01"), chart.Tick(chart.WIDTH - 14, "0.0175"))
    text = str(drawn.chart(chart.Chart("title", "told", "ms", "accuracy", ticks, ()), "c"))
    places = {label: float(x) for x, label in re.findall(r'x="([\d.]+)"[^>]*text-anchor="middle">([\d.]+)<', text)}
    assert places["0.01"] == 100
    assert 330 < places["0.0175"] <= chart.WIDTH - 3.1 * len("0.0175")  # half of it, in a font of 11 pixels


def test_pairs_of_levels_are_drawn_at_the_layers_that_their_gates_stand_behind() -> None:
    """Hints of each level, and those of a warm-up, of which some are of the same two layers."""
    teacher = models.resnet(widths=[4, 8, 16], blocks=1, classes=10, in_channels=1).eval()
    how = Cascade(keep=0.5, assistants=1, hints=1e-3)
    options = fxdistill.Options(input_shape=(1, 1, 16, 16), method="indistill+cascade", cascade=how)
    plan = fxdistill.compile(teacher, None, options)
    made = parts.page_of(told.of_plan(plan, "cascade", outline(plan, {"teacher": teacher}))).networks
    assert {(one.teacher, one.student) for one in made} >= {("level-1", "level-0"), ("teacher", "level-1")}
    for drawing in made:
        places = [link.y for link in drawing.links]
        assert len(set(places)) == len(places), (drawing.teacher, drawing.student)
        tapped = [box.label for box in drawing.boxes if box.tapped]
        assert len(tapped) == 2 * sum(link.pair for link in drawing.links)
        between = (drawing.teacher, drawing.student)
        pairs = {pair.name for pair in plan.pairs if (pair.teacher.member, pair.student.member) == between}
        said = [text.partition(": ")[0] for link in drawing.links if link.pair for text in link.told.split("; ")]
        assert sorted(pairs) == sorted(said)
        assert not any("gate" in label for label in tapped)

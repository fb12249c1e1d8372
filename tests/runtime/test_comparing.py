"""Two models on the same images: what is compared, and what is said of it to people and machines."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import fxdistill
from fxdistill import files
from fxdistill.cli.commands import app
from fxdistill.data.dataset import Split, from_splits
from fxdistill.errors import DataError, InputError
from fxdistill.measure import onnx_file
from fxdistill.measure.comparison import Comparison, Looking, compared
from fxdistill.measure.paired import BOOTSTRAP, Paired
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from fxdistill.plan.schema import Division
from fxdistill.preprocessing import Preprocessing
from fxdistill.report.compared import as_json, view
from fxdistill.runtime.deployment import comparing, deploy, finding
from fxdistill.runtime.run.directory import RunDir
from fxdistill.tasks import NO_LABEL, TASKS, Task
from tests import runs
from tests.measure.test_model import dataset
from tests.plugins import Add
from tests.report.drawing import drawn
from tests.test_seams import TASK as ORDINAL

RESNET = "fxdistill.models:resnet"
KEYS = [
    "task", "metric", "higher_is_better", "images", "labelled", "models", "difference", "agreement", "of_class",
    "classes", "widest",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


def call(*words: str, columns: int = 100) -> str:
    done = CliRunner().invoke(app, ["compare", *words], env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def told(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(*words, "--json"))
    assert list(found) == KEYS
    return found


def test_a_run_and_a_file_on_the_data_of_the_run() -> None:
    run, teacher = str(runs.finished()), str(runs.workshop() / "teacher.pt")
    allow = ("--allow-factory", runs.ALLOW[0])
    found = told(run, teacher, *allow)
    assert [one["model"] for one in found["models"]] == [run, teacher]
    result = json.loads((runs.finished() / "result.json").read_text())
    assert found["models"][0]["value"] == pytest.approx(result["arms"][0]["accuracy"], abs=1e-6)
    assert found["models"][1]["value"] == pytest.approx(result["members"]["teacher"]["accuracy"], abs=1e-6)
    apart = found["difference"]
    assert apart["value"] == pytest.approx(found["models"][1]["value"] - found["models"][0]["value"])
    assert apart["low"] < apart["value"] < apart["high"]
    one, other = apart["right_alone"]
    assert apart["value"] * 537 == pytest.approx(other - one)
    assert (found["images"], found["labelled"], found["of_class"]) == (537, 537, "accuracy")
    changes = [abs(each["difference"]) for each in found["classes"]]
    assert changes == sorted(changes, reverse=True)
    assert sum(each["difference"] * each["count"] for each in found["classes"]) == pytest.approx(other - one)
    back = told(teacher, run, *allow)
    assert back["difference"]["value"] == pytest.approx(-apart["value"])
    assert back["agreement"]["value"] == found["agreement"]["value"]
    files = told(teacher, str(runs.finished() / "student.onnx"), "--data", "digits")
    assert files["models"][1]["value"] == pytest.approx(found["models"][0]["value"], abs=1e-6)


def test_a_file_and_its_export_are_the_same(tmp_path: Path) -> None:
    runs.plan_file()
    teacher = str(runs.workshop() / "teacher.pt")
    deploy.export(teacher, tmp_path / "t.onnx", data="digits")
    found = told(teacher, str(tmp_path / "t.onnx"), "--data", "digits", "--images", "3")
    assert (found["difference"]["value"], found["agreement"]["value"]) == (0, 1)
    assert 0 < found["agreement"]["mean_distance"] < 1e-5
    assert len(found["widest"]) == 3


def test_what_is_no_number_is_null_in_the_object() -> None:
    runs.plan_file()
    found = finding.find(str(runs.workshop() / "teacher.pt"), data="digits")
    made = Comparison(2, 2, Paired((math.nan, 1.0), math.nan, math.inf, ""), 1.0, math.nan)
    text = json.dumps(as_json(made, ["a", "b"], [found, found]), allow_nan=False)
    assert [json.loads(text)["difference"][end] for end in ("value", "low", "high")] == [None, None, None]


class Fixed(nn.Module):
    """Answers the images, one white pixel each, with the rows of a table."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        assert not self.training
        return x.flatten(1) @ self.rows


def test_one_image_tells_no_interval() -> None:
    runs.plan_file()
    found = finding.find(str(runs.workshop() / "teacher.pt"), data="digits")
    console, text = drawn(terminal=False)
    console.print(
        view(Comparison(1, 1, Paired((0.5, 0.5), None, None, BOOTSTRAP), 1.0, 0.0), ["a", "b"], [found, found])
    )
    assert "on 1 image with a label" in text.getvalue()
    assert "+0.00 points (one image, which tells no interval)" in text.getvalue()


@pytest.mark.parametrize("task", ["retrieval", "features"])
def test_neighbours_are_sought_among_all_images_whatever_a_batch_has(task: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (40,), generator=generator)
    images = from_splits(
        {part: Split(torch.rand(40, 1, 2, 2, generator=generator), labels) for part in ("train", "test")},
        ["a", "b", "c"], where="here", task=TASKS.get(task),
    )  # fmt: skip
    first, second = (Looking(Fixed(torch.randn(4, 4, generator=generator)), images) for _ in range(2))
    made = [compared(first, second, TASKS.get(task), batch_size=size) for size in (5, 16, 40)]
    assert len({one.agreement for one in made}) == 1
    assert made[0].agreement is not None
    assert made[0].agreement < 1
    assert [one.distance for one in made] == pytest.approx([made[-1].distance] * 3)
    assert [[each.index for each in one.widest] for one in made] == [[each.index for each in made[-1].widest]] * 3


def test_by_hand() -> None:
    images, one = dataset(0, 1, 2, NO_LABEL), torch.eye(4) * 5
    other = one.clone()
    other[1] = one[2]  # the second image: 2 instead of 1
    other[2] = one[2] / 50  # the third: as before, but hardly
    first, second = Fixed(one), Fixed(other).train()
    found = compared(Looking(first, images), Looking(second, images), TASKS.get("classification"), batch_size=3)
    assert second.training
    assert (found.images, found.labelled, found.agreement) == (4, 3, 0.75)
    assert found.difference is not None
    assert list(found.difference.values) == pytest.approx([1, 2 / 3])
    largest = found.classes[0]
    assert (largest.name, largest.count, largest.values) == ("b", 1, (1, 0))
    assert [change.name for change in found.classes][1:3] == ["a", "c"]
    assert found.classes[3].name == "d"  # nothing tells of it
    assert [(one.index, one.label, one.says) for one in found.widest] == [(1, "b", ("b", "c")), (2, "c", ("c", "c"))]
    probability = float(torch.tensor([0.1, 0, 0, 0]).softmax(0)[0])
    assert found.widest[1].distance == pytest.approx(float((one[2] + 0.0).softmax(0)[2]) - probability)
    assert found.distance == pytest.approx(sum(each.distance for each in found.widest) / 4)


def test_another_class_counts_for_more_than_another_probability() -> None:
    images, one = dataset(0, 1, 2, 3), torch.eye(4) * 5
    assert isinstance(images.test, Split)
    images = replace(images, test=replace(images.test, files=("caf\udce9.png", "b", "c", "d")))  # the first in Latin-1
    other = one.clone()
    one[0] = torch.tensor([0.2, 0.1, 0, 0])
    other[0] = torch.tensor([0.1, 0.2, 0, 0])
    other[3] = one[3] / 50
    found = compared(Looking(Fixed(one), images), Looking(Fixed(other), images), TASKS.get("classification"))
    assert [each.index for each in found.widest] == [0, 3]
    assert found.widest[0].distance < found.widest[1].distance
    assert [each.file for each in found.widest] == ["caf\\udce9.png", "d"]


def test_images_without_labels_are_compared_all_the_same() -> None:
    images = dataset(*[NO_LABEL] * 4)
    one, other = Fixed(torch.eye(4)), Fixed(torch.eye(4).flip(0))
    found = compared(Looking(one, images), Looking(other, images), TASKS.get("classification"), most=2)
    assert (found.difference, found.classes, found.labelled, found.agreement) == (None, [], 0, 0)
    assert [each.index for each in found.widest] == [0, 1]


def test_images_without_labels_from_files_have_no_names_of_classes(tmp_path: Path) -> None:
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        for number in range(3):
            pixels = np.full((32, 32, 3), 80 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / place / f"{place if number else 'a'}{number}.png")
    models = [net(tmp_path / f"{size}.pt", size) for size in (16, 24)]
    found = told(*models, "--data", f"images:{tmp_path / 'one'}")
    assert (found["images"], found["labelled"], found["classes"]) == (3, 0, [])
    assert {said for each in found["widest"] for said in each["says"]} <= {"0", "1"}
    assert [Path(each["file"]).name for each in sorted(found["widest"], key=lambda one: one["index"])] == [
        "a0.png", "one1.png", "one2.png"
    ]  # fmt: skip
    learnt = finding.find(str(runs.finished()), data=f"images:{tmp_path / 'one'}", allow=runs.ALLOW).dataset
    assert learnt is not None
    assert (len(learnt.classes), learnt.has_labels("test")) == (10, False)  # those that the run says
    data = [finding.find(models[0], data=f"images:{tmp_path / place}").dataset for place in ("one", "other")]
    first, second = (Looking(finding.find(models[0]).module, one) for one in data if one is not None)
    with pytest.raises(DataError, match="on other images"):  # they have as many, and no labels either
        compared(first, second, TASKS.get("classification"))


def test_other_images_are_refused() -> None:
    one = Fixed(torch.eye(4))
    for labels in ((0, 1, 2), (0, 1, 2, 0)):
        with pytest.raises(DataError, match="on other images"):
            compared(Looking(one, dataset(0, 1, 2, 3)), Looking(one, dataset(*labels)), TASKS.get("classification"))
    same = dataset(0, 1, 2, 3)
    first, second = (
        Looking(one, replace(same, test=Split(next(same.test.read([torch.arange(4)])), same.test.labels, files)))
        for files in (tuple("abcd"), tuple("abce"))
    )
    with pytest.raises(DataError, match="on other images"):  # whose labels are the same
        compared(first, second, TASKS.get("classification"))


def test_runs_that_were_tested_on_other_parts_of_their_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data that is sorted by classes, every seed sets as many of each aside: the labels are the same."""
    plan = RunDir.existing(runs.finished()).plan()

    def existing(path: Path) -> SimpleNamespace:
        test = Division(share=0.2, seed=int(path.name))
        return SimpleNamespace(plan=lambda: plan.changed(data=plan.data.changed(test=test)), base=Path())

    monkeypatch.setattr(RunDir, "existing", existing)
    monkeypatch.setattr(files, "is_folder", lambda model: model.isdecimal())
    monkeypatch.setattr(finding, "find", lambda model, **_: pytest.fail(f"{model} is loaded"))
    with pytest.raises(InputError, match="other images aside to test on than that of 1") as caught:
        comparing.found_together(["1", "2"])
    assert caught.value.where == "2"
    for models, data in ((["1", "1"], None), (["1", "2"], "digits")):
        with pytest.raises(pytest.fail.Exception, match="1 is loaded"):
            comparing.found_together(models, data=data)


def test_runs_of_other_data_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the same images with and without noise: number, names and labels are the same."""
    plan = RunDir.existing(runs.finished()).plan()
    (tmp_path / "1").mkdir()
    (tmp_path / "2").symlink_to(tmp_path / "1")

    def existing(path: Path) -> SimpleNamespace:
        spec, base = {"1": ("npz:a.npz", "1"), "2": ("npz:a.npz", "2"), "3": ("npz:b.npz", "1")}[path.name]
        return SimpleNamespace(plan=lambda: plan.changed(data=plan.data.changed(spec=spec)), base=tmp_path / base)

    monkeypatch.setattr(RunDir, "existing", existing)
    monkeypatch.setattr(files, "is_folder", lambda model: model.isdecimal())
    monkeypatch.setattr(finding, "find", lambda model, **_: pytest.fail(f"{model} is loaded"))
    with pytest.raises(InputError, match=r"b.npz, and that of 1 is npz:.*a.npz") as caught:
        comparing.found_together(["1", "3"])
    assert caught.value.where == "3"
    for other, data in (("2", None), ("3", "digits")):
        with pytest.raises(pytest.fail.Exception, match="1 is loaded"):
            comparing.found_together(["1", other], data=data)


def folder(place: Path) -> str:
    chance = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for split, count in (("train", 2), ("test", 3)):
            (place / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(256, size=(20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / split / name / f"{number}.png")
    return f"imagefolder:{place}"


def net(place: Path, size: int) -> str:
    torch.manual_seed(size)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    own = Preprocessing(size=[size, size], mean=[0.5] * 3, std=[0.1] * 3)
    save(model, place, input_shape=(1, 3, size, size), preprocessing=own)
    return str(place)


def test_models_that_read_two_sizes_and_the_files_that_they_differ_on(tmp_path: Path) -> None:
    data = folder(tmp_path / "images")
    found = told(net(tmp_path / "a.pt", 8), net(tmp_path / "b.pt", 16), "--data", data, "--images", "6")
    assert [one["reads"][:5] for one in found["models"]] == ["8x8; ", "16x16"]
    files = [one["file"] for one in found["widest"]]
    assert sorted(files) == sorted(str(path) for path in (tmp_path / "images" / "test").rglob("*.png"))
    for one in found["widest"]:
        assert Path(one["file"]).parent.name == one["label"]
        assert one["file"] == sorted(files)[one["index"]]
        assert set(one["says"]) <= {"cat", "dog"}


@pytest.mark.parametrize("task", ["segmentation", "multilabel", "regression", "features", "retrieval"])
def test_every_task_is_compared(tmp_path: Path, task: str) -> None:
    chance = np.random.default_rng(0)
    images = chance.integers(256, size=(12, 3, 8, 8), dtype=np.uint8)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten()) if task != "segmentation" else ()
    names = []
    for name in ("a.pt", "b.pt"):
        torch.manual_seed(ord(name[0]))
        save(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), *pooled), tmp_path / name, input_shape=(1, 3, 8, 8))
        names.append(str(tmp_path / name))
    labels: Any = {
        "segmentation": chance.integers(3, size=(12, 8, 8)), "multilabel": chance.integers(2, size=(12, 3)),
        "regression": chance.random((12, 3), dtype=np.float32),
    }.get(task, np.arange(12) % 3)  # fmt: skip
    file = tmp_path / "data.npz"
    np.savez(file, train_images=images, train_labels=labels, test_images=images[:6], test_labels=labels[:6])
    words = [*names, "--data", f"npz:{file}", "--task", task]
    found = told(*words)
    reached = [deploy.evaluate(name, f"npz:{file}", task=task)[found["metric"]] for name in names]
    assert [one["value"] for one in found["models"]] == pytest.approx(reached, rel=1e-5)
    assert found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"]
    assert found["difference"]["p"] is None
    assert found["agreement"]["mean_distance"] > 0
    assert bool(found["classes"]) is (task != "regression")
    assert all(one["says"] is None for one in found["widest"])
    said = call(*words, columns=60)
    assert f"{found['metric']} " in said
    assert ("points" in said) is (task != "regression")


def test_it_reads_in_a_narrow_terminal(tmp_path: Path) -> None:
    words = [net(tmp_path / "a.pt", 8), net(tmp_path / "b.pt", 16), "--data", folder(tmp_path / "images")]
    for columns in (40, 60):
        lines = call(*words, columns=columns).splitlines()
        assert max(map(len, lines)) <= columns
        assert any(line.startswith(("  0  ", "  1  ")) for line in lines)


def test_each_model_is_read_as_is_said_of_it(tmp_path: Path) -> None:
    data, model = folder(tmp_path / "images"), net(tmp_path / "m.pt", 16)
    found = told(model, model, "--data", data, "--size", "b=8", "--std", "0.2,0.2,0.2", "--mean", "0.4,0.4,0.4")
    reads = [one["reads"] for one in found["models"]]
    assert reads[0].startswith("16x16 (")
    assert reads[1].startswith("8x8 (--size)")
    assert all("mean 0.4 0.4 0.4 std 0.2 0.2 0.2 (--mean, --std)" in one for one in reads)


def test_state_dicts_are_built_by_a_factory_each(tmp_path: Path) -> None:
    files = {}
    for name, width in (("a", 8), ("b", 16)):
        again = RESNET, {"widths": [width], "blocks": 1, "classes": 10}
        made = build(*again, seed=0)
        save(made, tmp_path / f"{name}.pt", input_shape=(1, 1, 8, 8))
        both = {"ema": made.state_dict(), "model": build(*again, seed=1).state_dict()}
        turned = dict(zip(both, reversed(both.values()), strict=True))
        torch.save(both if name == "a" else turned, tmp_path / f"{name}-s.pt")
        files[name] = (str(tmp_path / f"{name}.pt"), str(tmp_path / f"{name}-s.pt"))
    factory = (
        "--factory",
        "a=fxdistill.models:resnet?widths=[8]",
        "--factory",
        "b=fxdistill.models:resnet?widths=[16]",
    )
    more = (
        "--factory-arg",
        "classes=10",
        "--factory-arg",
        "a=blocks=1",
        "--factory-arg",
        "b=blocks=1",
        "--entry",
        "a=ema",
        "--entry",
        "model",
    )
    states, bundles = ((files["a"][place], files["b"][place]) for place in (1, 0))
    usual = ("--data", "digits", "--input", "1x1x8x8")
    one, other = told(*states, *usual, *factory, *more), told(*bundles, *usual)
    for key in ("difference", "agreement", "classes"):
        assert one[key] == other[key]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    runs.plan_file()
    teacher = str(runs.workshop() / "teacher.pt")
    for words, what in (
        ((teacher, teacher, "--data", "digits"), "named twice"),
        ((teacher, teacher, "--data", "digits", "--size", "8"), "named twice"),
        ((teacher, "m:x", "--data", "digits", "--size", "c=8"), "write a= or b= before the value"),
        (
            (teacher, str(runs.finished()), "--factory", "b=fxdistill.models:resnet"),
            "a run says itself what its models are",
        ),
        ((teacher, str(runs.workshop() / "student.pt"), "--allow-factory", runs.ALLOW[0]), "no data to evaluate on"),
        ((teacher, str(tmp_path / "none.onnx"), "--data", "digits"), "no such file"),
        ((teacher, net(tmp_path / "a.pt", 8), "--data", "digits"), f"where: {tmp_path / 'a.pt'}, "),
    ):
        done = CliRunner().invoke(app, ["compare", *words])
        assert (done.exit_code, what in done.output) == (2, True), done.output
    deploy.export(teacher, tmp_path / "t.onnx", data="digits", task="retrieval")
    with pytest.raises(InputError, match="the first for one class an image"):
        comparing.found_together([teacher, str(tmp_path / "t.onnx")], data="digits")


def test_a_task_that_counts_no_single_images_leaves_out_what_rests_on_them(add: Add) -> None:
    add(TASKS, "ordinal", ORDINAL.replace('"focal"', '"cross-entropy"').replace('"f1"', '"f1"\n    of_class = "F1"', 1))
    runs.plan_file()
    teacher, other = str(runs.workshop() / "teacher.pt"), str(runs.finished() / "student.pt")
    usual = ("--data", "digits", "--allow-factory", runs.ALLOW[0])
    how = (*usual, "--task", "ordinal")
    found = told(teacher, other, *how)
    assert (found["labelled"], found["difference"], found["classes"]) == (537, None, [])
    assert found["agreement"]["value"] == told(teacher, other, *usual)["agreement"]["value"]
    assert len(found["widest"]) == 10
    assert all(one["says"] is None for one in found["widest"])  # what it says of an image is no class
    assert "is not known: the task does not say what a model reaches image by image" in call(
        teacher, other, *how, columns=400
    )
    done = CliRunner().invoke(app, ["eval", teacher, *how, "--per-class"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the task does not say what a model reaches image by image")
    assert "f1 " in CliRunner().invoke(app, ["eval", teacher, *how]).output


def test_images_that_get_other_classes_come_first_whatever_the_distance(add: Add) -> None:
    more = "    def says(self, output):\n        return output.argmax(1)\n\nTASK"
    add(TASKS, "ordinal", ORDINAL.replace("TASK", more, 1))
    task = TASKS.get("ordinal")
    assert type(task).distance is Task.distance  # of logits, which ends nowhere
    ours = torch.tensor([[9.0, 0, 0, 0], [0.6, 0.4, 0, 0], [1.0, 0, 0, 0], [0.0] * 4])
    theirs = torch.tensor([[50.0, 0, 0, 0], [0.4, 0.6, 0, 0], [1.0, 0, 0, 0], [0.0] * 4])
    images = dataset(0, 1, 2)
    made = compared(Looking(Fixed(ours), images), Looking(Fixed(theirs), images), task)
    assert [(one.index, one.says) for one in made.widest] == [(1, ("a", "b")), (0, ("a", "a"))]


def test_from_python_the_same_is_compared(tmp_path: Path) -> None:
    runs.plan_file()
    teacher = str(runs.workshop() / "teacher.pt")
    module = fxdistill.load(fxdistill.parse_source(teacher)).module
    other = build("fxdistill.models:convnet", {"widths": [4], "in_channels": 1, "image_size": 8}, seed=1)
    made = fxdistill.compare(module, other, "digits", images=3)
    by_file = fxdistill.compare(teacher, other, "digits", images=3)
    assert made == by_file
    assert made.difference is not None
    reached = [fxdistill.evaluate(one, "digits")["accuracy"] for one in (teacher, other)]
    assert made.difference.values == pytest.approx(reached)
    assert len(made.widest) == 3
    with pytest.raises(InputError, match="there is no data to evaluate on") as refused:
        fxdistill.compare(module, other, input_shape=(1, 1, 8, 8))
    assert refused.value.where == type(module).__name__


def test_a_module_of_a_name_that_a_run_has_is_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.finished()
    monkeypatch.chdir(run.parent)
    module = fxdistill.load(fxdistill.parse_source(str(runs.workshop() / "teacher.pt"))).module
    named = type(run.name, (nn.Sequential,), {})(module)
    assert fxdistill.compare(run.name, named, allow=runs.ALLOW).images > 0

"""Data as users have it, planned and run end to end: without labels, with some, to validate on, as one split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fxdistill.data.batches import batches
from fxdistill.data.load import load as load_data
from fxdistill.measure.model import metrics
from fxdistill.modelfiles.load import load as load_model
from fxdistill.modelfiles.source import parse_source
from fxdistill.plan.file import load
from fxdistill.preprocessing import Reading
from tests import jobs, runs

pytestmark = pytest.mark.usefixtures("few_digits")

RANDOM = np.random.default_rng(2)
TEACHER, STUDENT = {"widths": [8, 16], "outputs": 4}, {"outputs": 4}


def pictures(root: Path, count: int, *, classes: int = 0) -> None:
    """Image files of 8x8, in the folders of so many classes."""
    for index in range(count):
        folder = root / f"c{index % classes}" if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{index:03}.png")


@pytest.mark.parametrize("method", ["indistill", "pkt"])
def test_a_student_learns_from_images_without_labels(tmp_path: Path, method: str) -> None:
    pictures(tmp_path / "photos", 60)
    plan = jobs.planned(tmp_path, TEACHER, STUDENT, "--data", f"images:{tmp_path / 'photos'}", "--method", method)
    assert not plan.data.labelled
    assert plan.control is None
    assert "labels" not in str([term.loss for stage in plan.arm("distilled").stages for term in stage.losses])
    assert {term.loss for stage in plan.arm("distilled").stages for term in stage.losses} <= {"mse", "kd", "pkt"}
    assert (plan.data.test is not None, plan.data.train_size) == (True, 48)
    assert {"no-labels", "held-out"} <= {remark.code for remark in plan.diagnostics}
    result = jobs.ran(tmp_path)
    assert result["summary"] == {}
    assert result["members"]["teacher"] == {}
    assert result["parity"]["images"] == 12
    assert "nothing was measured on them" in jobs.done("show", tmp_path / "run").replace("\n", " ")
    refused = jobs.call("eval", tmp_path / "run", *jobs.ALLOW)
    assert refused.exit_code == 2
    assert "the images have no labels, so that nothing can be measured on them" in refused.output.replace("\n", " ")
    content = json.loads((tmp_path / "plan.json").read_text())
    content["arms"][0]["stages"][-1]["losses"].append({"loss": "cross-entropy"})
    (tmp_path / "plan.json").write_text(json.dumps(content))
    refused = jobs.call("run", tmp_path / "plan.json", "-o", tmp_path / "again", *jobs.ALLOW)
    assert refused.exit_code == 2
    assert "which reads labels, and the data has none" in refused.output.replace("\n", " ")


def test_some_images_without_labels_and_labels_to_test_on(tmp_path: Path) -> None:
    labels = RANDOM.integers(4, size=96)
    labels[:40] = -1
    labels[90:] = -100
    spec = jobs.arrays(tmp_path / "some.npz", labels)
    plan = jobs.planned(tmp_path, TEACHER, STUDENT, "--data", spec, "--method", "kd")
    assert plan.data.labelled
    said = [remark.why for remark in plan.diagnostics if remark.code == "no-labels"]
    assert [why.split(" images")[0] for why in said] == ["40 of 64", "6 of 32"]
    jobs.ran(tmp_path)
    assert "on 26 test images" in jobs.done("eval", tmp_path / "run", *jobs.ALLOW)


def test_the_test_split_is_measured_for_the_last_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    measure = metrics

    def noted(module: Any, dataset: Any, *args: Any, on: str = "test", **kwargs: Any) -> dict[str, float]:
        seen.append((on, len(dataset.split(on))))
        return measure(module, dataset, *args, on=on, **kwargs)

    monkeypatch.setattr("fxdistill.runtime.run.bench.metrics", noted)
    spec = jobs.arrays(tmp_path / "all.npz", np.arange(96) % 4)
    plan = jobs.planned(tmp_path, TEACHER, STUDENT, "--data", spec, "--method", "kd", "--val", "0.25", "--seed", "3")
    assert plan.data.val is not None
    assert (plan.data.val.share, plan.data.val.seed, plan.data.train_size) == (0.25, 3, 48)
    result = jobs.ran(tmp_path)
    # the teacher is watched, an epoch of each arm; each arm's record and the teacher's are the last line's
    assert seen == [("val", 16), ("val", 16), ("test", 32), ("val", 16), ("test", 32), ("test", 32)]
    assert all(line["split"] == "val" for line in runs.metrics(tmp_path / "run"))
    own = jobs.done("eval", tmp_path / "run", *jobs.ALLOW)
    assert f"accuracy {result['arms'][0]['accuracy']:.2%} on 32 test images" in own


def test_folders_of_one_split_are_divided_to_train_and_whole_to_measure(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 60, classes=4)
    spec = f"imagefolder:{tmp_path / 'own'}"
    plan = jobs.planned(tmp_path, TEACHER, STUDENT, "--data", spec, "--method", "kd")
    assert plan.data.test is not None
    assert plan.data.train_size == 48
    result = jobs.ran(tmp_path)
    assert result["parity"]["images"] == 12
    # 12 that nothing was trained on are what the run's own data is; as other data, all are there to measure on
    assert "on 12 test images" in jobs.done("eval", tmp_path / "run", *jobs.ALLOW)
    assert "on 60 test images" in jobs.done("eval", tmp_path / "run", "--data", spec, *jobs.ALLOW)
    assert "on 60 test images" in jobs.done("eval", tmp_path / "teacher.pt", "--data", spec, *jobs.ALLOW)


_OWN = """
import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

class Pictures(Dataset):
    classes = ["a", "b", "c", "d"]
    def __init__(self, count, seed):
        self.count, self.seed = count, seed
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        values = np.random.default_rng((self.seed, index)).integers(0, 256, (9, 8 + index % 3), dtype=np.uint8)
        return Image.fromarray(values), None if index % 5 == 0 else index % 4

def pair():
    return Pictures(40, 0), DataLoader(Pictures(20, 1), batch_size=4)
"""


def test_a_torch_data_set_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_pictures_for_test.py").write_text(_OWN)
    allowed = ("--allow-factory", "own_pictures_for_test")
    spec = ("--data", "own_pictures_for_test:pair", *allowed)
    plan = jobs.planned(tmp_path, TEACHER, STUDENT, *spec, "--method", "kd", "--val", "0.2")
    assert plan.data.classes == ["a", "b", "c", "d"]
    assert plan.data.train_size == 32
    assert [remark.code for remark in plan.diagnostics if remark.code != "random-weights"][:1] == ["data-loader"]
    result = jobs.ran(tmp_path, *allowed)
    assert result["parity"]["images"] == 20
    assert "on 16 test images" in jobs.done("eval", tmp_path / "run", *jobs.ALLOW, *allowed)


def test_retrieval_does_not_find_an_image_in_itself(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 20, classes=4)
    teacher = jobs.model(tmp_path / "teacher.pt", **TEACHER)
    spec = f"imagefolder:{tmp_path / 'own'}"
    refused = jobs.call("eval", teacher, "--data", spec, "--task", "retrieval", *jobs.ALLOW)
    assert refused.exit_code == 2
    assert "the data is one split" in refused.output.replace("\n", " ")


def test_several_classes_an_image(tmp_path: Path) -> None:
    labels = (RANDOM.random((96, 4)) < 0.4).astype(np.float32)
    labels[5, 1] = -1
    spec = jobs.arrays(tmp_path / "several.npz", labels)
    plan = jobs.planned(tmp_path, TEACHER, STUDENT, "--data", spec, "--task", "multilabel", "--method", "kd")
    losses = [term.loss for term in plan.arm("distilled").stages[-1].losses]
    assert losses == ["binary-cross-entropy", "binary-kd"]
    assert plan.data.classes == ["0", "1", "2", "3"]
    result = jobs.ran(tmp_path)
    assert result["metric"] == "mAP"
    for found in (*result["arms"], result["members"]["teacher"]):
        assert 0 <= found["F1"] <= 1
        assert 0 < found["mAP"] <= 1
    assert load(tmp_path / "plan.json").task == "multilabel"


def test_data_with_some_of_the_models_classes(tmp_path: Path) -> None:
    """Folders b and d of a model of a, b, c and d, whose labels without the map would be 0 and 1."""
    names = "abcd"
    for index in range(40):
        folder = tmp_path / "own" / ("train" if index < 24 else "val") / names[1 + 2 * (index % 2)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{index:03}.png")
    spec = ("--data", f"imagefolder:{tmp_path / 'own'}")
    (tmp_path / "map.txt").write_text("\n".join(names))
    (tmp_path / "some.json").write_text('{"d": 3, "b": 1}')
    refused = jobs.call("eval", jobs.model(tmp_path / "teacher.pt", **TEACHER), *spec, *jobs.ALLOW)
    assert refused.exit_code == 2
    assert "--class-map" in refused.output
    plan = jobs.planned(
        tmp_path, TEACHER, STUDENT, *spec, "--method", "kd", "--class-map", tmp_path / "some.json", "--val", "0.25"
    )
    assert (plan.data.classes, plan.data.mapped) == (["class 0", "b", "class 2", "d"], True)
    assert [one.hint for one in plan.diagnostics if one.code == "val-is-test"] == [""]  # --val is there already
    result = jobs.ran(tmp_path)
    assert result["members"]["teacher"]["accuracy"] == _top_1(tmp_path)
    both = {name: ("--class-map", tmp_path / name) for name in ("map.txt", "some.json")}
    said = [jobs.done("eval", tmp_path / "teacher.pt", *spec, *one, *jobs.ALLOW) for one in both.values()]
    assert said[0] == said[1]
    assert f"accuracy {_top_1(tmp_path):.2%} on 16 test images" in said[0]
    own = jobs.done("eval", tmp_path / "run", *jobs.ALLOW)
    assert jobs.done("eval", tmp_path / "run", *spec, *both["map.txt"], *jobs.ALLOW) == own
    exported = jobs.done(
        "export", tmp_path / "teacher.pt", *spec, *both["map.txt"], *jobs.ALLOW, "-o", tmp_path / "x.onnx"
    )
    assert "on 16 test images" in exported
    (tmp_path / "map.txt").write_text("\n".join("abcdefgh"))
    for where in ("teacher.pt", "run"):
        refused = jobs.call("eval", tmp_path / where, *spec, *both["map.txt"], *jobs.ALLOW)
        assert refused.exit_code == 2
        assert "the class map has 8 classes" in refused.output


def _top_1(folder: Path) -> float:
    """The teacher's share of right answers, by hand."""
    found = load_data(f"imagefolder:{folder / 'own'}", reading=Reading((8, 8), (8, 8), channels=1))
    module = load_model(parse_source(str(folder / "teacher.pt"), allow=[jobs.MODULE])).module.eval()
    (batch,) = batches(found.test, 16)
    with torch.no_grad():
        answers = module((batch["images"] - found.mean[0]) / found.std[0]).argmax(1)
    return float((answers == 1 + 2 * batch["labels"]).float().mean())


def test_few_labels_among_many_images(tmp_path: Path) -> None:
    """One training image of 64 has a label: what looks at a sample of them looks at none."""
    labels = np.full(96, -1)
    labels[10], labels[64:] = 2, RANDOM.integers(4, size=32)
    spec = jobs.arrays(tmp_path / "few.npz", labels)
    jobs.planned(tmp_path, TEACHER, STUDENT, "--data", spec, "--method", "kd", "--no-control")
    content = json.loads((tmp_path / "plan.json").read_text())
    content["recalibration"] = {"images": 8, "when": "always"}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    assert "accuracy" in jobs.ran(tmp_path)["arms"][0]

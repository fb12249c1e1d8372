"""What a run says for its report beside the result."""

import base64
import json
import shutil
from dataclasses import replace
from io import BytesIO
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from fxdistill.compiler.outline import Outline
from fxdistill.data.load import load as load_data
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import RunDirError, StorageError
from fxdistill.report.page.document import document
from fxdistill.report.page.told import of_run
from fxdistill.runtime.run import details
from fxdistill.runtime.run.details import Details
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Observer
from fxdistill.tasks.classification import Classification
from tests import runs


def found() -> Details:
    run = RunDir.existing(runs.detailed())
    made = details.read(run, run.plan())
    assert made is not None
    return made


def test_pairs_are_measured_before_and_after() -> None:
    plan, made = RunDir.existing(runs.detailed()).plan(), found()
    assert [one.pair for one in made.similarity] == [pair.name for pair in plan.pairs]
    assert made.on == "256 evenly spaced test images"
    for one in made.similarity:
        assert one.before is not None
        assert one.after is not None
        assert -0.1 < one.before <= 1
        assert one.before != one.after
    assert made.similarity[0].after > made.similarity[0].before  # type: ignore[operator]  # it was trained for that


def test_classes_and_agreement_are_those_of_the_exported_model() -> None:
    made = found().beside
    result = json.loads((runs.detailed() / "result.json").read_text())
    assert made is not None
    own = next(arm["accuracy"] for arm in result["arms"] if arm["name"] == "distilled" and arm["seed"] == 0)
    for attribute, value in (("student", own), ("teacher", result["members"]["teacher"]["accuracy"])):
        whole = sum(getattr(one, attribute) * one.count for one in made.classes) / made.images
        assert whole == pytest.approx(value, abs=1e-6)
    assert made.agreement is not None
    assert 0 < made.agreement < 1
    assert len(made.apart) == 12
    assert all(one.says is not None and one.says[0] != one.says[1] for one in made.apart[:3])


def test_pictures_are_the_images() -> None:
    made = found().beside
    assert made is not None
    first = made.apart[0]
    assert details.is_picture(first.png)
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(first.png))))
    image = next(iter(load_data("digits").test.read([torch.tensor([first.index])])))
    assert np.abs(pixels / 255 - image[0, 0].numpy()).max() < 1 / 255


def test_tensorboard_has_the_similarities_and_the_images_that_differ() -> None:
    made, board = found(), EventAccumulator(str(runs.detailed() / "tensorboard" / "details"), {"images": 0})
    board.Reload()
    for one in made.similarity:
        events = board.Scalars(f"similarity/{one.pair}")
        assert [event.step for event in events] == [0, 4]
        assert [event.value for event in events] == pytest.approx([one.before, one.after], rel=1e-6)
    assert made.beside is not None
    tags = board.Tags()["images"]
    assert len(tags) == len(made.beside.apart)
    first, (event,) = made.beside.apart[0], board.Images(tags[0])
    assert first.says is not None
    assert tags[0] == f"apart/01 image {first.index} of {first.label}, teacher {first.says[0]}, student {first.says[1]}"
    assert (event.width, event.height, event.encoded_image_string) == (8, 8, base64.b64decode(first.png))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["similarity"][0].update(pair="nowhere"), "the pair 'nowhere'"),
        (lambda data: data["similarity"][0].update(after="0.5"), "similarity.0.after"),
        (lambda data: data["similarity"][0].update(after=nan), "similarity.0.after"),
        (lambda data: data["beside"]["classes"][0].update(student=inf), "beside.classes.0.student"),
        (lambda data: data["outline"]["layers"].update({"<b>": []}), "the member '<b>'"),
        (lambda data: data["beside"]["apart"][0].update(png='x" onerror="y'), "beside.apart.0.png"),
        (lambda data: data.clear(), "plan"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: Any, said: str) -> None:
    shutil.copytree(runs.detailed(), tmp_path / "run")
    run = RunDir.existing(tmp_path / "run")
    data = json.loads(run.details_path.read_text())
    change(data)
    run.details_path.write_text(json.dumps(data))
    with pytest.raises(RunDirError, match=r"details\.json is damaged") as caught:
        details.read(run, run.plan())
    assert said in str(caught.value)


def test_what_is_of_another_plan_is_left_aside(tmp_path: Path) -> None:
    shutil.copytree(runs.detailed(), tmp_path / "run")
    run = RunDir.existing(tmp_path / "run")
    data = json.loads(run.details_path.read_text())
    run.details_path.write_text(json.dumps({**data, "plan": "0" * 64}))
    assert details.read(run, run.plan()) is None
    run.details_path.unlink()
    assert details.read(run, run.plan()) is None


def test_parts_that_fail_are_said_and_the_others_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, whole = list[Diagnostic](), found()

    def fails(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(details, "outline", fails)
    monkeypatch.delattr(Classification, "kept")  # as in a task of a plug-in that leaves it out
    runs.execute(runs.plan_file(), tmp_path / "run", runs.CPU, Observer(on_diagnostic=said.append), detailed=True)
    (first,) = (one for one in said if one.code == "no-details")
    assert "no such thing" in first.why
    run = RunDir.existing(tmp_path / "run")
    assert run.result_path.exists()
    made = details.read(run, run.plan())
    assert made is not None
    assert made.outline == Outline()
    assert made.beside is not None
    assert whole.beside is not None
    assert replace(made.beside, unmeasured="", classes=whole.beside.classes) == whole.beside
    assert made.beside.classes == []
    assert (made.similarity, made.on, made.fingerprint) == (whole.similarity, whole.on, whole.fingerprint)
    page = document([of_run(run.path, "run")])
    assert "is not known: the task does not say what a model reaches image by image" in page


def test_a_file_that_cannot_be_written_is_said_and_a_run_that_is_stopped_there_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Diagnostic] = []

    def fails(*_: object) -> None:
        raise StorageError("the disk is full", where="details.json")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    for part in ("outline", "_similarities", "_beside", "write_text"):
        monkeypatch.setattr(details, part, fails)
    monkeypatch.setattr(details, "_on_board", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.execute(runs.plan_file(), tmp_path / "run", runs.CPU, Observer(on_diagnostic=said.append), detailed=True)
    assert sum("the disk is full" in one.why for one in said if one.code == "no-details") == 4
    run = RunDir.existing(tmp_path / "run")
    assert run.checkpoint_path.exists()
    assert not run.result_path.exists()
    assert not run.details_path.exists()

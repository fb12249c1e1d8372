"""Steps towards a budget: how far each goes, what teaches it, that the last one is as it was asked for."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill.compiler.shrink_model import ShrunkResult
from fxdistill.data import division
from fxdistill.data.batches import Batch, first_batch
from fxdistill.data.dataset import Dataset
from fxdistill.data.load import defaults
from fxdistill.data.load import load as load_data
from fxdistill.errors import CriterionError, InputError, ModelError, RunDirError
from fxdistill.ir.budget import Limit
from fxdistill.ir.channels import Channels
from fxdistill.ir.running import copied
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.load import LoadedModel, load
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.schema import ModelRef
from fxdistill.preprocessing import Wishes
from fxdistill.runtime.run import checkpoint, details
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.smaller import shrinking, shrunken
from fxdistill.runtime.smaller.shrunken import Reading, size_of, wished
from fxdistill.runtime.smaller.stepping import Steps
from fxdistill.runtime.smaller.taught import request
from fxdistill.runtime.smaller.teaching import Teaching
from tests import runs

CPU = Settings(device="cpu")
READ = Reading("digits")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    monkeypatch.setattr(details, "write", lambda *_, **__: None)  # a report's, which has tests


def teacher() -> Path:
    return runs.workshop() / "teacher.pt"


def shrink(folder: Path, settings: Settings = CPU, **more: Any) -> ShrunkResult:
    folder.mkdir(exist_ok=True)
    asked = {"macs": 0.4, "steps": 3, "data": "digits", "round_to": 1, "lr": 2e-3, **more}
    return shrinking.shrink(teacher(), folder / "aux.pt", settings=settings, **asked)


@functools.cache
def undisturbed() -> tuple[Path, ShrunkResult]:
    """Where three steps are, and what they made."""
    folder = runs.workshop() / "stepping"
    return folder, shrink(folder)


def test_each_step_goes_a_part_of_the_way_and_is_taught_by_the_original() -> None:
    own = size_of(load(teacher()), READ)
    whole, made = undisturbed()
    assert made.before == own
    assert 0.98 * 0.4 <= made.after.macs / own.macs <= 0.4
    assert {before for path, (before, _) in made.widths.items() if path == "stem.0"} == {8}
    folder = whole / "aux-steps"
    assert sorted(place.name for place in folder.iterdir()) == ["step-1", "step-2"]
    shares = [size_of(load(folder / f"step-{n}" / "smaller.pt"), READ).macs / own.macs for n in (1, 2)]
    for share, wanted in zip(shares, (0.4 ** (1 / 3), 0.4 ** (2 / 3)), strict=True):
        assert 0.98 * wanted <= share <= wanted
    for number in (1, 2):
        step = folder / f"step-{number}"
        plan = load_plan(step / "plan.json")
        ref = plan.members["teacher"]
        assert isinstance(ref, ModelRef)
        assert (step / str(ref.path)).samefile(teacher())  # not the step before
        assert [stage.epochs for arm in plan.arms for stage in arm.stages] == [1]
        assert plan.arms[0].stages[0].optimizer.lr == 2e-3
    second = load(folder / "step-2" / "smaller.pt").module.state_dict()["stem.0.weight"]
    trained = load(folder / "step-1" / "run").module.state_dict()["stem.0.weight"]
    rows = {tuple(row.flatten().tolist()) for row in trained}
    assert {tuple(row.flatten().tolist()) for row in second} <= rows  # it goes on from what was trained
    last = load(whole / "aux.pt").module.state_dict()["stem.0.weight"]
    assert all(any(torch.equal(row, one) for one in load(folder / "step-2/run").module.state_dict()["stem.0.weight"])
               for row in last)  # fmt: skip


@pytest.mark.parametrize(
    ("macs", "round_to", "left", "said"),
    [
        (0.93, 2, ["step-1"], "steps 2, 3 were left out of 4, for widths are too coarse"),
        (0.9, 4, [], "steps 1, 2, 3 were left out of 4, for widths are too coarse: nothing was trained"),
    ],
)
def test_steps_that_widths_are_too_coarse_for_are_left_out(
    tmp_path: Path, macs: float, round_to: int, left: list[str], said: str
) -> None:
    made = shrink(tmp_path, macs=macs, round_to=round_to, steps=4)  # the second one would meet the budget; none fits
    assert 0.98 * macs <= made.after.macs / made.before.macs <= macs
    assert sorted(place.name for place in tmp_path.glob("aux-steps/*")) == left
    (remark,) = (one for one in made.diagnostics if one.code == "steps-left-out")
    assert remark.why.startswith(said)


def own_data() -> Dataset:
    return load_data("digits")


def test_floors_and_shares_of_parts_are_of_the_original_on_data_that_is_allowed(tmp_path: Path) -> None:
    made = shrinking.shrink(
        teacher(), tmp_path / "aux.pt", params=0.45, steps=2, data=f"{__name__}:own_data", floor=0.5,
        scopes={"layers.layer1.0.conv1": 0.25}, settings=CPU, allow=(__name__,),
    )  # fmt: skip
    assert made.widths["layers.layer1.0.conv1"] == (8, 2)
    others = [(path, widths) for path, widths in made.widths.items() if path != "layers.layer1.0.conv1"]
    assert all(after >= 0.5 * before for _, (before, after) in others), others


def turned_data() -> Dataset:
    found = load_data("digits")
    return found.each(lambda images: images.relabelled(9 - images.labels))


def test_a_teacher_at_chance_is_told_what_this_command_has(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hardly anything to teach") as error:
        shrink(tmp_path, steps=2, data=f"{__name__}:turned_data", allow=(__name__,))
    assert "`fxdistill compress` takes --mean" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_the_file_keeps_of_geometry_is_all_that_was_asked_for() -> None:
    asked = Reading("digits", wishes=Wishes(size=(12, 12), crop=0.75))
    _, found = shrunken.shrunk(load(teacher()), wished(keep=0.5), asked, clock=None)
    assert found is not None
    assert (found.size, found.resize, found.mean) == ([12, 12], [16, 16], [])
    assert shrunken.shrunk(load(teacher()), wished(keep=0.5), READ, clock=None)[1] is None


def test_channels_are_ranked_by_none_of_the_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Dataset] = []

    def noted(dataset: Dataset) -> Batch:
        seen.append(dataset)
        return first_batch(dataset)

    monkeypatch.setattr(shrunken, "first_batch", noted)
    whole = load_data("digits")
    for teaching in (Teaching("digits", val=0.25, seed=3), Teaching("digits")):
        shrunken.shrunk(load(teacher()), wished(keep=0.5, by="taylor"), teaching.reading, clock=None)
    divided = division.divided(whole, defaults("digits", dataset=whole, val=0.25, seed=3))
    assert torch.equal(seen[0].train.labels, divided.train.labels)
    assert len(seen[0].train) < len(seen[1].train) == len(whole.train)


def test_a_class_map_says_which_classes_the_gradients_are_of(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{9 - number}\n" for number in range(10)))
    asked = {"keep": 0.5, "by": "taylor", "allow": (__name__,)}
    turned, mapped, plain = (
        shrinking.shrink(teacher(), data=data, class_map=one, **asked).module.state_dict()  # type: ignore[arg-type]
        for data, one in ((f"{__name__}:turned_data", None), ("digits", names), ("digits", None))
    )
    assert all(torch.equal(turned[name], mapped[name]) for name in turned)
    assert not all(torch.equal(plain[name], mapped[name]) for name in plain)


class Several(nn.Module):
    """The classifier in a file, as one that answers with other things before its logits."""

    def __init__(self, *before: int) -> None:
        super().__init__()
        self.whole = load(teacher()).module
        self.before = nn.ModuleList([nn.Linear(10, count) for count in before])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits: Tensor = self.whole(x)
        return (*(layer(logits) for layer in self.before), logits)


def ranked(model: nn.Module, entry: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that are left by their gradients, and what is remarked."""
    found = LoadedModel(model.eval(), None, None, None)
    made, _ = shrunken.shrunk(found, wished(keep=0.5, by="taylor"), replace(READ, entry=entry), clock=None)
    return made.module.state_dict(), [one.code for one in made.diagnostics]


def test_gradients_are_of_the_output_that_is_the_prediction() -> None:
    plain, _ = ranked(load(teacher()).module)
    for model, entry, told in ((Several(3), None, False), (Several(10), "1", False), (Several(10), None, True)):
        found, codes = ranked(model, entry)
        same = all(torch.equal(found[f"whole.{name}"], value) for name, value in plain.items())
        assert (same, "which-output" in codes) == (not told, told)
    with pytest.raises(CriterionError, match="10 classes"):
        ranked(nn.Sequential(load(teacher()).module, nn.Linear(10, 3)))


def test_what_the_loss_loses_decides_under_a_budget_where_labels_tell_it() -> None:
    def made(module: nn.Module, *, of: Reading = READ, **wish: Any) -> ShrunkResult:
        found = LoadedModel(module.eval(), None, None, None, input_shape=(1, 1, 8, 8))
        return shrunken.shrunk(found, wished(**wish), of, clock=None)[0]

    own, blind, both = load(teacher()).module, replace(READ, data=None), "taylor+interpolative"
    assert made(own, macs=0.5).criterion == made(own, params=0.5).criterion == both
    of_two, of_loss = made(own, macs=0.5, by=both), made(own, macs=0.5, by="taylor")
    assert made(own, macs=0.5).kept == of_two.kept != of_loss.kept
    assert of_two.widths == of_loss.widths != made(own, macs=0.5, by="l1").widths
    for criterion, other in (
        ("l1", made(own, macs=0.5, of=blind)), ("l1+interpolative", made(own, keep=0.5)),
        ("l1+interpolative", made(own, scopes={"layers": 0.5})),
    ):  # fmt: skip
        assert other.criterion == criterion
        assert "by-weights" not in [one.code for one in other.diagnostics]
    doubled = nn.Sequential(copied(own)).double()
    for unfit, why in ((nn.Sequential(own, nn.Linear(10, 3)), "10 classes"), (doubled, "cannot take a batch")):
        told = made(unfit, macs=0.5)
        by = "l1+interpolative"
        assert (told.criterion, told.kept) == (by, made(unfit, macs=0.5, by=by).kept)
        assert [why in one.why for one in told.diagnostics if one.code == "by-weights"] == [True]


class Single(nn.Module):
    """It takes one image at a time alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.reshape(1, 1, 8, 8))


@pytest.mark.parametrize(("wish", "told"), [({"macs": 0.5}, 2), ({"keep": 0.5}, 1)])
def test_weights_decide_where_images_cannot_be_looked_at(wish: dict[str, Any], told: int) -> None:
    module = Single(load(teacher()).module).eval()
    found = LoadedModel(module, None, None, None, input_shape=(1, 1, 8, 8))
    made, plain = (shrunken.shrunk(found, wished(**wish, by=by), READ, clock=None)[0] for by in (None, "l1"))
    assert (made.criterion, made.kept) == ("l1", plain.kept)
    assert [one.code for one in made.diagnostics].count("by-weights") == told
    with pytest.raises(CriterionError, match="does not run on 8 images"):
        shrunken.shrunk(found, wished(**wish, by="interpolative"), READ, clock=None)


def test_gradients_are_computed_once_however_often_a_time_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        def search(self, _wanted: object, make: Callable[[Limit, None], ShrunkResult]) -> ShrunkResult:
            make(Limit("macs", 0.7, "--macs"), None)
            return make(Limit("macs", 0.5, "--macs"), None)

    computed, own = list[Channels](), Channels._gradients

    def counted(channels: Channels, *given: Tensor) -> dict[str, Tensor]:
        computed.append(channels)
        return own(channels, *given)

    monkeypatch.setattr(Channels, "_gradients", counted)
    found = LoadedModel(load(teacher()).module, None, None, None, input_shape=(1, 1, 8, 8))
    made, _ = shrunken.shrunk(found, wished(latency=0.5, round_to=1), READ, clock=Clock())  # type: ignore[arg-type]
    once, _ = shrunken.shrunk(found, wished(macs=0.5, round_to=1), READ, clock=None)
    assert (made.criterion, made.kept, len(computed)) == ("taylor+interpolative", once.kept, 2)


def test_what_was_trained_is_not_given_up_where_no_widths_of_it_come_near_the_budget(tmp_path: Path) -> None:
    made = shrink(tmp_path, macs=0.4, steps=2, round_to=4)
    assert (tmp_path / "aux-steps/step-1/run/result.json").exists()
    assert 0.9 * 0.4 < made.after.macs / made.before.macs < 0.98 * 0.4
    assert [one.where for one in made.diagnostics if one.code == "below-budget"] == ["--macs"]


def test_a_file_whose_example_is_a_batch_of_several_goes_as_far(tmp_path: Path) -> None:
    save(load(teacher()).module, tmp_path / "eight.pt", input_shape=(8, 1, 8, 8))
    made = shrinking.shrink(
        tmp_path / "eight.pt", tmp_path / "aux.pt", macs=0.5, steps=2, data="digits", settings=CPU, round_to=1
    )
    assert made.before.macs == size_of(load(teacher()), READ).macs
    assert 0.98 * 0.5 <= made.after.macs / made.before.macs <= 0.5


def test_whatever_decides_about_a_smaller_model_is_asked_for(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    found, wish, usual = load(teacher()), wished(macs=0.5), Teaching("digits")
    others: dict[str, Any] = {
        "data": "npz:x", "method": "dkd", "task": "features", "epochs": 7, "lr": 1.0, "batch_size": 7, "val": 0.5,
        "augment": "flip", "class_map": names, "seed": 7, "repeats": 2, "control": True, "precision": "bf16-mixed",
        "recalibrate": None, "input_shape": (1, 1, 9, 9), "wishes": Wishes(mean=(0.5,), std=(0.5,)), "entry": "1",
    }  # fmt: skip
    assert {one.name for one in fields(Teaching)} == {*others, "edit", "allow"}  # a new field decides, or says why not
    asked = request(found, wish, usual, Steps(2, usual).asked)
    for name, value in others.items():
        changed = replace(usual, **{name: value})
        assert Steps(2, changed).asked != asked["steps"], name
        read = name in (
            "data",
            "task",
            "class_map",
            "input_shape",
            "wishes",
            "entry",
            "val",
        )  # with what the model is looked at
        assert (request(found, wish, changed) != request(found, wish, usual)) is read, name
    names.write_text("a\nc\n")
    before = request(found, wish, replace(usual, class_map=names))
    names.write_text("a\nb\n")
    assert request(found, wish, replace(usual, class_map=names)) != before  # what it says, not where it lies


@pytest.mark.parametrize(
    ("task", "method", "main"),
    [("classification", "indistill", "kd"), ("retrieval", "indistill", "pkt"), ("features", "indistill", "features"),
     ("retrieval", "", "pkt"), ("retrieval", "indistill+rkd", "rkd")],
)  # fmt: skip
def test_between_steps_the_main_stage_is_that_of_the_task(task: str, method: str, main: str) -> None:
    assert Teaching("digits", method=method, task=task).briefly(1).method == main


def test_interrupted_steps_go_on_and_end_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, often = tmp_path / "cut", Settings(device="cpu", save_seconds=0)
    count, save = itertools.count(1), checkpoint.save

    def counting(run: RunDir, at: checkpoint.Checkpoint) -> None:
        save(run, at)
        if next(count) == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", counting)
        with pytest.raises(KeyboardInterrupt):
            shrink(cut, often)
    assert (cut / "aux-steps/step-2/run/checkpoint.pt").exists()
    assert not (cut / "aux.pt").exists()
    shrink(cut, often)
    assert (cut / "aux.pt").read_bytes() == (undisturbed()[0] / "aux.pt").read_bytes()
    with pytest.raises(RunDirError, match="made smaller in another way"):
        shrink(cut, often, by="l2")


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ({"macs": 0.5, "steps": 2, "data": None}, "no data to train on"),
        ({"keep": 0.5, "steps": 2}, "towards a budget"),
        ({"macs": 0.5, "steps": 0}, "0 are no steps"),
        ({"macs": 0.5, "steps": 2, "path": None}, "beside a file"),
        ({"macs": 0.5, "steps": 2, "recover": 0}, "epochs is 0"),
        ({"macs": 0.5, "steps": 2, "lr": -1.0}, "lr is -1.0"),
        ({"macs": 0.5, "steps": 2, "settings": replace(CPU, precision="16-mixed")}, "needs a CUDA device"),
        ({"macs": 0.001, "steps": 2}, "cannot be met"),
        ({"macs": 0.5, "round_to": 0}, "multiples of 0"),
        ({"macs": 0.5, "steps": 2, "data": "npz:none.npz"}, "none.npz"),
        ({"macs": 0.5, "steps": 2, "model": "fxdistill.models:resnet?widths=[8,16]&blocks=1"}, "nothing to teach"),
    ],
)
def test_wrong_requests_train_nothing(tmp_path: Path, arguments: dict[str, object], needle: str) -> None:
    given = {"model": teacher(), "path": tmp_path / "aux.pt", "data": "digits", **arguments}
    with pytest.raises(InputError, match=needle):
        shrinking.shrink(**given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_steps_is_told_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "aux-steps").write_text("mine")
    with pytest.raises(RunDirError, match="there is a file of this name"):
        shrink(tmp_path)
    assert runs.snapshot(tmp_path) == {"aux-steps": b"mine"}

"""The options of ``plan`` that stand for numbers of the plan, and the recipe as ``show`` tells it."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load

pytestmark = pytest.mark.usefixtures("few_digits")

MODELS = (
    "fxdistill.models:resnet?widths=[8,16]&blocks=1", "fxdistill.models:convnet?widths=[8,16]&hidden=16",
)  # fmt: skip


def planned(folder: Path, *options: str) -> tuple[int, str]:
    method = [] if "--method" in options else ["--method", "kd"]
    command = ["plan", *MODELS, "--data", "digits", *method, "-o", str(folder / "plan.json"), *options]
    done = CliRunner().invoke(app, command)
    return done.exit_code, " ".join(done.output.split())


def made(folder: Path, *options: str) -> tuple[Plan, str]:
    code, told = planned(folder, *options)
    assert code == 0, told
    return load(folder / "plan.json"), told


def test_options_say_the_recipe_of_main_stage_and_control_and_set_has_the_last_word(tmp_path: Path) -> None:
    plan, told = made(
        tmp_path, "--optimizer", "sgd", "--momentum", "0.9", "--weight-decay", "5e-4", "--warm-up", "2", "--clip", "1",
        "--ema", "0.99", "--label-smoothing", "0.1", "--augment", "crop:1,erase", "--set",
        "main.optimizer.nesterov=true", "--set", "control.optimizer.clip=null",
    )  # fmt: skip
    assert plan.control is not None
    numbers: dict[str, Any] = {
        "name": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "warm_up": 2.0, "clip": 1, "ema": 0.99,
    }  # fmt: skip
    main, control = plan.arm("distilled").stages[-1], plan.control
    usual = {name: getattr(main.optimizer, name) for name in ("lr", "floor", "decay", "decay_every", "restart")}
    assert main.optimizer.model_dump() == {**usual, **numbers, "nesterov": True}
    assert control.optimizer.model_dump() == {**usual, **numbers, "nesterov": False, "clip": None}
    for stage in (main, control):
        assert [term.args["label_smoothing"] for term in stage.losses if term.loss == "cross-entropy"] == [0.1]
    assert plan.data.augmentation == ["crop:1", "erase"]
    recipe = "weight decay 0.0005, momentum 0.9, nesterov, warm up 2, clip 1, ema 0.99, label smoothing 0.1"
    assert f"sgd 0.003, cosine, {recipe}" in told


def test_both_phases_of_a_cascade_have_the_recipe_and_no_momentum_where_the_optimiser_has_none(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    call = [
        "plan", MODELS[0], "--method", "cascade", "--keep", "0.5", "--assistants", "1", "--input", "1x1x8x8", "-o",
        str(path), "--optimizer", "adam", "--clip", "1", "--weight", "kd=0.7", "--label-smoothing", "0.1",
    ]  # fmt: skip
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    phases = [arm.stages[-1] for arm in load(path).arms]
    assert [len(phase.losses) for phase in phases] == [4, 2]
    for phase in phases:
        optimizer = phase.optimizer
        assert (optimizer.name, optimizer.momentum, optimizer.nesterov, optimizer.clip) == ("adam", 0, False, 1)
        assert {term.weight for term in phase.losses if term.loss == "kd"} == {0.7}
        assert {term.args["label_smoothing"] for term in phase.losses if term.loss != "kd"} == {0.1}


def test_without_them_the_plan_is_as_it_was(tmp_path: Path) -> None:
    plan, told = made(tmp_path)
    main = plan.arm("distilled").stages[-1]
    assert (main.optimizer.name, main.optimizer.clip, main.optimizer.ema, main.optimizer.warm_up) == (
        "adam",
        None,
        0,
        0,
    )
    assert plan.data.augmentation == []
    assert "adam 0.003, cosine, 100.0% of the cost" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--augment", "flap"], "did you mean 'flip'?"),
        (["--augment", "crop:8"], "can shift images of 8x8 pixels out of sight"),
        (["--augment", "flip,,erase"], "there is no augmentation named ''"),
        (["--momentum", "0.9"], "'adam' takes no momentum"),
        (["--ema", "1"], "optimizer.ema"),
        (["--clip", "0"], "optimizer.clip"),
        (["--warm-up", "60"], "warm_up has to be shorter than the stage"),
        (["--set", "main.optimizer.learning_rate=1"], "has no 'learning_rate' to set"),
        (["--set", "control.optimizer.lr=1", "--no-control"], "has no 'control' to set"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path
) -> None:
    code, told = planned(tmp_path, *options)
    assert code == 2
    assert message in told
    assert not list(tmp_path.iterdir())


def test_a_run_does_what_the_plan_says() -> None:
    done = CliRunner().invoke(app, ["run", "plan.json", "--set", "main.optimizer.lr=1"])
    assert done.exit_code == 2
    assert "--set" in done.output


def test_losses_are_weighed_and_given_arguments_by_their_names(tmp_path: Path) -> None:
    plan, _ = made(
        tmp_path, "--weight", "kd=0.7", "--weight", "cross-entropy=0.2", "--arg", "kd.temperature=2",
        "--label-smoothing", "0.1", "--arg", "cross-entropy.label_smoothing=0.3", "--set", "main.losses.kd.weight=0.6",
    )  # fmt: skip
    assert plan.control is not None
    assert [(t.loss, t.weight, t.args) for t in plan.arm("distilled").stages[-1].losses] == [
        ("cross-entropy", 0.2, {"label_smoothing": 0.3}), ("kd", 0.6, {"temperature": 2.0}),
    ]  # fmt: skip
    assert [(t.weight, t.args) for t in plan.control.losses] == [(1.0, {"label_smoothing": 0.1})]


@pytest.mark.parametrize("option", [("--weight", "pkt=1"), ("--arg", "kd.temprature=1"), ("--arg", "kd.temperature=0")])
def test_a_loss_that_there_is_not_writes_no_plan(tmp_path: Path, option: tuple[str, str]) -> None:
    code, told = planned(tmp_path, *option)
    assert code == 2
    assert option[0] in told
    assert not list(tmp_path.iterdir())


def test_options_say_how_the_warm_up_goes(tmp_path: Path) -> None:
    plan, told = made(
        tmp_path, "--method", "indistill+kd", "--epochs", "18", "--warm-up-share", "0.4", "--keep-earlier", "0.7",
        "--plateau", "0.02:3", "--probe", "lengths",
    )  # fmt: skip
    *warm, main = plan.arm("distilled").stages
    assert sum(stage.epochs for stage in warm) == 12
    assert [stage.plateau.model_dump() for stage in warm if stage.plateau] == [{"share": 0.02, "epochs": 3}] * 2
    assert (main.epochs, main.plateau) == (18, None)
    hard = [pair.difficulty for pair in plan.pairs]
    assert (hard[0] > hard[1]) == (warm[0].epochs > warm[1].epochs)  # type: ignore[operator]
    assert [(term.pair, term.weight, term.decay) for term in warm[1].losses] == [
        (plan.pairs[1].name, 1.0, 1.0), (plan.pairs[0].name, 0.7, 0.7),
    ]  # fmt: skip
    assert f"up to {warm[0].epochs} epochs, until the loss has not fallen by 2 % in 3 epochs" in told
    assert f"difficulty {hard[0]:.2f}" in told


@pytest.mark.parametrize("text", ["x", "0.1:0", "0.1:x", "0:1", "1", "nan", "0.1:1:1", ""])
def test_what_is_no_plateau_is_refused(tmp_path: Path, text: str) -> None:
    code, told = planned(tmp_path, "--method", "indistill", "--plateau", text)
    assert code == 2
    assert "is no plateau where: --plateau to do: give SHARE:EPOCHS" in told
    assert not (tmp_path / "plan.json").exists()

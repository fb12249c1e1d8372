"""A classifier becomes an embedding by leaving its last layer away; whose answer is none of a linear layer stays."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxdistill
from fxdistill.errors import InputError, ModelError
from fxdistill.modelfiles import heads
from fxdistill.models import convnet, resnet
from tests import jobs, runs

SHAPE = (2, 1, 8, 8)


class TwoHeads(nn.Module):
    """Answers with two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(64, 4), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x.flatten(1)), self.other(x.flatten(1))


class Normalised(nn.Module):
    """A projection of unit length: an embedding of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.project(x.flatten(1)))


@pytest.mark.parametrize(
    ("module", "path"),
    [
        (convnet(), "classifier"), (resnet(), "classifier"), (TwoHeads(), ""), (Normalised(), ""),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)), "3"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU()), ""),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace=True)), ""),  # the same tensor
        (nn.Sequential(nn.Flatten(), *(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8))), ""),
    ],
)  # fmt: skip
def test_the_head_is_the_linear_layer_that_answers(module: nn.Module, path: str) -> None:
    assert heads.head_of(module.eval(), SHAPE) == path
    assert not any(part._forward_hooks for part in module.modules())


def test_without_it_the_model_answers_with_what_it_read() -> None:
    module, images = convnet().eval(), torch.randn(SHAPE)
    read: list[Tensor] = []
    module.get_submodule("classifier").register_forward_pre_hook(lambda _m, inputs: read.append(inputs[0]))
    module(images)
    assert heads.embedding(module, "penultimate", input_shape=SHAPE, where="") == "classifier"
    assert torch.equal(module(images), read[0])
    assert heads.embedding(module, "penultimate", input_shape=SHAPE, where="") == ""  # it is one already
    other = resnet().eval()
    logits = other(images)
    assert heads.embedding(other, "output", input_shape=SHAPE, where="") == ""
    assert torch.equal(other(images), logits)


@pytest.mark.parametrize("wish", ["", "nothing", "block1.conv", "block1", "hidden.linear.weight"])
def test_a_layer_that_is_no_linear_one(wish: str) -> None:
    with pytest.raises(ModelError, match="is no linear layer of the model") as caught:
        heads.embedding(convnet().eval(), wish, input_shape=SHAPE, where="--embedding")
    assert "hidden.linear, classifier" in caught.value.hint


def test_a_layer_that_others_follow_is_not_left_away() -> None:
    with pytest.raises(ModelError, match=r"does not run without 'hidden.linear': mat1 and mat2") as caught:
        heads.embedding(convnet().eval(), "hidden.linear", input_shape=SHAPE, where="--embedding")
    assert "name the last layer" in caught.value.hint


@pytest.mark.parametrize("more", [(), ("--embedding", "classifier")])
@pytest.mark.parametrize(
    "words",
    [("plan", "M", "M", "--input", "1x1x16x16"), ("plan", "M", "M", "--data", "digits", "--size", 16),
     ("eval", "M", "--data", "digits", "--size", 16), ("export", "M", "--size", 16)],
)  # fmt: skip
def test_an_input_that_a_model_does_not_take_is_told_as_elsewhere(
    words: tuple[str, ...], more: tuple[str, ...], tmp_path: Path
) -> None:
    fxdistill.save(convnet(), model := tmp_path / "model.pt", input_shape=SHAPE)
    to = () if words[0] == "eval" else ("-o", tmp_path / "written.onnx")
    done = jobs.call(*(model if word == "M" else word for word in words), "--task", "retrieval", *more, *to)
    assert (done.exit_code, done.stderr.count("error:")) == (2, 1), done.stderr
    assert "cannot be multiplied" in " ".join(done.stderr.split())
    assert not (tmp_path / "written.onnx").exists()


def test_an_answer_that_no_linear_layer_gives_is_said_to_be_the_embedding(tmp_path: Path) -> None:
    fxdistill.save(nn.Sequential(nn.Conv2d(1, 6, 8), nn.Flatten()), tmp_path / "model.pt", input_shape=SHAPE)
    words = ("plan", tmp_path / "model.pt", tmp_path / "model.pt", "--task", "retrieval", "--method", "pkt")
    said = " ".join(jobs.done(*words, "--input", "1x1x8x8", "-o", tmp_path / "plan.json").split())
    assert said.count("its output is the embedding") == 2


def test_classifiers_are_distilled_measured_and_exported_as_embeddings(tmp_path: Path) -> None:
    """Of different widths; the exported one answers with the penultimate layer, and its file needs no factory."""
    folder = runs.workshop()
    said = jobs.done(
        "plan", folder / "teacher.pt", folder / "student.pt", "-o", tmp_path / "plan.json", "--data", "digits",
        "--task", "retrieval", "--method", "pkt", "--epochs", "1", "--batch-size", "256", *jobs.ALLOW,
        "--allow-factory", runs.ALLOW[0],
    )  # fmt: skip
    assert "answers with what 'fc' would read" in " ".join(said.split())
    assert "its output is the embedding" not in " ".join(said.split())
    plan = fxdistill.load_plan(tmp_path / "plan.json")
    assert [plan.given(name).head for name in ("teacher", "student")] == ["classifier", "fc"]
    assert [pair.student.path for pair in plan.pairs]
    result = runs.execute(tmp_path / "plan.json", tmp_path / "run", runs.CPU)
    (arm,) = result["arms"]
    assert 0 < arm["mAP"] < 1
    module = fxdistill.load(tmp_path / "run" / "student.pt").module
    assert module(torch.randn(3, 1, 8, 8)).shape == (3, 8)
    found = fxdistill.evaluate(tmp_path / "run" / "student.pt", "digits", task="retrieval")
    assert found["mAP"] == pytest.approx(arm["mAP"], abs=1e-6)
    evaluate = functools.partial(
        fxdistill.evaluate, folder / "student.pt", "digits", task="retrieval", allow=runs.ALLOW
    )
    as_embedding, as_logits = evaluate(), evaluate(embedding="output")
    assert as_embedding["mAP"] != as_logits["mAP"]
    assert as_embedding == evaluate(embedding="fc")


def test_an_embedding_is_wished_only_where_it_is_read(tmp_path: Path) -> None:
    found = runs.workshop() / "teacher.pt"
    planned = ("plan", found, found.with_name("student.pt"), "-o", tmp_path / "p.json")
    for command in (planned, ("eval", found), ("export", found, "-o", tmp_path / "p.onnx")):
        done = jobs.call(*command, "--data", "digits", "--embedding", "output", "--allow-factory", runs.ALLOW[0])
        assert done.exit_code == 2
        assert "in the task 'classification' a model answers as it does" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="a run says itself what its models are"):
        fxdistill.evaluate(runs.finished(), embedding="output", allow=runs.ALLOW)
    with pytest.raises(InputError, match="this model is taken as it is"):
        fxdistill.evaluate(convnet(), "digits", task="retrieval", embedding="output", input_shape=SHAPE)

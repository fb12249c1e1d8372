"""What each extension costs: one new file. Each test adds one and uses it through the public functions.

Nothing else of the package is told of the file: no list, no table, no option of the command line.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdistill import models
from fxdistill.cli import commands
from fxdistill.compiler.build import build
from fxdistill.compiler.options import Options
from fxdistill.compiler.pipeline import compile as compile_plan
from fxdistill.compiler.shrink_model import shrink_model
from fxdistill.criteria import CRITERIA
from fxdistill.data.augmentations import AUGMENTATIONS
from fxdistill.data.batches import batches
from fxdistill.data.load import defaults, load
from fxdistill.data.sources import SOURCES
from fxdistill.errors import InputError
from fxdistill.files import file_sha256
from fxdistill.losses import LOSSES
from fxdistill.measure import onnx_file
from fxdistill.methods import METHODS
from fxdistill.modelfiles.bundle import save
from fxdistill.operators import OPERATORS
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef
from fxdistill.preprocessing import Preprocessing
from fxdistill.runtime.run.execute import execute
from fxdistill.runtime.run.execution import Settings
from fxdistill.tasks import TASKS
from tests.plugins import Add

LOGITS_LOSS = '''
from typing import Annotated
import torch.nn.functional as F
from pydantic import Field
from fxdistill.arguments import Arguments
from fxdistill.losses import Loss

class FocalArguments(Arguments):
    """``gamma``: how much less an easy image counts."""
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0

def focal(student_logits, labels, *, gamma=2.0):
    p = F.log_softmax(student_logits.float(), 1).gather(1, labels[:, None])[:, 0]
    return -((1 - p.exp()) ** gamma * p).mean()

LOSS = Loss(reads=("student.logits", "labels"), function=focal, arguments=FocalArguments)
'''
LOSS_WITH_PARAMETERS = """
import torch
from torch import nn
from fxdistill.losses import Loss

class Encoder(nn.Module):
    def __init__(self, context, arguments):
        super().__init__()
        widths = [context.shapes[port][1] for port in ("student.tap", "teacher.tap")]
        self.encode = nn.Conv2d(*widths, 1)
        self.register_buffer("seen", torch.zeros(context.train_size))
    def forward(self, student, teacher, index):
        self.seen[index] += 1
        return (self.encode(student.float()) - teacher.float()).square().mean()

LOSS = Loss(reads=("student.tap", "teacher.tap", "index"), build=Encoder)
"""
CRITERION = """
from fxdistill.criteria import Criterion
CRITERION = Criterion(
    summary="the largest weight of the filters",
    score=lambda channels: channels.sum_over_filters(lambda filters: filters.abs().amax(1)),
)
"""
METHOD = """
from fxdistill.methods import Method
from fxdistill.plan.training import LossTerm, Optimizer, Stage

def warm_up(recipe):
    losses = [LossTerm(loss="encoder", pair=pair.name) for pair in recipe.pairs]
    return [Stage(name="encode", epochs=1, losses=losses, optimizer=Optimizer(name="adam", lr=recipe.lr))]

METHOD = Method(summary="learned encoders first", warm_up=warm_up, needs_pairs=True, criterion="largest")
"""
TASK = '''
from torchmetrics.classification import MulticlassF1Score
from fxdistill.tasks import Agreement, Task

class Ordinal(Task):
    """Classes of which few are common: F1 counts."""
    summary = "one class an image, by F1"
    supervised = "focal"
    primary = "f1"

    def wrong_targets(self, targets, image_shape, classes):
        return "" if targets.ndim == 1 else "give one number an image"
    def wrong_output(self, output, image_shape, classes, target_shape=None):
        return "" if output.ndim == 2 else "give one row an image"
    def metrics(self, classes):
        return {"f1": MulticlassF1Score(num_classes=classes, average="macro")}
    def agreement(self, ours, theirs):
        return Agreement(int((ours.argmax(1) == theirs.argmax(1)).sum()), len(ours))

TASK = Ordinal()
'''
SOURCE = '''
import torch
from fxdistill.data.dataset import Split, checked
from fxdistill.data.sources import Source

def read(request):
    """Images as bright as their class, of one channel and 8x8 pixels."""
    generator = torch.Generator().manual_seed(0)
    def split(count):
        labels = torch.arange(count) % 4
        images = labels.reshape(-1, 1, 1, 1) / 4 + torch.rand(count, 1, 8, 8, generator=generator) / 8
        return Split(images, labels)
    return checked(split(96), split(32), ["black", "dark", "grey", "light"], where=request.spec, task=request.task)

SOURCE = Source(read=read, augmentation=lambda shape: ("darken:0.9",))
'''
AUGMENTATION = '''
from typing import Annotated
import torch
from pydantic import Field
from fxdistill.arguments import Arguments
from fxdistill.data.augmentations import Augmentation

class DarkenArguments(Arguments):
    """``least``: what a pixel is multiplied with at least."""
    least: Annotated[float, Field(gt=0, le=1)]

def draw(shape, draws, arguments):
    factor = arguments.least + (1 - arguments.least) * draws.uniform(1).float().reshape(-1, 1, 1, 1)
    return lambda values, fill=0: values * factor.to(values)

AUGMENTATION = Augmentation(draw=draw, arguments=DarkenArguments)
'''
OPERATOR = """
from fxdistill.operators import Operator, Trait
OPERATOR = Operator(names=("sinc",), traits=Trait.POINTWISE | Trait.ACTIVATION, labels="pointwise")
"""
FILES: dict[str, tuple[Any, str, str]] = {
    "logits loss": (LOSSES, "focal", LOGITS_LOSS),
    "loss with parameters": (LOSSES, "encoder", LOSS_WITH_PARAMETERS),
    "criterion": (CRITERIA, "largest", CRITERION),
    "method": (METHODS, "encode-first", METHOD),
    "task": (TASKS, "ordinal", TASK),
    "data source": (SOURCES, "bright", SOURCE),
    "augmentation": (AUGMENTATIONS, "darken", AUGMENTATION),
    "operator": (OPERATORS, "sinc", OPERATOR),
}
SIZES: dict[str, dict[str, Any]] = {
    "teacher": {"widths": [16, 32, 64], "classes": 4},
    "student": {"widths": [8, 16, 32], "classes": 4},
}


@pytest.fixture
def added(add: Add) -> Callable[..., None]:
    def write(*kinds: str) -> None:
        for kind in kinds or tuple(FILES):
            add(*FILES[kind])

    return write


def pair() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: models.convnet(**options) for name, options in SIZES.items()}


def planned(*, teacher: Path | None = None, **options: Any) -> Plan:
    modules = pair()
    refs = [ModelRef(path=None, sha256=None, factory="fxdistill.models:convnet", kwargs=SIZES[name]) for name in SIZES]
    if teacher is not None:
        save(modules["teacher"], teacher, factory="fxdistill.models:convnet", kwargs=SIZES["teacher"])
        refs[0] = refs[0].changed(path=teacher.name, sha256=file_sha256(teacher))
    plain = dict.fromkeys(SIZES, Preprocessing(size=[8, 8]))
    made = Options(input_shape=(2, 1, 8, 8), preprocessing=plain, **options)
    return compile_plan(modules["teacher"], modules["student"], made, teacher_ref=refs[0], student_ref=refs[1])


@pytest.mark.parametrize("kind", FILES)
def test_one_file_is_known_by_name_and_gone_again(kind: str, added: Callable[..., None]) -> None:
    registry, name, _ = FILES[kind]
    before = registry.names()
    assert name not in before
    added(kind)
    assert set(registry.names()) == {*before, name}
    assert isinstance(registry.get(name), registry.entry)
    with pytest.raises(InputError) as caught:
        registry.get(f"{name}x")
    assert f"did you mean '{name}'" in caught.value.hint


@pytest.mark.parametrize("kind", FILES)
def test_nothing_of_it_is_left(kind: str) -> None:
    registry, name, _ = FILES[kind]
    assert name not in registry.names()
    with pytest.raises(InputError, match="there is no"):
        registry.get(name)


def test_a_criterion_chooses_channels(added: Callable[..., None]) -> None:
    added("criterion")
    plan = planned(criterion="largest")
    weight = pair()["teacher"].get_parameter("block1.conv.weight").detach().abs().flatten(1).amax(1)
    assert plan.kept[0].channels == sorted(weight.topk(8).indices.tolist())
    assert plan.kept[0].criterion == "largest"
    small = shrink_model(pair()["teacher"], input_shape=(2, 1, 8, 8), keep=0.5, criterion="largest")
    assert small.kept["block1.conv.weight"] == plan.kept[0].channels


def test_a_data_source_and_an_augmentation_give_batches(added: Callable[..., None]) -> None:
    added("data source", "augmentation")
    plan = defaults("bright")
    assert (plan.augmentation, plan.classes) == (["darken:0.9"], ["black", "dark", "grey", "light"])
    data = load(plan)
    assert data.image_shape == (1, 8, 8)
    plain = torch.cat([batch["images"] for batch in batches(data.train, 32)])
    darker = torch.cat([batch["images"] for batch in batches(data.train, 32, augment=plan.augmentation)])
    factors = (darker / plain).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert 0.9 <= float(factors.min()) < float(factors.max()) <= 1.0
    with pytest.raises(ValueError, match=r"the augmentation 'darken:2' is wrong, least: .*write darken:LEAST"):
        plan.changed(augmentation=["darken:2"])


def test_an_operator_is_followed(added: Callable[..., None]) -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.sinc(self.two(torch.sinc(self.one(x)))).mean((2, 3)))
            return logits

    with pytest.raises(InputError):
        shrink_model(Waves(), input_shape=(2, 1, 8, 8), keep=0.5)
    added("operator")
    small = shrink_model(Waves(), input_shape=(2, 1, 8, 8), keep=0.5)
    assert {name: len(kept) for name, kept in small.kept.items()} == {"one.weight": 4, "two.weight": 4}


def test_a_method_makes_a_plan(added: Callable[..., None]) -> None:
    added("method", "loss with parameters", "criterion")
    plan = planned(method="encode-first+pkt", align="project")
    assert [stage.name for stage in plan.arm("distilled").stages] == ["encode", "main"]
    assert {term.loss for term in plan.arm("distilled").stages[0].losses} == {"encoder"}
    assert planned(method="encode-first").kept[0].criterion == "largest"
    program = build(plan, pair()["teacher"], pair()["student"])
    assert program.inputs == ("images", "index", "labels")
    assert len([name for name in program.trainable_state() if name.startswith("losses.") and "weight" in name]) == 3


def test_the_command_line_knows_them(
    added: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added()
    convnet = "fxdistill.models:convnet"
    path = tmp_path / "plan.json"
    sizes = ["--teacher-arg", "widths=[16,32,64]", "--teacher-arg", "classes=4", "--student-arg", "classes=4"]
    arguments = ["plan", convnet, convnet, *sizes, "--data", "bright", "--method", "encode-first", "--task", "ordinal",
                 "--epochs", "1", "-o", str(path)]  # fmt: skip
    status = run_command(arguments)
    assert status == 0, capsys.readouterr()
    plan = json.loads(path.read_text())
    assert (plan["method"], plan["task"], plan["data"]["spec"]) == ("encode-first", "ordinal", "bright")
    assert plan["kept"][0]["criterion"] == "largest"
    assert run_command([word.replace("encode-first", "encode-frist") for word in arguments]) == 2
    assert "did you mean 'encode-first'" in "".join(capsys.readouterr())


def run_command(arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fxdistill", *arguments])
        try:
            commands.main()
        except SystemExit as done:
            return int(done.code or 0)
    return 0


def test_all_of_them_run_together(added: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in which task, data, augmentation, method, criterion and both losses are a file of ours each."""
    added()
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))
    data = defaults("bright", task="ordinal", batch_size=32).changed(train_size=96)
    plan = planned(teacher=tmp_path / "teacher.pt", method="encode-first", task="ordinal", data=data, epochs=2, lr=0.01)
    (tmp_path / "plan.json").write_text(plan.to_json())
    result = execute(tmp_path / "plan.json", tmp_path / "run", Settings(device="cpu"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {pair.name for pair in plan.pairs}
    losses = [line["losses"] for line in lines if line["stage"] != "control"]
    assert {key for line in losses for key in line} == {f"encoder[{name}]" for name in names} | {"focal", "kd"}
    assert "f1" in json.dumps(result)
    assert plan.control is not None
    assert [term.loss for term in plan.control.losses] == ["focal"]

"""Shrinking from the command line and for use: what is written, when nothing is, and what the file is good for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner, Result

from fxdistill.cli.commands import app
from fxdistill.compiler.shrink_model import ShrunkResult, shrink_model, supervised_loss
from fxdistill.errors import InputError
from fxdistill.ir.graph import Traced
from fxdistill.ir.survivors import Survivors
from fxdistill.losses import LOSSES
from fxdistill.measure.onnx_file import export_checked
from fxdistill.measure.parity import Parity
from fxdistill.modelfiles import pt2
from fxdistill.modelfiles.load import load
from fxdistill.models import resnet
from fxdistill.passes import shrink as shrink_pass
from fxdistill.passes.trace import Trace
from fxdistill.tasks import TASKS
from tests.plugins import Add

CONVNET = ("fxdistill.models:convnet", "--factory-arg", "widths=[16,32]", "--input", "1x1x8x8")
RESNET = (
    "fxdistill.models:resnet",
    "--factory-arg",
    "widths=[16,32]",
    "--factory-arg",
    "blocks=1",
    "--input",
    "1x1x8x8",
)


def command(*args: object) -> Result:
    return CliRunner().invoke(app, ["shrink", *map(str, args)])


def widths(path: Path) -> dict[str, int]:
    module = load(path).module
    return {name: m.out_channels for name, m in module.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "bn", "random", "tp.lamp"])
def test_every_criterion_from_the_command_line(tmp_path: Path, criterion: str) -> None:
    done = command(*RESNET, "--keep", 0.5, "--by", criterion, "-o", tmp_path / "aux.pt")
    assert done.exit_code == 0, done.output
    assert "proof: equals the masked original" in done.output
    found = widths(tmp_path / "aux.pt")
    assert set(found.values()) == {8, 16}


def test_taylor_wants_data(tmp_path: Path) -> None:
    path = tmp_path / "aux.pt"
    done = command(*CONVNET, "--keep", 0.5, "--by", "taylor", "-o", path)
    assert done.exit_code == 2
    assert "--data" in done.stderr
    assert not path.exists()
    done = command(*CONVNET, "--keep", 0.5, "--by", "taylor", "--data", "digits", "-o", path)
    assert done.exit_code == 0, done.output
    assert set(widths(path).values()) == {8, 16}


def test_widths_are_multiples_for_hardware(tmp_path: Path) -> None:
    assert command(*CONVNET, "--keep", 0.3, "--round-to", 8, "-o", tmp_path / "aux.pt").exit_code == 0
    assert set(widths(tmp_path / "aux.pt").values()) == {8}


@pytest.mark.parametrize(
    "options", [("--macs", "0.5"), ("--macs", "250k", "--params", "0.9", "--ranking", "isomorphic")]
)
def test_a_budget_is_met_and_shown(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = command(*RESNET, *options, "--scope", "stem=1", "-o", tmp_path / "aux.pt")
    assert done.exit_code == 0, done.output
    own = Trace((1, 1, 8, 8))(resnet(in_channels=1, widths=(16, 32), blocks=1).eval()).value.macs
    found = Trace((1, 1, 8, 8))(load(tmp_path / "aux.pt").module).value.macs
    most = own // 2 if options[1] == "0.5" else 250_000
    assert 0.98 * most <= found <= most
    assert f"({found / own:.1%})" in done.output
    assert widths(tmp_path / "aux.pt")["stem.0"] == 16


def test_a_budget_is_of_an_image_however_many_a_batch_has(tmp_path: Path) -> None:
    said = []
    for shape in ("1x1x8x8", "4x1x8x8"):
        done = command(*RESNET[:-1], shape, "--macs", "250k", "-o", tmp_path / "aux.pt")
        assert done.exit_code == 0, done.output
        said.append(next(line for line in done.output.splitlines() if "MACs" in line))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keep", 0.99, "--round-to", 64), "the request changes nothing"),
        (("--keep", 0.5, "--protect", "stem", "--protect", "layers"), "is protected by"),
        (("--keep", 0.5, "--only", "classifier"), "the request changes nothing"),
        (("--keep", 0.5, "--protect", "nowhere"), "no node or module has the path 'nowhere'"),
        (("--keep", 0.5, "--by", "l7"), "there is no criterion named 'l7' where: --by to do: did you mean 'l2'?"),
        (("--keep", "nan"), "the share to keep is nan"),
        ((), "nothing says how much to keep"),
        (("--macs", "0.5", "--keep", "0.5"), "both --macs and --keep say how much to keep where: --keep"),
        (("--macs", "0"), "'0' is no budget where: --macs"),
        (("--macs", "-1"), "'-1' is no budget where: --macs"),
        (("--params", "1.5"), "'1.5' is no budget where: --params"),
        (("--params", "nan"), "'nan' is no number where: --params"),
        (("--macs", "9e99G"), "the model has no more than"),
        (("--macs", "half"), "'half' is no number where: --macs to do: write --macs 0.5 or 900M"),
        (("--macs", "100"), "100 MACs cannot be met: with the fewest channels that a layer may have there are"),
        (("--params", "1G"), "parameters, and 1,000,000,000 are allowed where: --params"),
        (("--macs", "0.5", "--scope", "layers"), "'layers' is not a part with its share where: --scope"),
        (("--macs", "0.5", "--scope", "stem=1", "--scope", "stem=0.5"), "two shares are given for 'stem'"),
    ],
)
def test_what_changes_nothing_or_cannot_be_fails_and_writes_nothing(
    tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    done = command(*RESNET, *options, "-o", tmp_path / "aux.pt")
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--protect", "layers.layer1"), ("--only", "layers.layer2")])
def test_a_part_is_pruned_and_the_rest_is_listed_with_its_reason(tmp_path: Path, option: tuple[str, str]) -> None:
    done = command(*RESNET, "--keep", 0.5, *option, "-o", tmp_path / "aux.pt")
    assert done.exit_code == 0, done.output
    found = widths(tmp_path / "aux.pt")
    assert {width for name, width in found.items() if "layer2" in name} == {16}
    assert {width for name, width in found.items() if "layer1" in name} == {16}
    said = " ".join(done.output.split())
    reason = "is protected by 'layers.layer1'" if option[0] == "--protect" else "outside of what is to be pruned"
    for path in ("stem.0", "layers.layer1.0.conv1", "layers.layer1.0.conv2"):
        assert f"not-pruned {path}: keeps its 16 outputs" in said
    assert reason in said


def test_a_failed_proof_names_the_node_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = shrink_pass.slice_weights

    def wrong(traced: Traced, survivors: Survivors, module: nn.Module) -> None:
        right(traced, survivors, module)
        weight = module.get_parameter("layers.layer1.0.conv2.weight")
        weight.data = weight.data.flip(0)

    monkeypatch.setattr(shrink_pass, "slice_weights", wrong)
    done = command(*RESNET, "--keep", 0.5, "-o", tmp_path / "aux.pt")
    assert done.exit_code == 1
    assert "disagrees with the masked full one, first at 'layers.layer1.0.conv2'" in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_shrunk_again(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    assert command(*RESNET, "--keep", 0.5, "-o", one).exit_code == 0
    assert command(one, "--keep", 0.5, "-o", two).exit_code == 0
    assert set(widths(two).values()) == {4, 8}


class Detector(nn.Module):
    """Two skips, a transposed convolution, an addition; two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        y: Tensor = self.out(torch.cat([x, self.up(self.deep(x))], 1)).mean((2, 3))
        return y


def shrunken() -> ShrunkResult:
    return shrink_model(Detector().eval(), input_shape=(2, 3, 16, 16), keep=0.5)


def test_every_parameter_learns_and_statistics_move() -> None:
    module = shrunken().module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.autograd.backward(F.cross_entropy(module(torch.randn(4, 3, 16, 16)), torch.arange(4)))
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []
    optimizer.step()
    after = module.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    # a bias before a normalisation has no gradient but rounding
    assert still <= {"down.0.bias", "deep.0.bias"}


def test_onnx_agrees(tmp_path: Path) -> None:
    module = shrunken().module
    images, task = [torch.randn(4, 3, 16, 16)], TASKS.get("classification")
    _, measured = export_checked(module, tmp_path / "aux.onnx", images, task=task, input_shape=(1, 3, 16, 16))
    assert isinstance(measured, Parity)
    assert measured.max_abs_error <= 1e-4
    assert (tmp_path / "aux.onnx").exists()


LOAD = """
import sys
sys.modules["fxdistill"] = None
import torch
saved = torch.load(sys.argv[2], weights_only=False)
assert torch.equal(saved["module"](saved["images"]), saved["logits"])
torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(saved["images"]), saved["logits"])
"""


def test_the_module_and_the_exported_file_need_no_fxdistill(tmp_path: Path) -> None:
    result, images = shrunken(), torch.randn(2, 3, 16, 16)
    pt2.save(result.module, tmp_path / "aux.pt2", input_shape=result.input_shape)
    expected = {"module": result.module, "images": images, "logits": result.module(images).detach()}
    torch.save(expected, tmp_path / "expected.pt")
    files = [str(tmp_path / name) for name in ("aux.pt2", "expected.pt")]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *files], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "aux.pt2", trust_code=True).module(images), result.module(images))


def test_gradients_of_a_loss_of_more_than_labels_are_refused(add: Add) -> None:
    source = "from fxdistill.losses import Loss\nLOSS = Loss(reads=('student.logits', 'index'), function=min)\n"
    add(LOSSES, "by-index", source)

    class Numbered(type(TASKS.get("classification"))):  # type: ignore[misc]
        supervised = "by-index"

    with pytest.raises(InputError, match="has the loss 'by-index', which reads more than prediction and labels"):
        supervised_loss(Numbered())(torch.zeros(2, 3), torch.zeros(2))


def test_a_criterion_that_reads_labels_says_where_there_are_none() -> None:
    loss = supervised_loss(TASKS.get("classification"))
    predictions = torch.randn(3, 4)
    assert loss(predictions, torch.tensor([1, -100, 2])).item() > 0
    with pytest.raises(InputError, match="none of the images has a label, so there are no gradients"):
        loss(predictions, torch.full((3,), -100))

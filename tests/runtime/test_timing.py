"""How long models take: what is timed, of what size, and what is said of it."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

import fxdistill
from fxdistill.cli.commands import app
from fxdistill.errors import InputError
from fxdistill.measure import latency, onnx_file
from fxdistill.measure.latency import Latency
from fxdistill.report.timing_view import timing_view
from fxdistill.runtime.deployment import deploy, finding, timing
from fxdistill.runtime.deployment.timing import Timed
from tests import runs


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))


class Counting(nn.Module):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[tuple[int, ...], bool, bool, int]] = []
        self.layer = nn.Conv2d(1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.given.append((tuple(x.shape), self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        logits: Tensor = self.layer(x).mean((2, 3))
        return logits


def test_models_take_turns_at_every_batch_size(tmp_path: Path) -> None:
    model, before = Counting().train(), torch.get_num_threads()
    found = finding.find(model, input_shape=(1, 1, 8, 8))
    deploy.exported(found, tmp_path / "file.onnx")
    models = {"module": found, "file": finding.find(str(tmp_path / "file.onnx"))}
    model.given.clear()
    made = timing.timed(models, batches=[1, 4], repeats=3, eager=True)
    assert [(one.model, one.batch, one.latency.provider) for one in made] == [
        (name, batch, by)
        for batch in (1, 4)
        for name, by in (("module", "CPUExecutionProvider"), ("module", "torch"), ("file", "CPUExecutionProvider"))
    ]
    own = [one for one in model.given if one[2]]  # not those of the export
    assert own == [((batch, 1, 8, 8), False, True, 1) for batch in (1, 4) for _ in range(5 + 3)]
    assert model.training
    assert torch.get_num_threads() == before
    for one in made:
        assert 0 < one.latency.p10 <= one.latency.median_ms <= one.latency.p90
        assert one.images_per_second == pytest.approx(1000 * one.batch / one.latency.median_ms)


def test_a_model_of_another_precision_is_timed_as_it_is_and_exported_in_float32(tmp_path: Path) -> None:
    layer = nn.Conv2d(1, 3, 3).half()
    model = nn.Sequential(layer, nn.Flatten())
    weight = layer.weight.detach().clone()
    nn.init.constant_(layer.weight, torch.nan)
    file, target = tmp_path / "half.pt", tmp_path / "half.onnx"
    fxdistill.save(model, file, input_shape=(1, 1, 8, 8))
    done = CliRunner().invoke(app, ["bench", str(file), "--torch", "--repeats", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert [(one["latency"]["provider"], one["image"]) for one in json.loads(done.stdout)] == [
        ("CPUExecutionProvider", [1, 8, 8]), ("torch", [1, 8, 8]),
    ]  # fmt: skip
    assert "weights-not-finite" in done.stderr
    layer.weight.data = weight
    fxdistill.save(model, file, input_shape=(1, 1, 8, 8))
    done = CliRunner().invoke(app, ["export", str(file), "-o", str(target)])
    assert (done.exit_code, "in float32, the model's weights are float16" in done.stdout) == (0, True), done.output


def test_calls_are_made_in_turn() -> None:
    called: list[str] = []
    calls = {name: (lambda name=name: called.append(name)) for name in "ab"}
    seconds = latency.interleaved(calls, repeats=2, warmup=1)
    assert called == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_file_that_normalises_itself_gets_pixels(tmp_path: Path) -> None:
    runs.plan_file()
    found = finding.find(str(runs.workshop() / "teacher.pt"), data="digits")
    deploy.exported(found, tmp_path / "pixels.onnx", embed=True)
    (made,) = timing.timed({"it": finding.find(str(tmp_path / "pixels.onnx"))}, batches=[2], repeats=1)
    assert made.latency.median_ms > 0


def test_the_command_says_it_in_a_table_and_as_json(tmp_path: Path) -> None:
    runs.plan_file()
    teacher, other = runs.workshop() / "teacher.pt", tmp_path / "t.onnx"
    deploy.export(teacher, other)
    words = ["bench", str(teacher), str(other), "--batch", "1", "--batch", "2", "--repeats", "2"]
    table = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert table.exit_code == 0, table.output
    header, *rows, note = table.output.splitlines()
    assert header.split() == ["model", "batch", "runs", "in", "median", "10th", "to", "90th", "images/s", "speed"]
    assert [row.split()[:3] for row in rows] == [
        [str(name), batch, "CPU"] for batch in ("1", "2") for name in (teacher, other)
    ]
    assert [rows[place].split()[-1] for place in (0, 2)] == ["1.00x", "1.00x"]
    assert note == "2 runs of each, in turn; threads within an operator: 1; images of 1x8x8"
    told = json.loads(CliRunner().invoke(app, [*words, "--json", "--torch"]).output)
    assert [(one["model"], one["batch"], one["latency"]["provider"]) for one in told[:2]] == [
        (str(teacher), 1, "CPUExecutionProvider"), (str(teacher), 1, "torch"),
    ]  # fmt: skip
    assert all(
        one["images_per_second"] * one["latency"]["median_ms"] == pytest.approx(1e3 * one["batch"]) for one in told
    )


def test_what_cannot_be_timed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.plan_file()
    teacher = str(runs.workshop() / "teacher.pt")
    twice = CliRunner().invoke(app, ["bench", teacher, teacher])
    assert (twice.exit_code, "named twice" in twice.output) == (2, True)
    missing = CliRunner().invoke(app, ["bench", str(tmp_path / "no.onnx")])
    assert (missing.exit_code, "no such file" in missing.output) == (2, True)
    sized = CliRunner().invoke(app, ["bench", str(runs.finished()), "--input", "1x1x16x16"])
    assert (sized.exit_code, "a run already says what its models read" in sized.output) == (2, True)
    with pytest.raises(InputError, match=r"take .* GB of memory"):
        timing.timed({"it": finding.find(teacher)}, batches=[1 << 50])
    for words in (["--batch", "2000000"], ["--threads", "100000"]):
        assert CliRunner().invoke(app, ["bench", teacher, *words]).exit_code == 2
    with pytest.raises(InputError, match="nothing to time"):
        timing.timed({})
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ())  # what is not there is told before anything is written
    nowhere = CliRunner().invoke(app, ["bench", teacher, "--provider", "Nowhere"])
    assert (nowhere.exit_code, "no working Nowhere" in nowhere.output) == (2, True)


@pytest.mark.parametrize("name", ["CPU", "cpu", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_a_provider_has_its_whole_name_or_a_short_one(name: str) -> None:
    assert latency.provider_called(name) == "CPUExecutionProvider"
    assert latency.provider_called("Nowhere") == "NowhereExecutionProvider"


def test_throughput_is_that_of_the_median_run() -> None:
    one = Timed("m", 32, Latency(median_ms=8.0, p10=7.0, p90=9.0, provider="torch"), (3, 8, 8))
    assert one.images_per_second == 4000


def test_images_of_several_sizes_are_told_apart() -> None:
    time = Latency(median_ms=8.0, p10=7.0, p90=9.0, provider="torch")
    made = [Timed(name, batch, time, (3, side, side)) for batch in (1, 2) for name, side in (("a", 8), ("b", 4))]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(timing_view(made, threads=1, repeats=2))
    assert "images of 3x8x8 (a), 3x4x4 (b)" in shown.get()


def test_from_python_models_are_timed_by_name_or_by_themselves(tmp_path: Path) -> None:
    model = Counting()
    fxdistill.export(model, tmp_path / "file.onnx", input_shape=(1, 1, 8, 8))
    by_name = fxdistill.bench(
        {"own": model, "file": tmp_path / "file.onnx"}, input_shape=(1, 1, 8, 8), batches=[2], repeats=2, torch=True
    )
    assert [(one.model, one.batch, one.latency.provider) for one in by_name] == [
        ("own", 2, "CPUExecutionProvider"), ("own", 2, "torch"), ("file", 2, "CPUExecutionProvider"),
    ]  # fmt: skip
    (alone,) = fxdistill.bench([tmp_path / "file.onnx"], repeats=1)
    assert (alone.model, alone.image) == (str(tmp_path / "file.onnx"), (1, 8, 8))
    with pytest.raises(InputError, match="Missing") as refused:
        fxdistill.bench([tmp_path / "file.onnx"], provider="Missing")
    assert "CPU" in str(refused.value)
    for numbers in ({"threads": 0}, {"batches": [1, 0]}):
        with pytest.raises(InputError, match="0 is no whole number from 1 "):
            fxdistill.bench([tmp_path / "file.onnx"], **numbers)

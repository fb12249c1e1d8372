"""Measures against brute force: loops over queries and ranks, scikit-learn, hand-made cases."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from fxdistill.errors import DataError, InputError, ModelError
from fxdistill.measure import evaluate
from fxdistill.measure.evaluate import Retrieval


def linear_onnx(path: Path, *, size: int = 8) -> Path:
    """``logits = input @ W`` for any batch."""
    weight = onnx.numpy_helper.from_array(np.eye(size, dtype=np.float32), "weight")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["input", "weight"], ["logits"])], "linear",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", size])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", size])], [weight],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(model, path)
    return path


def brute_force(database: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor, metric: str) -> np.ndarray:
    rows = []
    for query, label in zip(queries.double().numpy(), query_labels.tolist(), strict=True):
        items = database.double().numpy()
        if metric == "cosine":
            score = items @ query / (np.linalg.norm(items, axis=1) * np.linalg.norm(query))
        else:
            score = -np.linalg.norm(items - query, axis=1)
        relevant = np.array([labels[i].item() == label for i in np.argsort(-score, kind="stable")])
        precision = [relevant[: k + 1].mean() for k in range(len(relevant))]
        recall = np.array([relevant[: k + 1].sum() / relevant.sum() for k in range(len(relevant))])
        average = np.mean([precision[k] for k in range(len(relevant)) if relevant[k]])
        # the products keep ties exact, where 0.1, 0.2 … would round them apart
        nearest = [
            int(np.argmin(np.abs(np.round(10 * recall * relevant.sum()) - i * relevant.sum()))) for i in range(11)
        ]
        rows.append([average, np.mean([precision[k] for k in nearest]), relevant[:100].mean()])
    return np.asarray(np.mean(rows, axis=0))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(("size", "chunk"), [(150, 7), (40, 256), (37, 1)])
def test_retrieval_is_brute_force(metric: evaluate.Metric, size: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(size)
    database, queries = torch.randn(size, 6, generator=generator), torch.randn(20, 6, generator=generator)
    labels = torch.arange(size) % 4
    query_labels = torch.randint(4, (20,), generator=generator)
    found = evaluate.retrieval(database, labels, queries, query_labels, metric=metric, chunk=chunk)
    expected = brute_force(database, labels, queries, query_labels, metric)
    assert [found.mean_ap, found.mean_ap_11, found.top_100] == pytest.approx(expected.tolist(), abs=1e-12)


def test_mean_ap_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(3)
    database, queries = torch.randn(60, 5, generator=generator), torch.randn(10, 5, generator=generator)
    labels = torch.randint(3, (60,), generator=generator)
    found = evaluate.retrieval(database, labels, queries, torch.ones(10, dtype=torch.long), metric="l2")
    scores = -torch.cdist(queries, database).numpy()
    assert found.mean_ap == pytest.approx(np.mean([average_precision_score(labels == 1, s) for s in scores]), abs=1e-9)


def test_retrieval_by_hand() -> None:
    # ranks: relevant, not, relevant, not; precision 1, 1/2, 2/3, 1/2; recall 1/2, 1/2, 1, 1
    database, labels = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([5, 1, 5, 1])
    found = evaluate.retrieval(database, labels, torch.zeros(1, 1), torch.tensor([5]), metric="l2")
    # recalls 0 to 0.7 are nearest to 1/2 (rank 1), 0.8 to 1 to 1 (rank 3)
    assert [found.mean_ap, found.mean_ap_11, found.top_100] == [
        pytest.approx(5 / 6),
        pytest.approx((8 + 3 * 2 / 3) / 11),
        pytest.approx(0.5),
    ]


def test_perfect_and_hopeless_retrieval() -> None:
    database, labels = torch.eye(3).repeat(60, 1), torch.arange(3).repeat(60)
    perfect = evaluate.retrieval(database, labels, torch.eye(3), torch.arange(3), metric="cosine")
    assert (perfect.mean_ap, perfect.mean_ap_11, perfect.top_100) == (1.0, 1.0, 0.6)
    hopeless = evaluate.retrieval(database, labels, torch.eye(3), torch.tensor([7, 8, 9]), metric="cosine")
    assert hopeless == Retrieval(0.0, 0.0, 0.0)


def test_top_100_looks_at_100() -> None:
    database, labels = torch.arange(200.0).unsqueeze(1), (torch.arange(200) < 30).long()
    found = evaluate.retrieval(database, labels, torch.zeros(1, 1), torch.tensor([1]), metric="l2")
    assert found.top_100 == pytest.approx(0.3)
    assert found.mean_ap == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("database", "labels", "queries", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2), torch.zeros(1, 2), "one label for each feature(.|\n)*database"),
        (torch.zeros(0, 2), torch.zeros(0), torch.zeros(1, 2), "at least one feature"),
        (torch.zeros(3, 2), torch.zeros(3), torch.zeros(1, 5), "have 2 entries, the queries' 5"),
    ],
)
def test_retrieval_refuses_what_does_not_fit(database: Tensor, labels: Tensor, queries: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate.retrieval(database, labels, queries, torch.zeros(1), metric="l2")


class Mode(nn.Module):
    """Right in eval mode, wrong in training mode; a structured output if asked for."""

    def __init__(self, *, structured: bool = False) -> None:
        super().__init__()
        self.norm, self.frozen, self.structured = nn.BatchNorm1d(4), nn.Dropout().eval(), structured

    def forward(self, x: Tensor) -> object:
        assert torch.is_inference_mode_enabled()
        logits = -x if self.training else self.norm(self.frozen(x))
        return {"aux": -x, "out": logits} if self.structured else logits


@pytest.mark.parametrize("structured", [False, True])
def test_accuracy_in_eval_mode_with_modes_restored(structured: bool) -> None:
    module = Mode(structured=structured).train()
    module.frozen.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    batches = [(torch.eye(4), torch.tensor([0, 1, 2, 2])), (torch.eye(4)[:1], torch.tensor([0]))]
    assert evaluate.accuracy(module, batches) == pytest.approx(4 / 5)
    assert (module.training, module.norm.training, module.frozen.training) == (True, True, False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_modes_are_restored_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError, match="shape"):
        evaluate.accuracy(module, [(torch.zeros(1, 3), torch.zeros(1))])
    assert module.training
    assert module[0].training


def test_accuracy_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate.accuracy(nn.Identity(), [])


def test_prediction_of_structured_outputs() -> None:
    tensor = torch.zeros(1)
    for output in (
        tensor,
        (tensor, None),
        [(tensor,)],
        {"out": tensor, "aux": None},
        {"x": 1, "logits": tensor},
        {"y": (tensor,)},
    ):
        assert evaluate.prediction(output) is tensor
    with pytest.raises(ModelError, match="no tensor"):
        evaluate.prediction({})


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 4)
    assert evaluate.parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 16


def test_latencies_are_measured_side_by_side(tmp_path: Path) -> None:
    paths = {"small": linear_onnx(tmp_path / "small.onnx"), "large": linear_onnx(tmp_path / "large.onnx")}
    found = evaluate.interleaved_latency(paths, (2, 8), repeats=20, warmup=2)
    assert list(found) == ["small", "large"]
    for latency in found.values():
        assert 0 < latency.p10 <= latency.median_ms <= latency.p90 < 1000
        assert latency.provider == "CPUExecutionProvider"
    assert evaluate.onnx_latency(paths["small"], (1, 8), repeats=3).median_ms > 0


def test_more_work_takes_longer(tmp_path: Path) -> None:
    paths = {
        "small": linear_onnx(tmp_path / "s.onnx", size=512),
        "same": linear_onnx(tmp_path / "t.onnx", size=512),
    }
    found = evaluate.interleaved_latency({"small": paths["small"]}, (1, 512), repeats=10)
    wide = evaluate.interleaved_latency({"same": paths["same"]}, (256, 512), repeats=10)
    assert wide["same"].median_ms > found["small"].median_ms


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"provider": "NoSuchProvider"}, InputError, "no working NoSuchProvider(.|\n)*CPUExecutionProvider"),
        ({"repeats": 0}, InputError, "at least one timed run"),
        ({"input_shape": (1, 9)}, ModelError, "does not run on an input of shape"),
        ({"path": Path("missing.onnx")}, ModelError, "cannot load the model"),
    ],
)
def test_latency_errors(
    tmp_path: Path,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    call = {"path": linear_onnx(tmp_path / "x.onnx"), "input_shape": (1, 8), **change}
    with pytest.raises(error, match=message):
        evaluate.onnx_latency(**call)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"<html>")
    with pytest.raises(ModelError, match="cannot load the model"):
        evaluate.open_session(tmp_path / "x.onnx")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_accuracy_moves_batches_to_the_module() -> None:
    assert evaluate.accuracy(nn.BatchNorm1d(4).cuda(), [(torch.eye(4), torch.arange(4))]) == 1.0

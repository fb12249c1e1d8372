"""Retrieval scores against brute force: loops over queries and ranks, scikit-learn, hand-made cases."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torchmetrics.retrieval import RetrievalPrecision

from fxdistill.errors import DataError
from fxdistill.tasks import _ranking
from fxdistill.tasks._ranking import Measure, Ranking, rank


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
def test_retrieval_is_brute_force(metric: Measure, size: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(size)
    database, queries = torch.randn(size, 6, generator=generator), torch.randn(20, 6, generator=generator)
    labels = torch.arange(size) % 4
    query_labels = torch.randint(4, (20,), generator=generator)
    found = rank(database, labels, queries, query_labels, metric=metric, chunk=chunk)
    expected = brute_force(database, labels, queries, query_labels, metric)
    assert [found.mean_ap, found.mean_ap_11, found.top_100] == pytest.approx(expected.tolist(), abs=1e-12)


def test_mean_ap_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(3)
    database, queries = torch.randn(60, 5, generator=generator), torch.randn(10, 5, generator=generator)
    labels = torch.randint(3, (60,), generator=generator)
    found = rank(database, labels, queries, torch.ones(10, dtype=torch.long), metric="l2")
    scores = -torch.cdist(queries, database).numpy()
    assert found.mean_ap == pytest.approx(np.mean([average_precision_score(labels == 1, s) for s in scores]), abs=1e-9)


def test_retrieval_by_hand() -> None:
    # ranks: relevant, not, relevant, not; precision 1, 1/2, 2/3, 1/2; recall 1/2, 1/2, 1, 1
    database, labels = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([5, 1, 5, 1])
    found = rank(database, labels, torch.zeros(1, 1), torch.tensor([5]), metric="l2")
    # recalls 0 to 0.7 are nearest to 1/2 (rank 1), 0.8 to 1 to 1 (rank 3)
    assert [found.mean_ap, found.mean_ap_11, found.top_100] == [
        pytest.approx(5 / 6),
        pytest.approx((8 + 3 * 2 / 3) / 11),
        pytest.approx(0.5),
    ]


def test_perfect_and_hopeless_retrieval() -> None:
    database, labels = torch.eye(3).repeat(60, 1), torch.arange(3).repeat(60)
    perfect = rank(database, labels, torch.eye(3), torch.arange(3), metric="cosine")
    assert (perfect.mean_ap, perfect.mean_ap_11, perfect.top_100) == (1.0, 1.0, 0.6)
    hopeless = rank(database, labels, torch.eye(3), torch.tensor([7, 8, 9]), metric="cosine")
    assert hopeless == Ranking(0.0, 0.0, 0.0)


def test_top_100_looks_at_100() -> None:
    database, labels = torch.arange(200.0).unsqueeze(1), (torch.arange(200) < 30).long()
    found = rank(database, labels, torch.zeros(1, 1), torch.tensor([1]), metric="l2")
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
        rank(database, labels, queries, torch.zeros(1), metric="l2")


def test_a_large_database_is_ranked_for_fewer_queries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    database, labels = torch.randn(50, 4, generator=generator), torch.arange(50) % 3
    whole = rank(database, labels, database, labels)
    for most in (1, 120):
        monkeypatch.setattr(_ranking, "_MOST_DISTANCES", most)
        found = rank(database, labels, database, labels)
        assert astuple(found)[:3] == pytest.approx(astuple(whole)[:3], abs=1e-12)


def test_integers_are_sorted_as_the_distances_are() -> None:
    few = torch.tensor([0.0, -0.0, 1.5, -1.5, 1e-45, -1e-45, 3e38, -3e38, torch.inf, -torch.inf])
    generator = torch.Generator().manual_seed(1)
    ties = few[torch.randint(len(few), (40, 300), generator=generator)]
    for distance in (ties, torch.randn(40, 300, generator=generator)):
        order = _ranking._ordered(distance).sort(dim=1).values % (1 << 32) // 2
        assert torch.equal(order, distance.argsort(dim=1, stable=True))
    lost = torch.tensor([[-torch.nan, 2.0, torch.nan, -torch.inf, 1.0]])  # the last ones, whatever their sign
    assert (_ranking._ordered(lost).sort(dim=1).values % (1 << 32) // 2).tolist() == [[3, 4, 1, 0, 2]]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_precision_at_k_is_that_of_torchmetrics(metric: Measure) -> None:
    generator = torch.Generator().manual_seed(7)
    database, queries = torch.randn(70, 5, generator=generator), torch.randn(12, 5, generator=generator)
    labels = torch.randint(3, (70,), generator=generator)
    query_labels = torch.randint(4, (12,), generator=generator)  # of the last class the database has none
    ranks = (1, 2, 10, 69, 70, 100, 1000)
    found = rank(database, labels, queries, query_labels, metric=metric, at=ranks, chunk=5)
    unit = torch.nn.functional.normalize
    near = unit(queries) @ unit(database).T if metric == "cosine" else -torch.cdist(queries, database)
    near = near - near.min() + 1  # theirs takes a score of 0 for "not found"
    rows = torch.arange(12).repeat_interleave(70)
    for k, precision in zip(ranks, found.precision, strict=True):
        theirs = RetrievalPrecision(top_k=k, adaptive_k=True, empty_target_action="neg")
        theirs.update(near.flatten(), (labels == query_labels.unsqueeze(1)).flatten(), indexes=rows)
        assert precision == pytest.approx(float(theirs.compute()), abs=1e-6)
    assert found.top_100 == found.precision[ranks.index(100)]
    usual = rank(database, labels, queries, query_labels, metric=metric, chunk=5)
    assert replace(usual, precision=found.precision) == found

"""Retrieval scores: the database is ranked for every query.

With rel(k) = 1 where rank k has the query's class, R the number of such items in the database and P(k) the share of
them among the first k ranks:

    mean_ap      mean over queries of  (1 / R) Σ_k rel(k) P(k), the usual mean average precision
    mean_ap_11   mean over queries of  (1 / 11) Σ_r P(k_r) over r = 0, 0.1 … 1, where k_r is the first rank
                 whose recall is nearest to r, and P is not interpolated
    top_100      mean over queries of  P(100)
    precision    the same for other k

The two averages differ: 11-point figures, which the papers on PKT and InDistill report, compare with each
other only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from fxdistill.errors import DataError

Measure = Literal["cosine", "l2"]
_MOST_DISTANCES = 1 << 24


@dataclass(frozen=True)
class Ranking:
    """Retrieval scores, each from 0 to 1. See the module docstring."""

    mean_ap: float
    mean_ap_11: float
    top_100: float
    precision: tuple[float, ...] = ()


@torch.inference_mode()
def rank(
    database_features: Tensor, database_labels: Tensor, query_features: Tensor, query_labels: Tensor,
    *, metric: Measure = "cosine", chunk: int = 256, at: Sequence[int] = (),
) -> Ranking:  # fmt: skip
    """Rank the database for each query and score the ranks. See the module docstring.

    Args:
        database_features: (N, D), or (N, ...), flattened.
        database_labels: (N,) class indices.
        query_features: (Q, D), on the database's device.
        query_labels: (Q,). A query whose class the database has not scores 0.
        metric: ``cosine`` similarity or ``l2`` distance; items equally near keep the database's order.
        at: At which k precision is wanted beside 100; of a smaller database the whole counts.
        chunk: Queries ranked at once, less for a large database; takes about 40 bytes x chunk x N.

    Raises:
        DataError: Nothing to search, no queries, or features and labels that do not go together.
    """
    database, queries = database_features.flatten(1).float(), query_features.flatten(1).float()
    _check(database, database_labels, queries, query_labels)
    totals = torch.zeros(3 + len(at), dtype=torch.double, device=database.device)
    for relevant in _ranked(database, database_labels, queries, query_labels, metric=metric, chunk=chunk):
        totals += _scores(relevant, (100, *at)).sum(0)
    average, eleven, top_100, *precision = (totals / len(queries)).tolist()
    return Ranking(average, eleven, top_100, tuple(precision))


@torch.inference_mode()
def average_precisions(
    database_features: Tensor, database_labels: Tensor, query_features: Tensor, query_labels: Tensor
) -> Tensor:
    """The average precision of each query by cosine, (Q,), double: their mean is ``mean_ap`` of :func:`rank`."""
    database, queries = database_features.flatten(1).float(), query_features.flatten(1).float()
    _check(database, database_labels, queries, query_labels)
    found = _ranked(database, database_labels, queries, query_labels)
    return torch.cat([_scores(relevant, ())[:, 0] for relevant in found])


def _ranked(
    database: Tensor, database_labels: Tensor, queries: Tensor, query_labels: Tensor,
    *, metric: Measure = "cosine", chunk: int = 256,
) -> Iterator[Tensor]:  # fmt: skip
    """Whether what stands at each rank is of a query's class, (q, N), some queries at once."""
    if metric == "cosine":
        database, queries = F.normalize(database), F.normalize(queries)
    chunk = max(1, min(chunk, _MOST_DISTANCES // len(database)))
    for start in range(0, len(queries), chunk):
        features, labels = queries[start : start + chunk], query_labels[start : start + chunk]
        distance = -(features @ database.t()) if metric == "cosine" else torch.cdist(features, database)
        yield database_labels[distance.argsort(dim=1, stable=True)] == labels.unsqueeze(1)


def _check(database: Tensor, database_labels: Tensor, queries: Tensor, query_labels: Tensor) -> None:
    for name, features, labels in (
        ("database", database, database_labels),
        ("queries", queries, query_labels),
    ):
        if not len(features) or labels.shape != (len(features),):
            raise DataError(
                f"retrieval needs one label for each feature, and at least one feature: got features "
                f"{tuple(features.shape)} and labels {tuple(labels.shape)}",
                where=f"retrieval, {name}",
            )
    if database.shape[1] != queries.shape[1]:
        raise DataError(
            f"the database's features have {database.shape[1]} entries, the queries' {queries.shape[1]}",
            where="retrieval",
            hint="take both from the same layer of the same model",
        )


def _scores(relevant: Tensor, at: Sequence[int]) -> Tensor:
    """Average precision, 11-point precision and precision at each k, (q, 2 + k's), of ranked relevances (q, N)."""
    hits = relevant.cumsum(1)
    total = hits[:, -1:]
    precision = hits / torch.arange(1, relevant.shape[1] + 1, device=hits.device, dtype=torch.double)
    average = (precision * relevant).sum(1) / total.squeeze(1).clamp_min(1)
    # the hits at which recall is nearest to i / 10: i R / 10, rounded with halves down, in integers
    wanted = (torch.arange(11, device=hits.device) * total + 4) // 10
    ranks = torch.searchsorted(hits, wanted)
    eleven = precision.gather(1, ranks).mean(1)
    first = [precision[:, min(k, relevant.shape[1]) - 1] for k in at]
    return torch.stack([average, eleven, *first], dim=1)

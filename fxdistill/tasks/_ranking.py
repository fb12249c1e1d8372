"""Retrieval scores: the database is ranked for every query.

With rel(k) = 1 where rank k has the query's class, R the number of such items in the database and P(k) the share of
them among the first k ranks:

    mean_ap      mean over queries of  (1 / R) Σ_k rel(k) P(k), the usual mean average precision
    mean_ap_11   mean over queries of  (1 / 11) Σ_r P(k_r) over r = 0, 0.1 … 1, where k_r is the first rank
                 whose recall is nearest to r, and P is not interpolated
    top_100      mean over queries of  P(100)
    precision    the same for other k

The n-th hit, at rank k, has P(k) = n / k: scores are made of where the hits stand alone. What is sorted is one integer
for each item, so that equal distances keep the database's order, and the hits are read off the sorted integers:

    distance, as an integer of the same order  ·  place in the database  ·  rel
    63 … 32                                       31 … 1                    0

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
_MOST_DISTANCES = 1 << 21
"""At once: numbers that stay near the processor are read again and again at little cost."""


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
        chunk: Queries ranked at once, less for a large database.

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
        relevant = database_labels == labels.unsqueeze(1)
        yield (_ordered(distance) | relevant).sort(dim=1).values & 1 == 1


def _ordered(distance: Tensor) -> Tensor:
    """Integers that are sorted as float32 distances (q, N) are, equal ones by their place; the lowest bit is free."""
    bits = (distance + 0.0).nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).view(torch.int32)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of negative numbers, the larger the bits the less they are
    return (rising.long() << 32) | torch.arange(0, 2 * distance.shape[1], 2, device=distance.device)


def _check(database: Tensor, database_labels: Tensor, queries: Tensor, query_labels: Tensor) -> None:
    for name, features, labels in (("database", database, database_labels), ("queries", queries, query_labels)):
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
    row, place = relevant.nonzero(as_tuple=True)
    total = relevant.sum(1)
    start = total.cumsum(0) - total
    nth = torch.arange(1, len(row) + 1, device=row.device) - start[row]
    precision = nth.double() / (place + 1)
    average = torch.segment_reduce(precision, "sum", lengths=total) / total.clamp_min(1)
    # the hits at which recall is nearest to i / 10: i R / 10, rounded with halves down, in integers
    wanted = (torch.arange(11, device=row.device) * total.unsqueeze(1) + 4) // 10
    at_hit = torch.cat([precision, precision.new_zeros(1)])[start.unsqueeze(1) + wanted - 1]
    eleven = torch.where(wanted > 0, at_hit, relevant[:, :1].double()).mean(1)  # of recall 0: the first rank
    first = [relevant[:, :k].double().mean(1) for k in at]
    return torch.stack([average, eleven, *first], dim=1)

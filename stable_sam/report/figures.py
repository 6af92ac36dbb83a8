"""Compute the figures of a whole table: counts, distributions of the scores, groups of prompts, and runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from duckdb import DuckDBPyConnection

from stable_sam.scores import IN_GROUPS, IN_UNIT, Score
from stable_sam.table.query import rows_of
from stable_sam.table.views import OUTCOME, OUTCOMES

BINS = 25
"""Number of bins of each distribution, between 0 and 1."""
GROUPS_MAX = 30
"""Number of the largest groups that are listed."""
RUNS_MAX = 8
"""Number of the newest runs that are listed."""
_COLUMNS = tuple(score.column for score in IN_UNIT)
_COUNTS = ", ".join(f"count(*) FILTER (outcome = '{outcome}') AS {outcome}" for outcome in OUTCOMES)
_GROUPED = {"category": "category", "source": "annotations_uri", "outcome": "outcome"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Distribution of one score over all prompts that have it."""

    score: Score
    prompts: int
    median: float
    bins: tuple[tuple[int, int], ...]
    """For each bin from 0 to 1, the number of prompts, and how many of them were neither accepted nor reviewed. Values
    outside of 0 to 1 are in the first and the last bin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The prompts by category, source or outcome, the largest groups first."""

    by: str
    rows: tuple[dict[str, Any], ...]
    """For each group its `name` (None for prompts without one), its number of `prompts`, the number of prompts for each
    outcome, and medians of the scores."""
    total: int
    """Number of all groups, listed or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of a whole table."""

    total: int
    """Number of prompts."""
    counts: dict[str, int]
    """Number of prompts by outcome."""
    verdicts: dict[str, int]
    """Number of reviewed prompts by verdict."""
    distributions: tuple[Distribution, ...]
    groups: tuple[Groups, ...]
    medians: tuple[str, ...]
    """Columns of the scores whose medians the groups have; scores that no prompt has are left out."""
    runs: tuple[dict[str, Any], ...]
    """Rows of the view `runs`, newest first."""


def figures(connection: DuckDBPyConnection) -> Figures:
    """Compute the figures from the newest row of each prompt.

    connection: a connection of `stable_sam.table.query.connected`.
    """
    outcomes = rows_of(connection, f"SELECT {OUTCOME} AS outcome, verdict, count(*) AS n FROM masks GROUP BY ALL")
    counts = {one: sum(row["n"] for row in outcomes if row["outcome"] == one) for one in OUTCOMES}
    distributions = _distributions(connection)
    return Figures(
        total=sum(counts.values()),
        counts=counts,
        verdicts={row["verdict"]: row["n"] for row in outcomes if row["outcome"] == "reviewed"},
        distributions=distributions,
        groups=tuple(_groups(connection, by) for by in _GROUPED),
        medians=tuple(one.score.column for one in distributions if one.score.in_groups),
        runs=tuple(rows_of(connection, f"SELECT * FROM runs ORDER BY revision DESC LIMIT {RUNS_MAX}")),
    )


def _distributions(connection: DuckDBPyConnection) -> tuple[Distribution, ...]:
    finite = ", ".join(f"score_median(CASE WHEN isfinite({score}) THEN {score} END) AS {score}" for score in _COLUMNS)
    (medians,) = rows_of(connection, f"SELECT {finite} FROM masks")
    sql = f"""
        SELECT score, least(greatest(floor(value * {BINS}), 0), {BINS - 1})::INT AS bin, count(*) AS prompts,
            count(*) FILTER (outcome NOT IN ('accept', 'reviewed')) AS doubtful
        FROM (UNPIVOT (SELECT {", ".join(_COLUMNS)}, {OUTCOME} AS outcome FROM masks)
              ON {", ".join(_COLUMNS)} INTO NAME score VALUE value)
        WHERE isfinite(value) GROUP BY ALL
    """
    rows = rows_of(connection, sql)
    return tuple(
        Distribution(
            score=score,
            prompts=sum(row["prompts"] for row in own.values()),
            median=medians[score.column],
            bins=tuple((own[k]["prompts"], own[k]["doubtful"]) if k in own else (0, 0) for k in range(BINS)),
        )
        for score in IN_UNIT
        if (own := {row["bin"]: row for row in rows if row["score"] == score.column})
    )


def _groups(connection: DuckDBPyConnection, by: str) -> Groups:
    medians = ", ".join(f"score_median({score}) AS {score}" for score in IN_GROUPS)
    sql = f"""
        SELECT {_GROUPED[by]} AS name, count(*) AS prompts, {_COUNTS}, {medians}, count(*) OVER () AS groups
        FROM (SELECT masks.*, {OUTCOME} AS outcome, annotations_uri FROM masks LEFT JOIN runs USING (run_id))
        GROUP BY 1 ORDER BY prompts DESC, name LIMIT {GROUPS_MAX}
    """
    rows = rows_of(connection, sql)
    return Groups(by=by, rows=tuple(rows), total=rows[0]["groups"] if rows else 0)

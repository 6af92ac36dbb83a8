"""The figures of a whole table: counts, distributions of the scores, groups, runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from duckdb import DuckDBPyConnection

from stable_sam.report.columns import OUTCOME, OUTCOMES, SCORES, ask

BINS = 25
"""Of each distribution, between 0 and 1."""
GROUPS_MAX = 30
"""Rows of a table of groups: the largest."""
RUNS_MAX = 8
"""Runs listed: the newest."""
_MEDIANS = ("quality", "prompt_stability", "predicted_iou", "box_agreement")
_COUNTS = ", ".join(f"count(*) FILTER (outcome = '{outcome}') AS {outcome}" for outcome in OUTCOMES)
_GROUPED = {"category": "category", "source": "annotations_uri", "outcome": "outcome"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One score over all prompts that have it."""

    name: str
    """Its column."""
    label: str
    prompts: int
    median: float
    bins: tuple[tuple[int, int], ...]
    """From 0 to 1: prompts, and how many of them were neither accepted nor reviewed. What lies outside is in the first
    or last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The prompts by category, source or outcome, the largest groups first."""

    by: str
    rows: tuple[dict[str, Any], ...]
    """`name` (None: without one), `prompts`, one count for each outcome, and medians of the scores."""
    total: int
    """Groups that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the page says of the whole table."""

    total: int
    counts: dict[str, int]
    """Prompts by outcome."""
    verdicts: dict[str, int]
    """Reviewed prompts by verdict."""
    distributions: tuple[Distribution, ...]
    groups: tuple[Groups, ...]
    medians: tuple[str, ...]
    """The scores whose medians the groups have, those that no prompt has left out."""
    runs: tuple[dict[str, Any], ...]
    """Rows of the view `runs`, newest first."""


def figures(connection: DuckDBPyConnection) -> Figures:
    """Measure the newest row of each prompt, over the views of `stable_sam.data.query.connected`."""
    outcomes = ask(connection, f"SELECT {OUTCOME} AS outcome, verdict, count(*) AS n FROM masks GROUP BY ALL")
    counts = {one: sum(row["n"] for row in outcomes if row["outcome"] == one) for one in OUTCOMES}
    distributions = _distributions(connection)
    return Figures(
        total=sum(counts.values()),
        counts=counts,
        verdicts={row["verdict"]: row["n"] for row in outcomes if row["outcome"] == "reviewed"},
        distributions=distributions,
        groups=tuple(_groups(connection, by) for by in _GROUPED),
        medians=tuple(one.name for one in distributions if one.name in _MEDIANS),
        runs=tuple(ask(connection, f"SELECT * FROM runs ORDER BY revision DESC LIMIT {RUNS_MAX}")),
    )


def _distributions(connection: DuckDBPyConnection) -> tuple[Distribution, ...]:
    finite = ", ".join(f"score_median(CASE WHEN isfinite({score}) THEN {score} END) AS {score}" for score in SCORES)
    (medians,) = ask(connection, f"SELECT {finite} FROM masks")
    sql = f"""
        SELECT score, least(greatest(floor(value * {BINS}), 0), {BINS - 1})::INT AS bin, count(*) AS prompts,
            count(*) FILTER (outcome NOT IN ('accept', 'reviewed')) AS doubtful
        FROM (UNPIVOT (SELECT {", ".join(SCORES)}, {OUTCOME} AS outcome FROM masks)
              ON {", ".join(SCORES)} INTO NAME score VALUE value)
        WHERE isfinite(value) GROUP BY ALL
    """
    rows = ask(connection, sql)
    return tuple(
        Distribution(
            name=name,
            label=label,
            prompts=sum(row["prompts"] for row in own.values()),
            median=medians[name],
            bins=tuple((own[k]["prompts"], own[k]["doubtful"]) if k in own else (0, 0) for k in range(BINS)),
        )
        for name, label in SCORES.items()
        if (own := {row["bin"]: row for row in rows if row["score"] == name})
    )


def _groups(connection: DuckDBPyConnection, by: str) -> Groups:
    medians = ", ".join(f"score_median({score}) AS {score}" for score in _MEDIANS)
    sql = f"""
        SELECT {_GROUPED[by]} AS name, count(*) AS prompts, {_COUNTS}, {medians}, count(*) OVER () AS groups
        FROM (SELECT masks.*, {OUTCOME} AS outcome, annotations_uri FROM masks LEFT JOIN runs USING (run_id))
        GROUP BY 1 ORDER BY prompts DESC, name LIMIT {GROUPS_MAX}
    """
    rows = ask(connection, sql)
    return Groups(by=by, rows=tuple(rows), total=rows[0]["groups"] if rows else 0)

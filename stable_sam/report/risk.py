"""Risk and coverage: when only the best masks by a score are taken, how many of them are bad?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

from stable_sam.calibration.judge import risk_coverage as ranked
from stable_sam.rle import mask_iou
from stable_sam.scores import IN_UNIT
from stable_sam.table.current import MADE_BEFORE_REVIEW
from stable_sam.table.query import rows_of

GOOD_IOU = 0.75
"""A mask whose IoU with the true one is less is bad."""
JUDGED_MIN = 20
"""Masks whose truth is known: with fewer a curve says nothing."""
JUDGED_MAX = 50_000
"""Masks measured at most; of more, a sample."""
POINTS = 120
"""Of a curve in the page."""
_RANKING = tuple(score for score in IN_UNIT if score.higher_is_better and score.kind != "truth")
"""Scores by which the best masks can be taken first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCurve:
    """Of one score: shares of the masks taken, best first, and of bad ones among those."""

    name: str
    label: str
    points: tuple[tuple[float, float], ...]
    """(coverage, risk), coverage rising from 2 % to 1: of fewer masks the risk is a matter of luck."""
    area: float
    """Mean risk over all coverages (AURC); the smaller the better the score sorts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCoverage:
    """The curves of a table; none, and `note` says why."""

    curves: tuple[RiskCurve, ...]
    note: str
    measured: bool = True
    """False when the risk is what the calibration expects, and nobody has looked."""

    @property
    def highest(self) -> float:
        """Risk at the top of a chart of all curves."""
        return max((risk for curve in self.curves for _, risk in curve.points), default=0.0) or 0.05


def risk_coverage(connection: DuckDBPyConnection) -> RiskCoverage:
    """Measure the curves against ground truth and reviews; without them, tell what the calibration expects."""
    known = f"SELECT {_columns('masks')}, true_iou FROM masks WHERE status = 'ok' AND true_iou IS NOT NULL"
    truth = _sample(connection, known)
    reviewed = _reviewed(connection)
    judged = truth + reviewed
    if len(judged) >= JUDGED_MIN:
        bad = np.array([row["true_iou"] < GOOD_IOU for row in judged], dtype=np.float64)
        parts = [f"{len(truth):,} masks with ground truth"] * bool(truth)
        parts += [f"{len(reviewed):,} reviewed masks"] * bool(reviewed)
        note = f"Measured on {' and '.join(parts)}."
        if reviewed:
            note += " People see the doubtful masks first, so the risk of the whole table is lower."
        return RiskCoverage(curves=_curves(judged, bad), note=note)
    expected = _sample(connection, "SELECT quality FROM masks WHERE status = 'ok' AND quality IS NOT NULL")
    if expected:
        risk = np.array([1 - row["quality"] for row in expected])
        note = "Expected by the calibration (1 - quality), not measured: no ground truth, and fewer than "
        return RiskCoverage(curves=_curves(expected, risk), note=f"{note}{JUDGED_MIN} reviewed masks.", measured=False)
    note = (
        f"Not known: {len(judged)} masks have ground truth or a review, {JUDGED_MIN} are needed; and this table was "
        "made without a calibration, which would tell what to expect."
    )
    return RiskCoverage(curves=(), note=note)


def _reviewed(connection: DuckDBPyConnection) -> list[dict[str, Any]]:
    """What the model had made of each reviewed prompt: its scores, and its IoU with the mask that people left."""
    sql = f"""
        SELECT {_columns("made")}, masks.verdict, masks.mask_size, masks.mask_counts,
            made.mask_size AS made_size, made.mask_counts AS made_counts
        FROM masks JOIN ({MADE_BEFORE_REVIEW}) AS made USING (prompt_id) WHERE masks.status = 'reviewed'
    """
    return [row | {"true_iou": _left_iou(row)} for row in _sample(connection, sql)]


def _left_iou(row: dict[str, Any]) -> float:
    if row["verdict"] == "confirmed":
        return 1.0
    return mask_iou(row["mask_size"], row["mask_counts"], row["made_size"], row["made_counts"]) or 0.0


def _curves(rows: list[dict[str, Any]], risk: NDArray[np.float64]) -> tuple[RiskCurve, ...]:
    curves = []
    for one in _RANKING:
        scores = np.array([row.get(one.column, None) for row in rows], dtype=np.float64)
        if np.isnan(scores).any():
            continue  # a curve over other masks would not compare
        covered, risks = ranked(scores, risk)
        at = np.unique(np.linspace(len(rows) // 50, len(rows) - 1, POINTS).astype(int))
        points = tuple(zip(covered[at].tolist(), risks[at].tolist(), strict=True))
        curves.append(RiskCurve(name=one.column, label=one.label, points=points, area=float(risks.mean())))
    return tuple(sorted(curves, key=lambda curve: curve.area))


def _columns(view: str) -> str:
    return ", ".join(f"{view}.{score.column}" for score in _RANKING)


def _sample(connection: DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    # A reservoir with a seed: the same table gives the same curves.
    sampled = f"SELECT * FROM ({sql}) USING SAMPLE reservoir({JUDGED_MAX} ROWS) REPEATABLE (0)"
    return rows_of(connection, sampled)

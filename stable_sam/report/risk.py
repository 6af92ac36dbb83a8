"""Compute curves of risk and coverage: when only the best masks by a score are taken, what share of them is bad?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

from stable_sam.calibration.judge import risk_coverage as ranked
from stable_sam.rle import mask_iou
from stable_sam.scores import GOOD_IOU, IN_UNIT
from stable_sam.table.current import MADE_BEFORE_REVIEW
from stable_sam.table.query import rows_of
from stable_sam.wording import counted

JUDGED_MIN = 20
"""Smallest number of masks with a known true mask that curves are drawn from."""
JUDGED_MAX = 50_000
"""Most masks that curves are computed from; of more masks, a sample is taken."""
POINTS = 120
"""Number of points of a curve in the page."""
_RANKING = tuple(score for score in IN_UNIT if score.higher_is_better and score.kind != "truth")
"""Scores by which the best masks can be taken first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCurve:
    """The curve of one score: the share of masks taken, best first, and the share of bad masks among them."""

    name: str
    """Column of the score."""
    label: str
    points: tuple[tuple[float, float], ...]
    """(coverage, risk) with coverage rising from 0.02 to 1; for less coverage the risk is a matter of luck."""
    area: float
    """Mean risk over all coverages (AURC); the smaller it is, the better the score ranks the masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCoverage:
    """The curves of a table, by ascending area."""

    curves: tuple[RiskCurve, ...]
    note: str
    """What the curves were computed from, or why there are none."""
    measured: bool = True
    """Whether the risk was measured with true masks; otherwise it is what the calibration expects."""

    @property
    def highest(self) -> float:
        """Return the largest risk of all curves, for the top of a chart."""
        return max((risk for curve in self.curves for _, risk in curve.points), default=0.0) or 0.05


def risk_coverage(connection: DuckDBPyConnection) -> RiskCoverage:
    """Compute the curves from true masks and reviews, or from the probabilities of the calibration without these."""
    known = f"SELECT {_columns('masks')}, true_iou FROM masks WHERE status = 'ok' AND true_iou IS NOT NULL"
    truth = _sample(connection, known)
    reviewed = _reviewed(connection)
    judged = truth + reviewed
    if len(judged) >= JUDGED_MIN:
        bad = np.array([row["true_iou"] < GOOD_IOU for row in judged], dtype=np.float64)
        parts = [counted(len(truth), "mask with a true mask", "masks with a true mask")] * bool(truth)
        parts += [counted(len(reviewed), "reviewed mask")] * bool(reviewed)
        note = f"Measured on {' and '.join(parts)}."
        if reviewed:
            note += " People review doubtful masks first, so the risk of the whole table is lower."
        return RiskCoverage(curves=_curves(judged, bad), note=note)
    expected = _sample(connection, "SELECT quality FROM masks WHERE status = 'ok' AND quality IS NOT NULL")
    if expected:
        risk = np.array([1 - row["quality"] for row in expected])
        note = (
            "Expected by the calibration (1 - quality), not measured: "
            f"fewer than {JUDGED_MIN} masks have a true mask or a review."
        )
        return RiskCoverage(curves=_curves(expected, risk), note=note, measured=False)
    note = (
        f"The risk is not known: only {counted(len(judged), 'mask has', 'masks have')} a true mask or a review, and it "
        f"takes {JUDGED_MIN}. This table was made without a calibration, which would say what to expect."
    )
    return RiskCoverage(curves=(), note=note)


def _reviewed(connection: DuckDBPyConnection) -> list[dict[str, Any]]:
    """The scores of the model's mask for each reviewed prompt, and its IoU with the mask after the review."""
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
            continue  # a curve from other masks could not be compared
        covered, risks = ranked(scores, risk)
        at = np.unique(np.linspace(len(rows) // 50, len(rows) - 1, POINTS).astype(int))
        points = tuple(zip(covered[at].tolist(), risks[at].tolist(), strict=True))
        curves.append(RiskCurve(name=one.column, label=one.label, points=points, area=float(risks.mean())))
    return tuple(sorted(curves, key=lambda curve: curve.area))


def _columns(view: str) -> str:
    return ", ".join(f"{view}.{score.column}" for score in _RANKING)


def _sample(connection: DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    # The sample has a fixed seed, so that the same table gives the same curves.
    sampled = f"SELECT * FROM ({sql}) USING SAMPLE reservoir({JUDGED_MAX} ROWS) REPEATABLE (0)"
    return rows_of(connection, sampled)

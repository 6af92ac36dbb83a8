"""Measure how well scores tell good masks from bad ones: risk and coverage, AURC, reviewed masks, reliability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

REVIEW_SHARE = 0.2
"""Fraction of the masks that people look at, for `Judgement.caught`."""
BINS = 10
"""Number of bins of a reliability diagram."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How well one score ranks N masks. Risk is the share of bad masks (IoU under the target) among those kept."""

    score: str
    masks: int
    bad: float
    """Share of bad masks among all masks, which is the risk at full coverage."""
    aurc: float
    """Area under the risk-coverage curve: the mean risk over all coverages when masks are kept best score first."""
    aurc_best: float
    """Smallest aurc that any score could reach, which is that of the IoU itself."""
    spearman: float
    """Spearman's rank correlation of the score with the IoU; 0 where one of them is constant."""
    caught: float
    """Share of the bad masks that are among the fraction REVIEW_SHARE of the masks with the worst scores."""
    caught_best: float
    """Largest share that any score could catch; it is below 1 when more masks are bad than are reviewed."""
    calibration_error: float | None = None
    """Mean difference of probability and share of good masks over BINS equally full bins; None for other scores."""


def judge(name: str, score: Floats, iou: Floats, target: float, *, probability: bool = False) -> Judgement:
    """Judge one score (N,) by the IoU (N,); a higher score is better, and NaN is worst.

    target: smallest IoU of a good mask. probability: whether the score is the probability that a mask is good.
    """
    known = np.where(np.isfinite(score), score, -np.inf)
    bad = iou < target
    caught, most = _caught(known, bad), min(1.0, REVIEW_SHARE / bad.mean()) if bad.any() else 1.0
    return Judgement(
        score=name,
        masks=len(iou),
        bad=float(bad.mean()),
        aurc=aurc(known, bad),
        aurc_best=aurc(iou, bad),
        spearman=float(spearmanr(known, iou).statistic) if _varies(known) and _varies(iou) else 0.0,
        caught=caught,
        caught_best=float(most),
        calibration_error=_calibration_error(score, ~bad) if probability else None,
    )


def risk_coverage(score: Floats, bad: NDArray[np.bool_] | Floats) -> tuple[Floats, Floats]:
    """Return coverage and risk, each (N,), when masks are kept best score first.

    bad: (N,) whether a mask is bad, or the probability that it is. Masks of equal score count as their mean, because
    their order would be a matter of luck.
    """
    order = np.argsort(-score, kind="stable")
    expected = _mean_of_equals(score[order], bad[order].astype(np.float64))
    kept = np.arange(1, len(score) + 1)
    return kept / len(score), np.cumsum(expected) / kept


def aurc(score: Floats, bad: NDArray[np.bool_]) -> float:
    """Return the area under the risk-coverage curve."""
    return float(risk_coverage(score, bad)[1].mean())


def reliability(probability: Floats, good: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the mean probability and the share of good masks of each of BINS equally full bins."""
    bins = np.array_split(np.argsort(probability, kind="stable"), min(BINS, len(good)))
    return (
        np.array([probability[one].mean() for one in bins]),
        np.array([good[one].mean() for one in bins]),
    )


def _varies(values: Floats) -> bool:
    return bool(values.min() < values.max())


def _calibration_error(probability: Floats, good: NDArray[np.bool_]) -> float:
    said, true = reliability(probability, good)
    return float(np.abs(said - true).mean())


def _caught(score: Floats, bad: NDArray[np.bool_]) -> float:
    if not bad.any():
        return 1.0
    order = np.argsort(score, kind="stable")
    expected = _mean_of_equals(score[order], bad[order].astype(np.float64))
    return float(expected[: round(REVIEW_SHARE * len(score))].sum() / bad.sum())


def _mean_of_equals(ordered: Floats, values: Floats) -> Floats:
    _, group = np.unique(ordered, return_inverse=True)
    mean: Floats = np.bincount(group, values) / np.bincount(group)
    return mean[group]

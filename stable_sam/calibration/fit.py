"""Fit a calibration to masks whose IoU with the true one is known. Needs scikit-learn; using one does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import SplineTransformer

from stable_sam.calibration.model import SCORES, Curve, Promise
from stable_sam.errors import InputError

KNOTS = 6
"""Of each curve, at quantiles of its score."""
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""C of the logistic regression, chosen by cross-validated log loss."""
FOLDS = 5
MIN_MASKS = 200
"""Fewer, or fewer than MIN_EACH good or bad ones, are refused: the curves would be noise."""
MIN_EACH = 20
STEPS = 20
"""Thresholds that are tried: each costs a little confidence."""
CHECKED = 0.4
"""Part of the pictures kept away from the fit, on which the promises are checked."""
SAMPLE = "sample"
"""Kind of the masks that are a random sample of a table, all of them reviewed."""
REVIEWED = "reviewed"
"""Kind of a table's other reviewed masks: somebody chose which to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledMasks:
    """N masks with their scores and their IoU with the true mask."""

    scores: dict[str, NDArray[np.float64]]
    """By name in SCORES, (N,); NaN where a mask does not have it."""
    iou: NDArray[np.float64]
    """(N,)"""
    pictures: NDArray[np.str_]
    """(N,), which masks belong to one picture and are not independent."""
    sets: NDArray[np.str_]
    """(N,), names of the sets they come from."""
    kinds: NDArray[np.str_]
    """(N,): SAMPLE and REVIEWED are of tables, all others were drawn at random from pictures with true masks."""

    def __len__(self) -> int:
        return len(self.iou)

    def take(self, chosen: NDArray[Any]) -> LabelledMasks:
        """The chosen masks; indices or a mask of booleans."""
        return LabelledMasks(
            scores={name: values[chosen] for name, values in self.scores.items()},
            iou=self.iou[chosen],
            pictures=self.pictures[chosen],
            sets=self.sets[chosen],
            kinds=self.kinds[chosen],
        )


def divide(masks: LabelledMasks, seed: int) -> tuple[LabelledMasks, LabelledMasks]:
    """Masks to fit the curves on, and masks to check the promises on, of other pictures.

    A share of good masks is only known of masks that nobody chose. So promises are checked on the random samples of
    tables, where there are any, else on CHECKED of the pictures of the masks that were drawn, and never on masks that
    people chose to review. Curves say what scores mean, and stay right where masks were chosen by their scores.
    Raises `InputError` when all masks were chosen.
    """
    checked = masks.kinds == SAMPLE
    if not checked.any():
        drawn = np.flatnonzero(masks.kinds != REVIEWED)
        if len(drawn) == 0:
            raise InputError(
                f"calibration: expected masks drawn at random to check the promises on, got {len(masks)} that people "
                "chose to review; add --records or --data, or review a random sample of the table (--sample)"
            )
        splitter = GroupShuffleSplit(n_splits=1, test_size=CHECKED, random_state=seed)
        ((_, apart),) = splitter.split(drawn, groups=masks.pictures[drawn])
        checked[drawn[apart]] = True
    return masks.take(~np.isin(masks.pictures, masks.pictures[checked])), masks.take(checked)


def fit_curves(masks: LabelledMasks, target_iou: float, seed: int) -> tuple[float, dict[str, Curve]]:
    """Intercept and curves: additive logistic regression on linear splines, calibrated by cross-validation (Platt).

    Raises `InputError` for too few masks, or too few good or bad ones.
    """
    good = masks.iou >= target_iou
    if len(masks) < MIN_MASKS or min(good.sum(), (~good).sum()) < MIN_EACH:
        raise InputError(
            f"calibration: expected at least {MIN_MASKS} masks to fit on, {MIN_EACH} of them good and {MIN_EACH} bad, "
            f"got {len(masks)}, {good.sum()} good and {(~good).sum()} bad"
        )
    names = [name for name in SCORES if name in masks.scores and _varies(masks.scores[name])]
    values = np.column_stack([masks.scores[name] for name in names])
    absent, medians = ~np.isfinite(values), np.nanmedian(values, axis=0)
    table = np.column_stack([np.where(absent, medians, values), absent])
    splines = ColumnTransformer(
        [
            (name, SplineTransformer(degree=1, knots=_knots(masks.scores[name]), extrapolation="constant"), [column])
            for column, name in enumerate(names)
        ],
        remainder="passthrough",
    )
    folds = list(GroupKFold(FOLDS, shuffle=True, random_state=seed).split(table, groups=masks.pictures))
    search = GridSearchCV(
        make_pipeline(splines, LogisticRegression(max_iter=2000)),
        {"logisticregression__C": STRENGTHS},
        scoring="neg_log_loss",
        cv=folds,
    )
    search.fit(table, good)
    calibrated = CalibratedClassifierCV(search.best_estimator_, method="sigmoid", ensemble=False, cv=folds)
    calibrated.fit(table, good)
    return _read_off(calibrated.calibrated_classifiers_[0], names, medians)


def promised(
    route: str, quality: NDArray[np.float64], good: NDArray[np.bool_], precision: float, confidence: float
) -> Promise:
    """The loosest threshold whose share of good masks (reject: of bad ones) is at least `precision`.

    STEPS thresholds are tried, each with 1/STEPS of the masks more, and the loosest is taken whose Clopper-Pearson
    lower bound keeps the promise at the confidence 1 - (1 - confidence) / STEPS (Bonferroni): with probability
    `confidence` the promise is then kept on masks like these.
    Masks of one picture count as independent.
    """
    right, towards = (good, -quality) if route == "accept" else (~good, quality)
    order = np.argsort(towards, kind="stable")
    right, ordered = right[order], quality[order]
    counts, kept = np.arange(1, len(order) + 1), np.cumsum(right)
    lower = np.nan_to_num(beta.ppf((1 - confidence) / STEPS, kept, counts - kept + 1))
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal ones stand or fall together
    tried = ends[np.searchsorted(ends, np.arange(1, STEPS + 1) * len(order) // STEPS - 1)]
    passing = tried[lower[tried] >= precision]
    chosen = int(passing[-1]) if len(passing) else None
    return Promise(
        route=route,
        threshold=None if chosen is None else float(ordered[chosen]),
        precision=precision,
        confidence=confidence,
        masks=0 if chosen is None else chosen + 1,
        kept=0 if chosen is None else int(kept[chosen]),
        checked=len(order),
        possible=float(lower[tried].max()),
    )


def _varies(values: NDArray[np.float64]) -> bool:
    there = np.isfinite(values)
    return bool(there.sum() > len(values) / 20) and len(_knots(values)) > 2


def _knots(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, 1): quantiles of the values that are there, each once."""
    return np.unique(np.nanquantile(values, np.linspace(0, 1, KNOTS)))[:, None]


def _read_off(calibrated: Any, names: list[str], medians: NDArray[np.float64]) -> tuple[float, dict[str, Curve]]:
    """As numbers. Hats of a linear spline have height 1 at their knots, so coefficients are values."""
    pipeline: Pipeline = calibrated.estimator
    splines: ColumnTransformer = pipeline[0]
    regression: LogisticRegression = pipeline[1]
    (platt,) = calibrated.calibrators
    slope, offset = -float(platt.a_), -float(platt.b_)
    weights = regression.coef_[0] * slope
    intercept = float(regression.intercept_[0]) * slope + offset
    curves: dict[str, Curve] = {}
    start = 0
    for column, name in enumerate(names):
        spline = splines.named_transformers_[name]
        knots = spline.bsplines_[0].t[1:-1]
        values = weights[start : start + len(knots)]
        start += len(knots)
        # Where the score is missing its median stands in, and the column that says so adds its weight.
        median = float(np.interp(medians[column], knots, values))
        missing = median + float(weights[len(weights) - len(names) + column])
        curves[name] = Curve(x=tuple(map(float, knots)), y=tuple(map(float, values)), missing=missing)
    return intercept, curves

"""Fit a calibration to masks whose IoU with the true one is known. Needs scikit-learn; using one does not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupShuffleSplit
from sklearn.pipeline import make_pipeline

from stable_sam.calibration.features import Features, LabelledMasks, folds_of
from stable_sam.config.calibration import SCORES, Curve, Promise
from stable_sam.errors import InputError

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""C of the logistic regression, chosen by cross-validated log loss."""
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
    features = Features.of(masks, SCORES)
    folds = folds_of(masks, seed)
    search = GridSearchCV(
        make_pipeline(features.splines(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": STRENGTHS},
        scoring="neg_log_loss",
        cv=folds,
    )
    search.fit(features.table, good)
    calibrated = CalibratedClassifierCV(search.best_estimator_, method="sigmoid", ensemble=False, cv=folds)
    calibrated.fit(features.table, good)
    fitted = calibrated.calibrated_classifiers_[0]
    regression: LogisticRegression = fitted.estimator[1]
    (platt,) = fitted.calibrators
    slope, offset = -float(platt.a_), -float(platt.b_)
    return float(regression.intercept_[0]) * slope + offset, features.curves(regression.coef_[0] * slope)


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

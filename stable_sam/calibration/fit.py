"""Fit a calibration to masks whose IoU with the true mask is known. Using a calibration needs no scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupShuffleSplit
from sklearn.pipeline import make_pipeline

from stable_sam.calibration.features import Features, LabelledMasks, folds_of
from stable_sam.config.calibration import INPUTS, Curve, Promise
from stable_sam.errors import InputError
from stable_sam.wording import counted

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Values of C for the logistic regression, of which cross-validated log loss chooses one."""
MIN_MASKS = 200
"""Smallest number of masks to fit to; from fewer, or from fewer than MIN_EACH good or bad ones, curves are noise."""
MIN_EACH = 20
"""Smallest number of good masks, and of bad masks, to fit to."""
STEPS = 20
"""Number of thresholds that are tried; each costs a little confidence."""
CHECKED = 0.4
"""Fraction of the images on which the promises are checked, and which the curves are not fitted to."""
SAMPLE = "sample"
"""Kind of masks that are a random sample of a table, all of which were reviewed."""
REVIEWED = "reviewed"
"""Kind of a table's other reviewed masks, which people chose to look at."""


def divide(masks: LabelledMasks, seed: int) -> tuple[LabelledMasks, LabelledMasks]:
    """Divide the masks into those to fit the curves to, and those of other images to check the promises on.

    A share of good masks can be promised only from masks that nobody chose. So the promises are checked on the random
    samples of tables, where there are any, and otherwise on the fraction CHECKED of the images whose prompts were drawn
    from true masks. They are never checked on masks that people chose to review. The curves may be fitted to these:
    what a score means does not depend on which masks were chosen by their scores.
    Raises `InputError` when people chose all masks.
    """
    checked = masks.kinds == SAMPLE
    if not checked.any():
        drawn = np.flatnonzero(masks.kinds != REVIEWED)
        if len(drawn) == 0:
            raise InputError(
                f"calibration: expected masks drawn at random to check the promises on, got "
                f"{counted(len(masks), 'mask')} that people chose to review; add --records or --data, or review a "
                "random sample of the table (--sample)"
            )
        splitter = GroupShuffleSplit(n_splits=1, test_size=CHECKED, random_state=seed)
        ((_, apart),) = splitter.split(drawn, groups=masks.images[drawn])
        checked[drawn[apart]] = True
    return masks.take(~np.isin(masks.images, masks.images[checked])), masks.take(checked)


def fit_curves(masks: LabelledMasks, target_iou: float, seed: int) -> tuple[float, dict[str, Curve]]:
    """Fit an additive logistic regression on linear splines, calibrated by cross-validation (Platt scaling).

    Returns its intercept and a curve for each score that varies. Raises `InputError` for too few masks, and for too few
    good or bad ones.
    """
    good = masks.iou >= target_iou
    if len(masks) < MIN_MASKS or min(good.sum(), (~good).sum()) < MIN_EACH:
        raise InputError(
            f"calibration: expected at least {MIN_MASKS} masks to fit on, {MIN_EACH} of them good and {MIN_EACH} bad, "
            f"got {len(masks)}, {good.sum()} good and {(~good).sum()} bad"
        )
    features = Features.of(masks, INPUTS)
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
    """Choose the loosest threshold that promises a share of at least `precision` good masks, or bad ones for reject.

    route: `accept` or `reject`. quality, good: (N,) of the masks that the promise is checked on.
    STEPS thresholds are tried, each with 1/STEPS of the masks more. The loosest is taken whose Clopper-Pearson lower
    bound keeps the promise at the confidence 1 - (1 - confidence) / STEPS (Bonferroni). The promise is then kept with
    probability `confidence` on masks like these. Masks of one image count as independent.
    """
    right, towards = (good, -quality) if route == "accept" else (~good, quality)
    order = np.argsort(towards, kind="stable")
    right, ordered = right[order], quality[order]
    counts, kept = np.arange(1, len(order) + 1), np.cumsum(right)
    lower = np.nan_to_num(beta.ppf((1 - confidence) / STEPS, kept, counts - kept + 1))
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # masks of equal quality are kept together
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

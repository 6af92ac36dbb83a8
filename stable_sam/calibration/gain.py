"""What a mask is expected to gain over its weak box, filled, and whether accepted masks of every size do gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline

from stable_sam.calibration.features import Features, LabelledMasks, curves_at, folds_of
from stable_sam.config.calibration import BOX_SCORES, SCORES, GainOverBox, SizeSlice

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Penalty of the ridge regression, chosen by cross-validated squared error."""
MIN_MASKS = 200
"""Of fewer no gain is learnt."""
THRESHOLDS = np.arange(101) / 100
"""Of the expected gain, those that are tried."""
FEW = 10
"""Fewer accepted masks of a size do not tell whether masks of this size are worse than their boxes."""
SIZES = {
    "<0.1 %": (0.0, 0.001),
    "0.1-0.5 %": (0.001, 0.005),
    "0.5-2 %": (0.005, 0.02),
    "2-10 %": (0.02, 0.1),
    ">10 %": (0.1, np.inf),
}
"""By the object's part of its picture, the upper border excluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedGain:
    """A gain that was learnt from N masks."""

    gain: GainOverBox
    """With threshold 0."""
    expected: NDArray[np.float64]
    """(N,): for each mask by curves that were fitted without its picture; NaN where the true gain is not known."""


def fit_gain(masks: LabelledMasks, seed: int) -> FittedGain | None:
    """Additive ridge regression on linear splines; None when the IoU of too few filled boxes is known."""
    known = np.isfinite(masks.box_iou)
    if known.sum() < MIN_MASKS:
        return None
    some = masks.take(known)
    true = some.iou - some.box_iou
    features, folds = Features.of(some, (*SCORES, *BOX_SCORES)), folds_of(some, seed)
    search = GridSearchCV(
        make_pipeline(features.splines(), Ridge()),
        {"ridge__alpha": STRENGTHS},
        scoring="neg_mean_squared_error",
        cv=folds,
    )
    search.fit(features.table, true)
    unseen = cross_val_predict(search.best_estimator_, features.table, true, cv=folds)
    regression: Ridge = search.best_estimator_[1]
    gain = GainOverBox(
        intercept=float(regression.intercept_),
        curves=features.curves(regression.coef_),
        masks=len(some),
        error=float(np.abs(unseen - true).mean()),
        spearman=float(spearmanr(unseen, true).statistic),
    )
    expected = np.full(len(masks), np.nan)
    expected[known] = unseen
    return FittedGain(gain=gain, expected=expected)


def expected_gain(gain: GainOverBox | None, masks: LabelledMasks) -> NDArray[np.float64]:
    """(N,); NaN for a prompt without a box, and for all where no gain was learnt."""
    if gain is None:
        return np.full(len(masks), np.nan)
    total = np.clip(curves_at(gain.intercept, gain.curves, masks), -1, 1)
    return np.where(np.isfinite(masks.scores["log_box_area"]), total, np.nan)


def sizes_of(masks: LabelledMasks, accepted: NDArray[np.bool_]) -> tuple[SizeSlice, ...]:
    """The accepted masks, whose boxes' IoU is known, by SIZES; without the sizes that have none."""
    known = accepted & np.isfinite(masks.box_iou)
    return tuple(
        SizeSlice(
            size=size,
            masks=int(some.sum()),
            mask_iou=float(masks.iou[some].mean()),
            box_iou=float(masks.box_iou[some].mean()),
        )
        for size, (low, high) in SIZES.items()
        if (some := known & (masks.object_share >= low) & (masks.object_share < high)).any()
    )


def some_worse(sizes: tuple[SizeSlice, ...]) -> bool:
    """Whether the masks of a size, FEW or more, are worse than their boxes."""
    return any(one.masks >= FEW and one.mask_iou < one.box_iou for one in sizes)

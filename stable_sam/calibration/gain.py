"""Predict how much a mask gains over its filled weak box, and check that accepted masks of every size gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline

from stable_sam.calibration.features import Features, LabelledMasks, curves_at, folds_of
from stable_sam.config.calibration import BOX_INPUTS, INPUTS, GainOverBox, SizeSlice
from stable_sam.evaluation.averages import SHARES

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Penalties for the ridge regression, of which the cross-validated squared error chooses one."""
MIN_MASKS = 200
"""Smallest number of masks that a gain is learnt from."""
THRESHOLDS = np.arange(101) / 100
"""Thresholds of the expected gain that are tried, ascending."""
FEW = 10
"""Smallest number of accepted masks that tells whether masks of their size are worse than their boxes."""
SIZES = dict(zip(("<0.1 %", "0.1-0.5 %", "0.5-2 %", "2-10 %", ">10 %"), SHARES.values(), strict=True))
"""The sizes of `evaluate`, by the names that they have in files of calibrations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedGain:
    """A gain over the filled box that was learnt from N masks."""

    gain: GainOverBox
    """The curves that predict the gain, with the threshold 0."""
    expected: NDArray[np.float64]
    """(N,), gain of each mask by curves that were fitted without its image; NaN where the true gain is not known."""


def fit_gain(masks: LabelledMasks, seed: int) -> FittedGain | None:
    """Fit an additive ridge regression on linear splines; None when the IoU of too few filled boxes is known."""
    known = np.isfinite(masks.box_iou)
    if known.sum() < MIN_MASKS:
        return None
    some = masks.take(known)
    true = some.iou - some.box_iou
    features, folds = Features.of(some, (*INPUTS, *BOX_INPUTS)), folds_of(some, seed)
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
    """Return the expected gain (N,) of each mask; NaN for a prompt without a box, and for all where `gain` is None."""
    if gain is None:
        return np.full(len(masks), np.nan)
    total = np.clip(curves_at(gain.intercept, gain.curves, masks), -1, 1)
    return np.where(np.isfinite(masks.scores["log_box_area"]), total, np.nan)


def sizes_of(masks: LabelledMasks, accepted: NDArray[np.bool_]) -> tuple[SizeSlice, ...]:
    """Return the mean IoU of accepted masks and of their filled boxes for each size that has any, of known boxes only.

    accepted: (N,) bool.
    """
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
    """Return whether the masks of any size are worse than their boxes, where there are FEW of them or more."""
    return any(one.masks >= FEW and one.mask_iou < one.box_iou for one in sizes)

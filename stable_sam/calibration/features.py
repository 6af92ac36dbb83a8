"""Labelled masks as arrays, and their scores as the features of a regression on linear splines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import SplineTransformer

from stable_sam.config.calibration import Curve

KNOTS = 6
"""Number of knots of each curve, which lie at quantiles of its score."""
FOLDS = 5
"""Number of folds of each cross-validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledMasks:
    """N masks with their scores and their IoU with the true mask."""

    scores: dict[str, NDArray[np.float64]]
    """(N,) for each name in INPUTS and BOX_INPUTS; NaN where a mask does not have the score."""
    iou: NDArray[np.float64]
    """(N,), IoU of the mask with the true mask."""
    box_iou: NDArray[np.float64]
    """(N,), IoU of the filled weak box with the true mask; NaN without a box, and where it is not known."""
    object_share: NDArray[np.float64]
    """(N,), fraction of the image that the true mask covers; NaN where it is not known."""
    images: NDArray[np.str_]
    """(N,), name of each mask's image. Masks of one image are not independent."""
    sets: NDArray[np.str_]
    """(N,), name of the set that each mask comes from."""
    kinds: NDArray[np.str_]
    """(N,), SAMPLE or REVIEWED for masks of a table, and otherwise the kind of the weak prompt drawn from a true
    mask."""

    def __len__(self) -> int:
        return len(self.iou)

    def take(self, chosen: NDArray[Any]) -> LabelledMasks:
        """Return the masks that `chosen` selects, by indices or booleans (N,)."""
        return LabelledMasks(
            scores={name: values[chosen] for name, values in self.scores.items()},
            iou=self.iou[chosen],
            box_iou=self.box_iou[chosen],
            object_share=self.object_share[chosen],
            images=self.images[chosen],
            sets=self.sets[chosen],
            kinds=self.kinds[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The features of N masks for a regression, and the way from its coefficients to curves."""

    names: list[str]
    table: NDArray[np.float64]
    """(N, 2 * names): each score, or its median where it is missing, and then for each score 1 where it is missing."""
    medians: NDArray[np.float64]
    """(names,), median of each score."""
    knots: list[NDArray[np.float64]]
    """(K,) for each score, ascending."""

    @classmethod
    def of(cls, masks: LabelledMasks, names: Sequence[str]) -> Self:
        """Make the features of those of the scores `names` that vary."""
        names = [name for name in names if _varies(masks.scores[name])]
        values = np.column_stack([masks.scores[name] for name in names])
        absent, medians = ~np.isfinite(values), np.nanmedian(values, axis=0)
        table = np.column_stack([np.where(absent, medians, values), absent])
        return cls(names=names, table=table, medians=medians, knots=[_knots(masks.scores[name]) for name in names])

    def splines(self) -> ColumnTransformer:
        """Return the first step of a regression on `table`, which makes linear splines of the scores."""
        parts = [
            (name, SplineTransformer(degree=1, knots=knots[:, None], extrapolation="constant"), [column])
            for column, (name, knots) in enumerate(zip(self.names, self.knots, strict=True))
        ]
        return ColumnTransformer(parts, remainder="passthrough")

    def curves(self, weights: NDArray[np.float64]) -> dict[str, Curve]:
        """Turn the coefficients of a regression on `splines` into curves.

        The basis functions of a linear spline have height 1 at their knots, so the coefficients are the curve's values.
        """
        curves: dict[str, Curve] = {}
        start = 0
        for column, (name, knots) in enumerate(zip(self.names, self.knots, strict=True)):
            values = weights[start : start + len(knots)]
            start += len(knots)
            # Where a score is missing, its median takes its place, and the column that marks it adds its weight.
            median = float(np.interp(self.medians[column], knots, values))
            missing = median + float(weights[len(weights) - len(self.names) + column])
            curves[name] = Curve(x=tuple(map(float, knots)), y=tuple(map(float, values)), missing=missing)
        return curves


def folds_of(masks: LabelledMasks, seed: int) -> list[Any]:
    """Split the masks into FOLDS pairs of indices, to fit to and to judge; the masks of one image stay together."""
    return list(GroupKFold(FOLDS, shuffle=True, random_state=seed).split(masks.iou, groups=masks.images))


def curves_at(intercept: float, curves: dict[str, Curve], masks: LabelledMasks) -> NDArray[np.float64]:
    """Return the intercept plus the sum of the curves at the scores of each mask, (N,)."""
    total = np.full(len(masks), intercept)
    for name, curve in curves.items():
        values = masks.scores[name]
        there = np.isfinite(values)
        total += np.where(there, np.interp(np.where(there, values, 0), curve.x, curve.y), curve.missing)
    return total


def _varies(values: NDArray[np.float64]) -> bool:
    there = np.isfinite(values)
    return bool(there.sum() > len(values) / 20) and len(_knots(values)) > 2


def _knots(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,): quantiles of the values that are there, each once."""
    return np.unique(np.nanquantile(values, np.linspace(0, 1, KNOTS)))

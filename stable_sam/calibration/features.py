"""Labelled masks as arrays, and their scores as a regression on linear splines takes them."""

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
"""Of each curve, at quantiles of its score."""
FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledMasks:
    """N masks with their scores and their IoU with the true mask."""

    scores: dict[str, NDArray[np.float64]]
    """By name in SCORES and BOX_SCORES, (N,); NaN where a mask does not have it."""
    iou: NDArray[np.float64]
    """(N,)"""
    box_iou: NDArray[np.float64]
    """(N,), IoU of the filled weak box with the true mask; NaN without a box, and where it is not known."""
    object_share: NDArray[np.float64]
    """(N,), the true mask's part of its picture; NaN where it is not known."""
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
            box_iou=self.box_iou[chosen],
            object_share=self.object_share[chosen],
            pictures=self.pictures[chosen],
            sets=self.sets[chosen],
            kinds=self.kinds[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a regression takes of N masks, and how its coefficients are read as curves."""

    names: list[str]
    table: NDArray[np.float64]
    """(N, 2 * names): the scores, their medians where they are missing; then, for each, 1 where it is missing."""
    medians: NDArray[np.float64]
    knots: list[NDArray[np.float64]]
    """For each score (K,), ascending."""

    @classmethod
    def of(cls, masks: LabelledMasks, names: Sequence[str]) -> Self:
        """Those of the scores `names` that vary."""
        names = [name for name in names if _varies(masks.scores[name])]
        values = np.column_stack([masks.scores[name] for name in names])
        absent, medians = ~np.isfinite(values), np.nanmedian(values, axis=0)
        table = np.column_stack([np.where(absent, medians, values), absent])
        return cls(names=names, table=table, medians=medians, knots=[_knots(masks.scores[name]) for name in names])

    def splines(self) -> ColumnTransformer:
        """First step of a regression on `table`."""
        parts = [
            (name, SplineTransformer(degree=1, knots=knots[:, None], extrapolation="constant"), [column])
            for column, (name, knots) in enumerate(zip(self.names, self.knots, strict=True))
        ]
        return ColumnTransformer(parts, remainder="passthrough")

    def curves(self, weights: NDArray[np.float64]) -> dict[str, Curve]:
        """Coefficients as numbers. Hats of a linear spline have height 1 at their knots, so coefficients are values."""
        curves: dict[str, Curve] = {}
        start = 0
        for column, (name, knots) in enumerate(zip(self.names, self.knots, strict=True)):
            values = weights[start : start + len(knots)]
            start += len(knots)
            # Where the score is missing its median stands in, and the column that says so adds its weight.
            median = float(np.interp(self.medians[column], knots, values))
            missing = median + float(weights[len(weights) - len(self.names) + column])
            curves[name] = Curve(x=tuple(map(float, knots)), y=tuple(map(float, values)), missing=missing)
        return curves


def folds_of(masks: LabelledMasks, seed: int) -> list[Any]:
    """FOLDS pairs of indices, to fit on and to judge on; the masks of one picture are judged together."""
    return list(GroupKFold(FOLDS, shuffle=True, random_state=seed).split(masks.iou, groups=masks.pictures))


def curves_at(intercept: float, curves: dict[str, Curve], masks: LabelledMasks) -> NDArray[np.float64]:
    """(N,): the sum of the curves."""
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

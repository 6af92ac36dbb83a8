"""Confidence intervals of means over objects, as percentiles of a bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
BLOCK_VALUES = 4_000_000
"""Most drawn objects that are in memory at a time, 8 bytes each, whatever the number of objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over objects and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Draw N objects with replacement `resamples` times, and return the means of K quantities over each draw.

    values: (K, N) K quantities of the same N objects. Returns (resamples, K). All quantities see the same draws, so the
    difference of two columns is a paired bootstrap.
    """
    quantities, objects = values.shape
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, quantities))
    block = max(1, BLOCK_VALUES // objects)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, objects, size=(rows, objects)) + np.arange(rows)[:, None] * objects
        counts = np.bincount(drawn.ravel(), minlength=rows * objects).reshape(rows, objects)
        means[start : start + rows] = counts @ values.T / objects
    return means


def estimate(value: float, means: NDArray[np.float64]) -> Estimate:
    """Return `value` with the interval of its bootstrap means (resamples,)."""
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Estimate(value=value, low=float(low), high=float(high))

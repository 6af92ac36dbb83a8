"""Confidence intervals of means over objects: the bootstrap's percentiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
BLOCK_VALUES = 4_000_000
"""Drawn objects that exist at a time, 8 bytes each: bounds the memory whatever the number of objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over objects and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(resamples, K): means of `values` (K, N), of K quantities of the same N objects, over N objects drawn with
    replacement.

    All quantities see the same draws, so that the difference of two columns is a paired bootstrap.
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
    """`value` with the interval that its bootstrap means (resamples,) give."""
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Estimate(value=value, low=float(low), high=float(high))

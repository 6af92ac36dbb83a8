"""Intervals: what must hold for any values, and what coverage means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import stable_sam.evaluation.bootstrap as bootstrap
from stable_sam.evaluation.bootstrap import bootstrap_means, estimate

values = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(0, 1))


@settings(max_examples=50, deadline=None)
@given(values, st.integers(0, 1000))
def test_means_lie_within_the_values_and_are_fixed_by_the_seed(x: np.ndarray, seed: int) -> None:
    means = bootstrap_means(x, 60, seed)
    assert means.shape == (60, len(x))
    assert (means >= x.min(axis=1) - 1e-12).all()
    assert (means <= x.max(axis=1) + 1e-12).all()
    np.testing.assert_array_equal(means, bootstrap_means(x, 60, seed))


@settings(max_examples=50, deadline=None)
@given(values, st.floats(-2, 2))
def test_all_quantities_see_the_same_draws(x: np.ndarray, shift: float) -> None:
    """A constant difference of two methods is certain, however much both vary."""
    means = bootstrap_means(np.concatenate((x, x + shift)), 60, 0)
    np.testing.assert_allclose(means[:, len(x) :] - means[:, : len(x)], shift, atol=1e-12)


def test_draws_are_with_replacement_and_even() -> None:
    means = bootstrap_means(np.eye(5), 20_000, 0)
    np.testing.assert_allclose(means.mean(axis=0), 0.2, atol=0.005)
    assert means[:, 0].var() == pytest.approx(0.2 * 0.8 / 5, rel=0.05)


def test_blocks_of_draws_bound_the_memory_and_fill_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 70)
    means = bootstrap_means(np.full((1, 10), 3.0), 25, 0)
    np.testing.assert_allclose(means, 3.0)


def test_an_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for number in range(300):
        sample = rng.beta(4, 2, size=(1, 80))
        interval = estimate(float(sample.mean()), bootstrap_means(sample, 400, number)[:, 0])
        covered.append(interval.low <= 4 / 6 <= interval.high)
    assert 0.91 <= np.mean(covered) <= 0.98

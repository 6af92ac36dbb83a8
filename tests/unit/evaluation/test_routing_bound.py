"""What perfect routing reaches: a bound for both methods, computed from the records alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stable_sam.config import RefinerConfig
from stable_sam.evaluation.by_object import ALL_SETS, object_means
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.result_records import SCHEMA, join_records, record_table
from stable_sam.evaluation.routing_bound import RoutingBound, routing_bounds

METHODS = ("sam", "stable-sam")
ROUNDING = 1e-12
ious = arrays(np.float64, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 3)), elements=st.floats(0, 1))
"""Of two methods, some objects, and some prompts of each."""


def rows(kind: str, values: np.ndarray, set_name: str = "a") -> list[dict[str, Any]]:
    """Records of the methods' IoUs (2, objects, prompts), the prompts of the second method in reversed order."""
    named = {
        "set": set_name,
        "picture": "p",
        "category": "",
        "whole": None,
        "box_xyxy": None,
        "view": None,
        "prompt": kind,
    }
    return [
        dict.fromkeys(SCHEMA.names, 0.5)
        | named
        | {
            "annotation": str(number),
            "method": METHODS[method],
            "number": prompt,
            "iou": values[method, number, prompt],
        }
        for method in range(2)
        for number in range(values.shape[1])
        for prompt in range(values.shape[2])[:: -1 if method else 1]
    ]


def bounds(records: list[dict[str, Any]], kinds: tuple[str, ...]) -> dict[tuple[str, str], RoutingBound]:
    config = EvaluationConfig(refiner=RefinerConfig(model="tiny"), prompts=kinds, resamples=30)
    found = routing_bounds(list(object_means(join_records([record_table(records)]), config)), config)
    return {(bound.set, bound.prompts): bound for bound in found}


@settings(max_examples=100, deadline=None)
@given(ious)
def test_the_better_mask_is_as_good_as_both_methods_masks(values: np.ndarray) -> None:
    bound = bounds(rows("noisy-box", values), ("noisy-box",))["a", "noisy-box"]
    assert bound.best_miou is not None
    assert bound.best_miou.value >= max(bound.sam_miou.value, bound.method_miou.value) - ROUNDING
    assert bound.best_miou.value == pytest.approx(values.max(axis=0).mean())
    assert bound.helps is not None
    assert bound.hurts is not None
    assert min(bound.helps.value, bound.hurts.value) >= 0
    assert bound.helps.value + bound.hurts.value <= 1 + ROUNDING
    if bound.share_of_bound is not None:
        assert bound.share_of_bound.value <= 1 + ROUNDING


@settings(max_examples=50, deadline=None)
@given(ious)
def test_equal_methods_leave_nothing_to_routing(values: np.ndarray) -> None:
    values = np.stack((values[0], values[0]))
    bound = bounds(rows("noisy-box", values), ("noisy-box",))["a", "noisy-box"]
    assert bound.best_miou == bound.sam_miou == bound.method_miou
    assert bound.helps is not None
    assert bound.hurts is not None
    assert (bound.helps.value, bound.hurts.value) == (0, 0)
    assert bound.share_of_bound is None


def test_figures_of_a_case_worked_out_by_hand() -> None:
    noisy = np.array([[[0.4, 0.6], [0.5, 0.5]], [[0.8, 0.5], [0.51, 0.3]]])
    true = np.array([[[0.9], [0.7]], [[0.9], [0.7]]])
    bound = bounds(rows("noisy-box", noisy) + rows("gt-box", true), ("gt-box", "noisy-box"))["a", "noisy-box"]
    assert bound.objects == 2
    figures = (bound.sam_miou, bound.method_miou, bound.best_miou, bound.helps, bound.hurts)
    # Better masks: 0.8 and 0.6 of the first object, 0.51 (too little to help) and 0.5 of the second.
    assert [figure and figure.value for figure in figures] == pytest.approx([0.5, 0.5275, 0.6025, 0.25, 0.5])
    assert bound.best_gain is not None
    assert bound.best_gain.value == pytest.approx(0.1025)
    assert bound.share_of_bound is not None
    assert bound.share_of_bound.value == pytest.approx(0.0275 / 0.1025)
    assert bound.gap_closed is not None
    assert bound.gap_closed.value == pytest.approx(0.0275 / 0.3)
    assert bound.gap_closed.low <= bound.gap_closed.value <= bound.gap_closed.high


def test_the_gap_is_that_of_the_objects_that_the_kind_asks_for() -> None:
    """Here only the second of two objects has a box with another one."""
    true = np.array([[[0.9], [0.7]], [[0.9], [0.7]]])
    shared = [
        row for row in rows("two-objects-box", np.array([[[0.0], [0.2]], [[0.0], [0.4]]])) if row["annotation"] == "1"
    ]
    bound = bounds(rows("gt-box", true) + shared, ("gt-box", "two-objects-box"))["a", "two-objects-box"]
    assert bound.gap_closed is not None
    assert bound.gap_closed.value == pytest.approx((0.4 - 0.2) / (0.7 - 0.2))


def test_worst_boxes_differ_by_method_so_that_nothing_can_be_chosen() -> None:
    true, worst = np.full((2, 2, 1), 0.9), np.stack((np.full((2, 1), 0.4), np.full((2, 1), 0.6)))
    bound = bounds(rows("gt-box", true) + rows("worst-box", worst), ("gt-box", "worst-box"))["a", "worst-box"]
    assert (bound.best_miou, bound.helps, bound.hurts, bound.share_of_bound) == (None,) * 4
    assert bound.gap_closed is not None
    assert bound.gap_closed.value == pytest.approx(0.4)


def test_sets_are_measured_alone_and_together() -> None:
    a, b = np.array([[[0.2]], [[0.4]]]), np.array([[[0.8]], [[0.6]]])
    found = bounds(rows("noisy-box", a) + rows("noisy-box", b, "b"), ("noisy-box",))
    best = {name: bound.best_miou and bound.best_miou.value for (name, _), bound in found.items()}
    assert best == pytest.approx({"a": 0.4, "b": 0.8, ALL_SETS: 0.6})

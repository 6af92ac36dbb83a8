"""What each kind of prompt promises, for any mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stable_sam.evaluation.prompts import LOOSE, SHIFT, TRUNCATED, PromptKind, box_iou, prompt_rng, tight_box

HW = (90, 120)
ROUNDING = 1e-9
seeds = st.integers(0, 2**32 - 1)


@st.composite
def rectangles(draw: st.DrawFn, margin: int = 0) -> np.ndarray:
    """Filled rectangles, at least `margin` pixels from the border."""
    height, width = HW
    y, x = draw(st.integers(margin, height - margin - 1)), draw(st.integers(margin, width - margin - 1))
    mask = np.zeros(HW, dtype=bool)
    mask[y : draw(st.integers(y + 1, height - margin)), x : draw(st.integers(x + 1, width - margin))] = True
    return mask


def draw(name: str, mask: np.ndarray, seed: int, count: int = 12) -> np.ndarray:
    boxes = PromptKind.parse(name).draw(mask, prompt_rng(seed), count)
    assert boxes is not None
    assert boxes.shape == (count, 4)
    return boxes


@pytest.mark.parametrize("name", ["noisy-box", "shifted-box", "truncated-box", "loose-box", "detector-box"])
@settings(max_examples=30, deadline=None)
@given(rectangles(), seeds)
def test_boxes_stay_in_the_picture_and_are_fixed_by_the_seed(name: str, mask: np.ndarray, seed: int) -> None:
    boxes = draw(name, mask, seed)
    assert (boxes >= 0).all()
    assert (boxes <= [HW[1], HW[0]] * 2).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1 - ROUNDING).all()
    np.testing.assert_array_equal(boxes, draw(name, mask, seed))


@settings(max_examples=60, deadline=None)
@given(rectangles(), seeds)
def test_a_truncated_box_is_the_true_one_without_a_part_of_one_side(mask: np.ndarray, seed: int) -> None:
    true = tight_box(mask)
    boxes = draw("truncated-box", mask, seed)
    inside = (boxes - true) * (1, 1, -1, -1)
    assert (inside >= -ROUNDING).all()
    assert ((np.abs(inside) > ROUNDING).sum(axis=1) <= 1).all()
    left = box_iou(boxes, true)
    assert (left >= 1 - TRUNCATED[1] - ROUNDING).all()
    assume((true[2:] - true[:2] >= 2).all())  # a side of one pixel cannot be cut
    assert (left <= 1 - TRUNCATED[0] + ROUNDING).all()


@settings(max_examples=60, deadline=None)
@given(rectangles(), seeds)
def test_a_loose_box_contains_the_true_one(mask: np.ndarray, seed: int) -> None:
    true = tight_box(mask)
    outside = (draw("loose-box", mask, seed) - true) * (-1, -1, 1, 1)
    sides = np.tile(true[2:] - true[:2], 2)
    room = (np.concatenate((true[:2], np.array(HW[::-1]) - true[2:]))).astype(float)
    assert (outside >= np.minimum(LOOSE[0] * sides, room) - ROUNDING).all()
    assert (outside <= np.minimum(LOOSE[1] * sides, room) + ROUNDING).all()


@settings(max_examples=60, deadline=None)
@given(rectangles(margin=30), seeds)
def test_a_shifted_box_keeps_its_size_and_always_moves(mask: np.ndarray, seed: int) -> None:
    true = tight_box(mask)
    boxes = draw("shifted-box", mask, seed)
    moved = np.abs(boxes - true) / np.tile(true[2:] - true[:2], 2)
    np.testing.assert_allclose(moved[:, :2], moved[:, 2:], atol=ROUNDING)
    assert (moved >= SHIFT[0] - ROUNDING).all()
    assert (moved <= SHIFT[1] + ROUNDING).all()


def test_detector_boxes_have_a_detectors_statistics() -> None:
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[400:600, 450:550] = True
    iou = box_iou(draw("detector-box", mask, 0, 4000), tight_box(mask))
    assert iou.min() >= 0.5
    assert np.mean(iou >= 0.75) == pytest.approx(0.72, abs=0.03)
    assert iou.mean() == pytest.approx(0.80, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(rectangles(), rectangles())
def test_a_box_of_two_objects_holds_both(mask: np.ndarray, other: np.ndarray) -> None:
    kind = PromptKind.parse("two-objects-box")
    both = kind.draw(mask, prompt_rng(0), 5, tight_box(other))
    assert both is not None
    np.testing.assert_array_equal(both, [tight_box(mask | other)])
    assert kind.draw(mask, prompt_rng(0), 5) is None


@settings(max_examples=60, deadline=None)
@given(rectangles(), rectangles())
def test_box_iou_is_that_of_the_filled_boxes(a: np.ndarray, b: np.ndarray) -> None:
    assert box_iou(tight_box(a)[None], tight_box(b))[0] == pytest.approx((a & b).sum() / (a | b).sum())

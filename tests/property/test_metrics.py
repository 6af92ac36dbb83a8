"""The measures against their definitions written out on whole images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_erosion

from stable_sam.evaluation.metrics import ReferenceMask, boundary_distance

SHAPE = (23, 31)
NOISE = hnp.arrays(bool, SHAPE)


@st.composite
def blobs(draw: st.DrawFn) -> np.ndarray:
    """Rectangles, some touching the border, so that masks have an inside."""
    mask = np.zeros(SHAPE, dtype=bool)
    for _ in range(draw(st.integers(0, 3))):
        y, x = draw(st.integers(0, 22)), draw(st.integers(0, 30))
        mask[y : y + draw(st.integers(1, 20)), x : x + draw(st.integers(1, 20))] = True
    return mask


MASKS = st.one_of(NOISE, blobs())


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return 1.0 if union == 0 else float((a & b).sum() / union)


def plain_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """Cheng et al.: the mask less its erosion by `distance` steps of 3x3, the image surrounded by background."""
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


@given(MASKS, MASKS)
def test_iou_is_its_definition(a: np.ndarray, b: np.ndarray) -> None:
    assert ReferenceMask(a).compare(b)[0] == pytest.approx(plain_iou(a, b))
    assert ReferenceMask(b).compare(a)[0] == pytest.approx(plain_iou(a, b))


@given(MASKS, MASKS, st.sampled_from([0.02, 0.06, 0.1]))
def test_boundary_iou_is_its_definition(a: np.ndarray, b: np.ndarray, ratio: float) -> None:
    distance = boundary_distance(SHAPE, ratio)
    expected = plain_iou(plain_boundary(a, distance), plain_boundary(b, distance))
    assert ReferenceMask(a, ratio).compare(b)[1] == pytest.approx(expected)


@given(MASKS)
def test_a_mask_equals_itself(mask: np.ndarray) -> None:
    assert ReferenceMask(mask).compare(mask) == (1.0, 1.0)


def test_boundary_sees_what_iou_does_not() -> None:
    mask = np.zeros((200, 200), dtype=bool)
    mask[20:180, 20:180] = True
    smaller = np.zeros_like(mask)
    smaller[26:174, 26:174] = True
    iou, boundary = ReferenceMask(mask).compare(smaller)
    assert iou > 0.85
    assert boundary < 0.1


def test_boundary_distance_follows_the_diagonal() -> None:
    assert boundary_distance((300, 400)) == 10
    assert boundary_distance((5, 5)) == 1

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from stable_sam.prompt_noise import MIN_BOX_SIDE, noisy_box, random_points

HW = (300, 400)
ROUNDING = 1e-9

seeds = st.integers(0, 2**32 - 1)
scales = st.floats(0, 1)


@st.composite
def boxes(draw) -> np.ndarray:
    """Boxes inside the image, sides at least MIN_BOX_SIDE."""
    height, width = HW
    x0, y0 = draw(st.floats(0, width - 1)), draw(st.floats(0, height - 1))
    x1, y1 = draw(st.floats(x0 + 1, width)), draw(st.floats(y0 + 1, height))
    return np.array([x0, y0, x1, y1])


@settings(max_examples=60, deadline=None)
@given(boxes(), st.floats(0, 3), seeds)
def test_noisy_boxes_stay_in_the_image_and_keep_a_side(box, scale, seed):
    height, width = HW
    noisy = noisy_box(box, scale, HW, np.random.default_rng(seed), 8)
    assert noisy.shape == (8, 4)
    assert (noisy >= 0).all()
    assert (noisy <= [width, height, width, height]).all()
    assert (noisy[:, 2:] - noisy[:, :2] >= MIN_BOX_SIDE - ROUNDING).all()


@settings(max_examples=40, deadline=None)
@given(boxes(), seeds)
def test_scale_0_gives_the_box_itself(box, seed):
    noisy = noisy_box(box, 0.0, HW, np.random.default_rng(seed), 3)
    np.testing.assert_allclose(noisy, np.tile(box, (3, 1)), atol=ROUNDING)


@settings(max_examples=60, deadline=None)
@given(boxes(), scales, seeds)
def test_centre_and_size_move_at_most_by_the_scale(box, scale, seed):
    far = np.array([1000.0, 1000.0, 1000.0, 1000.0])  # so far from every border that nothing is clipped
    noisy = noisy_box(box + far, scale, (5000, 5000), np.random.default_rng(seed), 8) - far
    sides = box[2:] - box[:2]
    moved = (noisy[:, :2] + noisy[:, 2:]) / 2 - (box[:2] + box[2:]) / 2
    grown = (noisy[:, 2:] - noisy[:, :2]) - sides
    assert (np.abs(moved) <= scale * sides / 2 + ROUNDING).all()
    assert (np.abs(grown) <= scale * sides + ROUNDING).all()


@settings(max_examples=20, deadline=None)
@given(boxes(), seeds)
def test_a_scale_is_used_to_its_full(box, seed):
    """Among many boxes some are far off: a noise that is too small would pass every bound."""
    noisy = noisy_box(box + 1000.0, 0.4, (5000, 5000), np.random.default_rng(seed), 400) - 1000.0
    sides = box[2:] - box[:2]
    moved = (noisy[:, :2] + noisy[:, 2:]) / 2 - (box[:2] + box[2:]) / 2
    assert (np.abs(moved).max(axis=0) > 0.18 * sides).all()
    assert (moved.max(axis=0) > 0).all()
    assert (moved.min(axis=0) < 0).all()
    ratio = (noisy[:, 2:] - noisy[:, :2]) / sides
    assert (ratio.max(axis=0) > 1.35).all()
    assert (ratio.min(axis=0) < np.maximum(0.65, 1 / sides + 0.01)).all()


@settings(max_examples=30, deadline=None)
@given(boxes(), scales, seeds)
def test_noise_is_a_function_of_the_seed(box, scale, seed):
    first, second = (noisy_box(box, scale, HW, np.random.default_rng(seed), 4) for _ in range(2))
    np.testing.assert_array_equal(first, second)


masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12)).filter(lambda mask: mask.any())


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 12), seeds)
def test_points_are_centres_of_the_masks_pixels(mask, count, seed):
    points = random_points(mask, count, np.random.default_rng(seed))
    assert points.shape == (count, 2)
    np.testing.assert_array_equal(points % 1, 0.5)
    columns, rows = np.floor(points).astype(int).T
    assert mask[rows, columns].all()


@settings(max_examples=20, deadline=None)
@given(masks, seeds)
def test_every_pixel_of_the_mask_is_drawn(mask, seed):
    points = random_points(mask, 40 * int(mask.sum()), np.random.default_rng(seed))
    drawn = np.zeros_like(mask)
    drawn[tuple(np.floor(points).astype(int).T[::-1])] = True
    np.testing.assert_array_equal(drawn, mask)


def test_an_empty_mask_has_no_points():
    with pytest.raises(ValueError, match="empty mask"):
        random_points(np.zeros((3, 4), bool), 1, np.random.default_rng(0))

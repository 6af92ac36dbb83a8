import numpy as np
import pytest

from stable_sam.explain.overlay import BOX_RGB, POINT_RGB, draw_overlay


def test_mask_box_and_points_are_drawn_on_a_copy():
    image = np.full((80, 100, 3), 100, np.uint8)
    mask = np.zeros((80, 100), dtype=bool)
    mask[20:40, 30:60] = True
    drawn = draw_overlay(image, mask, box_xyxy=(10, 10, 70, 60), points_xy=[(35, 30), (90, 70)], point_labels=[1, 0])
    assert (image == 100).all()
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert tuple(drawn[30, 35]) == POINT_RGB[1]
    assert tuple(drawn[70, 90]) == POINT_RGB[0]
    assert (drawn[25:28, 45:55] != 100).any(axis=2).all()
    on_edge = np.abs(drawn[10, 10:71].astype(int) - BOX_RGB).max(axis=1) < 60
    assert 0.3 < on_edge.mean() < 0.9, "the box is dashed"
    assert (drawn[75:, :50] == 100).all()


def test_an_empty_or_missing_mask_draws_nothing():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_overlay(image, None), image)
    np.testing.assert_array_equal(draw_overlay(image, np.zeros((20, 30), dtype=bool)), image)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="expected a mask"):
        draw_overlay(np.zeros((20, 30, 3), np.uint8), np.zeros((30, 20), dtype=bool))


def test_boxes_and_points_may_lie_outside():
    image = np.zeros((20, 30, 3), np.uint8)
    draw_overlay(image, None, box_xyxy=(-50.0, -5.0, 500.0, 8.5), points_xy=[(-3.0, 400.0)], point_labels=[1])

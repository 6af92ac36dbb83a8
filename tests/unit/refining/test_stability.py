import numpy as np
import pytest

from stable_sam.records import Prompt
from stable_sam.refining.stability import jittered_prompts, prompt_stability, stability_score

FIRST_JITTERED_BOX = (16.65992639, 24.8293436, 58.23191853, 75.21757776)


def test_stability_score_is_the_iou_of_two_thresholds():
    logits = np.array([[-2.0, -0.5, 0.5], [2.0, 3.0, -3.0]], dtype=np.float32)
    assert stability_score(logits, 1.0) == 2 / 4
    assert stability_score(logits, 0.1) == 1.0


def test_stability_score_of_an_empty_mask_is_zero():
    assert stability_score(np.full((4, 4), -5.0, dtype=np.float32), 1.0) == 0.0


def test_prompt_stability_is_the_mean_iou_with_the_union():
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, :2] = True
    masks[1, 1:3] = True
    union = masks.any(axis=0)
    by_definition = np.mean([(m & union).sum() / (m | union).sum() for m in masks])
    assert prompt_stability(masks) == pytest.approx(by_definition)
    assert prompt_stability(masks[:1]) == 1.0
    assert prompt_stability(masks[2:]) == 0.0


def prompt(**changes) -> Prompt:
    return Prompt(**{"prompt_id": "a", "image_id": "i", "image_uri": "i.jpg", **changes})


def jitter(one: Prompt, scale: float = 0.2, side: float = 20.0):
    return jittered_prompts(one, 50, scale, object_side=side, image_hw=(100, 200))


def test_jitter_depends_on_the_prompt_id_alone():
    box = (20.0, 20.0, 60.0, 80.0)
    first, again, other = (jitter(prompt(prompt_id=name, box_xyxy=box))[0] for name in ("a", "a", "b"))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    # Written down: a changed seed would change every prompt_stability of every table.
    np.testing.assert_allclose(first[0], FIRST_JITTERED_BOX, atol=1e-6)


def test_boxes_move_by_the_scale_and_stay_boxes_inside_the_image():
    boxes, points = jitter(prompt(box_xyxy=(20.0, 20.0, 60.0, 80.0)))
    assert points is None
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 - [40, 50]
    assert np.abs(center[:, 0]).max() <= 0.2 * 20
    assert np.abs(center[:, 1]).max() <= 0.2 * 30
    assert np.abs(center).max() > 0.1 * 30
    edge, _ = jitter(prompt(box_xyxy=(190.0, 90.0, 200.0, 100.0)), scale=1.0)
    assert (edge[:, :2] < edge[:, 2:]).all()
    assert edge.min() >= 0
    assert (edge[:, 2:] <= [200, 100]).all()


def test_points_move_by_half_the_object_or_half_the_box():
    alone = prompt(points_xy=((50.0, 40.0), (10.0, 10.0)), point_labels=(1, 0))
    boxes, points = jitter(alone, scale=0.5, side=20.0)
    assert boxes is None
    assert points.shape == (50, 2, 2)
    moves = np.abs(points - [(50, 40), (10, 10)])
    assert 4.0 < moves.max() <= 0.5 * 10
    with_box = prompt(points_xy=((50.0, 40.0),), point_labels=(1,), box_xyxy=(10.0, 20.0, 90.0, 60.0))
    moves = np.abs(jitter(with_box, scale=0.5)[1] - (50, 40))
    assert 15 < moves[..., 0].max() <= 20
    assert 7 < moves[..., 1].max() <= 10


def test_points_stay_in_the_image_and_rest_without_an_object():
    corner = prompt(points_xy=((0.0, 100.0),), point_labels=(1,))
    points = jitter(corner, scale=1.0)[1]
    assert points[..., 0].min() >= 0
    assert points[..., 1].max() <= 100
    assert (jitter(corner, side=0.0)[1] == (0.0, 100.0)).all()

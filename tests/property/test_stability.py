import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stable_sam.records import Prompt
from stable_sam.refining.stability import jittered_prompts, prompt_stability, stability_score

stacks = st.integers(1, 6).flatmap(lambda count: arrays(np.bool_, (count, 5, 6)))
logits = arrays(np.float32, (5, 6), elements=st.floats(-10, 10, width=32))


@settings(max_examples=40, deadline=None)
@given(stacks)
def test_prompt_stability_is_a_mean_iou(masks):
    union = masks.any(axis=0)
    score = prompt_stability(masks)
    if union.any():
        np.testing.assert_allclose(score, np.mean([(m & union).sum() / union.sum() for m in masks]))
        assert 0 < score <= 1
    else:
        assert score == 0


@settings(max_examples=40, deadline=None)
@given(stacks, st.randoms())
def test_prompt_stability_does_not_depend_on_the_order(masks, random):
    order = list(range(len(masks)))
    random.shuffle(order)
    assert prompt_stability(masks[order]) == prompt_stability(masks)


@settings(max_examples=40, deadline=None)
@given(logits, st.floats(0.01, 3), st.floats(0.01, 3))
def test_stability_score_lies_in_0_1_and_falls_with_the_offset(values, one, other):
    small, large = sorted((one, other))
    assert 0 <= stability_score(values, large) <= stability_score(values, small) <= 1


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(0, 300), st.floats(0, 200), st.floats(1, 300), st.floats(1, 200)),
    st.floats(0, 1),
    st.text(max_size=20),
)
def test_jittered_boxes_are_usable_boxes(xywh, scale, prompt_id):
    x, y, w, h = xywh
    box = (x, y, min(x + w, 400.0), min(y + h, 300.0))
    prompt = Prompt(prompt_id=prompt_id, image_id="i", image_uri="u", box_xyxy=box)
    boxes, _ = jittered_prompts(prompt, 5, scale, object_side=0.0, image_hw=(300, 400))
    assert boxes.shape == (5, 4)
    assert (boxes[:, 2:] - boxes[:, :2] >= 1 - 1e-9).all()
    assert (boxes >= 0).all()
    assert (boxes <= [400, 300, 400, 300]).all()


def test_prompt_stability_takes_masks_one_at_a_time():
    corners = np.eye(4, dtype=bool).reshape(4, 2, 2)
    before = corners.copy()
    assert prompt_stability(mask for mask in corners) == prompt_stability(corners) == 0.25
    np.testing.assert_array_equal(corners, before)
    assert prompt_stability([corners[0]] * 3) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        prompt_stability([])

from math import inf, nan

import pytest

from stable_sam.errors import PromptError
from stable_sam.prompt_check import check_prompt
from stable_sam.records import Prompt

HW = (100, 200)


def prompt(box=None, points=(), labels=None, error=None) -> Prompt:
    labels = (1,) * len(points) if labels is None else labels
    return Prompt(
        prompt_id="p", image_id="i", image_uri="u", box_xyxy=box, points_xy=points, point_labels=labels, error=error
    )


@pytest.mark.parametrize("image_hw", [HW, None])
@pytest.mark.parametrize(
    ("unusable", "message"),
    [
        (prompt(box=(1, 2, 30, 40), error="no image"), "no image"),
        (prompt(), "got neither"),
        (prompt(box=(10, 10, 10, 20)), "an empty one"),
        (prompt(box=(30, 10, 10, 20)), "an inverted one"),
        (prompt(box=(10, 10, nan, 20)), "finite"),
        (prompt(box=(10, -inf, 30, 20)), "finite"),
        (prompt(box=(0.1, 0.2, 0.5, 0.9)), "normalised"),
        (prompt(points=((0.5, 0.3),)), "normalised"),
        (prompt(points=((50, 40),), labels=(2,)), "got 2"),
        (prompt(points=((50, 40),), labels=()), "1 points and 0 labels"),
        (prompt(points=((nan, 40),)), "finite"),
        (prompt(points=((50, 40),), labels=(0,)), "background points only"),
    ],
)
def test_unusable_prompts(unusable, message, image_hw):
    with pytest.raises(PromptError, match=message):
        check_prompt(unusable, image_hw)


@pytest.mark.parametrize(
    ("outside", "message"),
    [
        (prompt(box=(200, 10, 240, 20)), "meets the image of 200 x 100 pixels"),
        (prompt(box=(-50, 10, -5, 20)), "meets the image"),
        (prompt(points=((201, 40),)), "points inside the image"),
        (prompt(points=((50, -1),)), "points inside the image"),
    ],
)
def test_outside_is_seen_when_the_size_is_known(outside, message):
    with pytest.raises(PromptError, match=message):
        check_prompt(outside, HW)
    assert check_prompt(outside, None) == outside


def test_a_box_partly_outside_is_clipped():
    assert check_prompt(prompt(box=(-5, 10, 500, 120)), HW).box_xyxy == (0, 10, 200, 100)


@pytest.mark.parametrize(
    "usable",
    [
        prompt(box=(0, 0, 200, 100)),
        prompt(points=((0, 0), (200, 100)), labels=(1, 0)),
        prompt(box=(1, 2, 3, 4), points=((2, 2),), labels=(0,)),
    ],
)
def test_usable_prompts_come_back_as_they_are(usable):
    assert check_prompt(usable, HW) == usable

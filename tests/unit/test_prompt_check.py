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
        (prompt(box=(10, 10, 10, 20)), "the box is empty: expected .* got"),
        (prompt(box=(30, 10, 10, 20)), "the box is inverted: expected .* got"),
        (prompt(box=(10, 10, nan, 20)), "finite"),
        (prompt(box=(10, -inf, 30, 20)), "finite"),
        (prompt(box=(0.1, 0.2, 0.5, 0.9)), "the box looks normalised"),
        (prompt(box=(0.9, 0.2, 1.1, 0.9)), "the box looks normalised"),
        (prompt(box=(0, 0, 1, 1)), "the box looks normalised"),
        (prompt(points=((0.5, 0.3),)), "the points look normalised"),
        (prompt(box=(10, 10, 50, 40), points=((0.5, 0.3),)), "the points look normalised"),
        (prompt(box=(0.1, 0.2, 0.5, 0.9), points=((50, 40),)), "the box looks normalised"),
        (prompt(box=(-50, 10, -5, 20)), r"the box lies outside the image: .* got \[-50.0, 10.0, -5.0, 20.0\] \(XYXY\)"),
        (prompt(points=((50, -1),)), "a point lies outside the image"),
        (prompt(points=((50, 40),), labels=(2,)), r"got \[2\]"),
        (prompt(points=((50, 40),), labels=()), r"expected 1 point labels, one for each point, got \[\]"),
        (prompt(labels=(1,)), r"got no points and labels \[1\]"),
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
        (prompt(box=(200, 10, 240, 20)), "the box lies outside the image: expected a box in 200 x 100 pixels"),
        (prompt(box=(10, 100, 20, 120)), "the box lies outside the image"),
        (prompt(points=((201, 40),)), "a point lies outside the image: expected points in 200 x 100 pixels"),
    ],
)
def test_what_lies_beyond_the_far_borders_is_seen_when_the_size_is_known(outside, message):
    with pytest.raises(PromptError, match=message):
        check_prompt(outside, HW)
    assert check_prompt(outside, None) == outside


def test_a_box_partly_outside_is_clipped():
    partly_outside = prompt(box=(-5, 10, 500, 120))
    assert check_prompt(partly_outside, HW).box_xyxy == (0, 10, 200, 100)
    assert check_prompt(partly_outside, None).box_xyxy == (0, 10, 500, 120)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(PromptError, match="the box is empty.*; expected point labels"):
        check_prompt(prompt(box=(5, 5, 5, 5), points=((7, 7),), labels=(3,)), HW)


def test_the_box_is_shown_as_it_was_given():
    with pytest.raises(PromptError, match=r"the box is empty: .* got five"):
        check_prompt(prompt(box=(5, 5, 5, 5)), HW, box_as_given="five")


def test_in_an_image_of_one_pixel_nothing_looks_normalised():
    small = prompt(box=(0, 0, 1, 1), points=((0.5, 0.5),))
    assert check_prompt(small, (1, 1)) == small


@pytest.mark.parametrize(
    "usable",
    [
        prompt(box=(0, 0, 200, 100)),
        prompt(points=((0, 0), (200, 100)), labels=(1, 0)),
        prompt(points=((0, 1),)),
        prompt(box=(0.5, 0.5, 0.9, 60)),
        prompt(box=(10, 20, 30, 40), points=((200, 0),), labels=(0,)),
        prompt(box=(1, 2, 3, 4), points=((2, 2),), labels=(0,)),
    ],
)
def test_usable_prompts_come_back_as_they_are(usable):
    assert check_prompt(usable, HW) == usable

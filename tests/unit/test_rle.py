"""Compressed run lengths of strangers, one text at a time and many at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stable_sam.rle import check_counts, checked_counts, encode_mask, mask_iou

SIZE = (7, 90)
"""Long enough for run lengths of two digits."""


def counts_of(seed: int, cover: float) -> str:
    """Of a mask of SIZE."""
    return encode_mask(np.random.default_rng(seed).random(SIZE) < cover).counts


@given(
    st.integers(0, 1000),
    st.sampled_from([0.01, 0.1, 0.5, 0.99]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 1), st.text("0123@OPo_~/!é", max_size=2)), max_size=2),
)
def test_many_at_once_are_judged_as_one_alone(seed: int, cover: float, edits: list[tuple[int, int, str]]) -> None:
    text = counts_of(seed, cover)
    for place, removed, added in edits:
        text = text[:place] + added + text[place + removed :]
    neighbour, area = counts_of(seed + 1, 0.3), SIZE[0] * SIZE[1]
    try:
        checked_counts(text, SIZE)
    except ValueError:
        with pytest.raises(ValueError, match="^expected"):
            check_counts([neighbour, text, neighbour], [area] * 3)
    else:
        check_counts([neighbour, text, neighbour], [area] * 3)


@pytest.mark.parametrize("bad", ["", "o" * 40, "0" + 40 * "o" + "0"])
def test_many_at_once_of_hostile_text(bad: str) -> None:
    with pytest.raises(ValueError, match="^expected run lengths that add up to the image"):
        check_counts([bad], [1])


def test_other_letters_are_no_run_lengths() -> None:
    """Replaced by "?" they would be: 15 pixels."""
    for check in (lambda: checked_counts("é", (3, 5)), lambda: check_counts(["é"], [15])):
        with pytest.raises(ValueError, match="^expected compressed run lengths, got other text"):
            check()


def test_many_at_once_of_other_areas() -> None:
    text = counts_of(0, 0.5)
    with pytest.raises(ValueError, match="^expected run lengths that add up to the image"):
        check_counts([text, text], [SIZE[0] * SIZE[1], SIZE[0] * SIZE[1] + 1])


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.9]), st.sampled_from([0.0, 0.3, 1.0]))
def test_iou_of_run_lengths_is_that_of_the_pixels(seed: int, cover: float, other_cover: float) -> None:
    draw = np.random.default_rng(seed)
    one, other = draw.random(SIZE) < cover, draw.random(SIZE) < other_cover
    found = mask_iou(SIZE, encode_mask(one).counts, list(SIZE), encode_mask(other).counts)
    union = (one | other).sum()
    assert found == pytest.approx((one & other).sum() / union if union else 0.0)


def test_masks_that_are_missing_or_of_other_sizes_have_no_iou() -> None:
    counts, turned = counts_of(0, 0.5), (SIZE[1], SIZE[0])
    assert mask_iou(SIZE, None, SIZE, counts) is None
    assert mask_iou(None, counts, SIZE, counts) is None
    assert mask_iou(SIZE, counts, turned, counts) is None

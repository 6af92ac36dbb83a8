"""Whatever stands in an annotation: one prompt comes out for it, and it is either usable or says why not."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from stable_sam.formats.source_annotation import SourceAnnotation, attributes_json, checked_prompt
from stable_sam.prompt_check import check_prompt
from stable_sam.records import Prompt
from stable_sam.table.schema import PROMPTS_SCHEMA, prompt_from_row, prompt_row, rows_to_table

SIZE_HW = (80, 100)
numbers = st.one_of(st.integers(-200, 300), st.floats(-200, 300), st.floats(), st.integers())
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)
near = st.floats(-20, 120)
boxes = st.one_of(anything, st.lists(numbers, min_size=4, max_size=4), st.lists(near, min_size=4, max_size=4))
points = st.one_of(
    anything,
    st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=4),
    st.lists(st.lists(near, min_size=2, max_size=2), max_size=2),
)
labels = st.one_of(anything, st.lists(st.integers(0, 1), max_size=4))


def not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def check(prompt: Prompt, size_hw: tuple[int, int] | None) -> None:
    if prompt.error is not None:
        assert "\n" not in prompt.error
        assert all(map(math.isfinite, [*(prompt.box_xyxy or ()), *(x for point in prompt.points_xy for x in point)]))
        return
    assert prompt.box_xyxy is not None or prompt.points_xy
    assert len(prompt.points_xy) == len(prompt.point_labels)
    assert set(prompt.point_labels) <= {0, 1}
    height, width = size_hw or (math.inf, math.inf)
    if prompt.box_xyxy is not None:
        x0, y0, x1, y1 = prompt.box_xyxy
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert math.isfinite(x1)
        assert math.isfinite(y1)
    assert all(0 <= x <= width and 0 <= y <= height and math.isfinite(x + y) for x, y in prompt.points_xy)


@settings(max_examples=150, deadline=None)
@given(
    box_xyxy=boxes,
    box_xywh=boxes,
    frame=st.sampled_from(["xyxy", "xywh", "both", "none"]),
    points_xy=points,
    point_labels=labels,
    rest=st.one_of(st.just((None,) * 4), st.tuples(anything, anything, anything, anything)),
    size_hw=st.sampled_from([None, SIZE_HW]),
)
def test_a_prompt_is_usable_or_says_why(
    box_xyxy: Any,
    box_xywh: Any,
    frame: str,
    points_xy: Any,
    point_labels: Any,
    rest: tuple[Any, Any, Any, Any],
    size_hw: tuple[int, int] | None,
) -> None:
    category_id, category, iscrowd, score = rest
    prompt = checked_prompt(
        SourceAnnotation(
            prompt_id="1",
            where="x.json: annotation 1",
            image_id="1",
            size_hw=size_hw,
            box_xyxy=box_xyxy if frame in ("xyxy", "both") else None,
            box_xywh=box_xywh if frame in ("xywh", "both") else None,
            points_xy=points_xy,
            point_labels=point_labels,
            category_id=category_id,
            category=category,
            iscrowd=iscrowd,
            score=score,
        )
    )
    assert prompt.prompt_id == "1"
    check(prompt, size_hw)
    [row] = rows_to_table([prompt_row(prompt)], PROMPTS_SCHEMA).to_pylist()
    assert prompt_from_row(row) == prompt
    if prompt.error is None:
        # The refiner asks again: what a reader found usable stays so, unchanged.
        assert check_prompt(prompt, size_hw) == prompt


@settings(max_examples=100, deadline=None)
@example(x0=-1.0, y0=-1.0, width=2.0, height=2.0)
@given(x0=st.floats(-50, 150), y0=st.floats(-50, 150), width=st.floats(2, 100), height=st.floats(2, 100))
def test_both_frames_mean_the_same_box(x0: float, y0: float, width: float, height: float) -> None:
    common: dict[str, Any] = {"prompt_id": "1", "where": "x", "image_id": "1", "size_hw": SIZE_HW}
    by_size = checked_prompt(SourceAnnotation(box_xywh=[x0, y0, width, height], **common))
    by_corners = checked_prompt(SourceAnnotation(box_xyxy=[x0, y0, x0 + width, y0 + height], **common))
    assert by_size.box_xyxy == by_corners.box_xyxy
    assert (by_size.error is None) == (by_corners.error is None)
    check(by_size, SIZE_HW)
    overlaps = x0 < 100 and y0 < 80 and x0 + width > 0 and y0 + height > 0
    first_pixel_only = x0 + width <= 1 and y0 + height <= 1
    assert (by_size.error is None) == (overlaps and not first_pixel_only)


@settings(max_examples=60, deadline=None)
@example(record={"value": math.nan, "inside": [{"deep": -math.inf}]})
@given(record=st.dictionaries(st.text(max_size=5), anything, max_size=5))
def test_attributes_are_strict_json(record: dict[str, Any]) -> None:
    text = attributes_json(record, known=())
    if text is not None:
        json.loads(text, parse_constant=not_json)
        text.encode()

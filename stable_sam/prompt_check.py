"""The rules that a usable weak prompt obeys. Readers, which may not know the image's size, and the refiner, which does,
apply the same rules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from stable_sam.errors import PromptError
from stable_sam.records import BoxXYXY, Prompt


def check_prompt(prompt: Prompt, image_hw: tuple[int, int] | None, *, box_as_given: str | None = None) -> Prompt:
    """Check a prompt and clip its box to the image. A second call returns an equal prompt.

    image_hw: (height, width) in pixels of the upright image, or None when it is not known. Then only what lies left of
    or above every image is outside, and boxes are not clipped at the right and lower border. Points may lie on borders.
    box_as_given: how the source wrote the box, for messages; None shows it as XYXY.
    Raises `PromptError` that names every problem of box and points, each with what was expected and what came.
    """
    if prompt.error is not None:
        raise PromptError(prompt.error)
    box = prompt.box_xyxy
    problems = [None if box is None else _box_problem(box, image_hw, box_as_given), _points_problem(prompt, image_hw)]
    found = [problem for problem in problems if problem]
    if found:
        raise PromptError("; ".join(found))
    return prompt if box is None else replace(prompt, box_xyxy=_clipped(box, image_hw))


def checked(prompt: Prompt, image_hw: tuple[int, int]) -> Prompt:
    """Check a prompt as `check_prompt` does, but return an unusable one with its problems in `error`."""
    try:
        return check_prompt(prompt, image_hw)
    except PromptError as error:
        return replace(prompt, error=str(error))


def _box_problem(box: BoxXYXY, image_hw: tuple[int, int] | None, as_given: str | None) -> str | None:
    x0, y0, x1, y1 = box
    shown = as_given or f"{_numbers(box)} (XYXY)"
    if not all(math.isfinite(value) for value in box):
        return f"expected a box of finite numbers, got {shown}"
    if x1 < x0 or y1 < y0:
        return f"the box is inverted: expected width and height above 0, got {shown}"
    if x1 == x0 or y1 == y0:
        return f"the box is empty: expected width and height above 0, got {shown}"
    left, top, right, bottom = _clipped(box, image_hw)
    if left >= right or top >= bottom:
        return f"the box lies outside the image: expected a box in {_size(image_hw)}, got {shown}"
    # Position and size are compared, not corners: a normalised box just across the border has a corner above 1.
    if max(left, top, right - left, bottom - top) <= 1 and not _one_pixel(image_hw):
        return f"the box looks normalised: expected pixels, got no position or size above 1 in the image: {shown}"
    return None


def _points_problem(prompt: Prompt, image_hw: tuple[int, int] | None) -> str | None:
    points, labels = prompt.points_xy, prompt.point_labels
    if not points:
        if labels:
            return f"expected one label for each point, got no points and labels {list(labels)!r:.80}"
        return "expected a box, points, or both, got neither" if prompt.box_xyxy is None else None
    shown = f"[{', '.join(_numbers(point) for point in points)}]"[:80]
    values = [value for point in points for value in point]
    if not all(math.isfinite(value) for value in values):
        return f"expected points of finite numbers, got {shown}"
    height, width = _borders(image_hw)
    if not all(0 <= x <= width and 0 <= y <= height for x, y in points):
        return f"a point lies outside the image: expected points in {_size(image_hw)}, got {shown}"
    # The whole numbers 0 and 1 may be the image's first pixels; only fractions show that points are normalised.
    if max(values) <= 1 and not all(float(value).is_integer() for value in values) and not _one_pixel(image_hw):
        return f"the points look normalised: expected pixels, got no value above 1: {shown}"
    if len(labels) != len(points):
        return f"expected {len(points)} point labels, one for each point, got {list(labels)!r:.80}"
    if not set(labels) <= {0, 1}:
        return f"expected point labels 1 (on the object) or 0 (background), got {list(labels)!r:.80}"
    if prompt.box_xyxy is None and 1 not in labels:
        return "expected a box or at least one point with label 1, got background points only"
    return None


def _clipped(box: BoxXYXY, image_hw: tuple[int, int] | None) -> BoxXYXY:
    height, width = _borders(image_hw)
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)


def _borders(image_hw: tuple[int, int] | None) -> tuple[float, float]:
    return (math.inf, math.inf) if image_hw is None else (float(image_hw[0]), float(image_hw[1]))


def _one_pixel(image_hw: tuple[int, int] | None) -> bool:
    return image_hw is not None and max(image_hw) <= 1


def _numbers(values: Iterable[float]) -> str:
    return str([float(value) for value in values])


def _size(image_hw: tuple[int, int] | None) -> str:
    return f"{image_hw[1]} x {image_hw[0]} pixels" if image_hw else "the image"

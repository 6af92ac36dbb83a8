"""What makes a weak prompt usable: one set of rules for readers, which may not know the image's size, and refiner."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from stable_sam.errors import PromptError
from stable_sam.records import BoxXYXY, Prompt


def check_prompt(prompt: Prompt, image_hw: tuple[int, int] | None) -> Prompt:
    """`prompt` with its box clipped to the image; `image_hw` None when the size is not known (then nothing is clipped).

    Raises `PromptError` saying what was expected and what came.
    """
    if prompt.error is not None:
        raise PromptError(prompt.error)
    if prompt.box_xyxy is None and not prompt.points_xy:
        raise PromptError("expected a box or points, got neither")
    box = prompt.box_xyxy
    if box is not None:
        _check_box(box)
    _check_points(prompt)
    coordinates = [*(box or ()), *(value for point in prompt.points_xy for value in point)]
    if max(coordinates) <= 1 and (image_hw is None or max(image_hw) > 1):
        raise PromptError(f"expected pixels, got coordinates that look normalised: {_numbers(coordinates)}")
    if image_hw is None:
        return prompt
    for x, y in prompt.points_xy:
        if not (0 <= x <= image_hw[1] and 0 <= y <= image_hw[0]):
            raise PromptError(f"expected points inside the image {_size(image_hw)}, got {_numbers((x, y))}")
    return prompt if box is None else replace(prompt, box_xyxy=_clipped(box, image_hw))


def _check_box(box: BoxXYXY) -> None:
    x0, y0, x1, y1 = box
    if not all(isfinite(value) for value in box):
        raise PromptError(f"expected a box of finite numbers, got {_numbers(box)}")
    if x1 < x0 or y1 < y0:
        raise PromptError(f"expected a box x0 < x1, y0 < y1, got an inverted one: {_numbers(box)}")
    if x1 == x0 or y1 == y0:
        raise PromptError(f"expected a box x0 < x1, y0 < y1, got an empty one: {_numbers(box)}")


def _check_points(prompt: Prompt) -> None:
    points, labels = prompt.points_xy, prompt.point_labels
    if len(points) != len(labels):
        raise PromptError(f"expected one label for each point, got {len(points)} points and {len(labels)} labels")
    wrong = [label for label in labels if label not in (0, 1)]
    if wrong:
        raise PromptError(f"expected point labels 1 (object) or 0 (background), got {wrong[0]}")
    if not all(isfinite(value) for point in points for value in point):
        raise PromptError("expected points of finite numbers, got NaN or infinity")
    if prompt.box_xyxy is None and 1 not in labels:
        raise PromptError("expected a box or at least one point with label 1, got background points only")


def _clipped(box: BoxXYXY, image_hw: tuple[int, int]) -> BoxXYXY:
    height, width = image_hw
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    if x0 >= x1 or y0 >= y1:
        raise PromptError(f"expected a box that meets the image {_size(image_hw)}, got {_numbers(box)}")
    return x0, y0, x1, y1


def _numbers(values: tuple[float, ...] | list[float], limit: int = 8) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values[:limit]) + (", ..." if len(values) > limit else "") + ")"


def _size(image_hw: tuple[int, int]) -> str:
    return f"of {image_hw[1]} x {image_hw[0]} pixels"

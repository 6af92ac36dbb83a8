"""Reads Label Studio's vectors: corners joined by lines or by cubic Bézier curves, in per cent of the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_sam.errors import PromptError
from stable_sam.formats.reading import is_number

STEPS = 16
"""Number of points computed on a curve; the box around them is then exact to a hundredth of the curve's length."""


def vector_points(value: Mapping[str, Any]) -> list[list[float]]:
    """Return points [x, y] on the outline.

    Raises `PromptError` for an open vector, which has no inside, and for a value that is not a vector.
    """
    vertices = value.get("vertices")
    if not isinstance(vertices, list) or not all(map(_is_point, vertices)):
        raise PromptError(f"expected a vector with vertices of x and y, got {vertices!r:.80}")
    if value.get("closed") is not True:
        raise PromptError("an open vector is a line, and no box, polygon or point")
    return [
        point
        for before, vertex in zip(vertices[-1:] + vertices[:-1], vertices, strict=True)
        for point in _curve(before, vertex)
    ]


def _curve(before: Mapping[str, Any], vertex: Mapping[str, Any]) -> list[list[float]]:
    """Return the points after one vertex, up to and with the next one.

    `controlPoint1` of a vertex is its handle towards the vertex before it, `controlPoint2` towards the one after it.
    """
    leaving, arriving = before.get("controlPoint2"), vertex.get("controlPoint1")
    start, end = _xy(before, []), _xy(vertex, [])
    if not (_is_point(leaving) or _is_point(arriving)):
        return [end]
    first, second = _xy(leaving, start), _xy(arriving, end)
    points = []
    for step in range(1, STEPS + 1):
        t = step / STEPS
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        points.append(
            [sum(w * p[axis] for w, p in zip(weights, (start, first, second, end), strict=True)) for axis in (0, 1)]
        )
    return points


def _is_point(given: Any) -> bool:
    return isinstance(given, Mapping) and is_number(given.get("x")) and is_number(given.get("y"))


def _xy(point: Any, otherwise: list[float]) -> list[float]:
    return [point["x"], point["y"]] if _is_point(point) else otherwise
